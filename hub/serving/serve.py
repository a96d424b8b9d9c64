"""`seqloom serve FOLDER`: a trained folder behind the OpenAI client, on transformers' own server.

What can go wrong before the server stands is said here, in this order: the extra, the folder, the limit, the address,
the weights. What a request may ask stands in hub/serving/chat_request.py, what is made of transformers' server in
hub/serving/chat_server.py.
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
from ipaddress import ip_address
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, GenerationConfig
from transformers.utils.import_utils import is_serve_available

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.files import read_object
from seqloom.hub.loading import FALLBACK_MAX_NEW_TOKENS, explained_loading, no_loading_bar
from seqloom.hub.serving.chat_request import Limits
from seqloom.hub.verify import check_folder
from seqloom.modeling.limits import DEFAULT_MAX_LENGTH
from seqloom_cli.command import visible

if TYPE_CHECKING:
    from seqloom.hub.serving.chat_server import FolderManager

HOST, PORT = "127.0.0.1", 8000
"""This machine alone; the port of `transformers serve`."""

SECONDS_TO_FINISH = 5.0
"""What an answer that is being written gets after Ctrl-C."""


def serve_folder(
    folder: str | PathLike[str], *, host: str = HOST, port: int = PORT, max_tokens: int | None = None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    Args:
        folder: a trained model.
        host: address to listen on.
        port: 0 takes a free one.
        max_tokens: longest source and longest answer in tokens; None: what `limits_of` says.

    Raises:
        ImportError: if the extra `serving` is missing.
        ValueError: for a folder, limit or address that cannot be used, with the remedy.
    """
    require_serving()
    config = read_config(folder)
    limits = limits_of(config, folder, max_tokens)
    with open_socket(host, port) as listener:
        manager = load_manager(folder, limits)
        _announce(manager.names[0], listener)
        _run(manager, listener)


def require_serving() -> None:
    """Refuse to go on without what the extra brings.

    Raises:
        ImportError: naming it.
    """
    if not is_serve_available():
        raise ImportError(
            'seqloom serve needs fastapi, uvicorn, pydantic and openai; pip install "seqloom[serving]" brings them.'
        )


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
    if max_tokens is None:
        says_length = (Path(folder) / "generation_config.json").is_file()
        with explained_loading(folder, "generation_config.json"):
            own = answer_length(GenerationConfig.from_pretrained(folder)) if says_length else FALLBACK_MAX_NEW_TOKENS
        max_tokens = known if is_learned else max(known, own)
    remedy = "shorten it" if is_learned else "shorten it, or start the server with a larger --max_tokens"
    return Limits(max_tokens, config.vocab_size, remedy)


def answer_length(generation_config: GenerationConfig) -> int:
    """Return the longest answer of a folder in new tokens, whichever way it says so."""
    if generation_config.max_new_tokens is not None:
        return int(generation_config.max_new_tokens)
    if generation_config.max_length in (None, DEFAULT_MAX_LENGTH):
        return FALLBACK_MAX_NEW_TOKENS
    return int(generation_config.max_length) - 1  # without the decoder's start token


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


def names_of(folder: str | PathLike[str]) -> tuple[str, ...]:
    """Return what a request may call the folder: its name first, then the paths that lead to it."""
    typed, absolute = os.fspath(folder), os.path.abspath(folder)
    names = [os.path.basename(absolute) or absolute, typed, os.path.normpath(typed), typed.rstrip("/"), absolute]
    return tuple(dict.fromkeys(names))


def load_manager(folder: str | PathLike[str], limits: Limits) -> "FolderManager":
    """Load model and tokenizer of a folder that `read_config` has accepted, on the GPU if there is one.

    Raises:
        ValueError: if the weights are missing or broken.
    """
    from seqloom.hub.chat_template import TemplateFault
    from seqloom.hub.serving.chat_server import FolderManager, ServedModel

    with no_loading_bar(), explained_loading(folder, "weights"):
        model = ServedModel.from_pretrained(folder, use_safetensors=True)
    model.generation_config.max_new_tokens = min(answer_length(model.generation_config), limits.max_tokens)
    model.generation_config.max_length = None
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    created = int((Path(folder) / "config.json").stat().st_mtime)
    with explained_loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    try:
        return FolderManager(model, tokenizer, names=names_of(folder), created=created, limits=limits)
    except TemplateFault as fault:
        raise ValueError(
            f"The chat template of {folder} cannot be used: {fault}; mend chat_template.jinja, or delete it: then the "
            "last user message is the source as it is."
        ) from fault


def _announce(name: str, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    print(f"Serving {visible(name, one_line=True)} at http://{shown}:{port}/v1; Ctrl-C ends it.")
    if not ip_address(host).is_loopback:
        print(f"Whoever reaches {shown} can use the model: the server asks for no password.", file=sys.stderr)


def _run(manager: "FolderManager", listener: socket.socket) -> None:
    """Serve until a signal comes; answers in work get `SECONDS_TO_FINISH`, then they are refused with 503."""
    import uvicorn

    from seqloom.hub.serving.chat_server import OneThread, build_app

    _set_up_log()
    state = OneThread()
    config = uvicorn.Config(
        build_app(manager, state),
        http="h11",  # comes with uvicorn, and refuses bytes in a path that are no ASCII
        ws="none",
        log_config=None,
        timeout_graceful_shutdown=int(2 * SECONDS_TO_FINISH),
    )
    server = uvicorn.Server(config)
    with _clean_end(server, manager.model.stopping):
        server.run(sockets=[listener])
    state.wait(SECONDS_TO_FINISH)
    manager.close()


def _set_up_log() -> None:
    """Print what the server says of itself and of each request, as a line that no request can forge."""
    logging.getLogger("transformers.cli.serving").setLevel(logging.ERROR)  # it repeats uvicorn's line on each request
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


@contextmanager
def _clean_end(server: Any, stopping: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the server, and with it the command, as done: uvicorn would raise them once more."""
    end_server = server.handle_exit

    def end(number: int, frame: Any) -> None:
        timer = threading.Timer(SECONDS_TO_FINISH, stopping.set)
        timer.daemon = True
        timer.start()
        end_server(number, frame)

    def after(number: int, frame: Any) -> None:
        if not server.should_exit:
            raise KeyboardInterrupt

    server.handle_exit = end
    before = {number: signal.signal(number, after) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        stopping.set()
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = [
    "answer_length",
    "limits_of",
    "load_manager",
    "names_of",
    "open_socket",
    "read_config",
    "require_serving",
    "serve_folder",
]
