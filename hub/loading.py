"""Open a finished folder with the installed classes, and say of a broken one what helps."""

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from seqloom.hub.pipeline_seqloom import TranslationPipeline
from seqloom.hub.quoting import shown
from seqloom.hub.verify import FolderError, check_folder
from seqloom.modeling.limits import DEFAULT_MAX_LENGTH

FALLBACK_MAX_NEW_TOKENS = int(TranslationPipeline._default_generation_config.max_new_tokens)
"""For folders that say nothing about length, as in the pipelines: transformers' own default cuts at 20 tokens."""


def answer_length(settings: GenerationConfig) -> int:
    """Return the longest answer of a folder in new tokens, whichever way it says so."""
    if settings.max_new_tokens is not None:
        return int(settings.max_new_tokens)
    if settings.max_length in (None, DEFAULT_MAX_LENGTH):
        return FALLBACK_MAX_NEW_TOKENS
    return int(settings.max_length) - 1  # without the decoder's start token


@contextmanager
def explained_loading(folder: str | PathLike[str], what: str) -> Iterator[None]:
    """Let a library's complaint about a file of a folder say which folder, and what helps.

    Args:
        folder: that is read.
        what: of it, e.g. "weights".

    Raises:
        FolderError: for whatever a library raises; what is ours, and full memory, passes.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if type(error).__module__.startswith("seqloom"):
            raise
        reason = shown(" ".join(str(error).split()) or type(error).__name__, 300).rstrip(".")
        raise FolderError(f"The {what} in {shown(folder)} cannot be read ({reason}); copy the folder again.") from error


def load_folder(folder: str | PathLike[str], device: str | None = None) -> tuple[Any, Any]:
    """Load model and tokenizer of a trained folder.

    The installed classes do it; the folder's own code is not run, nor any pickle read.

    Args:
        folder: of a model.
        device: to compute on; None: the GPU if there is one.

    Raises:
        FolderError: if the folder is none, or dangerous to open.
    """
    check_folder(folder)
    # Whoever imports this module has imported seqloom, and with it registered the classes.
    with no_loading_bar(), explained_loading(folder, "model"):
        model = AutoModelForSeq2SeqLM.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    with explained_loading(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    settings = model.generation_config
    if settings.decoder_start_token_id is None and settings.bos_token_id is None:
        raise FolderError(
            f"{shown(folder)}: generation_config.json does not say where an output begins; add "
            f'"decoder_start_token_id": {model.config.decoder_start_token_id} to it.'
        )
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval(), tokenizer


def target_tokenizer(folder: str | PathLike[str], tokenizer: Any) -> Any:
    """Return what cuts references: with separate vocabularies a tokenizer of their own, in `target/`."""
    own = Path(folder) / "target"
    has_own = (own / "tokenizer.json").is_file()
    return AutoTokenizer.from_pretrained(own, trust_remote_code=False) if has_own else tokenizer


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Keep transformers' own bars, over weights and files and drawn even into log files, off the screen."""
    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()


__all__ = [
    "FALLBACK_MAX_NEW_TOKENS",
    "answer_length",
    "explained_loading",
    "load_folder",
    "no_loading_bar",
    "target_tokenizer",
]
