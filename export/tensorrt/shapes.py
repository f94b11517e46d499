"""The shapes that an engine is built for: one profile for decoding, one for prefill, which share
the weights.

In: a GraphSpec, the number of predictors, the limits. Out: the two profiles, with the smallest, the
likeliest and the largest shape of every input. Cached slots reach from none to the whole context in
both, for a long prompt is prefilled in several passes.
"""

from firp.runtime.bundle.engine_record import Profile
from firp.runtime.bundle.graph_spec import GraphSpec
from firp.runtime.bundle.limits import Limits
from firp.runtime.passes.pass_plan import PREFILL_ROWS

# of a decoding pass
_LIKELY_ROWS = 16
_LIKELY_CACHED = 1024

Sizes = tuple[int, int, int]  # smallest, likeliest, largest


def graph_profiles(spec: GraphSpec, num_predictors: int, limits: Limits) -> tuple[Profile, ...]:
    """Decode, then prefill."""
    return tuple(_profile(name, spec, sizes) for name, sizes in _letters(num_predictors, limits).items())


def _letters(num_predictors: int, limits: Limits) -> dict[str, dict[str, Sizes]]:
    """Profile -> shape letter -> sizes."""
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
        },
        "prefill": {
            "B": (1, 1, 1),  # prompts are computed one at a time
            "T": (1, PREFILL_ROWS, PREFILL_ROWS),
            "R": (1, PREFILL_ROWS, upper_rows),
            "G": (1, 1, 1),
            "E": (1, 1, max(1, num_predictors)),
            "M": (1, 1, 1),
            "P": (0, 0, limits.max_context),
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
