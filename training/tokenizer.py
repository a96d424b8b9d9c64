r"""The tokenizer: built from a vocabulary (`vocabulary.py`), saved and loaded as a plain fast tokenizer.

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

Byte fallback: SentencePiece.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, processors
from tokenizers.normalizers import Normalizer
from transformers import PreTrainedTokenizerFast

from seqloom.hub.tags import SETTINGS_KEY
from seqloom.training.vocabulary import (
    BYTE_TOKENS,
    SPECIAL_TOKENS,
    Learned,
    Options,
    TokenizerError,
    build_normalizer,
    build_pre_tokenizer,
    learn,
)

logger = logging.getLogger(__name__)

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

_TARGET_FOLDER = "target"
SOURCE_MARKER, TARGET_MARKER = "<source>", "<target>"


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

    @property
    def settings(self) -> dict[str, Any]:
        """How the vocabulary was made: "kind", "normalization", "joint"; with tags also "tags" and "tag_columns"."""
        return self.source.init_kwargs.get(SETTINGS_KEY, {})

    @property
    def tags(self) -> list[str]:
        """The tokens that may stand in front of a source, each a whole one; see `add_tags`."""
        added = self.source.added_tokens_decoder.values()
        return [token.content for token in added if not token.special]

    def add_tags(self, tags: Iterable[str], columns: Sequence[str] = ()) -> None:
        """Give tags an entry each, behind all others.

        A blank behind a tag belongs to it, so that "<de> Haus" is read as "<de>Haus" is.

        Args:
            tags: e.g. "<de>".
            columns: of a data set, whose values make tags; whoever reads columns puts them in front of the source.
        """
        tokens = [AddedToken(tag, normalized=False, rstrip=True, special=False) for tag in tags]
        for tokenizer in [self.source] if self.is_joint else [self.source, self.target]:
            tokenizer.add_tokens(tokens)
            known = tokenizer.init_kwargs[SETTINGS_KEY]
            tokenizer.init_kwargs[SETTINGS_KEY] = {**known, "tag_columns": list(columns), "tags": self.tags}

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
        if source.init_kwargs.get(SETTINGS_KEY, {}).get("joint", True):
            return cls(source, source)
        return cls(source, _load_one(Path(folder) / _TARGET_FOLDER))


def train_tokenizer(
    sources: Iterable[str],
    targets: Iterable[str] | None = None,
    *,
    kind: str,
    target_kind: str | None = None,
    vocab_size: int,
    joint: bool = True,
    normalization: str = "nfc",
    target_normalization: str | None = None,
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
        target_kind: Kind of the target vocabulary; None: the same. Another one needs `joint=False`.
        vocab_size: Number of entries, 4 special tokens and 256 bytes included; each side's own number when `joint` is
            false. A text too small to fill it gives a smaller vocabulary.
        joint: One vocabulary for both sides; false keeps the pieces and ids of the two sides apart.
        normalization: Unicode normalization that becomes part of the tokenizer: "nfc" joins letters and accents, "nfkc"
            also folds full-width forms and ligatures, "nfd" takes letters and accents apart, and Hangul syllables
            into their letters, "none" leaves the text as it is.
        target_normalization: That of the target; None: the same. Another one needs `joint=False`.
        min_frequency: How often a bpe merge, a character (kind "char") or a word must occur to get an entry; None for
            the usual value of the kind (2 for bpe and word, 1 for char). Unigram does not have it.
        character_coverage: Fraction of the running text whose characters get an entry of their own, most frequent
            first; the rare rest is written as bytes. 0.9995 is usual for Chinese and Japanese.
        split_digits: Make every digit a token of its own.
        show_progress: Show progress bars.

    Returns:
        The tokenizers of the two sides; the same object twice when the vocabulary is joint.

    Raises:
        TokenizerError: On an unknown kind or normalization, an option out of range, an empty text,
            something that is not text, or a vocab_size that the characters of the text do not fit into.
    """
    options = Options(kind, vocab_size, normalization, min_frequency, character_coverage, split_digits, show_progress)
    if targets is None or joint:
        if not joint:
            logger.warning("Separate vocabularies were asked for, but the task has one text only: it gets one.")
        learned = learn("training", [sources] if targets is None else [sources, targets], options)
        tokenizer = _build_tokenizer(_build_backend(learned, None, options), options, joint=True)
        return SeqloomTokenizers(tokenizer, tokenizer)
    other = replace(options, kind=target_kind or kind, normalization=target_normalization or normalization)
    source, target = learn("source", [sources], options), learn("target", [targets], other)
    return SeqloomTokenizers(
        _build_tokenizer(_build_backend(source, _Other(target, TARGET_MARKER, first=False), options), options, False),
        _build_tokenizer(_build_backend(target, _Other(source, SOURCE_MARKER, first=True), other), other, False),
    )


def ids_of(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Return `tokenizer(texts).input_ids` without the objects that transformers makes of each: a third of the time."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]


def in_normal_form(normalizer: Normalizer | None, texts: Iterable[str]) -> list[str]:
    """Return texts as a tokenizer gives them back: what a model writes can equal nothing else.

    Args:
        normalizer: of the tokenizer; None: it leaves text as it is.
        texts: as people wrote them.
    """
    return [text if normalizer is None or text.isascii() else normalizer.normalize_str(text) for text in texts]


@contextmanager
def tokenizing_in_threads(*, is_on: bool) -> Iterator[None]:
    """Let tokenizers use all cores, or one, where the environment does not say it."""
    if (name := "TOKENIZERS_PARALLELISM") in os.environ:
        yield
        return
    os.environ[name] = str(is_on).lower()
    try:
        yield
    finally:
        del os.environ[name]


@dataclass(frozen=True)
class _Other:
    """The pieces of the other side, as a view spells them."""

    learned: Learned
    marker: str
    first: bool
    """Whether these pieces have the lower ids."""


def _build_backend(own: Learned, other: _Other | None, options: Options) -> Tokenizer:
    """Build the tokenizer that reads text with the pieces of one side and decodes the ids of both."""
    tokenizer = Tokenizer(_model(own, _spelled(own, other), options.kind))
    tokenizer.normalizer = build_normalizer(options.normalization)
    if options.kind != "char":  # without merges every character is a token, wherever it stands
        tokenizer.pre_tokenizer = build_pre_tokenizer(options)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL_TOKENS.index("</s>"))]
    )
    unmark = [] if other is None else [decoders.Replace(Regex(rf"\A{other.marker}"), "")]
    tokenizer.decoder = decoders.Sequence([*unmark, decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return tokenizer


def _spelled(own: Learned, other: _Other | None) -> list[str]:
    """Return all entries in the order of their ids."""
    reserved = [*SPECIAL_TOKENS, *BYTE_TOKENS]
    if other is None:
        return [*reserved, *own.pieces]
    marked = [other.marker + piece for piece in other.learned.pieces]
    return [*reserved, *marked, *own.pieces] if other.first else [*reserved, *own.pieces, *marked]


def _model(own: Learned, entries: list[str], kind: str) -> models.Model:
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


def _build_tokenizer(backend: Tokenizer, options: Options, joint: bool) -> PreTrainedTokenizerFast:
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
        **{SETTINGS_KEY: {"kind": options.kind, "normalization": options.normalization, "joint": joint}},
    )


def _load_one(folder: Path) -> PreTrainedTokenizerFast:
    if not (folder / "tokenizer.json").is_file():
        raise TokenizerError(f"{folder} holds no tokenizer.json; name a folder that a training run has saved.")
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer
