"""Sampling parameters: by which rules tokens are picked, and when a sequence ends.

In: what a caller asks for. Out: `SamplingParams`, checked field by field; what the fields do to a row
of logits is written in `firp.runtime.picking`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from firp.runtime.arguments import integer, real, truth
from firp.runtime.errors import FirpError
from firp.runtime.structured import StructuredOutput

MOST_STOP_CHARACTERS = 10_000  # of all stop strings together: each token's text is compared with them
MOST_LOGPROBS = 20


@dataclass(frozen=True)
class SamplingParams:
    """Rules by which tokens are picked and a sequence ends. Defaults: greedy, 128 new tokens.

    Whatever is a collection is kept as a tuple, `logit_bias` as one of pairs (token id, bias).
    """

    max_new_tokens: int = 128
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # keep the k best candidates; 0: all
    top_p: float = 1.0  # keep the smallest set of best candidates with at least this probability
    seed: int = 0
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    ignore_eos: bool = False  # go on past the end-of-sequence token (for measurements)
    min_p: float = 0.0  # keep candidates with at least this share of the best one's probability
    repetition_penalty: float = 1.0  # of every token so far, the prompt's too (Keskar 2019, section 4.1)
    presence_penalty: float = 0.0  # subtracted once from tokens that were generated
    frequency_penalty: float = 0.0  # subtracted for each time that a token was generated
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()  # added to these tokens
    allowed_token_ids: tuple[int, ...] | None = None  # no others are picked; None: all are allowed
    banned_token_ids: tuple[int, ...] = ()  # never picked
    min_tokens: int = 0  # tokens before which no end token is picked
    stop_token_ids: tuple[int, ...] = ()  # the sequence ends with any of these
    logprobs: int | None = None  # how many of the best to list with each token; None: no logprobs
    prompt_logprobs: int | None = None  # likewise, for the prompt's tokens
    structured: StructuredOutput | None = None  # what the text must be

    def __post_init__(self):
        for name, kind, good, expected in _PARAMS:
            given = getattr(self, name)
            if given is None and name in _OPTIONAL:
                continue
            value = kind(given)
            if value is None or not good(value):
                raise FirpError(f"bad {name}", got=f"{given!r:.100}", expected=expected)
            object.__setattr__(self, name, value)  # numpy's numbers wrap around, Python's do not
        if self.min_tokens > self.max_new_tokens:
            expected = f"at most max_new_tokens, {self.max_new_tokens}"
            raise FirpError("bad min_tokens", got=self.min_tokens, expected=expected)
        allowed = self.allowed_token_ids
        if allowed is not None and not set(allowed) - set(self.banned_token_ids):
            got = f"allowed_token_ids {allowed!r:.80}, all of them banned"
            raise FirpError("no token may be picked", got=got, fix="allow one that is not banned")

    def sample(self, place: int) -> "SamplingParams":
        """Those of the sample at this place of several, which differ in their seeds."""
        return replace(self, seed=(self.seed + place) % 2**64)

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Every token id that is named, by field."""
        return {
            "logit_bias": tuple(token for token, _ in self.logit_bias),
            "allowed_token_ids": self.allowed_token_ids or (),
            "banned_token_ids": self.banned_token_ids,
            "stop_token_ids": self.stop_token_ids,
        }


def _texts(value: Any) -> tuple[str, ...] | None:
    texts = tuple(value) if isinstance(value, tuple | list) else None
    return texts if texts is not None and all(isinstance(text, str) and text for text in texts) else None


def _ids(value: Any) -> tuple[int, ...] | None:
    listed = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(listed, list | tuple | range | set | frozenset):
        return None
    ids = tuple(map(integer, listed))
    return ids if all(token is not None and token >= 0 for token in ids) else None


def _biases(value: Any) -> tuple[tuple[int, float], ...] | None:
    pairs = tuple(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, tuple) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return None
    biases = tuple((integer(token), real(bias)) for token, bias in pairs)
    known = len(dict(biases)) == len(biases) and all(
        token is not None and token >= 0 and bias is not None for token, bias in biases
    )
    return biases if known else None


def _between(least: float, most: float) -> tuple[Callable[[float], bool], str]:
    return lambda value: least <= value <= most, f"{least:g} to {most:g}"


_TOKEN_IDS = "a tuple of token ids"
_OPTIONAL = {"allowed_token_ids", "logprobs", "prompt_logprobs", "structured"}
_PARAMS = (  # field, conversion (None: of the wrong type), check, what is expected
    ("max_new_tokens", integer, lambda value: value >= 1, "a whole number, at least 1"),
    ("temperature", real, lambda value: 0 <= value < float("inf"), "0 (greedy) or more"),
    ("top_k", integer, lambda value: value >= 0, "a whole number, 0 (all) or more"),
    ("top_p", real, lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    ("seed", integer, lambda value: 0 <= value < 2**64, "a whole number in [0, 2^64)"),
    (
        "stop",
        _texts,
        lambda value: sum(map(len, value)) <= MOST_STOP_CHARACTERS,
        f"a tuple of non-empty strings, at most {MOST_STOP_CHARACTERS} characters in all",
    ),
    ("ignore_eos", truth, lambda value: True, "True or False"),
    ("min_p", real, *_between(0, 1)),
    ("repetition_penalty", real, lambda value: 0 < value <= 100, "more than 0 and at most 100"),
    ("presence_penalty", real, *_between(-2, 2)),
    ("frequency_penalty", real, *_between(-2, 2)),
    (
        "logit_bias",
        _biases,
        lambda value: all(-100 <= bias <= 100 for _, bias in value),
        "a mapping of token ids to numbers, each -100 to 100",
    ),
    ("allowed_token_ids", _ids, bool, f"{_TOKEN_IDS}, at least one; None: all"),
    ("banned_token_ids", _ids, lambda value: True, _TOKEN_IDS),
    ("min_tokens", integer, lambda value: value >= 0, "a whole number, 0 or more"),
    ("stop_token_ids", _ids, lambda value: True, _TOKEN_IDS),
    ("logprobs", integer, lambda value: 0 <= value <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}, or None"),
    ("prompt_logprobs", integer, lambda value: 0 <= value <= MOST_LOGPROBS, f"0 to {MOST_LOGPROBS}, or None"),
    (
        "structured",
        lambda value: value if isinstance(value, StructuredOutput) else None,
        lambda value: True,
        "a StructuredOutput, or None",
    ),
)
