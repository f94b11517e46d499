"""Hugging Face's tokenizer files, from the vocabulary of a GGUF file.

In: a `Vocabulary`. Out: the content of tokenizer.json, tokenizer_config.json and, where the model has
a chat template, chat_template.jinja. What cannot be stated exactly is refused: a tokenizer that is
almost right makes a model that is almost right.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from firp.export.sources.gguf.pre_tokenizers import CUTS
from firp.export.sources.gguf.vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from firp.runtime.errors import CheckpointError, foreign_errors

_SPACE = "▁"  # how SentencePiece spells a space
_PADDING = re.compile(r"\[PAD\d+\]")
_FIX = "export the model's Hugging Face directory instead"


def tokenizer_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """Content of the tokenizer's files, by their names. Raises CheckpointError for a tokenizer that is
    not supported, and for a vocabulary that makes none.
    """
    if vocabulary.model not in _MODELS:
        raise CheckpointError(
            "unsupported tokenizer model",
            got=f"{vocabulary.model!r:.60} in '{vocabulary.path}'",
            expected="one of " + ", ".join(_MODELS),
            fix=_FIX,
        )
    tokenizer, add_bos = _MODELS[vocabulary.model](vocabulary)
    for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True)):
        if kind in (UNKNOWN, CONTROL, USER_DEFINED) and token:
            special = kind != USER_DEFINED
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=special)])
            if tokenizer.token_to_id(token) != index:
                raise _unusable(vocabulary, f"token {token!r:.40} has two ids")
    add_bos = vocabulary.flags.get("add_bos_token", add_bos)
    add_eos = vocabulary.flags.get("add_eos_token", vocabulary.model in _ADDS_EOS)
    tokenizer.post_processor = _around(vocabulary, add_bos, add_eos)
    special = {
        f"{name}_token": vocabulary.token(f"{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(config, indent=2)}
    if vocabulary.chat_template is not None:
        files["chat_template.jinja"] = vocabulary.chat_template
    return {name: content.encode() for name, content in files.items()}


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """BPE over bytes, as GPT-2 has it; and whether texts begin with BOS where the file does not say."""
    if vocabulary.pre not in CUTS:
        raise CheckpointError(
            "unsupported pre-tokenizer",
            got=f"tokenizer.ggml.pre {vocabulary.pre!r:.60} in '{vocabulary.path}'",
            expected=f"one of {len(CUTS)} names in docs/gguf.md: " + ", ".join(CUTS),
            fix=_FIX,
        )
    cut = CUTS[vocabulary.pre]
    if vocabulary.merges is None:
        raise _unusable(vocabulary, "no tokenizer.ggml.merges")
    tokenizer = _bpe(vocabulary, vocabulary.merges, ignore_merges=cut.ignore_merges)
    tokenizer.pre_tokenizer = cut.pre_tokenizer
    if cut.normalizer:
        tokenizer.normalizer = cut.normalizer
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, cut.add_bos


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece's BPE, as transformers builds it for Llama; and that texts begin with BOS where
    the file does not say otherwise.
    """
    merges = vocabulary.merges or _merges_of_scores(vocabulary)
    unknown = vocabulary.token("unknown_token_id")
    tokenizer = _bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = vocabulary.flags.get("add_space_prefix", True)
    scheme = "first" if prefix else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    return tokenizer, True


def _unigram(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """SentencePiece's unigram model, as transformers builds it for T5; without BOS where the file does
    not say.
    """
    for flag in ("add_space_prefix", "remove_extra_whitespaces"):
        if not vocabulary.flags.get(flag, True):
            raise _unusable(vocabulary, f"tokenizer.ggml.{flag} false, which transformers' T5 does not know,")
    unknown = vocabulary.ids.get("unknown_token_id")
    if vocabulary.scores is None or unknown is None:
        raise _unusable(vocabulary, "no tokenizer.ggml.scores or unknown_token_id")
    last = max(index for index in range(len(vocabulary.tokens)) if not _is_padding(vocabulary, index))
    scored = zip(vocabulary.tokens[: last + 1], vocabulary.scores, strict=False)
    tokenizer = Tokenizer(_made(vocabulary, lambda: models.Unigram(list(scored), unknown, False)))
    if vocabulary.charsmap:
        tokenizer.normalizer = _made(vocabulary, lambda: normalizers.Precompiled(vocabulary.charsmap))
    words = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always", split=True)
    return tokenizer, False


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
_ADDS_EOS = ("t5",)  # where the file does not say


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options) -> Tokenizer:
    tokens = enumerate(vocabulary.tokens)
    ids = {token: index for index, token in tokens if not _is_padding(vocabulary, index)}
    return Tokenizer(_made(vocabulary, lambda: models.BPE(ids, merges, **options)))


def _is_padding(vocabulary: Vocabulary, index: int) -> bool:
    """Tell whether llama.cpp's converter made this token, so that there is one for every row."""
    return vocabulary.kinds[index] == UNUSED and _PADDING.fullmatch(vocabulary.tokens[index]) is not None


def _made(vocabulary: Vocabulary, make: Callable[[], Any]) -> Any:
    """What the library makes of the vocabulary. Raises CheckpointError where it makes nothing."""
    with foreign_errors(lambda reason: _unusable(vocabulary, reason)):  # such as a merge of unknown tokens
        return make()


def _merges_of_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges in the order that the scores of their results imply, best first; among those of one
    result, in the order of transformers. Scores that are no ranks are probabilities, of a model that
    does not merge.
    """
    ranks = zip(vocabulary.scores or (), vocabulary.kinds, strict=False)
    if any(score % 1 for score, kind in ranks if kind == NORMAL):
        raise _unusable(vocabulary, "tokenizer.ggml.scores of a unigram model, which does not merge,")
    if vocabulary.scores is None or len(set(vocabulary.scores)) < len(vocabulary.tokens) // 2:
        raise _unusable(vocabulary, "tokenizer.ggml.scores that order no merges")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    found = []
    for token, score in zip(vocabulary.tokens, vocabulary.scores, strict=True):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ids and right in ids]
        pairs.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        found += [(score, len(left), len(right), left, right) for left, right in pairs]
    found.sort(key=lambda entry: entry[:3], reverse=True)
    return [entry[3:] for entry in found]


def _around(vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> processors.TemplateProcessing | None:
    """What Hugging Face puts before and after a text."""
    before, after = (
        [vocabulary.token(key)] if add else []
        for key, add in (("bos_token_id", add_bos), ("eos_token_id", add_eos))
    )
    if None in (*before, *after):
        raise _unusable(vocabulary, "no bos_token_id or eos_token_id to add")
    if not before and not after:
        return None
    one, other = ([*before, part, *after] for part in ("$A", "$B"))
    ids = [(token, vocabulary.tokens.index(token)) for token in (*before, *after)]
    return processors.TemplateProcessing(
        single=one, pair=[*one, *(f"{part}:1" for part in other)], special_tokens=ids
    )


def _unusable(vocabulary: Vocabulary, what: str) -> CheckpointError:
    return CheckpointError(
        "vocabulary that makes no tokenizer", got=f"{what} in '{vocabulary.path}'", fix=_FIX
    )
