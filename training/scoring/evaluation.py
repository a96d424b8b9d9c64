"""`seqloom evaluate`: from a folder and a test set to scores, written outputs, and a page for people.

test set     files as training reads them            evaluation_text.py
  |
answers      written by the folder; forced passes    system_answers.py
  |
sums         a metric's counts a sentence, once      metrics.py
  |---> value, interval, paired difference           confidence.py
  |---> the same for parts of the set                groups.py, nearness.py
  v
outputs.tsv, outputs.jsonl, output.txt, reference.txt, scores.json, evaluation.html
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import eq, ne
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.configuration.recipe import Recipe, selection_of
from seqloom.configuration.task_kind import Looks, kind_of
from seqloom.hub.decoding.rows import format_of
from seqloom.hub.files import read_object
from seqloom.hub.lines import one_line, read_lines
from seqloom.hub.model_card import Score
from seqloom.hub.tags import Tags
from seqloom.training.confidence import Difference, interval, paired_test
from seqloom.training.metrics import LOWER_IS_BETTER, METRICS, SentenceSums, bleu_tokenizer_for, get_metrics
from seqloom.training.parent import recipe_of, records_of
from seqloom.training.preparation import read_training
from seqloom.training.reading.corpus import CorpusError
from seqloom.training.scoring.evaluation_text import EvaluationText, ReadingOptions, read_evaluation_text
from seqloom.training.scoring.groups import Breakdown, breakdowns
from seqloom.training.scoring.nearness import Nearness, near_training
from seqloom.training.scoring.system_answers import Answers, answer
from seqloom.training.settings import metrics_for, seed_of
from seqloom.training.tokenizer import in_normal_form

OF_CHARACTERS = frozenset({"bits_per_character"})
"""Scores of forced passes that do not depend on how a text is cut into tokens."""

SENTENCE_METRICS = ("per", "cer", "chrf", "chrf++", "ter")
"""Those that say something of one sentence; the first that is asked for sorts the examples, or what suits the kind."""


class EvaluationError(ValueError):
    """What cannot be scored; the message says why and what helps."""


@dataclass(frozen=True)
class Row:
    """One score of the set."""

    metric: str
    label: str
    """What it counts, for a person."""
    value: float
    interval: tuple[float, float] | None
    """95 %; None: one sentence alone."""
    is_lower_better: bool
    signature: str = ""
    other: float | None = None
    """The score of the system that is compared with."""
    difference: Difference | None = None
    """This system minus the other."""


@dataclass(frozen=True)
class Evaluation:
    """All that is known of a folder's answers to a test set."""

    folder: str
    text: EvaluationText
    answers: Answers
    rows: list[Row]
    sentence_metric: str
    sentence_scores: np.ndarray
    """(sentences,)"""
    groups: list[Breakdown]
    nearness: Nearness | None
    memory: dict[str, float]
    """What copying the target of the nearest training line would score, by metric."""
    other: Answers | None = None
    other_scores: np.ndarray | None = None
    """(sentences,) of the system that is compared with."""
    notes: tuple[str, ...] = ()
    """What a reader has to know, each a sentence."""

    @cached_property
    def by_words(self) -> bool:
        """Whether outputs are words or phones between spaces, and not characters."""
        return self.sentence_metric == "per" or bleu_tokenizer_for(self.text.first_references) == "13a"

    @property
    def order(self) -> np.ndarray:
        """Sentences from the worst to the best; of equal ones the longer reference first."""
        sign = -1 if self.sentence_metric in LOWER_IS_BETTER else 1
        lengths = [len(text) for text in self.text.first_references]
        return np.lexsort((-np.array(lengths), sign * self.sentence_scores))


@dataclass(frozen=True)
class EvaluationOptions:
    """What a person may choose."""

    columns: tuple[str, ...] | None = None
    references: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    where: tuple[str, ...] | None = None
    """Conditions COLUMN=VALUE; (): every row; None: what the run selected."""
    merge: bool = False
    task: str | None = None
    metrics: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    num_beams: int | None = None
    max_new_tokens: int | None = None
    compare: str | None = None


def evaluate_folder(
    folder: str | PathLike[str], test: Sequence[str], options: EvaluationOptions = EvaluationOptions()
) -> Evaluation:
    """Score a folder on a test set.

    Args:
        folder: a trained model.
        test: one file, or line-aligned files: sources and one or more of references.
        options: what was chosen; the rest is as the run that made the folder had it.

    Raises:
        ValueError: for whatever cannot be read, decoded or scored, with the remedy.
    """
    recipe = recipe_of(folder)
    task = options.task or (recipe.task if recipe else "pairs")
    get_metrics(options.metrics)
    reading = _reading(folder, recipe, task, options)
    text = read_evaluation_text(test, reading)
    other_outputs = _other_outputs(options.compare, text, reading)
    is_continuation = task == "continuation"
    decoding: dict[str, Any] = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    other = other_outputs
    if options.compare and other is None:
        tags, theirs = Tags.of(folder), Tags.of(options.compare)
        if tags.columns != theirs.columns or (tags.columns and tags.known != theirs.known):  # others stand in the text
            raise EvaluationError(
                f"{options.compare} knows other tags than {folder}, and one text would be read with those of one; "
                f"evaluate {options.compare} by itself, and compare with the outputs.jsonl that this writes."
            )
    answers = answer(folder, text, is_continuation=is_continuation, **decoding)
    if options.compare and other is None:
        other = answer(options.compare, text, is_continuation=is_continuation, **decoding)
    names = options.metrics or _usual_metrics(recipe, task, text)
    written = [[one_line(each) for each in several] for several in text.references]
    references = [in_normal_form(answers.normalizer, several) for several in written]
    num_rewritten = sum(map(ne, written, references))
    text = replace(text, references=references)
    other = other and replace(other, outputs=in_normal_form(answers.normalizer, other.outputs))
    sums = {name: METRICS[name](answers.outputs, references) for name in names}
    forced = answers.forced or {}
    if not sums and not forced:
        raise EvaluationError(
            f"{folder} can read none of {len(text):,} examples: each has a side with more tokens than there are "
            "learned positions; score what it writes, e.g. --metrics chrf, or shorter texts."
        )
    near, training_note = _look_at_training(recipe, folder, options, text)
    shown = {**sums, **forced}
    sentence_metric, sentence = _sentence_sums(sums, forced, answers, text)
    memory = {}
    if near and task == "pairs":
        copied = in_normal_form(answers.normalizer, [one_line(line.target) for line in near.nearest])
        memory = {name: METRICS[name](copied, references).value for name in names}
    lead = next(iter(shown))
    return Evaluation(
        folder=str(folder),
        text=text,
        answers=answers,
        rows=_rows(sums, forced, answers, other, references),
        sentence_metric=sentence_metric,
        sentence_scores=sentence.per_sentence(),
        groups=breakdowns(text, {lead: shown[lead], sentence_metric: sentence}, near),
        nearness=near,
        memory=memory,
        other=other,
        other_scores=_other_sentence_scores(sentence_metric, other, references),
        notes=tuple(filter(None, (*_notes(text, answers, other, near, sums, num_rewritten), training_note))),
    )


def _reading(
    folder: str | PathLike[str], recipe: Recipe | None, task: str, options: EvaluationOptions
) -> ReadingOptions:
    columns = options.columns
    if columns is None and recipe and recipe.columns and recipe.task == task:
        columns = tuple(recipe.columns)
    conditions = list(options.where if options.where is not None else recipe.where if recipe else ())
    for condition in conditions:
        if not re.fullmatch(r"[^=]+=.+", condition, re.DOTALL):
            raise EvaluationError(f"where={condition} names no column and value; write COLUMN=VALUE, or none alone.")
    where, tags = selection_of(conditions), Tags.of(folder)
    reading = ReadingOptions(task, columns, options.references, options.by, tags, where, options.merge)
    return replace(reading, seed=seed_of(recipe), num_splits=recipe.num_splits) if recipe else reading


def _usual_metrics(recipe: Recipe | None, task: str, text: EvaluationText) -> tuple[str, ...]:
    """Return what the run scored, and what suits the targets where it has named nothing."""
    if recipe and recipe.metrics:
        return tuple(recipe.metrics)
    if task == "continuation":
        return ()
    usual = _metrics_of_kind(text)
    return metrics_for(recipe, usual) if recipe else usual


def _metrics_of_kind(text: EvaluationText) -> tuple[str, ...]:
    looks = Looks.of(text.sources, text.first_references)
    return kind_of(looks).scores(looks)


# Another system ------------------------------------------------------------------------------------------------------


def _other_outputs(compare: str | None, text: EvaluationText, reading: ReadingOptions) -> Answers | None:
    """Read another system's outputs from a file; None where it is a folder, or nothing."""
    if compare is None or Path(compare).is_dir():
        return None
    if not Path(compare).is_file():
        raise EvaluationError(f"compare={compare} is neither a folder nor a file of outputs; check the spelling.")
    lines, kind = read_lines(compare), format_of(compare)
    if kind == "jsonl":
        rows = [_row_of(line, compare, number) for number, line in enumerate(lines, start=1)]
    elif kind == "tsv" and lines:
        rows = _rows_of_table(lines, compare)
    else:
        rows = [{"output": line} for line in lines]
    if len(rows) != len(text):
        raise EvaluationError(
            f"{compare} has {len(rows):,} outputs and {text.name} {len(text):,} examples; each needs one, in the same "
            f"order."
        )
    if reading.task == "pairs" and (reading.columns or ("source",))[0] == "source":  # else it may be any column
        for number, (row, source) in enumerate(zip(rows, text.sources, strict=True), start=1):
            theirs = row.get("source", source)
            if theirs.split() not in (source.split(), reading.tags.text_of(source).split()):
                raise EvaluationError(
                    f"output {number:,} of {compare} has the source {theirs[:60]!r}, and example {number:,} of "
                    f"{text.name} {source[:60]!r}; compare outputs for the same examples, in the same order."
                )
    return Answers(compare, [one_line(row["output"]) for row in rows])


def _rows_of_table(lines: Sequence[str], name: str) -> list[dict[str, str]]:
    names, *rows = (line.split("\t") for line in lines)
    if "output" not in names:
        raise EvaluationError(f"{name} has no column output, only {', '.join(names)}; name it so.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise EvaluationError(
                f"{name} line {number:,} has {len(row)} columns and its first line {len(names)}; mend it, or write the "
                f"outputs alone, one a line."
            )
    return [dict(zip(names, row, strict=True)) for row in rows]


def _row_of(line: str, name: str, number: int) -> dict[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not isinstance(row.get("output"), str):
        raise EvaluationError(f"{name} line {number:,} is no JSON object with a text as its output; write one a line.")
    return {key: value for key, value in row.items() if isinstance(value, str)}


def _other_sentence_scores(metric: str, other: Answers | None, references: list[list[str]]) -> np.ndarray | None:
    if other is None:
        return None
    if metric in METRICS:
        return METRICS[metric](other.outputs, references).per_sentence()
    return other.forced[metric].per_sentence() if other.forced else None


# Scores --------------------------------------------------------------------------------------------------------------


def _rows(
    sums: Mapping[str, SentenceSums],
    forced: Mapping[str, SentenceSums],
    answers: Answers,
    other: Answers | None,
    references: list[list[str]],
) -> list[Row]:
    rows = []
    for name, each in {**sums, **forced}.items():
        theirs = None
        if other and name in sums:
            theirs = METRICS[name](other.outputs, references)
        elif other and other.forced and (name in OF_CHARACTERS or other.vocabulary == answers.vocabulary):
            theirs = other.forced.get(name)
            theirs = theirs if theirs and np.array_equal(theirs.values[:, 1], each.values[:, 1]) else None  # read alike
        difference = None  # also where the bits of the one are exact, and those of the other a bound
        if other and theirs is not None and len(references) > 1 and theirs.signature == each.signature:
            outputs = (answers.outputs, other.outputs, references) if name in sums else None
            difference = paired_test(each, theirs, outputs)
        bounds = interval(each) if len(references) > 1 else None
        label = Score("test", name, each.value, signature=each.signature or None).name
        value = theirs.value if theirs is not None else None
        rows.append(Row(name, label, each.value, bounds, name in LOWER_IS_BETTER, each.signature, value, difference))
    return rows


def _sentence_sums(
    sums: Mapping[str, SentenceSums],
    forced: Mapping[str, SentenceSums],
    answers: Answers,
    text: EvaluationText,
) -> tuple[str, SentenceSums]:
    """Return the metric by which examples are sorted, and its sums: asked for, or usual for the kind, or bits."""
    for name in SENTENCE_METRICS:
        if name in sums:
            return name, sums[name]
    if "bits_per_character" in forced and not sums:
        return "bits_per_character", forced["bits_per_character"]
    usual = _metrics_of_kind(text)
    name = next(name for name in SENTENCE_METRICS if name in usual)
    return name, METRICS[name](answers.outputs, text.references)


def _notes(
    text: EvaluationText,
    answers: Answers,
    other: Answers | None,
    near: Nearness | None,
    sums: Mapping[str, SentenceSums],
    num_rewritten: int,
) -> list[str]:
    """Say what a number in the table does not."""
    notes = []
    if num_rewritten:
        notes.append(
            f"The references of {num_rewritten:,} of {len(text):,} examples are scored in the Unicode form that "
            f"{answers.name} writes, and so is all that is compared with it."
        )
    if text.num_rivals:
        notes.append(
            f"{text.num_rivals:,} of {len(text):,} examples have a source that others have with another reference, "
            "and one output cannot equal both; --any_reference takes each of them as right."
        )
    if answers.is_cut is not None and answers.is_cut.any():
        notes.append(
            f"{int(answers.is_cut.sum()):,} of {len(text):,} outputs were cut before their end, for they reached the "
            f"longest output that is allowed, and are scored as they are; --max_new_tokens allows longer ones."
        )
    if answers.beyond is not None and answers.beyond.any():
        number = int((answers.beyond > 0).sum())
        notes.append(
            f"{number:,} of {len(text):,} sources are longer than {int(answers.beyond.max()):,} tokens, the "
            f"longest of the training; of such lengths a model has learned nothing."
        )
    if answers.num_too_long:
        notes.append(f"{answers.num_too_long:,} sources are too long for the model; their outputs are empty.")
    if answers.num_unread:
        notes.append(
            f"{answers.num_unread:,} of {len(text):,} examples have a side with more tokens than the model has learned "
            f"positions, and are in no score that reads the references ({', '.join(answers.forced or ['perplexity'])})."
        )
    sources = [line.source for line in near.nearest] if near else [""] * len(text)
    learned = np.array(list(map(eq, sources, text.sources)))
    if learned.any():
        others = {name: each.of(np.flatnonzero(~learned)).value for name, each in sums.items()} if sums else {}
        shown = f"; the others score {', '.join(f'{name} {value:.2f}' for name, value in others.items())}"
        notes.append(
            f"{int(learned.sum()):,} of {len(text):,} sources are training sources, which proves nothing"
            f"{shown if others and not learned.all() else ''}."
        )
    if other and any(each.sacrebleu for each in sums.values()):
        notes.append(
            "p by bootstrap is sacreBLEU's own for BLEU, chrF and TER, about half of that of a test to both sides; for "
            "other scores it is of such a test."
        )
    return notes


def _look_at_training(
    recipe: Recipe | None, folder: str | PathLike[str], options: EvaluationOptions, text: EvaluationText
) -> tuple[Nearness | None, str]:
    """Return what the training text says of the test set, or why nothing can be said."""
    if not options.training and (recipe is None or recipe.is_demo):
        why = "was the built-in demo" if recipe else "is not recorded in the folder"
        return None, f"The training text {why}; with --train FILES examples are compared with it."
    files = list(options.training) or (recipe.train if recipe else [])
    try:
        training, fingerprint = read_training(recipe, files)
    except CorpusError as error:
        if options.training:
            raise
        return (
            None,
            f"The training text cannot be read here ({str(error).rstrip('.')}); --train FILES says where it is.",
        )
    known = (read_object(records_of(folder) / "data.json") or {}).get("train", {}).get("fingerprint")
    changed = not options.training and known not in (None, fingerprint)
    note = f"The text in {' and '.join(files)} is not the one that was trained on; it has changed." if changed else ""
    return near_training(training, text.sources, Tags.of(folder)), note


__all__ = ["Evaluation", "EvaluationError", "EvaluationOptions", "Row", "evaluate_folder"]
