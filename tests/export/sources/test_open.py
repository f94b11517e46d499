"""Contexts beyond the one that the short factors of a "longrope" model are for: the long factors, for
texts of every length, as Hugging Face takes them for long ones.
"""

import json

import pytest
import torch
from click.testing import CliRunner
from support.family_models import save_family

from firp.calib.commands.export import export
from firp.export.sources.open import for_context, open_checkpoint, takes_long_factors
from firp.export.verify.checks import verify
from firp.export.weights.torch_model import torch_model
from firp.runtime.errors import CheckpointError

_ROPE = {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 4.0, 9.0]}
_LENGTHS = {"max_position_embeddings": 256, "original_max_position_embeddings": 32}


@pytest.fixture
def model(tmp_path):
    save_family(tmp_path / "model", "phi3")
    file = tmp_path / "model" / "config.json"
    given = json.loads(file.read_text())
    given.pop("rope_parameters")
    file.write_text(json.dumps(given | _LENGTHS | {"rope_scaling": _ROPE, "rope_theta": 1e4}))
    return tmp_path / "model"


def test_long_texts_are_hugging_faces_own(model):
    checkpoint = open_checkpoint(model)
    assert checkpoint.config.max_position_embeddings == 32
    longer = for_context(checkpoint, 200)
    assert longer.config.max_position_embeddings == 200
    ids = torch.arange(100)[None] % 61
    theirs, ours = torch_model(checkpoint, torch.float32), torch_model(longer, torch.float32)
    assert torch.equal(theirs(ids).logits, ours(ids).logits)
    assert not torch.allclose(theirs(ids[:, :30]).logits, ours(ids[:, :30]).logits, atol=1e-3)


def test_a_bundle_of_long_texts_is_verified_and_says_so(model, tmp_path):
    arguments = [str(model), "-o", str(tmp_path / "bundle"), "--max-context"]
    found = CliRunner().invoke(export, [*arguments, "200"])
    assert found.exit_code == 0, found.output
    assert "those of at most 32 tokens differ from Hugging Face" in " ".join(found.output.split())
    assert verify(tmp_path / "bundle", model).passed


def test_a_context_beyond_the_long_factors_is_refused(model):
    with pytest.raises(CheckpointError, match="context out of range.*got 257, expected 16 to 256"):
        for_context(open_checkpoint(model), 257)


def test_a_context_within_the_short_factors_takes_those(model):
    checkpoint = open_checkpoint(model)
    assert not takes_long_factors(checkpoint, 32)
    assert for_context(checkpoint, 20).config.positions == checkpoint.config.positions
