"""A SeqloomTrainer on 32 words and their reversals: a run of some updates takes a second."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainingArguments

import seqloom
from seqloom.training.batching import BatchSettings
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer
from seqloom.training.trainer import SeqloomTrainer
from tests.toy import TINY

OWN = ("evaluation", "encodings", "rdrop_alpha", "ema_decay", "has_muon")


def tiny_tokenizers(kind: str = "char") -> SeqloomTokenizers:
    """Return tokenizers for words of a, b and c."""
    words = ("ab", "bca", "cabba", "bbcacab", "ca", "aab", "abab cab", "cab cab")
    return train_tokenizer(words, words, kind=kind, vocab_size=275, min_frequency=1, show_progress=False)


def tiny_pairs(tokenizers: SeqloomTokenizers, count: int = 32) -> Dataset:
    """Return words and their reversals, as text and as ids."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(count)]
    rows = {"source": texts, "target": [text[::-1] for text in texts]}
    rows["input_ids"] = tokenizers.source(rows["source"]).input_ids
    rows["labels"] = tokenizers.target(rows["target"]).input_ids
    return Dataset.from_dict(rows)


def tiny_trainer(
    folder: Path, *, tokenizers: SeqloomTokenizers | None = None, model: dict[str, Any] | None = None, **keys: Any
) -> SeqloomTrainer:
    """Return a trainer with the same first weights each time.

    Args:
        folder: where it saves.
        tokenizers: None: characters.
        model: fields of the configuration beyond `tests.toy.TINY`.
        **keys: the trainer's own arguments, `tokens_per_update` and `packing`, or transformers'.
    """
    tokenizers = tokenizers or tiny_tokenizers()
    torch.manual_seed(0)
    config = seqloom.SeqloomConfig(**{**TINY, "vocab_size": tokenizers.vocab_size, **(model or {})})
    pairs = tiny_pairs(tokenizers)
    own = {name: keys.pop(name) for name in OWN if name in keys}
    batching = BatchSettings(keys.pop("tokens_per_update", 10_000), packed=keys.pop("packing", False))
    arguments = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "max_grad_norm": 0.0}
    return SeqloomTrainer(
        seqloom.SeqloomForConditionalGeneration(config),
        Seq2SeqTrainingArguments(output_dir=str(folder), **{**arguments, **keys}),
        tokenizers=tokenizers,
        batching=batching,
        train_dataset=pairs,
        eval_dataset=pairs,
        **own,
    )
