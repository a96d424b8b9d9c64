"""The table of faults: name, harm, meaning, remedy, and for faults of single rows the function that finds them.

A function looks at a whole batch and returns one truth value per row. A fault with a more exact name hides the vaguer
ones of the same row (`hides`): a copy is not also called foreign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import regex

from seqloom.training.checking.column_facts import MIN_LETTERS, SPREADS, ColumnFacts, scripts_of
from seqloom.training.checking.text_batch import (
    CONTROL,
    INVISIBLE,
    SEPARATOR,
    SPACE,
    UNASSIGNED,
    Batch,
    Side,
)
from seqloom.training.reading.text_file import is_blank

Finder = Callable[[Batch, ColumnFacts], np.ndarray]
"""Batch of R rows -> whether each has the fault, (R,)."""


class Harm(IntEnum):
    """How much a fault hurts; what training refuses is worst."""

    note = 0
    doubtful = 1
    harmful = 2
    refused = 3


@dataclass(frozen=True)
class Rule:
    """One kind of fault."""

    name: str
    harm: Harm
    meaning: str
    """What is wrong, after "12 rows: "."""
    remedy: str = ""
    """What helps; "": the message of the finding says it."""
    cleaned: str | None = None
    """The first value of `clean` that leaves such rows out: default, strict; None: neither does."""
    find: Finder | None = None
    """None: found in the file or in all rows together."""
    hides: tuple[str, ...] = ()
    """Rules that say nothing new of a row that has this fault."""


# Rows one by one ------------------------------------------------------------------------------------------------------

TAG = r"</?[A-Za-z][A-Za-z0-9:-]*(?:\s+[^<>\n]{0,200})?/?>|<!--|<!\w"
ENTITY = r"&(?:[A-Za-z][A-Za-z0-9]{1,9}|#\d{1,6}|#x[0-9A-Fa-f]{1,5});"
ADDRESS = r"\b(?:https?|ftp)://\S|\bwww\.\w+\.\w"
WIKI = r"\[\[[^\[\]\n]+\]\]|\{\{[^{}\n]+\}\}|\[/?(?:b|i|u|url|img|quote)(?:=[^\[\]\n]{0,200})?\]"
LATEX = r"\\(?:begin|end|textbf|emph|cite)\{"
MARKUP = regex.compile(f"{TAG}|{ENTITY}|{ADDRESS}|{WIKI}|{LATEX}")

SPECIAL = regex.compile(
    r"</?(?:s|w|pad|unk|mask|bos|eos|sep|cls|extra_id_\d+|PAD|UNK|MASK|BOS|EOS|SEP|CLS|S|2[a-z]{2,3})>"
    r"|<\|[^|<>\n]{1,30}\|>|\[(?:CLS|SEP|PAD|MASK|UNK|BOS|EOS|INST|/INST)\]|<<SYS>>|__[a-z]{2,3}__|▁|@@(?=\s|$)|(?<!\S)##(?=\p{L})"
    r"|[<＜]｜[^\n]{1,30}｜[>＞]",
    regex.MULTILINE,
)
"""Strings that Marian, BERT, T5, GPT, Llama, SentencePiece and subword-nmt give a meaning of their own."""

PLACEHOLDER = regex.compile(
    r"\\[nrt](?!\p{L})|%(?:\d+\$)?[sd](?!\p{L})|(?<![\p{L}\d])\{(?:\d+|[a-z_]+)\}|\$\{\w+\}|%\(\w+\)s|\{\{\w+\}\}"
)
"""Gaps of program texts: \\n, %s, {0}, {name}, ${name}."""

MOJIBAKE = regex.compile(
    r"[\u0080-\u00ff\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013\u2014\u2018-\u201e\u2020-\u2022"
    r"\u2026\u2030\u2039\u203a\u20ac\u2122]{2,}"
)
"""Runs of what the bytes 0x80 to 0xFF are in Windows-1252."""

_LETTERS_AND_MARKS = regex.compile(r"(\p{L}+)([\p{P}™®]+)")

STACKED = regex.compile(r"\p{Mn}{5,}")
"""More marks on one letter than any language has."""

REPEATED = regex.compile(r"(?<!\S)(\S{1,40})(?:\s+\1){5,}(?!\S)")
"""One word six times in a row."""

LONE_QUOTE = regex.compile(r'^"[^"\n]*$', regex.MULTILINE)

LONGEST_RUN = 15
"""One character so many times in a row."""


def any_side(find: Callable[[Side], np.ndarray]) -> Finder:
    """A finder for a fault that either side may have."""
    return lambda batch, _: np.logical_or.reduce([find(side) for side in batch.sides])


def has_kind(bits: int) -> Finder:
    """A finder for rows with characters of a kind."""
    return any_side(lambda side: side.kinds & bits > 0)


def has_special(batch: Batch, _: ColumnFacts) -> np.ndarray:
    """Find special tokens, and gaps of program texts."""
    return np.logical_or.reduce([side.matches(SPECIAL) | side.matches(PLACEHOLDER) for side in batch.sides])


def has_markup(batch: Batch, _: ColumnFacts) -> np.ndarray:
    """Find tags, entities, addresses and marks of wikis, without what is a special token or a gap."""
    found = np.zeros(len(batch), bool)
    for side in batch.sides:
        for row, text in side.rows_where(side.matches(MARKUP)):
            found[row] |= bool(MARKUP.search(PLACEHOLDER.sub("", SPECIAL.sub("", text))))
    return found


def is_garbled(side: Side) -> np.ndarray:
    """Find text that was decoded wrongly: UTF-8 read as Windows-1252, replacement and private characters."""
    found = (side.kinds & UNASSIGNED > 0) | side.matches(STACKED)
    for row, text in side.rows_where(side.matches(MOJIBAKE)):
        found[row] |= any(_was_utf8(run[0]) and not _ends_a_word(run) for run in MOJIBAKE.finditer(text))
    return found


def _ends_a_word(run: regex.Match[str]) -> bool:
    """Whether letters that fit the word before, and marks behind them, are no more than the end of a quotation.

    „MENÜ“ and PERÚ… are bytes of UTF-8 by chance. In text that was decoded wrongly the letter is a capital amid small
    ones (fÃ¼r), or has a letter behind its mark; Â stands before no-break spaces and » alone.
    """
    parts = _LETTERS_AND_MARKS.fullmatch(run[0])
    before, after = run.string[: run.start()][-1:], run.string[run.end() :][:1]
    if parts is None or "Â" in parts[1] or after.isalpha():
        return False
    if before.isalpha():
        return before.isupper() == parts[1].isupper()
    return len(parts[1]) == 1 and parts[1] != "Ã"


def _was_utf8(run: str) -> bool:
    try:
        raw = b"".join(
            bytes([ord(character)]) if ord(character) < 256 else character.encode("cp1252") for character in run
        )
        return raw.decode("utf-8") != run and raw[0] != 0xDF  # "ß„" ends a German quotation
    except UnicodeError:
        return False


def is_repetitive(side: Side) -> np.ndarray:
    """Find one character or one word over and over."""
    changes = np.flatnonzero(np.diff(side.codes, prepend=0xFFFFFFFF, append=0xFFFFFFFF))
    runs = changes[:-1][np.diff(changes) >= LONGEST_RUN]
    runs = runs[side.codes[runs] != 10]  # rows without text
    found = np.zeros(len(side.texts), bool)
    found[np.searchsorted(side.starts, runs, "right") - 1] = True
    for row, text in side.rows_where(side.num_spaces >= 5):
        words = text.split(" ")
        if len(set(words)) * 1.5 < len(words):
            found[row] |= bool(REPEATED.search(text))
    return found


def has_blank_side(batch: Batch, _: ColumnFacts) -> np.ndarray:
    """Find rows with a blank side."""
    found = np.zeros(len(batch), bool)
    for side in batch.sides:
        for row, text in side.rows_where(side.num_letters == 0):
            found[row] |= is_blank(text)
    return found


def has_blank_target(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find blank targets of the test split, which training refuses."""
    if facts.split != "test" or not batch.is_pairs:
        return np.zeros(len(batch), bool)
    return has_blank_side(Batch(batch.numbers, batch.sides[1:]), facts)


def has_unknown(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find rows with a character that the training text does not have on this side."""
    found = np.zeros(len(batch), bool)
    for side, known in zip(batch.sides, facts.known):
        is_unknown = ~known[side.codes]
        is_unknown[side.starts + side.lengths] = False
        found |= side.sum(is_unknown.astype(np.int32)) > 0
    return found


def is_copy(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find targets that are their source, but for case and punctuation; phones are its letters with other spaces."""
    if not batch.is_pairs:
        return np.zeros(len(batch), bool)
    source, target = batch.sides
    return (source.near == target.near) & (source.num_letters > 0) & (source.num_spaces == target.num_spaces)


def is_swapped(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find pairs whose sides stand in each other's place: by their scripts, or by their trigrams."""
    if facts.has_own_scripts:
        return np.logical_and.reduce(_in_each_others_script(batch, facts))
    if facts.trigrams is None:
        return np.zeros(len(batch), bool)
    source, target = (_leaning(side, facts) for side in batch.sides)
    is_long = batch.sides[0].num_letters + batch.sides[1].num_letters >= 2 * MIN_LETTERS
    return is_long & (source < 0) & (target > 0) & (target - source > LEANS_TOGETHER)


def _leaning(side: Side, facts: ColumnFacts) -> np.ndarray:
    """Where each row stands: 1 like most of the source's side, -1 like most of the target's."""
    likeness = facts.likeness(side)
    return np.where(likeness > 0, likeness / facts.usual[0], -likeness / facts.usual[1])


LEANS_TOGETHER, LEANS = 0.7, 0.5
"""How far both sides together, and one alone, must lean to the wrong side; 2 and 1 are usual on the right one."""


def is_other_language(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find rows of which one side is written in the other's language: by its script, or by its trigrams."""
    if facts.has_own_scripts:
        return np.logical_or.reduce(_in_each_others_script(batch, facts))
    if facts.trigrams is None:
        return np.zeros(len(batch), bool)
    found = np.zeros(len(batch), bool)
    for side, right in zip(batch.sides, (1, -1)):
        found |= (side.num_letters >= MIN_LETTERS) & (_leaning(side, facts) * right < -LEANS)
    return found


def _in_each_others_script(batch: Batch, facts: ColumnFacts) -> list[np.ndarray]:
    return [_is_written_in(side, usual) for side, usual in zip(batch.sides, reversed(facts.scripts))]


def _is_written_in(side: Side, usual: np.ndarray) -> np.ndarray:
    """Whether nearly all letters of each row belong to some scripts."""
    scripts, num_letters = scripts_of(side)
    return (num_letters > 0) & (side.sum(usual[scripts].astype(np.int32)) * 5 > num_letters * 4)


def is_other_script(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find rows of which most letters on a side belong to no script of its column."""
    found = np.zeros(len(batch), bool)
    for side, usual in zip(batch.sides, facts.scripts):
        scripts, num_letters = scripts_of(side)
        if usual.any():
            num_usual = side.sum(usual[scripts].astype(np.int32))
            found |= (num_letters >= 3) & (num_usual * 5 < num_letters)
    return found


def is_odd_ratio(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find pairs of which one side is far longer than it should be for the other."""
    if facts.log_ratio is None:
        return np.zeros(len(batch), bool)
    off = np.abs(batch.log_ratio - facts.log_ratio.median)
    return off > max(LEAST_RATIO, SPREADS * facts.log_ratio.deviation * 0.75)


LEAST_RATIO = 0.9
"""Off by less than a factor of 2.5, no ratio is odd."""


def is_odd_length(batch: Batch, facts: ColumnFacts) -> np.ndarray:
    """Find rows far longer than the others."""
    found = np.zeros(len(batch), bool)
    for side, usual in zip(batch.sides, facts.log_lengths):
        logs = np.log1p(side.lengths)
        found |= (usual.excess(logs) > SPREADS) & (side.lengths > LEAST_LONG)
    return found


LEAST_LONG = 200
"""Characters; a shorter row is never too long."""


# The table, worst first -----------------------------------------------------------------------------------------------

_FOREIGN = "Remove these rows, or train with --clean default."
RULES = {
    rule.name: rule
    for rule in (
        Rule("unreadable", Harm.refused, "cannot be read"),
        Rule("encoding", Harm.refused, "lines are not UTF-8"),
        Rule("line-counts", Harm.refused, "the two files have different numbers of lines"),
        Rule("columns", Harm.refused, "it is not clear which columns are meant"),
        Rule("record", Harm.refused, "lines cannot be used"),
        Rule("no-rows", Harm.refused, "there are no rows", "Check that it is the right file."),
        Rule(
            "blank-test",
            Harm.refused,
            "targets of the test split are blank",
            "Fill or remove these rows: scores on fewer rows compare with nobody's.",
            find=has_blank_target,
            hides=("blank",),
        ),
        Rule(
            "shifted",
            Harm.harmful,
            "a line is missing on one side: from here on source and target do not belong together",
            "Find the missing line, or remove the part that is shifted on both sides.",
        ),
        Rule(
            "leak",
            Harm.harmful,
            "pairs of this split are in the training text too, but for case and punctuation",
            "Remove them from the training text, or train with --clean default.",
            "default",
        ),
        Rule(
            "leak-source",
            Harm.harmful,
            "sources of this split are in the training text, with another target",
            "Remove them from the training text, or train with clean: strict.",
            "strict",
        ),
        Rule(
            "unread-column",
            Harm.harmful,
            "a column that is not read tells which target is wanted",
            "Add the flags that it names, here and in training.",
        ),
        Rule(
            "swapped",
            Harm.harmful,
            "source and target look as if they stood in each other's place",
            "Swap them back, or train with --clean default.",
            "default",
            is_swapped,
            ("language", "script", "ratio"),
        ),
        Rule(
            "script",
            Harm.harmful,
            "most letters of a side are in another script than its column",
            _FOREIGN,
            "default",
            is_other_script,
            ("ratio",),
        ),
        Rule(
            "copy",
            Harm.harmful,
            "the target is the source again",
            _FOREIGN,
            "default",
            is_copy,
            ("language", "swapped", "script", "ratio"),
        ),
        Rule(
            "language",
            Harm.harmful,
            "a side looks like the other side's language",
            _FOREIGN,
            "default",
            is_other_language,
            ("ratio", "script"),
        ),
        Rule(
            "garbled",
            Harm.harmful,
            "text was decoded wrongly once (Ã¤ for ä), or holds characters that mean nothing",
            "Take the text from its source again; ftfy repairs much of it.",
            "default",
            any_side(is_garbled),
        ),
        Rule(
            "special-token",
            Harm.doubtful,
            "strings that tokenizers and templates give a meaning of their own",
            "Trained on, they are text like any other; remove them if they are left over from another tool.",
            "strict",
            has_special,
        ),
        Rule(
            "ratio",
            Harm.doubtful,
            "one side is far longer than it should be for the other",
            _FOREIGN,
            "default",
            is_odd_ratio,
        ),
        Rule(
            "length",
            Harm.doubtful,
            "rows far longer than the others",
            "Break them up, or set max_source_length and max_target_length.",
            "strict",
            is_odd_length,
        ),
        Rule(
            "repetition",
            Harm.note,
            "one word or character over and over",
            "Look at them; where the task does not write so, train with clean: strict.",
            "strict",
            any_side(is_repetitive),
        ),
        Rule(
            "markup",
            Harm.doubtful,
            "tags, entities, addresses or marks of a wiki",
            "Strip them from the text, or train with clean: strict.",
            "strict",
            has_markup,
            ("ratio", "language"),
        ),
        Rule(
            "separator",
            Harm.doubtful,
            r"characters that other programs end lines with (U+2028, VT, a lone \r)",
            "Replace them by spaces: such programs count other lines.",
            "strict",
            has_kind(SEPARATOR),
        ),
        Rule(
            "lone-quote",
            Harm.doubtful,
            "a side begins with a quotation mark that nothing closes",
            "If the file was written as CSV, read it as such; otherwise remove the mark.",
            None,
            any_side(lambda side: side.matches(LONE_QUOTE)),
        ),
        Rule(
            "control",
            Harm.doubtful,
            "control characters, or marks that turn the direction of writing",
            "Remove these characters.",
            "default",
            has_kind(CONTROL),
        ),
        Rule(
            "invisible",
            Harm.doubtful,
            "characters that nobody sees: soft hyphens, zero-width spaces, byte order marks",
            "Remove these characters.",
            "strict",
            has_kind(INVISIBLE),
        ),
        Rule(
            "space",
            Harm.note,
            "blanks that look like a space and are none (no-break, thin)",
            "The model learns each as a character of its own; where they mean nothing, replace them by spaces.",
            None,
            has_kind(SPACE),
        ),
        Rule(
            "blank",
            Harm.doubtful,
            "a side is empty or blank",
            "Training leaves them out, and says how many.",
            None,
            has_blank_side,
            ("ratio", "language", "swapped", "invisible", "copy"),
        ),
        Rule(
            "duplicate",
            Harm.doubtful,
            "pairs that stood there before",
            "Train with --clean default, if they are not meant to count more.",
            "default",
        ),
        Rule(
            "near-duplicate",
            Harm.note,
            "pairs that stood there before, but for case and punctuation",
            "Train with clean: strict, if they are not meant.",
            "strict",
        ),
        Rule(
            "leak-target",
            Harm.note,
            "targets of this split are in the training text, with another source",
            "Usual for short texts and phones; see whether there are many.",
        ),
        Rule(
            "unknown-character",
            Harm.note,
            "characters that the training text does not have on this side",
            "The model cannot know them; see that training and test text were written alike.",
            None,
            has_unknown,
        ),
        Rule("crlf", Harm.note, "lines end in CR LF", "The CR is removed while reading."),
        Rule("byte-order-mark", Harm.note, "the file begins with a byte order mark", "It is removed while reading."),
    )
}


def find_faults(batch: Batch, facts: ColumnFacts) -> dict[str, np.ndarray]:
    """Return rule -> which rows of a batch have the fault, where any has; hidden ones are left out."""
    found = {rule.name: rule.find(batch, facts) for rule in RULES.values() if rule.find}
    for rule in RULES.values():
        if rule.find:
            for hidden in rule.hides:
                found[hidden] &= ~found[rule.name]
    return {name: mask for name, mask in found.items() if mask.any()}
