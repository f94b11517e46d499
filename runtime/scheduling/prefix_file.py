"""Saved prefixes: keys and values of a text in a file, so that a conversation goes on after a restart.

In: token ids, their blocks, the bundle that they belong to. Out: a safetensors file that appears whole
or not at all; the same again, once it is known that the bundle is the same and no bit has changed.
"""

import contextlib
import glob
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from firp.runtime.bundle.dtypes import DTYPES, to_float32
from firp.runtime.bundle.format import Manifest
from firp.runtime.errors import FirpError, foreign_errors, reason
from firp.runtime.scheduling.prefixes import BLOCK

KIND = "firp session 1"
_QUIET_S = 3600  # after which an unfinished file is nobody's


class SavedPrefix(NamedTuple):
    """What a file holds."""

    tokens: list[int]  # as many as the blocks hold
    notes: Any  # whatever whoever saved it wants to find again
    blocks: list[np.ndarray]  # [2N, Hkv, 64, Dh] each


def save_prefix(
    path: Path, manifest: Manifest, tokens: Sequence[int], blocks: Sequence[np.ndarray], notes: Any
) -> None:
    """Write a file. Raises FirpError when it cannot be written; what was there before is whole then."""
    shape = _block_shape(manifest)
    values = np.stack(blocks) if blocks else np.empty((0, *shape), _dtype(manifest))
    held = list(tokens[: len(blocks) * BLOCK])
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    _remove_parts(path)
    try:
        with foreign_errors(lambda reason: FirpError("cannot write the session", got=f"'{path}': {reason}")):
            text = json.dumps({"tokens": held, "notes": notes})
            metadata = {
                "kind": KIND,
                "bundle": bundle_digest(manifest),
                "text": text,
                "sha256": _digest(text, values),
            }
            save_file({"blocks": values}, beside, metadata)
            os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _remove_parts(path: Path) -> None:
    """Remove what killed processes left unfinished beside a file: whoever lives writes more often."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _QUIET_S:
                part.unlink()


def load_prefix(path: Path, manifest: Manifest, read_notes: Callable[[Any], Any]) -> SavedPrefix:
    """Read a file. read_notes: checks what was noted; raises FirpError. Raises FirpError for a file that
    is not whole, or of another bundle.
    """
    with foreign_errors(lambda reason: FirpError("cannot read the session", got=f"'{path}': {reason}")):
        if path.exists() and not path.is_file():
            raise FirpError("cannot read the session", got=f"'{path}'", expected="a regular file")
        text, values = _read(path, manifest)
    try:
        return SavedPrefix(*_fields(text, len(values) * BLOCK, manifest, read_notes), list(values))
    except FirpError as error:
        raise _damaged(path, str(error)) from error


def _read(path: Path, manifest: Manifest) -> tuple[str, np.ndarray]:
    """What a file says, and its blocks [n, ...], once they are known to be what was written."""
    with safe_open(path, "numpy") as file:
        metadata = file.metadata() or {}
        if metadata.get("kind") != KIND:
            got = f"'{path}': {metadata.get('kind', 'something else')!r:.60}"
            raise FirpError("not a saved session", got=got, expected=KIND)
        if metadata.get("bundle") != bundle_digest(manifest):
            raise FirpError("session of another bundle", got=f"'{path}'", fix="begin a new one")
        most = manifest.model.max_position_embeddings // BLOCK
        count, *shape = file.get_slice("blocks").get_shape() or [0]
        if count > most or tuple(shape) != _block_shape(manifest):
            raise _damaged(path, f"{count} blocks of shape {shape}")
        values = file.get_tensor("blocks")
    text = metadata.get("text", "")
    if values.dtype != _dtype(manifest) or metadata.get("sha256") != _digest(text, values):
        raise _damaged(path, "its digest does not fit")
    if not all(np.isfinite(to_float32(block)).all() for block in values):
        raise _damaged(path, "values that are not finite")
    return text, values


def _fields(
    text: str, count: int, manifest: Manifest, read_notes: Callable[[Any], Any]
) -> tuple[list[int], Any]:
    """Token ids, as many as the blocks hold, and notes."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FirpError("its text is not JSON", got=reason(error)) from error
    if not isinstance(found, dict) or found.keys() != {"tokens", "notes"}:
        raise FirpError("bad text", got=f"{found!r:.60}", expected="tokens and notes")
    tokens, vocabulary = found["tokens"], manifest.model.vocab_size
    if not isinstance(tokens, list) or len(tokens) != count:
        raise FirpError("bad tokens", got=f"{tokens!r:.60}", expected=f"a list of {count}")
    for token in tokens:
        if type(token) is not int or not 0 <= token < vocabulary:
            raise FirpError("bad token", got=f"{token!r:.60}", expected=f"0 to {vocabulary - 1}")
    return tokens, read_notes(found["notes"])


def _damaged(path: Path, got: str) -> FirpError:
    return FirpError("damaged session", got=f"'{path}': {got}", fix="begin a new one")


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
