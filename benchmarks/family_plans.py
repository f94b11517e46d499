"""What TensorRT-RTX makes of every family: a small random model each, in float16 and in bfloat16.

    python benchmarks/family_plans.py [--family NAME]... [--rows FILE]

A row a family: whether its plans are built, layers whose attention is one fused kernel, kernels a layer
beside what an earlier prototype of the same families launched, and why attention is not fused where it is
not. Mixtures have 32 experts, in the two forms of which one runs on no rows: the prototype had one form a
graph. Nothing runs, no GPU is needed. Rows are kept in FILE, from which the next run goes on; all that is
measured is in results/family_plans.json.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import click
from families import save_family
from support.family_models import CHANGES, sizes
from table import RESULTS, Result

from firp.export.bundle.writer import ExportOptions, export_bundle
from firp.export.families.table import FAMILIES
from firp.export.tensorrt.build import BuildOptions, build_engines
from firp.export.tensorrt.plan_text import read_plan, summarize
from firp.runtime.bundle.engine_record import ENGINES_FOLDER
from firp.runtime.bundle.format import Manifest, load_bundle
from firp.runtime.errors import FirpError

BUILD = BuildOptions("tensorrt-rtx", compute_capabilities=("8.9",))
DTYPES = ("float16", "bfloat16")
LAYER = 1  # split at: layers 1 and 2, of three, are in one graph, so what lies between them is a layer
HEADS, PAIRS, HEAD_SIZE, INNER = 4, 2, 64, 448
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
EXPERTS = 32  # enough that some rows are few: see `firp.runtime.bundle.graphs.experts`
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # what they are called
AS_RELEASED = {"qwen3_moe": {"mlp_only_layers": []}, "dots1": ONE_GROUP, "glm4_moe": ONE_GROUP}
# Launches a layer that the prototype needed, of a range the most, and families
LISTED = """
10 phi gpt_neox falcon cohere2
11 starcoder2 gpt_bigcode gpt2 opt bloom nemotron
12 llama mistral internlm3 exaone seed_oss cwm ministral ministral3 gemma phi3 olmo granite hyperclovax
12 granitemoehybrid smollm3 cohere stablelm glm glm4 ernie4_5 helium arcee jais2
13 nanochat
14 qwen2 qwen3 gemma3_text olmo2 olmo3 exaone4 hunyuan_v1_dense apertus persimmon
15 gptj codegen
17.5 gemma2 vaultgemma
19 gpt_neo mpt
20 gpt_oss
22 mixtral olmoe flex_olmo granitemoe granitemoeshared glm4_moe dots1 minimax_m2 ernie4_5_moe
24 qwen2_moe qwen3_moe hunyuan_v1_moe
34 deepseek_v2 deepseek_v3 minicpm3
"""


class Plans(NamedTuple):
    """What the plans of one model launch."""

    failed: str  # the error; "" where they were built
    layers: int
    fused: int  # layers whose attention is one kernel, in the profile where they are fewer
    a_layer: int  # launches of a layer, in the profile where they are more
    launches: int  # of all graphs, in the profile of decoding


def one(folder: Path, model_type: str, dtype: str) -> tuple[Plans, str]:
    """Build one model's plans; also the reason why its attention is not fused."""
    changes = sizes(model_type, HEADS, PAIRS, HEAD_SIZE, INNER) | {"vocab_size": 512}
    if "kv_lora_rank" in CHANGES.get(model_type, {}):
        changes |= LATENT
    changes |= many_experts(CHANGES.get(model_type, {}))
    model = save_family(folder / "model", model_type, **changes | AS_RELEASED.get(model_type, {}))
    try:
        export_bundle(ExportOptions(model, folder / "bundle", prediction_layer=LAYER, dtype=dtype))
        manifest = load_bundle(folder / "bundle").manifest
        build_engines(folder / "bundle", BUILD)
    except FirpError as error:
        return Plans(str(error), 0, 0, 0, 0), ""
    (plans,) = (folder / "bundle" / ENGINES_FOLDER).iterdir()
    found = [[summarize(kernels) for kernels in read_plan(file)] for file in sorted(plans.glob("*.plan"))]
    fused = min(sum(each.attentions for each in profile) for profile in zip(*found, strict=True))
    (_, upper) = found
    most = max(profile.launches_per_layer for profile in upper)
    launches = sum(profiles[0].launches for profiles in found)
    return Plans("", manifest.model.num_hidden_layers, fused, most, launches), reason(manifest)


def many_experts(own: dict[str, Any]) -> dict[str, Any]:
    """A family's changes with more experts than those of its tests."""
    nested = {name: part for name, part in own.items() if isinstance(part, dict)}
    more = {name: part | many for name, part in nested.items() if (many := many_experts(part))}
    return more | {name: EXPERTS for name in COUNTS if own.get(name)}


def reason(manifest: Manifest) -> str:
    """Why the attention of a model is no kernel of TensorRT-RTX's; "" where it is one."""
    c = manifest.model.attention
    if c.softcap:
        return "scores are capped, which its kernels do not do"
    if c.latent:
        return f"keys of {c.head_dim} features, its kernels take 256"
    return ""


def row_of(model_type: str) -> dict[str, Any]:
    """What both float types give."""
    row: dict[str, Any] = {"model_type": model_type}
    for dtype in DTYPES:
        with tempfile.TemporaryDirectory() as folder:
            plans, why = one(Path(folder), model_type, dtype)
        row |= {dtype: plans._asdict(), "why": why}
    return row


def shown(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of one row."""
    both = [Plans(**row[dtype]) for dtype in DTYPES]
    lists = (line.split() for line in LISTED.splitlines())
    listed = next((count for count, *names in filter(None, lists) if row["model_type"] in names), "")
    return (
        row["model_type"],
        *(each.failed or f"{each.fused} of {each.layers}" for each in both),
        " and ".join(dict.fromkeys(str(each.a_layer) for each in both if not each.failed)),
        listed,
        row["why"] if any(each.fused < each.layers for each in both) else "",
    )


@click.command()
@click.option("--family", "names", multiple=True, help="One of the table; all where none is named.")
@click.option("--rows", type=click.Path(path_type=Path), help="Where rows are kept, a line each.")
def main(names, rows):
    result = Result("family_plans", "Plans of every family")
    table = result.table(
        f"Layers with fused attention, and launches a layer; heads of {HEAD_SIZE} features",
        "model_type",
        *DTYPES,
        "launches a layer",
        "prototype",
        "why not fused",
    )
    lines = rows.read_text().splitlines() if rows and rows.exists() else []
    known = {row["model_type"]: row for row in map(json.loads, lines)}
    found = []
    for model_type in names or sorted(FAMILIES):
        row = known.get(model_type) or row_of(model_type)
        found.append(row)
        table.add(*shown(row))
        if rows and model_type not in known:
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")
    result.write()  # first: it names the commit, and whether files differ from it
    lines = ",\n".join(map(json.dumps, found))
    (RESULTS / "family_plans.json").write_text(f"[\n{lines}\n]\n", "utf-8")


if __name__ == "__main__":
    main()
