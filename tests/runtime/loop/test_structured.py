"""Structured output: what is emitted is a word of the grammar, the same with drafts as without."""

import json
import re

import numpy as np
import pytest
from support.chat_bundles import add_chat, byte_tokenizer

from firp.runtime.engine import Engine
from firp.runtime.errors import FirpError
from firp.runtime.loop.decode import decode
from firp.runtime.loop.picker import Picker
from firp.runtime.picking.context import Context
from firp.runtime.sampling import SamplingParams
from firp.runtime.structured import StructuredOutput
from firp.runtime.trees.tree_config import DRAFTERS, TreeConfig
from firp.runtime.tuning.parity import compare_trees

TREES = {
    "chain": TreeConfig.chain(3, 1),
    "dynamic": TreeConfig("dynamic", rows=12, draft_sources=None),
    "merged, draft pass": TreeConfig("dynamic", rows=10, draft_sources=0, drafters=DRAFTERS),
    "forced": TreeConfig.forced(),
}
SCHEMA = {
    "type": "object",
    "properties": {
        "identifier": {"type": "integer", "minimum": 0, "maximum": 99},
        "colour": {"enum": ["red", "green", "blue"]},
        "parts": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["identifier", "colour", "parts"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
GRAMMARS = {
    "json_schema": StructuredOutput(json_schema=SCHEMA),
    "json_object": StructuredOutput(json_object=True),
    "regex": StructuredOutput(regex="[0-9]{3}-[a-f]{4,9}( and [a-f]+)*"),
    "lark": StructuredOutput(lark='start: item (" + " item){2,4}\nitem: /[0-9]{1,3}/ | "(" start ")"'),
    "choice": StructuredOutput(choice=["the first of them", "the second of them", "another"]),
}


@pytest.fixture(scope="module")
def engine(family_bundle, tmp_path_factory):
    """A random model with a tokenizer that cuts one text in several ways."""
    target = tmp_path_factory.mktemp("structured") / "bundle"
    return Engine.load(add_chat(family_bundle("llama")[1], target, tokenizer=byte_tokenizer()))


def prompts():
    rng = np.random.default_rng(4)
    return [rng.integers(2, 190, size).tolist() for size in (2, 9)]


def asked(name, temperature=0.0, **fields):
    return SamplingParams(60, temperature, seed=5, structured=GRAMMARS[name], **fields)


@pytest.mark.parametrize("name", GRAMMARS)
def test_drafted_equals_plain_under_a_grammar(name, engine):
    params = [asked(name), asked(name, 1.3, min_tokens=5, repetition_penalty=1.1)]
    for prompt, each in zip(prompts(), params, strict=True):
        for comparison in compare_trees(engine, [prompt], [each], TREES):
            assert comparison.differences == [], comparison.name


@pytest.mark.parametrize(("tree", "temperature"), [(None, 1.2), ("dynamic", 0.0), ("forced", 1.2)])
def test_what_is_finished_is_a_word_of_the_grammar_and_nothing_follows(tree, temperature, engine):
    options = {"tree": TREES[tree]} if tree else {"plain": True}
    for prompt in prompts():
        value = engine.generate(prompt, asked("json_schema", temperature), **options)
        assert value.finish_reason == "stop"
        parsed = json.loads(value.text)
        assert list(parsed) == ["identifier", "colour", "parts"]
        assert value.token_ids[-1] not in (0, 1)  # complete: no end token is waited for
        chosen = engine.generate(prompt, asked("choice", temperature), **options)
        assert chosen.text in GRAMMARS["choice"].choice
        matched = engine.generate(prompt, asked("regex", temperature), **options)
        if matched.finish_reason == "stop":
            assert re.fullmatch(GRAMMARS["regex"].regex, matched.text)


def test_what_is_forced_is_drafted_without_a_guess(engine):
    """Also where the bundle's own choice would be plain decoding; and plain is plain."""
    for prompt in prompts():
        plain = engine.generate(prompt, asked("json_schema"), plain=True)
        forced = engine.generate(prompt, asked("json_schema"), tree=TreeConfig.forced())
        assert forced.token_ids == plain.token_ids
        assert plain.stats.drafted_steps == 0
        assert forced.stats.steps < plain.stats.steps
        assert forced.stats.drafted_steps > 0
        assert set(forced.stats.accepted_by_drafter) == {"grammar"}
    assert engine.generate(prompts()[0], SamplingParams(9), tree=TreeConfig.forced()).stats.drafted_steps == 0


def test_a_bundle_without_predictors_drafts_what_is_forced(engine, monkeypatch):
    monkeypatch.setattr(Engine, "tree", None)
    found = engine.generate(prompts()[0], asked("json_schema"))
    assert found.stats.drafted_steps > 0
    assert found.token_ids == engine.generate(prompts()[0], asked("json_schema"), plain=True).token_ids


class Watched:
    """A drafter whose trees are looked at."""

    prompt_offsets = 0

    def __init__(self, drafter, walk):
        self.drafter, self.walk = drafter, walk
        self.prompt_offsets = drafter.prompt_offsets
        self.drafts = 0

    def propose(self, sequence, session, max_depth):
        proposal = self.drafter.propose(sequence, session, max_depth)
        tree = proposal.tree
        paths = [[]]
        for parent, token in zip(tree.parents[1:], tree.tokens[1:], strict=True):
            paths.append([*paths[parent], token])
        assert self.walk.legal(Context(sequence.tokens, []), paths) == tree.depths
        assert set(proposal.sources) <= set(range(len(tree.tokens)))
        self.drafts += len(tree.tokens) - 1
        return proposal

    def observe(self, accepted, result):
        self.drafter.observe(accepted, result)


@pytest.mark.parametrize("name", ["dynamic", "merged, draft pass"])
def test_illegal_drafts_take_no_row(name, engine):
    request = engine.request(prompts()[1], asked("lark", 1.0))
    walk = request.walk()
    drafter = Watched(engine.drafter(TREES[name], False, walk=request.walk()), walk)
    needs = engine.needs(request, TREES[name])
    session = engine.session(needs.capacity, needs.rows)
    for _ in decode(session, request, drafter, Picker(request)):
        pass
    assert drafter.drafts > 0


def test_drafts_that_know_no_grammar_go_past_its_end_and_change_nothing(engine):
    text = "the first of them, and what follows; the second of them, and what follows; "
    prompt = engine.encode(text * 2 + "the")
    tree = TreeConfig.lookup(8)
    for heat in (0.0, 1.0):
        request = engine.request(prompt, asked("choice", heat))
        session = engine.session(300, 300)
        steps = list(decode(session, request, engine.drafter(tree), Picker(request)))
        plain = engine.generate(prompt, asked("choice", heat), plain=True)
        assert [token for step in steps for token in step.tokens] == plain.token_ids
        assert steps[-1].finish_reason == "stop"


def test_end_tokens_stand_only_where_the_grammar_accepts(engine):
    """Although a bias pushes them, and stop strings and ids end the text on their own."""
    for prompt in prompts():
        ended = engine.generate(prompt, asked("regex", logit_bias={1: 100.0}))
        assert ended.token_ids.index(1) == len(ended.token_ids) - 1
        assert re.fullmatch("[0-9]{3}-[a-f]{4,5}", ended.text)
    cut = engine.generate(prompts()[0], asked("json_schema", stop=("colour",)))
    assert cut.finish_reason == "stop"
    assert "colour" not in cut.text
    (brace,) = engine.tokenizer.encode("}").ids
    ids = engine.generate(prompts()[0], asked("json_schema", stop_token_ids=[brace])).token_ids
    assert brace not in ids[:-1]


def test_a_grammar_that_cannot_be_met_within_params_is_one_line(engine):
    with pytest.raises(FirpError, match="no token may be picked"):
        engine.generate([5], asked("regex", allowed_token_ids=engine.tokenizer.encode("abc").ids))


def test_grammars_need_a_tokenizer(family_bundle):
    with pytest.raises(FirpError, match="structured output needs a tokenizer"):
        Engine.load(family_bundle("llama")[1]).stream([5], asked("regex"))


@pytest.mark.parametrize("drafts", [True, False])
def test_a_conversation_follows_the_grammar_turn_by_turn(drafts, demo_engine, tmp_path, monkeypatch):
    if not drafts:
        monkeypatch.setattr(Engine, "tree", None)  # and then the grammar's own tokens are all there is
    engine = Engine.load(add_chat(demo_engine.bundle.path, tmp_path / "bundle", bos_token="", eos_token=""))
    with pytest.raises(FirpError, match="bad params.*a SamplingParams, or None"):
        engine.conversation({"temperature": 1})
    conversation = engine.conversation(SamplingParams(40, structured=GRAMMARS["choice"]))
    for _ in range(2):
        chunks = list(conversation.send("which?"))
        assert "".join(chunk.text for chunk in chunks) in GRAMMARS["choice"].choice
        assert chunks[-1].finish_reason == "stop"
        assert drafts or chunks[-1].stats.drafted_steps == chunks[-1].stats.steps
