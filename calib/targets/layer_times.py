"""Times of single nodes or layers, grouped by what they are.

In: (name, operator, milliseconds) of everything that ran, from ONNX Runtime's profile or TensorRT's
profiler. Out: `KindTime`s whose sum is the sum of what came in. ONNX Runtime names operators;
TensorRT fuses them and names what it fused, so its layers are told by name. What follows from the
last GEMM of the upper graph on is the head, in both.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

KINDS = ("attention", "GEMM", "norm", "rope", "elementwise", "copy", "head", "other")
_OPERATORS = {
    "attention": "Attention MultiHeadAttention GroupQueryAttention Softmax",
    "GEMM": "Gemm MatMul FusedGemm FusedMatMul MatMulNBits MatMulInteger MatMulIntegerToFloat "
    "DynamicQuantizeMatMul QGemm",
    "norm": "RMSNormalization SimplifiedLayerNormalization SkipSimplifiedLayerNormalization "
    "LayerNormalization",
    "rope": "RotaryEmbedding",
    "elementwise": "QuickGelu Gelu Sigmoid Swish Mul Add Sub Div Abs ReduceMax QuantizeLinear "
    "DequantizeLinear",
    "copy": "Transpose TensorScatter Tile Concat Gather GatherND Reshape Split Slice Cast Expand Squeeze "
    "Unsqueeze Identity Shape MemcpyFromHost MemcpyToHost",
    "head": "LogSoftmax TopK",
}
_KIND_OF = {operator: kind for kind, operators in _OPERATORS.items() for operator in operators.split()}
_LAYER_OUTPUT = re.compile(r"layers\.\d+\.out")
# Names as in the plans of TensorRT-RTX 1.7: "node_Gemm_7", "__myl_AddMulMeanAddSqrtDivMulMul" (a
# fused norm); the first that fits.
_LAYER_NAMES = (
    ("head", r"logsoftmax|topk"),
    ("attention", r"attention|mha|maxrsub|softmax"),
    ("GEMM", r"gemm|matmul|xmma|cutlass|__myl_fc"),
    ("norm", r"meanaddsqrt|norm"),
    ("rope", r"splimulmulmulmul|rotary"),
    ("elementwise", r"silu|gelu|sigm"),
    ("copy", r"tran|conc|resh|slic|gath|cast|repl|move|copy|reformat|spli"),
    ("elementwise", r"add|mul|div"),
)


class LayerTime(NamedTuple):
    name: str
    operator: str  # "" where only the name says what it is
    ms: float  # median over the passes


@dataclass(frozen=True)
class KindTime:
    kind: str  # of KINDS
    layers: int
    ms: float
    share: float  # of all layers of the graph


def group(layers: Iterable[LayerTime], head: frozenset[str] = frozenset()) -> tuple[KindTime, ...]:
    """Sums by kind, in the order of KINDS, those without layers left out. head: names of the nodes
    that make logits.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for layer in layers:
        times[kind_of(layer, head)].append(layer.ms)
    total = sum(map(sum, times.values()))
    return tuple(
        KindTime(kind, len(times[kind]), sum(times[kind]), sum(times[kind]) / total)
        for kind in KINDS
        if kind in times
    )


def kind_of(layer: LayerTime, head: frozenset[str] = frozenset()) -> str:
    if head and head & set(re.findall(r"node_[A-Za-z]+_\d+", layer.name)):
        return "head"
    if layer.operator:
        return _KIND_OF.get(layer.operator, "other")
    return next(
        (kind for kind, pattern in _LAYER_NAMES if re.search(pattern, layer.name, re.IGNORECASE)), "other"
    )


def head_nodes(graph_path: Path) -> frozenset[str]:
    """Names of the nodes from the first GEMM after the layers of the upper graph on, norms apart:
    logits, log-probabilities and the best of them, of rows and of pseudo rows.
    """
    import onnx

    nodes = list(onnx.load(graph_path, load_external_data=False).graph.node)
    layers = max(i for i, node in enumerate(nodes) if _LAYER_OUTPUT.fullmatch(node.output[0]))
    first = next(i for i in range(layers, len(nodes)) if _KIND_OF.get(nodes[i].op_type) == "GEMM")
    return frozenset(node.name for node in nodes[first:] if _KIND_OF.get(node.op_type) != "norm")


def read_onnxruntime_profile(path: Path, warm_up: int) -> list[LayerTime]:
    """Median time of each node over the runs after the first `warm_up`."""
    events = json.loads(path.read_text("utf-8"))
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")[warm_up:]
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= runs[0]:
            # microseconds
            times[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(
                event["dur"] / 1e3
            )
    return [
        LayerTime(name, operator, statistics.median(passes)) for (name, operator), passes in times.items()
    ]
