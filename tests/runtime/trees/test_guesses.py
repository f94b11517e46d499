"""The path correction ranks guesses as its formula says, for each token that they may follow."""

import numpy as np
import pytest

from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree import build_tree
from firp.runtime.trees.tree_config import TreeConfig

V, K, WIDTH = 50, 3, 8


@pytest.fixture
def guesses():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(V)[:WIDTH] for _ in range(K)])
    logprobs = np.sort(np.log(rng.dirichlet(np.ones(WIDTH + 5), K)[:, :WIDTH]), axis=1)[:, ::-1]
    return Guesses(ids, logprobs.astype(np.float32))


@pytest.fixture
def correction():
    rng = np.random.default_rng(1)
    tables = (rng.standard_normal((V, 4)).astype(np.float32) for _ in range(2))
    return PathCorrection(*tables, *(rng.uniform(0.3, 1.5, (2, K)).astype(np.float32) for _ in range(2)))


def expected(correction, guesses, depth, previous, greedy):
    """The formula of `PathCorrection`, one candidate after the other."""
    mode, ids, logprobs = 0 if greedy else 1, guesses.top_ids[depth - 1], guesses.top_logprobs[depth - 1]
    scores = [
        correction.scale[mode, depth - 1] * logprob
        + correction.weight[mode, depth - 1]
        * float(correction.previous[previous] @ correction.following[token])
        for token, logprob in zip(ids, logprobs, strict=True)
    ]
    weights = np.exp(scores)
    return weights / weights.sum() * np.exp(logprobs).sum()


@pytest.mark.parametrize("greedy", [True, False])
def test_children_come_in_order_of_the_formula(correction, guesses, greedy):
    ranking = correction.rank(7, guesses, greedy)
    for depth in (1, 2, 3):
        for place in range(WIDTH if depth > 1 else 1):
            previous = 7 if depth == 1 else guesses.top_ids[depth - 2, place]
            wanted = expected(correction, guesses, depth, previous, greedy)
            places, probabilities = ranking.children(depth, place)
            assert places == np.argsort(-wanted).tolist()
            np.testing.assert_allclose(probabilities, wanted[places], rtol=1e-4)


def test_fewer_offsets_are_ranked_alike(correction, guesses):
    whole = correction.rank(7, guesses, True)
    first = correction.rank(7, Guesses(guesses.top_ids[:1], guesses.top_logprobs[:1]), True)
    assert first.children(1, 0) == whole.children(1, 0)


def test_a_correction_without_weight_changes_nothing(correction, guesses):
    neutral = correction._replace(weight=np.zeros((2, K), np.float32), scale=np.ones((2, K), np.float32))
    trees = [
        build_tree(TreeConfig("dynamic", 12), 7, guesses, ranking, 3)
        for ranking in (neutral.rank(7, guesses, True), independent(guesses))
    ]
    assert trees[0].tokens == trees[1].tokens
    assert trees[0].parents == trees[1].parents
    np.testing.assert_allclose(trees[0].probabilities, trees[1].probabilities, rtol=1e-5)


def test_what_may_follow_decides_the_tree(guesses):
    """A pair that the tables like enough comes first, wherever the pseudo rows listed it."""
    previous, following = np.zeros((V, 1), np.float32), np.zeros((V, 1), np.float32)
    first, second = guesses.top_ids[0, 5], guesses.top_ids[1, 6]
    previous[7], following[first] = 20, 1  # after the root, `first`
    previous[first], following[second] = 30, 1  # after `first`, `second`
    correction = PathCorrection(previous, following, np.ones((2, K), np.float32), np.ones((2, K), np.float32))
    tree = build_tree(TreeConfig("dynamic", 3), 7, guesses, correction.rank(7, guesses, True), 2)
    assert tree.tokens == [7, first, second]
    assert tree.parents == [-1, 0, 1]


def test_saved_and_loaded(correction, tmp_path):
    correction.save(tmp_path / "c.safetensors")
    loaded = PathCorrection.load(tmp_path / "c.safetensors", V, K)
    for name in ("previous", "following"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(correction, name).astype(np.float16))
    for name in ("weight", "scale"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(correction, name))
    assert {array.dtype for array in loaded} == {np.dtype(np.float32)}
