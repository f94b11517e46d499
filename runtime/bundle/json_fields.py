"""Dataclasses from JSON files, and to them: strictly, so that a file means one thing.

In: a path, or a dataclass and JSON data. Out: JSON data, or the dataclass with every field as
declared, or a BundleError that says where it is not.
"""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any

from firp.runtime.errors import BundleError


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises BundleError when it cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BundleError("missing file", got=f"no '{path}'") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(
            "not JSON", got=f"'{path}': {error}", fix="copy the file again, or write it again"
        ) from error


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, indented by one space."""
    path.write_text(json.dumps(data, indent=1) + "\n", "utf-8")


def to_json(value: Any) -> Any:
    """A dataclass as JSON data; tuples become lists."""
    return dataclasses.asdict(value)


def from_json(kind: Any, data: Any, where: str) -> Any:
    """Build `kind` (a dataclass or a type annotation) from JSON data, strictly: no unknown key,
    none missing, types as declared.
    """
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise BundleError(f"bad value at {where}", got=repr(data), expected="an object")
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if unknown := sorted(set(data) - set(fields)):
            raise BundleError(
                f"unknown key in {where}",
                got=", ".join(unknown),
                expected=", ".join(fields),
                fix="upgrade firp",
            )
        required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
        if absent := sorted(required - set(data)):
            raise BundleError(f"missing key in {where}", got=f"no {', '.join(absent)}")
        hints = typing.get_type_hints(kind)
        return kind(
            **{name: from_json(hints[name], value, f"{where}: {name}") for name, value in data.items()}
        )
    origin = typing.get_origin(kind)
    arguments = typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and types.NoneType in arguments:
            return None
        (kind,) = set(arguments) - {types.NoneType}  # only "or None" is used
        return from_json(kind, data, where)
    if origin is tuple and isinstance(data, list):
        kinds = [arguments[0]] * len(data) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(data):
            raise BundleError(f"bad value at {where}", got=f"{len(data)} values", expected=len(kinds))
        items = zip(kinds, data, strict=True)
        return tuple(from_json(each, item, f"{where}[{index}]") for index, (each, item) in enumerate(items))
    if origin is dict and isinstance(data, dict):
        return {key: from_json(arguments[1], item, f"{where}: {key}") for key, item in data.items()}
    if kind is Any or type(data) is kind or (kind is float and type(data) is int and abs(data) < 2**53):
        return data
    raise BundleError(
        f"bad value at {where}", got=f"{data!r:.60}", expected=getattr(kind, "__name__", str(kind))
    )
