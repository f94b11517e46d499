"""The public interface: stops, streaming, statistics, cancellation, threads."""

import array
import dataclasses
import itertools
import subprocess
import sys
import threading

import numpy as np
import pytest
from support.decoding import all_tokens_in, steps_in, tokens_in

from firp.runtime.bundle.graph_spec import graph_specs
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, FirpError, PromptError, SessionBusyError
from firp.runtime.passes.pass_plan import PassPlan
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.guesses import Guesses
from firp.runtime.trees.tree import chain
from firp.runtime.trees.tree_config import TreeConfig

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
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert whole.text == demo_engine.tokenizer.decode(whole.token_ids)
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
        assert ended.token_ids == free.token_ids
        assert ended.finish_reason == "length"
    else:
        assert ended.token_ids == free.token_ids[: free.token_ids.index(eos) + 1]
        assert ended.finish_reason == "stop"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_never_more_than_max_new_tokens(demo_engine, count):
    result = demo_engine.generate(PROMPT, SamplingParams(count))
    assert len(result.token_ids) == count
    assert result.finish_reason == "length"


def test_statistics_add_up(demo_engine):
    result = demo_engine.generate(PROMPT, SamplingParams(80), tree=TreeConfig("dynamic", 16, None))
    stats = result.stats
    assert stats.prompt_tokens == result.prompt_tokens
    assert stats.prompt_tokens == len(demo_engine.encode(PROMPT))
    assert stats.decoded_tokens == len(result.token_ids) - 1
    assert stats.decoded_tokens == stats.steps + sum(stats.accepted_by_depth)
    assert stats.tokens_per_step == stats.decoded_tokens / stats.steps
    assert stats.tokens_per_step > 1
    assert stats.accepted_by_depth == sorted(stats.accepted_by_depth, reverse=True)
    assert set(stats.graph_ms) == set(demo_engine.manifest.graphs)
    assert min(stats.prefill_ms, stats.outside_ms, *stats.graph_ms.values()) > 0
    assert stats.decode_ms == pytest.approx(stats.outside_ms + sum(stats.graph_ms.values()))
    plain = demo_engine.generate(PROMPT, SamplingParams(9), plain=True)
    assert plain.stats.graph_ms["predictors"] == 0
    drafted_before = demo_engine.generate(PROMPT, SamplingParams(30), tree=TreeConfig("dynamic", 6, 0))
    assert drafted_before.stats.graph_ms["predictors"] > 0  # in passes of their own, before the others


def test_cancelling_keeps_what_is_there(demo_engine):
    cancel, tokens = threading.Event(), []
    for chunk in demo_engine.stream(PROMPT, SamplingParams(500), cancel=cancel):
        tokens += chunk.token_ids
        if len(tokens) >= 10:
            cancel.set()
    assert chunk.finish_reason == "cancelled"
    assert 10 <= len(tokens) < 20


def test_a_consumer_may_stop_at_any_time(demo_engine):
    session, tree = demo_engine.session(200), demo_engine.best_tree
    expected = tokens_in(session, demo_engine, PROMPT, SamplingParams(20), tree)
    for steps in (1, 3):
        stream = steps_in(session, demo_engine, PROMPT, SamplingParams(20), tree)
        assert [next(stream).tokens for _ in range(steps)] == expected[:steps]
        stream.close()
    assert tokens_in(session, demo_engine, PROMPT, SamplingParams(20), tree) == expected


def test_a_second_caller_of_one_session_is_refused_and_the_first_goes_on(demo_engine):
    session, tree, params = demo_engine.session(200), demo_engine.best_tree, SamplingParams(30)
    expected = tokens_in(session, demo_engine, PROMPT, params, tree)
    first = steps_in(session, demo_engine, PROMPT, params, tree)
    tokens, errors = [next(first).tokens], []

    def intrude():
        try:
            next(steps_in(session, demo_engine, PROMPT, SamplingParams(5)))
        except SessionBusyError as error:
            errors.append(str(error))

    for _ in range(3):
        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        tokens.append(next(first).tokens)
    tokens += [step.tokens for step in first]
    assert len(errors) == 3
    assert "session in use" in errors[0]
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
    slot_bytes = 2 * model.num_hidden_layers * model.attention.key_value_size * 4
    tree = TreeConfig("dynamic", 16, None)
    for step in steps_in(session, demo_engine, prompt, SamplingParams(60), tree):
        moved.append((session.batch.kv.moved_bytes, step.accept_length))
    assert moved[0][0] == 0  # a prompt is a chain
    assert moved[-1][0] > 0
    for (before, _), (after, accept_length) in itertools.pairwise(moved):
        assert (after - before) % slot_bytes == 0
        assert after - before <= accept_length * slot_bytes  # the root stays where it is


def test_rejected_rows_leave_no_trace(demo_engine):
    """The cache after drafted decoding is that of plain decoding, bit for bit up to summation
    order.
    """
    prompt, caches = demo_engine.encode(PROMPT), []
    for tree in (None, TreeConfig("dynamic", 16, None), TreeConfig.lookup(16)):
        session = demo_engine.session(400)
        tokens = all_tokens_in(session, demo_engine, prompt, SamplingParams(50), tree)
        caches.append(session.batch.kv.slots[:, 0, :, : len(prompt) + len(tokens) - 1].copy())
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


@pytest.mark.parametrize(
    "prompt",
    [
        np.array([5, 6]),
        np.array([5, 6], np.uint8),
        (5, 6),
        [np.int64(5), 6],
        range(5, 7),
        array.array("i", [5, 6]),
    ],
)
def test_prompts_of_any_sequence_of_integers_are_taken(prompt, random_engine):
    ids = random_engine.encode(prompt)
    assert ids == [5, 6]
    assert [type(token) for token in ids] == [int, int]
    assert (
        random_engine.generate(prompt, SamplingParams(3)).token_ids
        == random_engine.generate([5, 6], SamplingParams(3)).token_ids
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([True], "token id out of range.*True"), ([1, False], "token id out of range.*False"),
        ([None], "token id out of range.*None"), (["5"], "token id out of range"),
        ([[5, 6]], "token id out of range"), (np.array([[5, 6]]), "token id out of range"),
        (np.array([1.5]), "token id out of range"), (np.array([True]), "token id out of range"),
        (np.array(5), "bad prompt.*ndarray"), (b"ab", "bad prompt.*bytes"),
        (bytearray(b"ab"), "bad prompt.*bytearray"), ({5, 6}, "bad prompt.*set"),
        ({5: 6}, "bad prompt.*dict"),
        (5, "bad prompt.*int"), (None, "bad prompt.*NoneType"), (iter([5]), "bad prompt"),
        (np.array([], np.int64), "empty prompt"),
    ],
)  # fmt: skip
def test_prompts_of_a_wrong_type_are_refused(prompt, message, random_engine):
    with pytest.raises(PromptError, match=message):
        random_engine.stream(prompt)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": SamplingParams}, "bad params"), ({"params": {}}, "bad params"),
        ({"tree": {"kind": "chain"}}, "bad tree"),
        ({"tree": "chain"}, "bad tree"), ({"cancel": True}, "bad cancel"),
    ],
)  # fmt: skip
def test_options_of_a_wrong_type_are_refused_at_once(options, message, random_engine):
    with pytest.raises(FirpError, match=message):
        random_engine.stream([5], **options)


@pytest.mark.parametrize("threads", [0, -1, 10_000, [], "2", 1.5, True])
def test_numbers_of_threads_that_no_machine_has_are_refused(threads, random_engine):
    with pytest.raises(FirpError, match="bad number of threads.*1 to 1024"):
        Engine.load(random_engine.bundle.path, threads=threads)


def test_a_backend_that_is_no_name_is_refused(random_engine):
    with pytest.raises(FirpError, match="unknown backend"):
        Engine.load(random_engine.bundle.path, backend=["cpu"])


@pytest.mark.parametrize(("capacity", "rows"), [(10, 2), (0, 8), (10.0, 8), ("10", 8)])
def test_a_session_too_small_for_a_pass_is_refused(capacity, rows, random_engine):
    with pytest.raises(FirpError, match="bad (capacity|rows) of a session"):
        random_engine.session(capacity, rows)


def test_sizes_beyond_memory_are_one_line(random_engine):
    with pytest.raises(FirpError, match="not enough memory for keys and values"):
        random_engine.session(2**50)
    with pytest.raises(FirpError, match="not enough memory for keys and values"):
        random_engine.session(2**62)


def test_a_pass_that_the_graph_refuses_is_one_line(random_engine):
    with pytest.raises(FirpError, match="the lower graph does not run") as caught:
        random_engine.session(8).forward(PassPlan(chain([193])))  # a token beyond the embedding
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 200}, "upper.onnx' is not .*outputs that differ.*logits.*(200|193)"),
        ({"attention": {"head_dim": 24}}, "lower.onnx' is not .*inputs that differ.*past_"),
    ],
)
def test_a_graph_of_other_sizes_than_declared_is_refused(sizes, message, random_engine):
    bundle, manifest = random_engine.bundle, random_engine.manifest
    attention = dataclasses.replace(manifest.model.attention, **sizes.pop("attention", {}))
    model = dataclasses.replace(manifest.model, attention=attention, **sizes)
    graphs = graph_specs(model, manifest.prediction_layer, manifest.num_predictors, manifest.precision)
    declared = dataclasses.replace(manifest, model=model, graphs=graphs)
    with pytest.raises(BundleError, match=message):
        Engine(dataclasses.replace(bundle, manifest=declared), random_engine.backend)


def test_guesses_outside_the_vocabulary_are_one_line(demo_engine):
    correction = demo_engine.bundle.correction
    ids = np.zeros((2, 4), np.int64)
    for wrong in (demo_engine.model.vocab_size, -1):
        ids[1, 2] = wrong
        with pytest.raises(BundleError, match="guesses outside the vocabulary"):
            correction.rank(0, Guesses(ids, np.zeros((2, 4), np.float32)), greedy=True)
