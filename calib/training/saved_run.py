"""What an unfinished calibration leaves beside its target, so that it can go on as if nothing had
happened.

In: everything decided so far, by stage. Out: one file, replaced in one move, that only a run of the
same model, data and options takes up again. It holds tensors and plain values, and is read as such
(torch.load, weights_only).
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from firp.export.target_folder import disk_errors
from firp.runtime.errors import FirpError

SAVE_SECONDS = 30.0


class SavedRun:
    """`stages` survive a kill: what a stage stored is there when the run resumes."""

    def __init__(self, output: Path, identity: dict[str, Any], resume: bool):
        """Raises FirpError when there is nothing to resume, another run's file, or one that
        `resume` would have to overwrite.
        """
        self.path = output.with_name(output.name + ".unfinished")
        self.identity = identity
        self.stages: dict[str, Any] = {}
        self._saved_at = time.monotonic()
        if resume and not self.path.is_file():
            raise FirpError("nothing to resume", got=f"no '{self.path}'", fix="leave out --resume")
        if not resume and os.path.lexists(self.path):
            raise FirpError(
                "an unfinished calibration is there",
                got=f"'{self.path}'",
                fix="add --resume to go on, or remove it",
            )
        if resume:
            self.stages = self._load()

    def _load(self) -> dict[str, Any]:
        try:
            saved = torch.load(self.path, weights_only=True)
            identity = dict(saved["identity"])
            stages = dict(saved["stages"])
        except Exception as error:  # torch.load raises whatever its readers raise
            raise FirpError(
                "unreadable checkpoint", got=f"'{self.path}'", fix="remove it and start again"
            ) from error
        different = sorted(
            key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key)
        )
        if different:
            raise FirpError(
                "the unfinished calibration was another one",
                got=f"different {', '.join(different)} in '{self.path}'",
                fix="repeat its options and data, or remove it",
            )
        return stages

    @property
    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= SAVE_SECONDS

    def save(self) -> None:
        temporary = self.path.with_name(self.path.name + ".partial")
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.save({"identity": self.identity, "stages": self.stages}, temporary)
                temporary.replace(self.path)
            except RuntimeError as error:  # what torch.save makes of a full disk
                raise FirpError(
                    f"cannot write '{self.path}'", got=str(error).splitlines()[0], fix="free some disk"
                ) from error
            finally:
                temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What a stage found: made and saved now, or kept from before. It must be tensors and plain
        values.
        """
        if name not in self.stages:
            self.stages[name] = make()
            self.save()
        return self.stages[name]

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
