"""The memory sum: what it is made of, and that it is near what a step takes."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
from support.small_models import make_model

from firp.calib.training.memory import memory_needed
from firp.calib.training.options import TrainOptions
from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.weight_table import weight_shapes

OPTIONS = TrainOptions(minutes=None, steps=2, batch=4, anchors=100, window=256)
GIB = 2**30


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(make_model(tmp_path / "model", "llama"))


def test_each_part_grows_with_what_it_depends_on(checkpoint):
    base = memory_needed(checkpoint, OPTIONS, 2)
    assert base["model"] == 4 * sum(map(math.prod, weight_shapes(checkpoint.config).values()))
    half = memory_needed(checkpoint, dataclasses.replace(OPTIONS, precision="bfloat16"), 2)
    assert half["model"] * 2 == base["model"]
    assert half["predictors"] == base["predictors"]
    fewer = memory_needed(checkpoint, dataclasses.replace(OPTIONS, batch=2, accumulate=2), 2)
    assert fewer["logits"] * 2 == base["logits"]
    assert fewer["model"] == base["model"]
    deeper = memory_needed(checkpoint, OPTIONS, 3)
    assert deeper["pseudo rows"] * 2 == base["pseudo rows"]


def test_seven_billion_parameters_train_on_a_card_of_24_gib(checkpoint):
    small = checkpoint.config
    config = dataclasses.replace(
        small,
        hidden_size=4096,
        mlp=dataclasses.replace(small.mlp, intermediate_size=11008),
        attention=dataclasses.replace(small.attention, num_heads=32, num_key_value_heads=32, head_dim=128),
        layers=small.layers[:1] * 32,
        vocab_size=32000,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    large = dataclasses.replace(checkpoint, config=config)
    options = TrainOptions(precision="bfloat16")
    assert sum(map(math.prod, weight_shapes(config).values())) == pytest.approx(6.74e9, rel=0.01)
    assert 16 * GIB < sum(memory_needed(large, options, 24).values()) < 22 * GIB


def test_the_sum_is_near_what_a_step_takes(tmp_path, pytestconfig):
    """Peak resident memory of two steps, in a process of its own; a sum that is far too small would
    promise what crashes.
    """
    demo = pytestconfig.rootpath / "tests" / "demo_model"
    changes = {"batch": 4, "anchors": 128}
    predicted = sum(
        memory_needed(open_checkpoint(demo), TrainOptions(minutes=None, steps=2, **changes), 6).values()
    )
    script = pytestconfig.rootpath / "benchmarks" / "memory.py"
    run = subprocess.run(
        [sys.executable, script, demo, json.dumps(changes)], capture_output=True, text=True, check=True
    )
    assert 0.6 < predicted / json.loads(run.stdout) < 1.7
