r"""The vocabulary: trained on the training text with the `tokenizers` library, saved as a plain fast tokenizer.

Seqloom trains on text nobody else has, so the vocabulary comes from that text. What is left behind is an ordinary
`PreTrainedTokenizerFast`: `AutoTokenizer.from_pretrained(folder)` reads it, no code of ours is needed.

One promise holds for every kind (bpe, unigram, char, word) and for every text, also one made of characters the
training text never had: `decode(encode(text)) == normalize_text(text)`. Four rules carry it:

1. Byte fallback everywhere. A character without an entry is written as its UTF-8 bytes `<0x00>` .. `<0xFF>`
   (SentencePiece's notation), 256 ordinary entries behind the special tokens. `<unk>` exists but is never produced.
2. No metaspace. A piece keeps its own leading blank, so a literal "▁" is a character like any other, nothing is put in
   front of the text, and prompt + continuation is plain concatenation.
3. "<" stands alone. The pre-tokenizer never lets it begin a longer piece, so no text can spell `</s>`, `<0x41>` or
   the marker of rule 4, whatever the training text was.
4. Text is text. `split_special_tokens` is on: a literal "</s>" in a sentence does not end the sentence. (The setting
   lives in tokenizer_config.json; whoever opens tokenizer.json with the bare `tokenizers` library has to set
   `tokenizer.encode_special_tokens = True`.)

Separate vocabularies are two views of one id space. Both know all ids and decode alike; in each, the pieces of the
other side are spelled with a marker in front that begins with "<", which by rule 3 no text can match:

    id        0..3       4..259      260 ..           .. len-1
    source    specials   bytes       source pieces    "<target>" + target pieces
    target    specials   bytes       "<source>" + source pieces    target pieces

BPE: Sennrich et al. 2016, arXiv:1508.07909. Unigram: Kudo 2018, arXiv:1804.10959. Byte fallback: SentencePiece.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from seqloom.configuration.suggestion import SENTENCE, did_you_mean

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
"""Ids 0 to 3, in this order; `SeqloomConfig` names the same ids."""

BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""Ids 4 to 259: what a character without an entry of its own is written with."""

KINDS = ("bpe", "unigram", "char", "word")
NORMALIZATIONS = ("nfc", "nfkc", "none")

CHAT_TEMPLATE = """\
{%- set last = namespace(message=none) -%}
{%- for message in messages if message['role'] == 'user' -%}
    {%- set last.message = message -%}
{%- endfor -%}
{%- if last.message is none -%}
    {{- raise_exception("The chat has no user message; the last user message is the source text, so add one.") -}}
{%- elif last.message['content'] is not defined -%}
    {{- raise_exception("The last user message has no content; it is the source text, so give it one.") -}}
{%- elif last.message['content'] is string -%}
    {{- last.message['content'] -}}
{%- else -%}
    {%- for part in last.message['content'] -%}
        {%- if part['type'] != 'text' -%}
            {{- raise_exception("The last user message has a part of type '" ~ part['type'] ~
                "'; this model reads text only, so send parts of type 'text'.") -}}
        {%- endif -%}
        {{- part['text'] -}}
    {%- endfor -%}
{%- endif -%}
"""
"""The source text is the last user message, and nothing else is rendered, with and without a generation prompt."""

_NUM_RESERVED = len(SPECIAL_TOKENS) + len(BYTE_TOKENS)
_TARGET_FOLDER = "target"
_SETTINGS_KEY = "seqloom_tokenizer"
_SOURCE_MARKER, _TARGET_MARKER = "<source>", "<target>"

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

_WORD_PATTERN = rf"<| ?\p{{Han}}\p{{M}}*| ?[{_LETTERS}&&[^\p{{Han}}]]+|NUMBER| ?{_SYMBOL}|{_BLANKS}"
"""What a word is. Han characters count as words: without spaces a longer run would hardly ever be seen again."""


class TokenizerError(ValueError):
    """A tokenizer cannot be trained or loaded as asked; the message says what to change."""


@dataclass
class SeqloomTokenizers:
    """The tokenizers of one model. With a joint vocabulary, source and target are the same object."""

    source: PreTrainedTokenizerFast
    """Encodes source text; decodes every id of the model."""

    target: PreTrainedTokenizerFast
    """Encodes target text; decodes every id of the model."""

    @property
    def is_joint(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self.source is self.target

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens and bytes included: `SeqloomConfig.vocab_size`."""
        return len(self.source)

    def __len__(self) -> int:
        return self.vocab_size

    def save(self, folder: str | Path) -> None:
        """Write the source tokenizer to `folder` and, if it is another one, the target tokenizer to `folder/target`."""
        self.source.save_pretrained(folder)
        if not self.is_joint:
            self.target.save_pretrained(Path(folder) / _TARGET_FOLDER)

    @classmethod
    def load(cls, folder: str | Path) -> "SeqloomTokenizers":
        """Read what `save` wrote.

        Raises:
            TokenizerError: If the folder holds no tokenizer.
        """
        source = _load_one(Path(folder))
        if source.init_kwargs.get(_SETTINGS_KEY, {}).get("joint", True):
            return cls(source, source)
        return cls(source, _load_one(Path(folder) / _TARGET_FOLDER))


def train_tokenizer(
    sources: Iterable[str],
    targets: Iterable[str] | None = None,
    *,
    kind: str,
    vocab_size: int,
    joint: bool = True,
    normalization: str = "nfc",
    min_frequency: int | None = None,
    character_coverage: float = 1.0,
    split_digits: bool = False,
    show_progress: bool = True,
) -> SeqloomTokenizers:
    """Train the vocabulary on the text of the training split.

    The text is read twice: once to count its characters, once to train. An iterator that can be read only once is
    therefore held in memory; a list or a column of a `datasets.Dataset` is not copied. The same text and options give
    the same tokenizer.json, byte for byte, whatever the number of threads.

    Args:
        sources: Source texts, or all texts where the task has no other side.
        targets: Target texts; None where the task has one text only.
        kind: "bpe", "unigram", "char" (a Unicode code point is a token) or "word" (frequent words; all others as
            characters).
        vocab_size: Number of entries, 4 special tokens and 256 bytes included; each side's own number when `joint` is
            false. A text too small to fill it gives a smaller vocabulary.
        joint: One vocabulary for both sides; false keeps the pieces and ids of the two sides apart.
        normalization: Unicode normalization that becomes part of the tokenizer: "nfc" joins letters and accents, "nfkc"
            also folds full-width forms and ligatures, "none" leaves the text as it is.
        min_frequency: How often a bpe merge, a character (kind "char") or a word must occur to get an entry; None for
            the usual value of the kind (2 for bpe and word, 1 for char). Unigram does not have it.
        character_coverage: Fraction of the running text whose characters get an entry of their own, most frequent
            first; the rare rest is written as bytes. 0.9995 is usual for Chinese and Japanese.
        split_digits: Make every digit a token of its own.
        show_progress: Show progress bars.

    Returns:
        The tokenizers of the two sides; the same object twice when the vocabulary is joint.

    Raises:
        TokenizerError: On an unknown kind or normalization, an option out of range, an empty text, something that is
            not text, or a vocab_size that the characters of the text do not fit into.
    """
    options = _Options(kind, vocab_size, normalization, min_frequency, character_coverage, split_digits, show_progress)
    if targets is None or joint:
        if not joint:
            logger.warning("Separate vocabularies were asked for, but the task has one text only: it gets one.")
        text = _read_text("training", [sources] if targets is None else [sources, targets], options)
        tokenizer = _build_tokenizer(_build_backend(_learn(text, options), None, options), options, joint=True)
        return SeqloomTokenizers(tokenizer, tokenizer)
    source = _learn(_read_text("source", [sources], options), options)
    target = _learn(_read_text("target", [targets], options), options)
    return SeqloomTokenizers(
        _build_tokenizer(_build_backend(source, _Other(target, _TARGET_MARKER, first=False), options), options, False),
        _build_tokenizer(_build_backend(target, _Other(source, _SOURCE_MARKER, first=True), options), options, False),
    )


def normalize_text(text: str, normalization: str) -> str:
    """Return the text as a tokenizer with this normalization reads it, and as it comes back from decoding.

    The tables are those of the `tokenizers` library (Unicode 10): text of later characters can differ in the order of
    its combining marks from what `unicodedata.normalize` returns.
    """
    normalizer = _normalizer(normalization)
    return text if normalizer is None else normalizer.normalize_str(text)


def set_bpe_dropout(tokenizer: PreTrainedTokenizerFast, dropout: float) -> None:
    """Let a bpe tokenizer skip each merge with this probability (BPE-dropout, arXiv:1910.13267); 0 turns it off.

    For looking at it: the library draws from a source that cannot be seeded, so training makes the merges itself
    (`training/quality/bpe_dropout.py`). The setting is part of what `save_pretrained` writes, so turn it off before
    saving.

    Raises:
        TokenizerError: If the tokenizer has no merges or the probability is not in [0, 1).
    """
    check_bpe_dropout(tokenizer, dropout)
    tokenizer.backend_tokenizer.model.dropout = dropout or None


def check_bpe_dropout(tokenizer: PreTrainedTokenizerFast, dropout: float) -> None:
    """Refuse a tokenizer without merges, and what is no probability.

    Raises:
        TokenizerError: If the tokenizer has no merges or the probability is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise TokenizerError(f"bpe_dropout={dropout} is not a probability; use 0 (off) up to, but not including, 1.")
    kind = tokenizer.init_kwargs.get(_SETTINGS_KEY, {}).get("kind", "bpe")
    if not isinstance(tokenizer.backend_tokenizer.model, models.BPE) or kind != "bpe":
        raise TokenizerError(f"bpe_dropout={dropout} needs merges to skip; a tokenizer of the kind {kind!r} has none.")


# ----------------------------------------------------------------------------------------------------- options and text


@dataclass(frozen=True)
class _Options:
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
                f"{len(BYTE_TOKENS)} bytes come first; use {_NUM_RESERVED + 1} or more."
            )
        if self.kind == "unigram" and self.min_frequency is not None and self.min_frequency > 1:
            logger.warning("min_frequency=%d is ignored: unigram training has no such limit.", self.min_frequency)

    @property
    def num_pieces(self) -> int:
        """How many entries are left for characters, pieces and words."""
        return self.vocab_size - _NUM_RESERVED

    @property
    def min_count(self) -> int:
        return self.min_frequency or _MIN_FREQUENCY[self.kind]


@dataclass(frozen=True)
class _Text:
    """Text that can be read again and again, and how often each of its characters occurs after normalization."""

    name: str
    parts: list[Iterable[str]]
    num_texts: int
    characters: Counter[str]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.parts)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    hint = did_you_mean(str(value).lower(), choices, SENTENCE)
    raise TokenizerError(f"{name}={value!r} is unknown.{hint} Use one of: {', '.join(choices)}.")


def _read_text(name: str, parts: list[Iterable[str]], options: _Options) -> _Text:
    """Make the text re-readable and count its characters."""
    parts = [list(part) if iter(part) is part else part for part in parts]
    characters: Counter[str] = Counter()
    num_texts = 0
    bar = tqdm(chain.from_iterable(parts), desc="Counting characters", unit=" texts", disable=not options.show_progress)
    for num_texts, text in enumerate(bar, start=1):
        _check_is_text(text, num_texts, name)
        characters.update(text if text.isascii() else normalize_text(text, options.normalization))
    if not characters:
        raise TokenizerError(
            f"The {name} text is empty ({num_texts:,} texts without a character); a vocabulary is learned from text, "
            "so check the files and columns of the training split."
        )
    return _Text(name, parts, num_texts, characters)


def _check_is_text(text: str, number: int, name: str) -> None:
    if not isinstance(text, str):
        raise TokenizerError(
            f"Item {number:,} of the {name} text is {text!r}, not a string; remove it or write it as text."
        )
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"Item {number:,} of the {name} text holds the lone surrogate U+{ord(text[error.start]):04X}, which is no "
            "character and cannot be saved as UTF-8; remove or repair it."
        ) from error


# ------------------------------------------------------------------------------------------------- learning the pieces


@dataclass(frozen=True)
class _Learned:
    """What one side contributes to the vocabulary; special tokens and bytes are not in it."""

    pieces: list[str]
    """In the order of their ids."""

    merges: list[tuple[str, str]]
    """bpe only: which two pieces are joined, most frequent first."""

    scores: list[float]
    """unigram only: log-probability of each piece."""


def _learn(text: _Text, options: _Options) -> _Learned:
    learned = _LEARNERS[options.kind](text, options)
    _log_size(len(learned.pieces) + _NUM_RESERVED, text, options)
    return learned


def _learn_characters(text: _Text, options: _Options) -> _Learned:
    frequent = [c for c in _covered_characters(text, options) if text.characters[c] >= options.min_count]
    return _Learned(frequent[: options.num_pieces], [], [])


def _learn_words(text: _Text, options: _Options) -> _Learned:
    characters = _covered_characters(text, options)
    trainer = trainers.WordLevelTrainer(
        vocab_size=options.num_pieces + len(characters),
        min_frequency=options.min_count,
        special_tokens=[],
        show_progress=options.show_progress,
    )
    vocab = _train(models.WordLevel(), trainer, text, options)["vocab"]
    words = sorted(vocab.keys() - set(characters), key=vocab.__getitem__)
    return _Learned([*characters, *words][: options.num_pieces], [], [])


def _learn_bpe(text: _Text, options: _Options) -> _Learned:
    characters = _fitting_characters(text, options)
    trainer = trainers.BpeTrainer(
        vocab_size=options.num_pieces,
        min_frequency=options.min_count,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        max_token_length=_MAX_PIECE_LENGTH["bpe"],
        special_tokens=[],
        show_progress=options.show_progress,
    )
    model = _train(models.BPE(), trainer, text, options, keep=characters)
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return _Learned(pieces, [(left, right) for left, right in model["merges"]], [])


def _learn_unigram(text: _Text, options: _Options) -> _Learned:
    characters = _fitting_characters(text, options)
    trainer = trainers.UnigramTrainer(
        vocab_size=options.num_pieces + 1,
        max_piece_length=_MAX_PIECE_LENGTH["unigram"],
        unk_token="<unk>",
        special_tokens=["<unk>"],
        show_progress=options.show_progress,
    )
    model = _train(models.Unigram(), trainer, text, options, keep=characters)
    ranked = _canonical_scores([(piece, score) for piece, score in model["vocab"][1:]])
    # The library's trainer overshoots when the characters alone fill the vocabulary.
    longer = [entry for entry in ranked if len(entry[0]) > 1][: options.num_pieces - len(characters)]
    kept = set(longer)
    ranked = [entry for entry in ranked if len(entry[0]) == 1 or entry in kept]
    return _Learned([piece for piece, _ in ranked], [], [score for _, score in ranked])


_LEARNERS: dict[str, Callable[[_Text, _Options], _Learned]] = {
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


def _covered_characters(text: _Text, options: _Options) -> list[str]:
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


def _fitting_characters(text: _Text, options: _Options) -> list[str]:
    """Return the covered characters, all of which a bpe or unigram vocabulary has to hold."""
    characters = _covered_characters(text, options)
    if len(characters) <= options.num_pieces:
        return characters
    covered = sum(text.characters[character] for character in characters[: options.num_pieces])
    coverage = int(covered / text.characters.total() * 10_000) / 10_000
    raise TokenizerError(
        f"vocab_size={options.vocab_size} cannot hold the {len(characters):,} characters of the {text.name} text "
        f"beside {len(SPECIAL_TOKENS)} special tokens and {len(BYTE_TOKENS)} bytes; use "
        f"vocab_size={len(characters) + _NUM_RESERVED} or more, or character_coverage={coverage} or less (the rare "
        "characters are then written as bytes)."
    )


def _train(
    model: models.Model, trainer: trainers.Trainer, text: _Text, options: _Options, keep: list[str] | None = None
) -> dict[str, Any]:
    """Run a trainer of the library and return its model as JSON. Characters outside `keep` end a piece."""
    tokenizer = Tokenizer(model)
    normalizer = _normalizer(options.normalization)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    dropped = sorted(text.characters.keys() - set(keep)) if keep is not None else []
    tokenizer.pre_tokenizer = _pre_tokenizer(options, dropped)
    tokenizer.train_from_iterator(text, trainer=trainer, length=text.num_texts)
    learned: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return learned


def _log_size(size: int, text: _Text, options: _Options) -> None:
    """Say so when a subword vocabulary stays below the size asked for; for char and word that size is only a cap."""
    if size < options.vocab_size and options.kind in ("bpe", "unigram"):
        logger.warning(
            "The %s vocabulary has %d entries, not vocab_size=%d: the %s text holds no more pieces worth an entry.",
            options.kind,
            size,
            options.vocab_size,
            text.name,
        )


# ------------------------------------------------------------------------------------------------ putting it together


@dataclass(frozen=True)
class _Other:
    """The pieces of the other side, as a view spells them."""

    learned: _Learned
    marker: str
    first: bool
    """Whether these pieces have the lower ids."""


def _build_backend(own: _Learned, other: _Other | None, options: _Options) -> Tokenizer:
    """Build the tokenizer that reads text with the pieces of one side and decodes the ids of both."""
    tokenizer = Tokenizer(_model(own, _spelled(own, other), options.kind))
    normalizer = _normalizer(options.normalization)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if options.kind != "char":  # without merges every character is a token, wherever it stands
        tokenizer.pre_tokenizer = _pre_tokenizer(options)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL_TOKENS.index("</s>"))]
    )
    unmark = [] if other is None else [decoders.Replace(Regex(rf"\A{other.marker}"), "")]
    tokenizer.decoder = decoders.Sequence([*unmark, decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _spelled(own: _Learned, other: _Other | None) -> list[str]:
    """Return all entries in the order of their ids."""
    reserved = [*SPECIAL_TOKENS, *BYTE_TOKENS]
    if other is None:
        return [*reserved, *own.pieces]
    marked = [other.marker + piece for piece in other.learned.pieces]
    return [*reserved, *marked, *own.pieces] if other.first else [*reserved, *own.pieces, *marked]


def _model(own: _Learned, entries: list[str], kind: str) -> models.Model:
    if kind == "unigram":
        scores = dict(zip(own.pieces, own.scores, strict=True))
        lowest = min(own.scores)  # entries that text never matches: their score only must not lower the minimum
        vocab = [(entry, scores.get(entry, lowest)) for entry in entries]
        return models.Unigram(vocab, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=True)
    return models.BPE(
        vocab={entry: index for index, entry in enumerate(entries)},
        merges=own.merges,
        unk_token="<unk>",
        byte_fallback=True,
        ignore_merges=kind == "word",  # a word that has an entry is looked up as a whole
    )


def _normalizer(normalization: str) -> normalizers.Normalizer | None:
    _check_choice("normalization", normalization, NORMALIZATIONS)
    return {"nfc": normalizers.NFC(), "nfkc": normalizers.NFKC(), "none": None}[normalization]


def _pre_tokenizer(options: _Options, dropped: list[str] | None = None) -> pre_tokenizers.PreTokenizer:
    """Cut text where no piece may reach across; `dropped` characters, given in training, are taken out as well."""
    pattern = _WORD_PATTERN if options.kind == "word" else _SUBWORD_PATTERN
    pattern = pattern.replace("NUMBER", r"\p{N}" if options.split_digits else r" ?\p{N}+")
    cut = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    if not dropped:
        return cut
    rare = "".join(f"\\x{{{ord(character):X}}}" for character in dropped)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(f"[{rare}]"), behavior="removed"), cut])


def _build_tokenizer(backend: Tokenizer, options: _Options, joint: bool) -> PreTrainedTokenizerFast:
    pad, bos, eos, unk = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        unk_token=unk,
        model_input_names=["input_ids", "attention_mask"],
        padding_side="right",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        **{_SETTINGS_KEY: {"kind": options.kind, "normalization": options.normalization, "joint": joint}},
    )


def _load_one(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder} holds no tokenizer.json; name a folder that a training run has saved.")
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer
