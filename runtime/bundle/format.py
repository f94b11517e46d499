"""The bundle format, version 6: what the exporter writes and every backend reads.

In: a bundle directory. Out: a validated `Bundle` (manifest + tree), or a BundleError before any
graph is loaded.

A bundle is a directory. It MUST hold
    firp.json               the manifest below and `sha256`, the digest of its other keys
                            (`manifest_digest`); keys that this
                            version does not know are refused
    lower.onnx upper.onnx   graphs as declared in the manifest, with caches in place; their weights
                            are external data in model.safetensors
    lower.prefix.onnx upper.prefix.onnx
                            the same for TensorRT, with prefix caches (`Manifest.graphs_for`); not
                            in a quantized bundle
    model.safetensors       every weight once, in the layout the graphs use
    generation_config.json  `eos_token_id` (int, list or null) is what ends a sequence
and, when `num_predictors` > 0, MUST hold
    predictors.onnx, predictors.safetensors, tree.json (a `TreeConfig`).
It MAY hold path_correction.safetensors (`PathCorrection`: previous and following [V, r] float16,
weight and scale [2, K] float32), calibration.json (`Calibration`: trees to choose from, with their
expected tokens per step), tokenizer.json, tokenizer_config.json and chat_template.jinja. Without
tokenizer.json it decodes token ids only. Every file but firp.json MUST be listed in `files` with
its size and sha256; a file that is not listed is ignored. Files are regular files, no links, and
graphs are, to the byte, those that the exporter writes for the manifest (`graphs.written`): a change
of the graphs is a change of the format.
"""

import hashlib
import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firp.runtime.bundle.calibration import Calibration, Choice, read_calibration
from firp.runtime.bundle.graph_spec import CACHE_CONTRACTS, IN_PLACE, GraphSpec, graph_specs, layers_of
from firp.runtime.bundle.graphs.stored import Blueprint, stored_weights
from firp.runtime.bundle.graphs.written import check_graphs
from firp.runtime.bundle.json_fields import from_json, read_json, to_json, write_json
from firp.runtime.bundle.model_config import ModelConfig
from firp.runtime.bundle.paths import bundle_folder, own_file
from firp.runtime.bundle.precision import Precision, Quantization
from firp.runtime.bundle.provenance import check_provenance
from firp.runtime.errors import BundleError, FirpError
from firp.runtime.trees.path_correction import PathCorrection
from firp.runtime.trees.tree_config import TreeConfig

FORMAT_VERSION = 6
MANIFEST_NAME = "firp.json"
CORRECTION_NAME = "path_correction.safetensors"
CALIBRATION_NAME = "calibration.json"


@dataclass(frozen=True)
class FileEntry:
    """Size and sha256 of one file."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """firp.json."""

    format_version: int
    model: ModelConfig
    prediction_layer: int  # t: the lower graph runs layers [0, t), the upper graph [t, num_hidden_layers)
    num_predictors: int  # K; 0 means that the bundle decodes plainly
    precision: Precision
    quantization: Quantization | None  # None: every weight is of the precision's type
    graphs: dict[str, GraphSpec]
    files: dict[str, FileEntry]
    written_by: dict[str, str]  # package name -> version
    # device -> the tree that is fastest there (`firp tune`); others decode with tree.json
    choices: dict[str, Choice]
    source: dict[str, Any]  # the checkpoint and predictors it came from: names, fingerprint, training record
    verification: dict[str, Any] | None  # the record of `firp verify`; None: never verified

    @property
    def blueprint(self) -> Blueprint:
        """What the graphs depend on."""
        return Blueprint(
            self.model, self.prediction_layer, self.num_predictors, self.precision, self.quantization
        )

    @property
    def contracts(self) -> tuple[str, ...]:
        """Contracts of the graphs that the bundle holds. TensorRT, which is alone with its own, runs no
        quantized graphs.
        """
        return (IN_PLACE,) if self.quantization else CACHE_CONTRACTS

    def graphs_for(self, contract: str) -> dict[str, GraphSpec]:
        """The graphs that decode with caches of this contract."""
        if contract == IN_PLACE:
            return self.graphs
        return graph_specs(self.model, self.prediction_layer, self.num_predictors, self.precision, contract)

    @property
    def arithmetic(self) -> str:
        """What decides how far two computations of one row may lie apart: the method of quantization,
        or the type.
        """
        return self.quantization.method if self.quantization else self.precision.compute

    def layers(self, graph: str) -> range:
        """The layers that a graph runs; none for the predictors."""
        return layers_of(graph, self.model, self.prediction_layer)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, its manifest read and checked."""

    path: Path
    manifest: Manifest
    tree: TreeConfig | None  # None when num_predictors is 0
    correction: PathCorrection | None  # None when the predictors were trained without
    calibration: Calibration | None  # None when they were never calibrated
    eos_token_ids: tuple[int, ...]

    def graph_path(self, spec: GraphSpec) -> Path:
        """Path of a graph's ONNX file."""
        return self.path / spec.file


def load_bundle(path: Path | str, check_hashes: bool = True, largest: int | None = None) -> Bundle:
    """Read and validate a bundle; nothing of it is executed.

    check_hashes: compare every file's sha256 (reads the whole bundle, about 1 s a GB); sizes are
    always compared. largest: bytes of a file that is read for that; those beyond are left to
    `check_large_files`. Raises BundleError, one message for each way a bundle can be bad.
    """
    path = bundle_folder(path)
    manifest = read_manifest(path / MANIFEST_NAME)
    _check_files(path, manifest, check_hashes, largest)
    tree = correction = calibration = None
    if manifest.num_predictors:
        if CORRECTION_NAME in manifest.files:
            correction = PathCorrection.load(
                path / CORRECTION_NAME, manifest.model.vocab_size, manifest.num_predictors
            )
        if CALIBRATION_NAME in manifest.files:
            calibration = read_calibration(path / CALIBRATION_NAME, manifest.num_predictors)
        tree = from_json(TreeConfig, read_json(path / "tree.json"), "tree.json")
        tree.validate(manifest.num_predictors)
    file = path / "generation_config.json"
    return Bundle(
        path,
        manifest,
        tree,
        correction,
        calibration,
        eos_token_ids(read_json(file), manifest.model.vocab_size, str(file)),
    )


def read_manifest(path: Path) -> Manifest:
    """firp.json alone, checked. Raises BundleError."""
    if not path.is_file():
        raise BundleError(
            "not a bundle", got=f"'{path.parent}' without {MANIFEST_NAME}", fix="write one with firp export"
        )
    data = read_json(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if type(version) is not int or version < 1:
        raise BundleError(
            "not a bundle manifest", got=f"format_version {version!r} in {path}", expected=FORMAT_VERSION
        )
    if version < FORMAT_VERSION:
        raise BundleError(
            "bundle of an older format",
            got=f"version {version} in {path}",
            expected=FORMAT_VERSION,
            fix="export the model again",
        )
    if version > FORMAT_VERSION:
        raise BundleError(
            "bundle of a newer format",
            got=f"version {version} in {path}",
            expected=f"at most {FORMAT_VERSION}",
            fix="upgrade firp, or export the model again",
        )
    digest = data.pop("sha256", None)
    manifest = from_json(Manifest, data, MANIFEST_NAME)
    if digest != manifest_digest(data):
        raise BundleError(
            f"corrupted {MANIFEST_NAME}",
            got=f"sha256 {str(digest)[:12]}… in it",
            expected=f"{manifest_digest(data)[:12]}…",
            fix="copy the bundle again, or export it again",
        )
    try:
        manifest.precision.validate(str(path))
        manifest.model.validate(str(path))
        if manifest.quantization:
            manifest.quantization.validate(str(path))
    except FirpError as error:
        raise error.with_fix(BundleError, "export the model again") from error
    layers, split = manifest.model.num_hidden_layers, manifest.prediction_layer
    if not 1 <= split < layers or manifest.num_predictors < 0:
        raise BundleError(
            f"bad split in {path}", got=f"layer {split} of {layers}, {manifest.num_predictors} predictors"
        )
    contracts = {spec.cache for spec in manifest.graphs.values()} - {None, *CACHE_CONTRACTS}
    if contracts:
        raise BundleError(
            f"unknown cache contract in {path}",
            got=", ".join(sorted(contracts)),
            expected=" or ".join(CACHE_CONTRACTS),
            fix="upgrade firp, or export the model again",
        )
    if manifest.graphs != graph_specs(manifest.model, split, manifest.num_predictors, manifest.precision):
        raise BundleError(
            f"{MANIFEST_NAME} does not declare the graphs of its model", fix="export the model again"
        )
    needed = {"model.safetensors", "generation_config.json"}
    needed |= {spec.file for c in manifest.contracts for spec in manifest.graphs_for(c).values()}
    needed |= {"predictors.safetensors", "tree.json"} if manifest.num_predictors else set()
    for choice in manifest.choices.values():
        choice.tree.validate(manifest.num_predictors)
    drafts = manifest.num_predictors > 0
    check_provenance(manifest.source, manifest.written_by, manifest.verification, drafts)
    if absent := sorted(needed - set(manifest.files)):
        raise BundleError(f"{MANIFEST_NAME} lists no {', '.join(absent)}", fix="export the model again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace firp.json in one move, so that a bundle never holds half of it."""
    data = to_json(manifest)
    # two writers never share one
    temporary = folder / f".{MANIFEST_NAME}-{os.getpid()}-{threading.get_ident()}"
    try:
        write_json(temporary, {**data, "sha256": manifest_digest(data)})
        temporary.replace(folder / MANIFEST_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def check_large_files(bundle: Bundle, largest: int) -> None:
    """Compare the sha256 of the files that `load_bundle` left out. Raises BundleError."""
    for name, entry in bundle.manifest.files.items():
        if entry.size > largest:
            _check_hash(bundle.path / name, entry)


def _check_hash(file: Path, entry: FileEntry) -> None:
    digest = sha256_file(file)
    if digest != entry.sha256:
        raise BundleError(
            "corrupted file in bundle",
            got=f"sha256 {digest[:12]}… of '{file}'",
            expected=f"{entry.sha256[:12]}…",
            fix="copy the bundle again, or export it again",
        )


def _check_files(path: Path, manifest: Manifest, check_hashes: bool, largest: int | None) -> None:
    files = {name: own_file(path, name, entry.size) for name, entry in manifest.files.items()}
    for name, entry in manifest.files.items() if check_hashes else ():
        if largest is None or entry.size <= largest:
            _check_hash(files[name], entry)
    weights = stored_weights(path, manifest.blueprint)
    for contract in manifest.contracts:
        check_graphs(path, manifest.blueprint, weights, contract)


def eos_token_ids(config: Any, vocab_size: int, where: str) -> tuple[int, ...]:
    """`eos_token_id` of a generation_config.json (an id, a list or null) as a tuple. Raises
    BundleError for anything else.
    """
    value = config.get("eos_token_id") if isinstance(config, dict) else config
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not isinstance(config, dict) or not all(
        type(token) is int and 0 <= token < vocab_size for token in ids
    ):
        raise BundleError(
            f"bad eos_token_id in {where}", got=f"{value!r:.60}", expected=f"ids in [0, {vocab_size})"
        )
    return tuple(ids)


def manifest_digest(data: dict[str, Any]) -> str:
    """sha256 of the manifest's keys and values, however they are laid out in the file."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
