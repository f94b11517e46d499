"""Trees, their masks and positions, their draft sources."""

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies
from support.random_trees import MANY, ROOT, guesses, paths_of, trees

from firp.runtime.backends.host import attention_bias
from firp.runtime.errors import FirpError
from firp.runtime.trees.guesses import Guesses, independent
from firp.runtime.trees.layout import layout
from firp.runtime.trees.tree import DraftTree, build_tree, draft_sources, merge_trees
from firp.runtime.trees.tree_config import TreeConfig


@given(
    guesses(),
    strategies.integers(1, 40),
    strategies.integers(0, 3),
    strategies.sampled_from([0, 0, 0.02, 0.2]),
)
def test_a_dynamic_tree_holds_the_most_probable_paths(guesses, rows, depth, least):
    everything = {(): 1.0}
    for offset in range(depth):
        listed = list(
            zip(guesses.top_ids[offset].tolist(), np.exp(guesses.top_logprobs[offset]), strict=True)
        )
        known = [path for path in everything if len(path) == offset]
        everything |= {(*path, token): everything[path] * p for path in known for token, p in listed}
    tree = build_tree(TreeConfig("dynamic", rows, least=least), ROOT, guesses, independent(guesses), depth)
    best = sorted((p for p in everything.values() if p >= least), reverse=True)[:rows]
    np.testing.assert_allclose(tree.probabilities, best, rtol=1e-5)  # taken best first
    paths = paths_of(tree)
    assert tree.tokens[0] == ROOT
    assert tree.depths == [len(path) for path in paths]
    assert len(set(paths)) == len(paths)
    np.testing.assert_allclose([everything[path] for path in paths], tree.probabilities, rtol=1e-5)


@given(strategies.lists(trees(), min_size=1, max_size=3), strategies.integers(1, 14))
def test_merged_trees_are_the_most_probable_paths_of_all(several, rows):
    everything = {}
    for tree in several:
        for path, probability in zip(paths_of(tree), tree.probabilities, strict=True):
            everything[path] = max(probability, everything.get(path, 0))
    merged = merge_trees(several, rows)
    paths = paths_of(merged)
    assert merged.probabilities == [everything[path] for path in paths]
    assert len(set(paths)) == len(paths)
    best = sorted(everything.values(), reverse=True)[:rows]
    assert sorted(merged.probabilities, reverse=True) == best
    assert all(parent < node for node, parent in enumerate(merged.parents))


@given(trees(), strategies.integers(0, 13))
def test_sources_are_the_rows_where_the_path_ends_most_likely(tree, count):
    children = [[node for node, parent in enumerate(tree.parents) if parent == row] for row in range(13)]
    ends = [
        probability - sum(tree.probabilities[child] for child in children[node])
        for node, probability in enumerate(tree.probabilities)
    ]
    found = draft_sources(tree, count)
    assert found == sorted(set(found))
    np.testing.assert_allclose(
        sorted(ends[node] for node in found), sorted(ends)[::-1][:count][::-1], atol=1e-12
    )


@given(trees(), strategies.sets(strategies.integers(0, 11), max_size=3), strategies.integers(0, 3))
def test_rows_see_their_ancestors_and_pseudo_rows_their_source(tree, sources, offsets):
    sources = sorted(source for source in sources if source < len(tree.tokens))
    seen = [{0}]
    for node in range(1, len(tree.tokens)):
        seen.append({*seen[tree.parents[node]], node})
    positions = list(tree.depths)
    for source in sources:
        first = len(seen)
        for offset in range(offsets):
            seen.append(seen[source] | set(range(first, first + offset + 1)))
            positions.append(tree.depths[source] + offset + 1)
    visible, depths = layout(tuple(tree.parents), tuple(tree.depths), tuple(sources), offsets)
    assert [set(np.flatnonzero(row)) for row in visible] == seen
    assert depths.tolist() == positions


@given(
    trees(),
    strategies.sampled_from([None, 1, 3]),
    strategies.sampled_from([np.float32, np.float16]),
    strategies.integers(0, 9),
    strategies.integers(0, 3),
)
def test_a_bias_is_zero_exactly_where_a_row_sees(tree, window, dtype, cached, empty):
    visible, depths = layout(tuple(tree.parents), tuple(tree.depths), (0,), 2)
    rows, slots, positions = len(visible), cached + empty, depths + cached
    out = np.full((rows, slots + rows), np.nan, dtype)  # whatever was there before
    attention_bias(visible, positions, cached, slots, window, out)
    keys = [*range(slots), *positions]
    for row, column in itertools.product(range(rows), range(slots + rows)):
        sees = column < cached or (column >= slots and visible[row, column - slots])
        if window is not None:
            sees = sees and positions[row] - keys[column] < window
        assert out[row, column] == (0 if sees else np.finfo(dtype).min)


@pytest.fixture
def some_guesses():
    rng = np.random.default_rng(0)
    ids = np.stack([rng.permutation(MANY)[:6] for _ in range(3)])
    return Guesses(ids, np.log(np.array([0.4, 0.2, 0.1, 0.05, 0.02, 0.01], np.float32))[None].repeat(3, 0))


def test_static_tree_takes_the_ranks_of_its_paths(some_guesses):
    guesses = some_guesses
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


@pytest.mark.parametrize("config", [TreeConfig.chain(3), TreeConfig.static([(5,), (5, 5)])])
@pytest.mark.parametrize("max_depth", [0, 1, 2])
def test_no_node_is_deeper_than_allowed(config, max_depth, some_guesses):
    tree = build_tree(config, ROOT, some_guesses, independent(some_guesses), max_depth)
    assert max(tree.depths) <= max_depth


def test_sources_are_the_likeliest_ends_of_the_accepted_path():
    # root -> a (0.6) -> b (0.5); root -> c (0.3): ends are root 0.1, a 0.1, b 0.5, c 0.3
    tree = DraftTree([7, 1, 2, 3], [-1, 0, 1, 0], [0, 1, 2, 1], [1.0, 0.6, 0.5, 0.3], [""] * 4)
    assert draft_sources(tree, 1) == [2]
    assert draft_sources(tree, 2) == [2, 3]
    assert draft_sources(tree, None) == [0, 1, 2, 3]
    assert draft_sources(tree, 9) == [0, 1, 2, 3]


def test_layout_of_a_tree_with_pseudo_rows():
    parents, depths = [-1, 0, 0, 1], [0, 1, 1, 2]
    visible, positions = layout(tuple(parents), tuple(depths), sources=(1, 3), offsets=2)
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
    visible, positions = layout(tuple(range(-1, rows - 1)), tuple(range(rows)), (), 3)
    assert (visible == np.tri(rows, dtype=bool)).all()
    assert positions.tolist() == list(range(rows))


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


def test_layouts_that_are_kept_cannot_be_changed():
    """They are shared by all passes of such a tree."""
    first, again = (layout((-1, 0), (0, 1), (1,), 2) for _ in range(2))
    assert first is again
    for array in first:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_root_only_is_plain_decoding():
    assert layout((-1,), (0,), (), 3).visible.tolist() == [[True]]


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
