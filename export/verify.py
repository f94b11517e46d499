"""Proof that a bundle says what the model says: Hugging Face against ONNX, and drafted against plain decoding.

In: a bundle folder and, for the first part, the model directory it came from. Out: a list of `Check`; nothing is only a warning.
Hidden states and logits are compared with the Hugging Face model (eager, float32) in prefill, in chained decoding and over a
random tree; plain tokens with its `generate`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.checkpoint import open_checkpoint
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, CheckpointError
from firp.runtime.parity import NEAR_TIE, compare_trees, first_difference, plain_run
from firp.runtime.sampling import SamplingParams
from firp.runtime.session import Session
from firp.runtime.tree import DraftTree, TreeConfig, chain

# Largest absolute difference of a value up to VALUE_SCALE in a model of up to LAYER_SCALE layers; in proportion for larger values
# and deeper models, as rounding is. float32: the demo model's 8 layers differ by 1.4e-5, which is Hugging Face's own distance from
# float64; half types: their unit roundoff (2^-11, 2^-8) times the residual stream's magnitude.
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
    near_ties: list[dict[str, Any]]  # drafted runs that left the plain run at a near tie, with the margin there

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"checks": [check._asdict() for check in self.checks], "passed": self.passed, "near_ties": self.near_ties}


def verify(
    bundle: Path, model_dir: Path | None, progress: Callable[[str], None] | None = None, check_hashes: bool = True
) -> Report:
    """Run every check that applies: against Hugging Face when `model_dir` is given, drafted against plain when there are drafts."""
    engine = Engine.load(bundle, check_hashes=check_hashes)
    checks, ties = [Check("file hashes", True, 0, 0)] if check_hashes else [], []  # Engine.load raises for a wrong one
    if model_dir:
        _check_source(engine, model_dir)
    stages = [_against_hugging_face(engine, model_dir, ties)] if model_dir else []
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
            "the bundle was made from another model", got=f"'{model_dir}'", expected=f"'{source['model']}' as exported"
        )


def verify_or_fail(bundle: Path, model_dir: Path, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """The record for the manifest. Raises CheckFailedError naming the first check beyond its limit."""
    report = verify(bundle, model_dir, progress, check_hashes=False)
    failed = next((check for check in report.checks if not check.passed), None)
    if failed:
        raise CheckFailedError(
            f"verification failed: {failed.name}", got=f"{failed.value:.3g}", expected=f"at most {failed.limit:.3g}",
            fix="report this as a bug with the model's name; --no-verify keeps the bundle for inspection",
        )  # fmt: skip
    return report.to_json()


def _prompts(engine: Engine, count: int, length: int) -> dict[str, list[list[int]]]:
    """Random tokens, and tokenized text where there is a tokenizer."""
    context, rng = engine.model.max_position_embeddings, np.random.default_rng(0)
    length = min(length, context // 2)
    out = {"random": rng.integers(0, engine.model.vocab_size, (count, length)).tolist()}
    if engine.tokenizer:
        out["text"] = [engine.tokenizer.encode(text).ids[: context // 2] for text in TEXTS[:count]]
    return out


def _against_hugging_face(engine: Engine, model_dir: Path, ties: list[dict[str, Any]]) -> Iterator[Check]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    reference = _Reference(model, engine.manifest.prediction_layer)
    limit = ABSOLUTE_LIMIT[engine.manifest.dtype] * max(1.0, engine.model.num_hidden_layers / LAYER_SCALE)
    for kind, prompts in _prompts(engine, 2, 48).items():
        for stage in ("prefill", "decode", "tree"):
            pairs = [pair for prompt in prompts for pair in _STAGES[stage](engine, reference, prompt)]
            for part in ("hidden_states", "logits"):
                ours = [getattr(pair.ours, part) for pair in pairs]
                theirs = [getattr(pair.theirs, part) for pair in pairs]
                yield _compare_values(f"{stage} {part}, {kind} tokens", ours, theirs, limit)
    for kind, prompts in _prompts(engine, 3, 16).items():
        yield _plain_against_generate(f"plain = generate, {kind} tokens", engine, model, prompts, ties)


class Rows(NamedTuple):
    hidden_states: np.ndarray  # [T, D] at the prediction layer
    logits: np.ndarray  # [T, V]


class Pair(NamedTuple):
    ours: Rows
    theirs: Rows


class _Reference:
    """The Hugging Face model, run over chains and trees with a cache of its own."""

    def __init__(self, model: Any, prediction_layer: int):
        from transformers import DynamicCache

        self.model, self.layer, self._new_cache = model, prediction_layer, DynamicCache

    def reset(self) -> None:
        self.cache = self._new_cache()

    def run(self, tokens: list[int], bias: np.ndarray | None = None, positions: np.ndarray | None = None) -> Rows:
        """bias [T, P+T]: an additive mask instead of the causal one."""
        import torch

        options = (
            {}
            if bias is None
            else {"attention_mask": torch.from_numpy(bias)[None, None], "position_ids": torch.from_numpy(positions)[None]}
        )
        with torch.no_grad():
            out = self.model(
                input_ids=torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, output_hidden_states=True, **options
            )
        return Rows(out.hidden_states[self.layer][0].numpy(), out.logits[0].numpy())


def _run(session: Session, tree: DraftTree, keep: bool) -> Rows:
    logits = session.forward(tree, []).logits.copy()
    rows = Rows(session.hidden_states(len(tree.tokens)), logits)
    if keep:
        session.commit(range(len(tree.tokens)))
    return rows


def _prefill_pairs(engine: Engine, reference: _Reference, prompt: list[int]) -> Iterator[Pair]:
    session = engine.session(len(prompt) + 1)
    reference.reset()
    yield Pair(_run(session, chain(prompt), keep=True), reference.run(prompt))


def _decode_pairs(engine: Engine, reference: _Reference, prompt: list[int]) -> Iterator[Pair]:
    """A prefill of the first half, then the rest one token a pass, each on the cache that the last one left."""
    session, half = engine.session(len(prompt) + 1), len(prompt) // 2
    reference.reset()
    for tokens in [prompt[:half] or prompt[:1]] + [[token] for token in prompt[half:]]:
        yield Pair(_run(session, chain(tokens), keep=True), reference.run(tokens))


def _tree_pairs(engine: Engine, reference: _Reference, prompt: list[int]) -> Iterator[Pair]:
    """A random tree of 12 rows on a cached prompt."""
    session, rng = engine.session(len(prompt) + 16), np.random.default_rng(len(prompt))
    reference.reset()
    yield Pair(_run(session, chain(prompt), keep=True), reference.run(prompt))
    parents, depths, deepest = [-1], [0], engine.model.max_position_embeddings - len(prompt) - 1
    for _ in range(1, 12):
        parents.append(int(rng.choice([node for node, depth in enumerate(depths) if depth < deepest])))
        depths.append(depths[parents[-1]] + 1)
    tree = DraftTree(rng.integers(0, engine.model.vocab_size, 12).tolist(), parents, depths, [1.0] * 12)
    positions = np.array(depths) + len(prompt)
    keys = np.concatenate([np.arange(len(prompt)), positions])
    visible = np.zeros((12, len(prompt) + 12), bool)  # written anew, not with the runtime's own mask function
    visible[:, : len(prompt)] = True
    for node in range(12):
        ancestor = node
        while ancestor >= 0:
            visible[node, len(prompt) + ancestor] = True
            ancestor = parents[ancestor]
    if engine.model.sliding_window:
        visible &= positions[:, None] - keys < engine.model.sliding_window
    bias = np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)
    yield Pair(_run(session, tree, keep=False), reference.run(tree.tokens, bias, positions))


_STAGES: dict[str, Callable[[Engine, _Reference, list[int]], Iterator[Pair]]] = {
    "prefill": _prefill_pairs,
    "decode": _decode_pairs,
    "tree": _tree_pairs,
}


def _compare_values(name: str, ours: list[np.ndarray], theirs: list[np.ndarray], limit: float) -> Check:
    """The largest difference, each value's in units of its own scale; NaN anywhere fails."""
    scaled = [np.abs(a - b) / np.maximum(1.0, np.abs(b) / VALUE_SCALE) for a, b in zip(ours, theirs, strict=True)]
    worst = float(np.max([np.max(difference) for difference in scaled]))
    return Check(name, worst <= limit, worst, limit)


def _plain_against_generate(name: str, engine: Engine, model: Any, prompts: list[list[int]], ties: list[dict[str, Any]]) -> Check:
    """Runs that differ. One that parts at a near tie of the plain run is recorded and excused, as rarely as `NEAR_TIE` allows."""
    import torch
    from transformers import GenerationConfig

    count = min(32, engine.model.max_position_embeddings - max(map(len, prompts)))
    eos = list(engine.bundle.eos_token_ids) or None
    model.generation_config = GenerationConfig(max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=0)
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
    prompts = [prompt for group in _prompts(engine, 2, 16).values() for prompt in group]
    params = [SamplingParams(40), SamplingParams(40, temperature=0.8, top_p=0.95, seed=1)]
    for comparison in compare_trees(engine, prompts, params, trees):
        name = f"drafted = plain, {comparison.name}"
        yield Check(name, not comparison.unexcused, len(comparison.unexcused), 0)
        ties += [{"tree": comparison.name, **difference._asdict()} for difference in comparison.differences if difference.near_tie]
        found, allowed = len(comparison.differences), comparison.allowed(engine.manifest.dtype)
        yield Check(f"near ties, {comparison.name}", found <= allowed, found, allowed)
