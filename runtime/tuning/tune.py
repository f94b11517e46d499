"""Chooses the tree for this device and stores the choice in the bundle.

In: a bundle with calibrated trees, or prompts like what it will decode. Out: its manifest with one
`Choice` more, replaced in one move; nothing else changes.
"""

from dataclasses import replace

from firp.runtime.bundle.calibration import (
    TEXTS,
    TYPICAL_CONTEXT,
    Calibration,
    Candidate,
    Choice,
    LatencyTable,
)
from firp.runtime.bundle.format import MANIFEST_NAME, read_manifest, write_manifest
from firp.runtime.bundle.precision import refuse_blocks
from firp.runtime.engine import Engine, Prompt
from firp.runtime.errors import FirpError
from firp.runtime.progress import Progress, silent
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import CHAIN, DRAFTERS, DYNAMIC, FIRP, TreeConfig
from firp.runtime.tuning.batches import measure_batches
from firp.runtime.tuning.choose import choose, predicted_speedup
from firp.runtime.tuning.latency import measure_latency

LOOKUP_ROWS = (4, 8, 16)  # trees of prompt lookup that are tried on prompts
NEW_TOKENS = 96  # decoded of each prompt to try a tree
SAMPLED = SamplingParams(NEW_TOKENS, temperature=0.8)


def tune(
    engine: Engine,
    text: str = TEXTS[0],
    prompts: list[Prompt] | None = None,
    progress: Progress = silent,
) -> Choice:
    """Measure latency against rows here, and pick the tree with the highest expected tokens a
    second.

    prompts: decode these with the most promising trees and go by what those gave, instead of what
    calibration promised. Raises FirpError when there is nothing to choose from, or the bundle
    cannot be written.
    """
    quantization = engine.manifest.quantization
    refuse_blocks(quantization, "trees to choose from")
    calibration = engine.bundle.calibration
    if calibration is None and not prompts:
        raise FirpError(
            "the bundle has no calibrated trees",
            got=f"'{engine.bundle.path}'",
            fix="export it with predictors from firp calibrate, or give --prompts to choose drafts by lookup",
        )
    if calibration and quantization:
        calibration = calibration.for_chains()
        if not calibration.candidates and not prompts:
            raise FirpError(
                "all calibrated trees branch, and a quantized bundle drafts chains",
                got=f"'{engine.bundle.path}'",
                fix="calibrate again with this version, or give --prompts to choose a chain by",
            )
    if prompts and text not in ("greedy", "sampled"):
        raise FirpError("prompts are decoded", got=f"--text {text}", expected="greedy or sampled")
    k = engine.manifest.num_predictors
    limits = engine.limits
    found = [
        candidate
        for candidate in (calibration.candidates if calibration else ())
        if not limits or candidate.tree.pass_rows(k) <= limits.max_rows
    ]
    latency = measure_latency(engine, progress)
    latency = replace(latency, batches=measure_batches(engine, latency, progress))
    cached = min(TYPICAL_CONTEXT, engine.context // 2)
    if prompts:
        sizes = [len(engine.request(prompt).prompt) for prompt in prompts]
        cached = sum(sizes) // len(sizes) + NEW_TOKENS // 2
        if quantization:
            trees = promising_chains(latency, k, cached)
        else:
            trees = promising_trees(found, latency, k, text, cached)
        if limits:
            trees = [tree for tree in trees if tree.pass_rows(k) <= limits.max_rows]
        found = measured(engine, trees, prompts, text, progress)
    choice = choose(Calibration(tuple(found)), latency, k, text, cached)
    _store(engine, choice)
    return choice


def promising_trees(
    candidates: list[Candidate],
    latency: LatencyTable,
    num_predictors: int,
    text: str,
    cached: float = TYPICAL_CONTEXT,
) -> list[TreeConfig]:
    """Trees worth trying on prompts: of each set of drafters the best by calibration, of each size
    of a lookup tree one whose drafts must be worth a row here. cached: tokens before a step.
    """
    least = latency.worth_of_a_row(cached)
    trees = [TreeConfig.lookup(rows, least) for rows in LOOKUP_ROWS]
    by_drafters: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        if text in candidate.tokens_per_step:
            by_drafters.setdefault(candidate.tree.drafters, []).append(candidate)
    for group in by_drafters.values():
        best = max(group, key=lambda item: predicted_speedup(item, latency, num_predictors, text, cached))
        trees.append(best.tree)
        if best.tree.drafters == (FIRP,) and best.tree.kind == DYNAMIC:
            trees.append(replace(best.tree, least=least))
            trees.append(replace(best.tree, drafters=DRAFTERS, least=least))
    return list(dict.fromkeys(trees))


def promising_chains(latency: LatencyTable, num_predictors: int, cached: float) -> list[TreeConfig]:
    """Chains worth trying on prompts: copied ones, and with predictors those of FIRP and of both, from
    pseudo rows that ride along or of a draft pass. A draft must be worth a row here.
    """
    least = latency.worth_of_a_row(cached)
    copied = [replace(TreeConfig.lookup(rows, least), kind=CHAIN) for rows in LOOKUP_ROWS]
    if not num_predictors:
        return copied
    drafted = [TreeConfig(CHAIN, 1 + num_predictors, sources, least=least) for sources in (0, 1, 2)]
    both = [
        TreeConfig(CHAIN, rows, sources, drafters=DRAFTERS, least=least)
        for rows in LOOKUP_ROWS[1:]
        for sources in (0, 1, 2)
    ]
    return copied + drafted + both


def measured(
    engine: Engine, trees: list[TreeConfig], prompts: list[Prompt], text: str, progress: Progress
) -> list[Candidate]:
    """Decode these prompts with each tree, and tell what it gives."""
    params = SAMPLED if text == "sampled" else SamplingParams(NEW_TOKENS)
    requests = [engine.request(prompt, params) for prompt in prompts]
    found = []
    for index, tree in enumerate(trees):
        progress("trying trees on prompts", index, len(trees))
        steps = [step for request in requests for step in engine.steps(request, tree) if step.rows]
        drafted = [step.rows for step in steps if step.rows > 1]
        if steps:
            tokens = sum(len(step.tokens) for step in steps)
            mean_rows = sum(drafted) / len(drafted) if drafted else 1.0
            found.append(
                Candidate(
                    tree,
                    {text: tokens / len(steps)},
                    {text: 1 - len(drafted) / len(steps)},
                    {text: mean_rows},
                )
            )
    return found


def _store(engine: Engine, choice: Choice) -> None:
    path = engine.bundle.path
    # it may have been replaced, or tuned for another device, while this one measured
    now = read_manifest(path / MANIFEST_NAME)
    if now.files != engine.manifest.files:
        raise FirpError("the bundle was replaced while it was measured", got=f"'{path}'", fix="tune again")
    try:
        write_manifest(path, replace(now, choices={**now.choices, engine.backend.device: choice}))
    except OSError as error:
        got = f"'{path}': {error.strerror}"
        fix = "make it writable, or free some disk"
        raise FirpError("cannot write to the bundle", got=got, fix=fix) from error
