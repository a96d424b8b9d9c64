"""What a folder makes of a test set: what it writes, and what forced passes over the references say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from os import PathLike
from time import perf_counter

import numpy as np
import torch
from tokenizers.normalizers import Normalizer

from seqloom.hub.batches import plan_batches
from seqloom.hub.decoding.answers import Answer
from seqloom.hub.decoding.answers import answer as answer_rows
from seqloom.hub.decoding.engines import Search, TorchEngine
from seqloom.hub.decoding.rows import Row
from seqloom.hub.progress_bar import progress_bar
from seqloom.training.collator import IGNORED_LABEL, SeqloomCollator
from seqloom.training.metrics import SentenceSums
from seqloom.training.scoring.evaluation_text import EvaluationText
from seqloom.training.trainer import forced_sums

TOKENS_PER_PASS = 2048
"""Padded target tokens of a forced pass; each has a row of logits as wide as the vocabulary."""

LINES_AT_ONCE = 256
"""Lines between two movements of the bar; their batches are made by the engine."""

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
    beyond: np.ndarray | None = None
    """(sentences,) tokens of the longest trained source where this one is longer, else 0; None: another's outputs."""
    num_too_long: int = 0
    """Sources that the model cannot read; their outputs are empty."""
    seconds: float = 0.0
    """Of decoding."""
    forced: dict[str, SentenceSums] | None = None
    """Scores of forced passes over the first reference, by name; none where no example could be read."""
    normalizer: Normalizer | None = None
    """Of its target's tokenizer; None: another's outputs, or it has none."""
    vocabulary: str = ""
    """Digest of the target's: scores of a token compare within one alone."""

    @property
    def num_unread(self) -> int:
        """Examples that are in no score of `forced`: a side has more tokens than there are learned positions."""
        if self.forced is None:
            return 0
        return sum(tokens == 0 for _, tokens in self.forced["perplexity"].values) if self.forced else len(self.outputs)


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
    engine, started = TorchEngine(folder, Search(num_beams=num_beams, max_new_tokens=max_new_tokens)), perf_counter()
    found = _write(engine, text.sources)
    return Answers(
        name=str(folder),
        outputs=[each.text for each in found],
        is_cut=np.array([each.is_cut for each in found]),
        beyond=np.array([each.beyond for each in found]),
        num_too_long=sum(each.fault is not None for each in found),
        seconds=perf_counter() - started,
        forced=forced_scores(engine, text, is_continuation=is_continuation),
        normalizer=engine.target_tokenizer.backend_tokenizer.normalizer,
        vocabulary=sha256(engine.target_tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
    )


def _write(engine: TorchEngine, sources: Sequence[str]) -> list[Answer]:
    """Return the best output of each source; like lengths are written together, the longest first."""
    order = sorted(range(len(sources)), key=lambda row: -len(sources[row]))
    found: dict[int, Answer] = {}
    with progress_bar("Writing", len(sources), "line") as bar:
        for start in range(0, len(order), LINES_AT_ONCE):
            rows = order[start : start + LINES_AT_ONCE]
            groups = answer_rows(engine, [Row(row + 1, sources[row]) for row in rows])
            found |= {row: group[0] for row, group in zip(rows, groups, strict=True)}
            bar.update(len(rows))
    return [found[row] for row in range(len(sources))]


def forced_scores(engine: TorchEngine, text: EvaluationText, *, is_continuation: bool) -> dict[str, SentenceSums]:
    """Return what forced passes over the references say, as sums a sentence.

    Bits per character are those of the whole reference and its end, over its characters and one for the end, as of a
    character n-gram model that has a symbol for the end. Where a token is no character, the text could be cut in other
    ways too, and the bits are an upper bound.

    Args:
        engine: a trained model with its tokenizers.
        text: the test set.
        is_continuation: count bits, and characters where tokens are such.

    Returns:
        Sums by name, whose score is NaN for an example that could not be read; none where that is all of them.
    """
    targets = text.first_references
    sums = _forced_pass(engine, text.sources, targets)  # nll, tokens, first, among the first five
    nll, tokens, first, top = sums.T
    if not tokens.any():
        return {}
    is_characters = engine.target_tokenizer.init_kwargs.get("seqloom_tokenizer", {}).get("kind") == "char"
    scores = {"perplexity": SentenceSums(_columns(nll, tokens), lambda s: math.exp(min(_ratio(s), 700.0)))}
    unit = "character" if is_continuation and is_characters else "token"
    names = {"character": ("next_character", "next_character_top5"), "token": ("token_accuracy", "token_top5")}[unit]
    for name, hits in zip(names, (first, top), strict=True):
        scores[name] = SentenceSums(_columns(hits, tokens), lambda s: 100 * _ratio(s))
    if is_continuation:
        characters = np.array([len(target) + 1 for target in targets]) * (tokens > 0)
        exact = "exact" if is_characters else "upper bound"
        signature = f"counts:characters and the end|tokens:{exact}"
        bits = _columns(nll / math.log(2), characters)
        scores["bits_per_character"] = SentenceSums(bits, _ratio, signature)
    return scores


def _ratio(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _columns(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(np.float64)


@torch.inference_mode()
def _forced_pass(engine: TorchEngine, sources: Sequence[str], targets: Sequence[str]) -> np.ndarray:
    """Return (sentences, 4) sums; zeros where a side has more tokens than there are learned positions."""
    model = engine.model
    examples = [
        {"input_ids": source, "labels": target}
        for source, target in zip(
            engine.tokenizer(list(sources)).input_ids, engine.target_tokenizer(list(targets)).input_ids, strict=True
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
