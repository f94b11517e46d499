"""Kernels that an engine runs, read from the text inside its plan.

In: a plan file. Out: for each of its profiles the kernels in order, and a summary: launches, fused
attentions, GEMMs, copies of the cache. TensorRT-RTX writes each profile's program into the plan as
text; the format is its own, so this reader goes by a few names and yields no program where it finds
none of them. Checked with TensorRT-RTX 1.7.1.
"""

import itertools
import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from firp.runtime.bundle.graph_spec import cached_layer, is_past

_PROGRAM = re.compile(rb"accelerators=\{([^}]{1,200})\}")
_NO_LAUNCH = ("shape_call", "signal", "wait")  # computed on the host; events between streams
_SHAPES_ONLY = b"*"  # the program computes shapes, on the host
_STATEMENT = re.compile(r'^  (\w+)=\{ name=("[^"]*"|\S+)', re.MULTILINE)
_INPUTS = re.compile(r'\binput(?:_args)?=\{((?: ?"[^"]*")*) ?\}')
_OUTPUTS = re.compile(r'\boutput(?:_args)?=\{((?: ?"[^"]*")*) ?\}')
_VIEW = re.compile(r'^  sub_tensor=\{ base="([^"]*)".*? name="([^"]*)"', re.MULTILINE)


class Kernel(NamedTuple):
    """One launch of a plan: its kind, its name, and the tensors that it reads and writes."""

    kind: str  # "attention", "gemm" or "other"
    name: str
    inputs: frozenset[str]
    outputs: frozenset[str]


@dataclass(frozen=True)
class PlanSummary:
    """Launches of one profile of a plan, counted."""

    launches: int
    launches_per_layer: int  # the most between what reads one layer's cache and what reads the next's
    attentions: int  # fused ones; a layer whose attention is not fused adds none
    gemms: int
    copied_caches: int  # keys or values that pass memory more often than in the concat before the attention


def read_plan(path: Path) -> list[tuple[Kernel, ...]]:
    """A plan's programs in the order of its profiles; [] when the plan lists no kernels."""
    programs = []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
        for header in _PROGRAM.finditer(plan):
            if header[1].strip() != _SHAPES_ONLY:
                start = plan.find(b"\nmain {\n", header.end())
                end = plan.find(b"\n}\n", start)
                if start >= 0 and end >= 0:
                    descriptors, main = (
                        plan[header.end() : start].decode("latin-1"),
                        plan[start:end].decode("latin-1"),
                    )
                    programs.append(_kernels(main, {view: base for base, view in _VIEW.findall(descriptors)}))
    return programs


def summarize(kernels: tuple[Kernel, ...]) -> PlanSummary:
    """Count the launches of one profile's kernels."""
    layers: dict[int, int] = {}  # -> the first kernel that reads its cache
    for index, kernel in enumerate(kernels):
        for name in filter(is_past, kernel.inputs):
            layers.setdefault(cached_layer(name), index)
    gaps = [after - before for before, after in itertools.pairwise(sorted(layers.values()))]
    return PlanSummary(
        launches=len(kernels),
        launches_per_layer=max(gaps, default=len(kernels)),
        attentions=sum(kernel.kind == "attention" for kernel in kernels),
        gemms=sum(kernel.kind == "gemm" for kernel in kernels),
        copied_caches=sum(_is_copied(name, kernels) for name in sorted(_cached(kernels))),
    )


def _kernels(main: str, views: dict[str, str]) -> tuple[Kernel, ...]:
    starts = [*_STATEMENT.finditer(main)]
    ends = [*(start.start() for start in starts[1:]), len(main)]
    kernels = []
    for start, end in zip(starts, ends, strict=True):
        statement = start[1]
        name = start[2].strip('"')
        text = main[start.start() : end]
        if statement not in _NO_LAUNCH:
            tensors = (
                frozenset(
                    views.get(tensor, tensor)
                    for found in pattern.findall(text)
                    for tensor in re.findall(r'"([^"]*)"', found)
                )
                for pattern in (_INPUTS, _OUTPUTS)
            )
            kernels.append(Kernel(_kind(statement, name, text), name, *tensors))
    return tuple(kernels)


def _kind(statement: str, name: str, text: str) -> str:
    if "mha" in name:  # multi-head attention: scores, softmax and their product in one kernel
        return "attention"
    return "gemm" if statement == "fully_connected" or "backbone=gemm" in text else "other"


def _cached(kernels: tuple[Kernel, ...]) -> set[str]:
    return {name for kernel in kernels for name in kernel.inputs if is_past(name)}


def _is_copied(past: str, kernels: tuple[Kernel, ...]) -> bool:
    """Tell whether `past` goes to an attention otherwise than through one kernel, whose result that
    attention alone reads.
    """
    readers = [kernel for kernel in kernels if past in kernel.inputs]
    if len(readers) != 1 or readers[0].kind == "attention":
        return len(readers) > 1
    attentions = [kernel for kernel in kernels if kernel.kind == "attention"]
    joined = {
        name for name in readers[0].outputs if any(name in attention.inputs for attention in attentions)
    }
    others = (kernel for kernel in kernels if kernel.kind != "attention" and kernel is not readers[0])
    return not joined or any(joined & kernel.inputs for kernel in others)
