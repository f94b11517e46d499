"""Proof that a bundle says what the model says: Hugging Face against ONNX, and drafted against
plain decoding.

In: a bundle folder and, for the first part, the model directory it came from. Out: a list of
`Check`; nothing is only a warning. Hidden states and logits are compared with the Hugging Face
model (eager, float32) in prefill, in chained decoding and over a random tree; plain tokens with its
`generate`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.sources.huggingface import open_checkpoint
from firp.export.verify.rows import STAGES, HuggingFaceRows, Rows, SessionRows
from firp.runtime.bundle.format import Manifest
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, CheckpointError
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import MAX_PASS_ROWS, TreeConfig
from firp.runtime.tuning.parity import NEAR_TIE, compare_trees, first_difference, plain_run

# Largest absolute difference of a value up to VALUE_SCALE in a model of up to LAYER_SCALE layers;
# in proportion for larger values and deeper models, as rounding is. float32: the demo model's 8
# layers differ by 1.4e-5, which is Hugging Face's own distance from float64; half types: their unit
# roundoff (2^-11, 2^-8) times the residual stream's magnitude.
ABSOLUTE_LIMIT = {"float32": 1e-4, "float16": 0.25, "bfloat16": 2.0}
VALUE_SCALE = 16.0
LAYER_SCALE = 16
TEXTS = (
    "The quick brown fox jumps over the lazy dog. The dog",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Question: What is 12 plus 30?\nAnswer:",
)


class Check(NamedTuple):
    name: str
    passed: bool
    value: float  # what was measured: the largest difference, or a count of tokens or runs that differ
    limit: float


@dataclass(frozen=True)
class Report:
    checks: list[Check]
    # drafted runs that left the plain run at a near tie, with the margin there
    near_ties: list[dict[str, Any]]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "checks": [check._asdict() for check in self.checks],
            "passed": self.passed,
            "near_ties": self.near_ties,
        }


def verify(
    bundle: Path,
    model_dir: Path | None,
    progress: Callable[[str], None] | None = None,
    check_hashes: bool = True,
    engine: Engine | None = None,
) -> Report:
    """Run every check that applies: against Hugging Face when `model_dir` is given, against ONNX
    Runtime on the CPU when `engine` runs elsewhere, drafted against plain when there are drafts.
    engine: of this bundle; None: on the CPU.
    """
    engine = engine or Engine.load(bundle, check_hashes=check_hashes)
    # loading raises for a wrong one
    checks, ties = [Check("file hashes", True, 0, 0)] if check_hashes else [], []
    if model_dir:
        _check_source(engine, model_dir)
    stages = [_against_hugging_face(engine, model_dir, ties)] if model_dir else []
    # which ONNX Runtime cannot run on a CPU
    if engine.backend.name != "cpu" and engine.manifest.dtype != "bfloat16":
        stages.append(_against_onnx_runtime(engine))
    if engine.drafts:
        stages.append(_drafted_against_plain(engine, ties))
    for stage in stages:
        for check in stage:
            checks.append(check)
            if progress:
                progress(check.name)
    return Report(checks, ties)


def _check_source(engine: Engine, model_dir: Path) -> None:
    checkpoint, source = open_checkpoint(model_dir), engine.manifest.source
    if checkpoint.fingerprint() != source["fingerprint"]:
        raise CheckpointError(
            "the bundle was made from another model",
            got=f"'{model_dir}'",
            expected=f"'{source['model']}' as exported",
        )


def verify_or_fail(
    bundle: Path, model_dir: Path, progress: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """The record for the manifest. Raises CheckFailedError naming the first check beyond its limit."""
    report = verify(bundle, model_dir, progress, check_hashes=False)
    failed = next((check for check in report.checks if not check.passed), None)
    if failed:
        raise CheckFailedError(
            f"verification failed: {failed.name}",
            got=f"{failed.value:.3g}",
            expected=f"at most {failed.limit:.3g}",
            fix="report this as a bug with the model's name; --no-verify keeps the bundle for inspection",
        )
    return report.to_json()


def _prompts(engine: Engine, count: int, length: int) -> dict[str, list[list[int]]]:
    """Random tokens, and tokenized text where there is a tokenizer."""
    rng, most = np.random.default_rng(0), min(engine.model.max_position_embeddings // 2, _most_rows(engine))
    length = min(length, most)
    out = {"random": rng.integers(0, engine.model.vocab_size, (count, length)).tolist()}
    if engine.tokenizer:
        out["text"] = [engine.tokenizer.encode(text).ids[:most] for text in TEXTS[:count]]
    return out


def _most_rows(engine: Engine) -> int:
    """Of a pass that decodes all its rows."""
    return engine.limits.max_rows if engine.limits else 64


def _against_hugging_face(engine: Engine, model_dir: Path, ties: list[dict[str, Any]]) -> Iterator[Check]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    reference = HuggingFaceRows(model, engine.manifest.prediction_layer, engine.model.sliding_window)
    yield from _values(engine, reference, "")
    for kind, prompts in _prompts(engine, 3, 16).items():
        yield _plain_against_generate(f"plain = generate, {kind} tokens", engine, model, prompts, ties)


def _against_onnx_runtime(engine: Engine) -> Iterator[Check]:
    """The values of an engine against those of the graphs that it was built from."""
    reference = Engine.load(engine.bundle.path, check_hashes=False)
    yield from _values(engine, SessionRows(reference, _most_rows(engine)), "ONNX Runtime, ")


def _values(engine: Engine, reference: HuggingFaceRows | SessionRows, against: str) -> Iterator[Check]:
    limit = value_limit(engine.manifest)
    ours = SessionRows(engine, _most_rows(engine))
    for kind, prompts in _prompts(engine, 2, 48).items():
        for stage, passes_of in STAGES.items():
            pairs = []
            for prompt in prompts:
                ours.reset()
                reference.reset()
                pairs += [
                    Pair(ours.run(tree, keep), reference.run(tree, keep))
                    for tree, keep in passes_of(
                        prompt, engine.model.vocab_size, engine.model.max_position_embeddings
                    )
                ]
            for part in ("hidden_states", "logits"):
                found, expected = (
                    [getattr(side, part) for side in sides] for sides in zip(*pairs, strict=True)
                )
                yield _compare_values(f"{stage} {part}, {against}{kind} tokens", found, expected, limit)


def value_limit(manifest: Manifest) -> float:
    """The largest `scaled_difference` that rounding explains."""
    return ABSOLUTE_LIMIT[manifest.dtype] * max(1.0, manifest.model.num_hidden_layers / LAYER_SCALE)


def scaled_difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of two arrays, each value's in units of its own scale; NaN where
    either has one.
    """
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs) / VALUE_SCALE)))


class Pair(NamedTuple):
    ours: Rows
    theirs: Rows


def _compare_values(name: str, ours: list[np.ndarray], theirs: list[np.ndarray], limit: float) -> Check:
    """NaN anywhere fails."""
    worst = float(np.max([scaled_difference(*pair) for pair in zip(ours, theirs, strict=True)]))
    return Check(name, worst <= limit, worst, limit)


def _plain_against_generate(
    name: str, engine: Engine, model: Any, prompts: list[list[int]], ties: list[dict[str, Any]]
) -> Check:
    """Runs that differ. One that parts at a near tie of the plain run is recorded and excused, as
    rarely as `NEAR_TIE` allows.
    """
    import torch
    from transformers import GenerationConfig

    count = min(32, engine.model.max_position_embeddings - max(map(len, prompts)))
    eos = list(engine.bundle.eos_token_ids) or None
    model.generation_config = GenerationConfig(
        max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    wrong, excused, greedy = 0, [], SamplingParams(max_new_tokens=count)
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        theirs = model.generate(ids, attention_mask=torch.ones_like(ids))[0, len(prompt) :].tolist()
        ours = plain_run(engine, prompt, greedy)
        difference = first_difference(index, ours, theirs, greedy, engine.manifest.dtype)
        wrong += difference is not None
        if difference and difference.near_tie:
            excused.append({"tree": "generate", **difference._asdict()})
    ties += excused
    wrong -= min(len(excused), math.ceil(len(prompts) * count * NEAR_TIE[engine.manifest.dtype].per_token))
    return Check(name, wrong == 0, wrong, 0)


def _drafted_against_plain(engine: Engine, ties: list[dict[str, Any]]) -> Iterator[Check]:
    k = engine.manifest.num_predictors
    trees = {
        "best tree": engine.best_tree,
        "draft pass": TreeConfig("dynamic", rows=6, draft_sources=0, depth=min(2, k)),
        "chain": TreeConfig.chain(k),
        "static tree": TreeConfig.static([(0,), (1,), *([(0, 0), (0, 1)] if k > 1 else [])], draft_sources=2),
        "dynamic tree": TreeConfig("dynamic", rows=16, draft_sources=None),
    }
    most = engine.limits.max_rows if engine.limits else MAX_PASS_ROWS
    trees = {name: tree for name, tree in trees.items() if tree.pass_rows(k) <= most}
    prompts = [prompt for group in _prompts(engine, 2, 16).values() for prompt in group]
    params = [SamplingParams(40), SamplingParams(40, temperature=0.8, top_p=0.95, seed=1)]
    for comparison in compare_trees(engine, prompts, params, trees):
        name = f"drafted = plain, {comparison.name}"
        yield Check(name, not comparison.unexcused, len(comparison.unexcused), 0)
        ties += [
            {"tree": comparison.name, **difference._asdict()}
            for difference in comparison.differences
            if difference.near_tie
        ]
        found, allowed = len(comparison.differences), comparison.allowed(engine.manifest.dtype)
        yield Check(f"near ties, {comparison.name}", found <= allowed, found, allowed)
