"""Trees of predictors, calibrated again without training: for a tuner that knows more kinds of trees
than the one that wrote their `calibration.json`.

    python tests/demo_model/recalibrate.py MODEL PREDICTORS --data STDLIB_FOLDER
    python tests/demo_model/recalibrate.py MODEL PREDICTORS --from-model PROMPTS.jsonl

The predictors and the path correction stay as they are. Texts are made as `firp calibrate` makes them;
all prompts are held out, so give none that the predictors were trained on.
"""

from pathlib import Path

import click
import torch
from safetensors.torch import load_file

from firp.calib.replay.evaluation import Evaluation
from firp.calib.replay.replay import rank, record
from firp.calib.replay.trees import as_calibration, candidates
from firp.calib.text.continuations import RuntimeWriter, write_text
from firp.calib.text.documents import load_documents, make_dataset
from firp.calib.text.tokens import encode_prompts, model_tokenizer
from firp.calib.training.frozen_model import FrozenModel
from firp.calib.training.heads import FirpPredictors
from firp.calib.training.options import TrainOptions
from firp.export.bundle.predictor_dir import open_predictors
from firp.export.sources.open import open_checkpoint
from firp.export.weights.torch_model import torch_model
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.chat.template import ChatTemplate
from firp.runtime.prompts import read_prompts
from firp.runtime.trees.path_correction import PathCorrection

PATH = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("model", type=PATH)
@click.argument("predictors", type=PATH)
@click.option("--data", type=PATH, multiple=True, help="Text files.")
@click.option("--from-model", type=PATH, help="Prompts that the model continues.")
@click.option("--tokens", default=4096, show_default=True, help="Of what it writes.")
def main(model, predictors, data, from_model, tokens):
    checkpoint = open_checkpoint(model)
    info = open_predictors(predictors, checkpoint).info
    k = info.num_predictors
    table = predictors / "path_correction.safetensors"
    correction = PathCorrection.load(table, checkpoint.config.vocab_size, k)
    frozen = FrozenModel(torch_model(checkpoint, torch.float32), checkpoint, info.prediction_layer)
    heads = FirpPredictors(k, info.hidden_size)
    weight = load_file(predictors / "predictors.safetensors")["predictors.weight"]
    heads.load_state_dict({"weight": weight})
    options = TrainOptions(num_predictors=k)
    window = min(options.window, checkpoint.config.max_position_embeddings)
    ends = checkpoint.eos_token_ids
    chat, tokenizer = ChatTemplate.from_files(checkpoint.companion), model_tokenizer(checkpoint)
    documents = load_documents(list(data), tokenizer, chat)
    write = RuntimeWriter(model)
    own = []
    if from_model:
        prompts = encode_prompts([prompt.content for prompt in read_prompts(from_model)], tokenizer, chat)
        own = write_text(write, prompts, window, tokens, options.seed, ends, lambda *_: None)
    # scales are not fitted anew, so that what is trained on does not matter
    dataset = make_dataset(documents, window, ends[0] if ends else None, (own, own))
    evaluation = Evaluation(write, dataset, options, ends, lambda *_: None)
    trees = {}
    for text, sequences in evaluation.sequences.items():
        drafted = rank(record(frozen, heads, sequences), correction, text == "greedy")
        trees[text] = candidates(drafted, k)
        print(f"{text}: {len(trees[text])} trees", flush=True)
    found = as_calibration(trees, checkpoint.name, options.precision)
    write_json(predictors / "calibration.json", to_json(found))


if __name__ == "__main__":
    main()
