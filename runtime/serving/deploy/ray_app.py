"""A bundle under Ray Serve: replicas of the same application.

    serve run firp.runtime.serving.deploy.ray_app:application bundle=/path/to/bundle

In: arguments of the application. Out: a deployment whose replicas each load the bundle. The engine
batches requests itself, so Ray only spreads them; a replica whose engine is dead is replaced.
"""

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve

from firp.runtime.engine import Engine
from firp.runtime.serving.app import build_app
from firp.runtime.serving.metrics import Metrics
from firp.runtime.serving.observers import observers_of
from firp.runtime.serving.settings import ServerSettings


class Arguments(BaseModel):
    """What an application may be told."""

    model_config = ConfigDict(extra="forbid")

    bundle: str
    backend: str = "cpu"
    threads: int | None = None
    replicas: int = 1
    served_model_name: str | None = None
    api_key: str | None = None
    max_ongoing_requests: int = 64  # of a replica
    max_queued_requests: int = 128  # of all callers; more get status 503


@serve.ingress()
class Replica:
    """One engine, and the application around it."""

    def __init__(self, arguments: Arguments):
        names = (arguments.served_model_name,) if arguments.served_model_name else ()
        keys = (arguments.api_key,) if arguments.api_key else ()
        self._settings = ServerSettings(served_model_name=names, api_keys=keys)
        self._metrics = Metrics()
        self._engine = Engine.load(
            arguments.bundle, arguments.backend, arguments.threads, observer=observers_of(self._metrics)
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._engine, self._settings, self._metrics)

    def check_health(self) -> None:
        """Raises RuntimeError for a replica that is to be replaced."""
        if not self._engine.healthy:
            raise RuntimeError("the engine is dead")


def application(arguments: Arguments) -> serve.Application:
    """What `serve run` and `serve deploy` take."""
    options = {
        "num_replicas": arguments.replicas,
        "max_ongoing_requests": arguments.max_ongoing_requests,
        "max_queued_requests": arguments.max_queued_requests,
    }
    return serve.deployment(**options)(Replica).bind(arguments)
