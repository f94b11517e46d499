"""Pseudo rows of a large vocabulary are decoded over its frequent tokens; verified rows over all."""

import numpy as np
import pytest
from support.small_models import make_model, make_predictors

from firp.export.bundle import draft_tokens as module
from firp.export.bundle.draft_tokens import draft_tokens, most_frequent
from firp.export.bundle.predictor_dir import open_predictors
from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.sources.open import open_checkpoint
from firp.export.weights import stream
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig

COUNT = 64  # of 193 tokens


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("draft_tokens")
    model = make_model(root / "model", "llama")
    return model, make_predictors(root / "predictors", model)


@pytest.fixture(scope="module")
def engines(source, tmp_path_factory):
    """(whether a shortlist was used, quantization) -> engine."""
    root = tmp_path_factory.mktemp("bundles")
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for short in (False, True):
            patch.setattr(module, "COUNT", COUNT if short else 8192)
            for method in (None, "int8"):
                bundle = root / f"{short} {method}"
                export_bundle(
                    ExportOptions(*source[:1], bundle, source[1], quantize=method, quality_limit=1e9)
                )
                made[short, method] = Engine.load(bundle)
    return made


@pytest.mark.parametrize("method", [None, "int8"])
def test_guesses_are_the_best_of_the_frequent_tokens(engines, method):
    plan = PassPlan(chain([3, 14, 15, 92]), (1, 3), 3)
    some, every = (engines[short, method].session(16, 12).forward(plan) for short in (True, False))
    assert some.guesses.top_ids.max() < COUNT  # the first ids, as the predictors do not say
    for ids, whole in zip(some.guesses.top_ids, every.guesses.top_ids, strict=True):
        inside = [token for token in whole if token < COUNT]
        assert list(ids[: len(inside)]) == inside
    np.testing.assert_array_equal(some.logits, every.logits)
    assert np.exp(some.guesses.top_logprobs).sum(-1) == pytest.approx(1, abs=1e-5)


def test_no_token_is_lost(engines):
    params = SamplingParams(60, ignore_eos=True)
    plain = engines[True, None].generate([3, 14, 15], params, plain=True)
    drafted = engines[True, None].generate([3, 14, 15], params, tree=TreeConfig("dynamic", 12, None))
    assert drafted.token_ids == plain.token_ids
    assert max(plain.token_ids) >= COUNT


def test_a_small_vocabulary_is_decoded_whole(source):
    checkpoint = open_checkpoint(source[0])
    assert draft_tokens(checkpoint, open_predictors(source[1], checkpoint)) is None


def test_the_most_frequent_come_with_those_that_must(monkeypatch):
    monkeypatch.setattr(module, "COUNT", 3)
    assert most_frequent(np.array([0, 5, 1, 0, 9, 5]), ()).tolist() == [1, 4, 5]
    assert most_frequent(np.array([0, 5, 1, 0, 9, 5]), (3,)).tolist() == [1, 3, 4]
    assert most_frequent(np.array([0, 0, 1, 0, 0, 0]), ()).tolist() == [0, 1, 2]  # of equal ones the first


def test_tokens_of_the_predictors_are_taken(source, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COUNT", COUNT)
    model, predictors = source
    checkpoint = open_checkpoint(model)
    tokens = np.arange(100, 170, dtype=np.int64)
    for file in predictors.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_tokens(tmp_path, checkpoint, tokens)
    assert draft_tokens(checkpoint, open_predictors(tmp_path, checkpoint)).tolist() == tokens.tolist()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.arange(150, 214), "bad draft_tokens of predictors . got 150 to 213, expected 0 to 192"),
        (np.zeros(80), "bad draft_tokens of predictors.*64 or more ids"),
    ],
)
def test_bad_tokens_are_refused(tokens, message, source, tmp_path):
    model, predictors = source
    checkpoint = open_checkpoint(model)
    for file in predictors.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_tokens(tmp_path, checkpoint, tokens.astype(np.int64))
    with pytest.raises(CheckpointError, match=message):
        open_predictors(tmp_path, checkpoint)


def write_tokens(folder, checkpoint, tokens):
    """Add tokens to the predictors in a folder."""
    record = open_predictors(folder, checkpoint).tensor
    values = np.concatenate([*stream.read_chunks("predictors.weight", record)]).reshape(record.shape)
    outputs = [
        stream.from_array("predictors.weight", values),
        stream.from_array("draft_tokens", tokens)._replace(dtype="int64"),
    ]
    stream.write_safetensors(folder / "predictors.safetensors", outputs, record.dtype)
