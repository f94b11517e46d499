"""No field of the description is without effect: a model exported with one of them wrong lies far from
float64.
"""

import dataclasses

import pytest
import torch
from support.family_models import save_family

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.sources.open import open_checkpoint
from firp.export.verify.reference import Reference, model_rows
from firp.export.verify.rounding import YARDSTICKS, distance, judge
from firp.export.verify.rows import SessionRows, random_sample
from firp.runtime.bundle.model_config import ClampedConfig, QueryGrowth, RopeTable
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckpointError

PROMPT = [7, 40, 3, 22, 51, 9, 30, 14, 2, 44, 60, 18]


def part(name, **fields):
    """A change of fields of one part of the description."""
    return lambda model: dataclasses.replace(
        model, **{name: dataclasses.replace(getattr(model, name), **fields)}
    )


def qk_norm(**fields):
    return lambda model: part("attention", qk_norm=dataclasses.replace(model.attention.qk_norm, **fields))(
        model
    )


def ropes(change):
    """A change of every table of frequencies."""
    return lambda model: part(
        "positions", ropes={name: change(table) for name, table in model.positions.ropes.items()}
    )(model)


def layers(change):
    return lambda model: dataclasses.replace(model, layers=tuple(map(change, model.layers)))


def steeper(model):
    return part("positions", alibi=tuple(1.01 * slope for slope in model.positions.alibi))(model)


def wider(layer):
    return dataclasses.replace(layer, window=layer.window and layer.window + 1)


def swapped(model):
    return dataclasses.replace(model, layers=(model.layers[0], *model.layers[:0:-1]))


def latent(**fields):
    return lambda model: part("attention", latent=dataclasses.replace(model.attention.latent, **fields))(
        model
    )


MUTATIONS = {
    "attention.scale": ("gemma2", part("attention", scale=0.3)),
    "attention.num_heads": ("llama", part("attention", num_heads=2, num_key_value_heads=1, head_dim=16)),
    "attention.growth": ("ministral3", part("attention", growth=QueryGrowth(0.3, 6))),
    "attention.qk_norm.kind": ("cohere", qk_norm(kind="rms")),
    "attention.qk_norm.over": ("nanochat", qk_norm(over="all")),
    "attention.qk_norm.after_rope": ("hunyuan_v1_dense", qk_norm(after_rope=False)),
    "attention.clip": ("olmo", part("attention", clip=0.51)),
    "attention.softcap": ("gemma2", part("attention", softcap=None)),
    "mlp.clamped.limit": ("gpt_oss", part("mlp", clamped=ClampedConfig(0.51, 1.702))),
    "mlp.clamped.slope": ("gpt_oss", part("mlp", clamped=ClampedConfig(0.5, 1.72))),
    "attention.latent.epsilon": ("minicpm3", latent(epsilon=1e-3)),
    "mlp.activation": ("gpt2", part("mlp", activation="gelu")),
    "positions.ropes.frequencies": ("llama", ropes(lambda t: RopeTable(t.frequencies[::-1], t.scale))),
    "positions.ropes, how wide": ("phi", ropes(lambda t: RopeTable((*t.frequencies, 0.01), t.scale))),
    "positions.ropes.scale": ("llama", ropes(lambda t: RopeTable(t.frequencies, 1.01))),
    "positions.interleaved": ("cohere", part("positions", interleaved=False)),
    "positions.alibi": ("bloom", steeper),
    "positions.alibi_rounded": ("bloom", part("positions", alibi_rounded=True)),
    "experts.per_token": ("mixtral", part("experts", per_token=1)),
    "experts.jitter": ("phimoe", part("experts", jitter=0.02)),
    "experts.score": ("dots1", part("experts", score="softmax")),
    "experts.normalized": ("qwen3_moe", part("experts", normalized=False)),
    "experts.scale": ("glm4_moe", part("experts", scale=1.6)),
    "experts.groups": ("dots1", part("experts", groups=1, groups_kept=1)),
    "experts.groups_rated_by": ("deepseek_v2", part("experts", groups_rated_by=2)),
    "experts.groups_kept": ("dots1", part("experts", groups_kept=3)),
    "norm.kind": ("cohere", part("norm", kind="rms")),
    "norm.epsilon": ("llama", part("norm", epsilon=1e-3)),
    "block.norms": ("olmo", part("block", norms=("input_norm",))),
    "block.parallel": ("gpt_neox", part("block", parallel=False)),
    "block.scale": ("granite", part("block", scale=0.41)),
    "embedding.scale": ("granite", part("embedding", scale=3.1)),
    "embedding.norm": ("nanochat", part("embedding", norm="layer")),
    "head.scale": ("cohere", part("head", scale=0.26)),
    "head.softcap": ("gemma2", part("head", softcap=3.1)),
    "layers.window": ("cwm", layers(wider)),
    "layers.window, whose": ("cwm", swapped),
    "layers.rope": ("smollm3", layers(lambda each: dataclasses.replace(each, rope="default"))),
}  # fmt: skip


REFUSED = {
    "attention.qk_norm.over": ("olmo2", qk_norm(over="head")),
    "attention.num_key_value_heads": ("llama", part("attention", num_key_value_heads=4)),
    "max_position_embeddings": ("gpt2", lambda model: dataclasses.replace(model, max_position_embeddings=95)),
    "mlp.intermediate_size": ("llama", part("mlp", intermediate_size=20)),
    "block.norms": ("llama", part("block", norms=("input_norm",))),
}


def with_wrong_field(monkeypatch, model_type, mutate):
    family = FAMILIES[model_type]
    wrong = family._replace(describe=lambda c: mutate(family.describe(c)))
    monkeypatch.setitem(FAMILIES, model_type, wrong)


@pytest.mark.parametrize(("model_type", "mutate"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_field_that_tensors_tell_is_refused(model_type, mutate, tmp_path, monkeypatch):
    model = save_family(tmp_path / "model", model_type)
    with_wrong_field(monkeypatch, model_type, mutate)
    with pytest.raises(CheckpointError, match=r"tensor|shape"):
        open_checkpoint(model)


@pytest.mark.parametrize(("model_type", "mutate"), MUTATIONS.values(), ids=MUTATIONS)
def test_a_wrong_field_is_seen(model_type, mutate, tmp_path, monkeypatch):
    model = save_family(tmp_path / "model", model_type)
    checkpoint = open_checkpoint(model)
    with_wrong_field(monkeypatch, model_type, mutate)
    export_bundle(ExportOptions(model, tmp_path / "bundle", prediction_layer=2))
    engine = Engine.load(tmp_path / "bundle", check_hashes=False)
    sample = random_sample(PROMPT, 61, 96)
    reference = Reference(checkpoint, "float32")
    (truth,), (yardstick,) = (
        model_rows(reference, 2, [sample], dtype) for dtype in (torch.float64, torch.float32)
    )
    logits = ([rows.decode.logits] for rows in (SessionRows(engine, 16).run(sample), yardstick, truth))
    found, theirs, true = logits
    check = judge("logits", distance(found, true), distance(theirs, true), "float32")
    assert check.value > 10 * YARDSTICKS
