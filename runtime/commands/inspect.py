"""The `inspect` command: a bundle in, what it holds out; nothing is loaded."""

import json

import click

from firp.runtime.bundle.engine_record import engine_folders
from firp.runtime.bundle.format import Bundle, load_bundle
from firp.runtime.bundle.json_fields import to_json
from firp.runtime.commands.shown import count_ties, describe, quantization_lines
from firp.runtime.console.options import PATH, json_option
from firp.runtime.console.tables import results


@click.command()
@click.argument("bundle", type=PATH)
@json_option("Print the manifest and the tree as one JSON object.")
def inspect(bundle, as_json):
    """Show what BUNDLE holds; its files are checked, nothing is loaded."""
    loaded = load_bundle(bundle)
    if not as_json:
        _print_bundle(loaded)
        return
    tree = to_json(loaded.tree) if loaded.tree else None
    engines = [folder.name for folder in engine_folders(bundle)]
    print(json.dumps({**to_json(loaded.manifest), "tree": tree, "engines": engines}))


def _print_bundle(bundle: Bundle) -> None:
    manifest = bundle.manifest
    model = bundle.manifest.model
    results.print(
        f"{model.architecture} '{manifest.source['model']}': {model.num_hidden_layers} layers, "
        f"hidden {model.hidden_size}, vocabulary {model.vocab_size}"
    )
    results.print(
        f"{model.attention.num_heads} query and {model.attention.num_key_value_heads} key/value heads "
        f"of {model.attention.head_dim}, context {model.max_position_embeddings} tokens, "
        f"end of sequence {list(bundle.eos_token_ids)}"
    )
    predictors = manifest.num_predictors or "no"
    results.print(
        f"{manifest.precision.weights}, split at layer {manifest.prediction_layer}, {predictors} predictors"
    )
    if manifest.quantization:
        results.print("\n".join(quantization_lines(manifest.quantization)))
    if bundle.tree:
        _print_drafts(bundle)
    for device, choice in bundle.manifest.choices.items():
        chosen = describe(choice.tree) if choice.drafts else "plain decoding"
        results.print(f"tuned for {device}: {chosen}, expected speedup {choice.speedup:.2f}")
    checks = "never"
    if manifest.verification:
        checks = f"{len(manifest.verification['checks'])} checks, {count_ties(manifest.verification)}"
    results.print(f"verified: {checks}; written by firp {manifest.written_by['firp']}")
    for folder in engine_folders(bundle.path):
        results.print(f"engines: {folder.name}")
    for name, entry in manifest.files.items():
        results.print(f"{entry.size:>12,}  {entry.sha256[:12]}  {name}")


def _print_drafts(bundle: Bundle) -> None:
    """Print the tree, and how often predictors are right."""
    held_out = bundle.manifest.source["predictors"]["held_out"]
    correction = "yes" if bundle.correction else "no"
    results.print(f"tree: {describe(bundle.tree)}; path correction: {correction}")
    results.print(f"held-out accuracy by offset: top-1 {held_out['top1']}, top-5 {held_out['top5']}")
