"""Checkpoints with random weights in the shapes of real models, and predictors for them: what they
say is noise, what they cost is not.

Each is made by a process of its own, so that its memory is given back.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from firp.export.bundle.predictor_dir import FORMAT_VERSION, Accuracy, PredictorInfo, write_predictors
from firp.export.sources.open import open_checkpoint
from firp.export.weights.fingerprint import fingerprint

SHAPES = {  # of Llamas, as their configuration names them
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
    "0.5b": {
        "vocab_size": 32000,
        "hidden_size": 1536,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "1b": {  # TinyLlama's, with a longer context
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
    },
    "7b": {  # Llama 2's, with a longer context
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 8192,
    },
}
_MAKE = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
torch.set_default_dtype(getattr(torch, sys.argv[3]))
torch.manual_seed(0)
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(sys.argv[2])))
print(sum(p.numel() for p in model.parameters()))
model.save_pretrained(sys.argv[1], max_shard_size="1GB")
"""


def make_checkpoint(folder: Path, shape: Mapping[str, Any], dtype: str) -> int:
    """Write a checkpoint; returns its number of parameters. shape: of a Llama, unless it has a
    "model_type".
    """
    config = {"model_type": "llama", "tie_word_embeddings": False, **shape}
    command = [sys.executable, "-c", _MAKE, str(folder), json.dumps(config), dtype]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def make_predictors(folder: Path, model: Path, num_predictors: int = 3) -> Path:
    """Predictors that change nothing: each pseudo row starts as its source."""
    checkpoint = open_checkpoint(model)
    config = checkpoint.config
    layer = checkpoint.prediction_layer(None)
    info = PredictorInfo(
        format_version=FORMAT_VERSION,
        method="firp",
        num_predictors=num_predictors,
        prediction_layer=layer,
        hidden_size=config.hidden_size,
        correction_rank=0,
        model_name=model.name,
        model_fingerprint=fingerprint(checkpoint),
        training={},
        held_out=Accuracy((), (), (), (), 0),
    )
    folder.mkdir()
    write_predictors(
        folder, info, np.tile(np.eye(config.hidden_size, dtype=np.float32), (num_predictors, 1, 1))
    )
    return folder
