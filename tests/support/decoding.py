"""Requests decoded in a session of the test's own."""

from firp.runtime.loop.decode import decode
from firp.runtime.loop.picker import Picker


def steps_in(session, engine, prompt, params, tree=None, reuse=False):
    """The steps of one request; plain without a tree. reuse: what the session has cached."""
    request = engine.request(prompt, params)
    drafter = engine.drafter(tree, params.temperature == 0, walk=request.walk())
    return decode(session, request, drafter, Picker(request), reuse)


def tokens_in(session, engine, prompt, params, tree=None):
    """The tokens of one request, step by step."""
    return [step.tokens for step in steps_in(session, engine, prompt, params, tree)]


def all_tokens_in(session, engine, prompt, params, tree=None):
    """The tokens of one request."""
    return [token for tokens in tokens_in(session, engine, prompt, params, tree) for token in tokens]
