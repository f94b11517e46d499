"""The weights of a model by name and shape: the one contract between what reads a checkpoint, what
writes a bundle, what builds its graphs, and what counts its bytes.

In: a ModelConfig. Out: name -> shape, in the order of model.safetensors. A linear layer's weight is
[out, in]; it and a norm have a bias where the blueprint names it among its biases.
"""

import re

from firp.runtime.bundle.model_config import XIELU, ModelConfig
from firp.runtime.trees.tree_config import MAX_PASS_ROWS

Shape = tuple[int, ...]
_EXPERT = re.compile(r"\bexperts\.\d+\.")
PREDICTORS_WEIGHT = "predictors.weight"  # [K*D, D]: all K as one GEMM
DRAFT_HEAD = "draft_head"  # rows of the head, [tokens, D]: of the tokens that pseudo rows are decoded over


def weight_shapes(config: ModelConfig) -> dict[str, Shape]:
    """All weights; the rope tables, which are computed, are not among them."""
    size = config.hidden_size
    shapes: dict[str, Shape] = {"embed_tokens.weight": (config.vocab_size, size)}
    if config.positions.learned:
        shapes["embed_positions.weight"] = (config.max_position_embeddings, size)
    if config.embedding.norm:
        shapes |= _module(config, "embed_norm", (size,))
    for index in range(config.num_hidden_layers):
        shapes |= layer_shapes(config, index)
    shapes |= _module(config, "norm", (size,))
    if not config.tie_word_embeddings:
        shapes |= _module(config, "lm_head", (config.vocab_size, size))
    return shapes


def layer_shapes(config: ModelConfig, index: int) -> dict[str, Shape]:
    """The weights of one layer."""
    shapes: dict[str, Shape] = {}
    for module, shape in _layer_modules(config, config.layers[index].sparse).items():
        shapes |= _module(config, module, shape, f"{layer_name(index)}.")
    return dict(sorted(shapes.items(), key=lambda item: _of_experts(item[0])))


def _of_experts(weight: str) -> str:
    """What experts call a weight, "" for one of no expert: those of one name lie one behind the other, so
    that they are one weight too.
    """
    return _EXPERT.sub("", weight) if _EXPERT.search(weight) else ""


def _layer_modules(config: ModelConfig, sparse: bool) -> dict[str, Shape]:
    """Modules of a layer: the shapes of their weights."""
    attention, size, inner = config.attention, config.hidden_size, config.mlp.intermediate_size
    norms: dict[str, Shape] = dict.fromkeys(config.block.norms, (size,))
    modules = {name: norms[name] for name in ("input_norm",) if name in norms}
    modules |= _latent(config) if attention.latent else _attention(config)
    modules |= {name: norms[name] for name in ("attention_out_norm", "mlp_norm") if name in norms}
    modules |= _experts(config) if sparse else _mlp(config, inner)
    return modules | {name: norms[name] for name in ("mlp_out_norm",) if name in norms}


def _attention(config: ModelConfig) -> dict[str, Shape]:
    """Modules of attention to keys and values of each head."""
    attention, size = config.attention, config.hidden_size
    modules: dict[str, Shape] = {"qkv_proj": (attention.query_size + 2 * attention.key_value_size, size)}
    if attention.qk_norm:
        heads = {"q_norm": attention.num_heads, "k_norm": attention.num_key_value_heads}
        for name, count in heads.items():
            modules[name] = {
                "head": (attention.head_dim,),
                "heads": (count, attention.head_dim),
                "all": (count * attention.head_dim,),
            }[attention.qk_norm.over]
    if attention.sinks:
        modules["sinks"] = (attention.num_heads,)
    if attention.gated:
        modules["attention_gate"] = (attention.query_size, size)
    return modules | {"o_proj": (size, attention.query_size)}


def _latent(config: ModelConfig) -> dict[str, Shape]:
    """Modules of attention to latent rows."""
    latent, heads, size = config.attention.latent, config.attention.num_heads, config.hidden_size
    queries = heads * (latent.key_size + latent.rope_size)
    modules: dict[str, Shape] = {
        "qkv_proj": ((latent.query_rank or queries) + config.attention.head_dim, size)
    }
    if latent.query_rank:
        modules |= {"q_norm": (latent.query_rank,), "q_up_proj": (queries, latent.query_rank)}
    return modules | {
        "latent_norm": (latent.rank,),
        "key_up": (heads, latent.key_size, latent.rank),
        "value_up": (heads, latent.value_size, latent.rank),
        "o_proj": (size, heads * latent.value_size),
    }


def rope_rows(config: ModelConfig) -> int:
    """Positions in the rope tables; ONNX Runtime refuses a pass of more rows than that, whatever their
    positions.
    """
    return max(config.max_position_embeddings, MAX_PASS_ROWS)


def rope_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The rope tables."""
    return {
        table: (rope_rows(config), len(rope.frequencies))
        for name, rope in config.positions.ropes.items()
        for table in rope_names(name)
    }


def _mlp(config: ModelConfig, inner: int, before: str = "") -> dict[str, Shape]:
    """Modules of one MLP, whose names begin with `before`."""
    size = config.hidden_size
    first = {"gate_up_proj": (2 * inner, size)} if config.mlp.gated else {"up_proj": (inner, size)}
    if config.mlp.activation == XIELU:
        first["activation"] = (4,)  # alphas of positive and negative values, beta, epsilon
    return {f"{before}{name}": shape for name, shape in (first | {"down_proj": (size, inner)}).items()}


def _experts(config: ModelConfig) -> dict[str, Shape]:
    """Modules of a mixture of experts."""
    experts, size = config.experts, config.hidden_size
    modules: dict[str, Shape] = {"router": (experts.count, size)}
    if experts.selection_bias:
        modules["selection_bias"] = (experts.count,)
    for index in range(experts.count):
        modules |= _mlp(config, experts.intermediate_size, f"experts.{index}.")
    if experts.shared_size:
        modules |= _mlp(config, experts.shared_size, "shared.")
    return modules | ({"shared_gate": (1, size)} if experts.shared_gate else {})


def layer_name(index: int) -> str:
    """Beginning of the names of a layer's weights, and of its outputs in a graph."""
    return f"layers.{index}"


def rope_names(rope: str) -> tuple[str, str]:
    """The tables of cos and sin by the name of a rope, [positions, pairs] each, after the weights in
    the file.
    """
    return f"rope.{rope}.cos", f"rope.{rope}.sin"


def head_name(config: ModelConfig) -> str:
    """The weight that turns hidden states into logits."""
    return "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"


def _module(config: ModelConfig, module: str, shape: Shape, before: str = "") -> dict[str, Shape]:
    shapes = {f"{before}{module}.weight": shape}
    return shapes | {f"{before}{module}.bias": shape[:1]} if module in config.biases else shapes
