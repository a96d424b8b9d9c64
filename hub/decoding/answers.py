"""From a source to an answer and to what is said of it: pieces of a long one, outputs, a report, an alignment."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from seqloom.hub.decoding.engines import Engine, Written
from seqloom.hub.decoding.rows import Row
from seqloom.hub.lines import one_line
from seqloom.hub.tags import Tags
from seqloom.hub.word_alignment import UNITS, Units, origins, pharaoh, source_spans, target_spans

MOST_CHARACTERS = 1_000_000
"""Characters of a source that a tokenizer gets to see; it takes seconds for each million."""

LongLines = Literal["refuse", "split"]

BREAKS = (r"(?<=[.!?。！？…؟۔।॥])[\"'”’»」』)]*\s*", r"(?<=[,;:，、；：،؛])\s*", r"\s+")
"""Where a long source may be cut, the best places first: ends of sentences, of clauses, of words."""

REPEATED = 4
"""Tokens in a row that count as repeated when they come again."""


@dataclass(frozen=True)
class Detail:
    """What is known of one output beside its text."""

    tokens: list[str]
    probabilities: list[float]
    """Of each token."""
    repeated: float
    """Share of the rows of `REPEATED` tokens that came before in the same output."""
    uncovered: list[str]
    """Source tokens from which no output token comes."""
    pairs: list[tuple[int, int]]
    """Source unit, output unit: the alignment."""
    counts: tuple[int, int]
    """Units of the source and of the output."""


@dataclass(frozen=True)
class Answer:
    """One output for one source."""

    text: str
    """On one line: line ends that a model writes become spaces."""
    score: float | None = None
    """Sum of the tokens' log-probabilities / length ** length_penalty, the mean over pieces of a split source."""
    is_cut: bool = False
    """Whether it ended because no more tokens were allowed."""
    source_tokens: int = 0
    beyond: int = 0
    """Tokens of the longest source that the model was trained on, if this one is longer."""
    pieces: int = 1
    detail: Detail | None = None
    fault: str | None = None
    """Why there is no output, of a source that the model cannot read."""


def answer(
    engine: Engine,
    rows: Sequence[Row],
    *,
    long_lines: LongLines = "refuse",
    most_tokens: int | None = None,
    prefix: str = "",
    units: Units | None = None,
    seed: int | None = None,
) -> list[list[Answer]]:
    """Answer rows, whatever their lengths.

    Args:
        engine: that writes.
        rows: the input; a blank source has empty outputs.
        long_lines: what becomes of a source that is too long: an empty output with its reason, or pieces.
        most_tokens: of a source or a piece, its end included; None: what the model can read, and of a piece what
            it was trained on.
        prefix: what every output begins with, where its row does not say it.
        units: tell details, with alignments in these units; None: no details.
        seed: for sampling.

    Returns:
        For each row its outputs, best first, as many as `engine.search` asks for.
    """
    copies = engine.search.n_best or 1
    pieces, faults = _pieces_of(engine, rows, long_lines, most_tokens)
    flat = [(place, number, piece) for place, texts in enumerate(pieces) for number, piece in enumerate(texts)]
    written: list[list[Written]] = []
    ids: list[list[int]] = []
    if flat:
        prefixes = ["" if number else rows[place].prefix or prefix for place, number, _ in flat]
        ids = engine.tokenizer([piece for *_, piece in flat]).input_ids
        written = engine.write(
            ids,
            _ids_of(engine, prefixes) if any(prefixes) else None,
            seed=seed,
            in_detail=units is not None,
        )
    groups: list[list[list[Answer]]] = [[] for _ in rows]
    for (place, number, piece), tokens, outputs in zip(flat, ids, written, strict=True):
        added = len(_tags_before(engine, piece)) if number else rows[place].num_added
        found = [_answer_of(engine, piece, tokens, output, units, added) for output in outputs]
        if engine.settings.do_sample:
            found.sort(key=lambda each: each.score or 0.0, reverse=True)
        groups[place].append(found)
    return [
        [_joined([piece[number] for piece in group]) for number in range(copies)]
        if group
        else [Answer("", fault=faults.get(place))] * copies
        for place, group in enumerate(groups)
    ]


def _pieces_of(
    engine: Engine, rows: Sequence[Row], long_lines: LongLines, most_tokens: int | None
) -> tuple[list[list[str]], dict[int, str]]:
    """Return the texts that are written for each row, and why some rows have none."""
    limit, rule = engine.longest_source
    if long_lines == "split" and most_tokens is None:
        most_tokens = engine.trained_source
    if most_tokens is not None and most_tokens < limit:
        limit, rule = most_tokens, f"max_source_tokens={most_tokens:,}"
    pieces: list[list[str]] = [[row.source] if row.source.strip() else [] for row in rows]
    faults = {
        place: f"{len(row.source):,} characters, more than {MOST_CHARACTERS:,}, the most that is tokenized"
        for place, row in enumerate(rows)
        if len(row.source) > MOST_CHARACTERS
    }
    for place in faults:
        pieces[place] = []
    filled = [place for place, texts in enumerate(pieces) if texts]
    ids = engine.tokenizer([rows[place].source for place in filled]).input_ids if filled else []
    for place, tokens in zip(filled, ids, strict=True):
        if len(tokens) <= limit:
            continue
        pieces[place] = _split_behind_tags(engine, rows[place].source, limit) if long_lines == "split" else []
        if long_lines == "refuse":
            faults[place] = f"{len(tokens):,} tokens, more than {rule}"
    return pieces, faults


def _split_behind_tags(engine: Engine, source: str, limit: int) -> list[str]:
    """Cut a source, and put the tags that stand in front of it before each piece."""
    tags = _tags_before(engine, source)
    room = limit - (len(engine.tokenizer(tags).input_ids) - 1 if tags else 0)
    return [tags + piece for piece in split(engine.tokenizer, source[len(tags) :], max(1, room))]


def _tags_before(engine: Engine, source: str) -> str:
    text = Tags.in_settings(engine.tokenizer.init_kwargs).text_of(source)
    return source[: len(source) - len(text)]


def split(tokenizer: Any, text: str, limit: int, breaks: Sequence[str] = BREAKS) -> Iterator[str]:
    """Cut a text into as few pieces as fit, at ends of sentences, else of clauses, of words, else anywhere.

    Args:
        tokenizer: counts the tokens.
        text: to cut.
        limit: most tokens of a piece, its end of sequence included.
        breaks: patterns of the places, the best first.
    """
    if len(tokenizer(text).input_ids) <= limit or len(text) < 2:
        yield text.strip()
        return
    if not breaks:
        middle = len(text) // 2
        yield from split(tokenizer, text[:middle], limit, ())
        yield from split(tokenizer, text[middle:], limit, ())
        return
    places = [match.end() for match in re.finditer(breaks[0], text)]
    parts = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)]) if text[begin:end].strip()]
    sizes = [len(ids) for ids in tokenizer(parts).input_ids] if parts else []
    held, size = "", 0
    for part, tokens in zip(parts, sizes, strict=True):
        if held and size + tokens > limit:
            yield from split(tokenizer, held, limit, breaks[1:])
            held, size = "", 0
        held, size = held + part, size + tokens
    if held.strip():
        yield from split(tokenizer, held, limit, breaks[1:])


def _ids_of(engine: Engine, prefixes: Sequence[str]) -> list[list[int]]:
    """Return prefixes as ids, without the end of sequence."""
    ids = engine.target_tokenizer(list(prefixes)).input_ids
    return [tokens[:-1] if tokens and tokens[-1] in engine.ends else tokens for tokens in ids]


def _answer_of(
    engine: Engine, source: str, ids: Sequence[int], written: Written, units: Units | None, num_added: int
) -> Answer:
    text = engine.tokenizer.decode(written.tokens, skip_special_tokens=True)
    penalty = engine.settings.length_penalty
    length = len(written.log_probs) ** (1.0 if penalty is None else penalty)
    score = sum(written.log_probs) / length if written.log_probs else None
    detail = None if units is None else _detail_of(engine, source, text, ids, written, units, num_added)
    trained = engine.trained_source or len(ids)
    return Answer(one_line(text), score, written.is_cut, len(ids), trained if len(ids) > trained else 0, detail=detail)


def _detail_of(
    engine: Engine, source: str, text: str, ids: Sequence[int], written: Written, units: Units, num_added: int
) -> Detail:
    """Return what there is to say of an output; characters are counted behind the tags that its line does not have."""
    is_end = [token in engine.ends for token in ids]
    assert engine.place is not None
    sources = origins(written.attention, len(written.tokens), is_end, engine.place)
    names = engine.tokenizer.convert_ids_to_tokens(list(ids))
    counts_tokens = units == "tokens"
    here = [] if counts_tokens else source_spans(engine.tokenizer, source)
    there = [] if counts_tokens else target_spans(engine.tokenizer, written.tokens)
    grams = list(zip(*(written.tokens[shift:] for shift in range(REPEATED))))
    again = sum(count - 1 for count in Counter(grams).values())
    pairs = pharaoh(sources, here, there, (source, text), units)
    counts = (len(ids), len(written.tokens)) if counts_tokens else _counts_of((source, text), units)
    if units == "characters" and num_added:
        added = len(UNITS[units](source[:num_added]))
        pairs = [(place - added, other) for place, other in pairs if place >= added]
        counts = counts[0] - added, counts[1]
    return Detail(
        tokens=[engine.tokenizer.decode([token]) for token in written.tokens],
        probabilities=[round(math.exp(value), 4) for value in written.log_probs],
        repeated=round(again / len(grams), 4) if grams else 0.0,
        uncovered=[name for place, name in enumerate(names) if place not in sources and not is_end[place]],
        pairs=pairs,
        counts=counts,
    )


def _joined(pieces: Sequence[Answer]) -> Answer:
    """Return the answer to a source from those to its pieces."""
    if len(pieces) == 1:
        return pieces[0]
    scores = [piece.score for piece in pieces if piece.score is not None]
    gap = " " if any(" " in piece.text for piece in pieces) else ""
    return Answer(
        text=gap.join(piece.text for piece in pieces),
        score=sum(scores) / len(scores) if scores else None,
        is_cut=any(piece.is_cut for piece in pieces),
        source_tokens=sum(piece.source_tokens for piece in pieces),
        beyond=max(piece.beyond for piece in pieces),
        pieces=len(pieces),
        detail=_joined_details([piece.detail for piece in pieces if piece.detail is not None]),
    )


def _counts_of(texts: tuple[str, str], units: Units) -> tuple[int, int]:
    source, target = (len(UNITS[units](text)) for text in texts)
    return source, target


def _joined_details(details: Sequence[Detail]) -> Detail | None:
    if not details:
        return None
    pairs, (sources, targets) = [], (0, 0)
    for detail in details:
        pairs += [(source + sources, target + targets) for source, target in detail.pairs]
        sources, targets = sources + detail.counts[0], targets + detail.counts[1]
    return Detail(
        tokens=[token for detail in details for token in detail.tokens],
        probabilities=[value for detail in details for value in detail.probabilities],
        repeated=max(detail.repeated for detail in details),
        uncovered=[token for detail in details for token in detail.uncovered],
        pairs=pairs,
        counts=(sources, targets),
    )


__all__ = ["Answer", "Detail", "LongLines", "answer", "split"]
