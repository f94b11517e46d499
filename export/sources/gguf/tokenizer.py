"""Hugging Face's tokenizer files, from the vocabulary of a GGUF file.

In: a `Vocabulary`. Out: the content of tokenizer.json, tokenizer_config.json and, where the model has
a chat template, chat_template.jinja. What cannot be stated exactly is refused: a tokenizer that is
almost right makes a model that is almost right.
"""

import json

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from firp.export.sources.gguf.pre_tokenizers import CUTS
from firp.export.sources.gguf.vocabulary import CONTROL, UNKNOWN, UNUSED, USER_DEFINED, Vocabulary
from firp.runtime.errors import CheckpointError

_SPACE = "▁"  # how SentencePiece spells a space
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
    add_eos = vocabulary.flags.get("add_eos_token", False)
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
            expected="one of " + ", ".join(CUTS),
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


_MODELS = {"gpt2": _byte_level, "llama": _sentencepiece}


def _bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options) -> Tokenizer:
    padding = {f"[PAD{index}]" for index in range(len(vocabulary.tokens))}  # of llama.cpp's converter
    ids = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if not (kind == UNUSED and token in padding)
    }
    try:
        return Tokenizer(models.BPE(ids, merges, **options))
    except Exception as error:  # all that the library raises; a merge whose tokens do not exist
        raise _unusable(vocabulary, f"{error}") from error


def _merges_of_scores(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges in the order that the scores of their results imply, best first; among those of one
    result, in the order of transformers.
    """
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
