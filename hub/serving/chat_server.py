"""transformers' own server around one Seqloom folder: its routes and handlers, told what differs for such a folder.

`transformers serve` looks a class up by its name in `transformers` and so refuses every class from outside; it lists
and loads whatever the Hub's cache holds. Its parts take what they are given, so they are given our model here:
the handlers do the work, and their hooks are overridden where a single folder answers differently.
Source: https://github.com/huggingface/transformers/tree/v5.24.0/src/transformers/cli/serving; what we lean on there
stands under "Seams" in docs/ARCHITECTURE.md.
Importing this file needs the extra `serving`.

    POST /v1/chat/completions   messages -> FolderHandler.prepare -> chat template -> ids (1, S)
    POST /v1/completions        prompt                            -> tokenizer     -> ids (1, S)
    POST /v1/responses          input                             -> chat template -> ids (1, S)
         -> ServedModel.generate on the server's one inference thread -> ids (1, S + T) -> text, whole or streamed

`prepare` runs on a thread beside the event loop, which has to stay free for everybody else.

    S source length    T answer length
"""

import asyncio
import copy
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState, Modality
from transformers.generation import GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.chat_template import ChatTemplate, TemplateFault
from seqloom.hub.serving.answer_pieces import AnswerPieces
from seqloom.hub.serving.chat_request import (
    CHAT,
    COMPLETION,
    RESPONSE,
    SOURCE_FIELD,
    Limits,
    RequestError,
    check_characters,
    check_length,
    error_body,
    is_stream,
    parse_object,
    settings_of,
    source_of,
)
from seqloom.hub.serving.stop_strings import UntilStop, cut_at_stop
from seqloom.modeling.modeling_seqloom import SeqloomForCausalLM

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 << 20
"""Largest request; a text of 100,000 Chinese characters has 600,000 bytes when JSON escapes them."""

BODY_SECONDS = 60.0
"""What a request gets to arrive."""

ANSWER_SECONDS = 300.0
"""What an answer gets once it is begun, for all others wait; 256 tokens with four beams take seconds."""

REQUEST_ID = "x-request-id"
"""Header by which a client may name its request; the answer bears it."""

MAX_DETAIL = 500
"""Characters of somebody else's message; it may quote the whole request."""


class ServerStopping(RuntimeError):  # noqa: N818
    """The server was told to end, and with it the answer that was being written."""


class ServedModel(SeqloomForCausalLM, GenerationMixin):
    """The causal-LM door with what a server needs: beams that stream, seeds that hold, and an end on request."""

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.stopping = threading.Event()
        """Set, it makes the running and all later calls of `generate` fail at their next token."""
        self.answer_seconds = ANSWER_SECONDS
        """After them `generate` fails."""

    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue one prompt; see `SeqloomForCausalLM.generate`.

        Beams know their answer only at the end: a streamer gets its tokens then, one by one. A generation config with
        the attribute `seed` seeds here, where no other request can come between seed and sampling.

        Raises:
            ServerStopping: if `stopping` is set meanwhile.
            RequestError: if it takes more than `answer_seconds`.
        """
        generation_config = self.generation_config if generation_config is None else generation_config
        seed = vars(generation_config).pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        tokenizer, criteria = kwargs.pop("tokenizer", None), StoppingCriteriaList([_Bounds(self)])
        is_alone = (generation_config.num_beams or 1) == 1
        if generation_config.stop_strings:  # only to stop early: the text is cut later anyway
            # A beam that meets a stop string would end there and compete with whole answers.
            criteria += [_Stops(tokenizer, generation_config.stop_strings)] if is_alone else []
            generation_config = copy.copy(generation_config)
            generation_config.stop_strings = None
        kwargs["stopping_criteria"] = criteria
        if is_alone:
            return super().generate(inputs, generation_config, *args, streamer=streamer, **kwargs)
        sequences = super().generate(inputs, generation_config, *args, **kwargs)
        if streamer is not None:
            _replay(streamer, kwargs["input_ids"] if inputs is None else inputs, sequences)
        return sequences


def _replay(streamer: Any, prompt: Tensor, sequences: Tensor) -> None:
    streamer.put(prompt.cpu())
    for token in sequences[0, prompt.shape[1] :].cpu():
        streamer.put(token[None])
    streamer.end()


class _Bounds(StoppingCriteria):
    """Ends `generate` by an error, for an answer cut by the clock would look like a whole one."""

    def __init__(self, model: ServedModel) -> None:
        self.stopping, self.seconds, self.begin = model.stopping, model.answer_seconds, time.monotonic()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.stopping.is_set():
            raise ServerStopping("The server is shutting down; ask again when it is back.")
        if time.monotonic() - self.begin > self.seconds:
            raise RequestError(
                f"The answer takes more than the {self.seconds:g} seconds that this server gives one; "
                "ask for fewer tokens (max_tokens) or beams, or send a shorter text.",
                code="timeout",
            )
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class _Stops(StoppingCriteria):
    """Ends one answer once a stop string stands in it.

    transformers' own compares each stop string with each token of the vocabulary first, which grows with their product.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self.tokenizer, self.stops = tokenizer, stops
        self.reach = 8 + 4 * max(map(len, stops))
        """Tokens to look back: a character has four bytes at most, and each may be a token."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        text = self.tokenizer.decode(input_ids[0, -self.reach :], skip_special_tokens=True).strip("\ufffd")
        is_there = any(stop in text for stop in self.stops)
        return torch.full((input_ids.shape[0],), is_there, dtype=torch.bool, device=input_ids.device)


class OneThread(GenerationState):
    """One inference thread for all doors: requests wait for each other, and answers are as they would be alone."""

    def __init__(self) -> None:
        super().__init__(continuous_batching=False)
        self.manager = FolderGenerateManager()

    def get_manager(self, model_id: str, use_cb: bool = False) -> GenerateManager:
        """Return the one manager."""
        return self.manager

    def wait(self, seconds: float) -> None:
        """Wait until the thread has nothing to do, but no longer than that; torch must not run when Python ends."""
        with suppress(TimeoutError):
            self.manager.submit(lambda: None).result(timeout=seconds)


class FolderGenerateManager(GenerateManager):
    """Calls `generate` on the inference thread, and leaves stop strings out of what it wrote."""

    def generate_streaming(
        self,
        model: Any,
        processor: Any,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[Any, Any]:
        """Start an answer; return the queue of its pieces and its streamer."""
        queue, streamer = super().generate_streaming(
            _ForEvents(model), processor, inputs, gen_config, request_id, response_parser
        )
        return UntilStop(queue, gen_config.stop_strings) if gen_config.stop_strings else queue, streamer

    async def generate_non_streaming(
        self, model: Any, processor: Any, inputs: Any, gen_config: GenerationConfig, request_id: str
    ) -> tuple[str, int, Tensor]:
        """Return the answer, the prompt's tokens and the new ids."""
        text, length, ids = await super().generate_non_streaming(model, processor, inputs, gen_config, request_id)
        return cut_at_stop(text, gen_config.stop_strings or []), length, ids


class _ForEvents:
    """A model for answers in pieces: all its text arrives, and its errors can be written into an event.

    The handlers put an error's text between two quotes, by hand.
    """

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def generate(self, *, streamer: Any, **kwargs: Any) -> Any:
        try:
            return self.model.generate(streamer=_WholeText(streamer, kwargs["tokenizer"]), **kwargs)
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, ServerStopping | RequestError):
                logger.exception("An answer could not be streamed to its end.")
            raise RuntimeError(json.dumps(str(error))[1:-1]) from error


class _WholeText(BaseStreamer):
    """transformers' streamer with our decoding, and with what it has left at the end."""

    def __init__(self, streamer: Any, tokenizer: Any) -> None:
        self.streamer, self.pieces = streamer, AnswerPieces(tokenizer)
        streamer._decode_stream = self.pieces

    def put(self, value: Tensor) -> None:
        self.streamer.put(value)

    def end(self) -> None:
        if rest := self.pieces.rest():
            self.streamer._enqueue(rest)
        self.streamer.end()


class FolderManager(ModelManager):
    """Serves one model, loaded already, where transformers' manager loads what a request names."""

    def __init__(
        self, model: ServedModel, tokenizer: Any, *, names: tuple[str, ...], created: int, limits: Limits
    ) -> None:
        """Take what is served.

        Args:
            model: in eval mode, on its device.
            tokenizer: of the same folder.
            names: what a request may call the model; the first is what the server calls it.
            created: when the folder was made, in seconds since 1970.
            limits: what it can take.

        Raises:
            TemplateFault: if the tokenizer's chat template cannot be rendered.
        """
        super().__init__()
        self.model, self.tokenizer, self.names, self.created, self.limits = model, tokenizer, names, created, limits
        self.longest_token = max(map(len, tokenizer.get_vocab()))
        self.tokenizing = threading.Lock()  # a tokenizer that is set up and used at once says "Already borrowed"
        self.chat_template: ChatTemplate | None = None
        """None: the last message is the source."""
        if tokenizer.chat_template is not None:
            self.chat_template = ChatTemplate(tokenizer.get_chat_template(), tokenizer.special_tokens_map)
            self.chat_template.render("text", MAX_BODY_BYTES)

    def close(self) -> None:
        """End what serving began."""
        if self.chat_template is not None:
            self.chat_template.close()

    @staticmethod
    def get_model_modality(model: Any, processor: Any = None) -> Modality:
        """Return what the handlers ask of each request: the model reads text alone."""
        return Modality.LLM

    def check_name(self, name: Any) -> None:
        """Refuse a request for another model; none named is this one.

        Raises:
            RequestError: 404, as OpenAI's servers answer.
        """
        if name is not None and name not in self.names:
            shown = name if isinstance(name, str) else json.dumps(name)  # no deeper than json can write
            raise RequestError(
                f"The model {shown[:200]!r} is not served here; use {self.names[0]!r}.",
                param="model",
                code="model_not_found",
                status=404,
            )

    def inputs_of(self, door: str, source: str) -> Any:
        """Return what `generate` takes: the ids (1, S) of a source, or of what the chat template makes of it.

        Raises:
            RequestError: if it is too long, or the template fails with it.
        """
        param = SOURCE_FIELD[door]
        check_characters(source, self.longest_token, self.limits, param)
        text = source
        if self.chat_template is not None and door != COMPLETION:
            text = self._in_chat(self.chat_template, source, param)
            check_characters(text, self.longest_token, self.limits, param)
        with self.tokenizing:
            inputs = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
            check_length(inputs.input_ids.shape[1] + 1, self.limits, param)
            return self.tokenizer(text, return_tensors="pt") if door == COMPLETION else inputs

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


class PreparedText:
    """A tokenizer whose work on one text is done, for handlers that do it on the event loop."""

    response_template = None
    """Answers are plain text."""

    def __init__(self, tokenizer: Any, inputs: Any) -> None:
        """Take the tokenizer for all else, and what it made of the text."""
        self._wrapped, self._inputs = tokenizer, inputs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the ids that are there."""
        return self._inputs

    apply_chat_template = __call__

    def __getattr__(self, name: str) -> Any:
        """Be the tokenizer."""
        return getattr(self._wrapped, name)


class FolderHandler(BaseHandler):
    """The hooks that transformers' handlers call, as a single Seqloom folder answers them."""

    door: str

    def prepare(self, data: bytes) -> dict[str, Any]:
        """Return what transformers' handler may see of a request: its text in tokens, and what is asked of it.

        Raises:
            RequestError: for what cannot be answered.
            HTTPException: for a field that OpenAI's API does not know.
        """
        body, manager, field = parse_object(data), self.model_manager, SOURCE_FIELD[self.door]
        super()._validate_request(body)
        manager.check_name(body.get("model"))
        source = source_of(self.door, body)
        settings, stream = settings_of(body, manager.limits), is_stream(body)
        return {
            field: [{"role": "user", "content": source}] if self.door == CHAT else source,
            "inputs": manager.inputs_of(self.door, source),
            "settings": settings,
            "stream": stream,  # without it transformers streams /v1/responses
        }

    def _validate_request(self, body: dict[str, Any]) -> None:
        """Do nothing: `prepare` did."""

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, ServedModel, Any]:
        """Return the name for the answer, the model, and a tokenizer for this one text."""
        manager = self.model_manager
        return manager.names[0], manager.model, PreparedText(manager.tokenizer, body["inputs"])

    def _build_generation_config(
        self, body: dict[str, Any], model_generation_config: GenerationConfig, use_cb: bool = False
    ) -> GenerationConfig:
        """Change in the folder's own settings what the request asks for, and nothing else."""
        generation_config = copy.deepcopy(model_generation_config)
        generation_config.update(**body["settings"])
        generation_config.seed = body["settings"].get("seed")
        return generation_config


class ChatHandler(FolderHandler, ChatCompletionHandler):
    """/v1/chat/completions."""

    door = CHAT


class PromptHandler(FolderHandler, CompletionHandler):
    """/v1/completions."""

    door = COMPLETION


class InputHandler(FolderHandler, ResponseHandler):
    """/v1/responses."""

    door = RESPONSE


# The application -----------------------------------------------------------------------------------------------------


def build_app(manager: FolderManager, state: GenerationState) -> Any:
    """Return the application for one folder: transformers' handlers, with errors as OpenAI's servers write them."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    doors = {
        "/v1/chat/completions": ChatHandler(manager, state),
        "/v1/completions": PromptHandler(manager, state),
        "/v1/responses": InputHandler(manager, state),
    }
    posts = {path: _door(handler) for path, handler in doors.items()} | {"/load_model": _loading(manager)}
    gets = {
        "/v1/models": {"object": "list", "data": [_card(manager)]},
        "/health": {"status": "ok"},
    }
    return Starlette(
        routes=[
            *(Route(path, answer, methods=["POST"]) for path, answer in posts.items()),
            *(Route(path, _always(content), methods=["GET"]) for path, content in gets.items()),
        ],
        exception_handlers=_error_handlers(),
    )


def _card(manager: FolderManager) -> dict[str, Any]:
    return {"id": manager.names[0], "object": "model", "created": manager.created, "owned_by": "seqloom"}


def _always(content: Any) -> Callable[[Any], Any]:
    from starlette.responses import JSONResponse

    async def answer(request: Any) -> Any:
        return JSONResponse(content)

    return answer


def _door(handler: FolderHandler) -> Callable[[Any], Any]:
    async def answer(request: Any) -> Any:
        name = request.headers.get(REQUEST_ID, "")
        if not (name.isascii() and name.isprintable() and 0 < len(name) <= MAX_DETAIL):  # what any client can read
            name = str(uuid.uuid4())
        prepared = await asyncio.to_thread(handler.prepare, await _read(request))
        response = await handler.handle_request(prepared, name)
        response.headers[REQUEST_ID] = name
        return response

    return answer


def _loading(manager: FolderManager) -> Callable[[Any], Any]:
    """Tell `transformers chat`, which asks for its model first, that it is there."""
    from starlette.responses import Response

    async def answer(request: Any) -> Any:
        body = await asyncio.to_thread(parse_object, await _read(request))
        manager.check_name(body.get("model"))
        event = {"status": "ready", "model": manager.names[0], "cached": True}
        return Response(f"data: {json.dumps(event)}\n\n", media_type="text/event-stream")

    return answer


async def _read(request: Any) -> bytes:
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


def _error_handlers() -> dict[type[Exception], Callable[[Any, Any], Any]]:
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    def unknown(error: Exception) -> Any:  # the server prints the traceback
        return _answer(500, f"{type(error).__name__} while answering; the server's own output says more.")

    answers: dict[type[Exception], Callable[[Any], Any]] = {
        RequestError: lambda error: _answer(error.status, str(error), param=error.param, code=error.code),
        HTTPException: lambda error: _answer(error.status_code, _sentence(error.detail)),
        ClientDisconnect: lambda error: _answer(400, "The request ended before its body did."),
        ServerStopping: lambda error: _answer(503, str(error)),
        Exception: unknown,
    }

    def handler(answer: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        async def handle(request: Any, error: Exception) -> Any:
            return answer(error)

        return handle

    return {kind: handler(answer) for kind, answer in answers.items()}


def _answer(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(error_body(message, param=param, code=code, status=status), status_code=status)


def _sentence(detail: Any) -> str:
    return f"{str(detail).rstrip('.')[:MAX_DETAIL]}."


__all__ = ["FolderManager", "ServedModel", "ServerStopping", "build_app"]
