"""Trees of the demo model's predictors, calibrated again without training: for a tuner that knows
more kinds of trees than the one that wrote `predictors/calibration.json`.

    python tests/demo_model/recalibrate.py --data STDLIB_FOLDER

The predictors and the path correction stay as they are. Texts are made as `firp calibrate` makes them.
"""

from pathlib import Path

import click
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from firp.calib.replay.evaluation import Evaluation
from firp.calib.replay.replay import rank, record
from firp.calib.replay.trees import as_candidates, candidates
from firp.calib.text.continuations import RuntimeWriter
from firp.calib.text.documents import ChatTemplate, load_documents, make_dataset
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.calib.training.options import TrainOptions
from firp.export.bundle.predictor_dir import open_predictors
from firp.export.sources.open import open_checkpoint
from firp.runtime.bundle.calibration import Calibration
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.trees.path_correction import PathCorrection

HERE = Path(__file__).parent
FOLDER = HERE / "predictors"


@click.command()
@click.option("--data", type=click.Path(path_type=Path), multiple=True, required=True)
def main(data):
    checkpoint = open_checkpoint(HERE)
    info = open_predictors(FOLDER, checkpoint).info
    vocab_size, k = checkpoint.config.vocab_size, info.num_predictors
    correction = PathCorrection.load(FOLDER / "path_correction.safetensors", vocab_size, k)
    model = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32, local_files_only=True)
    window = checkpoint.config.max_position_embeddings
    frozen = FrozenModel(model, checkpoint, info.prediction_layer)
    heads = FirpPredictors(k, info.hidden_size)
    heads.load_state_dict({"weight": load_file(FOLDER / "predictors.safetensors")["predictors.weight"]})
    options = TrainOptions(num_predictors=k)
    documents = load_documents(list(data), checkpoint.tokenizer(), ChatTemplate(checkpoint))
    end = checkpoint.eos_token_ids[0] if checkpoint.eos_token_ids else None
    dataset = make_dataset(documents, min(options.window, window), end, ([], []))
    write = RuntimeWriter(HERE)
    evaluation = Evaluation(write, dataset, options, checkpoint.eos_token_ids, lambda *_: None)
    trees = {}
    for text, sequences in evaluation.sequences.items():
        greedy = text == "greedy"
        drafted = rank(record(frozen, heads, sequences), correction, greedy)
        trees[text] = candidates(drafted, k)
        print(f"{text}: {len(trees[text])} trees", flush=True)
    write_json(FOLDER / "calibration.json", to_json(Calibration(tuple(as_candidates(trees)))))


if __name__ == "__main__":
    main()
