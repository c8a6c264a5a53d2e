"""The routes of `vitrine serve`: each reads a request, passes it to the decoding process, and answers."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vitrine.http.guard import KeyGuard
from vitrine.http.requests import GONE, while_there
from vitrine.serving.chat_template import ABSENT
from vitrine.serving.decoder_process import Decoding
from vitrine.serving.errors import ApiError
from vitrine.serving.messages import Job
from vitrine.serving.metrics import CONTENT_TYPE, Metrics
from vitrine.serving.request_models import Body, ChatBody, CompletionBody, check, parse
from vitrine.serving.response_models import Answer, Chat, Completion, stream, whole
from vitrine.serving.served_model import Model

Prompt = tuple[list[int], str, list[int]]  # ids; the echoed text, and where in it each token begins


class Server:
    """The routes' shared state: the model, the decoding process, and the metrics."""

    def __init__(self, model: Model, decoding: Decoding) -> None:
        self.model, self.decoding, self.metrics = model, decoding, Metrics()

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        body = await self._body(request, CompletionBody)
        if body.best_of not in (None, body.n or 1):
            raise ApiError(400, f"best_of must equal n: got {body.best_of} and {body.n or 1}.", "best_of")
        given = await asyncio.to_thread(body.prompts, self.model)
        self.decoding.check_room(len(given) * (body.n or 1))
        prompts = [await self._prompt(each, body) for each in given]
        told = body.logprobs is not None
        settings = {"max_tokens": 16 if body.max_tokens is None else body.max_tokens, "ends": self.model.end_ids}
        settings |= {"logprobs": body.logprobs, "echo": bool(body.echo and told)}
        return await self._answer(request, body, prompts, settings, Completion(self.model))

    async def chats(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        body = await self._body(request, ChatBody)
        if self.model.template is None:
            raise ApiError(400, ABSENT, "messages")
        self.decoding.check_room(body.n or 1)
        ids = await self.model.encode_chat([message.to_json() for message in body.messages])
        check(ids, self.model, "messages")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
        given = [count for count in (body.max_completion_tokens, body.max_tokens) if count is not None]
        settings = {"max_tokens": (given or [max(1, self.model.context - len(ids))])[0], "ends": self.model.special_ids}
        settings |= {"logprobs": (body.top_logprobs or 0) if body.logprobs else None}
        return await self._answer(request, body, [(ids, "", [])], settings, Chat(self.model))

    async def models(self, request: Request) -> Response:
        """`GET /v1/models`, and one of them by its name."""
        if "name" in request.path_params:
            self._check_name(request.path_params["name"])
            return JSONResponse(self.model.to_json())
        return JSONResponse({"object": "list", "data": [self.model.to_json()]})

    async def health(self, request: Request) -> Response:
        """`GET /health`: whether the server can answer requests."""
        ready = self.decoding.ready is not None
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    async def show_metrics(self, request: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        writing = min(self.decoding.texts, self.decoding.rows)
        self.metrics.writing.set(writing)
        self.metrics.waiting.set(self.decoding.texts - writing)
        self.metrics.ready.set(self.decoding.ready is not None)
        return Response(self.metrics.to_bytes(), headers={"Content-Type": CONTENT_TYPE})

    async def _body(self, request: Request, kind: Any) -> Any:
        body = await asyncio.to_thread(parse, kind, await request.body())
        self._check_name(body.model)
        return body

    async def _prompt(self, given: str | list[int], body: CompletionBody) -> Prompt:
        if isinstance(given, str):
            ids = await self.model.encode(given, "prompt")
            check(ids, self.model, "prompt")
        else:
            ids = given
        if not body.echo:
            return ids, "", []
        if isinstance(given, str) and body.logprobs is None:
            return ids, given, []
        read, offsets = await asyncio.to_thread(self.model.text, ids)
        return ids, given if isinstance(given, str) else read, offsets

    def _check_name(self, name: str) -> None:
        if name != self.model.name:
            raise ApiError(
                404, f"There is no model {name!r}. This server has {self.model.name!r}.", "model", "model_not_found"
            )

    async def _answer(
        self, request: Request, body: Body, prompts: list[Prompt], settings: dict[str, Any], shape: Completion
    ) -> Response:
        stops, common, number = body.stops(), body.common(self.model), self.decoding.number
        jobs = [
            (Job(number(), tuple(ids), choice=choice, **settings, **common), echo, offsets)
            for ids, echo, offsets in prompts
            for choice in range(body.n or 1)
        ]
        answer = Answer(self.model, self.decoding, jobs, stops)
        answer.start()
        started_s = time.perf_counter()
        answer.on_first = lambda: self.metrics.first.observe(time.perf_counter() - started_s)

        def end() -> None:
            answer.stop()
            self.metrics.read.inc(answer.usage["prompt_tokens"])
            self.metrics.written.inc(answer.written)
            self.metrics.dropped.inc(not answer.done)
            self.metrics.duration.observe(time.perf_counter() - started_s)

        if body.stream:
            return _Stream(stream(answer, shape, body.with_usage), end)
        try:
            return JSONResponse(await while_there(request, whole(answer, shape)))
        finally:
            end()


class _Stream(StreamingResponse):
    """A stream of events. end: called when it ends, even if no event was read."""

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-store"}, media_type="text/event-stream")
        self.end = end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.end()


def make_app(model: Model, decoding: Decoding, key: str, hosts: frozenset[str]) -> ASGIApp:
    """The application of `vitrine serve`."""
    server = Server(model, decoding)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        decoding.listen()
        try:
            yield
        finally:
            model.sandbox.close()
            await decoding.close()

    app = Starlette(
        routes=[
            Route("/v1/completions", server.completions, methods=["POST"]),
            Route("/v1/chat/completions", server.chats, methods=["POST"]),
            Route("/v1/models", server.models),
            Route("/v1/models/{name:path}", server.models),
            Route("/health", server.health),
            Route("/metrics", server.show_metrics),
        ],
        exception_handlers={
            ApiError: _refused,
            HTTPException: _not_there,
            ClientDisconnect: _left,
            Exception: _broken,
        },
        lifespan=lifespan,
    )
    return _Counted(KeyGuard(app, hosts, _refuse, key), server.metrics)


class _Counted:
    """Counts answers by path and status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def send_and_count(message: Any) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in _COUNTED else "other"
                self.metrics.requests.labels(path, message["status"]).inc()
            await send(message)

        await self.app(scope, receive, send_and_count if scope["type"] == "http" else send)


_COUNTED = ("/v1/completions", "/v1/chat/completions", "/v1/models", "/health", "/metrics")


def _refuse(status: int, sentence: str) -> Response:
    return ApiError(status, sentence, code="invalid_api_key" if status == 401 else None).to_response()


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.to_response()


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentence = f"There is no {request.method} {request.scope['path']} here. POST /v1/completions continues a text."
    refusal = ApiError(error.status_code, sentence).to_response()
    refusal.headers.update(error.headers or {})
    return refusal


async def _left(request: Request, error: Exception) -> Response:
    return PlainTextResponse("", GONE)


async def _broken(request: Request, error: Exception) -> Response:
    return ApiError(500, f"The server made a mistake: {type(error).__name__}. Its log says more.").to_response()
