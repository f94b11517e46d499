"""The drafter of one request.

In: a tree configuration, or None for plain decoding, and what the bundle knows. Out: a `Drafter`.
"""

from firp.runtime.drafters.firp import FirpDrafter
from firp.runtime.drafters.grammar import GrammarDrafter
from firp.runtime.drafters.interface import Drafter
from firp.runtime.drafters.lookup import LookupDrafter
from firp.runtime.drafters.merged import MergedDrafter
from firp.runtime.drafters.plain import PlainDrafter
from firp.runtime.grammar.walk import Walk
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree_config import FIRP, GRAMMAR, LOOKUP, TreeConfig


def make_drafter(
    tree: TreeConfig | None,
    num_predictors: int,
    correction: PathCorrection | None,
    greedy: bool,
    walk: Walk | None = None,
) -> Drafter:
    """A drafter for one request. greedy: whether it is decoded greedily; walk: of the request's
    grammar, where it has one.
    """
    if tree is None:
        return PlainDrafter()
    drafter = _drafter_of(tree, num_predictors, correction, greedy)
    return drafter if walk is None else GrammarDrafter(drafter, tree, walk)


def _drafter_of(
    tree: TreeConfig, num_predictors: int, correction: PathCorrection | None, greedy: bool
) -> Drafter:
    if tree.drafters == (GRAMMAR,):
        return PlainDrafter()
    if tree.drafters == (LOOKUP,):
        return LookupDrafter(tree)
    firp = FirpDrafter(tree, num_predictors, correction, greedy)
    return firp if tree.drafters == (FIRP,) else MergedDrafter(firp, LookupDrafter(tree))
