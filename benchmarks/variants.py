"""What else the predictors could be: variants trained alike, with top-1 accuracy and tokens per
step (rows 16, M = T, corrected).

    python benchmarks/variants.py [LAYER] [--steps 200] [--only NAME]...

A variant that pays becomes the method; the others are in results/variants.md with their
numbers. `bonus` and `final` know the token that the verified row picked, or its last hidden state:
only a draft pass after acceptance could use them.
"""

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import click
import torch
from calibration import MODEL, standard_library
from table import Result
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from firp.calib.replay.accuracy import accuracy
from firp.calib.replay.evaluation import Evaluation
from firp.calib.replay.replay import rank, record, replay
from firp.calib.text.continuations import RuntimeWriter
from firp.calib.text.documents import ChatTemplate, load_documents, make_dataset
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors, Heads, at
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore, StoredRows
from firp.calib.training.trainer import Trainer
from firp.export.sources.open import open_checkpoint
from firp.runtime.console.options import Repeating
from firp.runtime.trees.tree_config import TreeConfig

LAYERS = (5, 6, 7)  # of the offsets, in the variant with a layer for each


class TracedRows(NamedTuple):
    """Real rows, and what only these variants look at."""

    hidden: Tensor
    final: Tensor
    keys: dict
    input_ids: Tensor  # [B, S]
    states: list[Tensor]  # [B, S, D] as they enter each upper layer, and leave the last


class TracedModel(FrozenModel):
    def real_rows(self, input_ids: Tensor) -> TracedRows:
        states: list[Tensor] = []
        return TracedRows(*super().real_rows(input_ids, states), input_ids, states)


class TracedStore(RowStore):
    """Computes rows whenever they are asked for."""

    def rows(self, chosen: Tensor) -> StoredRows:
        return self._compute(self.windows[chosen])


class TwoInputs(FirpPredictors):
    """W_j h_i + U_j g_i, U from zero; a subclass says what g is."""

    def __init__(self, num_predictors: int, hidden_size: int):
        super().__init__(num_predictors, hidden_size)
        self.second = nn.Parameter(torch.zeros(num_predictors, hidden_size, hidden_size))

    @abstractmethod
    def other(self, frozen: FrozenModel, real: TracedRows, anchors: Tensor) -> Tensor:
        """[B, A, D]."""

    def final(self, frozen: FrozenModel, real: TracedRows, anchors: Tensor) -> Tensor:
        other = torch.einsum("kij,baj->baki", self.second, self.other(frozen, real, anchors))
        pseudo = self.map(at(real.hidden, anchors)) + other
        return frozen.pseudo_rows(pseudo, real, anchors)


class TwoPositions(TwoInputs):
    def other(self, frozen, real, anchors):
        return at(real.hidden, (anchors - 1).clamp_min(0))


class Embedding(TwoInputs):
    def other(self, frozen, real, anchors):
        return frozen.embedded(at(real.input_ids, anchors))


class Bonus(TwoInputs):
    def other(self, frozen, real, anchors):
        return frozen.embedded(at(real.input_ids, (anchors + 1).clamp_max(real.input_ids.shape[1] - 1)))


class Final(TwoInputs):
    def other(self, frozen, real, anchors):
        return at(real.final, anchors)


class LowRank(Heads):
    """Maps I + A_j B_j of rank D/4: half the parameters."""

    def __init__(self, num_predictors: int, hidden_size: int):
        super().__init__(num_predictors, hidden_size)
        inner = hidden_size // 4
        self.weight.requires_grad_(False)
        self.down = nn.Parameter(torch.randn(num_predictors, inner, hidden_size) * hidden_size**-0.5)
        self.up = nn.Parameter(torch.zeros(num_predictors, hidden_size, inner))

    def final(self, frozen: FrozenModel, real: TracedRows, anchors: Tensor) -> Tensor:
        hidden = at(real.hidden, anchors)
        pseudo = hidden[..., None, :] + torch.einsum("kij,kjl,bal->baki", self.up, self.down, hidden)
        return frozen.pseudo_rows(pseudo, real, anchors)


class Blind(FirpPredictors):
    """Pseudo rows that do not see the earlier ones of their source."""

    layers: tuple[int, ...] | None = None  # of the offsets; None: the prediction layer

    def final(self, frozen: FrozenModel, real: TracedRows, anchors: Tensor) -> Tensor:
        out = []
        for offset, weight in enumerate(self.weight):
            start = self.layers[offset] if self.layers else frozen.prediction_layer
            part = FrozenModel(frozen.model, frozen.checkpoint, start)
            states = real.states[start - frozen.prediction_layer :]
            pseudo = at(states[0], anchors) @ weight.T
            # K = 1, and as far ahead as this offset is: the position is the anchor's plus offset +
            # 1
            out.append(_one_offset(part, pseudo, real, anchors, offset))
        return torch.stack(out, 2)


class LayerPerOffset(Blind):
    layers = LAYERS


def _one_offset(
    frozen: FrozenModel, pseudo: Tensor, real: TracedRows, anchors: Tensor, offset: int
) -> Tensor:
    """Final states [B, A, D] of one pseudo row for each anchor."""
    length = real.hidden.shape[1]
    positions = anchors + offset + 1
    own = torch.eye(anchors.shape[1], dtype=torch.bool).expand(len(anchors), -1, -1)
    visible = torch.cat([torch.arange(length)[None, None] <= anchors[..., None], own], 2)
    keys = torch.cat([torch.arange(length).expand(len(anchors), -1), positions], 1)
    upper = range(frozen.prediction_layer, frozen.config.num_hidden_layers)
    *_, (_, rows, _) = frozen.layers(pseudo, upper, positions, visible, keys, real.keys)
    return frozen.normed(rows)


VARIANTS = {
    "firp": (FirpPredictors, 3),
    "K=5": (FirpPredictors, 5),
    "two positions": (TwoPositions, 3),
    "layers 0 and t": (Embedding, 3),
    "low rank": (LowRank, 3),
    "blind": (Blind, 3),
    "layer per offset": (LayerPerOffset, 3),
    "bonus": (Bonus, 3),
    "final": (Final, 3),
}


@click.command(cls=Repeating)
@click.argument("layer", type=int, default=6)
@click.option("--steps", default=200, show_default=True)
@click.option("--only", type=click.Choice(list(VARIANTS)), multiple=True)
def main(layer, steps, only):
    options = TrainOptions(minutes=None, steps=steps)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    checkpoint = open_checkpoint(MODEL)
    documents = load_documents(list(standard_library()), checkpoint.tokenizer(), ChatTemplate(checkpoint))
    dataset = make_dataset(documents, options.window, 0)
    evaluation = Evaluation(RuntimeWriter(MODEL), dataset, options, (0,), lambda *_: None)
    result = Result("variants", "What else the predictors could be")
    table = result.table(
        f"{steps} steps, layer {layer}; tokens per step at 16 rows",
        *("variant", "top-1", "s/step", *evaluation.sequences),
    )
    for name, (heads_class, k) in VARIANTS.items():
        if only and name not in only:
            continue
        split = min(LAYERS) if name == "layer per offset" else layer
        frozen = TracedModel(model, split, None)
        torch.manual_seed(0)
        heads = heads_class(k, 256)
        tables = PathTables(model.get_input_embeddings().weight, k, options.correction_rank)
        rows = TracedStore(frozen, dataset.training, Path.cwd())
        trainer = Trainer(frozen, heads, tables, rows, replace(options, num_predictors=k))
        trainer.run()
        top1 = " ".join(f"{share:.3f}" for share in accuracy(frozen, heads, dataset.held_out).top1)
        correction = evaluation.correction(trainer)
        rates = []
        for text, sequences in evaluation.sequences.items():
            drafted = rank(record(frozen, heads, sequences), correction, text == "greedy")
            rates.append(f"{replay(drafted, TreeConfig('dynamic', 16, None)).tokens_per_step:.3f}")
        table.add(name, top1, f"{trainer.seconds / trainer.step:.2f}", *rates)
    result.write()


if __name__ == "__main__":
    main()
