"""Proof that a bundle says what the model says: Hugging Face against ONNX, and drafted against
plain decoding.

In: a bundle folder and, for the first part, the model it came from. Out: a `Report` of
`Check`s; nothing is only a warning. Hidden states and logits are compared with the Hugging Face
model in float64, in prefill, in chained decoding and over a random tree, at the first tokens and at
those where windows and the like begin (`late.py`); plain tokens with its `generate`.
"""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from firp.export.sources.checkpoint import Checkpoint
from firp.export.sources.open import for_context, open_checkpoint, takes_long_factors
from firp.export.verify.late import Late, late_begins
from firp.export.verify.report import Check, Report
from firp.export.verify.rounding import distance, judge, larger, scaled_difference, value_limit
from firp.export.verify.rows import Rows, Sample, SessionRows, StageRows, random_sample
from firp.export.verify.tokens import (
    drafted_against_plain,
    most_rows,
    plain_against_generate,
    prompts_by_kind,
)
from firp.export.verify.widened import engine_for_checks
from firp.export.weights.fingerprint import fingerprint
from firp.runtime.bundle.format import load_bundle
from firp.runtime.engine import Engine
from firp.runtime.errors import CheckFailedError, CheckpointError
from firp.runtime.progress import Progress, silent

_PIECES = (12, 4)  # tokens of prompts that are tried where all rows depend on near ties of routing


class Step(NamedTuple):
    """A part of verification that progress names."""

    name: str
    run: Callable[[], list[Check]]


def verify(
    bundle: Path,
    model: Path | None,
    progress: Progress = silent,
    check_hashes: bool = True,
    engine: Engine | None = None,
) -> Report:
    """Run every check that applies: against Hugging Face when `model` is given, against ONNX
    Runtime on the CPU when `engine` runs elsewhere, drafted against plain when there are drafts.
    engine: of this bundle; None: on the CPU, a bfloat16 bundle's in float32, which its checks then
    name. Raises FirpError when something cannot be loaded.
    """
    progress("loading the bundle", 0, None)
    loaded = engine.bundle if engine else load_bundle(bundle, check_hashes)
    engine = engine or engine_for_checks(loaded)
    checks = [Check("file hashes", True, 0, 0)] if check_hashes else []  # loading raises for a wrong one
    steps: list[Step] = []
    if model:
        checkpoint, context = open_checkpoint(model), engine.model.max_position_embeddings
        if takes_long_factors(checkpoint, context):
            checkpoint = for_context(checkpoint, context)
        _check_source(engine, checkpoint)
        progress("loading the Hugging Face model", 0, None)
        steps += _against_hugging_face(engine, checkpoint, loaded.manifest.precision.weights)
    if engine.backend.name != "cpu":
        steps += _against_onnx_runtime(engine)
    steps.append(Step("drafted against plain decoding", lambda: list(drafted_against_plain(engine))))
    if engine.manifest.quantization:
        steps.append(Step("drafted against plain decoding in float32", partial(_drafted_in_float, engine)))
    for done, step in enumerate(steps):
        progress(f"verifying: {step.name}", done, len(steps))
        checks += step.run()
    if engine.manifest.precision != loaded.manifest.precision:
        compute = engine.manifest.precision.compute
        checks = [check._replace(name=f"{check.name}, in {compute}") for check in checks]
    return Report(checks)


def _check_source(engine: Engine, checkpoint: Checkpoint) -> None:
    source = engine.manifest.source
    if fingerprint(checkpoint) != source["fingerprint"]:
        raise CheckpointError(
            "the bundle was made from another model",
            got=f"'{checkpoint.path}'",
            expected=f"'{source['model']}' as exported",
        )


def verify_or_fail(bundle: Path, model: Path, progress: Progress = silent) -> dict[str, Any]:
    """The record for the manifest. Raises CheckFailedError naming the first check beyond its
    limit.
    """
    report = verify(bundle, model, progress, check_hashes=False)
    failed = next((check for check in report.checks if not check.passed), None)
    if failed:
        raise CheckFailedError(
            f"verification failed: {failed.name}",
            got=f"{failed.value:.3g}",
            expected=f"at most {failed.limit:.3g}",
            fix="report this as a bug with the model's name; --no-verify keeps the bundle for inspection",
        )
    return report.to_json()


def _samples(engine: Engine) -> dict[str, list[Sample]]:
    vocab_size = engine.model.vocab_size
    context = engine.model.max_position_embeddings
    return {
        f"{kind} tokens": [random_sample(prompt, vocab_size, context) for prompt in prompts]
        for kind, prompts in prompts_by_kind(engine, 2, 48).items()
    }


def _against_hugging_face(engine: Engine, checkpoint: Checkpoint, stored: str) -> Iterator[Step]:
    """Steps that compare with the model in float64 and its weights as they are stored."""
    from firp.export.verify.reference import Reference

    quantization = engine.manifest.quantization
    if quantization:
        from firp.export.quantize.stored import StoredWeights
        from firp.export.verify.products import check_products, float_engine

        integers = StoredWeights(engine.bundle.path, checkpoint, quantization)
        yield Step("rounded weights", partial(_rounded_weights, integers))
        products = partial(check_products, engine.bundle, engine.backend.options())
        yield Step("integer products", lambda: list(products()))
        engine = float_engine(engine.bundle)
        reference, cached = Reference(checkpoint, stored, integers.tensor), integers.cached
    else:
        reference, cached = Reference(checkpoint, stored), partial(_in_every_layer, engine)
    samples = _samples(engine)
    yield Step("values against float64", partial(_values_against_float64, engine, reference, stored, samples))
    reached = len(samples["random tokens"][0].prompt) // 2
    for late in late_begins(engine, reference.model.config, reached):
        name = f"values at {late.begins} tokens"
        yield Step(name, partial(_late_values, name, engine, reference, stored, late, cached))
    yield Step("plain = generate", partial(_generate, engine, reference, stored))


def _rounded_weights(stored: Any) -> list[Check]:
    """The worst weight of a quantized bundle: steps that a value lies from the checkpoint's own."""
    name, steps, limit = max(stored.distances(), key=lambda found: found[1] - found[2])
    return [Check(f"steps from the model's weights, {name}", steps <= limit, steps, limit)]


def _in_every_layer(engine: Engine, past: np.ndarray) -> np.ndarray:
    return np.concatenate([past] * engine.model.num_hidden_layers)


def _late_values(
    name: str,
    engine: Engine,
    reference: Any,
    dtype: str,
    late: Late,
    cached: Callable[[np.ndarray], np.ndarray],
) -> list[Check]:
    """Values of rows after many tokens; on the CPU, where a cache can be given. cached: what the bundle's
    layers have where those of the model have keys and values (`StoredWeights.cached`).
    """
    if late.hindrance:
        return [Check(f"{name} not compared: {late.hindrance}", True, 0, 0)]
    if engine.backend.name != "cpu":
        engine = engine_for_checks(engine.bundle)
    samples = {f"random tokens after {late.cached}": [late.sample]}
    past = late.past()
    return _values_against_float64(engine, reference, dtype, samples, past, cached(past))


def _values_against_float64(
    engine: Engine,
    reference: Any,
    dtype: str,
    samples: dict[str, list[Sample]],
    past: np.ndarray | None = None,
    cached: np.ndarray | None = None,
) -> list[Check]:
    """The engine's distance from the model in float64, with that of the model in `dtype`, the
    bundle's own, as the yardstick; where that is too short, with that of the model whose functions are
    as coarse as ONNX Runtime's too. Rows that depend on a near tie of routing are not judged. past: what
    is cached before samples (`model_rows`), and cached: the same for the engine (`SessionRows`).
    """
    import torch

    from firp.export.verify.coarse import CoarseFunctions
    from firp.export.verify.reference import model_rows
    from firp.export.verify.routing import near_ties

    whole = samples
    layer = engine.manifest.prediction_layer
    for length in (*_PIECES, None):
        every = [sample for group in samples.values() for sample in group]
        truth, yardstick, ties = near_ties(reference, layer, every, dtype, past)
        if length is None or ties.leave_rows(list(map(len, samples.values()))):
            break
        samples = {kind: group + _pieces(engine, whole[kind], length) for kind, group in samples.items()}
    session = SessionRows(engine, most_rows(engine), cached)
    ours = [session.run(sample) for sample in every]
    checks = _judged(samples, ours, [yardstick], truth, ties, dtype)
    if all(check.passed for check in checks):
        return checks
    with CoarseFunctions(seed=0):
        coarse = model_rows(reference, layer, every, torch.float64, past)
    return _judged(samples, ours, [yardstick, coarse], truth, ties, dtype)


def _pieces(engine: Engine, samples: list[Sample], length: int) -> list[Sample]:
    """Samples whose prompts are pieces of others: fewer rows come before each of theirs."""
    prompts = [sample.prompt[at : at + length] for sample in samples for at in range(0, 4 * length, length)]
    vocab_size, context = engine.model.vocab_size, engine.model.max_position_embeddings
    return [random_sample(prompt, vocab_size, context) for prompt in prompts if len(prompt) == length]


def _judged(
    samples: dict[str, list[Sample]],
    ours: list[StageRows],
    yardsticks: list[list[StageRows]],
    truth: list[StageRows],
    ties: Any,
    dtype: str,
) -> list[Check]:
    """Rows of every kind, stage and part, judged by the longest yardstick. ties: `NearTies`."""
    checks = []
    end = 0
    for kind, group in samples.items():
        start, end = end, end + len(group)
        sides = [side[start:end] for side in (truth, ours, *yardsticks)]
        left_out = 0
        for stage in StageRows._fields:
            for part in Rows._fields:
                kept = _kept(_values(ties.dependent[start:end], stage, part))
                left_out += sum(int((~rows).sum()) for rows in kept)
                true, *others = (
                    [rows[keep] for rows, keep in zip(_values(side, stage, part), kept, strict=True)]
                    for side in sides
                )
                mine, *theirs = (distance(rows, true) for rows in others)
                checks.append(judge(f"{stage} {part}, {kind}", mine, reduce(larger, theirs), dtype))
        if left_out:
            rows = 2 * sum(len(part.logits) for sample in sides[0] for part in sample)
            name = f"rows that depend on near ties of routing, {kind}"
            checks.append(Check(name, left_out < rows, left_out, rows - 1, ties.found(start, end)))
    return checks


def _kept(dependent: list[np.ndarray]) -> list[np.ndarray]:
    """Rows to judge, [T] bool each: those that depend on no near tie, and where all do, all: so many
    turn in every computation that their distances are of one kind again.
    """
    left = any(not rows.all() for rows in dependent)
    return [~rows if left else np.ones_like(rows) for rows in dependent]


def _drafted_in_float(engine: Engine) -> list[Check]:
    from firp.export.verify.products import float_engine

    checks = drafted_against_plain(float_engine(engine.bundle))
    return [check._replace(name=f"{check.name}, products in float32") for check in checks]


def _generate(engine: Engine, reference: Any, dtype: str) -> list[Check]:
    return [
        plain_against_generate(f"plain = generate, {kind} tokens", engine, reference, prompts, dtype)
        for kind, prompts in prompts_by_kind(engine, 3, 16).items()
    ]


def _values(samples: list[StageRows], stage: str, part: str) -> list[np.ndarray]:
    return [getattr(getattr(rows, stage), part) for rows in samples]


def _against_onnx_runtime(engine: Engine) -> Iterator[Step]:
    """The values of an engine against those of the graphs that it was built from."""
    reference = engine_for_checks(load_bundle(engine.bundle.path, check_hashes=False))
    for kind, samples in _samples(engine).items():
        name = f"values of {kind} against ONNX Runtime"
        yield Step(name, partial(_values_against_onnx_runtime, engine, reference, kind, samples))


def _values_against_onnx_runtime(
    engine: Engine, reference: Engine, kind: str, samples: list[Sample]
) -> list[Check]:
    sessions = [SessionRows(side, most_rows(engine)) for side in (engine, reference)]
    ours, theirs = ([session.run(sample) for sample in samples] for session in sessions)
    limit = value_limit(engine.manifest)
    checks = []
    for stage in StageRows._fields:
        for part in Rows._fields:
            pairs = zip(_values(ours, stage, part), _values(theirs, stage, part), strict=True)
            worst = float(np.max([scaled_difference(*pair) for pair in pairs]))  # NaN anywhere fails
            checks.append(Check(f"{stage} {part}, ONNX Runtime, {kind}", worst <= limit, worst, limit))
    return checks
