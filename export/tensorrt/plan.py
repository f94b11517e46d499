"""One graph to one TensorRT plan.

In: the library, an ONNX file, its GraphSpec and profiles, and for which devices. Out: the plan's
bytes, or a FirpError: the library's network is not the declared graph, the build failed or was
cancelled. `tensorrt` and `tensorrt_rtx` take the same way; what only one of them has is probed.
"""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from firp.runtime.bundle.dtypes import DTYPES
from firp.runtime.bundle.engine_record import Profile
from firp.runtime.bundle.graph_spec import GraphSpec, TensorSpec
from firp.runtime.errors import FirpError

# steps outside it take no time, and would fill the bar before the work begins
_SLOW_PHASE = "Computing profile costs"
_DROPPED = re.compile(r"\b(ignor|unused|not used|drop|discard|skip|unsupported|not supported)", re.IGNORECASE)


class BuildFor(NamedTuple):
    """The library that builds plans, and the devices that they are for."""

    library: ModuleType
    compute_capabilities: tuple[str, ...]
    timing_cache: Path | None  # read if it is there, and written; None: the library times no kernels


def build_plan(
    build_for: BuildFor,
    onnx: Path,
    spec: GraphSpec,
    profiles: tuple[Profile, ...],
    report: Callable[[float], None],
    cancel: threading.Event,
    more_outputs: tuple[str, ...] = (),
) -> memoryview:
    """Build the plan of one graph. report: is called with the share that is done; more_outputs:
    tensors that the plan gives beside the declared ones. Raises FirpError.
    """
    library = build_for.library
    logger = make_logger(library)
    builder = library.Builder(logger)
    # TensorRT 11 knows no other kind of network, so the flag may be gone
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = library.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors]
        raise FirpError(f"the library cannot read {onnx.name}", got="; ".join(reasons or logger.errors)[:500])
    check_network(network, spec)
    _mark_outputs(network, more_outputs)
    config = builder.create_builder_config()
    monitor = make_monitor(library, report, cancel)  # a name of its own: the config does not keep it alive
    config.progress_monitor = monitor
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder, profile))
    _configure(library, config, build_for.compute_capabilities)
    cache = _open_timing_cache(config, build_for.timing_cache) if build_for.timing_cache else None
    plan = builder.build_serialized_network(network, config)
    if cancel.is_set():
        raise FirpError("interrupted", got=f"the build of {spec.name} was cancelled")
    if plan is None:
        raise FirpError(
            f"the build of {spec.name} failed",
            got="; ".join(logger.errors)[:500] or "no reason from the library",
        )
    if dropped := [text for text in logger.warnings if _DROPPED.search(text)]:
        raise FirpError(f"the library does not build {spec.name} as it is", got="; ".join(dropped)[:500])
    if cache is not None:
        build_for.timing_cache.write_bytes(cache.serialize())
    return memoryview(plan)


def check_network(network: Any, spec: GraphSpec) -> None:
    """Check that the parsed network has the declared inputs and outputs, and uses every input.
    Raises FirpError.

    A parser that does not know an input of a node leaves it out, some without a word, and the
    engine decodes garbage.
    """
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for kind, found, declared in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        shown = {_shown(tensor) for tensor in found}
        expected = {_expected(tensor) for tensor in declared}
        if shown != expected or len(found) != len(declared):
            raise FirpError(
                f"the library reads other {kind} of {spec.name}",
                got=", ".join(sorted(shown - expected)) or "fewer",
                expected=", ".join(sorted(expected - shown)) or "no more",
            )
    layers = (network.get_layer(index) for index in range(network.num_layers))
    read = {
        tensor.name
        for layer in layers
        for index in range(layer.num_inputs)
        if (tensor := layer.get_input(index))
    }
    if unread := [tensor.name for tensor in inputs if tensor.name not in read]:
        raise FirpError(
            f"the library drops inputs of {spec.name}", got=", ".join(unread), expected="every input used"
        )


def _mark_outputs(network: Any, names: tuple[str, ...]) -> None:
    layers = (network.get_layer(index) for index in range(network.num_layers))
    tensors = {
        tensor.name: tensor
        for layer in layers
        for index in range(layer.num_outputs)
        if (tensor := layer.get_output(index))
    }
    if absent := [name for name in names if name not in tensors]:
        raise FirpError("the library's network has no such tensors", got=", ".join(absent[:5]))
    for name in names:
        network.mark_output(tensors[name])


def _shown(tensor: Any) -> str:
    return f"{tensor.name} {tensor.dtype.name} {list(tensor.shape)}"


def _expected(tensor: TensorSpec) -> str:
    shape = [-1 if isinstance(size, str) else size for size in tensor.shape]
    return f"{tensor.name} {DTYPES[tensor.dtype].tensorrt} {shape}"


def _optimization_profile(builder: Any, profile: Profile) -> Any:
    made = builder.create_optimization_profile()
    for name, (smallest, likeliest, largest) in profile.shapes.items():
        made.set_shape(name, smallest, likeliest, largest)
    return made


def _configure(library: ModuleType, config: Any, compute_capabilities: tuple[str, ...]) -> None:
    # without it a run may take memory, and cannot be captured
    if hasattr(library.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(library.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if hasattr(library, "ComputeCapability"):  # else a plan is for the device it is built on
        config.num_compute_capabilities = len(compute_capabilities)
        for index, capability in enumerate(compute_capabilities):
            config.set_compute_capability(
                getattr(library.ComputeCapability, f"SM{capability.replace('.', '')}"), index
            )


def _open_timing_cache(config: Any, path: Path) -> Any:
    """Attach the timings in `path`, or none if there are none or they are of no use here."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def make_logger(library: ModuleType) -> Any:
    """An ILogger that keeps warnings and errors, and shows nothing."""

    class Logger(library.ILogger):
        def __init__(self):
            library.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == library.ILogger.WARNING:
                self.warnings.append(text)

    return Logger()


def make_monitor(library: ModuleType, report: Callable[[float], None], cancel: threading.Event) -> Any:
    """An IProgressMonitor: phases lie within phases, so a step of an inner one is a share of its
    parent's step.
    """

    class Monitor(library.IProgressMonitor):
        def __init__(self):
            library.IProgressMonitor.__init__(self)
            self._lock = threading.Lock()  # the library calls from threads of its own
            self._phases: dict[str, list[int]] = {}  # name -> steps done, steps in all; outermost first
            self._shown = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = [0, max(num_steps, 1)]

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name][0] = step + 1
                self._shown = max(self._shown, self._done())  # never back
                report(self._shown)
            return not cancel.is_set()

        def _done(self) -> float:
            names = list(self._phases)
            counted = names[names.index(_SLOW_PHASE) :] if _SLOW_PHASE in names else []
            share = 1.0
            done = 0.0
            for steps, total in (self._phases[name] for name in counted):
                done += share * min(steps, total) / total
                share /= total
            return min(done, 1.0)

    return Monitor()
