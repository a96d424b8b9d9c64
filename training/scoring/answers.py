"""What a folder makes of a test set: what it writes, and what forced passes over the references say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from time import perf_counter
from typing import Any

import numpy as np
import torch

from seqloom.hub.generate import TOO_LONG, generate_lines, load_folder, plan_batches, progress_bar
from seqloom.training.collator import IGNORED_LABEL, SeqloomCollator
from seqloom.training.metrics import SentenceSums
from seqloom.training.scoring.evaluation_text import EvaluationText
from seqloom.training.tokenizer import SeqloomTokenizers
from seqloom.training.trainer import forced_sums

TOKENS_PER_PASS = 2048
"""Padded target tokens of a forced pass; each has a row of logits as wide as the vocabulary."""

TOP = 5
"""A next token is "nearly foreseen" among so many."""


@dataclass(frozen=True)
class Answers:
    """What one system made of a test set."""

    name: str
    outputs: list[str]
    """One line each."""
    is_cut: np.ndarray | None = None
    """(sentences,) whether an output has no end, for the longest output left no room; None: another's outputs."""
    num_too_long: int = 0
    """Sources that the model cannot read; their outputs are empty."""
    seconds: float = 0.0
    """Of decoding."""
    forced: dict[str, SentenceSums] | None = None
    """Scores of forced passes over the first reference, by name."""


def answer(
    folder: str | PathLike[str],
    text: EvaluationText,
    *,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    is_continuation: bool = False,
) -> Answers:
    """Let a folder write and read a test set.

    Args:
        folder: a trained model.
        text: the test set.
        num_beams: None: what the folder's generation_config.json says.
        max_new_tokens: None: the same.
        is_continuation: count bits and characters too.
    """
    model, tokenizer = load_folder(folder)
    started = perf_counter()
    groups = generate_lines(model, tokenizer, text.sources, num_beams=num_beams, max_new_tokens=max_new_tokens)
    best = [group[0] for group in groups]
    return Answers(
        name=str(folder),
        outputs=[each.text for each in best],
        is_cut=np.array([each.is_cut for each in best]),
        num_too_long=sum(each is TOO_LONG for each in best),
        seconds=perf_counter() - started,
        forced=forced_scores(model, SeqloomTokenizers.load(folder), text, is_continuation=is_continuation),
    )


def forced_scores(
    model: Any, tokenizers: SeqloomTokenizers, text: EvaluationText, *, is_continuation: bool
) -> dict[str, SentenceSums]:
    """Return what forced passes over the references say, as sums a sentence.

    Bits per character are those of the whole reference and its end, over its characters and one for the end, as of a
    character n-gram model that has a symbol for the end. Where a token is no character, the text could be cut in other
    ways too, and the bits are an upper bound.

    Args:
        model: a trained model.
        tokenizers: its own.
        text: the test set.
        is_continuation: count bits, and characters where tokens are such.
    """
    targets = text.first_references
    sums = _forced_pass(model, tokenizers, text.sources, targets)  # nll, tokens, first, among the first five
    nll, tokens, first, top = sums.T
    is_characters = tokenizers.target.init_kwargs.get("seqloom_tokenizer", {}).get("kind") == "char"
    scores = {"perplexity": SentenceSums(_columns(nll, tokens), lambda s: math.exp(min(s[0] / max(1, s[1]), 700.0)))}
    unit = "character" if is_continuation and is_characters else "token"
    names = {"character": ("next_character", "next_character_top5"), "token": ("token_accuracy", "token_top5")}[unit]
    for name, hits in zip(names, (first, top), strict=True):
        scores[name] = SentenceSums(_columns(hits, tokens), lambda s: 100 * s[0] / max(1, s[1]))
    if is_continuation:
        characters = np.array([len(target) + 1 for target in targets]) * (tokens > 0)
        exact = "exact" if is_characters else "upper bound"
        signature = f"counts:characters and the end|tokens:{exact}"
        bits = _columns(nll / math.log(2), characters)
        scores["bits_per_character"] = SentenceSums(bits, lambda s: s[0] / max(1, s[1]), signature)
    return scores


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.float64)


@torch.inference_mode()
def _forced_pass(
    model: Any, tokenizers: SeqloomTokenizers, sources: Sequence[str], targets: Sequence[str]
) -> np.ndarray:
    """Return (sentences, 4) sums; zeros where a side has more tokens than there are learned positions."""
    examples = [
        {"input_ids": source, "labels": target}
        for source, target in zip(
            tokenizers.source(list(sources)).input_ids, tokenizers.target(list(targets)).input_ids, strict=True
        )
    ]
    config = model.config
    known = config.max_position_embeddings if config.position_embedding_type == "learned" else math.inf
    lengths = [max(map(len, example.values())) for example in examples]
    read = [row for row, length in enumerate(lengths) if length <= known]
    collate = SeqloomCollator(config.pad_token_id, config.decoder_start_token_id)
    sums = np.zeros((len(examples), 4))
    with progress_bar("Reading the references", len(read), "line") as bar:
        for batch in plan_batches([lengths[row] for row in read], TOKENS_PER_PASS):
            rows = [read[place] for place in batch]
            inputs = {name: ids.to(model.device) for name, ids in collate([examples[row] for row in rows]).items()}
            labels = inputs["labels"]
            logits = model(**inputs).logits  # (B, T, V)
            among = (logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices == labels[..., None]).any(-1)
            among &= labels != IGNORED_LABEL
            sums[rows, :3] = forced_sums(logits, labels).cpu().numpy()
            sums[rows, 3] = among.sum(-1).cpu().numpy()
            bar.update(len(rows))
    return sums


__all__ = ["Answers", "answer", "forced_scores"]
