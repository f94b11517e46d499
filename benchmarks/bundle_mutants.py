"""Hostile bundles: one change each, whose sizes and digests are made to fit.

In: a copy of a bundle, which is changed in place, and a generator. Out: what was changed.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from firp.runtime.bundle.format import manifest_digest, sha256_file
from firp.runtime.bundle.graph_spec import graph_specs
from firp.runtime.bundle.json_fields import from_json, to_json
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.precision import Precision
from firp.runtime.errors import FirpError

_HOSTILE = (
    None, True, False, -1, 0, 1, 2, 7, 1.5, -0.0, 1e308, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**30,
    "", "x", "x" * 4000, "../x", "/dev/zero", "a\0b", "\ud800", "naïve\n\x1b[31m", [], {}, [[]], [1, 2, 3],
    {"a": {"b": []}},
)  # fmt: skip


class Mutant(NamedTuple):
    """One change: of which file, in words, and whether it may change what is decoded."""

    file: str
    change: str
    other_tokens: bool


def mutate(bundle: Path, rng: random.Random) -> Mutant:
    """Change one thing in a bundle, and make what is listed of it fit."""
    files = sorted(path.name for path in bundle.iterdir() if path.is_file())
    name = rng.choice([*files, *["firp.json"] * len(files)])
    if name == "firp.json" and rng.random() < 0.4:
        return Mutant(name, _consistent(bundle, rng), False)
    edit = _edit_bytes
    if rng.random() < 0.7:
        edit = {".json": _edit_json, ".safetensors": _edit_header}.get(Path(name).suffix, edit)
    change = edit(bundle / name, rng)
    if name != "firp.json":
        _list_again(bundle, name)
    return Mutant(name, change, name in ("model.safetensors", "predictors.safetensors"))


def _list_again(bundle: Path, name: str) -> None:
    def change(data: dict[str, Any]) -> None:
        file = bundle / name
        if file.is_file():
            data["files"][name] = {"size": file.stat().st_size, "sha256": sha256_file(file)}

    _edit_manifest(bundle, change)


def _edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((bundle / "firp.json").read_text())
    data.pop("sha256", None)
    change(data)
    (bundle / "firp.json").write_text(json.dumps({**data, "sha256": manifest_digest(data)}))


def _consistent(bundle: Path, rng: random.Random) -> str:
    """Another model than that of the weights; what the manifest declares of its graphs fits."""
    said = ""

    def change(data: dict[str, Any]) -> None:
        nonlocal said
        where, key = rng.choice([p for p in _leaves(data["model"]) if type(p[0][p[1]]) in (int, float)])
        where[key] = rng.choice((0, 1, 2, where[key] + 1, where[key] * 2, 2**31 - 1, 2**31, 1e-9, 0.5))
        said = f"model: {key} {where[key]}"
        data["prediction_layer"] = rng.choice((data["prediction_layer"], data["prediction_layer"] + 1))
        data["num_predictors"] = rng.choice((data["num_predictors"], data["num_predictors"] + 1, 10**6))
        try:
            model = from_json(ModelConfig, data["model"], "model")
            precision = from_json(Precision, data["precision"], "precision")
            specs = graph_specs(model, data["prediction_layer"], data["num_predictors"], precision)
        except (FirpError, ZeroDivisionError):
            return
        data["graphs"] = json.loads(json.dumps({name: to_json(spec) for name, spec in specs.items()}))

    _edit_manifest(bundle, change)
    return said


def _edit_json(file: Path, rng: random.Random) -> str:
    data = json.loads(file.read_text())
    data.pop("sha256", None) if file.name == "firp.json" else None
    where, key = rng.choice(list(_leaves(data, inner=True)))
    how = rng.randrange(5)
    if how == 0:
        del where[key]
    elif how == 1 and isinstance(where, dict):
        where[rng.choice(["more", "", "x" * 4000, "\0"])] = where.pop(key)
    elif how == 2 and isinstance(where, list):
        where.extend(where[:100])
    else:
        where[key] = rng.choice(_HOSTILE)
    if file.name == "firp.json":
        try:
            data["sha256"] = manifest_digest(data)
        except UnicodeEncodeError:
            data["sha256"] = ""
    file.write_text(json.dumps(data))
    return f"{str(key)[:30]}: {['removed', 'renamed', 'doubled', 'replaced', 'replaced'][how]}"


def _leaves(value: Any, inner: bool = False) -> list[tuple[Any, Any]]:
    """Places of a JSON value: a container, and a key of it. inner: those of containers too."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items)[:300]:
        nested = isinstance(item, dict | list)
        if inner or not nested:
            found.append((value, key))
        if nested:
            found += _leaves(item, inner)
    return found


def _edit_header(file: Path, rng: random.Random) -> str:
    """Another header of a safetensors file; its data stay."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    where, key = rng.choice(_leaves(header, inner=True))
    where[key] = rng.choice((*_HOSTILE, 0, 4, 64, 2**40))
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return f"header: {str(key)[:30]}"


def _edit_bytes(file: Path, rng: random.Random) -> str:
    content = bytearray(file.read_bytes())
    at = rng.randrange(len(content))
    size = min(rng.choice((1, 8, 64, 4096)), len(content) - at)
    how = rng.choice(("flip", "flip", "flip", "cut", "remove", "repeat", "random", "empty", "sparse", "link"))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "remove":
        del content[at : at + size]
    elif how == "repeat":
        content[at:at] = content[at : at + size] * rng.choice((1, 100))
    elif how == "random":
        content[at : at + size] = rng.randbytes(size)
    elif how == "empty":
        content.clear()
    if how == "link":
        file.unlink()
        file.symlink_to(rng.choice(("/dev/zero", "/etc/hostname", file.parent, "missing")))
    elif how in ("cut", "sparse"):
        os.truncate(file, at if how == "cut" else 1 << 28)
    else:
        file.write_bytes(content)
    return f"{how} at {at}"
