"""transformers' own server around one Seqloom folder: its routes and handlers, told what differs for such a folder.

`transformers serve` looks a class up by its name in `transformers` and so refuses every class from outside; it lists
and loads whatever the Hub's cache holds. Its parts take what they are given, so they are given our model here:
`build_server` and the handlers do the work, and their hooks are overridden where a single folder answers differently.
Source: https://github.com/huggingface/transformers/tree/v5.24.0/src/transformers/cli/serving; what we lean on there
stands under "Seams" in docs/ARCHITECTURE.md.
Importing this file needs the extra `serving`.

    POST /v1/chat/completions   messages -> FolderHandler._validate_request -> chat template -> ids (1, S)
    POST /v1/completions        prompt                                      -> tokenizer     -> ids (1, S)
    POST /v1/responses          input                                       -> chat template -> ids (1, S)
         -> ServedModel.generate on the server's one inference thread -> ids (1, S + T) -> text, whole or streamed

    S source length    T answer length
"""

import copy
import json
import logging
import threading
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
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, GenerateManager, GenerationState
from transformers.generation import GenerationMixin, StoppingCriteria, StoppingCriteriaList, StopStringCriteria
from transformers.generation.streamers import BaseStreamer

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.serving.chat_request import (
    CHAT,
    COMPLETION,
    RESPONSE,
    SOURCE_FIELD,
    Limits,
    RequestError,
    check_length,
    error_body,
    is_stream,
    settings_of,
    source_of,
)
from seqloom.hub.serving.stop_strings import UntilStop, cut_at_stop
from seqloom.modeling.modeling_seqloom import SeqloomForCausalLM

logger = logging.getLogger(__name__)

ROUTES = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses", "/health"})
"""What is kept of transformers' routes; the others list the Hub's cache, load and unload, or want sound."""

MAX_BODY_BYTES = 4 << 20
"""Largest request; a text of 100,000 Chinese characters has 600,000 bytes when JSON escapes them."""

PLAIN_CHAT_TEMPLATE = "{{- messages[-1]['content'] -}}"
"""For a tokenizer that has none; the last message is the source by then."""


class ServerStopping(RuntimeError):  # noqa: N818
    """The server was told to end, and with it the answer that was being written."""


class ServedModel(SeqloomForCausalLM, GenerationMixin):
    """The causal-LM door with what a server needs: beams that stream, seeds that hold, and an end on request."""

    def __init__(self, config: SeqloomConfig) -> None:
        super().__init__(config)
        self.stopping = threading.Event()
        """Set, it makes the running and all later calls of `generate` fail at their next token."""

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
        """
        generation_config = self.generation_config if generation_config is None else generation_config
        seed = vars(generation_config).pop("seed", None)
        if seed is not None:
            torch.manual_seed(seed)
        kwargs["stopping_criteria"] = StoppingCriteriaList([_EndOfServer(self.stopping)])
        is_greedy = (generation_config.num_beams or 1) == 1
        if generation_config.stop_strings:  # only to stop early: the text is cut later anyway
            generation_config = copy.copy(generation_config)
            # A beam that meets a stop string would end there and compete with whole answers.
            stops = _in_vocabulary(generation_config.stop_strings, kwargs.get("tokenizer")) if is_greedy else []
            generation_config.stop_strings = stops or None
        if is_greedy:
            return super().generate(inputs, generation_config, *args, streamer=streamer, **kwargs)
        sequences = super().generate(inputs, generation_config, *args, **kwargs)
        if streamer is not None:
            _replay(streamer, kwargs["input_ids"] if inputs is None else inputs, sequences)
        return sequences


def _in_vocabulary(stops: Sequence[str], tokenizer: Any) -> list[str]:
    """Return the stop strings that tokens can spell; transformers refuses the others, which no answer can hold."""

    def is_known(stop: str) -> bool:
        try:
            StopStringCriteria(tokenizer, [stop])
        except ValueError:
            return False
        return True

    return [stop for stop in stops if is_known(stop)]


def _replay(streamer: Any, prompt: Tensor, sequences: Tensor) -> None:
    streamer.put(prompt.cpu())
    for token in sequences[0, prompt.shape[1] :].cpu():
        streamer.put(token[None])
    streamer.end()


class _EndOfServer(StoppingCriteria):
    def __init__(self, stopping: threading.Event) -> None:
        self.stopping = stopping

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if self.stopping.is_set():
            raise ServerStopping("The server is shutting down; ask again when it is back.")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


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
    """A model whose errors can be written into an event: the handlers put their text between two quotes, by hand."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def generate(self, **kwargs: Any) -> Any:
        try:
            return self.model.generate(**kwargs)
        except (RuntimeError, ValueError) as error:
            if not isinstance(error, ServerStopping):
                logger.exception("An answer could not be streamed to its end.")
            raise RuntimeError(json.dumps(str(error))[1:-1]) from error


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
        """
        super().__init__()
        if tokenizer.chat_template is None:
            tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
        self.model, self.tokenizer, self.names, self.created, self.limits = model, tokenizer, names, created, limits

    def check_name(self, name: Any) -> None:
        """Refuse a request for another model; none named is this one.

        Raises:
            RequestError: 404, as OpenAI's servers answer.
        """
        if name is not None and name not in self.names:
            shown = name if isinstance(name, str) else json.dumps(name)
            raise RequestError(
                f"The model {shown[:200]!r} is not served here; use {self.names[0]!r}.",
                param="model",
                code="model_not_found",
                status=404,
            )

    def count_tokens(self, source: str) -> int:
        """Return a source's tokens, end of sequence included."""
        return len(self.tokenizer(source, add_special_tokens=False).input_ids) + 1


class FolderHandler(BaseHandler):
    """The hooks that transformers' handlers call, as a single Seqloom folder answers them."""

    door: str

    def _validate_request(self, body: dict[str, Any]) -> None:
        """Refuse what cannot be answered, and leave in the body only the source and what is asked of it."""
        super()._validate_request(body)
        manager, field = self.model_manager, SOURCE_FIELD[self.door]
        manager.check_name(body.get("model"))
        source = source_of(self.door, body)
        check_length(manager.count_tokens(source), manager.limits, field)
        settings, stream = settings_of(body, manager.limits), is_stream(body)
        body.clear()
        body[field] = [{"role": "user", "content": source}] if self.door == CHAT else source
        body |= {"stream": stream, "settings": settings}  # without `stream` transformers streams /v1/responses

    def _resolve_model(self, body: dict[str, Any]) -> tuple[str, ServedModel, Any]:
        """Return the name for the answer, the model and the tokenizer."""
        manager = self.model_manager
        return manager.names[0], manager.model, manager.tokenizer

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
    """Return transformers' application for one folder, with errors as OpenAI's servers write them."""
    app = build_server(
        manager,
        ChatHandler(manager, state),
        completion_handler=PromptHandler(manager, state),
        response_handler=InputHandler(manager, state),
        transcription_handler=None,
        systemone_handler=None,
        generation_state=state,
    )
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in ROUTES]
    _add_routes(app, manager)
    app.add_middleware(BodyLimit)
    _add_error_handlers(app)
    return app


def _add_routes(app: Any, manager: FolderManager) -> None:
    """List the one model, and tell `transformers chat`, which asks for it first, that it is there."""
    from fastapi.responses import Response

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        model = {"id": manager.names[0], "object": "model", "created": manager.created, "owned_by": "seqloom"}
        return {"object": "list", "data": [model]}

    @app.post("/load_model")
    async def load_model(body: dict[str, Any]) -> Response:
        manager.check_name(body.get("model"))
        event = {"status": "ready", "model": manager.names[0], "cached": True}
        return Response(f"data: {json.dumps(event)}\n\n", media_type="text/event-stream")


class BodyLimit:
    """Refuses a request before its body is read, if that is too long or of unknown length."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Answer 411 or 413, or pass the request on."""
        if scope["type"] == "http" and scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
            if not length.isdecimal():
                await _answer(411, "A request needs the header Content-Length.")(scope, receive, send)
                return
            if int(length) > MAX_BODY_BYTES:
                text = f"The request has {int(length):,} bytes, and this server takes {MAX_BODY_BYTES:,}; shorten it."
                await _answer(413, text)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _add_error_handlers(app: Any) -> None:
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    def misshapen(error: RequestValidationError) -> Any:
        return _answer(400, f"The request is no JSON object: {_sentence(error.errors()[0].get('msg', ''))}")

    def unknown(error: Exception) -> Any:  # the server prints the traceback
        return _answer(500, f"{type(error).__name__} while answering; the server's own output says more.")

    answers: dict[type[Exception], Callable[[Any], Any]] = {
        RequestError: lambda error: _answer(error.status, str(error), param=error.param, code=error.code),
        HTTPException: lambda error: _answer(error.status_code, _sentence(error.detail)),
        RequestValidationError: misshapen,
        ServerStopping: lambda error: _answer(503, str(error)),
        Exception: unknown,
    }
    for kind, answer in answers.items():

        async def handle(request: Any, error: Exception, answer: Callable[[Any], Any] = answer) -> Any:
            return answer(error)

        app.add_exception_handler(kind, handle)


def _answer(status: int, message: str, *, param: str | None = None, code: str | None = None) -> Any:
    from fastapi.responses import JSONResponse

    return JSONResponse(error_body(message, param=param, code=code, status=status), status_code=status)


def _sentence(detail: Any) -> str:
    return f"{str(detail).rstrip('.')}."


__all__ = ["FolderManager", "ServedModel", "ServerStopping", "build_app"]
