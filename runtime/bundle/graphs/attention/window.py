"""Attention of layers with a window to the last slots of their buffers, as ONNX nodes.

In: a graph's masks, and the slots that windowed layers read. Out: masks that are cut to them, and what
attends to a part of the buffers. A kernel takes whole buffers, so the part is copied, which costs far
less than to attend to what the mask hides; where the part is the whole, nothing is copied.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from firp.runtime.bundle.graph_spec import WINDOW_INPUTS
from firp.runtime.bundle.graphs.builder import GraphBuilder
from firp.runtime.bundle.graphs.tape import Value


class LastSlots(NamedTuple):
    """Slots [start, stop) of every buffer, with those that the windows of all rows lie in."""

    start: Value  # [1]
    stop: Value  # [1]
    whole: Value  # [1]: whether they are all slots


def cut_masks(
    b: GraphBuilder, biases: Mapping[str, Value], inputs: Mapping[str, Value], layers: range
) -> tuple[dict[str, Value], dict[str, LastSlots]]:
    """Masks [B, 1, T, columns] of these layers, those of a window with its columns alone, and for each of
    these the slots that it is for.
    """
    cut, slots = dict(biases), {}
    for name, window in b.config.masks(layers).items():
        if window is not None:
            start, stop = (inputs[each] for each in WINDOW_INPUTS)
            cut[name] = b.op("Slice", biases[name], start, stop, b.ints([3]))
            sizes = [b.op("Shape", bias, start=3, end=4) for bias in (biases[name], cut[name])]
            slots[name] = LastSlots(start, stop, b.op("Equal", *sizes))
    return cut, slots


def attend_to_last(
    b: GraphBuilder,
    slots: LastSlots,
    buffers: tuple[Value, ...],
    attend: Callable[[tuple[Value, ...]], Value],
) -> Value:
    """What `attend` makes, [B, heads, rows, Dh], of these slots of the buffers [B, Hkv, S, Dh]."""

    def of_some() -> Value:
        axis = b.ints([2])
        return attend(tuple(b.op("Slice", buffer, slots.start, slots.stop, axis) for buffer in buffers))

    shape = ("B", "heads", "rows", b.config.attention.head_dim)
    branches = b.branch(lambda: attend(buffers), shape), b.branch(of_some, shape)
    return b.op("If", slots.whole, then_branch=branches[0], else_branch=branches[1])
