"""The engine folders of a bundle: what engine.json records of TensorRT's plans, and whether they
may be loaded here.

In: a bundle, the backend and the device. Out: an `EngineFolder`, or a FirpError before anything is
deserialized. A folder is BUNDLE/engines/<backend>-<library version>-<sm...>/ and holds
{lower,predictors,upper}.plan and engine.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from firp.runtime.bundle.format import Bundle, FileEntry, Manifest, sha256_file
from firp.runtime.bundle.graph_spec import PREFIX
from firp.runtime.bundle.graphs.stored import weight_file
from firp.runtime.bundle.json_fields import from_json, read_json
from firp.runtime.bundle.limits import Limits
from firp.runtime.errors import BundleError, FirpError

FORMAT_VERSION = 1
ENGINES_FOLDER = "engines"
RECORD_NAME = "engine.json"


@dataclass(frozen=True)
class Profile:
    """An optimization profile: for each input of a graph the smallest, the likeliest and the
    largest shape.
    """

    name: str  # "decode" or "prefill"
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class EngineRecord:
    """engine.json."""

    format_version: int
    backend: str  # a name in firp.runtime.backends.registry.BACKENDS
    library_version: str
    compute_capabilities: tuple[str, ...]  # of the devices that the plans run on, such as "8.9"
    limits: Limits
    profiles: dict[str, tuple[Profile, ...]]  # graph -> profiles, in the engine's order
    built_from: dict[str, str]  # file of the bundle -> its sha256 at that time
    plans: dict[str, FileEntry]  # graph -> its plan
    build_seconds: dict[str, float]  # graph -> time
    peak_bytes: int  # resident memory of the builder at its largest


class EngineFolder(NamedTuple):
    """The plans of a bundle for one library version, and what is recorded of them."""

    path: Path
    record: EngineRecord

    def plan_path(self, graph: str) -> Path:
        """Path of a graph's plan."""
        return self.path / f"{graph}.plan"


def fitting_profile(graph: str, profiles: tuple[Profile, ...], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The first profile that holds a pass with these shapes. Raises FirpError when none does."""
    wrong = ""
    for index, profile in enumerate(profiles):
        outside = [
            f"{name} {list(shapes[name])}, {profile.name} holds {list(low)} to {list(high)}"
            for name, (low, _, high) in profile.shapes.items()
            if not all(a <= size <= b for a, size, b in zip(low, shapes[name], high, strict=True))
        ]
        if not outside:
            return index
        wrong = wrong or outside[0]
    fix = "a smaller pass, or firp build with a larger --max-context, --max-rows or --max-batch"
    raise FirpError(f"the {graph} engine does not hold such a pass", got=wrong, fix=fix)


def folder_name(backend: str, library_version: str, compute_capabilities: tuple[str, ...]) -> str:
    """Name of an engine folder, such as tensorrt-rtx-1.7.1.116-sm80-sm89."""
    return "-".join(
        [
            backend,
            library_version,
            *(f"sm{capability.replace('.', '')}" for capability in compute_capabilities),
        ]
    )


def source_hashes(manifest: Manifest, graph: str) -> dict[str, str]:
    """The files that a graph's plan is made from."""
    file = manifest.graphs_for(PREFIX)[graph].file
    return {name: manifest.files[name].sha256 for name in (file, weight_file(graph))}


def read_record(folder: Path, build: str) -> EngineRecord:
    """Read engine.json. build: the command that makes a new one. Raises BundleError when it is
    none.
    """
    where = f"{folder.name}/{RECORD_NAME}"
    data = read_json(folder / RECORD_NAME)
    version = data.get("format_version") if isinstance(data, dict) else None
    if version != FORMAT_VERSION:
        raise BundleError(
            f"engines of another format in '{folder}'",
            got=f"version {version}",
            expected=FORMAT_VERSION,
            fix=build,
        )
    try:
        record = from_json(EngineRecord, data, where)
    except BundleError as error:
        raise error.with_fix(BundleError, build) from error
    limits = data["limits"]
    if set(limits) != {"max_context", "max_batch", "max_rows"} or min(limits.values()) < 1:
        raise BundleError(f"bad limits in {where}", got=limits, expected="three positive numbers", fix=build)
    return record


def engine_folders(bundle: Path, backend: str = "") -> list[Path]:
    """Folders in a bundle that hold engines of a backend, or of any; hidden ones are unfinished."""
    parent = bundle / ENGINES_FOLDER
    found = parent.glob(f"{backend}-[0-9]*" if backend else "*") if parent.is_dir() else ()
    return sorted(folder for folder in found if folder.name[0] != "." and (folder / RECORD_NAME).is_file())


def find_engine_folder(
    bundle: Bundle, backend: str, library_version: str, compute_capability: str, check_hashes: bool = True
) -> EngineFolder:
    """The folder for this library and device; of several the one for the fewest devices, made for
    this one. Raises FirpError with the command that builds one when there is none, and BundleError
    when all were built from another bundle or are not whole.
    """
    build = f"firp build {bundle.path} --backend {backend} --force"
    found = []
    reasons = []
    for path in engine_folders(bundle.path, backend):
        try:
            found.append(EngineFolder(path, read_record(path, build)))
        except BundleError as error:
            reasons.append(error)
    found = [folder for folder in found if folder.record.backend == backend]
    matching = [folder for folder in found if folder.record.library_version == library_version]
    usable = [folder for folder in matching if compute_capability in folder.record.compute_capabilities]
    for folder in sorted(usable, key=lambda folder: len(folder.record.compute_capabilities)):
        try:
            _check_whole(folder, bundle.manifest, build, check_hashes)
            return folder
        except BundleError as error:
            reasons.insert(0, error)
    if reasons:
        raise reasons[0]
    if not found:
        raise FirpError(f"the bundle has no {backend} engines", got=f"'{bundle.path}'", fix=build)
    if not matching:
        versions = ", ".join(sorted({folder.record.library_version for folder in found}))
        raise FirpError(
            f"engines of another {backend} version", got=versions, expected=library_version, fix=build
        )
    capabilities = {number for folder in matching for number in folder.record.compute_capabilities}
    raise FirpError(
        "engines for another GPU",
        got=f"compute capability {', '.join(sorted(capabilities))}",
        expected=compute_capability,
        fix=build,
    )


def _check_whole(folder: EngineFolder, manifest: Manifest, build: str, check_hashes: bool) -> None:
    record = folder.record
    graphs = manifest.graphs_for(PREFIX)
    if set(record.plans) != set(graphs) or set(record.profiles) != set(graphs):
        raise BundleError(
            "engines of another bundle", got=sorted(record.plans), expected=sorted(graphs), fix=build
        )
    for graph, entry in record.plans.items():
        ranks = {tensor.name: len(tensor.shape) for tensor in graphs[graph].inputs}
        for profile in record.profiles[graph]:
            # a profile: the smallest, the likeliest and the largest shape of each input
            if any(
                {name: len(shapes[i]) for name, shapes in profile.shapes.items()} != ranks for i in range(3)
            ):
                what = f"the {profile.name} profile in '{folder.path}' is not one of the {graph} graph"
                raise BundleError(what, fix=build)
        for name, digest in source_hashes(manifest, graph).items():
            if record.built_from.get(name) != digest:
                raise BundleError(
                    "engines of another bundle",
                    got=f"{name} {str(record.built_from.get(name))[:12]} in '{folder.path}'",
                    expected=digest[:12],
                    fix=build,
                )
        path = folder.plan_path(graph)
        size = path.stat().st_size if path.is_file() and not path.is_symlink() else None
        if size != entry.size:
            got = "no such file" if size is None else f"{size} bytes"
            raise BundleError(f"damaged engine '{path}'", got=got, expected=f"{entry.size} bytes", fix=build)
        if check_hashes and sha256_file(path) != entry.sha256:
            raise BundleError(
                f"damaged engine '{path}'", got="another sha256", expected=entry.sha256[:12], fix=build
            )
