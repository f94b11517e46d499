"""The shapes that an engine is built for: one profile for decoding, one for prefill, which share
the weights.

In: a manifest, the name of a graph, the limits. Out: the two profiles, with the smallest, the
likeliest and the largest shape of every input. Cached slots reach from none to the whole context in
both, for a long prompt is prefilled in several passes; those of layers with a window to what one
sequence needs, unless sequences of unlike lengths decode together.
"""

from firp.runtime.backends.slot_buckets import most_slots
from firp.runtime.bundle.engine_record import Profile
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import PREFIX, GraphSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.passes.pass_plan import PREFILL_ROWS

# of a decoding pass
_LIKELY_ROWS = 16
_LIKELY_CACHED = 1024

Sizes = tuple[int, int, int]  # smallest, likeliest, largest


def graph_profiles(manifest: Manifest, graph: str, limits: Limits) -> tuple[Profile, ...]:
    """Decode, then prefill."""
    spec = manifest.graphs_for(PREFIX)[graph]
    letters = _letters(manifest.num_predictors, manifest.model.window, limits)
    return tuple(_profile(name, spec, sizes) for name, sizes in letters.items())


def _letters(num_predictors: int, window: int | None, limits: Limits) -> dict[str, dict[str, Sizes]]:
    """Profile -> shape letter -> sizes."""
    in_window = most_slots(window, limits.max_context) if window else 0
    together = in_window if limits.max_batch == 1 else limits.max_context
    rows = (1, min(_LIKELY_ROWS, limits.max_rows), limits.max_rows)
    upper_rows = PREFILL_ROWS + num_predictors  # the last row of a prompt is a draft source
    return {
        "decode": {
            "B": (1, 1, limits.max_batch),
            "T": rows,
            "R": rows,
            "G": rows,
            "E": rows,
            "M": (1, 1, limits.max_rows),
            "P": (0, min(_LIKELY_CACHED, limits.max_context), limits.max_context),
            "W": (0, min(_LIKELY_CACHED, in_window), together),
        },
        "prefill": {
            "B": (1, 1, 1),  # prompts are computed one at a time
            "T": (1, PREFILL_ROWS, PREFILL_ROWS),
            "R": (1, PREFILL_ROWS, upper_rows),
            "G": (1, 1, 1),
            "E": (1, 1, max(1, num_predictors)),
            "M": (1, 1, 1),
            "P": (0, 0, limits.max_context),
            "W": (0, 0, in_window),
        },
    }


def _profile(name: str, spec: GraphSpec, sizes: dict[str, Sizes]) -> Profile:
    return Profile(
        name,
        {
            tensor.name: tuple(
                tensor.sizes({letter: size[which] for letter, size in sizes.items()}) for which in range(3)
            )
            for tensor in spec.inputs
        },
    )
