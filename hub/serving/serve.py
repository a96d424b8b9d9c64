"""`seqloom serve FOLDER`: a trained folder behind the OpenAI client.

What can go wrong before the server stands is said here, in this order: the extra, the folder, the limit, the address,
the weights. While they are loaded /health says so.
"""

import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from ipaddress import ip_address
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer, GenerationConfig

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.export.ctranslate2_loader import vocabulary_of
from seqloom.hub.export.engine_folder import engine_folder
from seqloom.hub.files import read_object
from seqloom.hub.loading import answer_length, explained_loading, load_folder
from seqloom.hub.serving.chat_request import Limits
from seqloom.hub.serving.job_queue import MAX_WAITING
from seqloom.hub.verify import check_folder
from seqloom_cli.command import visible

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from seqloom.hub.serving.chat_server import Service

HOST, PORT = "127.0.0.1", 8000
"""This machine alone; the port of `transformers serve`."""

ENGINES = ("torch", "ctranslate2")

NEEDED = ("starlette", "uvicorn", "prometheus_client")
"""What the extra `serving` brings."""

SECONDS_TO_SEND = 10
"""What readers get at the end to fetch what was written for them."""


def serve_folder(
    folder: str | PathLike[str],
    *,
    host: str = HOST,
    port: int = PORT,
    max_tokens: int | None = None,
    engine: str = ENGINES[0],
    quantization: str = "float32",
    max_waiting: int = MAX_WAITING,
) -> None:
    """Answer requests until Ctrl-C or SIGTERM, and then those that were accepted.

    Args:
        folder: a trained model.
        host: address to listen on.
        port: 0 takes a free one.
        max_tokens: longest source and longest answer in tokens; None: what `limits_of` says.
        engine: one of `ENGINES`.
        quantization: number format of the weights for CTranslate2; torch takes the folder's own.
        max_waiting: requests that may wait; others are told to come again.

    Raises:
        ImportError: if an extra is missing.
        ValueError: for a folder, limit or address that cannot be used, with the remedy.
    """
    require_serving()
    from seqloom.hub.serving.chat_server import build_app

    limits, app = limits_of(read_config(folder), folder, max_tokens), build_app()
    with open_socket(host, port) as listener, listening(listener, app):
        app.state.is_for_this_machine = is_local(listener)
        service = load_service(folder, limits, engine=engine, quantization=quantization, max_waiting=max_waiting)
        _set_up_log()
        with _ended_by_signals(service) as is_asked:
            app.state.service = service
            _announce(service.names[0], listener)
            is_asked.wait()


def require_serving() -> None:
    """Refuse to go on without what the extra brings.

    Raises:
        ImportError: naming it.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise ImportError(f'seqloom serve needs {" and ".join(missing)}; pip install "seqloom[serving]" brings it all.')


def read_config(folder: str | PathLike[str]) -> SeqloomConfig:
    """Return the configuration of a Seqloom folder.

    Raises:
        ValueError: if the folder is none, or dangerous to open.
    """
    check_folder(folder)
    path = Path(folder)
    if not (path / "tokenizer.json").is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; name the folder that seqloom train wrote (its --output).")
    kind = (read_object(path / "config.json") or {}).get("model_type")
    if kind != SeqloomConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind}, not seqloom; transformers serve serves those.")
    with explained_loading(folder, "config.json"):
        return SeqloomConfig.from_pretrained(path)


def limits_of(config: SeqloomConfig, folder: str | PathLike[str], max_tokens: int | None) -> Limits:
    """Return what a folder can take; attention costs the square of a source's length, so there has to be an end.

    Args:
        config: of the folder.
        folder: holds generation_config.json.
        max_tokens: the user's wish; None: `max_position_embeddings`, or the folder's own answer length if longer.

    Raises:
        ValueError: if learned positions know less than is wished.
    """
    known, is_learned = config.max_position_embeddings, config.position_embedding_type == "learned"
    if is_learned and (max_tokens or 0) > known:
        raise ValueError(
            f"--max_tokens {max_tokens} is more than the {known} positions that {folder} has learned; use {known}."
        )
    own = own_generation_config(folder)
    if max_tokens is None:
        max_tokens = known if is_learned else max(known, answer_length(own))
    remedy = "shorten it" if is_learned else "shorten it, or start the server with a larger --max_tokens"
    return Limits(max_tokens, config.vocab_size, remedy, is_sampler=bool(own.do_sample))


def own_generation_config(folder: str | PathLike[str]) -> GenerationConfig:
    """Return the settings of a folder; the defaults, if it says nothing."""
    if not (Path(folder) / "generation_config.json").is_file():
        return GenerationConfig()
    with explained_loading(folder, "generation_config.json"):
        return GenerationConfig.from_pretrained(folder)


def open_socket(host: str, port: int) -> socket.socket:
    """Take an address before anything is loaded, so that nobody waits for a model that cannot be served; port 0: any.

    Raises:
        ValueError: if the address is taken, forbidden or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(_explain(error, host, port)) from error


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} of {host} is in use; choose another one with --port N, or any free one with --port 0."
    if error.errno == errno.EACCES:
        return f"Port {port} of {host} is reserved for the system; choose one above 1023 with --port N."
    return f"--host {host} is no address of this machine ({error.strerror}); use {HOST}, or 0.0.0.0 for all of its own."


def is_local(listener: socket.socket) -> bool:
    """Return whether this machine alone reaches an address."""
    return ip_address(listener.getsockname()[0]).is_loopback


def names_of(folder: str | PathLike[str]) -> tuple[str, ...]:
    """Return what a request may call the folder: its name first, then the paths that lead to it."""
    typed, absolute = os.fspath(folder), os.path.abspath(folder)
    names = [os.path.basename(absolute) or absolute, typed, os.path.normpath(typed), typed.rstrip("/"), absolute]
    return tuple(dict.fromkeys(names))


def load_service(
    folder: str | PathLike[str], limits: Limits, *, engine: str = "torch", quantization: str = "float32", **options: Any
) -> "Service":
    """Load what serves a folder that `read_config` has accepted, on the GPU if there is one.

    Args:
        folder: a trained model.
        limits: what it can take.
        engine: one of `ENGINES`.
        quantization: number format of the weights, if the engine is not torch.
        **options: of `Service`.

    Raises:
        ValueError: if something in the folder is missing or broken, or the engine cannot do it.
        ImportError: if the engine is not installed.
    """
    from seqloom.hub.chat_template import TemplateFault
    from seqloom.hub.serving.chat_server import Service
    from seqloom.hub.serving.serving_engines import CTranslate2Engine, TorchEngine

    writer: Any
    if engine == "torch":
        model, tokenizer = load_folder(folder)
        generation, writer = model.generation_config, TorchEngine(model)
    else:
        config = SeqloomConfig.from_pretrained(folder)
        generation = own_generation_config(folder)
        if generation.eos_token_id is None:
            generation.eos_token_id = config.eos_token_id
        with explained_loading(folder, "tokenizer"):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        writer = CTranslate2Engine(engine_folder(folder, quantization), vocabulary_of(tokenizer, config.vocab_size))
        if limits.max_tokens > (writer.longest or limits.max_tokens):
            logger.warning(
                "max_tokens=%s is lowered to %s, the positions that the export computes; --engine torch has no end.",
                *(limits.max_tokens, writer.longest),
            )
            limits = replace(limits, max_tokens=writer.longest, remedy="shorten it, or serve with --engine torch")
    generation.max_new_tokens = min(answer_length(generation), limits.max_tokens)
    generation.max_length = None
    created = int((Path(folder) / "config.json").stat().st_mtime)
    try:
        return Service(writer, tokenizer, generation, names_of(folder), created, limits, **options)
    except TemplateFault as fault:
        raise ValueError(
            f"The chat template of {folder} cannot be used: {fault}; mend chat_template.jinja, or delete it: then the "
            "last user message is the source as it is."
        ) from fault


def _announce(name: str, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {visible(name, one_line=True)} at http://{shown}:{port}/v1; Ctrl-C ends it.")
    if not is_local(listener):
        print(f"Whoever reaches {shown} can use the model: the server asks for no password.", file=sys.stderr)


@contextmanager
def listening(listener: socket.socket, app: Any) -> Iterator[None]:
    """Let an application answer on a thread of its own, where uvicorn leaves signals alone."""
    import uvicorn

    from seqloom.hub.serving.connection import Connection

    config = uvicorn.Config(
        app,
        http=Connection,  # of h11, which comes with uvicorn, and refuses bytes in a path that are no ASCII
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=SECONDS_TO_SEND,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def _ended_by_signals(service: "Service") -> Iterator[threading.Event]:
    """Give what Ctrl-C and SIGTERM set; at the end all answers are waited for, and a second signal refuses them."""
    is_asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        if is_asked.is_set():
            service.queue.abort()
        is_asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield is_asked
        service.close()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _set_up_log() -> None:
    """Print what the server says of itself and of each request, as a line that no request can forge."""
    printer = logging.StreamHandler()
    printer.setFormatter(LineFormatter("%(levelname)s: %(message)s"))
    for name in ("uvicorn", "seqloom"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [printer], False
        log.setLevel(logging.INFO)


class LineFormatter(logging.Formatter):
    """Formats a record with what a terminal would obey shown, line breaks included; a traceback keeps its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return visible(super().formatMessage(record), one_line=True)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return a traceback."""
        return visible(super().formatException(ei))


__all__ = [
    "limits_of",
    "listening",
    "load_service",
    "names_of",
    "open_socket",
    "read_config",
    "require_serving",
    "serve_folder",
]
