"""What the heads and the tables are before training, and what the tables learn."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_models import make_model
from transformers import AutoModelForCausalLM

from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import EarlyExit, FirpPredictors, Medusa, at
from firp.calib.training.options import TrainOptions
from firp.calib.training.path_tables import PathTables
from firp.calib.training.row_store import RowStore
from firp.calib.training.trainer import Trainer, sample_anchors, targets
from firp.export.sources.open import open_checkpoint


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("training") / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return FrozenModel(model, open_checkpoint(folder), 2)


@torch.no_grad()
def test_untrained_heads_say_what_their_layer_says(frozen):
    ids = torch.randint(2, 190, (2, 30), generator=torch.Generator().manual_seed(0))
    real, anchors = frozen.real_rows(ids), torch.tensor([[3, 9], [0, 29]])
    final = frozen.logits(at(real.final, anchors))
    medusa = Medusa(3, 64)(frozen, real, anchors)
    early = EarlyExit(3, 64)(frozen, real, anchors)
    firp = FirpPredictors(3, 64)(frozen, real, anchors)
    assert {scores.shape for scores in (medusa, early, firp)} == {(2, 2, 3, 193)}
    for offset in range(3):
        torch.testing.assert_close(medusa[:, :, offset], final)
        torch.testing.assert_close(
            early[:, :, offset], frozen.logits(frozen.normed(at(real.hidden, anchors)))
        )
    whole = frozen.model(ids).logits
    torch.testing.assert_close(frozen.logits(real.final), whole, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(firp[:, :, 0], firp[:, :, 1])  # the position differs, and what it sees


def test_anchors_have_targets_and_do_not_repeat():
    anchors = sample_anchors(torch.zeros(4, 20), 100, 3, torch.Generator().manual_seed(0))
    assert anchors.tolist() == [list(range(17))] * 4
    few = sample_anchors(torch.zeros(4, 20), 5, 3, torch.Generator().manual_seed(0))
    assert few.shape == (4, 5)
    assert all(len(set(row)) == 5 for row in few.tolist())
    assert targets(few, 3).max() < 20
    assert (targets(few, 3)[..., 0] == few + 1).all()


def test_tables_learn_which_token_follows_which():
    """Text of a Markov chain: the scores become log p(x | u) / p(x), up to a constant for each u."""
    generator, size = torch.Generator().manual_seed(0), 30
    chain = torch.rand(size, size, generator=generator) ** 4
    chain /= chain.sum(1, keepdim=True)
    tokens = [0]
    for _ in range(16000):
        tokens.append(int(torch.multinomial(chain[tokens[-1]], 1, generator=generator)))
    windows = torch.tensor(tokens[:16000]).reshape(-1, 160)
    torch.manual_seed(0)
    tables = PathTables(torch.randn(size, 16), 3, 24)
    optimizer = torch.optim.AdamW(tables.parameters(), lr=1e-2, weight_decay=0.0)
    for step in range(600):
        optimizer.param_groups[0]["lr"] = 2e-2 * (1 - step / 600)
        chosen = torch.randint(len(windows), (4,), generator=generator)
        optimizer.zero_grad()
        tables.pair_loss(windows[chosen]).backward()
        optimizer.step()
    ids = torch.arange(size)
    with torch.no_grad():
        scores = tables.previous(ids) @ tables.following(ids).T
    frequency = torch.bincount(windows.flatten(), minlength=size) / windows.numel()
    pmi = (chain / frequency).clamp_min(1e-3).log()
    common = chain > 0.01  # what the text has shown often enough
    center = lambda x: x - (x * common).sum(1, keepdim=True) / common.sum(1, keepdim=True)  # noqa: E731
    assert np.corrcoef(center(scores)[common], center(pmi)[common])[0, 1] > 0.9


def test_training_lowers_every_loss_and_leaves_the_model_alone(frozen, tmp_path):
    before = {name: parameter.clone() for name, parameter in frozen.model.named_parameters()}
    windows = np.random.default_rng(0).integers(2, 12, (20, 40))  # few tokens, much to learn
    options = TrainOptions(minutes=None, steps=40, window=40, batch=2, anchors=16, correction_rank=8)
    torch.manual_seed(0)
    heads, tables = FirpPredictors(3, 64), PathTables(frozen.model.get_input_embeddings().weight, 3, 8)
    trainer = Trainer(frozen, heads, tables, RowStore(frozen, windows, tmp_path), options)
    trainer.run()
    (_, first), (last_step, last) = trainer.curve[0], trainer.curve[-1]
    assert last_step == 40
    assert all(b < a for a, b in zip(first, last, strict=True))
    assert all(torch.equal(before[name], parameter) for name, parameter in frozen.model.named_parameters())
    assert tables.free_following.abs().max() > 0


def test_the_correction_is_trained_without_touching_the_heads(frozen, tmp_path):
    """The same seed, with tables of another rank: the predictors are the same, bit for bit."""
    windows = np.random.default_rng(0).integers(2, 190, (12, 40))
    weights = []
    for rank in (4, 16):
        options = TrainOptions(minutes=None, steps=5, window=40, batch=2, anchors=16, correction_rank=rank)
        torch.manual_seed(0)
        heads = FirpPredictors(3, 64)
        store = RowStore(frozen, windows, tmp_path)
        Trainer(frozen, heads, PathTables(torch.randn(193, 64), 3, rank), store, options).run()
        weights.append(heads.weight.detach().clone())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0][0], torch.eye(64))


def test_an_untrained_correction_changes_no_guess():
    tables = PathTables(torch.randn(40, 16), 2, 4)
    student = F.log_softmax(torch.randn(1, 3, 2, 40), -1)
    losses = tables.guess_losses(student, student, torch.zeros(1, 3, 2, dtype=torch.int64))
    # all 40 are candidates, the correction starts at zero
    entropy = -(student.exp() * student).sum(-1).mean((0, 1))
    torch.testing.assert_close(losses.detach(), entropy, atol=1e-4, rtol=1e-4)
