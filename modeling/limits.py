"""What can be asked of a model at most: a folder's files may name any number, and each costs memory or time.

Checked in one place, `generate`, through which every door of a folder goes; the network's own numbers are checked by
`SeqloomConfig`.
"""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.utils import logging

from seqloom.configuration.configuration_seqloom import MOST_BEAMS, MOST_TOKENS

logger = logging.get_logger(__name__)

DEFAULT_MAX_LENGTH = 20
"""transformers' own default of `max_length`; its Seq2SeqTrainer writes it into the model, unasked."""


def check_generation(settings: GenerationConfig) -> None:
    """Refuse settings that no model can follow.

    Args:
        settings: complete, as generate will follow them.

    Raises:
        ValueError: naming the value, the rule and the remedy.
    """
    for name, most in (
        ("num_beams", MOST_BEAMS),
        ("num_return_sequences", MOST_BEAMS),
        ("max_new_tokens", MOST_TOKENS),
        ("max_length", MOST_TOKENS),
    ):
        value = getattr(settings, name, None)
        if value is not None and value > most:
            raise ValueError(
                f"{name}={value} is more than {most:,}, the most that is tried; lower it in the call, or in the "
                f"folder's generation_config.json."
            )


def check_ids(source: Any, vocab_size: int) -> None:
    """Refuse what is no batch of ids: text, a dictionary, or ids that another tokenizer made.

    Args:
        source: what `generate` was given; None, and embeddings, pass.
        vocab_size: of the model.

    Raises:
        TypeError, ValueError: naming the value, the rule and the remedy.
    """
    if source is None:
        return
    if not isinstance(source, Tensor) or (source.ndim != 2 and not source.is_floating_point()):
        kind = f"tensor of shape {tuple(source.shape)}" if isinstance(source, Tensor) else type(source).__name__
        raise TypeError(
            f"generate got a {kind} and reads ids, a tensor of shape (B, S); write "
            f'generate(**tokenizer(texts, padding=True, return_tensors="pt")).'
        )
    # a look at a GPU's ids would wait for it, and there the library's own assertion comes
    if source.is_floating_point() or source.device.type != "cpu" or not source.numel():
        return
    low, high = (int(bound) for bound in source.aminmax())
    if low < 0 or high >= vocab_size:
        odd = low if low < 0 else high
        raise ValueError(
            f"input_ids hold {odd}, and the ids of this model run from 0 to {vocab_size - 1}; use the tokenizer of the "
            f"same folder."
        )


def shorten(settings: GenerationConfig, config: Any) -> GenerationConfig:
    """Return settings whose outputs end where learned positions do, and say so; else the last words would be lost.

    Args:
        settings: with `max_length` in tokens that the decoder reads and writes.
        config: of the model.
    """
    most = config.max_position_embeddings + 1  # the last token is written, and not read
    if config.position_embedding_type == "learned" and settings.max_length > most:
        logger.warning_once(
            f"Outputs end after {most - 1} tokens, as many as max_position_embeddings={most - 1} learned positions "
            f"know; asked were {settings.max_length - 1}."
        )
        settings.max_length = most
    return settings


__all__ = ["DEFAULT_MAX_LENGTH", "check_generation", "check_ids", "shorten"]
