"""The keys of a GGUF file that say what its model computes.

In: metadata. Out: values of the kind that is asked for, or a CheckpointError that names the key. A key
that nobody asked for is refused: it may change what the model computes.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from firp.runtime.errors import CheckpointError

# Keys that are understood with this value alone, which changes nothing
_NEUTRAL = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "tensor_data_layout": "Meta AI original pth",
}
_TELLS_NOTHING = {"rope.scaling.finetuned"}


class Metadata:
    """The keys of a file's architecture, which must all be asked for. Raises CheckpointError for an
    architecture that is not among `known`.
    """

    def __init__(self, path: Path, values: dict[str, Any], known: Iterable[str]):
        self.path = path
        self.architecture = values.get("general.architecture")
        if self.architecture not in known:
            raise CheckpointError(
                "unsupported architecture",
                got=f"{self.architecture!r:.60} in '{path}'",
                expected="one of " + ", ".join(known),
            )
        prefix = f"{self.architecture}."
        self._values = {key.removeprefix(prefix): v for key, v in values.items() if key.startswith(prefix)}
        self._asked = set(_TELLS_NOTHING)

    def has(self, key: str) -> bool:
        """Tell whether the file says something of it."""
        return key in self._values

    def says(self, key: str) -> bool:
        """Tell whether the file has a value of it that is not 0."""
        return bool(self._values.get(key))

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A number of things, for each layer the same where a file says it of each. Raises CheckpointError
        where it is missing, or is no such number.
        """
        value = self._get(key, default)
        if isinstance(value, list) and value and value == value[:1] * len(value):
            value = value[0]
        if type(value) is not int or value < least:
            raise self.bad(key, value, "a positive integer")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Whether. Raises CheckpointError where it is missing, or is no yes or no."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.bad(key, value, "true or false")
        return value

    def flags(self, key: str, default: list[bool]) -> list[bool]:
        """Whether, of each layer. Raises CheckpointError for what is no list of that."""
        value = self._get(key, default)
        if not isinstance(value, list) or not all(isinstance(each, bool) for each in value):
            raise self.bad(key, value, "true or false of each layer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, in the fewest digits that give the file's float32: 0.00001 as its author wrote it.
        Raises CheckpointError where it is missing, or is no number.
        """
        value = self._get(key, default)
        if not isinstance(value, float):
            raise self.bad(key, value, "a number")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """A word. Raises CheckpointError for what is none."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.bad(key, value, "a text")
        return value

    def ignore(self, *keys: str) -> None:
        """Take note of keys that change nothing, whatever they say."""
        self._asked.update(keys)

    def check_all_asked(self) -> None:
        """Raises CheckpointError for a key that nobody asked for."""
        for key, value in self._values.items():
            if key not in self._asked and (key not in _NEUTRAL or value != _NEUTRAL[key]):
                raise self.bad(key, value, repr(_NEUTRAL[key]) if key in _NEUTRAL else "no such key")

    def bad(self, key: str, value: Any, expected: object) -> CheckpointError:
        """An error about one key."""
        where = f"unsupported {self.architecture}.{key} in '{self.path}'"
        return CheckpointError(
            where, got=f"{value!r:.60}" if value is not None else "nothing", expected=expected
        )

    def _get(self, key: str, default: Any) -> Any:
        self._asked.add(key)
        return self._values.get(key, default)
