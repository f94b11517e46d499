"""Log-probabilities as both endpoints write them.

In: `TokenLogprob`s, of the distribution before temperature, penalties and masks. Out: JSON objects.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from firp.runtime.picking.logprobs import TokenLogprob
from firp.runtime.serving.api.token_text import TokenText

_LEAST = -9999.0  # what is written for minus infinity, which JSON has not


def chat_logprobs(found: Sequence[TokenLogprob], tokens: TokenText) -> dict[str, Any]:
    """The object of /v1/chat/completions."""
    content = [
        {
            **_entry(one.token_id, one.logprob, tokens),
            "top_logprobs": [_entry(token, logprob, tokens) for token, logprob in one.top],
        }
        for one in found
    ]
    return {"content": content, "refusal": None}


def _entry(token: int, logprob: float, tokens: TokenText) -> dict[str, Any]:
    raw = tokens.bytes_of(token)
    text = raw.decode("utf-8", "replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


class FirstToken(NamedTuple):
    """The first token of a prompt, which no distribution was for."""

    token_id: int
    logprob: None = None
    top: tuple = ()


def prompt_and_answer(
    prompt: Sequence[int],
    of_prompt: Sequence[TokenLogprob | None] | None,
    of_answer: Sequence[TokenLogprob] | None,
) -> list[TokenLogprob | FirstToken]:
    """Log-probabilities of a prompt and of what follows it."""
    return [FirstToken(prompt[0]), *(of_prompt or ())[1:], *(of_answer or ())]


def completion_logprobs(
    found: Sequence[TokenLogprob | FirstToken], tokens: TokenText, top: int, offset: int = 0
) -> dict[str, Any]:
    """The object of /v1/completions. top: how many candidates were asked for; offset: characters before
    the first token.
    """
    texts, logprobs, tops, offsets = [], [], [], []
    for one in found:
        texts.append(tokens.text_of(one.token_id))
        logprobs.append(None if one.logprob is None else _finite(one.logprob))
        best = {tokens.text_of(token): _finite(logprob) for token, logprob in one.top[:top]}
        tops.append(best if one.logprob is not None else None)
        offsets.append(offset)
        offset += len(texts[-1])
    return {
        "tokens": texts,
        "token_logprobs": logprobs,
        "top_logprobs": tops if top else None,
        "text_offset": offsets,
    }


def _finite(logprob: float) -> float:
    return max(float(logprob), _LEAST)
