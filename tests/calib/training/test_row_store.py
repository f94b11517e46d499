"""Rows that are kept are those that the model computes, wherever they lie."""

import shutil

import numpy as np
import pytest
import torch
from support.small_models import make_model
from transformers import AutoModelForCausalLM

from firp.calib.training import row_store
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.row_store import RowStore
from firp.export.sources.open import open_checkpoint

WINDOWS = np.random.default_rng(0).integers(2, 190, (3, 20))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    folder = make_model(tmp_path_factory.mktemp("rows") / "model", "llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return FrozenModel(model, open_checkpoint(folder), 2)


def equal(one, other):
    return all(torch.equal(*pair) for pair in zip(one.tensors(), other.tensors(), strict=True))


def test_rows_are_those_of_the_model(frozen, tmp_path):
    rows = RowStore(frozen, WINDOWS, tmp_path).rows(torch.tensor([2, 0]))
    real = frozen.real_rows(torch.from_numpy(WINDOWS[[2, 0]]))
    torch.testing.assert_close(rows.real.hidden, real.hidden)
    torch.testing.assert_close(rows.real.final, real.final)
    assert rows.real.keys.keys() == real.keys.keys() == {2, 3}
    for layer, pair in real.keys.items():
        for kept, computed in zip(rows.real.keys[layer], pair, strict=True):
            torch.testing.assert_close(kept, computed)
    logits = frozen.logits(real.final)
    assert torch.equal(rows.top_ids[..., 0], logits.argmax(-1))
    torch.testing.assert_close(rows.log_total, logits.logsumexp(-1))


def test_a_window_is_computed_once(frozen, tmp_path, monkeypatch):
    store = RowStore(frozen, WINDOWS, tmp_path)
    first = store.rows(torch.tensor([1, 2]))
    monkeypatch.setattr(frozen, "real_rows", lambda ids: pytest.fail("computed again"))
    assert equal(store.rows(torch.tensor([1, 2])), first)


@pytest.mark.parametrize("room", [0, 1])
def test_windows_without_room_on_the_disk_are_computed_each_time(room, frozen, tmp_path, monkeypatch):
    expected = RowStore(frozen, WINDOWS, tmp_path).rows(torch.tensor([0, 1, 2]))
    window_bytes = sum(tensor.nbytes for tensor in expected.tensors()) // 3
    usage = shutil.disk_usage(tmp_path)
    free = int((room + 0.5) * window_bytes / row_store.DISK_SHARE)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free))
    store = RowStore(frozen, WINDOWS, tmp_path)
    for _ in range(2):
        assert equal(store.rows(torch.tensor([0, 1, 2])), expected)


def test_the_file_has_no_name(frozen, tmp_path):
    store = RowStore(frozen, WINDOWS, tmp_path)
    store.rows(torch.tensor([0]))
    assert list(tmp_path.iterdir()) == []
