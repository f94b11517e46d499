"""Names of weights: where the tensors of a checkpoint go, and what they become on the way.

In: our weight's name. Out: the tensors that it is made of, by the names in the checkpoint, and the
`Layout` that they are in there.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from firp.runtime.bundle.model_config import AttentionConfig, ModelConfig

Order = tuple[int, ...]


class Layout(NamedTuple):
    """How a weight lies in its tensors. Several tensors are joined along their first axis."""

    order: Order | None = None  # block i of our rows is that block of the file's; None: as they are
    blocks: int | None = None  # that the file's rows are, where others of them make another weight
    transposed: bool = False
    plus_one: bool = False  # the file has the weight less 1
    ones: bool = False  # the file has nothing: the weight is 1
    skipped: int = 0  # rows of the file before the first
    alternating: bool = False  # rows of the file are ours of the first half and of the second by turns


PLAIN = Layout()


class Place(NamedTuple):
    """Tensors of one of our weights, and how it lies in them."""

    sources: tuple[str, ...]
    layout: Layout


def _grouped(a: AttentionConfig) -> Order:
    """Heads that stand in groups: queries, their key, their value."""
    width = a.num_heads // a.num_key_value_heads + 2
    groups = range(a.num_key_value_heads)
    queries = [group * width + head for group in groups for head in range(width - 2)]
    return (*queries, *(g * width + width - 2 for g in groups), *(g * width + width - 1 for g in groups))


def _codegen(a: AttentionConfig) -> Order:
    """Four blocks of queries, values, keys each."""
    return tuple(3 * block + part for part in (0, 2, 1) for block in range(4))


def _of_heads(a: AttentionConfig, first: int, last: int) -> Layout:
    """Rows [first, last) of those that make keys and values from a latent row, of every head."""
    width = a.latent.key_size + a.latent.value_size
    unit = math.gcd(first, last, width)
    rows = range(first // unit, last // unit)
    each = width // unit
    order = tuple(head * each + row for head in range(a.num_heads) for row in rows)
    return Layout(order=order, blocks=a.num_heads * each)


_MADE: dict[str, Callable[[AttentionConfig], Layout]] = {
    "grouped": lambda a: Layout(order=_grouped(a)),
    "codegen": lambda a: Layout(order=_codegen(a)),
    "keys": lambda a: _of_heads(a, 0, a.latent.key_size),
    "values": lambda a: _of_heads(a, a.latent.key_size, a.latent.key_size + a.latent.value_size),
}
_LAYOUTS = {  # operations
    "": PLAIN,
    "transposed": Layout(transposed=True),
    "plus1": Layout(plus_one=True),
    "ones": Layout(ones=True),
    "skip2": Layout(skipped=2),
    "bare": PLAIN,  # tensors that are no ".weight"
    "alternating columns": Layout(transposed=True, alternating=True),
}


_NORMS = (
    "norm", "input_norm", "mlp_norm", "attention_out_norm", "mlp_out_norm", "q_norm", "k_norm", "embed_norm",
)  # fmt: skip


class Names:
    """The name map of a family: our modules, a layer's without its number -> "tensor", "first & second"
    of tensors that are joined, or "tensor | operation". `{i}` stands for the layer, `{h}` for each head,
    `{e}` for the expert; "tensor[{e}]" is that expert's part of a tensor that all have in common.
    `layer` is what stands before the names of a layer.
    """

    def __init__(self, **modules: str):
        self._layer = modules.pop("layer")
        self._modules = modules

    def but(self, **modules: str) -> "Names":
        """The same names but for these."""
        return Names(layer=modules.pop("layer", self._layer), **(self._modules | modules))

    def norms(self, operation: str) -> "Names":
        """The same names, an operation on the weight of every norm."""
        return self.but(
            **{norm: f"{name} | {operation}" for norm, name in self._modules.items() if norm in _NORMS}
        )

    def place(self, weight: str, config: ModelConfig) -> Place:
        """Where one of our weights comes from."""
        module, _, kind = weight.rpartition(".")
        before = expert = ""
        if module.startswith("layers."):
            _, index, module = module.split(".", 2)
            before = self._layer.format(i=index)
        if module.startswith("experts."):
            _, expert, module = module.split(".")
            module = f"expert_{module}"
        module = module.replace("shared.", "shared_")
        names, _, operation = (part.strip() for part in self._modules[module].partition("|"))
        made = _MADE.get(operation)
        layout = made(config.attention) if made else _LAYOUTS[operation]
        if kind == "bias":
            layout = layout._replace(transposed=False, plus_one=False)
        if layout.ones or (operation == "bare" and kind == "bias"):
            return Place((), layout)
        end = "" if operation == "bare" else f".{kind}"
        heads = {"q_norm": config.attention.num_heads, "k_norm": config.attention.num_key_value_heads}
        sources = []
        for name in names.split(" & "):
            copies = range(heads[module]) if "{h}" in name else (0,)
            name, _, part = name.partition("[")
            if part:
                part, end = f"[{part}", "_bias" if kind == "bias" else ""
            sources += [f"{before}{name}{end}{part}".format(h=head, e=expert) for head in copies]
        return Place(tuple(sources), layout)


# Llama's, which most families share
LLAMA = Names(
    layer="model.layers.{i}.",
    embed_tokens="model.embed_tokens",
    norm="model.norm",
    lm_head="lm_head",
    input_norm="input_layernorm",
    qkv_proj="self_attn.q_proj & self_attn.k_proj & self_attn.v_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    o_proj="self_attn.o_proj",
    mlp_norm="post_attention_layernorm",
    gate_up_proj="mlp.gate_proj & mlp.up_proj",
    up_proj="mlp.up_proj",
    down_proj="mlp.down_proj",
)
