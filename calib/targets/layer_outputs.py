"""ONNX graphs that give the outputs of their decoder layers too, and the same graphs in float32.

In: a bundle's ONNX file. Out: names of tensors in the order in which the graph makes them, models
that are changed in memory, and sessions of them. Weights are never loaded into a model: a session
reads them from the bundle's folder.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnxruntime as ort

from firp.runtime.bundle.graph_spec import cached_layer
from firp.runtime.bundle.graphs.halves import LAYER_OUTPUTS
from firp.runtime.errors import BundleError

_LAYER = re.compile(r"layers\.(\d+)\b")


def layer_of(tensor: str) -> int | None:
    """The decoder layer that makes a tensor; None where it is made outside of them."""
    found = _LAYER.match(tensor)
    return int(found[1]) if found else cached_layer(tensor)


def tensors_in_order(path: Path) -> list[str]:
    """Names of what the nodes of a graph make, first to last."""
    import onnx

    return [name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output]


def layer_outputs(path: Path, layers: Iterable[int]) -> tuple[str, ...]:
    """The tensors that each of these layers adds to the residual stream. Raises BundleError when
    the graph does not name them.
    """
    names = [f"layers.{layer}.{output}" for layer in layers for output in LAYER_OUTPUTS]
    made = set(tensors_in_order(path))
    if absent := [name for name in names if name not in made]:
        raise BundleError(
            f"'{path}' does not name its layers' outputs", got=f"no {absent[0]}", fix="export the model again"
        )
    return tuple(names)


def with_outputs(path: Path, names: Iterable[str]) -> Any:
    """The graph as an onnx.ModelProto with exactly these outputs, through polygraphy."""
    import onnx
    from polygraphy.backend.onnx import ModifyOutputs

    return ModifyOutputs(onnx.load(path, load_external_data=False), outputs=list(names))()


def make_session(
    model: Any, folder: Path, options: ort.SessionOptions, provider: str
) -> ort.InferenceSession:
    """A session of a model in memory whose weights lie in `folder`."""
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
