"""The vocabulary: which pieces of text get an id, learned from the training text with the `tokenizers` library.

The result is plain data (`Learned`); `tokenizer.py` builds tokenizers of it. What is added to the library's trainers:
the characters are counted first, so that coverage, byte fallback and sizes are exact; and the same text and options
give the same pieces in the same order, whatever the number of threads.

BPE: Sennrich et al. 2016, arXiv:1508.07909. Unigram: Kudo 2018, arXiv:1804.10959.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tqdm.auto import tqdm

from seqloom.configuration.suggestion import SENTENCE, did_you_mean

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
"""Ids 0 to 3, in this order; `SeqloomConfig` names the same ids."""

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Ids 4 to 259: what a character without an entry of its own is written with."""

KINDS = ("bpe", "unigram", "char", "word")
NORMALIZATIONS = ("nfc", "nfkc", "nfd", "none")

_TEXTS_AT_ONCE = 10_000

_BETWEEN = "\n"
"""Between texts that are normalized together; no character joins it."""

NUM_RESERVED = len(SPECIAL_TOKENS) + len(BYTE_TOKENS)
"""Entries of every vocabulary before its first character."""

# Longer pieces are boilerplate that the text repeats, not units that a new text is built from. For unigram the length
# is also the price of training: every substring up to it is a candidate (16 is SentencePiece's default).
_MAX_PIECE_LENGTH = {"bpe": 24, "unigram": 16}

# min_frequency=None: a merge or a word seen once teaches nothing that carries over; a character may be rare.
_MIN_FREQUENCY = {"bpe": 2, "unigram": 1, "char": 1, "word": 2}

_LETTERS = r"\p{L}\p{M}\x{200C}\x{200D}"  # with their marks and joiners: Devanagari, Persian, Vietnamese in NFD
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_OTHER_LETTER = f"[{_LETTERS}&&[^{_CJK}]]"
_SYMBOL = r"[^\s\p{L}\p{N}<]"
_BLANKS = r"\s+(?!\S)|\s+"  # of several blanks the last stays for the word behind it

_SUBWORD_PATTERN = (
    rf"<| ?[{_CJK}][{_CJK}\p{{M}}]*| ?{_OTHER_LETTER}+(?:['’]{_OTHER_LETTER}+)*|NUMBER| ?{_SYMBOL}+|{_BLANKS}"
)
"""Where a bpe or unigram piece may not reach across. Chinese and Japanese run from punctuation to punctuation."""

# Tone letters (˧˥, ꜀) and what stands in AH0 and I_TURN_LEFT: phones and commands are one word each.
_WORD_PART = rf"[{_LETTERS}DIGITS_\x{{02B0}}-\x{{02FF}}\x{{A700}}-\x{{A71F}}&&[^\p{{Han}}]]"
_WORD_PATTERN = rf"<| ?\p{{Han}}\p{{M}}*| ?{_WORD_PART}+|NUMBER| ?{_SYMBOL}|{_BLANKS}"
"""What a word is. Han characters count as words: without spaces a longer run would hardly ever be seen again."""


class TokenizerError(ValueError):
    """A tokenizer cannot be trained or loaded as asked; the message says what to change."""


def normalize_text(text: str, normalization: str) -> str:
    """Return the text as a tokenizer with this normalization reads it, and as it comes back from decoding.

    The tables are those of the `tokenizers` library (Unicode 10): text of later characters can differ in the order of
    its combining marks from what `unicodedata.normalize` returns.
    """
    normalizer = build_normalizer(normalization)
    return text if normalizer is None else normalizer.normalize_str(text)


def alphabet_of(texts: Sequence[str], normalization: str) -> set[str]:
    """Return the characters of some texts as a tokenizer with this normalization reads them."""
    joined = (_BETWEEN.join(batch) for batch in _batches([texts]))
    return set().union(*(each if each.isascii() else normalize_text(each, normalization) for each in joined))


@dataclass(frozen=True)
class Options:
    """The checked arguments of `train_tokenizer`."""

    kind: str
    vocab_size: int
    normalization: str
    min_frequency: int | None
    character_coverage: float
    split_digits: bool
    show_progress: bool

    def __post_init__(self) -> None:
        _check_choice("tokenizer", self.kind, KINDS)
        _check_choice("normalization", self.normalization, NORMALIZATIONS)
        if not 0 < self.character_coverage <= 1:
            raise TokenizerError(
                f"character_coverage={self.character_coverage} is not a fraction of the text; use a number above 0 and "
                "up to 1, for example 1.0 or 0.9995."
            )
        if self.min_frequency is not None and self.min_frequency < 1:
            raise TokenizerError(f"min_frequency={self.min_frequency} is below 1; use 1 to keep everything.")
        if self.num_pieces < 1:
            raise TokenizerError(
                f"vocab_size={self.vocab_size} leaves no room: {len(SPECIAL_TOKENS)} special tokens and "
                f"{len(BYTE_TOKENS)} bytes come first; use {NUM_RESERVED + 1} or more."
            )
        if self.kind == "unigram" and self.min_frequency is not None and self.min_frequency > 1:
            logger.warning("min_frequency=%d is ignored: unigram training has no such limit.", self.min_frequency)

    @property
    def num_pieces(self) -> int:
        """How many entries are left for characters, pieces and words."""
        return self.vocab_size - NUM_RESERVED

    @property
    def min_count(self) -> int:
        """How often something must occur to get an entry."""
        return self.min_frequency or _MIN_FREQUENCY[self.kind]


@dataclass(frozen=True)
class _Text:
    """Text that can be read again and again, and how often each of its characters occurs after normalization."""

    name: str
    parts: list[Sequence[str]]
    num_texts: int
    characters: Counter[str]

    def batches(self) -> Iterator[list[str]]:
        """Yield the texts, some at a time: one by one Python is slower than what is done with them."""
        return _batches(self.parts)


def _batches(parts: Iterable[Sequence[str]]) -> Iterator[list[str]]:
    for part in parts:
        for start in range(0, len(part), _TEXTS_AT_ONCE):
            yield list(part[start : start + _TEXTS_AT_ONCE])


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    hint = did_you_mean(str(value).lower(), choices, SENTENCE)
    raise TokenizerError(f"{name}={value!r} is unknown.{hint} Use one of: {', '.join(choices)}.")


def _read_text(name: str, parts: list[Iterable[str]], options: Options) -> _Text:
    """Make the text re-readable and count its characters."""
    held = [part if isinstance(part, Sequence) else list(part) for part in parts]
    num_texts = sum(map(len, held))
    counts = np.zeros(sys.maxunicode + 1, dtype=np.int64)
    disable = None if options.show_progress else True  # None: where nobody sees it
    done = 0
    with tqdm(total=num_texts, desc="Counting characters", unit=" texts", disable=disable) as bar:
        for texts in _batches(held):
            _check_are_texts(texts, done, name)
            joined = _BETWEEN.join(texts)
            if not joined.isascii():
                joined = normalize_text(joined, options.normalization)
            codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
            counts += np.bincount(codes, minlength=len(counts))
            counts[ord(_BETWEEN)] -= len(texts) - 1
            done += len(texts)
            bar.update(len(texts))
    found = np.flatnonzero(counts)
    characters = Counter({chr(code): int(counts[code]) for code in found})
    if not characters:
        raise TokenizerError(
            f"The {name} text is empty ({num_texts:,} texts without a character); a vocabulary is learned from text, "
            "so check the files and columns of the training split."
        )
    return _Text(name, held, num_texts, characters)


def _check_are_texts(texts: list[str], start: int, name: str) -> None:
    for number, text in enumerate(texts, start + 1):
        if not isinstance(text, str):
            raise TokenizerError(
                f"Item {number:,} of the {name} text is {text!r}, not a string; remove it or write it as text."
            )
        if text.isascii():
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"Item {number:,} of the {name} text holds the lone surrogate U+{ord(text[error.start]):04X}, which is "
                "no character and cannot be saved as UTF-8; remove or repair it."
            ) from error


@dataclass(frozen=True)
class Learned:
    """What one side contributes to the vocabulary; special tokens and bytes are not in it."""

    pieces: list[str]
    """In the order of their ids."""

    merges: list[tuple[str, str]]
    """bpe only: which two pieces are joined, most frequent first."""

    scores: list[float]
    """unigram only: log-probability of each piece."""


def learn(name: str, parts: list[Iterable[str]], options: Options) -> Learned:
    """Learn the pieces of one vocabulary.

    Args:
        name: What the text is called in messages.
        parts: The text, in one or more series of strings.
        options: How to learn.

    Raises:
        TokenizerError: On an empty text, something that is not text, or a vocab_size that its characters do not fit
            into.
    """
    text = _read_text(name, parts, options)
    learned = _LEARNERS[options.kind](text, options)
    size = len(learned.pieces) + NUM_RESERVED
    if size < options.vocab_size and options.kind in ("bpe", "unigram"):  # for char and word the size is only a cap
        logger.warning(
            "The %s vocabulary has %d entries, not vocab_size=%d: the %s text holds no more pieces worth an entry.",
            options.kind,
            size,
            options.vocab_size,
            name,
        )
    return learned


def _learn_characters(text: _Text, options: Options) -> Learned:
    frequent = [c for c in _covered_characters(text, options) if text.characters[c] >= options.min_count]
    return Learned(frequent[: options.num_pieces], [], [])


def _learn_words(text: _Text, options: Options) -> Learned:
    characters = _covered_characters(text, options)
    trainer = trainers.WordLevelTrainer(
        vocab_size=options.num_pieces + len(characters),
        min_frequency=options.min_count,
        special_tokens=[],
        show_progress=False,  # Rust prints it, and panics where nobody reads
    )
    vocab = _train(models.WordLevel(), trainer, text, options)["vocab"]
    words = sorted(vocab.keys() - set(characters), key=vocab.__getitem__)
    return Learned([*characters, *words][: options.num_pieces], [], [])


def _learn_bpe(text: _Text, options: Options) -> Learned:
    characters = _fitting_characters(text, options)
    trainer = trainers.BpeTrainer(
        vocab_size=options.num_pieces,
        min_frequency=options.min_count,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        max_token_length=_MAX_PIECE_LENGTH["bpe"],
        special_tokens=[],
        show_progress=False,  # Rust prints it, and panics where nobody reads
    )
    model = _train(models.BPE(), trainer, text, options, keep=characters)
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return Learned(pieces, [(left, right) for left, right in model["merges"]], [])


def _learn_unigram(text: _Text, options: Options) -> Learned:
    characters = _fitting_characters(text, options)
    trainer = trainers.UnigramTrainer(
        vocab_size=options.num_pieces + 1,
        max_piece_length=_MAX_PIECE_LENGTH["unigram"],
        unk_token="<unk>",
        special_tokens=["<unk>"],
        show_progress=False,  # Rust prints it, and panics where nobody reads
    )
    model = _train(models.Unigram(), trainer, text, options, keep=characters)
    ranked = _canonical_scores([(piece, score) for piece, score in model["vocab"][1:]])
    # The library's trainer overshoots when the characters alone fill the vocabulary.
    longer = [entry for entry in ranked if len(entry[0]) > 1][: options.num_pieces - len(characters)]
    kept = set(longer)
    ranked = [entry for entry in ranked if len(entry[0]) == 1 or entry in kept]
    return Learned([piece for piece, _ in ranked], [], [score for _, score in ranked])


_LEARNERS: dict[str, Callable[[_Text, Options], Learned]] = {
    "bpe": _learn_bpe,
    "unigram": _learn_unigram,
    "char": _learn_characters,
    "word": _learn_words,
}


def _canonical_scores(entries: list[tuple[str, float | None]]) -> list[tuple[str, float]]:
    """Take the dependence on hash order and threads out of what the unigram trainer returns.

    It adds up expected counts in the random order of a hash map (noise near 1e-14), and hands characters that EM
    dropped the scores min, min + 1e-4, min + 2e-4, ... in that order too (trainer.rs, `finalize`). Here scores are
    rounded, those characters all get the minimum, and ties are put in alphabetical order. What is left to chance is
    which of two pieces survives whose losses are equal to the last bit: seen only on texts that stay the same when
    letters are swapped (all permutations of "abcde"), not on natural or synthetic corpora (dates, SCAN, COGS).
    """
    step = 1e-4
    lowest = min((score for _, score in entries if score is not None), default=0.0)
    highest_filler = lowest + step * len(entries)

    def canonical(piece: str, score: float | None) -> float:
        if score is None:  # NaN: a text with nothing to learn from, such as a single NUL
            return round(lowest, 4)
        steps = (score - lowest) / step
        is_filler = len(piece) == 1 and score <= highest_filler and abs(steps - round(steps)) < 0.01
        return round(lowest if is_filler else score, 4)

    return sorted(
        ((piece, canonical(piece, score)) for piece, score in entries), key=lambda entry: (-entry[1], entry[0])
    )


def _covered_characters(text: _Text, options: Options) -> list[str]:
    """Return the characters that make up `character_coverage` of the text, most frequent first."""
    ranked = sorted(text.characters.items(), key=lambda item: (-item[1], item[0]))
    wanted = options.character_coverage * text.characters.total()
    kept, seen = [], 0
    for character, count in ranked:
        if seen >= wanted:
            break
        kept.append(character)
        seen += count
    return kept


def _fitting_characters(text: _Text, options: Options) -> list[str]:
    """Return the covered characters, all of which a bpe or unigram vocabulary has to hold."""
    characters = _covered_characters(text, options)
    if len(characters) <= options.num_pieces:
        return characters
    covered = sum(text.characters[character] for character in characters[: options.num_pieces])
    coverage = int(covered / text.characters.total() * 10_000) / 10_000
    raise TokenizerError(
        f"vocab_size={options.vocab_size} cannot hold the {len(characters):,} characters of the {text.name} text "
        f"beside {len(SPECIAL_TOKENS)} special tokens and {len(BYTE_TOKENS)} bytes; use "
        f"vocab_size={len(characters) + NUM_RESERVED} or more, or character_coverage={coverage} or less (the rare "
        "characters are then written as bytes)."
    )


def _train(
    model: models.Model, trainer: trainers.Trainer, text: _Text, options: Options, keep: list[str] | None = None
) -> dict[str, Any]:
    """Run a trainer of the library and return its model as JSON. Characters outside `keep` end a piece."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = build_normalizer(options.normalization)
    dropped = sorted(text.characters.keys() - set(keep)) if keep is not None else []
    tokenizer.pre_tokenizer = build_pre_tokenizer(options, dropped)
    tokenizer.train_from_iterator(text.batches(), trainer=trainer, length=text.num_texts)
    learned: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return learned


def build_normalizer(normalization: str) -> normalizers.Normalizer | None:
    """Return the library's normalizer, or None where text stays as it is."""
    _check_choice("normalization", normalization, NORMALIZATIONS)
    known = {"nfc": normalizers.NFC(), "nfkc": normalizers.NFKC(), "nfd": normalizers.NFD(), "none": None}
    return known[normalization]


def build_pre_tokenizer(options: Options, dropped: list[str] | None = None) -> pre_tokenizers.PreTokenizer:
    """Cut text where no piece may reach across; `dropped` characters, given in training, are taken out as well."""
    pattern = _WORD_PATTERN if options.kind == "word" else _SUBWORD_PATTERN
    pattern = pattern.replace("NUMBER", r"\p{N}" if options.split_digits else r" ?\p{N}+")
    pattern = pattern.replace("DIGITS", "" if options.split_digits else r"\p{N}")
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    if not dropped:
        return cut
    rare = "".join(f"\\x{{{ord(character):X}}}" for character in dropped)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(f"[{rare}]"), behavior="removed"), cut])
