"""Inputs for a graph of a bundle, as its declaration has them.

In: a GraphSpec, a manifest, a point of the grid. Out: arrays by input name, random where a pass
reads what another one made.
"""

import numpy as np

from firp.calib.targets.cost import Point, dimensions
from firp.runtime.backends.host import attention_bias
from firp.runtime.bundle.format import Manifest
from firp.runtime.bundle.graph_spec import HEAD_INPUTS, PREFIX, WINDOW_INPUTS, GraphSpec
from firp.runtime.passes.buffers import head_inputs
from firp.runtime.passes.in_place_cache import last_slots
from firp.runtime.passes.pass_plan import BY_ROW
from firp.runtime.trees.tree_config import MAX_PASS_ROWS


class FeedMaker:
    """Inputs for one graph and one batch size; the cache is made once, and every point reads views
    of it, as a session does.
    """

    def __init__(self, spec: GraphSpec, manifest: Manifest, batch: int, cached_tokens: int):
        self._spec = spec
        self._model = manifest.model
        self._manifest = manifest
        self._rng = np.random.default_rng(0)
        self._heads = head_inputs(manifest.model.attention)
        self._masks = manifest.model.masks(manifest.layers(spec.name))
        dims = dimensions(spec.name, Point(MAX_PASS_ROWS, cached_tokens, batch), manifest)
        self._past = {
            tensor.name: self._normal(tensor.sizes(dims), tensor.dtype) * 0.1 for tensor in spec.past
        }

    def feed(self, point: Point) -> dict[str, np.ndarray]:
        """Arrays as the graph declares them: random hidden states and tokens, causal rows after a
        cache in full view.
        """
        rows, cached, batch = point
        dims = dimensions(self._spec.name, point, self._manifest)
        positions = np.arange(cached, cached + rows)  # [rows]
        made = {}
        for tensor in self._spec.inputs:
            shape = tensor.sizes(dims)
            if tensor.name in self._past:
                whole = self._past[tensor.name]
                made[tensor.name] = (
                    whole[: shape[0]]
                    if self._spec.cache == PREFIX
                    else np.ascontiguousarray(whole[:, :, : cached + rows])
                )
            elif tensor.name == "input_ids":
                made[tensor.name] = self._rng.integers(0, self._model.vocab_size, shape)
            elif tensor.name == "hidden_states":
                made[tensor.name] = self._normal(shape, tensor.dtype)
            elif tensor.name in self._masks:
                window = self._masks[tensor.name]
                bias = self._causal(positions, shape[-1] - rows, tensor.dtype, window)
                made[tensor.name] = np.repeat(bias, batch, axis=0)
            elif tensor.name == "write_at":
                made[tensor.name] = np.full(batch, cached)
            elif tensor.name in HEAD_INPUTS:
                made[tensor.name] = self._heads[rows <= BY_ROW][tensor.name]
            elif tensor.name in WINDOW_INPUTS:
                seen = last_slots([cached], rows, self._model.window, cached + rows)
                made[tensor.name] = np.array([seen.start if tensor.name == WINDOW_INPUTS[0] else seen.stop])
            else:
                # source_rows, logits_rows, draft_rows
                of_a_sequence = positions if tensor.name == "position_ids" else np.arange(shape[1])
                made[tensor.name] = np.repeat(of_a_sequence[None], batch, axis=0)  # [B, rows]
        return made

    def _causal(self, positions: np.ndarray, seen: int, dtype: str, window: int | None) -> np.ndarray:
        """The mask of rows after `seen` slots in view, the last ones of those before them."""
        rows, before = len(positions), int(positions[0]) - seen
        bias = np.empty((rows, seen + rows), numpy_dtype(dtype))
        attention_bias(np.tri(rows, dtype=bool), positions - before, seen, seen, window, bias)
        return bias[None, None]

    def _normal(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return self._rng.standard_normal(shape, np.float32).astype(numpy_dtype(dtype), copy=False)


def numpy_dtype(dtype: str) -> np.dtype:
    """The type of an array in host memory: bfloat16 is float32 there, and is cut where it goes to
    the device.
    """
    return np.dtype("float32" if dtype == "bfloat16" else dtype)
