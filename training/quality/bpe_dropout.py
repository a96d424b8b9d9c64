"""BPE-dropout: in every epoch the same sentence is cut into other pieces.

Provilkov et al. 2020, arXiv:1910.13267. A merge that could be applied is skipped with a given chance, so that a word is
seen whole, in syllables and in letters, and rare pieces are trained. Evaluation and use always take all merges.

A vocabulary of words has no merges. There a word is spelled in letters with that chance, wherever it stands in an
example, in the source and in the target, and so is what begins like it (bake, baked): so a model learns to copy
letter by letter what it will meet in letters, which are the words that are no entry (LOG: spelled words).

The `tokenizers` library has it too, but draws from a random source that cannot be seeded (tokenizers issue 668), and a
resumed run has to see the pieces that the interrupted one would have seen. So the merges are made here, from the
library's own table: what an example becomes depends on (seed, epoch, example) alone, on any number of processes.

Pieces change lengths (a quarter more tokens at 0.1), and lengths are what updates are planned from. So an epoch is
encoded as a whole at its start and planned from its real lengths: budgets hold as without dropout. That takes 5
CPU-seconds for the 29,000 pairs of Multi30k, and `num_proc` shares it. Estimated lengths would save the pause, and
would break the promise of `tokens_per_update` in every update. The number of updates an epoch is fixed by epoch 0, for
Trainer counts on it; it leaves room for epochs whose total comes out a little larger (`share_planned`).
"""

import itertools
import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from seqloom.configuration.data_names import TAG
from seqloom.training.batching import BatchSettings, UpdateSampler, longest_epoch, plan_size
from seqloom.training.examples import lengths_of, weights_of
from seqloom.training.tokenizer import SeqloomTokenizers
from seqloom.training.vocabulary import BYTE_TOKENS

STEM = 3
"""Letters by which two words count as forms of one."""


def share_planned(num_examples: int) -> float:
    """Return the share of an update's budget that the number of updates is counted with.

    The rest is for epochs that come out longer: an epoch's total varies by some 0.15 / sqrt(examples); room is
    left for more than six times that, and half a percent.
    """
    return 0.995 - 1 / math.sqrt(max(num_examples, 4))


class PieceDropout:
    """Cuts text with the merges of a bpe tokenizer, or by the words of a word tokenizer, each skipped with a chance."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, dropout: float) -> None:
        """Take merges and words out of a tokenizer.

        Args:
            tokenizer: of the kind bpe or word.
            dropout: chance that a merge is skipped, or a word is spelled, in [0, 1).
        """
        backend = tokenizer.backend_tokenizer
        model = json.loads(backend.to_str())["model"]
        self.dropout = dropout
        self.vocab: dict[str, int] = model["vocab"]
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(model["merges"])}
        self.has_words: bool = model["ignore_merges"]
        self.normalizer = backend.normalizer
        self.pre_tokenizer = backend.pre_tokenizer
        self.end = tokenizer.eos_token_id
        added = tokenizer.added_tokens_decoder.items()
        self.tags = {token.content: number for number, token in added if not token.special}

    def encode(self, text: str, *key: Any, side: int = 0) -> list[int]:
        """Return the ids of a text, ending in the end of sequence.

        Args:
            text: as it comes from the corpus.
            *key: what the random choices depend on, and nothing else.
            side: 0 for a source, 1 for a target. Merges are drawn for each; a word is spelled on both or on none.
        """
        tags = []
        while self.tags and (tag := TAG.match(text)) and tag[0] in self.tags:  # as they are, and the rest normalized
            tags.append(self.tags[tag[0]])
            text = text[tag.end() :].lstrip()
        if self.normalizer is not None:
            text = self.normalizer.normalize_str(text)
        words = [word for word, _ in self.pre_tokenizer.pre_tokenize_str(text)]
        if self.has_words:
            whole = {word for word in set(words) if word in self.vocab and not self._is_spelled(word.strip(), key)}
            cut = [(word,) if word in whole else self._letters(word) for word in words]
        else:
            rng = _seeded(*key, side)
            cut = [self._merge(word, rng) for word in words]
        return tags + [self.vocab[piece] for pieces in cut for piece in pieces] + [self.end]

    def _is_spelled(self, word: str, key: tuple[Any, ...]) -> bool:
        """Return whether a word is spelled in an example, by its beginning; a word of one sign is written as it is."""
        return len(word) > 1 and _seeded(*key, word[:STEM].casefold()).random() < self.dropout

    def _letters(self, word: str) -> list[str]:
        return [piece for character in word for piece in self._spell(character)]

    def _merge(self, word: str, rng: random.Random) -> list[str]:
        """Join pairs, the most frequent one first; at each step every possible merge may be skipped."""
        pieces = self._letters(word)
        while True:
            ranked = ((self.ranks.get(pair), i) for i, pair in enumerate(itertools.pairwise(pieces)))
            merges = [(rank, i) for rank, i in ranked if rank is not None and rng.random() >= self.dropout]
            if not merges:
                return pieces
            _, i = min(merges)
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]

    def _spell(self, character: str) -> Sequence[str]:
        """Return a character, or its bytes where it has no entry of its own."""
        return (character,) if character in self.vocab else [BYTE_TOKENS[byte] for byte in character.encode()]


def _seeded(*key: Any) -> random.Random:
    """Return a source that depends on the key: from text Python seeds alike on every machine and in every version."""
    return random.Random(repr(key))


@dataclass(frozen=True)
class LengthLimits:
    """What an example may have at most, in tokens; one that grows beyond keeps its plain pieces."""

    source: float
    """Of the source."""
    target: float
    """Of the target."""
    both: float
    """Of both together."""

    def fit(self, source: Sequence[int], target: Sequence[int]) -> bool:
        """Return whether an example is within the limits."""
        sizes = len(source), len(target)
        return sizes[0] <= self.source and sizes[1] <= self.target and sum(sizes) <= self.both


class EpochEncodings(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Training pairs as the current epoch cuts them; rows of `input_ids` and `labels`."""

    def __init__(
        self,
        pairs: Dataset,
        tokenizers: SeqloomTokenizers,
        *,
        dropout: float,
        seed: int,
        limits: LengthLimits,
        num_proc: int | None = None,
    ) -> None:
        """Remember what to cut; `set_epoch` cuts it.

        Args:
            pairs: columns `source`, `target`, and their plain pieces as `input_ids`, `labels`.
            tokenizers: of the kind bpe or word.
            dropout: chance that a merge is skipped, or a word is spelled.
            seed: of the run.
            limits: most tokens of an example.
            num_proc: processes that cut; None: this one.
        """
        self.pairs = pairs
        self.sides = [PieceDropout(tokenizer, dropout) for tokenizer in (tokenizers.source, tokenizers.target)]
        self.seed = seed
        self.limits = limits
        self.num_proc = num_proc
        self.epoch: int | None = None
        self._files = tempfile.TemporaryDirectory(prefix="seqloom-bpe-dropout-")

    def set_epoch(self, epoch: int) -> None:
        """Cut all examples as this epoch does, into a file that replaces the last epoch's."""
        if epoch == self.epoch:
            return
        folder = Path(self._files.name)
        stale = list(folder.iterdir())
        columns = ("input_ids", "labels")
        self.rows = self.pairs.map(
            _cut_batch,
            batched=True,
            with_indices=True,
            remove_columns=[name for name in self.pairs.column_names if name not in columns],
            fn_kwargs={"sides": self.sides, "limits": self.limits, "key": (self.seed, epoch)},
            num_proc=self.num_proc,
            cache_file_name=str(folder / f"epoch-{epoch}.arrow"),
            load_from_cache_file=False,
            new_fingerprint=f"bpe-dropout-{self.seed}-{epoch}",
            desc=f"Cutting words for epoch {epoch + 1}",
        )
        self.epoch = epoch
        for file in stale:
            file.unlink(missing_ok=True)

    def lengths_of_epoch(self, epoch: int) -> np.ndarray:
        """Return (examples, 2) source and target lengths of an epoch, which is then the current one."""
        self.set_epoch(epoch)
        return lengths_of(self.rows)

    def sampler(self, settings: BatchSettings) -> "EpochSampler":
        """Return the sampler that plans each epoch from its own lengths."""
        return EpochSampler(self, settings)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, list[int]]]:
        return self.rows.__getitems__(indices)


def _cut_batch(
    batch: dict[str, list[Any]],
    indices: Sequence[int],
    *,
    sides: Sequence[PieceDropout],
    limits: LengthLimits,
    key: tuple[int, int],
) -> dict[str, list[list[int]]]:
    rows = zip(indices, batch["source"], batch["target"], batch["input_ids"], batch["labels"], strict=True)
    encoded = []
    for index, source, target, *plain in rows:
        cut = [side.encode(text, *key, index, side=n) for n, (side, text) in enumerate(zip(sides, (source, target)))]
        encoded.append(cut if limits.fit(*cut) else plain)
    return {"input_ids": [source for source, _ in encoded], "labels": [target for _, target in encoded]}


class EpochSampler(UpdateSampler):
    """An UpdateSampler whose lengths are those of the epoch; every epoch has as many updates as epoch 0."""

    def __init__(self, encodings: EpochEncodings, settings: BatchSettings) -> None:
        """Plan for one process, with the encodings in the place of `UpdateSampler`'s lengths."""
        self.encodings = encodings
        lengths, weights = encodings.lengths_of_epoch(0), weights_of(encodings.pairs)
        longest = longest_epoch(lengths, weights, settings.seed)
        budget = max(int(share_planned(len(longest)) * settings.tokens_per_update), int(lengths.sum(axis=1).max()))
        super().__init__(lengths, settings, weights=weights, num_updates=plan_size(longest, budget).num_updates)

    def set_epoch(self, epoch: int) -> None:
        """Cut the examples anew, before the loader's workers are started."""
        super().set_epoch(epoch)
        self.encodings.set_epoch(epoch)

    def plan(self, epoch: int) -> list[np.ndarray]:
        """Return the updates of an epoch, planned from its own lengths."""
        self.lengths = self.encodings.lengths_of_epoch(epoch)
        return super().plan(epoch)


__all__ = ["EpochEncodings", "EpochSampler", "LengthLimits", "PieceDropout"]
