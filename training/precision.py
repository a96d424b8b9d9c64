"""In which numbers a run multiplies: those that its recipe names, or what a stopwatch says.

Processors with AMX, and some with AVX-512, multiply bf16 up to four times as fast as fp32; others are slower in it
(LOG: numbers by measurement). So a run on a CPU times both before its first update, on micro-batches such as it will
compute, and keeps the faster. Each is timed once, at first sight: for products in bf16 a kernel is made for every new
shape, and sentences hardly ever make the same shape twice (LOG: numbers with AMX). On accelerators nothing is chosen.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from statistics import median

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainingArguments

from seqloom.configuration.data_size import AUTO
from seqloom.configuration.recipe import NARROW_FORMATS, Precision, Recipe
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration
from seqloom.training.batching import (
    CPU_OVERHEAD,
    NARROW_CPU_OVERHEAD,
    BatchSettings,
    UpdateSampler,
    accumulation_steps,
    padded_tokens,
)
from seqloom.training.collator import SeqloomCollator
from seqloom.training.examples import MODEL_COLUMNS, lengths_of

WIDE: Precision = "fp32"
NARROW: Precision = "bf16"

WORTH_IT = 1.15
"""How many times as fast bf16 has to be: it rounds, and a stopwatch errs."""

ROUNDS, ENOUGH = 4, 2.0
"""Most micro-batches that are timed in each format, in turns, and the seconds after which they are enough; the median
counts. One more comes before, for what is made once."""

LOOKED_AT, SAMPLED = 64, 100_000
"""Micro-batches among which a usual one is taken, and the examples of which they are made."""

MOST_TOKENS_TIMED = 2048
"""Padded tokens that are computed at once before it is known what fits into memory."""


@dataclass(frozen=True)
class Timing:
    """What usual micro-batches take in one format."""

    precision: str
    pace: float
    """Seconds a source or target token, padding counted, forward and backward."""


def can_choose(recipe: Recipe, arguments: TrainingArguments) -> bool:
    """Return whether a stopwatch decides: neither recipe nor launcher names a format, and a CPU holds the whole model.

    Args:
        recipe: of the run.
        arguments: transformers' own, of this recipe.
    """
    is_whole = not (arguments.fsdp or arguments.deepspeed or recipe.packing)
    is_open = recipe.precision == AUTO and arguments.mixed_precision == "no"
    return arguments.device.type == "cpu" and is_open and is_whole


def launched_precision(arguments: TrainingArguments) -> Precision:
    """Return the format of a run whose recipe names none and that is not timed: the launcher's; DeepSpeed has its own.

    Args:
        arguments: transformers' own, of such a recipe.
    """
    known: dict[str, Precision] = {"no": WIDE} | {name: name for name in NARROW_FORMATS}
    return known.get(arguments.mixed_precision, AUTO) if arguments.deepspeed_plugin is None else AUTO


def choose_precision(
    model: SeqloomForConditionalGeneration, pairs: Dataset, settings: BatchSettings, pad_token_id: int
) -> tuple[Precision, str]:
    """Return the faster format on this processor, and a line that says why.

    Args:
        model: as it is before the first update; it is left so.
        pairs: encoded training pairs.
        settings: how updates are made of them.
        pad_token_id: of the sources.
    """
    ratio = time_of_products(model.config.d_model, WIDE) / time_of_products(model.config.d_model, NARROW)
    if ratio < WORTH_IT:
        return WIDE, f"{WIDE}, for {NARROW} multiplies no faster on this processor ({ratio:.1f} times the speed)"
    try:
        batches = {
            precision: usual_micro_batches(pairs, settings, overhead_in(precision)) for precision in (WIDE, NARROW)
        }
    except ValueError:  # no micro-batch can be made: that is said on every process, and this is the first alone
        return WIDE, WIDE
    collate = SeqloomCollator(pad_token_id, None)
    wide, narrow = time_formats(model, {name: [collate(rows) for rows in usual] for name, usual in batches.items()})
    gain = wide.pace / narrow.pace
    paces = f"{1 / narrow.pace:,.0f} tokens/s against {1 / wide.pace:,.0f}"
    if gain < WORTH_IT:
        return WIDE, f"{WIDE}; {NARROW} was tried and is no faster here ({paces})"
    return NARROW, f"{NARROW}, {gain:.1f} times as fast as {WIDE} on this processor ({paces}); --precision {WIDE} wins"


def time_of_products(width: int, precision: str) -> float:
    """Return the seconds of one product (1024, width) x (width, 4 width)."""
    dtype = torch.bfloat16 if precision == NARROW else torch.float32
    one, other = torch.ones(1024, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    return min(_seconds(lambda: one @ other) for _ in range(ROUNDS + 1))


def usual_micro_batches(pairs: Dataset, settings: BatchSettings, overhead: int) -> list[list[dict[str, Sequence[int]]]]:
    """Return micro-batches of the middle half by size, as updates are cut where each micro-batch costs `overhead`.

    Args:
        pairs: encoded training pairs.
        settings: how updates are made of them.
        overhead: in tokens, see `batching.CPU_OVERHEAD`.

    Returns:
        At most `ROUNDS` + 1; of one shape only where many of the run are.
    """
    lengths = lengths_of(pairs.select(range(min(len(pairs), SAMPLED))))
    steps = accumulation_steps(lengths, settings, overhead=overhead)
    cut = list(islice(UpdateSampler(lengths, replace(settings, accumulation_steps=steps)), LOOKED_AT))
    by_size = sorted(cut, key=lambda rows: padded_tokens(lengths[rows]))
    middle_half = by_size[len(cut) // 4 : len(cut) - len(cut) // 4]
    return [_first_rows(pairs, rows, lengths) for rows in middle_half[:: -(-len(middle_half) // (ROUNDS + 1))]]


def _first_rows(pairs: Dataset, rows: Sequence[int], lengths: np.ndarray) -> list[dict[str, Sequence[int]]]:
    fitting = max(1, MOST_TOKENS_TIMED // int(lengths[rows].max(axis=0).sum()))
    return [dict(row) for row in pairs.select(rows[:fitting]).select_columns(list(MODEL_COLUMNS))]


def time_formats(model: SeqloomForConditionalGeneration, batches: dict[str, list[dict[str, Tensor]]]) -> list[Timing]:
    """Return what micro-batches take in each format, forward and backward; the model is left as it was.

    Args:
        model: in fp32.
        batches: format -> what the model takes, one after the other; the first is not counted, and taken again where
            there is no other.
    """
    was_training, attention = model.training, model.config._attn_implementation
    paces: dict[str, list[float]] = {precision: [] for precision in batches}
    spent = 0.0
    model.train()
    with torch.random.fork_rng(devices=()):  # a look ahead must not change what is learned
        for turn in range(max(2, *map(len, batches.values()))):
            for precision, usual in batches.items() if spent < ENOUGH else ():
                model.set_attn_implementation(attention_in(precision) or attention)
                batch = usual[min(turn, len(usual) - 1)]
                seconds = _seconds(partial(_learn, model, batch, precision))
                paces[precision].append(seconds / (batch["input_ids"].numel() + batch["labels"].numel()))
                spent += seconds if turn else 0
    model.set_attn_implementation(attention)
    model.train(was_training)
    return [Timing(precision, median(timed[1:])) for precision, timed in paces.items()]


def attention_in(precision: str) -> str | None:
    """Return the attention to take on a CPU; None: the usual one. SDPA's backward pass in bf16 is slow (LOG: bf16)."""
    return "eager" if precision == NARROW else None


def overhead_in(precision: str) -> int:
    """Return what a micro-batch costs on a CPU however small it is, in tokens."""
    return NARROW_CPU_OVERHEAD if precision == NARROW else CPU_OVERHEAD


def _learn(model: SeqloomForConditionalGeneration, batch: dict[str, Tensor], precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == NARROW):
        loss = model(**batch, skip_logits=True).loss
    loss.backward()
    model.zero_grad()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


__all__ = ["can_choose", "choose_precision", "launched_precision"]
