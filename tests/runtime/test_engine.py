"""The public interface: stops, streaming, statistics, cancellation, threads."""

import dataclasses
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError, PromptError, SessionBusyError
from firp.runtime.loop.decode import decode
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree import TreeConfig

PROMPT = "def read(path):\n    "


@pytest.fixture(scope="module")
def random_engine(family_bundle):
    return Engine.load(family_bundle("llama")[1])


@pytest.mark.parametrize("plain", [True, False])
def test_stream_and_generate_agree_and_text_is_the_decoded_tokens(demo_engine, plain):
    params = SamplingParams(60)
    chunks = list(demo_engine.stream(PROMPT, params, plain=plain))
    whole = demo_engine.generate(PROMPT, params, plain=plain)
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert (
        "".join(chunk.text for chunk in chunks) == whole.text == demo_engine.tokenizer.decode(whole.token_ids)
    )
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == "length"


@pytest.mark.parametrize("plain", [True, False])
def test_a_stop_string_ends_text_and_tokens(demo_engine, plain):
    free = demo_engine.generate(PROMPT, SamplingParams(60))
    stop = free.text[len(free.text) // 2 :][:4]
    stopped = demo_engine.generate(PROMPT, SamplingParams(60, stop=(stop,)), plain=plain)
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.find(stop)]
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]
    assert stop in demo_engine.tokenizer.decode(stopped.token_ids)
    assert stop not in demo_engine.tokenizer.decode(stopped.token_ids[:-1])


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_an_end_of_sequence_token_ends_the_request_and_is_kept(random_engine, plain, ignore_eos):
    params = SamplingParams(60, temperature=1.5, seed=4, ignore_eos=ignore_eos)
    free = random_engine.generate([5, 6, 7], SamplingParams(60, temperature=1.5, seed=4, ignore_eos=True))
    eos = next(token for token in free.token_ids[20:] if token not in free.token_ids[:20])
    engine = Engine(dataclasses.replace(random_engine.bundle, eos_token_ids=(eos,)), random_engine.backend)
    ended = engine.generate([5, 6, 7], params, plain=plain)
    if ignore_eos:
        assert ended.token_ids == free.token_ids and ended.finish_reason == "length"
    else:
        assert ended.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
        assert ended.finish_reason == "stop"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_never_more_than_max_new_tokens(demo_engine, count):
    result = demo_engine.generate(PROMPT, SamplingParams(count))
    assert len(result.token_ids) == count and result.finish_reason == "length"


def test_statistics_add_up(demo_engine):
    result = demo_engine.generate(PROMPT, SamplingParams(80), tree=TreeConfig("dynamic", 16, None))
    stats = result.stats
    assert stats.prompt_tokens == result.prompt_tokens == len(demo_engine.encode(PROMPT))
    assert stats.decoded_tokens == len(result.token_ids) - 1 == stats.steps + sum(stats.accepted_by_depth)
    assert stats.tokens_per_step == stats.decoded_tokens / stats.steps > 1
    assert stats.accepted_by_depth == sorted(stats.accepted_by_depth, reverse=True)
    assert min(stats.prefill_ms, stats.lower_ms, stats.predictors_ms, stats.upper_ms, stats.outside_ms) > 0
    assert demo_engine.generate(PROMPT, SamplingParams(9), plain=True).stats.predictors_ms == 0


def test_cancelling_keeps_what_is_there(demo_engine):
    cancel, tokens = threading.Event(), []
    for chunk in demo_engine.stream(PROMPT, SamplingParams(500), cancel=cancel):
        tokens += chunk.token_ids
        if len(tokens) >= 10:
            cancel.set()
    assert chunk.finish_reason == "cancelled"
    assert 10 <= len(tokens) < 20


def test_a_consumer_may_stop_at_any_time(demo_engine):
    session = demo_engine.session(200)
    prompt = demo_engine.encode(PROMPT)
    expected = [
        step.tokens for step in decode(session, prompt, SamplingParams(20), (), demo_engine.drafter())
    ]
    for steps in (1, 3):
        stream = decode(session, prompt, SamplingParams(20), (), demo_engine.drafter())
        assert [next(stream).tokens for _ in range(steps)] == expected[:steps]
        stream.close()
    assert [
        step.tokens for step in decode(session, prompt, SamplingParams(20), (), demo_engine.drafter())
    ] == expected


def test_a_second_caller_of_one_session_is_refused_and_the_first_goes_on(demo_engine):
    session, prompt = demo_engine.session(200), demo_engine.encode(PROMPT)
    expected = [
        step.tokens for step in decode(session, prompt, SamplingParams(30), (), demo_engine.drafter())
    ]
    first = decode(session, prompt, SamplingParams(30), (), demo_engine.drafter())
    tokens, errors = [next(first).tokens], []

    def intrude():
        try:
            next(decode(session, prompt, SamplingParams(5), ()))
        except SessionBusyError as error:
            errors.append(str(error))

    for _ in range(3):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        tokens.append(next(first).tokens)
    tokens += [step.tokens for step in first]
    assert len(errors) == 3 and "session in use" in errors[0]
    assert tokens == expected


def test_threads_share_an_engine(demo_engine):
    prompts = [PROMPT, "import os\n", "class A:\n", "for x in "]
    expected = [demo_engine.generate(prompt, SamplingParams(40)).token_ids for prompt in prompts]
    found = [None] * len(prompts)

    def work(index):
        found[index] = demo_engine.generate(prompts[index], SamplingParams(40)).token_ids

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "empty prompt"),
        ([], "empty prompt"),
        ([3, 193], "token id out of range.*193.*192"),
        ([-1], "token id out of range"),
        ([1.5], "token id out of range"),
        ([5] * 256, "prompt longer than the context.*256 tokens.*at most 255"),
        ("text", "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_decoded(random_engine, prompt, message):
    with pytest.raises(PromptError, match=message):
        random_engine.stream(prompt)  # at once, not when the stream is consumed


def test_options_without_effect_are_errors(random_engine, tmp_path_factory, family_bundle):
    with pytest.raises(FirpError, match="stop strings need a tokenizer"):
        random_engine.stream([5], SamplingParams(stop=("x",)))
    with pytest.raises(FirpError, match="plain decoding has no tree"):
        random_engine.stream([5], plain=True, tree=TreeConfig())
    with pytest.raises(FirpError, match="deeper than the predictors"):
        random_engine.stream([5], tree=TreeConfig.chain(9))
    with pytest.raises(FirpError, match="unknown backend"):
        Engine.load(random_engine.bundle.path, backend="abacus")


def test_commits_move_the_accepted_rows_alone(demo_engine):
    session, prompt = demo_engine.session(400), demo_engine.encode(PROMPT)
    model, moved = demo_engine.model, []
    slot_bytes = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 4
    drafter = demo_engine.drafter(TreeConfig("dynamic", 16, None))
    for step in decode(session, prompt, SamplingParams(60), (), drafter):
        moved.append((session.kv.moved_bytes, step.accept_length))
    assert moved[0][0] == len(prompt) * slot_bytes
    for (before, _), (after, accept_length) in itertools.pairwise(moved):
        assert after - before == (accept_length + 1) * slot_bytes


def test_rejected_rows_leave_no_trace(demo_engine):
    """The cache after drafted decoding is that of plain decoding, bit for bit up to summation
    order.
    """
    prompt, caches = demo_engine.encode(PROMPT), []
    for drafter in (None, demo_engine.drafter(TreeConfig("dynamic", 16, None))):
        session = demo_engine.session(400)
        tokens = [
            token
            for step in decode(session, prompt, SamplingParams(50), (), drafter)
            for token in step.tokens
        ]
        caches.append(session.kv.slots[:, : len(prompt) + len(tokens) - 1].copy())
    np.testing.assert_allclose(caches[0], caches[1], atol=1e-3)


def test_the_runtime_imports_nothing_heavy():
    script = """
import sys
import firp.runtime.backends.onnx_runtime, firp.runtime.engine
import firp.runtime.tuning.bench, firp.runtime.tuning.parity
print(*sys.modules)
"""
    modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.partition(".")[0] for name in modules}
    assert {"numpy", "onnxruntime"} <= top
    assert top.isdisjoint({"torch", "transformers", "onnx", "onnx_ir", "click", "rich", "matplotlib"})
