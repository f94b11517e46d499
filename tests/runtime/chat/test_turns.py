"""Whatever a user does, a conversation is the list of what was said, and answers as stateless chat
does; what was cached of it is not computed again.
"""

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from support.chat_bundles import small_chat_bundle

from firp.runtime.chat.messages import check_messages
from firp.runtime.engine import Engine
from firp.runtime.sampling import SamplingParams
from firp.runtime.trees.tree_config import TreeConfig

SYSTEM = {"role": "system", "content": "Be brief."}
PARAMS = SamplingParams(6, ignore_eos=True)
TREE = TreeConfig("dynamic", rows=6, draft_sources=2)


@pytest.fixture(scope="module")
def engine(family_bundle, tmp_path_factory):
    bundle = small_chat_bundle(family_bundle("llama")[1], tmp_path_factory.mktemp("turns") / "llama")
    with Engine.load(bundle) as loaded:
        yield loaded


class Said:
    """A conversation beside a list of turns. cached: tokens that its last turn left in the cache."""

    def __init__(self, engine):
        self.engine = engine
        self.conversation = engine.conversation(PARAMS, SYSTEM["content"], tree=TREE)
        self.turns, self.cached = [], []

    @property
    def messages(self):
        return [SYSTEM, *(message for turn in self.turns for message in turn)]

    def send(self, text, most):
        """A turn of which at most so many chunks are listened to."""
        asked = [*self.messages, {"role": "user", "content": text}]
        request = self.engine.request(check_messages(asked), PARAMS)
        alone = [token for step in self.engine.steps(request) for token in step.tokens]
        tokens, said = [], ""
        turn = self.conversation.send(text)
        for _, chunk in zip(range(most), turn, strict=False):
            tokens += chunk.token_ids
            said += chunk.text
        turn.close()
        assert tokens == alone[: len(tokens)]
        pairs = zip(self.cached, request.prompt[:-2], strict=False)  # the last two are always computed
        known = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        assert chunk.stats.reused_tokens >= known
        self.cached = [*request.prompt, *tokens][:-1]
        self.turns.append((asked[-1], {"role": "assistant", "content": said}))

    def rewind(self, turns):
        if turns <= len(self.turns):
            self.conversation.rewind(turns)
            del self.turns[len(self.turns) - turns :]

    def reset(self):
        self.conversation.reset()
        self.turns.clear()


ACTIONS = some.one_of(
    some.tuples(some.just("send"), some.text("ab ?", min_size=1, max_size=9), some.integers(1, 9)),
    some.tuples(some.just("rewind"), some.integers(1, 3)),
    some.tuples(some.just("reset")),
)


@settings(max_examples=15)
@given(some.lists(ACTIONS, min_size=1, max_size=8))
def test_a_conversation_is_what_was_said(engine, actions):
    said = Said(engine)
    for name, *given_values in actions:
        getattr(said, name)(*given_values)
        assert said.conversation.messages == said.messages
