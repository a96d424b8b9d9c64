"""What a model learns from a corpus: every task turns its data set into pairs of source and target.

`pairs` takes them as they are (translation, spelling, G2P, ...). `continuation` learns from raw text: each document is
cut at a random point, the part before is the source and the part after is the target (the prefix language model of
Raffel et al. 2020, "Exploring the limits of transfer learning", section 3.2.1).

A cut is a pure function of (seed, index of the document, draw): no generator is carried from one document to the next,
so the number of processes, the order of the work and a restart change nothing.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import ClassVar

import pyarrow.compute
from datasets import Dataset, Features, Value

from seqloom.training.reading import diagnosis
from seqloom.training.reading.readers import BLANK_CHARACTERS

logger = logging.getLogger(__name__)

PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})

CUT_RULE = 1
"""Version of the rule below. The cache of `Dataset.map` may not see a change of our code: raise this number with it."""

_UNSPACED_SCRIPTS = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Myanmar, Khmer
    "\u2e80-\u312f\u31a0-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef"  # CJK and full width
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff]"  # kana supplements, rare Han
)
"""Characters of scripts that put no spaces between words; Korean does, so Hangul is not among them."""

_REACHES_OVER = re.compile(
    "[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\u1cf5\u1cf6\U000110bd\U000110cd\U000111c2\U000111c3\U000113d1"
    "\U0001193f\U00011941\U00011a84-\U00011a89\U00011d46\U00011f02"  # Grapheme_Cluster_Break=Prepend
    "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u1039\u17d2\u1a60\u1b44\u1bab\ua9c0\uaaf6\U00010a3f\U00011133\U000113d0\U0001193e"
    "\U00011a47\U00011a99\U00011f42"  # Indic_Conjunct_Break=Linker
    "\u200d]"
)
"""Characters that take the next one with them: signs written around it, viramas, the zero-width joiner (Unicode 17)."""

_EXTENDING = re.compile("[\u200c\u200d\u0e33\u0eb3\uff9e\uff9f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
"""Belong to the character before and are no combining marks: joiners, SARA AM, sound marks, skin tones, tags."""

# What a character is, as bits; `_traits_of` tells.
_SPACE, _UNSPACED, _GOES_ON, _EXTENDS, _FLAG, _LEADING, _SYLLABLE, _VOWEL = (1 << bit for bit in range(8))


class Task(ABC):
    """A way to make training pairs from the columns of a corpus."""

    name: ClassVar[str]
    """What the recipe calls it."""

    columns: ClassVar[tuple[str, ...]]
    """The columns it needs, all text."""

    @abstractmethod
    def to_pairs(self, dataset: Dataset, *, seed: int = 0, draw: int = 0, num_proc: int | None = None) -> Dataset:
        """Return a data set with the text columns `source` and `target`.

        Args:
            dataset: A data set that has `columns`.
            seed: The run's seed.
            draw: Counts repetitions with other random choices, e.g. the epoch.
            num_proc: Processes for `Dataset.map`.

        Raises:
            ValueError: If a column is missing, or no example is left.
        """

    def check_columns(self, dataset: Dataset) -> None:
        """Raise a ValueError when `dataset` lacks one of `columns`."""
        missing = [column for column in self.columns if column not in dataset.column_names]
        if missing:
            raise ValueError(
                f"task {self.name!r} needs the columns {', '.join(self.columns)}; the data set has "
                f"{', '.join(dataset.column_names)}. Rename or add {' and '.join(missing)}."
            )


@dataclass(frozen=True)
class PairsTask(Task):
    """Source and target are given."""

    name: ClassVar[str] = "pairs"
    columns: ClassVar[tuple[str, ...]] = ("source", "target")

    def to_pairs(self, dataset: Dataset, *, seed: int = 0, draw: int = 0, num_proc: int | None = None) -> Dataset:
        """Return the two columns of `dataset` unchanged; see `Task.to_pairs`."""
        self.check_columns(dataset)
        return dataset.select_columns(list(self.columns))


@dataclass(frozen=True)
class ContinuationTask(Task):
    """Each document is cut into a prompt (source) and its continuation (target)."""

    name: ClassVar[str] = "continuation"
    columns: ClassVar[tuple[str, ...]] = ("text",)

    num_splits: int = 1
    """Different cuts taken from each document, as far as it has so many."""

    def __post_init__(self) -> None:
        if self.num_splits < 1:
            raise ValueError(f"num_splits={self.num_splits} gives no pairs; use 1 or more.")

    def to_pairs(self, dataset: Dataset, *, seed: int = 0, draw: int = 0, num_proc: int | None = None) -> Dataset:
        """Cut the documents of `dataset`; see `Task.to_pairs`. What cannot be cut is dropped and counted in the log."""
        self.check_columns(dataset)
        pairs = dataset.map(
            _split_batch,
            batched=True,
            with_indices=True,
            input_columns="text",
            remove_columns=dataset.column_names,
            features=Features({**PAIR_FEATURES, "document": Value("int64")}),
            fn_kwargs={"seed": seed, "draw": draw, "num_splits": self.num_splits, "cut_rule": CUT_RULE},
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


TASKS: dict[str, type[Task]] = {task.name: task for task in (PairsTask, ContinuationTask)}


def get_task(name: str, *, num_splits: int = 1) -> Task:
    """Return the task called `name`.

    Args:
        name: "pairs" or "continuation".
        num_splits: Cuts per document, for "continuation" only.

    Raises:
        ValueError: For an unknown name.
    """
    if name == ContinuationTask.name:
        return ContinuationTask(num_splits=num_splits)
    if name not in TASKS:
        raise ValueError(f"task={name!r} is unknown; use {' or '.join(TASKS)}.{diagnosis.did_you_mean(name, TASKS)}")
    if num_splits != 1:
        logger.warning("num_splits=%s is ignored: task %r does not cut documents.", num_splits, name)
    return TASKS[name]()


def split_document(text: str, *, seed: int, index: int, draw: int = 0, num_splits: int = 1) -> list[tuple[str, str]]:
    """Cut `text` at random points into (prompt, continuation); prompt + continuation == text, neither side blank.

    Words stay whole, and a space goes with the continuation. In scripts without spaces every place between two
    characters will do, and so it does in a text that is one word. What a reader sees as one character is never cut.

    Args:
        text: The document.
        seed: The run's seed.
        index: The document's place in its corpus.
        draw: Counts repetitions with other cuts.
        num_splits: Different cuts wanted.

    Returns:
        At most `num_splits` pairs, in order of the cut; none when the document cannot be cut.
    """
    cuts = find_cuts(text)
    chosen = []
    for split in range(min(num_splits, len(cuts))):
        chosen.append(cuts.pop(_random_below(len(cuts), seed, index, draw, split)))
    return [(text[:cut], text[cut:]) for cut in sorted(chosen)]


def find_cuts(text: str) -> list[int]:
    """Return all places where `text` may be cut: between words, or between characters when it is one word."""
    first = len(text) - len(text.lstrip(BLANK_CHARACTERS))
    last = len(text.rstrip(BLANK_CHARACTERS))
    traits = [_traits_of(character) for character in text]
    allowed = [cut for cut in range(first + 1, last) if not _is_one_character(traits, cut)]
    return [cut for cut in allowed if traits[cut] & _SPACE or (traits[cut - 1] | traits[cut]) & _UNSPACED] or allowed


def _random_below(limit: int, *key: int) -> int:
    """A number in [0, limit) that depends on `key` alone, the same on every machine and in every version."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") * limit >> 64


@functools.cache
def _traits_of(character: str) -> int:
    return (
        _SPACE * character.isspace()
        | _UNSPACED * bool(_UNSPACED_SCRIPTS.match(character))
        | _GOES_ON * bool(_REACHES_OVER.match(character))
        | _EXTENDS * (unicodedata.category(character)[0] == "M" or bool(_EXTENDING.match(character)))
        | _FLAG * ("\U0001f1e6" <= character <= "\U0001f1ff")
        | _LEADING * bool(re.match("[\u1100-\u115f\ua960-\ua97c]", character))
        | _SYLLABLE * ("\uac00" <= character <= "\ud7a3")
        | _VOWEL * bool(re.match("[\u1160-\u11ff\ud7b0-\ud7fb]", character))  # and trailing consonants
    )


def _is_one_character(traits: list[int], cut: int) -> bool:
    """Whether a reader sees one character around `cut` (UAX 29, simplified), or a space before it."""
    before, after = traits[cut - 1], traits[cut]
    if before & (_SPACE | _GOES_ON) or after & _EXTENDS:
        return True
    if after & _FLAG:
        return _count_flags_before(traits, cut) % 2 == 1
    if before & _LEADING:  # Hangul decomposed by NFD: leading consonants, vowels, trailing consonants
        return bool(after & (_LEADING | _SYLLABLE | _VOWEL))
    return bool(before & (_SYLLABLE | _VOWEL) and after & _VOWEL)


def _count_flags_before(traits: list[int], cut: int) -> int:
    """Count the regional indicators right before `cut`; two of them are one flag."""
    return sum(1 for _ in takewhile(lambda trait: trait & _FLAG, (traits[place] for place in range(cut - 1, -1, -1))))


def _split_batch(
    texts: Sequence[str], indices: Sequence[int], *, seed: int, draw: int, num_splits: int, cut_rule: int
) -> dict[str, list[str | int]]:
    """The function under `Dataset.map`; `cut_rule` only keeps the caches of two rules apart."""
    pairs: list[dict[str, str | int]] = [
        {"source": source, "target": target, "document": index}
        for text, index in zip(texts, indices)
        for source, target in split_document(text, seed=seed, index=index, draw=draw, num_splits=num_splits)
    ]
    return {column: [pair[column] for pair in pairs] for column in ("source", "target", "document")}
