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
from firp.runtime.trees.tree import FIRP, TreeConfig

# decoded greedily, at temperature 0.8, or held-out text as it is; the first is the default
TEXTS = ("greedy", "sampled", "text")


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds on one device. Between two measured row counts it is linear, beyond the last in
    proportion.
    """

    device: str
    prediction_layer: int
    num_hidden_layers: int
    cached_tokens: int
    rows: tuple[int, ...]  # of a pass
    lower_ms: tuple[float, ...]  # [len(rows)]
    upper_ms: tuple[float, ...]  # [len(rows)] lm_head on every row included
    predictors_ms: float
    plain_outside_ms: float  # of one step, outside the graphs
    drafted_outside_ms: float

    def __post_init__(self):
        """Raises FirpError for numbers that are no measurement."""
        rows = self.rows
        times = (*self.lower_ms, *self.upper_ms)
        whole = len(rows) == len(self.lower_ms) == len(self.upper_ms) >= 1
        if (
            not whole
            or list(rows) != sorted(set(rows))
            or rows[0] < 1
            or not all(0 < ms < float("inf") for ms in times)
        ):
            expected = "ascending rows, each with a positive lower_ms and upper_ms"
            raise FirpError(
                "bad latency table", got=f"{len(rows)} rows, {len(times)} times", expected=expected
            )
        others = (self.predictors_ms, self.plain_outside_ms, self.drafted_outside_ms)
        if not 1 <= self.prediction_layer < self.num_hidden_layers or not all(
            0 <= ms < float("inf") for ms in others
        ):
            got = f"layer {self.prediction_layer} of {self.num_hidden_layers}, {others} ms"
            raise FirpError(
                "bad latency table", got=got, expected="a layer inside the model, and times of 0 or more"
            )

    def plain_ms(self) -> float:
        """One step of plain decoding."""
        return self.lower(1) + self.upper(1) + self.plain_outside_ms

    def step_ms(
        self, tree: TreeConfig, num_predictors: int, undrafted: float = 0.0, mean_rows: float | None = None
    ) -> float:
        """One step of drafted decoding. undrafted: share of steps that had no drafts; mean_rows: of
        the tree in those that had; None: it is always full.
        """
        full = self._pass_ms(tree, tree.rows if mean_rows is None else mean_rows, num_predictors)
        bare = self._pass_ms(tree, 1, num_predictors)
        return (1 - undrafted) * full + undrafted * bare + self.drafted_outside_ms

    def _pass_ms(self, tree: TreeConfig, rows: float, num_predictors: int) -> float:
        if FIRP not in tree.drafters:
            return self.lower(rows) + self.upper(rows)
        offsets = tree.depth or num_predictors
        if tree.draft_sources == 0:
            return self.lower(rows) + self.upper(rows) + self.predictors_ms + self.upper(offsets)
        sources = rows if tree.draft_sources is None else min(tree.draft_sources, rows)
        return self.lower(rows) + self.predictors_ms + self.upper(rows + sources * offsets)

    def worth_of_a_row(self) -> float:
        """Share of a plain step that one more row costs: a draft less probable than that does not
        pay for its row.
        """
        few = min(8, self.rows[-1])
        cost = (self.lower(few) + self.upper(few) - self.lower(1) - self.upper(1)) / max(few - 1, 1)
        return round(min(max(cost / self.plain_ms(), 0.01), 0.5), 3)

    def lower(self, rows: float) -> float:
        """Milliseconds of the lower half for so many rows."""
        return self._at(self.lower_ms, rows)

    def upper(self, rows: float) -> float:
        """Milliseconds of the upper half for so many rows."""
        return self._at(self.upper_ms, rows)

    def _at(self, values: tuple[float, ...], rows: float) -> float:
        if rows > self.rows[-1]:
            return values[-1] * rows / self.rows[-1]
        return float(np.interp(rows, self.rows, values))

    def at_layer(self, prediction_layer: int) -> "LatencyTable":
        """A table as if the model were split elsewhere: layers cost alike, and what is left of the
        upper half is the head.
        """
        if prediction_layer == self.prediction_layer:
            return self
        layers = [ms / self.prediction_layer for ms in self.lower_ms]
        above = self.num_hidden_layers - self.prediction_layer
        heads = [max(0.0, ms - above * layer) for ms, layer in zip(self.upper_ms, layers, strict=True)]
        return replace(
            self,
            prediction_layer=prediction_layer,
            lower_ms=tuple(layer * prediction_layer for layer in layers),
            upper_ms=tuple(
                layer * (self.num_hidden_layers - prediction_layer) + head
                for layer, head in zip(layers, heads, strict=True)
            ),
        )


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
class Calibration:
    """calibration.json: trees to choose from."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Choice:
    """The best tree for a device, and whether it beats plain decoding there."""

    tree: TreeConfig
    drafts: bool  # False: decode plainly
    text: str  # the kind of text it was chosen for
    tokens_per_step: float  # expected
    speedup: float  # expected, over plain decoding
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
