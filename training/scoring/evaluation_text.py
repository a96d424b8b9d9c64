"""The text that a folder is scored on: sources, one or more references each, and columns to group by.

The files are read by training's own readers, so that both see the same lines. But here no row is left out: a score on a
shortened set compares with nobody's.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from seqloom.configuration.data_names import can_follow, data_name
from seqloom.configuration.task_kind import count_rivals
from seqloom.hub.tags import NO_TAGS, TagError, Tags
from seqloom.training.reading.corpus import CorpusError
from seqloom.training.reading.readers import Row
from seqloom.training.reading.sources import Extra, Request, extras_of, open_source
from seqloom.training.reading.tasks import get_task, split_document
from seqloom.training.reading.text_file import Defects, is_blank

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadingOptions:
    """How a test set is read."""

    task: str = "pairs"
    columns: tuple[str, ...] | None = None
    """Names of the task's columns in the file; None: their own."""
    references: tuple[str, ...] = ()
    """Further columns with references."""
    by: tuple[str, ...] = ()
    """Columns by whose values scores are grouped."""
    tags: Tags = NO_TAGS
    """What stands in front of each source; scores are grouped by its columns, too."""
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Read only rows that have one of these values in these columns."""
    merge: bool = False
    """Rows of one source are one example with several references."""
    seed: int = 42
    """Of the cut points of a continuation corpus."""
    num_splits: int = 1


@dataclass(frozen=True)
class EvaluationText:
    """What is to be written, and what would be right."""

    name: str
    """The files, as the user named them."""
    sources: list[str]
    references: list[list[str]]
    """One or more for each source."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """A value for each source, by column."""

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def num_rivals(self) -> int:
        """How many examples have the source of another example, and other references."""
        return count_rivals(self.sources, self.references)

    @property
    def first_references(self) -> list[str]:
        """What forced passes read."""
        return [several[0] for several in self.references]


def read_evaluation_text(names: Sequence[str], options: ReadingOptions) -> EvaluationText:
    """Read a test set.

    Args:
        names: one file, or line-aligned files: the sources and one or more of references.
        options: what is read of it, and how.

    Raises:
        CorpusError: for files that do not fit each other, blank lines, and a set without any.
    """
    name = " + ".join(names)
    if len(names) > 1 and not can_follow(names) and (options.by or options.references or options.where):
        flag = "--by" if options.by else "--references" if options.references else "--where"
        raise CorpusError(
            f"{name} are plain text without columns, and {flag} names some; leave it out (where the run had it, name "
            f"--where none; further files are further references), or give one .tsv, .jsonl, .csv or .parquet file."
        )
    text = _read_documents(names, options) if options.task == "continuation" else _read_pairs(name, names, options)
    if not text.sources:
        raise CorpusError(f"{name} holds nothing to score; a test set needs at least one line with text on both sides.")
    return _merged(text) if options.merge else text


def _read_pairs(name: str, names: Sequence[str], options: ReadingOptions) -> EvaluationText:
    has_columns = len(names) == 1 or can_follow(names)
    if has_columns:
        wanted = options.columns or get_task("pairs").columns
        options = _with_tag_columns(options)
        found = _selected(names, wanted, (*options.references, *options.by), options)
        rows: Iterator[Row] = ((number, (source and tags + source, *rest)) for number, tags, (source, *rest) in found)
    else:
        request = Request(get_task("pairs").columns, True, "test")
        rows = _beside_each_other([open_source([names[0], other], request).rows for other in names[1:]])
    num_references = 1 + len(options.references) if has_columns else len(names) - 1
    text = EvaluationText(name, [], [], {column: [] for column in options.by})
    defects, number = Defects(name, "cannot be scored"), 0
    for number, (source, *others) in rows:
        references = [each for each in others[:num_references] if each is not None and not is_blank(each)]
        if source is None or is_blank(source) or not references:
            defects.add(number, "no source" if references else "no reference" if source else "blank")
            continue
        text.sources.append(source)
        text.references.append(references)
        for column, value in zip(options.by, others[num_references:], strict=True):
            text.columns[column].append(value or "")
    defects.check(number, "Scores on a shortened set compare with nobody's: fill these lines, or remove them yourself.")
    return text


def _selected(
    names: Sequence[str], wanted: tuple[str, ...], extra: tuple[str, ...], options: ReadingOptions
) -> Iterator[tuple[int, str, tuple[str | None, ...]]]:
    """Yield, of the rows that `where` takes, number, tags in front of the first column, and all columns asked for."""
    columns = options.tags.columns
    request = Request(wanted, options.columns is None, "test", selecting=(*extra, *options.where, *columns))
    width, end = len(wanted) + len(extra), len(wanted) + len(extra) + len(options.where)
    has_tags = Extra.TAGS in extras_of(names)
    for name in names:
        if (tag := data_name(name).tag) and tag not in options.tags.known:
            known = " ".join(options.tags.known[:12]) or "none"
            raise CorpusError(f"{name}: no training source had the tag {tag}; they had {known}. Leave it out.")
    for number, values in open_source(names, request).rows:
        conditions = zip(values[width:end], options.where.values(), strict=True)
        if not all(value in allowed for value, allowed in conditions):
            continue
        source, tags = values[0], ""
        if source is not None and not is_blank(source):
            try:
                tagged = options.tags.put_before(source, dict(zip(columns, values[end:], strict=False)).get)
            except TagError as error:
                raise CorpusError(f"{' + '.join(names)} line {number:,}: {error}") from None
            tags = (values[end + len(columns)] or "" if has_tags else "") + tagged.removesuffix(source)
        yield number, tags, values[:width]


def _with_tag_columns(options: ReadingOptions) -> ReadingOptions:
    return replace(options, by=tuple(dict.fromkeys([*options.by, *options.tags.columns])))


def _beside_each_other(streams: Sequence[Iterable[Row]]) -> Iterator[Row]:
    """Yield (source, reference) of the first stream with the references of the others behind it."""
    for rows in zip_longest(*streams):  # each was found as long as the sources
        number, (source, reference) = rows[0]
        yield number, (source, reference, *(texts[1] for _, texts in rows[1:]))


def _read_documents(names: Sequence[str], options: ReadingOptions) -> EvaluationText:
    """Cut documents where training would: row i of the file at the place that seed and i decide."""
    if len(names) > 1:
        raise CorpusError(f"{' '.join(names)}: a continuation model is scored on one file of documents; name one.")
    wanted = options.columns or get_task("continuation").columns
    options = _with_tag_columns(options)
    text = EvaluationText(names[0], [], [], {column: [] for column in options.by})
    index, num_uncut = 0, 0
    for _, tags, (document, *values) in _selected(names, wanted, options.by, options):
        if document is None or is_blank(document):
            continue
        cuts = split_document(document, seed=options.seed, index=index, num_splits=options.num_splits)
        index, num_uncut = index + 1, num_uncut + (not cuts)
        for prompt, continuation in cuts:
            text.sources.append(tags + prompt)
            text.references.append([continuation])
            for column, value in zip(options.by, values, strict=True):
                text.columns[column].append(value or "")
    if num_uncut:
        logger.warning(
            "%s of %s documents are too short to be cut, and are not scored.", f"{num_uncut:,}", f"{index:,}"
        )
    return text


def _merged(text: EvaluationText) -> EvaluationText:
    """Make one example of all rows of a source, each of whose references is right; it is of all their groups at once.

    Rows of other groups may have other references, so the example says nothing of one group alone.
    """
    rows: dict[str, list[int]] = {}
    for row, source in enumerate(text.sources):
        rows.setdefault(source, []).append(row)
    references = [list(dict.fromkeys(each for row in same for each in text.references[row])) for same in rows.values()]
    columns = {
        name: [" + ".join(sorted({values[row] for row in same} - {""})) for same in rows.values()]
        for name, values in text.columns.items()
    }
    return EvaluationText(text.name, list(rows), references, columns)


__all__ = ["EvaluationText", "ReadingOptions", "read_evaluation_text"]
