"""`firp build`: a bundle's graphs to TensorRT engines.

In: a bundle and `BuildOptions`. Out: BUNDLE/engines/<backend>-<version>-<sm...>/ with a plan for
each graph and engine.json, which appears whole or not at all. Graphs are built one after the other,
so that one half's weights are in memory at a time.
"""

import hashlib
import re
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import onnx_ir as ir

from firp.export.leftovers import repair_all
from firp.export.target_folder import disk_errors, target_folder
from firp.export.tensorrt.plan import BuildFor, build_plan
from firp.export.tensorrt.shapes import graph_profiles
from firp.runtime.backends.nvidia_library import LIBRARIES, gpu_compute_capability, load_library
from firp.runtime.bundle.engine_record import (
    ENGINES_FOLDER,
    FORMAT_VERSION,
    RECORD_NAME,
    EngineRecord,
    folder_name,
    source_hashes,
)
from firp.runtime.bundle.format import MANIFEST_NAME, Bundle, FileEntry, Manifest, load_bundle, read_manifest
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.json_fields import to_json, write_json
from firp.runtime.bundle.limits import Limits
from firp.runtime.bundle.precision import refuse_quantized
from firp.runtime.errors import BundleError, FirpError, foreign_errors
from firp.runtime.machine import available_bytes, peak_bytes, require_bytes, reset_peak
from firp.runtime.progress import Progress, silent
from firp.runtime.trees.tree_config import MAX_PASS_ROWS

TIMING_CACHE_NAME = "timing.cache"
OWN_FILES = {RECORD_NAME, TIMING_CACHE_NAME}  # of a folder of engines, beside the plans
_MOST_BATCH = 1024
_OLDEST_DEFAULT = (8, 0)  # a plan that includes 7.5 runs 7.5's kernels on every device


@dataclass(frozen=True)
class BuildOptions:
    """A backend, the limits of its engines, and the devices that they are for."""

    backend: str  # a name in LIBRARIES
    limits: Limits = field(default_factory=Limits)
    compute_capabilities: tuple[str, ...] | None = None  # None: see `choose_capabilities`
    force: bool = False  # replace engines for the same version and devices


def build_engines(
    bundle: Path,
    options: BuildOptions,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> EngineRecord:
    """Build, write and return engine.json. A context limit beyond the model's is lowered to it.

    Raises FirpError: no library, a bundle that cannot be built, limits out of range, engines that
    exist, too little memory or disk, a build that failed or that `cancel` ended.
    """
    found = read_manifest(bundle / MANIFEST_NAME)
    refuse_quantized(found.quantization, options.backend)
    library, capabilities = check_buildable(options, found.precision.compute)
    loaded = load_bundle(bundle)
    manifest = loaded.manifest
    limits = check_limits(options.limits, manifest)
    output = bundle / ENGINES_FOLDER / folder_name(options.backend, library.__version__, capabilities)
    with disk_errors(output):
        repair_all(output.parent)
    if output.is_dir() and not options.force:
        raise FirpError("these engines are built already", got=f"'{output}'", fix="replace them with --force")
    _check_own_files(output)
    graphs = manifest.graphs_for(PREFIX)
    weights = {name: graph_weight_bytes(loaded.graph_path(spec)) for name, spec in graphs.items()}
    require_build_memory(manifest, weights, available_bytes())
    check_disk(manifest, weights, shutil.disk_usage(bundle).free)
    with target_folder(output, RECORD_NAME, options.force) as folder:
        timing_cache = None if hasattr(library, "ComputeCapability") else folder / TIMING_CACHE_NAME
        with disk_errors(output):
            if timing_cache and (output / TIMING_CACHE_NAME).is_file():
                timing_cache.write_bytes((output / TIMING_CACHE_NAME).read_bytes())
            build_for = BuildFor(library, capabilities, timing_cache)
            record = _build_all(folder, loaded, options.backend, limits, build_for, weights, progress, cancel)
            write_json(folder / RECORD_NAME, to_json(record))
    return record


def _check_own_files(folder: Path) -> None:
    """Check that a folder to be replaced holds plans and their records alone. One without its
    record is of no use, and is removed.
    """
    if not folder.is_dir():
        return
    foreign = sorted(
        file.name for file in folder.iterdir() if not (file.suffix == ".plan" or file.name in OWN_FILES)
    )
    if foreign:
        raise FirpError(f"'{folder}' holds other files", got=", ".join(foreign[:5]), fix="move them")
    if not (folder / RECORD_NAME).is_file():
        shutil.rmtree(folder)


class Buildable(NamedTuple):
    """A library that can build for the devices that were asked for."""

    library: ModuleType
    compute_capabilities: tuple[str, ...]


def check_buildable(options: BuildOptions, dtype: str) -> Buildable:
    """Check everything that can be checked without the bundle. Raises FirpError."""
    backend = options.backend
    if backend not in LIBRARIES:
        raise FirpError("unknown backend", got=repr(backend), expected=" or ".join(LIBRARIES))
    if dtype == "float32":
        raise FirpError(
            f"{backend} has no fused attention in float32",
            got="a float32 bundle",
            expected="float16 or bfloat16",
            fix="export with --dtype float16",
        )
    library = load_library(backend)
    capabilities = choose_capabilities(library, options, gpu_compute_capability())
    if dtype == "bfloat16" and _number(capabilities[0]) < (8, 0):
        raise FirpError(
            "bfloat16 needs compute capability 8.0", got=capabilities[0], fix="export with --dtype float16"
        )
    return Buildable(library, capabilities)


def check_limits(limits: Limits, manifest: Manifest) -> Limits:
    """Limits with the context lowered to the model's. Raises FirpError when one is out of range."""
    ranges = {
        "max_context": (1, 2**31 - 1),
        "max_batch": (1, _MOST_BATCH),
        "max_rows": (1 + manifest.num_predictors, MAX_PASS_ROWS),  # a root and its pseudo rows
    }
    for name, (least, most) in ranges.items():
        if not least <= getattr(limits, name) <= most:
            raise FirpError(
                f"--{name.replace('_', '-')} out of range",
                got=getattr(limits, name),
                expected=f"{least} to {most}",
            )
    return replace(limits, max_context=min(limits.max_context, manifest.model.max_position_embeddings))


def choose_capabilities(library: ModuleType, options: BuildOptions, here: str | None) -> tuple[str, ...]:
    """The devices to build for, ascending. TensorRT: the GPU that is here. TensorRT-RTX: those
    requested; else the GPU that is here; else all that the library knows from 8.0 on, which costs
    neither time nor size. Raises FirpError.
    """
    requested = options.compute_capabilities
    backend = options.backend
    if not hasattr(library, "ComputeCapability"):
        if here is None:
            raise FirpError(
                f"{backend} builds on the GPU that the engines are for",
                got="no CUDA device",
                fix="build on the target, or use --backend tensorrt-rtx",
            )
        if requested not in (None, (here,)):
            raise FirpError(
                f"{backend} builds for the GPU that is here", got=", ".join(requested), expected=here
            )
        return (here,)
    names = (re.fullmatch(r"SM(\d+)(\d)", name) for name in dir(library.ComputeCapability))
    offered = sorted((f"{found[1]}.{found[2]}" for found in names if found), key=_number)
    if requested is None:
        recent = tuple(capability for capability in offered if _number(capability) >= _OLDEST_DEFAULT)
        requested = recent if here is None else (here,)
    if not requested or (unknown := [capability for capability in requested if capability not in offered]):
        got = f"compute capability {', '.join(unknown) if requested else 'none'}"
        fix = "use --backend tensorrt on the target" if here in requested else None
        raise FirpError(
            f"{backend} does not build for this GPU", got=got, expected=", ".join(offered), fix=fix
        )
    return tuple(sorted(set(requested), key=_number))


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def graph_weight_bytes(onnx: Path) -> int:
    """Bytes of the weights that a graph refers to; none is read. Raises BundleError for a file that
    is no graph.
    """
    again = "export the model again"
    with foreign_errors(
        lambda reason: BundleError("graph does not load", got=f"'{onnx}': {reason}", fix=again)
    ):
        initializers = ir.load(onnx).graph.initializers.values()
        return sum(value.const_value.nbytes for value in initializers)


def memory_needed(manifest: Manifest, graph: str, weight_bytes: int) -> dict[str, int]:
    """Bytes that building one graph takes at its peak, by purpose. Measured with TensorRT-RTX 1.7.1
    on graphs of 2 to 16 layers and 5 MB to 1.5 GB (`benchmarks/engine_build.py`): weights are
    mapped once and copied for the network, the engine and the plan.
    """
    return {
        "weights": weight_bytes * 37 // 10,
        "kernels": len(manifest.layers(graph)) * (14 << 20),
        "library": 290 << 20,
    }


def require_build_memory(manifest: Manifest, weights: dict[str, int], available: int | None) -> None:
    """Require the memory of a build. Raises FirpError, with the sum, when this machine cannot hold
    the larger half's build. available: in bytes; None is not checked.
    """
    needed = {graph: memory_needed(manifest, graph, size) for graph, size in weights.items()}
    largest = max(needed, key=lambda graph: sum(needed[graph].values()))
    require_bytes(
        f"not enough memory to build {largest}",
        needed[largest],
        available,
        fix="free some memory, or build on a larger machine",
    )


def check_disk(manifest: Manifest, weights: dict[str, int], free: int) -> None:
    """Check the disk. Raises FirpError when the plans will not fit: each holds its graph's weights,
    and up to 2 MiB of kernels a layer.
    """
    kernels = manifest.model.num_hidden_layers * (2 << 20)
    needed = {"weights": sum(weights.values()), "kernels": kernels}
    require_bytes("not enough disk space for engines", needed, free)


def _build_all(
    folder: Path,
    bundle: Bundle,
    backend: str,
    limits: Limits,
    build_for: BuildFor,
    weights: dict[str, int],
    progress: Progress | None,
    cancel: threading.Event | None,
) -> EngineRecord:
    manifest = bundle.manifest
    graphs = manifest.graphs_for(PREFIX)
    progress = progress or silent
    cancel = cancel or threading.Event()
    profiles = {name: graph_profiles(manifest, name, limits) for name in graphs}
    plans = {}
    seconds = {}
    done = 0
    total = sum(weights.values())
    reset_peak()
    for name, spec in graphs.items():
        started = time.perf_counter()
        before = done
        size = weights[name]

        def report(share: float, name: str = name, before: int = before, size: int = size) -> None:
            progress(f"building {name}", before + int(share * size), total)

        report(0.0)
        plan = build_plan(build_for, bundle.graph_path(spec), spec, profiles[name], report, cancel)
        (folder / f"{name}.plan").write_bytes(plan)
        plans[name] = FileEntry(plan.nbytes, hashlib.sha256(plan).hexdigest())
        del plan  # before the next half is built
        seconds[name] = time.perf_counter() - started
        done += size
    return EngineRecord(
        format_version=FORMAT_VERSION,
        backend=backend,
        library_version=build_for.library.__version__,
        compute_capabilities=build_for.compute_capabilities,
        limits=limits,
        profiles=profiles,
        built_from={file: sha for name in graphs for file, sha in source_hashes(manifest, name).items()},
        plans=plans,
        build_seconds=seconds,
        peak_bytes=peak_bytes() or 0,
    )
