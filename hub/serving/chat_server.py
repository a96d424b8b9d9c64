"""The application behind `seqloom serve`: OpenAI's routes for one folder, in front of a queue.

    POST /v1/chat/completions   messages -> chat template -> ids
    POST /v1/completions        prompt                    -> ids
    POST /v1/responses          input    -> chat template -> ids
         -> Job -> JobQueue -> Engine -> tokens -> text, whole or as server-sent events

What may take long, the template and the tokenizer, runs on a thread beside the event loop, which has to stay free for
everybody else. Importing this file needs the extra `serving`.
"""

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path
from socket import gethostname
from threading import Lock
from typing import Any

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from seqloom.hub.chat_template import ChatTemplate, TemplateFault
from seqloom.hub.costs import is_ours
from seqloom.hub.serving.answer_doors import DOORS, Door
from seqloom.hub.serving.answer_text import Answer
from seqloom.hub.serving.chat_request import (
    COMPLETION,
    RESPONSE,
    SOURCE_FIELD,
    Limits,
    RequestError,
    check_characters,
    check_fields,
    check_length,
    is_stream,
    parse_object,
    settings_of,
    source_of,
    tagged,
)
from seqloom.hub.serving.job_queue import MAX_WAITING, Engine, Job, JobQueue, ServerStopping
from seqloom.hub.tags import Tags
from seqloom.modeling.canary import ends_of

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parents[1] / "templates" / "chat_page.html"

MAX_BODY_BYTES = 4 << 20
"""Largest request; a text of 100,000 Chinese characters has 600,000 bytes when JSON escapes them."""

BODY_SECONDS = 60.0
"""What a request gets to arrive."""

REQUEST_ID = "x-request-id"
"""Header by which a client may name its request; the answer bears it."""

MAX_DETAIL = 500
"""Characters of somebody else's message; it may quote the whole request."""


class Service:
    """One folder, served."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        generation_config: Any,
        names: tuple[str, ...],
        created: int,
        limits: Limits,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        """Begin to serve.

        Args:
            engine: writes.
            tokenizer: of the same folder.
            generation_config: of the same folder, with its ends of sequence and `max_new_tokens`.
            names: what a request may call the model; the first is what the server calls it.
            created: when the folder was made, in seconds since 1970.
            limits: what it can take.
            max_waiting: requests that may wait.

        Raises:
            TemplateFault: if the tokenizer's chat template cannot be rendered.
        """
        self.tokenizer, self.generation_config = tokenizer, generation_config
        self.names, self.created, self.limits = names, created, limits
        self.tags = Tags.in_settings(tokenizer.init_kwargs)
        self.ends = ends_of(generation_config)
        self.longest_token = max(map(len, tokenizer.get_vocab()))
        self.tokenizing = Lock()  # a tokenizer that is set up and used at once says "Already borrowed"
        self.chat_template: ChatTemplate | None = None
        """None: the last message is the source, as our own template has it."""
        if tokenizer.chat_template is not None and not is_ours(template := tokenizer.get_chat_template()):
            self.chat_template = ChatTemplate(template, tokenizer.special_tokens_map)
            self.chat_template.render("text", MAX_BODY_BYTES)
        self.metrics = Metrics()
        self.queue = JobQueue(engine, max_waiting, self.metrics.batch_size.observe)
        self.metrics.waiting.set_function(lambda: len(self.queue.waiting))
        self.metrics.running.set_function(lambda: len(self.queue.running))

    def close(self) -> None:
        """Answer what was accepted, and end what serving began."""
        self.queue.drain()
        if self.chat_template is not None:
            self.chat_template.close()

    def leave(self, answer: Answer) -> None:
        """Forget a job that nobody reads any more, for it is read, or its reader gone."""
        self.queue.drop(answer.job)
        self.metrics.tokens.labels("read").inc(answer.job.prompt_tokens)
        self.metrics.tokens.labels("written").inc(answer.num_tokens)

    def check_name(self, name: Any) -> None:
        """Refuse a request for another model; none named is this one.

        Raises:
            RequestError: 404, as OpenAI's servers answer.
        """
        if name is not None and name not in self.names:
            shown = name if isinstance(name, str) else json.dumps(name)  # no deeper than json can write
            message = f"The model {shown[:200]!r} is not served here; use {self.names[0]!r}."
            raise RequestError(message, "model", "model_not_found", 404)

    def prepare(self, kind: str, data: bytes, loop: asyncio.AbstractEventLoop) -> Job:
        """Return what a request asks for, its text in tokens.

        Raises:
            RequestError: for what cannot be answered.
        """
        body = parse_object(data)
        check_fields(kind, body)
        self.check_name(body.get("model"))
        source = tagged(source_of(kind, body), body, self.tags)
        settings, stream = settings_of(body, self.limits), is_stream(body)
        ids = self.ids_of(kind, source)
        closed = ids if not self.ends or ids[-1] in self.ends else [*ids, self.ends[0]]  # chat templates leave it open
        length = settings.get("max_new_tokens", self.generation_config.max_new_tokens)
        stops = settings.get("stop_strings") or self.generation_config.stop_strings or []
        stops = [stops] if isinstance(stops, str) else stops
        job = Job(loop, closed, settings, length, frozenset(self.ends), stops, stream, len(ids))
        self.queue.engine.admit(job)
        return job

    def ids_of(self, kind: str, source: str) -> list[int]:
        """Return the ids of a source, or of what the chat template makes of it.

        Raises:
            RequestError: if it is too long, or the template fails with it.
        """
        param, text = SOURCE_FIELD[kind], source
        check_characters(source, self.longest_token, self.limits, param)
        if self.chat_template is not None and kind != COMPLETION:
            text = self._in_chat(self.chat_template, source, param)
            check_characters(text, self.longest_token, self.limits, param)
        with self.tokenizing:
            ids = self.tokenizer(text, add_special_tokens=False).input_ids
            check_length(len(ids) + 1, self.limits, param)
            return self.tokenizer(text).input_ids if kind == COMPLETION else ids

    @staticmethod
    def _in_chat(template: ChatTemplate, source: str, param: str) -> str:
        try:
            return template.render(source, MAX_BODY_BYTES)
        except TemplateFault as fault:
            raise RequestError(
                f"The chat template of this model fails with this text: {fault}; send another text, or this one to "
                "/v1/completions, which uses no template.",
                param=param,
            ) from fault


class Metrics:
    """What Prometheus asks for."""

    def __init__(self) -> None:
        self.registry = to = prometheus_client.CollectorRegistry()
        self.requests = Counter("seqloom_requests", "Requests that were answered.", ["route", "status"], registry=to)
        self.seconds = Histogram("seqloom_request_seconds", "From head to end of answer.", ["route"], registry=to)
        self.tokens = Counter("seqloom_tokens", "Tokens of texts.", ["kind"], registry=to)
        sizes = [2**power for power in range(9)]
        self.batch_size = Histogram("seqloom_batch_size", "Requests written together.", buckets=sizes, registry=to)
        self.waiting = Gauge("seqloom_waiting", "Requests that wait.", registry=to)
        self.running = Gauge("seqloom_running", "Requests that are written.", registry=to)


# The application -----------------------------------------------------------------------------------------------------

_GETS = ("/v1/models", "/health", "/metrics", "/")
_POSTS = tuple(f"/v1/{path}" for path in DOORS)
_ROUTES = f"This server has GET {', '.join(_GETS)}; POST {', '.join(_POSTS)}. A client's base_url ends in /v1."


def build_app(service: Service | None = None, *, is_for_this_machine: bool = False) -> Starlette:
    """Return the application; without a service it says that it is loading until `app.state.service` is set."""
    gets = dict(zip(_GETS, (_models, _health, _metrics, _page), strict=True))
    posts = dict(zip(_POSTS, map(_asking, DOORS.values()), strict=True)) | {"/load_model": _load_model}
    app = Starlette(
        routes=[
            *(Route(path, answer, methods=["GET"]) for path, answer in gets.items()),
            *(Route(path, answer, methods=["POST"]) for path, answer in posts.items()),
        ],
        middleware=[Middleware(_Counted), Middleware(_ForThisMachine)],
        exception_handlers=_error_handlers(),
    )
    app.state.service, app.state.is_for_this_machine = service, is_for_this_machine
    return app


def _service(request: Request) -> Service:
    service = request.app.state.service
    if service is None:
        raise RequestError("The model is being loaded; ask again in a moment.", status=503, retry_after=2)
    return service


async def _health(request: Request) -> Response:
    service = request.app.state.service
    status = "loading" if service is None else "stopping" if service.queue.is_stopping else "ok"
    return JSONResponse({"status": status}, status_code=200 if status == "ok" else 503)


async def _metrics(request: Request) -> Response:
    text = prometheus_client.generate_latest(_service(request).metrics.registry)
    return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)


async def _models(request: Request) -> Response:
    service = _service(request)
    card = {"id": service.names[0], "object": "model", "created": service.created, "owned_by": "seqloom"}
    return JSONResponse({"object": "list", "data": [card]})


async def _page(request: Request) -> Response:
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
    return FileResponse(PAGE, media_type="text/html", headers={"content-security-policy": policy})


async def _load_model(request: Request) -> Response:
    """Tell `transformers chat`, which asks for its model first, that it is there."""
    service, body = _service(request), await asyncio.to_thread(parse_object, await _read(request))
    service.check_name(body.get("model"))
    return Response(
        _event({"status": "ready", "model": service.names[0], "cached": True}), media_type="text/event-stream"
    )


def _asking(door: Door) -> Callable[[Request], Awaitable[Response]]:
    async def ask(request: Request) -> Response:
        service = _service(request)
        if service.queue.is_stopping:
            raise ServerStopping
        name = request.headers.get(REQUEST_ID, "")
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= MAX_DETAIL):  # what any client can read
            name = str(uuid.uuid4())
        job = await asyncio.to_thread(service.prepare, door.kind, await _read(request), asyncio.get_running_loop())
        service.queue.put(job)
        answer = Answer(job, service.tokenizer, name=name, model=service.names[0])
        headers = {REQUEST_ID: name}
        if job.is_stream:
            return StreamingResponse(_events(door, answer, service), media_type="text/event-stream", headers=headers)
        await _unless_left(request, _read_all(answer, service))
        return JSONResponse(door.whole(answer), headers=headers)

    return ask


async def _read_all(answer: Answer, service: Service) -> None:
    try:
        async for _ in answer.pieces():
            pass
    finally:
        service.leave(answer)


async def _unless_left(request: Request, work: Awaitable[None]) -> None:
    """Do some work as long as there is somebody who waits for it.

    Raises:
        ClientDisconnect: if there is not.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _events(door: Door, answer: Answer, service: Service) -> AsyncIterator[str]:
    """Write an answer as events; an error is the last of them, for the status is sent already."""
    try:
        for event in door.first(answer):
            yield _event(event)
        async for piece in answer.pieces():
            yield _event(door.piece(answer, piece))
        for event in door.last(answer):
            yield _event(event)
    except RequestError as error:
        yield _event(error.body)
    except Exception as error:
        logger.exception("An answer could not be streamed to its end.")
        yield _event(RequestError(str(error), status=500).body)
    finally:
        service.leave(answer)
    if door.kind != RESPONSE:
        yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"


async def _read(request: Request) -> bytes:
    """Return a request's body, if it is JSON that comes to its end and is not too long.

    Why JSON by name: any web page may have a browser send plain text to a server on its machine, but not that type.

    Raises:
        RequestError: with the status that HTTP has for it.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestError(
            f"The request is of type {json.dumps(media_type[:MAX_DETAIL])}; send it with Content-Type: "
            "application/json.",
            status=415,
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        _check_size(int(length[:20]))
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                _check_size(len(body), "at least ")
    except TimeoutError as error:
        raise RequestError(
            f"The request did not arrive whole within {BODY_SECONDS:g} seconds; send it again.", status=408
        ) from error
    return bytes(body)


def _check_size(num_bytes: int, at_least: str = "") -> None:
    if num_bytes > MAX_BODY_BYTES:
        text = f"The request has {at_least}{num_bytes:,} bytes, and this server takes {MAX_BODY_BYTES:,}; shorten it."
        raise RequestError(text, status=413)


def _error_handlers() -> dict[Any, Callable[[Request, Any], Awaitable[Response]]]:
    async def refused(request: Request, error: RequestError) -> Response:
        headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return JSONResponse(error.body, status_code=error.status, headers=headers)

    def sentence(say: Callable[[Any], tuple[int, str]]) -> Callable[[Request, Any], Awaitable[Response]]:
        async def answer(request: Request, error: Exception) -> Response:
            status, text = say(error)
            return await refused(request, RequestError(text, status=status))

        return answer

    return {
        RequestError: refused,
        HTTPException: sentence(
            lambda error: (error.status_code, f"{str(error.detail).rstrip('.')[:MAX_DETAIL]}. {_ROUTES}")
        ),
        ClientDisconnect: sentence(lambda error: (400, "The request ended before its body did.")),
        Exception: sentence(
            lambda error: (500, f"{type(error).__name__} while answering; the server's own output says more.")
        ),
    }


class _ForThisMachine:
    """Middleware by which a server that listens for its machine alone is asked by no name of other sites.

    A page of such a site may have its own name lead to this machine; for the browser it is then of one origin with the
    server, and may read what it answers. Such a name has a dot, is no address, and does not end as names at home do.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sent = Request(scope).headers.get("host", "") if scope["type"] == "http" else ""
        name = re.sub(r":\d*$", "", sent).strip("[]").rstrip(".")
        is_of_others = "." in name and not name.endswith(HOME) and name != gethostname() and not _is_address(name)
        if is_of_others and scope["app"].state.is_for_this_machine:
            error = RequestError(
                f"This server listens for its machine alone, and the request's Host is {json.dumps(sent[:MAX_DETAIL])};"
                " ask 127.0.0.1 or localhost, let a proxy send that as Host, or serve with --host 0.0.0.0.",
                status=421,
            )
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


HOME = (".localhost", ".local", ".internal")
"""How names end that no site has."""


def _is_address(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


class _Counted:
    """Middleware that counts requests, by routes that exist."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        service = scope["app"].state.service if scope["type"] == "http" else None
        if service is None:
            return await self.app(scope, receive, send)
        status, begin = 500, time.monotonic()

        async def note(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            route = scope["path"] if "endpoint" in scope else "other"
            service.metrics.requests.labels(route, status).inc()
            service.metrics.seconds.labels(route).observe(time.monotonic() - begin)


__all__ = ["Service", "build_app"]
