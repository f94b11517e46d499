"""From a model directory to a bundle: weights, graphs, tree, tokenizer, manifest.

In: `ExportOptions`. Out: a bundle that appears whole or not at all: it is written to a folder
beside the target, verified there, and renamed when complete. Interrupted or failed, the target
stays as it was.
"""

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from firp.export.bundle.predictor_dir import TENSOR_NAME, Predictors, open_predictors
from firp.export.graphs.halves import write_graphs
from firp.export.sources.huggingface import Checkpoint, Weight, open_checkpoint
from firp.export.sources.safetensors_file import TensorRecord
from firp.export.target_folder import check_target, disk_errors, target_folder
from firp.export.weights import stream as weights
from firp.runtime.bundle.engine_record import ENGINES_FOLDER, engine_folders
from firp.runtime.bundle.format import (
    FORMAT_VERSION,
    MANIFEST_NAME,
    FileEntry,
    Manifest,
    read_json,
    sha256_file,
    to_json,
    write_json,
    write_manifest,
)
from firp.runtime.bundle.graph_spec import DTYPES
from firp.runtime.errors import CheckpointError, FirpError
from firp.runtime.loop.text import load_tokenizer
from firp.runtime.progress import Progress, silent
from firp.runtime.trees.tree import TreeConfig

COPIED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Verify = Callable[[Path], dict[str, Any]]  # bundle folder -> record; raises when a check fails


@dataclass(frozen=True)
class ExportOptions:
    model: Path
    output: Path
    predictors: Path | None = None
    prediction_layer: int | None = None  # None: that of the predictors, or three quarters of the layers
    # the type in which drafted decoding is exactly plain decoding, and that every CPU runs
    dtype: str = DTYPES[0]
    tree: TreeConfig = dataclasses.field(default_factory=TreeConfig)
    force: bool = False


def export_bundle(
    options: ExportOptions, verify: Verify | None = None, progress: Progress | None = None
) -> Manifest:
    """Write the bundle and return its manifest. `verify` sees the finished folder before it gets
    its name.

    Raises FirpError: the model or the predictors cannot be used, the target exists, a check failed,
    the disk is full.
    """
    checkpoint, predictors, layer = prepare(options, verify is not None)
    with target_folder(options.output, MANIFEST_NAME, options.force) as folder:
        with disk_errors(options.output):
            manifest = _write(folder, options, checkpoint, predictors, layer, progress or silent)
        if verify:
            manifest = dataclasses.replace(manifest, verification=verify(folder))
            with disk_errors(options.output):
                write_manifest(folder, manifest)
    return manifest


class Prepared(NamedTuple):
    checkpoint: Checkpoint
    predictors: Predictors | None
    prediction_layer: int


def prepare(options: ExportOptions, verify: bool) -> Prepared:
    """Check everything that can be checked before anything is written. Raises FirpError."""
    check_target(options.output, MANIFEST_NAME, options.force)
    _check_apart(options)
    if options.force and options.output.exists():
        _check_own_files(options.output)
    if verify and options.dtype == "bfloat16":
        raise FirpError(
            "bfloat16 graphs cannot be verified on a CPU",
            got="ONNX Runtime without bfloat16 kernels",
            fix="add --no-verify, or export float32 or float16",
        )
    checkpoint = open_checkpoint(options.model)
    if os.path.lexists(options.model / "tokenizer.json"):
        load_tokenizer(options.model / "tokenizer.json")
    predictors = open_predictors(options.predictors, checkpoint) if options.predictors else None
    layer = _split(checkpoint, predictors, options.prediction_layer)
    if predictors:
        options.tree.validate(predictors.info.num_predictors)
    return Prepared(checkpoint, predictors, layer)


def _check_apart(options: ExportOptions) -> None:
    """The bundle neither is, nor holds, nor lies inside what it is made from: replacing it must not
    delete an input.
    """
    output = options.output.resolve()
    for source in (options.model, options.predictors):
        if source and (output.is_relative_to(source.resolve()) or source.resolve().is_relative_to(output)):
            raise FirpError(
                "output and input overlap",
                got=f"'{options.output}' and '{source}'",
                fix="choose another path",
            )


def _check_own_files(bundle: Path) -> None:
    """A bundle that is to be replaced holds nothing that its manifest does not list."""
    data = read_json(bundle / MANIFEST_NAME)
    listed = data.get("files") if isinstance(data, dict) else None
    if not isinstance(listed, dict) or "format_version" not in data:
        raise FirpError("output exists and is something else", got=f"'{bundle}'", fix="choose another path")
    own, leftover = {*listed, MANIFEST_NAME, ENGINES_FOLDER}, f".{MANIFEST_NAME}-"  # of a killed writer
    foreign = sorted(
        path.name for path in bundle.iterdir() if path.name not in own and not path.name.startswith(leftover)
    )
    engines = {folder.name for folder in engine_folders(bundle)}
    if (bundle / ENGINES_FOLDER).is_dir():
        found = (path.name for path in (bundle / ENGINES_FOLDER).iterdir())
        # of a killed build
        foreign += sorted(name for name in found if name not in engines and not name.startswith("."))
    if foreign:
        raise FirpError(
            "the bundle to replace holds other files",
            got=", ".join(foreign[:5]),
            fix="move them, or choose another path",
        )


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
    checkpoint: Checkpoint,
    predictors: Predictors | None,
    layer: int,
    progress: Progress,
) -> Manifest:
    records = _write_weights(folder, options.dtype, checkpoint, predictors, progress)
    num_predictors = predictors.info.num_predictors if predictors else 0
    graphs = write_graphs(folder, checkpoint.config, layer, num_predictors, options.dtype, records)
    for name in COPIED:
        if (options.model / name).is_file():
            shutil.copyfile(options.model / name, folder / name)
    write_json(folder / "generation_config.json", {"eos_token_id": list(checkpoint.eos_token_ids)})
    source = {
        "model": checkpoint.path.resolve().name,
        "fingerprint": checkpoint.fingerprint(),
        "predictors": None,
    }
    if predictors:
        write_json(folder / "tree.json", to_json(options.tree))
        for name, path in predictors.files.items():
            shutil.copyfile(path, folder / name)
        source["predictors"] = {
            "training": predictors.info.training,
            "held_out": to_json(predictors.info.held_out),
        }
    files = sorted(path for path in folder.iterdir() if path.name != MANIFEST_NAME)
    total, done, entries = sum(path.stat().st_size for path in files), 0, {}
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
        dtype=options.dtype,
        quantization=None,
        graphs=graphs,
        files=entries,
        written_by={name: version(name) for name in ("firp", "onnx_ir", "transformers")},
        source=source,
        choices={},
        verification=None,
    )
    write_manifest(folder, manifest)
    return manifest


def _write_weights(
    folder: Path, dtype: str, checkpoint: Checkpoint, predictors: Predictors | None, progress: Progress
) -> dict[str, TensorRecord]:
    outputs = [weights.from_checkpoint(weight, checkpoint.tensors) for weight in checkpoint.weights()]
    cos, sin = checkpoint.rope_tables()
    outputs += [weights.from_array("rope.cos", cos), weights.from_array("rope.sin", sin)]
    files = {"model.safetensors": outputs}
    if predictors:
        k, size = predictors.info.num_predictors, predictors.info.hidden_size
        stacked = Weight("predictors.weight", (k * size, size), (TENSOR_NAME,))
        files["predictors.safetensors"] = [weights.from_checkpoint(stacked, {TENSOR_NAME: predictors.tensor})]
    total = sum(weights.size_bytes(each, dtype) for each in files.values())
    free = shutil.disk_usage(folder).free
    if total > free:
        raise FirpError(
            "not enough disk space", got=f"{free / 2**30:.2f} GiB free", expected=f"{total / 2**30:.2f} GiB"
        )
    records, done = {}, 0
    for name, each in files.items():
        report = functools.partial(_report, progress, done, total)
        records |= weights.write_safetensors(folder / name, each, dtype, report)
        done += weights.size_bytes(each, dtype)
    return records


def _report(progress: Progress, before: int, total: int, written: int) -> None:
    progress("weights", before + written, total)
