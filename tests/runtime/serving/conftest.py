"""A server with an engine that says what a test wants, and a client of it."""

import httpx2
import pytest
from support.fake_engine import FakeEngine
from support.http_server import serving

from firp.runtime.serving.app import build_app
from firp.runtime.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def app(engine):
    keys = ("key-1", "key-2")
    settings = ServerSettings(("model", "alias"), keys, 20_000, max_tokens=100, body_timeout_s=0.3)
    return build_app(engine, settings)


@pytest.fixture(scope="module")
def url(app):
    with serving(app) as address:
        yield address


@pytest.fixture
def client(url, engine):
    with httpx2.Client(base_url=url, headers={"authorization": "Bearer key-2"}) as made:
        yield made
    engine.reset()
