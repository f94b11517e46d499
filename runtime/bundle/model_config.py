"""The blueprint of a decoder-only model: everything its graphs depend on, and nothing of the
weights.

In: numbers from a checkpoint's own description. Out: `ModelConfig`, in which architectures differ
as data.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from firp.runtime.errors import FirpError

MOST_LAYERS = 9_999
XIELU = "xielu"  # with four numbers of its own in each layer
QK_NORMS = ("head", "heads", "all")
SCORES = ("softmax", "sigmoid", "sparsemixer")
NORMS = ("rms", "layer")
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", XIELU)
BRANCH_NORMS = ("input_norm", "attention_out_norm", "mlp_norm", "mlp_out_norm")
# masks of a graph: of layers that see all, or all the same window; and of the windowed ones among others
MASK, WINDOW_MASK = "attention_bias", "attention_bias_window"


@dataclass(frozen=True)
class QkNormConfig:
    """A norm of queries and keys."""

    over: str  # "head": one weight for all heads; "heads": a weight of each; "all": over all heads at once
    kind: str  # one of NORMS
    after_rope: bool


@dataclass(frozen=True)
class QueryGrowth:
    """Queries at position p are multiplied by 1 + rate * log(1 + floor(p / length))."""

    rate: float
    length: int  # tokens


@dataclass(frozen=True)
class LatentConfig:
    """Attention to latent rows (DeepSeek-V2, 2024): one key of all heads, a compressed part and one that
    is turned. Queries are multiplied into its space, and values are made of what was attended to.
    """

    rank: int  # features of the compressed part, which is normed
    query_rank: int | None  # features that queries are compressed to; None: they are not
    key_size: int  # features of a head's query before it meets the compressed part
    rope_size: int  # features that are turned
    value_size: int  # features of a head's value
    epsilon: float  # of the norms of what is compressed


@dataclass(frozen=True)
class AttentionConfig:
    """Sizes and variants of attention, the same in all layers."""

    num_heads: int  # H, of queries
    num_key_value_heads: int  # Hkv
    head_dim: int  # Dh, of what is cached
    scale: float  # of queries
    growth: QueryGrowth | None  # of queries, with their position
    qk_norm: QkNormConfig | None
    clip: float | None  # queries, keys and values are cut to +- this
    softcap: float | None  # scores s become softcap * tanh(s / softcap)
    sinks: bool = False  # a head has a learned score of a key that holds nothing
    latent: LatentConfig | None = None
    gated: bool = False  # what is attended to is weighed by a sigmoid of its own for each feature

    @property
    def cached(self) -> tuple[str, ...]:
        """What a layer caches, [Hkv, Dh] of each token: values of their own, or none beside the keys."""
        return ("latent",) if self.latent else ("key", "value")

    @property
    def rope_size(self) -> int:
        """Features of a head that rope may turn."""
        return self.latent.rope_size if self.latent else self.head_dim

    @property
    def query_size(self) -> int:
        """Features of all query heads."""
        return self.num_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Features of all key heads, which are those of all value heads."""
        return self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class ClampedConfig:
    """Gates are cut above at the limit, and silu of them is g * sigmoid(slope * g); what they weigh is
    cut to +- the limit, and 1 more.
    """

    limit: float
    slope: float


@dataclass(frozen=True)
class MlpConfig:
    """down(act(gate(x)) * up(x)), or down(act(up(x)))."""

    intermediate_size: int
    gated: bool
    activation: str  # one of ACTIVATIONS
    clamped: ClampedConfig | None = None  # of gated MLPs with silu


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of MLPs in the place of one. A router scores them; the best of each row run, weighed by
    their scores.
    """

    count: int
    per_token: int
    intermediate_size: int
    score: str  # one of SCORES, of the router's logits
    normalized: bool  # weights of those that run add up to 1
    scale: float  # of weights
    selection_bias: bool  # a number for each expert, added to scores where the best are chosen
    groups: int  # of experts, the best of which are chosen from
    groups_kept: int
    shared_size: int | None  # of an MLP that every row runs besides
    shared_gate: bool  # whose output is weighed by a sigmoid of its own
    groups_rated_by: int = 2  # best scores of a group, added up
    jitter: float | None = None  # of a sparsemixer, which weighs an expert against those this close to it


@dataclass(frozen=True)
class RopeTable:
    """Row p is turned by p times each frequency; cos and sin are tables in model.safetensors."""

    frequencies: tuple[float, ...]  # radians a position, for two features each; the rest is not turned
    scale: float  # of cos and sin


@dataclass(frozen=True)
class PositionsConfig:
    """How rows know their positions."""

    ropes: dict[str, RopeTable]  # which a layer takes by name
    interleaved: bool  # pairs are neighbours, not a feature and that of the other half
    learned: bool  # a vector for each position, added to the embedding
    alibi: tuple[float, ...] | None  # [H]: what a head adds to a score for each position of its key
    # as Falcon adds it: positions, slopes and their products are rounded to bfloat16, then scaled as scores
    alibi_rounded: bool = False


@dataclass(frozen=True)
class NormConfig:
    """The norms of the residual stream."""

    kind: str  # one of NORMS
    epsilon: float


@dataclass(frozen=True)
class BlockConfig:
    """How attention and MLP of a layer are joined to the residual stream."""

    norms: tuple[str, ...]  # of BRANCH_NORMS; a parallel MLP without its own reads what attention reads
    parallel: bool  # both read the same stream
    scale: float  # of what they add to it


@dataclass(frozen=True)
class EmbeddingConfig:
    """What token embeddings become before the first layer."""

    scale: float
    norm: str | None  # one of NORMS


@dataclass(frozen=True)
class HeadConfig:
    """What becomes of logits."""

    scale: float
    softcap: float | None


@dataclass(frozen=True)
class LayerConfig:
    """Properties in which one layer may differ from the others."""

    window: int | None  # tokens a row sees, itself included; None sees all
    rope: str | None  # a name of PositionsConfig.ropes; None turns nothing
    sparse: bool  # whether experts stand in the place of its MLP


@dataclass(frozen=True)
class ModelConfig:
    """Blueprint of a model: everything that its graphs depend on."""

    architecture: str  # transformers' name of it
    vocab_size: int  # V
    hidden_size: int  # D
    max_position_embeddings: int  # context length in tokens
    tie_word_embeddings: bool
    attention: AttentionConfig
    mlp: MlpConfig
    experts: ExpertsConfig | None
    positions: PositionsConfig
    norm: NormConfig
    block: BlockConfig
    embedding: EmbeddingConfig
    head: HeadConfig
    layers: tuple[LayerConfig, ...]  # [N]
    biases: tuple[str, ...]  # modules that have a bias, a layer's without its number: as the tensors say

    @property
    def slabs(self) -> int:
        """Cached tensors of all layers."""
        return len(self.attention.cached) * self.num_hidden_layers

    @property
    def num_hidden_layers(self) -> int:
        """N: the number of layers."""
        return len(self.layers)

    @property
    def window(self) -> int | None:
        """Tokens that a row sees in layers with a window; None where no layer has one."""
        return next((layer.window for layer in self.layers if layer.window is not None), None)

    def masks(self, layers: Iterable[int]) -> dict[str, int | None]:
        """The masks that these layers read: their names, and the window of each."""
        return {self.mask(index): self.layers[index].window for index in layers}

    def reads_positions(self, layers: range) -> bool:
        """Whether a graph that runs these layers reads the positions of its rows."""
        positions = self.positions
        turned = any(self.layers[index].rope for index in layers) or positions.alibi is not None
        return turned or self.attention.growth is not None or (positions.learned and 0 in layers)

    def mask(self, layer: int) -> str:
        """The name of the mask that a layer reads."""
        mixed = len({each.window for each in self.layers}) > 1
        return WINDOW_MASK if mixed and self.layers[layer].window is not None else MASK

    def validate(self, where: str) -> None:
        """Raises FirpError for what is no model, or is none that the graphs can express."""
        for wrong, got, expected in self._wrong():
            if wrong:
                raise FirpError(f"bad model in {where}", got=got, expected=expected)

    def _wrong(self) -> Iterator[tuple[bool, str, str]]:
        """Conditions that no model fulfils, each with what was found and what should be."""
        attention, block, count = self.attention, self.block, len(self.layers)
        for name, value in _integers(self, ""):
            yield not 1 <= value < 2**31, f"{name} {value}", "a size of a real model"
        yield not 2 <= count <= MOST_LAYERS, f"{count} layers", f"2 to {MOST_LAYERS}"
        windows = {layer.window for layer in self.layers} - {None}
        seen = self.positions.alibi is not None and bool(windows)
        yield seen, "alibi of layers with a window", "one of them"
        yield len(windows) > 1, f"layers with windows {sorted(windows)}", "one window, for some layers or all"
        heads, pairs = attention.num_heads, attention.num_key_value_heads
        yield heads % pairs != 0, f"{heads} query, {pairs} key/value heads", "heads that divide"
        for name, value, known in self._words():
            yield value is not None and value not in known, f"{name} {value}", " or ".join(known)
        for name, value in _numbers(self, ""):
            yield not 0 < value < math.inf, f"{name} {value}", "positive and finite"
        silu = self.mlp.gated and self.mlp.activation == "silu"
        yield self.mlp.clamped is not None and not silu, "a clamped MLP of another kind", "one gated by silu"
        both = attention.sinks and attention.softcap is not None
        yield both, "attention sinks and capped scores", "one of them"
        yield self.norm.epsilon >= 1, f"norm.epsilon {self.norm.epsilon}", "between 0 and 1"
        yield len(set(block.norms)) < len(block.norms), f"block.norms {block.norms}", "each once"
        yield from self._wrong_latent()
        ropes, alibi = self.positions.ropes, self.positions.alibi
        size = attention.rope_size
        for name, table in ropes.items():
            turned = len(table.frequencies)
            bad = not 1 <= turned <= size // 2
            yield bad, f"{turned} rope frequencies for {size} features", "one for two features"
            good = 0 < table.scale < math.inf and all(0 < abs(turn) < math.inf for turn in table.frequencies)
            yield not good, f"rope {name}", "finite frequencies and a positive scale"
        sparse = any(layer.sparse for layer in self.layers)
        yield (
            sparse != (self.experts is not None),
            f"sparse layers: {sparse}",
            "some, where there are experts",
        )
        if self.experts:
            count, chosen = self.experts.count, self.experts.per_token
            yield chosen > count, f"{chosen} of {count} experts", "no more than there are"
            groups, kept = self.experts.groups, self.experts.groups_kept
            whole = count % groups == 0 and kept <= groups and chosen <= kept * (count // groups)
            bad = not whole or (groups > 1 and count // groups < self.experts.groups_rated_by)
            yield bad, f"{kept} of {groups} groups of {count} experts", "groups that divide"
            mixer = self.experts.score == "sparsemixer"
            bad = mixer != (self.experts.jitter is not None) or (mixer and chosen != 2)
            yield bad, f"{self.experts.score} of {chosen} experts", "a sparsemixer of two, with its jitter"
            gate = self.experts.shared_gate and not self.experts.shared_size
            yield gate, "a gate of no shared expert", "one that there is"
        named = {layer.rope for layer in self.layers} - {None}
        yield named != set(ropes), f"ropes {sorted(named)} of layers", f"those there are, {sorted(ropes)}"
        yield alibi is not None and len(alibi) != heads, f"alibi of {len(alibi or ())} heads", f"of {heads}"

    def _wrong_latent(self) -> Iterator[tuple[bool, str, str]]:
        attention, latent = self.attention, self.attention.latent
        if latent:
            size, heads = attention.head_dim, attention.num_key_value_heads
            yield size != latent.rank + latent.rope_size, f"head_dim {size}", "latent.rank and rope_size"
            yield heads != 1, f"{heads} key/value heads", "one, that is latent"
            other = (attention.qk_norm, attention.clip, attention.softcap, self.positions.alibi)
            plain = other == (None,) * len(other) and not (attention.sinks or attention.gated)
            yield not plain, "latent attention with what is not latent", "none of it"
            yield latent.epsilon >= 1, f"latent.epsilon {latent.epsilon}", "between 0 and 1"

    def _words(self) -> Iterator[tuple[str, str | None, tuple[str, ...]]]:
        """Names in the blueprint, and those that are known."""
        yield "norm.kind", self.norm.kind, NORMS
        yield "embedding.norm", self.embedding.norm, NORMS
        yield "mlp.activation", self.mlp.activation, ACTIVATIONS
        yield from (("block.norms", norm, BRANCH_NORMS) for norm in self.block.norms)
        if self.experts:
            yield "experts.score", self.experts.score, SCORES
        if self.attention.qk_norm:
            yield "attention.qk_norm.over", self.attention.qk_norm.over, QK_NORMS
            yield "attention.qk_norm.kind", self.attention.qk_norm.kind, NORMS


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every value of nested dataclasses and tuples, with the path to it."""
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{name}[{index}]")
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _leaves(getattr(value, field.name), f"{name}.{field.name}".lstrip("."))
    else:
        yield name, value


def _integers(value: Any, name: str) -> list[tuple[str, int]]:
    return [(path, leaf) for path, leaf in _leaves(value, name) if type(leaf) is int]


def _numbers(value: Any, name: str) -> list[tuple[str, float]]:
    return [(path, leaf) for path, leaf in _leaves(value, name) if type(leaf) is float]
