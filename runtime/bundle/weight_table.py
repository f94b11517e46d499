"""The weights of a model by name and shape: the one contract between what reads a checkpoint, what
writes a bundle, what builds its graphs, and what counts its bytes.

In: a ModelConfig. Out: name -> shape, in the order of model.safetensors. A linear layer's weight is
[out, in], and it has a bias where the table holds one.
"""

from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.trees.tree import MAX_PASS_ROWS

Shape = tuple[int, ...]
DRAFT_HEAD = "draft_head"  # rows of the head, [tokens, D]: of the tokens that pseudo rows are decoded over
PREDICTORS_WEIGHT = "predictors.weight"  # [K*D, D]: all K as one GEMM
ROPE_TABLES = ("rope.cos", "rope.sin")  # [positions, Dh / 2] each, after the weights in the file


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """All weights; the rope tables, which are computed, are not among them."""
    size = config.hidden_size
    shapes = {"embed_tokens.weight": (config.vocab_size, size)}
    for index in range(config.num_hidden_layers):
        shapes |= layer_shapes(config, index)
    shapes["norm.weight"] = (size,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, size)
    return shapes


def layer_shapes(config: ModelConfig, index: int) -> dict[str, Shape]:
    """The weights of one layer."""
    attention = config.attention
    mlp = config.mlp
    size = config.hidden_size
    layer = layer_name(index)
    shapes: dict[str, Shape] = {f"{layer}.input_norm.weight": (size,)}
    joined = attention.query_size + 2 * attention.key_value_size
    shapes |= _linear(f"{layer}.qkv_proj", joined, size, attention.qkv_bias)
    if attention.qk_norm:
        shapes |= {f"{layer}.{part}_norm.weight": (attention.head_dim,) for part in "qk"}
    shapes |= _linear(f"{layer}.o_proj", size, attention.query_size, attention.output_bias)
    shapes[f"{layer}.mlp_norm.weight"] = (size,)
    shapes |= _linear(f"{layer}.gate_up_proj", 2 * mlp.intermediate_size, size, mlp.bias)
    shapes |= _linear(f"{layer}.down_proj", size, mlp.intermediate_size, mlp.bias)
    return shapes


def rope_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The rope tables; ONNX Runtime refuses a pass of more rows than that, whatever their positions."""
    rows = max(config.max_position_embeddings, MAX_PASS_ROWS)
    return {name: (rows, len(config.rope.frequencies)) for name in ROPE_TABLES}


def layer_name(index: int) -> str:
    """Beginning of the names of a layer's weights, and of its outputs in a graph."""
    return f"layers.{index}"


def head_name(config: ModelConfig) -> str:
    """The weight that turns hidden states into logits."""
    return "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"


def _linear(name: str, out_features: int, in_features: int, bias: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {f"{name}.weight": (out_features, in_features)}
    return shapes | {f"{name}.bias": (out_features,)} if bias else shapes
