"""What a model learns from a corpus: every task turns its data set into pairs of source and target.

`pairs` takes them as they are (translation, spelling, G2P, ...). `continuation` learns from raw text: each document is
cut at a random point, the part before is the source and the part after is the target (the prefix language model of
Raffel et al. 2020, "Exploring the limits of transfer learning", section 3.2.1).

A cut is a pure function of (seed, index of the document): no generator is carried from one document to the next,
so the number of processes, the order of the work and a restart change nothing.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import pyarrow.compute
import regex
from datasets import Dataset, Features, Value

from seqloom.training.reading.sources import Extra
from seqloom.training.reading.text_file import BLANK_CHARACTERS

logger = logging.getLogger(__name__)

PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})

CUT_RULE = 2
"""Version of the rule below. The cache of `Dataset.map` may not see a change of our code: raise this number with it."""

_CHARACTER = regex.compile(r"\X")
"""What a reader sees as one character: an extended grapheme cluster of Unicode's UAX 29."""

_UNSPACED = regex.compile(
    r"[\p{Script=Thai}\p{Script=Lao}\p{Script=Tibetan}\p{Script=Myanmar}\p{Script=Khmer}"
    r"\p{Script=Han}\p{Script=Bopomofo}\p{Script=Hiragana}\p{Script=Katakana}"
    r"\u3000-\u30ff\u31c0-\u33ff\uff00-\uffef]"  # their common signs: CJK punctuation, enclosed and full-width forms
)
"""Characters of scripts that put no spaces between words; Korean does, so Hangul is not among them."""


class Task(ABC):
    """A way to make training pairs from the columns of a corpus."""

    columns: ClassVar[tuple[str, ...]]
    """The columns it needs, all text."""

    @abstractmethod
    def to_pairs(self, dataset: Dataset, *, seed: int = 0, num_proc: int | None = None) -> Dataset:
        """Return a data set with the text columns `source` and `target`.

        Args:
            dataset: A data set that has `columns`.
            seed: The run's seed.
            num_proc: Processes for `Dataset.map`.

        Raises:
            ValueError: If no example is left.
        """

    def extras(self, dataset: Dataset) -> list[str]:
        """Return the columns of a data set that its pairs keep, besides the task's own."""
        return [column for column in dataset.column_names if column in set(Extra)]


@dataclass(frozen=True)
class PairsTask(Task):
    """Source and target are given."""

    columns: ClassVar[tuple[str, ...]] = ("source", "target")

    def to_pairs(self, dataset: Dataset, *, seed: int = 0, num_proc: int | None = None) -> Dataset:
        """Return the two columns of `dataset` unchanged; see `Task.to_pairs`."""
        return dataset.select_columns([*self.columns, *self.extras(dataset)])


@dataclass(frozen=True)
class ContinuationTask(Task):
    """Each document is cut into a prompt (source) and its continuation (target)."""

    columns: ClassVar[tuple[str, ...]] = ("text",)

    num_splits: int = 1
    """Different cuts taken from each document, as far as it has so many."""

    def to_pairs(self, dataset: Dataset, *, seed: int = 0, num_proc: int | None = None) -> Dataset:
        """Cut the documents of `dataset`; see `Task.to_pairs`. What cannot be cut is dropped and counted in the log."""
        extras = {name: Value("string") for name in self.extras(dataset)}
        dataset = dataset.select_columns([*self.columns, *extras])
        pairs = dataset.map(
            _split_batch,
            batched=True,
            with_indices=True,
            remove_columns=dataset.column_names,
            features=Features({**PAIR_FEATURES, **extras, "document": Value("int64")}),
            fn_kwargs={"seed": seed, "num_splits": self.num_splits, "cut_rule": CUT_RULE},
            num_proc=num_proc,
            desc="Cutting documents into prompt and continuation",
        )
        self._check_dropped(len(dataset), pairs)
        return pairs.remove_columns("document")

    def _check_dropped(self, num_documents: int, pairs: Dataset) -> None:
        if not len(pairs):
            raise ValueError(
                f"None of the {num_documents:,} documents can be cut into prompt and continuation; "
                "a document needs at least two characters."
            )
        num_dropped = num_documents - pyarrow.compute.count_distinct(pairs.data.column("document")).as_py()
        if num_dropped:
            logger.warning(
                "Dropped %s of %s documents: one character cannot be cut into prompt and continuation.",
                f"{num_dropped:,}",
                f"{num_documents:,}",
            )


def get_task(name: str, *, num_splits: int = 1) -> Task:
    """Return the task called `name`, "pairs" or "continuation"; of the latter with so many cuts per document."""
    return ContinuationTask(num_splits=num_splits) if name == "continuation" else PairsTask()


def split_document(text: str, *, seed: int, index: int, num_splits: int = 1) -> list[tuple[str, str]]:
    """Cut `text` at random points into (prompt, continuation); prompt + continuation == text, neither side blank.

    Words stay whole, and a space goes with the continuation. In scripts without spaces every place between two
    characters will do, and so it does in a text that is one word. What a reader sees as one character is never cut.

    Args:
        text: The document.
        seed: The run's seed.
        index: The document's place in its corpus.
        num_splits: Different cuts wanted.

    Returns:
        At most `num_splits` pairs, in order of the cut; none when the document cannot be cut.
    """
    cuts = find_cuts(text)
    chosen = []
    for split in range(min(num_splits, len(cuts))):
        chosen.append(cuts.pop(_random_below(len(cuts), seed, index, 0, split)))  # 0: or runs would change their cuts
    return [(text[:cut], text[cut:]) for cut in sorted(chosen)]


def find_cuts(text: str) -> list[int]:
    """Return all cut points of `text`: between words, or between characters when it is one word."""
    first = len(text) - len(text.lstrip(BLANK_CHARACTERS))
    last = len(text.rstrip(BLANK_CHARACTERS))
    spaces = set(filter(str.isspace, set(text)))
    apart = spaces | set(filter(_UNSPACED.match, set(text)))
    ends = accumulate(map(len, _CHARACTER.findall(text)))
    allowed = [cut for cut in ends if first < cut < last and text[cut - 1] not in spaces]
    return [cut for cut in allowed if text[cut] in apart or text[cut - 1] in apart] or allowed


def _random_below(limit: int, *key: int) -> int:
    """A number in [0, limit) that depends on `key` alone, the same on every machine and in every version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") * limit >> 64


def _split_batch(
    batch: Mapping[str, Sequence[str]], indices: Sequence[int], *, seed: int, num_splits: int, cut_rule: int
) -> dict[str, list[str | int]]:
    """The function under `Dataset.map`; `cut_rule` only keeps the caches of two rules apart."""
    extras = [name for name in batch if name != "text"]
    rows = zip(batch["text"], indices, *(batch[name] for name in extras), strict=True)
    pairs: list[dict[str, str | int]] = [
        {"source": source, "target": target, **dict(zip(extras, values, strict=True)), "document": index}
        for text, index, *values in rows
        for source, target in split_document(text, seed=seed, index=index, num_splits=num_splits)
    ]
    return {column: [pair[column] for pair in pairs] for column in ("source", "target", *extras, "document")}
