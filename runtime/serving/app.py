"""The server's application: paths, and what they answer.

    app = build_app(Engine.load("bundle"), ServerSettings(api_keys=("secret",)))

In: an engine, settings, metrics. Out: an ASGI application for uvicorn, Ray Serve or a test. The engine
stays its owner's, who closes it.
"""

import importlib.metadata
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from firp.runtime.engine import Engine
from firp.runtime.serving.api.answers import Envelope
from firp.runtime.serving.api.chat import ChatAnswer
from firp.runtime.serving.api.completions import CompletionAnswer
from firp.runtime.serving.api.fields import ChatRequest, Common, CompletionRequest
from firp.runtime.serving.api.reading import Asked, read_chat, read_completion
from firp.runtime.serving.api.streams import events
from firp.runtime.serving.errors import ApiError, field_error, json_error
from firp.runtime.serving.gate import Gate, GateMiddleware
from firp.runtime.serving.metrics import Metrics
from firp.runtime.serving.served_engine import ServedEngine
from firp.runtime.serving.settings import ServerSettings

VERSION = importlib.metadata.version("firp")
# the page runs what it holds, and speaks with nobody but this server
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def build_app(
    engine: Engine, settings: ServerSettings | None = None, metrics: Metrics | None = None
) -> FastAPI:
    """The application of one engine. metrics: those that the engine reports to, as its observer; None
    for some that count answers alone. `app.state.gate` and `app.state.service` are for who runs it.
    """
    settings = settings or ServerSettings()
    metrics = metrics or Metrics()
    metrics.watch(engine.stats)
    app = FastAPI(title="firp", version=VERSION, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gate = Gate(settings, metrics.answered)
    app.state.service = ServedEngine(engine, settings)
    app.add_middleware(GateMiddleware, gate=app.state.gate)
    _add_errors(app)
    _add_completions(app, app.state.service)
    _add_models(app, app.state.service)
    _add_health(app, app.state.service, app.state.gate, metrics)
    return app


def _add_errors(app: FastAPI) -> None:
    def answer(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers=dict(error.headers))

    @app.exception_handler(ApiError)
    async def mistake(request: Request, error: ApiError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def field(request: Request, error: RequestValidationError) -> Response:
        return answer(field_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def path(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, ValueError | RecursionError):  # of a body that is no JSON
            return answer(json_error(error.__cause__))
        where = f"{request.method} {request.url.path}"
        return answer(ApiError(error.status_code, f"{error.detail}: {where:.200}"))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> Response:  # and uvicorn logs its traceback
        return answer(ApiError(500, "The server had an error.", code="internal_error"))


def _add_completions(app: FastAPI, service: ServedEngine) -> None:
    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        return await _complete(service, body, http, _CHAT)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, http: Request) -> Response:
        return await _complete(service, body, http, _TEXT)


class _Kind(NamedTuple):
    """What differs between the two kinds of completion."""

    read: Callable[[Any, ServedEngine], Asked]
    answer: type[ChatAnswer] | type[CompletionAnswer]
    prefix: str  # of an answer's id
    name: str
    prompt: str  # the field that the prompt comes in


_CHAT = _Kind(read_chat, ChatAnswer, "chatcmpl", "chat.completion", "messages")
_TEXT = _Kind(read_completion, CompletionAnswer, "cmpl", "text_completion", "prompt")


async def _complete(service: ServedEngine, body: Common, http: Request, kind: _Kind) -> Response:
    model = service.check_model(body.model)
    asked = await service.read(kind.read, body, http)
    if asked is None:
        return _nobody()
    answer_id = f"{kind.prefix}-{uuid.uuid4().hex}"
    http.scope["answer_id"] = answer_id  # for the log
    usage = body.stream_options is not None and body.stream_options.include_usage
    head = Envelope(kind.name, answer_id, int(time.time()), model, f"firp-{VERSION}", usage)
    handles = await service.submit(
        asked.prompts, asked.params, body.n, body.deadline_s, answer_id, kind.prompt, asked.form.field
    )
    answer = kind.answer(service, body, asked, handles, head)
    if body.stream:
        return _EventStream(answer, service.running(handles, http))
    async with service.running(handles, http):
        try:
            return JSONResponse(await answer.whole())
        except ApiError:
            if await http.is_disconnected():  # which ended it
                return _nobody()
            raise


def _nobody() -> Response:
    """An answer for the log alone: its client has left."""
    return Response(status_code=499)


class _EventStream(StreamingResponse):
    """An answer as it comes. running: entered while it is sent."""

    def __init__(self, answer: ChatAnswer | CompletionAnswer, running: AbstractAsyncContextManager[None]):
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events(answer.chunks()), media_type="text/event-stream", headers=headers)
        self._running = running

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._running:
            await super().__call__(scope, receive, send)


def _add_models(app: FastAPI, service: ServedEngine) -> None:
    def model(name: str) -> dict[str, Any]:
        length = service.engine.context
        about = {"id": name, "object": "model", "created": service.created, "owned_by": "firp"}
        return {**about, "max_model_len": length}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model(name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        return model(service.check_model(name))


def _add_health(app: FastAPI, service: ServedEngine, gate: Gate, metrics: Metrics) -> None:
    @app.get("/healthz")
    async def health() -> Response:
        status = "draining" if gate.draining else "ok" if service.engine.healthy else "engine dead"
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return PlainTextResponse(metrics.text(), media_type=metrics.content_type)

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": VERSION}

    page = (files("firp.runtime.serving") / "page.html").read_text("utf-8")

    @app.get("/")
    async def chat_page() -> Response:
        return HTMLResponse(
            page, headers={"content-security-policy": _PAGE_POLICY, "referrer-policy": "no-referrer"}
        )
