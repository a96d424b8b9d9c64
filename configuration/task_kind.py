"""What a corpus teaches, seen from its training text alone, and what suits that: words -> phones, strings, sentences.

`KINDS` has a row for each kind of task: what it is known by, the vocabulary of either side, the scores, whether updates
count examples or tokens, and the table of `data_size` that knows its models. The first row that fits is the kind. It
decides only on what nobody names.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Any

import regex
from rapidfuzz.distance import LCSseq, Levenshtein

from seqloom.configuration.data_size import CLOSED_SIZES, SIZES, STRING_SIZES, DataSize

SAMPLE = 4000
"""Examples that are looked at, spread over the corpus."""

MOST_PHONES = 200
"""Different phones that a language's transcription has at most; with tones and lengths Vietnamese has the most, 110."""

MOST_UNSEEN = 0.02
"""Words that half of a sample lacks, as a share of the other half, where a side has a closed set of words. Of COGS'
sources 0.004, SCAN 0, captions of Multi30k 0.06, everyday sentences 0.15 and more (LOG: kinds of task)."""

MOST_REPHRASED = 0.2
"""Share of the pairs whose source has other targets too, up to which a target is *the* answer. A dictionary of many
pronunciations has 0.1, eight descriptions of each restaurant (E2E, github.com/tuetschek/e2e-dataset) 1.0."""

MOST_GROWTH = 2.2
"""How many times as long as its source a target is that holds all of it, and no more than spaces or vowel signs."""

MOST_OF_NAMES = 15
"""Characters of a name in Thai, Burmese or kana, where a syllable takes up to four; of a sentence there are twice as
many. A Chinese word has two or three, a sentence eight."""

LEAST_TEXTS, MOST_LABELS = 200, 100
"""Texts below which nobody can say that a set of words is closed; different targets of one word that are labels."""

ROWS_A_LABEL = 10
"""Texts that stand so often, on average, are labels; others that stand again are the same text."""

LEAST_NUMBERS = 300
"""Different numbers from which on they are read digit by digit."""

WORDS_OF_BLEU = 4
"""Words that BLEU counts together; it is 0 where no output has as many."""

_LETTER = regex.compile(r"\p{L}")
_NUMBER = regex.compile(r"\d+")
_HAN = regex.compile(r"\p{Script=Han}")
_IDEOGRAPH = regex.compile(r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]")
_HANGUL = regex.compile(r"[가-힣]")  # whole syllables
_UNSPACED = regex.compile(
    r"[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}]"
)
_ENTITY = regex.compile(r"&#?\w+;")  # an apostrophe of tokenised text, not code
_CODE = regex.compile(r"[_(){}\[\]=<>;/\\]|^[\p{Sm}\p{Sc}#%&*@^`]$")


@dataclass(frozen=True)
class Side:
    """What the texts of one side look like."""

    num_texts: int
    """That were looked at, blank ones not counted."""
    characters: float
    """In a text, on average."""
    words: float
    """Between spaces in a text, on average."""
    alone: float
    """Share of the texts that are one word."""
    distinct: int
    """Different words."""
    alphabet: int
    """Different characters."""
    unseen: float
    """Share of the words in every second text that no other has; equal texts are one, unless they are labels."""
    han: float
    """Share of the letters that are Chinese characters."""
    ideographs: float
    """Share of the letters that are Chinese characters or kana."""
    unspaced: float
    """Share of the letters whose script puts no spaces between words."""
    hangul: float
    """Share of the letters that are Hangul syllables."""
    code: float
    """Share of the words with a sign that sentences lack."""
    digits: float
    """Share of the characters that are digits."""
    numbers: int
    """Different numbers of several digits."""
    has_phones: bool
    """See `are_phones`."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Side":
        """Look at some texts."""
        texts = [text for text in texts if text.strip()] or [""]
        split = [text.split() for text in texts]
        words = [word for each in split for word in each]
        distinct = list(dict.fromkeys(texts))  # else a text that stands on two lines has been seen
        apart = split if len(texts) >= ROWS_A_LABEL * len(distinct) else [text.split() for text in distinct]
        seen = {word for each in apart[::2] for word in each}
        others = [word for each in apart[1::2] for word in each]
        letters = _LETTER.findall("".join(texts))
        numbers = _NUMBER.findall(" ".join(texts))
        return cls(
            num_texts=len(texts),
            characters=fmean(map(len, texts)),
            words=fmean(map(len, split)),
            alone=fmean(len(each) == 1 for each in split),
            distinct=len(set(words)),
            alphabet=len(set().union(*texts)),
            unseen=_share(word not in seen for word in others),
            han=_share(_HAN.match(letter) is not None for letter in letters),
            ideographs=_share(_IDEOGRAPH.match(letter) is not None for letter in letters),
            unspaced=_share(_UNSPACED.match(letter) is not None for letter in letters),
            hangul=_share(_HANGUL.match(letter) is not None for letter in letters),
            code=_share(_CODE.search(_ENTITY.sub("", word)) is not None for word in words),
            digits=sum(map(len, numbers)) / max(1, sum(map(len, texts))),
            numbers=len({number for number in numbers if len(number) > 1}),
            has_phones=are_phones(texts),
        )

    @property
    def is_unspaced(self) -> bool:
        """Whether words are not separated: such a script, and nobody has put spaces in."""
        return self.unspaced > 0.5 and (self.alone >= 0.9 or self.characters >= 5 * self.words)

    @property
    def is_numeric(self) -> bool:
        """Whether texts are about numbers, more of them than could be learned by heart."""
        return self.digits > 0.1 and self.numbers >= LEAST_NUMBERS

    @property
    def is_ideographic(self) -> bool:
        """Whether texts are Chinese or Japanese, as these are written."""
        return self.ideographs > 0.5 and self.is_unspaced

    @property
    def is_string(self) -> bool:
        """Whether texts are names, words, dates, formulas: one word, or few and short ones."""
        if self.is_unspaced:
            return self.characters <= (6 if self.han > 0.1 else MOST_OF_NAMES)
        return (self.alone >= 0.9 and self.characters <= 200) or (self.words <= 3 and self.characters <= 25)

    @property
    def is_closed(self) -> bool:
        """Whether all words that there are have been seen; of strings only labels are called so."""
        is_small = not self.is_string or (self.alone >= 0.9 and self.distinct <= MOST_LABELS)
        return self.num_texts >= LEAST_TEXTS and self.unseen <= MOST_UNSEEN and is_small and not self.is_unspaced

    @property
    def vocabulary(self) -> str:
        """The kind that suits such texts, whatever is on the other side."""
        if self.has_phones or self.is_closed:
            return "word"
        # Characters beat words and pieces of them in Chinese, translation too (Li et al. 2019, arXiv:1905.05526).
        return "char" if self.is_string or self.is_ideographic else "bpe"

    def tokens(self, vocabulary: str) -> float:
        """Return about how many tokens a text has, its end too."""
        pieces = max(self.words, self.characters / (1.5 if self.is_unspaced else 4))
        return 1 + {"char": self.characters, "word": self.words}.get(vocabulary, pieces)


@dataclass(frozen=True)
class Looks:
    """What a corpus looks like."""

    source: Side
    target: Side
    likeness: float = 0.0
    """How much of a target stands in its source already, 0 to 1, on average."""
    is_tagged: bool = False
    """Whether targets have a word for each word of their source, and sources are words, not single letters."""
    rephrased: float = 0.0
    """Share of the pairs whose source has other targets, too."""
    kept: float = 0.0
    """How much of a source stands in its target in the same order, 0 to 1, on average; 0 for much longer targets."""
    longest: float = 1.0
    """How many times as many characters as the average pair has the longest of 99 in 100."""

    @classmethod
    def of(cls, sources: Sequence[str], targets: Sequence[str], *, is_continuation: bool = False) -> "Looks":
        """Look at some pairs; prompts and their continuations are one text."""
        if is_continuation:
            whole = Side.of([source + target for source, target in zip(sources, targets, strict=True)])
            return cls(whole, whole)
        pairs = islice(zip(sources, targets, strict=True), 500)
        likeness, kept = map(
            fmean, zip(*[(Levenshtein.normalized_similarity(*pair), _kept(*pair)) for pair in pairs] or [(0.0, 0.0)])
        )
        source, target = Side.of(sources), Side.of(targets)
        is_tagged = source.characters >= 3 * source.words and _are_aligned(sources, targets)
        rephrased = count_rivals(sources, targets) / max(1, len(sources))
        return cls(source, target, likeness, is_tagged, rephrased, kept, _longest(sources, targets))

    @property
    def respelling(self) -> str:
        """In which way targets are their sources spelt otherwise; "": they are not."""
        ways = {
            f"{self.likeness:.0%} of a target stand in its source": self.likeness >= 0.75,
            f"{self.kept:.0%} of a source stand in its target": self.kept >= 0.9,
        }
        return next((way for way, is_found in ways.items() if is_found), "")

    @property
    def has_closed_targets(self) -> bool:
        """Whether all words of all targets have been seen, and a target can be called right or wrong.

        Not so where one source is told in several ways; labels that annotators disagree on are labels.
        """
        is_free_text = self.rephrased > MOST_REPHRASED and self.target.alone < 0.9
        return self.target.is_closed and not is_free_text


@dataclass(frozen=True)
class TaskKind:
    """A kind of task, and what suits it."""

    name: str
    """As a person calls it."""
    why: str
    """What it is known by, of some `looks`."""
    fits: Callable[[Looks], bool]
    """Whether a corpus is of this kind, if it is of none before."""
    metrics: tuple[str, ...]
    """Of `seqloom.training.metrics`; the first chooses the best checkpoint."""
    source: str | None = None
    """Kind of the source vocabulary, unless sources are phones or ideographs; None: what suits the texts."""
    target: str | None = None
    """Kind of the target vocabulary, unless targets are ideographs; None: what suits the texts."""
    sizes: tuple[DataSize, ...] = SIZES
    """Which models suit how many examples."""
    counts_sequences: bool = False
    """Whether an update is a number of examples, however short they are."""

    def vocabularies(self, looks: Looks) -> tuple[str, str]:
        """Return the kinds of the source's and of the target's vocabulary."""
        source, target = (
            side.vocabulary if side.is_ideographic else named or side.vocabulary
            for named, side in ((self.source, looks.source), (self.target, looks.target))
        )
        return "word" if looks.source.has_phones else source, target

    def scores(self, looks: Looks) -> tuple[str, ...]:
        """Return the metrics without BLEU where most targets have no four words: it gives them 0, right or wrong."""
        is_short = looks.target.words < WORDS_OF_BLEU
        return tuple(name for name in self.metrics if name != "bleu" or name == self.metrics[0] or not is_short)

    def reads_letters_of_syllables(self, looks: Looks) -> bool:
        """Whether Hangul syllables are to be read as letters, for they become sounds or letters of another script."""
        return self.sizes is STRING_SIZES and looks.source.hangul > 0.5 > looks.target.hangul


PHONES = TaskKind(
    "words -> phones",
    "the targets are {looks.target.distinct:,} symbols of at most three letters, separated by spaces",
    lambda looks: looks.target.has_phones and not looks.is_tagged,
    ("exact_match", "per", "wer"),
    source="char",
    target="word",
    sizes=STRING_SIZES,
    counts_sequences=True,
)
CLOSED = TaskKind(
    "targets of a closed set of words",
    "{looks.target.distinct:,} words make up all targets",
    lambda looks: looks.has_closed_targets or looks.target.has_phones,  # what looks like phones and is none: tags
    ("exact_match", "chrf", "bleu"),
    target="word",
    sizes=CLOSED_SIZES,
)
LETTERS = TaskKind(
    "letters -> letters",
    "the targets are short strings, {looks.target.characters:.0f} characters on average",
    lambda looks: looks.target.is_string and (looks.source.is_string or looks.source.characters <= 100),
    ("exact_match", "cer"),
    source="char",
    target="char",
    sizes=STRING_SIZES,
    counts_sequences=True,
)
STRINGS = TaskKind(
    "texts -> short strings",
    "the targets have {looks.target.characters:.0f} characters on average, the sources {looks.source.characters:.0f}",
    lambda looks: looks.target.is_string,
    ("exact_match", "cer"),
    source="bpe",
    target="bpe",
)
RESPELT = TaskKind(
    "texts -> the same texts, spelt otherwise",
    "{looks.respelling}",
    lambda looks: looks.respelling != "" and looks.target.characters <= 120,
    ("exact_match", "cer"),  # chrF overlooks spaces, and a text that nobody segmented would have 100
    source="char",
    target="char",
    sizes=STRING_SIZES,
    counts_sequences=True,
)
CODE = TaskKind(
    "code-like targets",
    "{looks.target.code:.0%} of their words have signs that sentences lack",
    lambda looks: looks.target.code > 0.1 and not looks.target.is_unspaced,
    ("exact_match", "chrf", "bleu"),
    source="bpe",
    target="bpe",
)
UNSPACED = TaskKind(
    "sentences of a script without spaces",
    "most letters of a side are of such a script",
    lambda looks: looks.source.is_unspaced or looks.target.is_unspaced,
    ("bleu", "chrf", "exact_match", "cer"),
)
SENTENCES = TaskKind(
    "sentences",
    "they have {looks.target.words:.0f} words on average",
    lambda looks: True,
    ("bleu", "chrf", "exact_match", "cer"),
    source="bpe",
    target="bpe",
)
KINDS = (PHONES, CLOSED, LETTERS, STRINGS, RESPELT, CODE, UNSPACED, SENTENCES)
"""The first that fits is a corpus's kind."""


def kind_of(looks: Looks) -> TaskKind:
    """Return the kind of a corpus."""
    return next(kind for kind in KINDS if kind.fits(looks))


def sampled(num_examples: int) -> list[int]:
    """Return which examples to look at."""
    count = min(num_examples, SAMPLE)
    return [row * num_examples // count for row in range(count)]


def count_rivals(sources: Sequence[Hashable], references: Sequence[Any]) -> int:
    """Return how many examples have the source of another example, and another reference: one is never reached."""
    found: dict[Hashable, list[Any]] = {}
    for source, reference in zip(sources, references, strict=True):
        found.setdefault(source, []).append(reference)
    return sum(len(same) for same in found.values() if any(each != same[0] for each in same))


def are_phones(targets: Sequence[str]) -> bool:
    """Return whether texts are phones separated by spaces: few different symbols, each of at most three letters.

    Tones may be symbols of their own, without a letter.
    """
    ordered = sorted(targets)  # for the answer is that of the same targets in any order
    texts = [ordered[row] for row in sampled(len(ordered))]
    words = [word for text in texts for word in text.split()]
    if len(words) < 2 * len(texts) or len(set(words)) > MOST_PHONES:
        return False
    letters = [99 if _HAN.search(word) else len(_LETTER.findall(word)) for word in words]
    return sum(n <= 3 for n in letters) >= 0.98 * len(words) and sum(n > 0 for n in letters) >= 0.6 * len(words)


def _are_aligned(sources: Sequence[str], targets: Sequence[str]) -> bool:
    counts = [(len(source.split()), len(target.split())) for source, target in zip(sources, targets, strict=True)]
    several = [first == second for first, second in counts if max(first, second) > 1]
    return len(several) >= LEAST_TEXTS and _share(several) >= 0.95


def _longest(sources: Sequence[str], targets: Sequence[str]) -> float:
    lengths = sorted(len(source) + len(target) for source, target in zip(sources, targets, strict=True)) or [1]
    return lengths[99 * (len(lengths) - 1) // 100] / max(1, fmean(lengths))


def _kept(source: str, target: str) -> float:
    """Return how much of a source stands in its target in the same order: of an unsegmented text all of it."""
    if not 0.9 * len(source) <= len(target) <= MOST_GROWTH * len(source):
        return 0.0
    return LCSseq.similarity(source, target) / max(1, len(source))


def _share(flags: Iterable[bool]) -> float:
    listed = list(flags)
    return sum(listed) / max(1, len(listed))
