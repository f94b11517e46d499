"""SentencePiece's tokenizers in GGUF files, merged and unigram: the ids of transformers."""

import json

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from support.gguf_files import write_gguf
from support.small_models import make_model
from support.tokenizer_texts import PIECES, imported, texts
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, T5Tokenizer

from firp.export.sources.open import open_checkpoint
from firp.runtime.errors import CheckpointError


def sentencepiece_metadata(**keys):
    """A vocabulary as SentencePiece's BPE has it: three control tokens, bytes, pieces with scores that
    fall, then characters.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False)
    tokenizer.train_from_iterator([text for text in PIECES[:15] if "<" not in text], trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    pieces = ["".join(pair) for pair in merges]
    characters = sorted({character for pair in merges for part in pair for character in part})
    pieces += [character for character in characters if character not in pieces]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<tool>"]
    kinds = [2, 3, 3, *[6] * 256, *[1] * len(pieces), 4]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))] + [0.0]
    found = {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "token_type": kinds,
        "scores": scores,
        "unknown_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in (found | keys).items()}


def test_sentencepiece_ids_are_those_of_transformers(tmp_path):
    metadata = sentencepiece_metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    model = make_model(tmp_path / "model", "llama", changes={"vocab_size": size})
    write_gguf(tmp_path / "model.gguf", model, tokenizer=metadata)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    ours = open_checkpoint(tmp_path / "model.gguf").tokenizer()
    for text in texts():
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
    ids = [id for text in texts(50) for id in ours.encode(text).ids]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """A unigram model as SentencePiece trains it: the metadata that llama.cpp's converter makes of it,
    and the processor.
    """
    folder = tmp_path_factory.mktemp("unigram")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([text.replace("\x00", "") for text in PIECES * 3]),
        model_prefix=str(folder / "model"),
        model_type="unigram",
        vocab_size=300,
        hard_vocab_limit=False,
        character_coverage=0.98,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    model = sentencepiece_model_pb2.ModelProto.FromString((folder / "model.model").read_bytes())
    pieces = model.pieces
    metadata = {
        "model": "t5",
        "pre": "default",
        "tokens": [piece.piece for piece in pieces],
        "token_type": [piece.type for piece in pieces],
        "scores": [piece.score for piece in pieces],
        "precompiled_charsmap": list(model.normalizer_spec.precompiled_charsmap),
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "padding_token_id": 0,
        "eos_token_id": 1,
        "unknown_token_id": 2,
    }
    processor = sentencepiece.SentencePieceProcessor(str(folder / "model.model"))
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}, processor


def test_unigram_ids_are_those_of_transformers_and_of_sentencepiece(unigram, tmp_path):
    metadata, processor = unigram
    size = len(metadata["tokenizer.ggml.tokens"])
    padded = metadata | {
        "tokenizer.ggml.tokens": [*metadata["tokenizer.ggml.tokens"], f"[PAD{size}]"],
        "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"], 5],
        "tokenizer.ggml.scores": [*metadata["tokenizer.ggml.scores"], -1000.0],
    }
    model = make_model(tmp_path / "model", "llama", changes={"vocab_size": size + 1})
    write_gguf(tmp_path / "model.gguf", model, tokenizer=padded)
    ours = open_checkpoint(tmp_path / "model.gguf").tokenizer()
    scored = list(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    charsmap = bytes(metadata["tokenizer.ggml.precompiled_charsmap"])
    theirs = T5Tokenizer(scored, _spm_precompiled_charsmap=charsmap, extra_ids=0)
    for text in texts():
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        if not any(token in text for token in ("<pad>", "</s>", "<unk>")):
            assert ours.encode(text).ids == [*processor.encode(text), 1], text
    ids = [id for text in texts(50) for id in ours.encode(text).ids]
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.get_vocab_size() == size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_space_prefix": False}, "add_space_prefix false"),
        ({"remove_extra_whitespaces": False}, "remove_extra_whitespaces false"),
        ({"scores": None}, "no tokenizer.ggml.scores"),
        ({"unknown_token_id": None}, "scores or unknown_token_id"),
        ({"precompiled_charsmap": [1000]}, "bad tokenizer.ggml.precompiled_charsmap.*no bytes"),
        ({"precompiled_charsmap": [1, 2, 3]}, "makes no tokenizer"),
        ({"model": "llama"}, "scores of a unigram model"),
    ],
)
def test_a_unigram_model_that_is_not_exact_is_refused(changes, message, unigram, tmp_path):
    metadata = unigram[0] | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(CheckpointError, match=message):
        imported(tmp_path, {key: value for key, value in metadata.items() if value is not None})


def test_sentencepiece_without_a_space_before(tmp_path):
    _, with_space = imported(tmp_path, sentencepiece_metadata())
    _, without = imported(tmp_path, sentencepiece_metadata(add_space_prefix=False, add_bos_token=False))
    assert with_space.encode("The").tokens[:2] == ["<s>", "▁The"]
    assert "".join(without.encode("The").tokens) == "The"
