"""Ray Serve on this machine: two replicas of the application, and streams from both."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from support.http_server import events

from firp.runtime.sampling import SamplingParams
from firp.runtime.serving.server import bind

ASKED = {"prompt": "def add(a, b):", "max_tokens": 12, "temperature": 0, "stream": True}


@pytest.fixture
def url(demo_bundle):
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    from firp.runtime.serving.deploy.ray_app import Arguments, application

    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application(Arguments(bundle=str(demo_bundle), threads=1, replicas=2)))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


def busy_replica(url):
    """When the replica that answers was made, where it has decoded something."""
    text = httpx2.get(f"{url}/metrics").text
    taken = float(re.search(r"^firp_requests_submitted_total (\S+)$", text, re.MULTILINE)[1])
    made = re.search(r"^firp_requests_submitted_created (\S+)$", text, re.MULTILINE)[1]
    return {made} if taken else set()


@pytest.mark.ray
def test_two_replicas_stream(url, demo_engine):
    expected = demo_engine.generate(ASKED["prompt"], SamplingParams(12), plain=True).text

    def ask(_):
        return httpx2.post(f"{url}/v1/completions", json=ASKED, timeout=60)

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(ask, range(16)))
    for answer in answers:
        assert "".join(one["choices"][0]["text"] for one in events(answer)) == expected
    assert len(set().union(*(busy_replica(url) for _ in range(40)))) == 2
    assert httpx2.get(f"{url}/healthz").json() == {"status": "ok"}
