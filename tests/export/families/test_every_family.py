"""Every family, one tiny random model each: its graphs against Hugging Face's module in float64, plain
decoding against `generate`, drafted against plain.
"""

import onnx
import pytest
import torch
from support.family_models import FALCON_RW, save_family
from support.small_models import make_predictors

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference, model_rows
from firp.export.verify.rounding import distance, judge
from firp.export.verify.rows import SessionRows, StageRows, random_sample
from firp.export.verify.tokens import plain_against_generate
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig
from firp.runtime.tuning.parity import compare_trees

PROMPT = [7, 40, 3, 22, 51, 9, 30, 14, 2, 44, 60, 18]


def export(folder, model_type, **changes):
    """A tiny model, and its bundle with random predictors."""
    model = save_family(folder / "model", model_type, **changes)
    predictors = make_predictors(folder / "predictors", model, 2, 2)
    export_bundle(ExportOptions(model, folder / "bundle", predictors))
    return model, folder / "bundle"


def checks_of(engine, reference):
    """The values of one prompt and a random tree, and the tokens after the prompt."""
    sample = random_sample(PROMPT, engine.model.vocab_size, engine.model.max_position_embeddings)
    layer = engine.manifest.prediction_layer
    (truth,), (yardstick,) = (
        model_rows(reference, layer, [sample], dtype) for dtype in (torch.float64, torch.float32)
    )
    ours = SessionRows(engine, 16).run(sample)
    for stage in StageRows._fields:
        for part in ("hidden_states", "logits"):
            found, theirs, true = ([getattr(getattr(r, stage), part)] for r in (ours, yardstick, truth))
            yield judge(f"{stage} {part}", distance(found, true), distance(theirs, true), "float32")
    yield plain_against_generate("plain = generate", engine, reference, [PROMPT], "float32")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_says_what_its_model_says(model_type, tmp_path):
    model, bundle = export(tmp_path, model_type)
    engine = Engine.load(bundle, check_hashes=False)
    checks = list(checks_of(engine, Reference(open_checkpoint(model), "float32")))
    assert [check for check in checks if not check.passed] == []
    trees = {"tree": TreeConfig()}
    (comparison,) = compare_trees(engine, [PROMPT], [SamplingParams(12)], trees)
    assert comparison.differences == []
    for graph in ("lower", "upper", "lower.prefix", "upper.prefix"):
        assert unread_inputs(bundle / f"{graph}.onnx") == []  # TensorRT drops those


def unread_inputs(file):
    graph = onnx.load(file, load_external_data=False).graph
    read = {name for node in graph.node for name in node.input}
    return [given.name for given in graph.input if given.name not in read]


def test_falcon_adds_alibi_once_and_rounds_it(tmp_path):
    """As the model was trained, and as transformers computes it unless it is told to be eager. Positions
    beyond 256 have no bfloat16 of their own.
    """
    model, bundle = export(tmp_path, "falcon", **FALCON_RW, max_position_embeddings=400)
    engine = Engine.load(bundle, check_hashes=False)
    reference = Reference(open_checkpoint(model), "float32")
    prompt = PROMPT * 30
    check = plain_against_generate("plain = generate", engine, reference, [prompt], "float32")
    assert check.passed
    assert [check for check in checks_of(engine, reference) if not check.passed] == []
    assert reference.model.config._attn_implementation == "sdpa"
