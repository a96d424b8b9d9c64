"""From the recipe's files to examples a model can learn from: text, vocabulary, token ids.

Everything here depends on recipe and files alone, so that a run started again finds the same examples.
"""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.training.batching import BatchSettings
from seqloom.training.demo import build_demo
from seqloom.training.examples import lengths_of
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.quality.bpe_dropout import EpochEncodings, LengthLimits
from seqloom.training.reading.corpus import load_corpus
from seqloom.training.reading.tasks import get_task
from seqloom.training.settings import seed_of
from seqloom.training.tokenizer import SeqloomTokenizers, train_tokenizer

logger = logging.getLogger(__name__)


def read_corpus(recipe: Recipe) -> tuple[DatasetDict, dict[str, Any]]:
    """Return the splits as pairs of text, and what is known of each: files, rows, what was dropped and why.

    The splits are "train", and "validation" and "test" where the recipe names them.
    """
    if recipe.is_demo:
        demo = build_demo()
        return demo, {split: {"name": "date demo", "num_rows": len(rows)} for split, rows in demo.items()}
    task = get_task(recipe.task, num_splits=recipe.num_splits)
    corpus, facts = {}, {}
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        if files := getattr(recipe, name):
            loaded = load_corpus(
                files,
                columns=recipe.columns,
                task=recipe.task,
                split=name,
                where=recipe.selection(),
                num_proc=recipe.num_proc,
            )
            corpus[split] = task.to_pairs(loaded.dataset, seed=seed_of(recipe), num_proc=recipe.num_proc)
            facts[split] = asdict(loaded.facts)
    return DatasetDict(corpus), facts


def read_or_train_tokenizers(recipe: Recipe, pairs: Dataset, folder: RunFolder) -> SeqloomTokenizers:
    """Return the vocabulary of this run: the one it was started with, or a new one from the training text."""
    home = folder.prepared / "tokenizer"
    if not home.is_dir():
        tokenizers = train_tokenizer(
            pairs["source"],
            pairs["target"],
            kind=recipe.tokenizer,
            vocab_size=recipe.vocab_size,
            joint=recipe.joint_vocabulary,
            normalization=recipe.normalization,
            min_frequency=recipe.min_frequency,
            character_coverage=recipe.character_coverage,
            split_digits=recipe.split_digits,
        )
        with folder.staged(home) as staged:
            tokenizers.save(staged)
    return SeqloomTokenizers.load(home)


def encode(pairs: Dataset, tokenizers: SeqloomTokenizers, split: str, num_proc: int | None = None) -> Dataset:
    """Add `input_ids` and `labels` to the texts."""
    return pairs.map(
        encode_batch,
        batched=True,
        num_proc=num_proc,
        fn_kwargs={"tokenizers": tokenizers},
        desc=f"Tokenizing {split}",
    )


def leave_out_long(encoded: Dataset, recipe: Recipe, facts: dict[str, Any]) -> tuple[Dataset, dict[str, Any]]:
    """Leave out training examples over the length limits, or refuse them, as the recipe says.

    Args:
        encoded: the training set.
        recipe: with the limits.
        facts: what is known of the training set.

    Returns:
        The examples within the limits, and the facts with how many are not and which is the longest of those.

    Raises:
        RecipeError: when an example is too long and `long_examples` is "refuse", or none is left.
    """
    lengths = lengths_of(encoded)
    limits = [recipe.max_source_length or np.inf, recipe.max_target_length or np.inf]
    fits = (lengths <= limits).all(axis=1) & (lengths.sum(axis=1) <= recipe.tokens_per_update)
    facts = {**facts, "num_too_long": int((~fits).sum())}
    if fits.all():
        return encoded, facts
    rule = (
        f"max_source_length={recipe.max_source_length}, max_target_length={recipe.max_target_length} or "
        f"tokens_per_update={recipe.tokens_per_update} tokens"
    )
    if not fits.any():
        raise RecipeError(
            f"no training example is left: all {len(fits):,} are longer than {rule}; the shortest source has "
            f"{lengths[:, 0].min()}. Raise the limit."
        )
    longest = int(np.where(fits, 0, lengths.sum(axis=1)).argmax())
    row = encoded[longest]
    facts["longest"] = {"row": longest + 1, "tokens": lengths[longest].tolist(), "source": row["source"][:80]}
    found = (
        f"{facts['num_too_long']:,} of {len(fits):,} training examples: longer than {rule}. The longest is row "
        f"{longest + 1:,} of those read, {lengths[longest][0]:,} + {lengths[longest][1]:,} tokens, "
        f"{row['source'][:40]!r}"
    )
    if recipe.long_examples == "refuse":
        raise RecipeError(f"long_examples=refuse, and there are {found}; shorten them, raise the limit, or take drop.")
    logger.warning("Left out %s.", found)
    return encoded.select(np.flatnonzero(fits)), facts


def encode_batch(batch: dict[str, list[str]], tokenizers: SeqloomTokenizers) -> dict[str, list[list[int]]]:
    """Return token ids of both sides, each ending in the end-of-sequence token."""
    return {
        "input_ids": tokenizers.source(batch["source"], return_attention_mask=False).input_ids,
        "labels": tokenizers.target(batch["target"], return_attention_mask=False).input_ids,
    }


def epoch_encodings(
    pairs: Dataset, tokenizers: SeqloomTokenizers, recipe: Recipe, settings: BatchSettings
) -> EpochEncodings:
    """Return the training pairs as BPE-dropout cuts them, anew in each epoch."""
    limits = LengthLimits(
        recipe.max_source_length or np.inf,
        recipe.max_target_length or np.inf,
        min(settings.tokens_per_update, settings.tokens_per_device),
    )
    return EpochEncodings(
        pairs,
        tokenizers,
        dropout=recipe.bpe_dropout,
        seed=settings.seed,
        limits=limits,
        num_proc=recipe.num_proc,
    )
