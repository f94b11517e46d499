"""Trees, their masks and positions, their draft sources."""

import itertools

import numpy as np
import pytest

from firp.runtime.backends.host import attention_bias
from firp.runtime.errors import FirpError
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.layout import layout
from firp.runtime.trees.tree import DraftTree, TreeConfig, build_tree, draft_sources, root_only


def random_guesses(rng, k=3, width=6):
    logits = np.sort(rng.normal(size=(k, width)) * 2)[:, ::-1]
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True)) - 0.1
    ids = np.stack([rng.permutation(50)[:width] for _ in range(k)])
    return Guesses(ids.astype(np.int64), logprobs.astype(np.float32))


def paths_of(tree: DraftTree) -> set[tuple[int, ...]]:
    """Token paths from below the root to each node."""
    paths = {0: ()}
    for node in range(1, len(tree.tokens)):
        paths[node] = (*paths[tree.parents[node]], tree.tokens[node])
    return {path for path in paths.values() if path}


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 40])
def test_dynamic_tree_holds_the_most_probable_paths(rows):
    rng = np.random.default_rng(rows)
    for _ in range(20):
        guesses = random_guesses(rng)
        everything = {}
        for depth in (1, 2, 3):
            for ranks in itertools.product(range(6), repeat=depth):
                path = tuple(int(guesses.top_ids[d, r]) for d, r in enumerate(ranks))
                everything[path] = sum(float(guesses.top_logprobs[d, r]) for d, r in enumerate(ranks))
        tree = build_tree(TreeConfig("dynamic", rows), 7, guesses, independent(guesses), max_depth=3)
        best = sorted(everything.values(), reverse=True)[: rows - 1]
        found = sorted((everything[path] for path in paths_of(tree)), reverse=True)
        np.testing.assert_allclose(found, best, rtol=1e-5)
        assert tree.tokens[0] == 7
        assert len(tree.tokens) == rows
        # taken best first
        np.testing.assert_allclose([tree.probabilities[n] for n in range(1, rows)], np.exp(found), rtol=1e-4)


def test_static_tree_takes_the_ranks_of_its_paths():
    guesses = random_guesses(np.random.default_rng(0))
    tree = build_tree(
        TreeConfig.static([(0,), (1,), (0, 2), (1, 0), (0, 2, 1)]),
        7,
        guesses,
        independent(guesses),
        max_depth=3,
    )
    ids = guesses.top_ids
    assert tree.tokens == [7, ids[0, 0], ids[0, 1], ids[1, 2], ids[1, 0], ids[2, 1]]
    assert tree.parents == [-1, 0, 0, 1, 2, 3]
    assert tree.depths == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    "config", [TreeConfig.chain(3), TreeConfig("dynamic", 9), TreeConfig.static([(5,), (5, 5)])]
)
@pytest.mark.parametrize("max_depth", [0, 1, 2])
def test_no_node_is_deeper_than_allowed(config, max_depth):
    guesses = random_guesses(np.random.default_rng(1))
    tree = build_tree(config, 7, guesses, independent(guesses), max_depth)
    assert max(tree.depths) <= max_depth


def test_sources_are_the_likeliest_ends_of_the_accepted_path():
    # root -> a (0.6) -> b (0.5); root -> c (0.3): ends are root 0.1, a 0.1, b 0.5, c 0.3
    tree = DraftTree([7, 1, 2, 3], [-1, 0, 1, 0], [0, 1, 2, 1], [1.0, 0.6, 0.5, 0.3])
    assert draft_sources(tree, 1) == [2]
    assert draft_sources(tree, 2) == [2, 3]
    assert draft_sources(tree, None) == [0, 1, 2, 3]
    assert draft_sources(tree, 9) == [0, 1, 2, 3]


def test_layout_of_a_tree_with_pseudo_rows():
    parents, depths = [-1, 0, 0, 1], [0, 1, 1, 2]
    visible, positions = layout(parents, depths, sources=[1, 3], offsets=2)
    expected = [  # rows 4, 5 belong to source 1, rows 6, 7 to source 3
        "10000000",
        "11000000",
        "10100000",
        "11010000",
        "11001000",
        "11001100",
        "11010010",
        "11010011",
    ]
    assert ["".join(str(int(x)) for x in row) for row in visible] == expected
    assert positions.tolist() == [0, 1, 1, 2, 2, 3, 3, 4]


def test_layout_of_a_chain_is_causal():
    rows = 7
    visible, positions = layout(list(range(-1, rows - 1)), list(range(rows)), [], 3)
    assert (visible == np.tri(rows, dtype=bool)).all()
    assert positions.tolist() == list(range(rows))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("empty", [0, 3])
def test_bias_is_zero_exactly_where_a_row_sees(window, dtype, empty):
    rng, cached, slots = np.random.default_rng(2), 5, 5 + empty
    visible, depths = layout([-1, 0, 0, 1], [0, 1, 1, 2], [2], 3)
    positions = depths + cached
    out = rng.normal(size=(7, slots + 7)).astype(dtype)  # whatever was there before
    attention_bias(visible, positions, cached, slots, window, out)
    keys = [*range(slots), *positions]
    for row, column in itertools.product(range(7), range(slots + 7)):
        sees = column < cached or (column >= slots and visible[row, column - slots])
        if window is not None:
            sees = sees and positions[row] - keys[column] < window
        assert out[row, column] == (0 if sees else np.finfo(dtype).min)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TreeConfig("beam"), "unknown tree kind"),
        (TreeConfig("dynamic", rows=0), "bad tree size"),
        (TreeConfig("dynamic", rows=300, draft_sources=None), "tree too large.*1200 rows"),
        (TreeConfig("dynamic", rows=4, draft_sources=-1), "bad tree size"),
        (TreeConfig("dynamic", rows=4, depth=0), "bad tree depth"),
        (TreeConfig("dynamic", rows=4, depth=4), "bad tree depth.*1 to 3"),
        (
            TreeConfig("static", 4, depth=1, paths=((0,), (1,), (0, 0))),
            "deeper than the predictors.*at most 1",
        ),
        (TreeConfig("dynamic", rows=4, paths=((0,),)), "a dynamic tree has no paths"),
        (TreeConfig("static", rows=4, paths=((0,),)), "rows do not match"),
        (TreeConfig.static([(0, 0)]), "bad tree path"),
        (TreeConfig.static([(0,), (0,)]), "bad tree path"),
        (TreeConfig.static([(-1,)]), "bad tree path"),
        (TreeConfig.chain(4), "deeper than the predictors"),
    ],
)
def test_malformed_trees_are_refused(config, message):
    with pytest.raises(FirpError, match=message):
        config.validate(num_predictors=3)


def test_root_only_is_plain_decoding():
    assert layout(*root_only(5)[1:3], [], 3).visible.tolist() == [[True]]


@pytest.mark.parametrize(
    "fields",
    [
        {"rows": "6"}, {"rows": 6.0}, {"rows": True}, {"depth": 1.5}, {"draft_sources": [1]},
        {"kind": "static", "rows": 2, "paths": "00"}, {"kind": "static", "rows": 2, "paths": ((0.0,),)},
    ],
)  # fmt: skip
def test_trees_of_wrong_types_are_refused(fields):
    with pytest.raises(FirpError, match="bad (number in a tree|tree paths)"):
        TreeConfig(**fields).validate(3)
