"""Lines that several commands show: trees, choices, latencies, near ties.

In: records. Out: a line of text, or lines on stdout and stderr.
"""

from collections import Counter
from typing import Any

from firp.runtime.bundle.calibration import Choice, LatencyTable
from firp.runtime.bundle.precision import Quantization
from firp.runtime.console.progress import messages
from firp.runtime.console.tables import print_table
from firp.runtime.engine import Engine
from firp.runtime.trees.tree_config import FIRP, LOOKUP, TreeConfig


def describe(tree: TreeConfig) -> str:
    """One line about a tree."""
    parts = [tree.kind, f"{tree.rows} rows"]
    if FIRP in tree.drafters:
        parts.append(
            "a draft pass" if tree.draft_sources == 0 else f"drafts from {tree.draft_sources or 'every row'}"
        )
    if LOOKUP in tree.drafters:
        parts.append("prompt lookup")
    if tree.depth:
        parts.append(f"depth {tree.depth}")
    if tree.least:
        parts.append(f"drafts of probability {tree.least:g} or more")
    return ", ".join(parts)


def quantization_lines(quantization: Quantization) -> list[str]:
    """What weights are, and what that costs."""
    counts = Counter(linear.format for linear in quantization.linears.values())
    kept = sum(linear.kept for linear in quantization.linears.values())
    lines = [
        f"{quantization.method}: "
        + ", ".join(f"{count} weights as {form}" for form, count in counts.most_common())
        + (f", {kept} of them as the model's file has them" if kept else "")
    ]
    if unreached := quantization.unreached:
        lines.append(
            f"{len(unreached)} experts that the calibration text never reaches are rounded as they are, "
            f"as {unreached[0]}; --quantize-text takes a text like yours"
        )
    if quality := quantization.quality:
        lines.append(
            f"quality on {quality.tokens} held-out tokens: perplexity {quality.perplexity:.2f}, in float32 "
            f"{quality.float_perplexity:.2f} ({quality.loss_percent:+.1f} %); KL {quality.kl:.3f}, "
            f"same first token {quality.top1:.1%}"
        )
    return lines


def print_choice(choice: Choice) -> None:
    """Say on stderr what was chosen for a device, and what it is worth."""
    if choice.drafts:
        rate = f"{choice.tokens_per_step:.2f} tokens/step, expected speedup {choice.speedup:.2f}"
        messages.print(f"chosen for this device: {describe(choice.tree)}; {rate}")
    else:
        rate = f"the best tree would reach {choice.speedup:.2f} of its speed"
        messages.print(f"chosen for this device: plain decoding; {rate}")


def print_basis(engine: Engine) -> None:
    """Say on stderr what the trees to choose from are known to give, and what is taken for granted."""
    calibration = engine.bundle.calibration
    manifest = engine.manifest
    found = calibration.for_chains() if manifest.quantization else calibration
    kind = "chains" if manifest.quantization else "trees"
    replayed = calibration.replayed
    if replayed is None:
        texts = "held-out text, its model not named"
    else:
        counts = ", ".join(f"{count:,} {text}" for text, count in replayed.tokens.items())
        texts = f"held-out tokens ({counts}) of {replayed.model} in {replayed.precision}"
    messages.print(
        f"expected from {len(found.candidates)} {kind}, replayed on {texts}; that this {manifest.arithmetic} "
        "bundle writes and drafts alike is assumed, its times are measured; --prompts decodes instead"
    )


def tuning_remark(engine: Engine) -> str | None:
    """A remark on the tree that is used, if a user should know anything."""
    if engine.best_tree is None:
        return "the bundle has no predictors: decoding plainly; firp tune BUNDLE --prompts tries lookup"
    if engine.choice is None:
        device = engine.backend.device
        return f"not tuned for this device ({device}): firp tune BUNDLE chooses its fastest tree"
    if not engine.choice.drafts:
        rate = f"the best tree would reach {engine.choice.speedup:.2f} of its speed"
        return f"plain decoding is fastest on this device: {rate}"
    return None


def print_latency(latency: LatencyTable) -> None:
    """Print milliseconds against rows of a pass and cached tokens."""
    columns = list(zip(*latency.lower_ms, *latency.upper_ms, strict=True))
    names = [f"{half} ms, {cached}" for half in ("lower", "upper") for cached in latency.contexts]
    print_table(
        ("rows of a pass", *names),
        [
            (str(count), *(f"{ms:.2f}" for ms in times))
            for count, times in zip(latency.rows, columns, strict=True)
        ],
        f"latency on {latency.device} by cached tokens; outside the graphs "
        f"{latency.plain_outside_ms:.2f} ms a plain step, {latency.drafted_outside_ms:.2f} a drafted one",
    )
    if latency.batches:
        names = [f"{half} ms, {n}" for half in ("lower", "upper") for n in latency.batches[0].contexts]
        print_table(
            ("sequences", "rows of each", *names),
            [
                (str(batch.sequences), str(count), *(f"{ms:.2f}" for ms in times))
                for batch in latency.batches
                for count, *times in zip(batch.rows, *batch.lower_ms, *batch.upper_ms, strict=True)
            ],
            "passes that several sequences share",
        )


def count_ties(verification: dict[str, Any]) -> str:
    """Count the near ties that a verification met, in words."""
    count = len(verification["near_ties"])
    return f"{count} near ties" if count else "no near tie"
