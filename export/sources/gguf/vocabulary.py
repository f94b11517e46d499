"""The vocabulary of a GGUF file: tokens, what each is for, and the settings that go with them.

In: metadata. Out: `Vocabulary`, whose lists agree with each other, or a CheckpointError.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firp.runtime.errors import CheckpointError

# Kinds of tokens, by llama.cpp's numbers
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_END = "<|end|>"  # of a message that is not the last, where a vocabulary has one of these
_LAST = ("<|return|>", "<|flush|>")  # gpt-oss, Solar Open
# Tokens that end a turn or a text wherever they stand, by their text, as llama.cpp knows them: a file
# names one end, and a chat model has several.
_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    _END,
    *_LAST,
    "<|call|>",
    "<|calls|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
    "</s>",
)
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
_NONE = (None, "none", "no_vocab")  # how a file says that it has no tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """What the keys `tokenizer.*` say."""

    path: Path
    model: str
    pre: str | None  # llama.cpp's name of the way to cut text before merging
    tokens: list[str]
    kinds: list[int]  # of each token
    scores: list[float] | None
    merges: list[tuple[str, str]] | None  # the first is merged first
    ids: dict[str, int]  # key of a special token, as GGUF names it -> its id
    flags: dict[str, bool]  # by key, such as add_bos_token; those that the file has
    charsmap: bytes  # SentencePiece's table of what to write for some characters; empty: none
    chat_template: str | None

    @classmethod
    def read(cls, path: Path, metadata: dict[str, Any]) -> "Vocabulary | None":
        """The vocabulary of a file; None where it has none. Raises CheckpointError for keys that are
        missing or disagree.
        """
        ggml = {
            key.removeprefix("tokenizer.ggml."): value
            for key, value in metadata.items()
            if key.startswith("tokenizer.ggml.")
        }
        if ggml.get("model") in _NONE:
            return None
        tokens = _listed(path, ggml, "tokens", str)
        if not tokens or len(set(tokens)) != len(tokens):
            raise _bad(path, "tokens", f"{len(tokens or ())} with {len(set(tokens or ()))} different ones")
        kinds = _listed(path, ggml, "token_type", int) or [NORMAL] * len(tokens)
        scores = _listed(path, ggml, "scores", float)
        for key, values in (("token_type", kinds), ("scores", scores)):
            if values is not None and len(values) != len(tokens):
                raise _bad(path, key, f"{len(values)} for {len(tokens)} tokens")
        template = metadata.get("tokenizer.chat_template")
        words = {"tokenizer.ggml.model": ggml["model"], "tokenizer.ggml.pre": ggml.get("pre"), "": template}
        if not all(isinstance(value, str | None) for value in words.values()):
            raise _bad(path, "model, pre or chat_template", "no text")
        return cls(
            path=path,
            model=ggml["model"],
            pre=ggml.get("pre"),
            tokens=tokens,
            kinds=kinds,
            scores=scores,
            merges=_merges(path, ggml),
            ids=_ids(path, ggml, len(tokens)),
            flags={key: value for key, value in ggml.items() if isinstance(value, bool)},
            charsmap=_bytes(path, ggml, "precompiled_charsmap"),
            chat_template=template,
        )

    def token(self, key: str) -> str | None:
        """The text of a special token, by GGUF's key ("bos_token_id"); None where there is none."""
        return self.tokens[self.ids[key]] if key in self.ids else None

    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text or a turn; the file's own end of text is the first."""
        ends = set(_ENDS) - ({_END} if set(_LAST) & set(self.tokens) else set())
        known = [
            index
            for index, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED) and token in ends
        ]
        return tuple(dict.fromkeys([*(self.ids[key] for key in _END_KEYS if key in self.ids), *known]))


def _listed(path: Path, ggml: dict[str, Any], key: str, kind: type) -> list | None:
    """An array of the file; None where it has none."""
    values = ggml.get(key)
    if values is not None and not (isinstance(values, list) and all(type(v) is kind for v in values)):
        raise _bad(path, key, f"{values!r:.60}")
    return values


def _bytes(path: Path, ggml: dict[str, Any], key: str) -> bytes:
    """An array of bytes, signed or not; empty where the file has none."""
    values = _listed(path, ggml, key, int) or []
    if not all(-128 <= value <= 255 for value in values):
        raise _bad(path, key, "numbers that are no bytes")
    return bytes(value & 255 for value in values)


def _merges(path: Path, ggml: dict[str, Any]) -> list[tuple[str, str]] | None:
    listed = _listed(path, ggml, "merges", str)
    if listed is None:
        return None
    pairs = [tuple(merge.split(" ")) for merge in listed]
    if wrong := next((merge for merge, pair in zip(listed, pairs, strict=True) if len(pair) != 2), None):
        raise _bad(path, "merges", f"{wrong!r:.60}")
    return pairs


def _ids(path: Path, ggml: dict[str, Any], size: int) -> dict[str, int]:
    ids = {key: value for key, value in ggml.items() if key.endswith("_token_id")}
    for key, value in ids.items():
        if type(value) is not int or not 0 <= value < size:
            raise _bad(path, key, f"{value!r:.60}, of {size} tokens")
    return ids


def _bad(path: Path, key: str, got: str) -> CheckpointError:
    return CheckpointError(f"bad tokenizer.ggml.{key} in '{path}'", got=got, fix="convert the model again")
