"""The `families` command: what can be exported, read from the table that the exporter reads."""

import inspect
import json
import textwrap

import click

from firp.export.families.examples import EXAMPLES
from firp.export.families.gated import cohere_compass
from firp.export.families.refused import NEAREST, REFUSED
from firp.export.families.table import FAMILIES
from firp.export.families.wrappers import LOADED_AS, WRAPPERS
from firp.export.sources.gguf.architectures import LEFT_OUT, MODEL_TYPES, READ_AS
from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.bundle.precision import METHODS
from firp.runtime.console.options import json_option
from firp.runtime.console.tables import results


@click.command()
@json_option("Print one JSON object: what is supported of each family, and why others are refused.")
@click.option("--markdown", is_flag=True, help="Print the page of the documentation.")
def families(as_json, markdown):
    """List the families of models that can be exported, and what is supported of each."""
    if as_json:
        print(json.dumps({"families": {name: support(name) for name in FAMILIES}, "refused": REFUSED}))
    elif markdown:
        print(page(), end="")
    else:
        width = max(map(len, FAMILIES))
        for name in sorted(FAMILIES):
            gguf = "GGUF" if support(name)["gguf"] else ""
            results.print(f"{name:<{width}}  {gguf:<4}  {EXAMPLES.get(name, '')}")
        kinds = ", ".join((*MODEL_DTYPES, *METHODS))
        results.print(f"all {len(FAMILIES)}: {kinds}, float as TensorRT plans; drafts, but of int4")


def support(model_type: str) -> dict[str, bool | list[str]]:
    """What is supported of a family in the table: a description that graphs can express goes with every form
    of weights, so only sources differ. tensorrt, drafts: the forms of weights that go with them.
    """
    return {
        **dict.fromkeys(("float", *METHODS), True),
        "gguf": model_type in MODEL_TYPES or model_type in READ_AS,
        "tensorrt": ["float"],
        "drafts": ["float", *(method for method in METHODS if method != "int4")],
    }


def page() -> str:
    """docs/families.md."""
    rows = [f"| `{name}` | {EXAMPLES.get(name, '')} | {_gguf(name)} |" for name in sorted(FAMILIES)]
    reasons = {
        reason: sorted(n for n, why in REFUSED.items() if why == reason) for reason in REFUSED.values()
    }
    refused = [f"| {reason} | {', '.join(map(_with_nearest, names))} |" for reason, names in reasons.items()]
    recipe = [f"+{line}" for line in inspect.getsource(cohere_compass).splitlines()]
    recipe += [" ", " GATED: dict[str, Family] = {", '+    "cohere_compass_text": Family(cohere_compass),']
    return "\n".join([*_INTRODUCTION, *rows, *_REFUSED, *refused, *_ADDING, *recipe, *_CHECKING])


def _with_nearest(model_type: str) -> str:
    return f"`{model_type}`" + (f" (`{NEAREST[model_type]}`)" if model_type in NEAREST else "")


def _gguf(model_type: str) -> str:
    """Whether files of a family are read: the family that their files name, or why not."""
    if model_type in READ_AS:
        return "as " + " or ".join(f"`{name}`" for name in READ_AS[model_type].split(" or "))
    return "yes" if model_type in MODEL_TYPES else LEFT_OUT.get(model_type, "no")


_WRAPPED = (
    "Of models that take images or sounds too, the text part is exported where it is one of these families, "
    "and `model_type` one of " + ", ".join(f"`{name}`" for name in sorted(WRAPPERS)) + ". "
    + " ".join(f"`{name}` is read as `{family}`." for name, family in LOADED_AS.items())
)  # fmt: skip
_INTRODUCTION = (
    "# Families",
    "",
    "Written by `firp families --markdown` from the table that the exporter reads. A family goes by the",
    "`model_type` of config.json. Each can be exported in every float type, and as int8 and int4; float",
    "graphs have the form of ONNX Runtime and that of TensorRT; drafts go with all of these but int4.",
    "Checkpoints are Hugging Face directories, of floats or of small floats beside their scales (fp8,",
    "fbgemm_fp8, float-quantized compressed-tensors, modelopt's FP8, mxfp4) or integers of 4 bits (awq,",
    "gptq), which become float values on their way, or are kept by `int4`;",
    "GGUF files are read where the last column says so.",
    "",
    "A model with `longrope` (Phi 3.5, Phi 4 mini) takes the length that its short factors are for.",
    "`--max-context` beyond that gives it the long factors for texts of every length: long texts are then as",
    "Hugging Face's, short ones differ, and `firp export` says so.",
    "",
    "Layers with a window attend to the tokens in it alone, in both forms and beside any text",
    "([graphs.md](graphs.md#the-cache-contracts)). All windows of a model have one size.",
    "",
    f"{len(FAMILIES)} families. Every export is held to Hugging Face's own module in float64, so a variant",
    "that the recipe does not know is refused, not exported wrongly: at the first tokens, and where windows",
    "and growth of queries begin ([numerics.md](numerics.md#values)).",
    "",
    *textwrap.wrap(_WRAPPED, 104, break_on_hyphens=False),
    "",
    "| model_type | models | GGUF |",
    "|---|---|---|",
)
_ADDING = (
    "",
    "## A new family of known parts",
    "",
    "It is a recipe of at most ten lines, and this page written anew: GGUF files are not read until",
    "`export/sources/gguf/architectures.py` knows them, and random models are made once",
    "`tests/support/family_models.py` says its sizes. North Micro's text model is Command R7B's with rope in",
    "halves and of each kind of layers; this made it a family:",
    "",
    "```diff",
    "--- export/families/gated.py",
)
_CHECKING = (
    "```",
    "",
    "What `model` can be told are the known parts (`export/families/recipe.py`). A family whose tensors",
    "have other names says which as well, as those beside it do (`export/families/names.py`). Whether it is",
    "right is not a matter of reading: `firp export` compares every model with Hugging Face's, and",
    "`python benchmarks/families.py --family cohere_compass_text` does on random models, odd ones among",
    "them.",
    "",
)
_REFUSED = (
    "",
    "Refused, with the family that shares the rest in brackets:",
    "",
    "| what is missing | model_type |",
    "|---|---|",
)
