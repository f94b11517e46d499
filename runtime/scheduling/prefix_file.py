"""Saved prefixes: keys and values of a text in a file, so that a conversation goes on after a restart.

In: token ids, their blocks, the bundle that they belong to. Out: a safetensors file that appears whole
or not at all; the same again, once it is known that the bundle is the same and no bit has changed.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.format import Manifest
from firp.runtime.errors import FirpError, foreign_errors
from firp.runtime.scheduling.prefixes import BLOCK

KIND = "firp session 1"


class SavedPrefix(NamedTuple):
    """What a file holds."""

    tokens: list[int]  # as many as the blocks hold
    blocks: list[np.ndarray]  # [2N, Hkv, 64, Dh] each
    notes: Any  # whatever whoever saved it wants to find again


def save_prefix(
    path: Path, manifest: Manifest, tokens: Sequence[int], blocks: Sequence[np.ndarray], notes: Any
) -> None:
    """Write a file. Raises FirpError when it cannot be written; what was there before is whole then."""
    shape = _block_shape(manifest)
    values = np.stack(blocks) if blocks else np.empty((0, *shape), _dtype(manifest))
    held = list(tokens[: len(blocks) * BLOCK])
    text = json.dumps({"tokens": held, "notes": notes})
    metadata = {
        "kind": KIND,
        "bundle": bundle_digest(manifest),
        "text": text,
        "sha256": _digest(text, values),
    }
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with foreign_errors(lambda reason: FirpError("cannot write the session", got=f"'{path}': {reason}")):
            save_file({"blocks": values}, beside, metadata)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def load_prefix(path: Path, manifest: Manifest) -> SavedPrefix:
    """Read a file. Raises FirpError for one that is not whole, or of another bundle."""
    with (
        foreign_errors(lambda reason: FirpError("cannot read the session", got=f"'{path}': {reason}")),
        safe_open(path, "numpy") as file,
    ):
        metadata = file.metadata() or {}
        if metadata.get("kind") != KIND:
            got = f"'{path}': {metadata.get('kind', 'something else')!r:.60}"
            raise FirpError("not a saved session", got=got, expected=KIND)
        if metadata.get("bundle") != bundle_digest(manifest):
            raise FirpError("session of another bundle", got=f"'{path}'", fix="begin a new one")
        values = file.get_tensor("blocks")
    text = metadata.get("text", "")
    tokens = json.loads(text)["tokens"] if metadata.get("sha256") == _digest(text, values) else None
    whole = (
        tokens is not None
        and values.shape[1:] == _block_shape(manifest)
        and values.dtype == _dtype(manifest)
        and len(tokens) == len(values) * BLOCK
    )
    if not whole:
        raise FirpError("damaged session", got=f"'{path}'", fix="begin a new one")
    return SavedPrefix(tokens, list(values), json.loads(text)["notes"])


def _block_shape(manifest: Manifest) -> tuple[int, int, int, int]:
    attention = manifest.model.attention
    return manifest.model.slabs, attention.num_key_value_heads, BLOCK, attention.head_dim


def _dtype(manifest: Manifest) -> np.dtype:
    return DTYPES[manifest.precision.cache].storage


def bundle_digest(manifest: Manifest) -> str:
    """A digest of all that a bundle's keys and values depend on: its files, but not what was tuned."""
    files = {name: str(record) for name, record in manifest.files.items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _digest(text: str, values: np.ndarray) -> str:
    found = hashlib.sha256(text.encode())
    found.update(np.ascontiguousarray(values).view(np.uint8).data)
    return found.hexdigest()
