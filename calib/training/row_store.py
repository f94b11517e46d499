"""Real rows of training windows, computed when a window is first drawn, and kept in a file: the
model is frozen, so what it says of a window never changes, and saying it again is most of a step.

In: a frozen model, windows of tokens. Out: `StoredRows` of the windows that a step draws. The file
has no name, and is gone with the process.
"""

import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from firp.calib.training.frozen_model import FrozenModel, RealRows

TEACHER_TOP = 32  # tokens that the model finds most likely, kept of every row
DISK_SHARE = 0.5  # of what is free: training is not to fill the disk


class StoredRows(NamedTuple):
    """Rows of some windows, and what the model says after each of them."""

    real: RealRows
    top_ids: Tensor  # [B, S, TEACHER_TOP] i64, or all tokens of a smaller vocabulary
    log_total: Tensor  # [B, S] f32, logarithm of the sum of all logits' exponentials

    def tensors(self) -> list[Tensor]:
        """Everything, in an order that `_from_tensors` knows."""
        keys = [part for pair in self.real.keys.values() for part in pair]
        return [self.real.hidden, self.real.final, self.top_ids, self.log_total, *keys]


class RowStore:
    """Windows [n, S] of tokens and their real rows. What finds no room on the disk is computed
    again each time.
    """

    def __init__(self, frozen: FrozenModel, windows: np.ndarray, folder: Path):
        self.windows = torch.from_numpy(windows)
        self.prediction_layer = frozen.prediction_layer
        self._frozen = frozen
        self._folder = folder
        self._slots: dict[int, int] = {}  # window -> its place in the file
        self._shapes: list[tuple[torch.dtype, tuple[int, ...]]] = []
        self._file: np.ndarray | None = None  # [slots, bytes of a window] u8, mapped

    def rows(self, chosen: Tensor) -> StoredRows:
        """Rows of the windows with these indices [B]."""
        found = [self._window(index) for index in chosen.tolist()]
        return self._from_tensors([torch.cat(parts) for parts in zip(*found, strict=True)])

    def _window(self, index: int) -> list[Tensor]:
        if index in self._slots:
            return self._read(self._slots[index])
        tensors = self._compute(self.windows[index : index + 1]).tensors()
        if self._file is None:
            self._shapes = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
            self._file = self._map(sum(tensor.nbytes for tensor in tensors))
        if len(self._slots) < len(self._file):
            slot = self._slots[index] = len(self._slots)
            parts = [tensor.cpu().contiguous().flatten().view(torch.uint8).numpy() for tensor in tensors]
            np.concatenate(parts, out=self._file[slot])
        return tensors

    def _map(self, window_bytes: int) -> np.ndarray:
        """A file with a place for every window, as far as the disk has room; it takes space as it
        is written.
        """
        room = int(shutil.disk_usage(self._folder).free * DISK_SHARE) // window_bytes
        shape = (min(len(self.windows), room), window_bytes)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            if not shape[0]:
                return np.empty(shape, np.uint8)
            return np.memmap(file, np.uint8, "w+", shape=shape)

    def _read(self, slot: int) -> list[Tensor]:
        window = torch.from_numpy(self._file[slot])
        tensors = []
        start = 0
        for dtype, shape in self._shapes:
            end = start + dtype.itemsize * int(np.prod(shape))
            tensors.append(window[start:end].view(dtype).reshape(shape).to(self._frozen.device))
            start = end
        return tensors

    @torch.no_grad()
    def _compute(self, input_ids: Tensor) -> StoredRows:
        real = self._frozen.real_rows(input_ids.to(self._frozen.device))
        logits = self._frozen.logits(real.final)
        top_ids = logits.topk(min(TEACHER_TOP, logits.shape[-1]), -1).indices
        return StoredRows(real, top_ids, logits.logsumexp(-1))

    def _from_tensors(self, tensors: list[Tensor]) -> StoredRows:
        hidden, final, top_ids, log_total, *parts = tensors
        layers = range(self.prediction_layer, self.prediction_layer + len(parts) // 2)
        keys = dict(zip(layers, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return StoredRows(RealRows(hidden, final, keys), top_ids, log_total)
