"""Conversations: the tokens of stateless chat, with only the new tokens computed."""

import threading

import pytest
from support.chat_bundles import add_chat, small_chat_bundle, small_tokenizer

from firp.runtime.chat.messages import check_messages
from firp.runtime.engine import Engine
from firp.runtime.errors import BundleError, ContextFullError, FirpError, PromptError, SessionBusyError
from firp.runtime.loop.generation import Chunk, Stats
from firp.runtime.passes.batch import Batch
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig

TREES = {
    "plain": None,
    "firp": TreeConfig("dynamic", rows=8, draft_sources=2),
    "draft pass": TreeConfig("dynamic", rows=8, draft_sources=0),
    "lookup": TreeConfig.lookup(rows=8),
    "merged": TreeConfig("dynamic", rows=8, draft_sources=2, drafters=DRAFTERS),
}
TURNS = ("hi, who are you?", "  tell me more ", "and then?")


@pytest.fixture(scope="module")
def small(family_bundle, tmp_path_factory):
    made = {}

    def make(family):
        if family not in made:
            target = tmp_path_factory.mktemp("chat") / family
            made[family] = Engine.load(small_chat_bundle(family_bundle(family)[1], target))
        return made[family]

    return make


@pytest.fixture(scope="module")
def demo(demo_bundle, tmp_path_factory):
    target = tmp_path_factory.mktemp("chat") / "demo"
    return Engine.load(add_chat(demo_bundle, target, bos_token="#", eos_token="\n\n"))


@pytest.fixture
def rows(monkeypatch):
    """Rows of every pass that fills the cache with a prompt."""
    counted = []
    real = Batch.forward

    def forward(self, lanes, plans):
        counted.extend(len(plan.tree.tokens) for plan in plans if plan.prompt)
        return real(self, lanes, plans)

    monkeypatch.setattr(Batch, "forward", forward)
    return counted


def alone(engine, messages, params, tree):
    """Tokens of a request in a session of its own, whose cache is empty."""
    request = engine.request(messages, params)
    return [token for step in engine.steps(request, tree) for token in step.tokens]


def talk(engine, params, tree, rows, turns=TURNS):
    """Turns in a conversation, each compared with stateless chat on the same messages."""
    conversation = engine.conversation(params, "Be brief.", plain=tree is None, tree=tree)
    for turn, text in enumerate(turns, 1):
        messages = [*conversation.messages, {"role": "user", "content": text}]
        rows.clear()
        chunks = list(conversation.send(text))
        computed = sum(rows)
        assert [token for chunk in chunks for token in chunk.token_ids] == alone(
            engine, messages, params, tree
        )
        answer = "".join(chunk.text for chunk in chunks)
        assert conversation.messages == [*messages, {"role": "assistant", "content": answer}]
        stats = chunks[-1].stats
        assert stats.prompt_tokens == len(engine.encode(messages))
        assert computed == stats.prompt_tokens - stats.reused_tokens
        assert stats.reused_tokens < stats.prompt_tokens
        assert conversation.turns == turn
        if turn > 1:
            assert stats.reused_tokens > 20
    return conversation


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window"])
def test_the_tokens_of_stateless_chat_on_random_models(family, name, small, rows):
    engine = small(family)
    talk(engine, SamplingParams(12), TREES[name], rows)
    talk(engine, SamplingParams(9, temperature=0.9, seed=3), TREES[name], rows)


@pytest.mark.parametrize("name", TREES)
def test_the_tokens_of_stateless_chat_on_the_demo_model(name, demo, rows):
    conversation = talk(demo, SamplingParams(24), TREES[name], rows)
    stats = conversation.stats
    assert stats.reused_tokens > stats.prompt_tokens // 3
    if name in ("firp", "merged"):
        assert stats.tokens_per_step > 1


def test_only_what_was_said_last_is_computed(small, rows):
    """The cache holds the prompt and the answer but for its last token; no character joins another
    in this tokenizer.
    """
    engine = small("llama")
    conversation = engine.conversation(SamplingParams(6, ignore_eos=True))
    first = list(conversation.send("abc"))
    assert conversation.tokens == first[-1].stats.prompt_tokens + 6
    conversation.messages[-1] = {"role": "assistant", "content": "xyz"}  # another answer, in another's place
    rows.clear()
    second = list(conversation.send("def"))
    assert second[-1].stats.reused_tokens == first[-1].stats.prompt_tokens
    assert sum(rows) == len("xyz</s><s>user: def</s><s>assistant: ".replace("</s>", "/").replace("<s>", "<"))


def test_the_same_prompt_again_computes_its_last_row(small, rows):
    conversation = small("llama").conversation(SamplingParams(4), "Be brief.")
    first = list(conversation.send("abc"))
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be brief."}]
    assert conversation.turns == 0
    rows.clear()
    again = list(conversation.send("abc"))
    assert [chunk.token_ids for chunk in again] == [chunk.token_ids for chunk in first]
    assert rows == [2]
    assert conversation.stats.reused_tokens == conversation.stats.prompt_tokens - 2


def test_a_conversation_that_outgrows_its_memory_keeps_its_cache(small, rows):
    engine, params = small("llama"), SamplingParams(4, ignore_eos=True)
    conversation = engine.conversation(params)
    list(conversation.send("a"))
    before = conversation.tokens
    text = "b" * 100
    messages = [*conversation.messages, {"role": "user", "content": text}]
    rows.clear()
    chunks = list(conversation.send(text))
    stats = chunks[-1].stats
    assert sum(rows) == stats.prompt_tokens - stats.reused_tokens
    assert stats.reused_tokens >= before - 5
    assert [token for chunk in chunks for token in chunk.token_ids] == alone(engine, messages, params, None)


def test_at_the_end_of_the_context_a_reset_helps(small):
    conversation = small("llama").conversation(SamplingParams(400, ignore_eos=True))
    *_, last = conversation.send("a" * 100)
    assert last.finish_reason == "length"
    said = list(conversation.messages)
    with pytest.raises(ContextFullError, match="prompt longer than the context.*at most 255.*/reset"):
        conversation.send("and?")
    assert conversation.messages == said
    conversation.reset()
    assert list(conversation.send("and?"))


@pytest.mark.parametrize("name", ["plain", "firp"])
def test_a_cut_answer_stays_and_the_next_turn_goes_on_from_it(name, small, rows):
    engine, tree = small("llama"), TREES[name]
    params = SamplingParams(150, ignore_eos=True)
    cancel = threading.Event()
    conversation = engine.conversation(params, plain=tree is None, tree=tree)
    reasons = []
    for chunk in conversation.send("abc", cancel):
        cancel.set()
        reasons.append(chunk.finish_reason)
    assert reasons[-1] == "cancelled"
    cut = conversation.messages[-1]
    assert cut["role"] == "assistant"
    assert len(cut["content"]) < 100
    turn = conversation.send("def")
    next(turn)
    next(turn)  # the caller leaves; the next turn ends this one
    messages = [*conversation.messages]
    rows.clear()
    chunks = list(conversation.send("ghi"))
    assert [m["role"] for m in conversation.messages] == ["user", "assistant"] * 3
    assert conversation.messages[: len(messages)] == messages
    expected = alone(engine, conversation.messages[:-1], params, tree)
    assert [token for chunk in chunks for token in chunk.token_ids] == expected


def test_variables_reach_the_template_of_every_way_to_chat(family_bundle, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ mood or 'calm' }}:"
    source = family_bundle("llama")[1]
    engine = Engine.load(add_chat(source, tmp_path / "b", template, small_tokenizer(), bos_token="<s>"))
    params = SamplingParams(8, ignore_eos=True)
    messages = [{"role": "user", "content": "hi "}]
    mood = {"mood": "gay"}
    expected, calm = (engine.generate(text, params).token_ids for text in ("hi gay:", "hi calm:"))
    assert engine.chat(messages, params, chat_template_kwargs=mood).token_ids == expected
    assert engine.generate(check_messages(messages, mood), params).token_ids == expected
    turn = engine.conversation(params, chat_template_kwargs=mood).send("hi ")
    assert [token for chunk in turn for token in chunk.token_ids] == expected
    assert engine.chat(messages, params).token_ids == calm != expected
    with pytest.raises(PromptError, match="bad chat_template_kwargs.*tools"):
        engine.conversation(params, chat_template_kwargs={"tools": []})


def test_what_cannot_be_answered_is_not_kept(demo):
    conversation = demo.conversation(SamplingParams(4))
    with pytest.raises(PromptError, match="not Unicode"):
        conversation.send("\udcff")
    with pytest.raises(PromptError, match="bad content of message 1"):
        conversation.send(5)
    assert conversation.messages == []


def test_a_second_thread_in_a_conversation_is_told(small, monkeypatch):
    conversation = small("llama").conversation(SamplingParams(4))
    inside, go_on = threading.Event(), threading.Event()

    def stream(*_, **__):
        inside.set()
        assert go_on.wait(20)
        yield Chunk([5], "x", "length", Stats(1))

    monkeypatch.setattr(conversation._decoder, "stream", stream)
    turn = conversation.send("a")
    other = threading.Thread(target=list, args=(turn,))
    other.start()
    assert inside.wait(20)
    with pytest.raises(SessionBusyError, match="another caller"):
        conversation.send("b")
    go_on.set()
    other.join()
    assert [message["content"] for message in conversation.messages] == ["a", "x"]


def test_a_bundle_that_cannot_chat_says_so(demo_engine, family_bundle):
    with pytest.raises(PromptError, match="the bundle has no chat template"):
        demo_engine.conversation()
    with pytest.raises(PromptError, match="the bundle has no chat template"):
        demo_engine.chat([{"role": "user", "content": "hi"}])
    with pytest.raises(FirpError, match="plain decoding has no tree"):
        demo_engine.conversation(plain=True, tree=TreeConfig())


def test_a_malformed_template_is_found_before_the_first_turn(family_bundle, tmp_path):
    bundle = add_chat(family_bundle("llama")[1], tmp_path / "b", "{% if %}", small_tokenizer())
    with pytest.raises(BundleError, match="bad chat template.*line 1"):
        Engine.load(bundle).conversation()


def test_requests_that_begin_alike_share_what_is_computed(small, rows):
    engine, params = small("llama"), SamplingParams(4)
    request = [{"role": "user", "content": "abc"}]
    first = engine.chat(request, params)
    rows.clear()
    again = engine.chat(request, params)
    assert again.stats.reused_tokens == first.prompt_tokens - 2
    assert sum(rows) == 2
    assert again.token_ids == first.token_ids
