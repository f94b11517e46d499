"""Calibration text as windows of tokens, with a held-out part that training never sees.

In: files (UTF-8 text; .jsonl with `text` or `messages` on each line) and directories, of which
every text file below is read and others are passed over. Out: `Dataset`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from firp.runtime.chat.messages import check_messages
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.errors import FirpError
from firp.runtime.loop.text import check_text, encode_texts

HELD_OUT_SHARE = 0.05  # of the windows, the last ones; at least one
_CHUNK = 256  # documents tokenized at once


class Dataset(NamedTuple):
    training: np.ndarray  # [n, window] i64
    held_out: np.ndarray  # [m, window] i64
    tokens: int  # in all documents


def load_documents(paths: list[Path], tokenizer: Tokenizer, chat: ChatTemplate | None) -> list[list[int]]:
    """Token ids of every document, in order. chat: renders lines with `messages`; None where the
    model has none. Raises FirpError for what cannot be read or is not text.
    """
    documents = []
    texts = []
    for text in (text for path in paths for file in _files(path) for text in _texts(file, chat)):
        texts.append(text)
        if len(texts) == _CHUNK:
            documents += encode_texts(tokenizer, texts)
            texts.clear()
    return documents + encode_texts(tokenizer, texts)


def make_dataset(
    documents: list[list[int]],
    window: int,
    separator: int | None,
    own_text: tuple[list[list[int]], list[list[int]]] = ([], []),
) -> Dataset:
    """Join documents (each closed by `separator`) and cut windows; the last ones are held out.
    Raises FirpError for too little.

    own_text: continuations of prompts to train on, and of other prompts, that are held out.
    """
    windows = _windows(documents, window, separator)
    held_out = max(1, round(len(windows) * HELD_OUT_SHARE)) if len(windows) else 0
    training = np.concatenate([windows[: len(windows) - held_out], _windows(own_text[0], window, separator)])
    held_out = np.concatenate([windows[len(windows) - held_out :], _windows(own_text[1], window, separator)])
    tokens = sum(len(ids) + (separator is not None) for part in (documents, *own_text) for ids in part)
    if not len(training) or not len(held_out):
        raise FirpError(
            "too little calibration data",
            got=f"{tokens} tokens",
            expected=f"at least {2 * window}",
            fix="give more text",
        )
    return Dataset(training, held_out, tokens)


def _windows(documents: list[list[int]], window: int, separator: int | None) -> np.ndarray:
    """[n, window] i64."""
    closing = [] if separator is None else [separator]
    stream = np.fromiter((token for ids in documents for token in (*ids, *closing)), np.int64)
    return stream[: len(stream) // window * window].reshape(-1, window)


def split_prompts(prompts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts to train on, and prompts to hold out: none is in both. Raises FirpError for fewer
    than two different ones.
    """
    different = [list(ids) for ids in dict.fromkeys(tuple(ids) for ids in prompts if ids)]
    if len(different) < 2:
        raise FirpError(
            "too few prompts",
            got=f"{len(different)} different ones",
            expected="at least 2",
            fix="one is held out",
        )
    held_out = max(1, round(len(different) * HELD_OUT_SHARE))
    return different[:-held_out], different[-held_out:]


def _files(path: Path) -> list[Path]:
    """The file itself, or all files below a directory, hidden ones left out, in a fixed order."""
    if path.exists() and not path.is_dir() and not path.is_file():
        raise FirpError(
            "cannot read calibration data", got=f"'{path}'", expected="a regular file or a directory"
        )
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and is_text(file)
    )
    if not files:
        raise FirpError(
            "no calibration data", got=f"'{path}' without a text file", fix="give a directory with text files"
        )
    return files


def is_text(file: Path) -> bool:
    """Tell whether a file is UTF-8; one that cannot be read passes for text."""
    try:
        file.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    except OSError:  # to be reported when it is read for its content
        return True
    return True


def _texts(file: Path, chat: ChatTemplate | None) -> Iterator[str]:
    try:
        content = file.read_text("utf-8-sig")
    except OSError as error:
        raise FirpError("cannot read calibration data", got=f"'{file}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FirpError(
            "calibration data is not text", got=f"'{file}': byte {error.start} is not UTF-8"
        ) from error
    if file.suffix != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            yield _line_text(line, f"line {number} of '{file}'", chat)


def _line_text(line: str, where: str, chat: ChatTemplate | None) -> str:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FirpError("calibration data is not JSON", got=f"{where}: {error}") from error
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        return check_text(item["text"])
    if isinstance(item, dict) and isinstance(item.get("messages"), list):
        if chat is None:
            fix = 'give lines with "text", or a model with a chat_template'
            raise FirpError("the model has no chat template", got=f"messages at {where}", fix=fix)
        try:
            checked = check_messages(item["messages"], item.get("chat_template_kwargs"))
            return check_text(chat.render(checked, **checked.variables))
        except FirpError as error:
            raise FirpError(f"{error.what} at {where}", got=error.got, expected=error.expected) from error
    raise FirpError(
        "no text in calibration data", got=f"{line[:60]!r} at {where}", expected='"text" or "messages"'
    )
