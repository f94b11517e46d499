"""Bundles that can chat: copies with a chat template, and a tokenizer for models that have none."""

import json
import shutil
from dataclasses import replace

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from firp.runtime.bundle.format import (
    MANIFEST_NAME,
    FileEntry,
    read_manifest,
    sha256_file,
    write_manifest,
)

TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant: {% endif %}"
)


def add_chat(bundle, target, template=TEMPLATE, tokenizer=None, **tokens):
    """A copy of a bundle with a template in tokenizer_config.json, and with a tokenizer where one is
    given.
    """
    shutil.copytree(bundle, target)
    config = {"chat_template": template, **tokens}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    if tokenizer is not None:
        tokenizer.save(str(target / "tokenizer.json"))
    manifest = read_manifest(target / MANIFEST_NAME)
    files = dict(manifest.files)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        if (target / name).exists():
            files[name] = FileEntry((target / name).stat().st_size, sha256_file(target / name))
    write_manifest(target, replace(manifest, files=files))
    return target


def small_tokenizer():
    """A token for every character: `<s>` and `</s>`, printable ASCII, and as many others as make the
    193 tokens of the small models.
    """
    characters = [*map(chr, range(32, 127)), *map(chr, range(0x4E00, 0x4E00 + 96))]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *characters])}
    tokenizer = Tokenizer(BPE(vocabulary, [], fuse_unk=False))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def byte_tokenizer():
    """A byte-level tokenizer of 193 tokens: `<s>` and `</s>`, printable ASCII, and pairs, so that one
    text can be cut in several ways.
    """
    letters = [chr(byte) for byte in range(33, 127)] + ["Ġ", "Ċ"]
    pairs = [left + right for left in '{}[]:,"' for right in '"{}[]0a']
    pairs += [left + right for left in "abcdef" for right in "abcdef01"]
    merges = list(dict.fromkeys(pairs))[: 193 - 2 - len(letters)]
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *letters, *merges])}
    tokenizer = Tokenizer(BPE(vocabulary, [tuple(pair) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return tokenizer


def small_chat_bundle(bundle, target):
    """A copy of a small model's bundle that can chat."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return add_chat(bundle, target, tokenizer=small_tokenizer(), **tokens)
