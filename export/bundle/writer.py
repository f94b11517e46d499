"""Writes a bundle from a model: weights, graphs, tree, tokenizer, manifest.

In: `ExportOptions`. Out: a bundle that appears whole or not at all: it is written to a folder
beside the target, verified there, and renamed when complete. Interrupted or failed, the target
stays as it was.
"""

import dataclasses
import functools
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.bundle.draft_tokens import draft_head, draft_tokens
from firp.export.bundle.output_checks import check_apart, check_own_files
from firp.export.bundle.predictor_dir import TENSOR_NAME, Predictors, open_predictors
from firp.export.leftovers import repair
from firp.export.quantize.outputs import quantized_outputs, record
from firp.export.quantize.plan import make_plan
from firp.export.quantize.quality import check_quality, measure_quality
from firp.export.quantize.text import calibration_tokens
from firp.export.sources.checkpoint import Checkpoint, Weight
from firp.export.sources.open import for_context, open_checkpoint
from firp.export.target_folder import check_target, disk_errors, target_folder
from firp.export.weights import stream as weights
from firp.export.weights.fingerprint import fingerprint
from firp.export.weights.rope import rope_tables
from firp.runtime.arguments import PATH, TRUTH, check_fields, instance, more_than_0, one_of, whole
from firp.runtime.bundle.dtypes import MODEL_DTYPES
from firp.runtime.bundle.format import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    sha256_file,
    write_manifest,
)
from firp.runtime.bundle.graph_spec import CACHE_CONTRACTS, IN_PLACE, graph_specs
from firp.runtime.bundle.graphs.stored import Blueprint, stored_weights
from firp.runtime.bundle.graphs.written import graph_files
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.bundle.precision import METHODS, Precision
from firp.runtime.bundle.weight_table import PREDICTORS_WEIGHT
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.progress import Progress, silent
from firp.runtime.trees.tree_config import TreeConfig

_GRAPHS_BYTES = 4 << 20  # more than the graphs and records of a bundle take

Verify = Callable[[Path], dict[str, Any]]  # bundle folder -> record; raises when a check fails


@dataclass(frozen=True)
class ExportOptions:
    """A model, where its bundle goes, and what goes into it."""

    model: Path  # a Hugging Face directory, or a GGUF file
    output: Path
    predictors: Path | None = None
    prediction_layer: int | None = None  # None: that of the predictors, or three quarters of the layers
    # the type in which drafted decoding is exactly plain decoding, and that every CPU runs
    dtype: str = MODEL_DTYPES[0]
    quantize: str | None = None  # one of METHODS
    quantize_text: Path | None = None  # that ranges are found on; None: the package's own
    quality_limit: float | None = None  # of the perplexity's rise, in percent; None: LIMITS of the method
    tree: TreeConfig | None = None  # None: one that suits the weights
    max_context: int | None = None  # tokens; None: what the model takes
    force: bool = False

    def __post_init__(self):
        """Raises FirpError for a value of another kind."""
        check_fields(self, _OPTIONS)


_OPTIONS = {
    "model": PATH,
    "output": PATH,
    "predictors": PATH.or_none(),
    "prediction_layer": whole(1).or_none(),
    "dtype": one_of(MODEL_DTYPES),
    "quantize": one_of(METHODS).or_none(),
    "quantize_text": PATH.or_none(),
    "quality_limit": more_than_0(math.inf).or_none(),
    "tree": instance(TreeConfig).or_none(),
    "force": TRUTH,
    "max_context": whole(1).or_none(),
}


def export_bundle(
    options: ExportOptions, verify: Verify | None = None, progress: Progress | None = None
) -> Manifest:
    """Write the bundle and return its manifest. `verify` sees the finished folder before it gets
    its name.

    Raises FirpError: the model or the predictors cannot be used, the target exists, a check failed,
    the disk is full.
    """
    prepared = prepare(options)
    with target_folder(options.output, MANIFEST_NAME, options.force) as folder:
        with disk_errors(options.output):
            manifest = _write(folder, options, prepared, progress or silent)
            if options.quantize:
                manifest = _judged(folder, options, prepared.checkpoint, manifest)
        if verify:
            manifest = dataclasses.replace(manifest, verification=verify(folder))
            with disk_errors(options.output):
                write_manifest(folder, manifest)
    return manifest


def _judged(folder: Path, options: ExportOptions, checkpoint: Checkpoint, manifest: Manifest) -> Manifest:
    """The manifest with the quality of a quantized bundle. Raises CheckFailedError where it is bad."""
    quality = measure_quality(folder, checkpoint)
    check_quality(quality, options.quantize, options.quality_limit)
    manifest = dataclasses.replace(
        manifest, quantization=dataclasses.replace(manifest.quantization, quality=quality)
    )
    write_manifest(folder, manifest)
    return manifest


class Prepared(NamedTuple):
    """Inputs of an export, all checked before anything is written."""

    checkpoint: Checkpoint
    predictors: Predictors | None
    prediction_layer: int
    calibration: np.ndarray | None  # token ids [N, L]; None where nothing is quantized


def prepare(options: ExportOptions) -> Prepared:
    """Check everything that can be checked before anything is written. Raises FirpError.

    A bundle that a killed export had moved aside is put back first.
    """
    with disk_errors(options.output):
        repair(options.output)
    check_target(options.output, MANIFEST_NAME, options.force)
    check_apart(options.output, (options.model, options.predictors))
    if options.quantize and options.dtype != MODEL_DTYPES[0]:
        raise FirpError(
            f"--quantize {options.quantize} goes with {MODEL_DTYPES[0]}",
            got=f"--dtype {options.dtype}",
            fix="leave --dtype out, or export with --quantize none",
        )
    if options.force and options.output.exists():
        check_own_files(options.output)
    checkpoint = open_checkpoint(options.model)
    if options.max_context is not None:
        checkpoint = for_context(checkpoint, options.max_context)
    checkpoint.tokenizer()
    predictors = open_predictors(options.predictors, checkpoint) if options.predictors else None
    layer = _split(checkpoint, predictors, options.prediction_layer)
    if predictors and options.quantize == "int4":
        raise FirpError(
            "int4 bundles decode plainly",
            got="--predictors",
            fix="leave them out, or export with --quantize int8, or none",
        )
    if predictors and options.tree:
        options.tree.validate(predictors.info.num_predictors)
    calibration = calibration_tokens(checkpoint, options.quantize_text) if options.quantize else None
    return Prepared(checkpoint, predictors, layer, calibration)


def _split(checkpoint: Checkpoint, predictors: Predictors | None, requested: int | None) -> int:
    """The prediction layer: requested, or that of the predictors, or the default. Raises
    CheckpointError.
    """
    trained = predictors.info.prediction_layer if predictors else None
    layer = checkpoint.prediction_layer(requested if requested is not None else trained)
    if trained is not None and layer != trained:
        raise CheckpointError(
            "predictors for another layer",
            got=f"--prediction-layer {layer}",
            expected=trained,
            fix="leave the option out",
        )
    return layer


def _write(
    folder: Path,
    options: ExportOptions,
    prepared: Prepared,
    progress: Progress,
) -> Manifest:
    checkpoint, predictors, layer, calibration = prepared
    precision = Precision.uniform(options.dtype)
    plan = quantization = None
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        plain = [weights.from_checkpoint(weight, checkpoint.tensors) for weight in checkpoint.weights]
        if options.quantize:
            plan = make_plan(checkpoint, options.quantize, calibration, Path(scratch), progress)
            plain = quantized_outputs(checkpoint, plan)
            quantization = record(checkpoint, plan)
        tokens = draft_tokens(checkpoint, predictors)
        if tokens is not None:
            plain += draft_head(checkpoint, tokens, plan)
        _write_weights(folder, plain, precision.weights, checkpoint, predictors, progress)
    num_predictors = predictors.info.num_predictors if predictors else 0
    blueprint = Blueprint(checkpoint.config, layer, num_predictors, precision, quantization)
    stored = stored_weights(folder, blueprint)
    for contract in (IN_PLACE,) if quantization else CACHE_CONTRACTS:
        for spec, content in graph_files(blueprint, stored, contract, tokens):
            (folder / spec.file).write_bytes(content)
    for name in checkpoint.companions:
        (folder / name).write_bytes(checkpoint.companion(name))
    write_json(folder / "generation_config.json", {"eos_token_id": list(checkpoint.eos_token_ids)})
    source = {
        "model": checkpoint.name,
        "fingerprint": fingerprint(checkpoint),
        "predictors": None,
    }
    if predictors:
        tree = TreeConfig.chain(num_predictors, 1) if options.quantize else TreeConfig()
        write_json(folder / "tree.json", to_json(options.tree or tree))
        for name, path in predictors.files.items():
            shutil.copyfile(path, folder / name)
        source["predictors"] = {
            "training": predictors.info.training,
            "held_out": to_json(predictors.info.held_out),
        }
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST_NAME)
    total = sum(path.stat().st_size for path in files)
    done = 0
    entries = {}
    for path in files:
        progress("hashing", done, total)
        entries[path.name] = FileEntry(path.stat().st_size, sha256_file(path))
        done += entries[path.name].size
    progress("hashing", total, total)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        model=checkpoint.config,
        prediction_layer=layer,
        num_predictors=num_predictors,
        precision=precision,
        quantization=quantization,
        graphs=graph_specs(checkpoint.config, layer, num_predictors, precision),
        files=entries,
        written_by={name: version(name) for name in ("firp", "transformers")},
        source=source,
        choices={},
        verification=None,
    )
    write_manifest(folder, manifest)
    return manifest


def _write_weights(
    folder: Path,
    outputs: list[weights.Output],
    dtype: str,
    checkpoint: Checkpoint,
    predictors: Predictors | None,
    progress: Progress,
) -> None:
    tables = [weights.from_array(*table) for table in rope_tables(checkpoint.config).items()]
    files = {"model.safetensors": outputs + tables}
    if predictors:
        k = predictors.info.num_predictors
        size = predictors.info.hidden_size
        stacked = Weight(PREDICTORS_WEIGHT, (k * size, size), (TENSOR_NAME,))
        files["predictors.safetensors"] = [weights.from_checkpoint(stacked, {TENSOR_NAME: predictors.tensor})]
    total = sum(weights.size_bytes(file_weights, dtype) for file_weights in files.values())
    _check_disk(total + _bytes_beside_weights(checkpoint, predictors), shutil.disk_usage(folder).free)
    done = 0
    for name, file_weights in files.items():
        report = functools.partial(_report, progress, done, total)
        weights.write_safetensors(folder / name, file_weights, dtype, report)
        done += weights.size_bytes(file_weights, dtype)


def _bytes_beside_weights(checkpoint: Checkpoint, predictors: Predictors | None) -> int:
    """Size of the files that are taken along, and about that of the graphs."""
    found = (*checkpoint.companions.values(), *(predictors.files.values() if predictors else ()))
    return sum(len(it) if isinstance(it, bytes) else it.stat().st_size for it in found) + _GRAPHS_BYTES


def _check_disk(needed: int, free: int) -> None:
    if needed > free:
        got, expected = (f"{size / 2**20:.1f} MiB" for size in (free, needed))
        raise FirpError("not enough disk space", got=f"{got} free", expected=expected, fix="free some disk")


def _report(progress: Progress, before: int, total: int, written: int) -> None:
    progress("weights", before + written, total)
