"""Records of calibration and tuning: trees with what they gave, times of a device, and the tree
that was chosen for it.

In: calibration.json, which `firp calibrate` writes, or the JSON of `firp tune`. Out: `Calibration`,
`LatencyTable`; a `Choice` for each device lies in the bundle's manifest.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from firp.runtime.bundle.json_fields import from_json, read_json
from firp.runtime.errors import BundleError, FirpError
from firp.runtime.trees.tree_config import CHAIN, FIRP, TreeConfig

# decoded greedily, at temperature 0.8, or held-out text as it is; the first is the default
TEXTS = ("greedy", "sampled", "text")


# cached tokens that trees are chosen for where nothing says how many there will be
TYPICAL_CONTEXT = 512
Grid = tuple[tuple[float, ...], ...]  # [contexts, rows] ms


@dataclass(frozen=True)
class BatchTimes:
    """Milliseconds of passes of several sequences, by cached tokens and rows of each."""

    sequences: int
    contexts: tuple[int, ...]
    rows: tuple[int, ...]
    lower_ms: Grid
    upper_ms: Grid

    def __post_init__(self):
        """Raises FirpError for numbers that are no measurement."""
        _check_grids(self.contexts, self.rows, self.lower_ms, self.upper_ms)


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds on one device, by cached tokens and rows of a pass, and by sequences that share it.
    Between what was measured it is linear; beyond the last number of rows or sequences in proportion,
    beyond the last context along the last slope.
    """

    device: str
    prediction_layer: int
    num_hidden_layers: int
    contexts: tuple[int, ...]  # cached tokens
    rows: tuple[int, ...]  # of a pass
    lower_ms: Grid
    upper_ms: Grid  # lm_head on every row included
    predictors_ms: float
    plain_outside_ms: float  # of one step, outside the graphs
    drafted_outside_ms: float
    # of several sequences, ascending; () where only one was measured: rows of several then count as
    # rows of one
    batches: tuple[BatchTimes, ...] = ()

    def __post_init__(self):
        """Raises FirpError for numbers that are no measurement."""
        _check_grids(self.contexts, self.rows, self.lower_ms, self.upper_ms)
        counts = tuple(batch.sequences for batch in self.batches)
        if counts and not _ascending(counts, least=2):
            raise FirpError("bad latency table", got=f"{counts} sequences", expected="from 2 on, ascending")
        others = (self.predictors_ms, self.plain_outside_ms, self.drafted_outside_ms)
        if not 1 <= self.prediction_layer < self.num_hidden_layers or not all(
            0 <= ms < float("inf") for ms in others
        ):
            got = f"layer {self.prediction_layer} of {self.num_hidden_layers}, {others} ms"
            raise FirpError(
                "bad latency table", got=got, expected="a layer inside the model, and times of 0 or more"
            )

    def plain_ms(self, cached: float = TYPICAL_CONTEXT) -> float:
        """One step of plain decoding after so many cached tokens."""
        return self.lower(1, cached) + self.upper(1, cached) + self.plain_outside_ms

    def step_ms(
        self,
        tree: TreeConfig,
        num_predictors: int,
        undrafted: float = 0.0,
        mean_rows: float | None = None,
        cached: float = TYPICAL_CONTEXT,
    ) -> float:
        """One step of drafted decoding. undrafted: share of steps that had no drafts; mean_rows: of
        the tree in those that had; None: it is always full; cached: tokens before it.
        """
        full = self._pass_ms(tree, tree.rows if mean_rows is None else mean_rows, num_predictors, cached)
        bare = self._pass_ms(tree, 1, num_predictors, cached)
        return (1 - undrafted) * full + undrafted * bare + self.drafted_outside_ms

    def _pass_ms(self, tree: TreeConfig, rows: float, num_predictors: int, cached: float) -> float:
        lower = self.lower(rows, cached)
        if FIRP not in tree.drafters:
            return lower + self.upper(rows, cached)
        offsets = tree.depth or num_predictors
        if tree.draft_sources == 0:
            drafting = self.predictors_ms + self.upper(offsets, cached)
            return lower + self.upper(rows, cached) + drafting
        sources = rows if tree.draft_sources is None else min(tree.draft_sources, rows)
        return lower + self.predictors_ms + self.upper(rows + sources * offsets, cached)

    def worth_of_a_row(self, cached: float = TYPICAL_CONTEXT) -> float:
        """Share of a plain step that one more row costs: a draft less probable than that does not
        pay for its row.
        """
        few = min(8, self.rows[-1])
        one, several = (self.lower(rows, cached) + self.upper(rows, cached) for rows in (1, few))
        cost = (several - one) / max(few - 1, 1)
        return round(min(max(cost / self.plain_ms(cached), 0.01), 0.5), 3)

    def lower(self, rows: float, cached: float = TYPICAL_CONTEXT, sequences: int = 1) -> float:
        """Milliseconds of the lower half for so many rows of each sequence after so many cached tokens."""
        return self._at("lower_ms", rows, cached, sequences)

    def upper(self, rows: float, cached: float = TYPICAL_CONTEXT, sequences: int = 1) -> float:
        """Milliseconds of the upper half for so many rows of each sequence after so many cached tokens."""
        return self._at("upper_ms", rows, cached, sequences)

    def _at(self, half: str, rows: float, cached: float, sequences: int) -> float:
        if sequences == 1 or not self.batches:
            return _interpolated(self, half, rows * sequences, cached)
        counts = [1, *(batch.sequences for batch in self.batches)]
        times = [_interpolated(some, half, rows, cached) for some in (self, *self.batches)]
        return float(np.interp(sequences, counts, times)) * max(sequences / counts[-1], 1.0)

    def at_layer(self, prediction_layer: int) -> "LatencyTable":
        """A table as if the model were split elsewhere: layers cost alike, and what is left of the
        upper half is the head.
        """
        if prediction_layer == self.prediction_layer:
            return self
        layers = np.array(self.lower_ms) / self.prediction_layer  # [contexts, rows]
        above = self.num_hidden_layers - self.prediction_layer
        heads = np.maximum(0.0, np.array(self.upper_ms) - above * layers)
        upper = layers * (self.num_hidden_layers - prediction_layer) + heads
        return replace(
            self,
            prediction_layer=prediction_layer,
            lower_ms=tuple(map(tuple, (layers * prediction_layer).tolist())),
            upper_ms=tuple(map(tuple, upper.tolist())),
            batches=(),  # trees are chosen for one sequence
        )


def _interpolated(times: LatencyTable | BatchTimes, half: str, rows: float, cached: float) -> float:
    """Milliseconds of a half, of one number of sequences."""
    contexts = times.contexts
    beyond = max(rows / times.rows[-1], 1.0)
    found = [float(np.interp(rows, times.rows, values)) * beyond for values in getattr(times, half)]
    if len(found) > 1 and cached > contexts[-1]:
        slope = max(0.0, found[-1] - found[-2]) / (contexts[-1] - contexts[-2])
        return found[-1] + slope * (cached - contexts[-1])
    return float(np.interp(cached, contexts, found))


def _check_grids(contexts: tuple[int, ...], rows: tuple[int, ...], lower: Grid, upper: Grid) -> None:
    grids = (*lower, *upper)
    if (
        not len(lower) == len(upper) == len(contexts)
        or not _ascending(contexts, least=0)
        or not _ascending(rows, least=1)
        or not all(len(times) == len(rows) for times in grids)
        or not all(0 < ms < float("inf") for times in grids for ms in times)
    ):
        raise FirpError(
            "bad latency table",
            got=f"{len(contexts)} contexts, {len(rows)} rows, {sum(map(len, grids))} times",
            expected="ascending contexts and rows, each pair with a positive lower_ms and upper_ms",
        )


def _ascending(values: tuple[int, ...], least: int) -> bool:
    return bool(values) and values[0] >= least and list(values) == sorted(set(values))


@dataclass(frozen=True)
class Candidate:
    """A tree, and what it gave when held-out texts were decoded with it
    (firp.calib.replay.replay).
    """

    tree: TreeConfig
    tokens_per_step: dict[str, float]  # by text
    undrafted: dict[str, float]  # share of steps without drafts, by text
    # rows of the tree in the steps with drafts, by text; None: it is always full
    mean_rows: dict[str, float] | None = None

    def __post_init__(self):
        """Raises FirpError for numbers that no replay gives."""
        rates = self.tokens_per_step
        shares = self.undrafted
        good = rates and set(rates) == set(shares) and all(1 <= rate < 1e3 for rate in rates.values())
        sizes = self.mean_rows or {}
        good = good and set(sizes) <= set(rates)
        good = good and all(1 <= size <= self.tree.rows for size in sizes.values())
        if not good or not all(0 <= share <= 1 for share in shares.values()):
            raise FirpError(
                "bad calibrated tree",
                got=f"{rates}, {shares}",
                expected="tokens per step and shares for each text",
            )


@dataclass(frozen=True)
class Replayed:
    """What trees were replayed on: held-out texts of one model, and its drafts on them."""

    model: str
    precision: str  # of the model that wrote the texts and drafted
    tokens: dict[str, int]  # decoded, by text

    def __post_init__(self):
        """Raises FirpError for a count that is none."""
        if not all(count >= 0 for count in self.tokens.values()):
            raise FirpError("bad calibration", got=f"{self.tokens}", expected="0 or more tokens of each text")


@dataclass(frozen=True)
class Calibration:
    """calibration.json: trees to choose from."""

    candidates: tuple[Candidate, ...]
    replayed: Replayed | None = None  # None: whoever wrote it did not say

    def for_chains(self) -> "Calibration":
        """The chains alone: what a quantized bundle drafts."""
        chains = tuple(item for item in self.candidates if item.tree.kind == CHAIN)
        return replace(self, candidates=chains)


@dataclass(frozen=True)
class Choice:
    """The best tree for a device, and whether it beats plain decoding there."""

    tree: TreeConfig
    drafts: bool  # False: decode plainly
    text: str  # the kind of text it was chosen for
    tokens_per_step: float  # expected
    speedup: float  # expected, over plain decoding
    cached_tokens: int  # that it was chosen for: before a step, on average
    latency: LatencyTable


def read_calibration(path: Path, num_predictors: int) -> Calibration:
    """Raises BundleError, or FirpError for a tree that is malformed."""
    calibration = from_json(Calibration, read_json(path), path.name)
    if not calibration.candidates:
        raise BundleError(
            f"no trees in {path.name}", got="no candidates", expected="at least 1", fix="calibrate again"
        )
    for candidate in calibration.candidates:
        candidate.tree.validate(num_predictors)
    return calibration


def read_latency(path: Path) -> LatencyTable:
    """The table that `firp tune --json` printed. Raises BundleError."""
    data = read_json(path)
    return from_json(LatencyTable, data.get("latency") if isinstance(data, dict) else data, str(path))
