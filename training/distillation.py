"""Distillation: a model learns what a larger one, or several together, write for its sources (Kim & Rush 2016).

    training text, what is held out left out ---+
                                                +--> sources.jsonl --teachers--> outputs.jsonl --> train*.jsonl ---+
    unlabelled text ----------------------------+                                                                  v
    validation, test: with their own targets --------------------> validation.jsonl, test.jsonl --------------> `train`

All lies in OUTPUT-distilled. The teachers' work is what takes long: it is committed window by window, as everything
that `generate` writes, and not done again once it is whole. https://aclanthology.org/D16-1139
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from datasets import Dataset

from seqloom.configuration.data_names import TAG, DataName, can_follow, data_name, format_of
from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.hub.decoding.journal import JournalError
from seqloom.hub.files import files_made_from, read_object, sha256_of
from seqloom.hub.generate import Job, Search, UnansweredError, generate_file
from seqloom.hub.quoting import shell
from seqloom.hub.tags import FEATURES_END, Tags
from seqloom.modeling.canary import write_whole
from seqloom.training.fault_tolerance.ownership import refuse_foreign
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.monitoring.console import say
from seqloom.training.preparation import read_corpus
from seqloom.training.reading.corpus import load_corpus
from seqloom.training.reading.sources import Extra

logger = logging.getLogger(__name__)

SUFFIX = "-distilled"
"""Behind the name of the output: the folder with what the teachers wrote."""

_INPUT, _OUTPUT = "input", "output"

_TAKEN = {"source", "target", "weight", "tag", Extra.TAGS, _INPUT, _OUTPUT}
"""Columns of the files between teachers and student."""


@dataclass(frozen=True)
class Teachers:
    """What writes."""

    folders: tuple[str, ...]
    """Of models; several write together, with the mean of their log-probabilities."""
    num_beams: int | None = None
    """None: as the first folder's generation_config.json says."""
    processes: int | None = None


def write_corpus(recipe: Recipe, teachers: Teachers, unlabelled: Sequence[str] = ()) -> Recipe:
    """Let teachers write targets for all training sources, and return the recipe that trains on them.

    Args:
        recipe: of the student; its training text gives the sources, its validation and test text stay as they are.
        teachers: what writes.
        unlabelled: files with further sources.

    Raises:
        RecipeError: where there is no text, or more than one process, or where the student's folder may not be written.
        GenerateError, FolderError, CorpusError: as `generate_file` and `load_corpus`.
    """
    if recipe.is_demo:
        raise RecipeError("distill needs sources to write targets for, and train names none; add --train FILES.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RecipeError(
            "distill writes with --processes N, not under a launcher; start it alone with --dry_run, then, with the "
            "launcher, training/train.py with the flags that its line `student` shows, and those of the student."
        )
    if taken := sorted(_TAKEN & set(recipe.tags)):
        raise RecipeError(
            f"tags={' '.join(recipe.tags)}: the student's files have a column {taken[0]} of their own; give this one "
            f"another name."
        )
    home = Path(f"{recipe.output.rstrip('/')}{SUFFIX}")
    _refuse_output(recipe, teachers, home)
    home.mkdir(parents=True, exist_ok=True)
    corpus, _ = read_corpus(recipe)
    columns = recipe.tags
    more = [_read_unlabelled(unlabelled, recipe)] if unlabelled else []
    sources = home / "sources.jsonl"
    known = {tag for folder in teachers.folders for tag in Tags.of(folder).known}
    rows = (_teachers_row(row, columns, known) for part in [corpus["train"], *more] for row in part)
    num_sources = _write_rows(sources, _each_once(rows))
    _let_write(teachers, sources, home / "outputs.jsonl", overwrite=recipe.overwrite)
    changes: dict[str, Any] = {"train": _write_named(home / "train.jsonl", _written_rows(home / "outputs.jsonl"))}
    if not changes["train"]:
        raise RecipeError(f"{' + '.join(teachers.folders)} wrote nothing for any source, see {home / 'outputs.jsonl'}.")
    for split, key in (("validation", "valid"), ("test", "test")):
        rows = ({**_teachers_row(row, columns, known), "weight": None} for row in corpus.get(split, ()))
        changes[key] = _write_named(home / f"{split}.jsonl", rows)
    if "validation" not in corpus:
        changes["training_arguments"] = {**recipe.training_arguments, "eval_strategy": "no"}
    say(f"teachers  {' + '.join(teachers.folders)} wrote {num_sources:,} targets, one for each source: {home}")
    flags = [("--train", changes["train"]), ("--valid", changes["valid"] or ["none"]), ("--test", changes["test"])]
    say(f"student   {' '.join(' '.join((flag, *map(shell, names))) for flag, names in flags if names)}")
    changes |= {"task": "pairs", "num_splits": 1, "columns": None, "where": [], "clean": "none"}
    own = {*changes, "eval_strategy"} - {"training_arguments"}  # what was written decides, and not `auto`
    return replace(recipe, named=recipe.named | own, **changes)


def _refuse_output(recipe: Recipe, teachers: Teachers, home: Path) -> None:
    """Refuse before the teachers write what the student's training would refuse after."""
    folder = RunFolder(Path(recipe.output))
    if any(Path(teacher).resolve() == folder.path.resolve() for teacher in teachers.folders):
        raise RecipeError(
            f"output={folder.path} is a teacher, and the student would replace it; take another --output."
        )
    refuse_foreign(folder.path)
    folder.refuse_to_replace(recipe)
    goes_on = folder.goes_on(recipe) or (recipe.resume == "auto" and folder.is_finished)
    if goes_on and not any(name.startswith(str(home)) for name in resolve_recipe(folder.recipe_file).train):
        raise RecipeError(
            f"{folder.path} holds a run on another text than {home}; choose another --output, or add --resume never "
            f"--overwrite."
        )


def _read_unlabelled(names: Sequence[str], recipe: Recipe) -> Dataset:
    has_columns = all(format_of(data_name(name).path) != "text" for name in names)
    if len(names) > 1 and not can_follow(names):
        raise RecipeError(
            f"unlabelled={' '.join(names)} are several text files; write {names[0]}:1 {names[1]}:1, or join them: cat."
        )
    columns = [(recipe.columns or ["source"])[0]] if has_columns else None
    where = recipe.selection() if has_columns else None
    loaded = load_corpus(list(names), columns=columns, task="continuation", where=where, tags=recipe.tags).dataset
    return loaded.rename_column("text", "source")


def _teachers_row(row: dict[str, Any], columns: Sequence[str], known: set[str]) -> dict[str, Any]:
    """Return what the teachers read, and what the student's recipe has to say of it: columns, weight, tag."""
    tags = TAG.findall(row.get(Extra.TAGS, ""))
    values: dict[str, str] = {}
    for column, _, value in (tag[1:-1].partition("=") for tag in tags):
        if column in columns:  # a value of several features is a tag of each
            values[column] = f"{values[column]}{FEATURES_END}{value}" if column in values else value
    own = [tag for tag in tags if tag[1:-1].partition("=")[0] not in columns]
    student = {column: values.get(column) for column in columns} | {"weight": row.get(Extra.WEIGHT), "tag": own[:1]}
    read = "".join(tag for tag in tags if tag in known) + row["source"]
    return {**row, **student, _INPUT: read}


def _each_once(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out what the teachers have read already: of a source that stands there twice they write the same."""
    seen = set()
    for row in rows:
        key = json.dumps({name: value for name, value in row.items() if name != "target"}, sort_keys=True)
        if key not in seen:
            seen.add(key)
            yield row


def _write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    """Write JSON lines, whole or not at all; return how many."""
    part, count = path.with_name(f".{path.name}.tmp"), 0
    with part.open("w", encoding="utf-8", newline="\n") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    part.replace(path)
    return count


def _let_write(teachers: Teachers, sources: Path, outputs: Path, *, overwrite: bool) -> None:
    """Decode what is not decoded yet."""
    first, *others = teachers.folders
    made = {
        "sources": sha256_of(sources),
        "beams": teachers.num_beams,
        "teachers": [files_made_from(Path(folder)) for folder in teachers.folders],
    }
    record = outputs.with_name("distilled.json")
    if outputs.is_file() and (read_object(record) or {}) == {**made, "outputs": sha256_of(outputs)}:
        return
    job = Job(
        first,
        str(sources),
        str(outputs),
        Search(num_beams=teachers.num_beams),
        processes=teachers.processes,
        column=_INPUT,
        ensemble=tuple(others),
    )
    try:
        _write_or_go_on(job, overwrite=overwrite)
    except UnansweredError:  # an output without a character teaches nothing
        logger.warning(
            "Sources that are too long for the teachers are left out; their outputs in %s are empty.", outputs
        )
    write_whole(record, json.dumps({**made, "outputs": sha256_of(outputs)}, indent=2) + "\n")


def _write_or_go_on(job: Job, *, overwrite: bool) -> None:
    """Decode behind what the same teachers have written of the same text; what others have is begun anew if told."""
    try:
        generate_file(job)
    except JournalError:
        if not overwrite:
            raise
        generate_file(replace(job, overwrite=True))


def _written_rows(outputs: Path) -> Iterator[dict[str, Any]]:
    """Yield what the teachers wrote; an output without a character teaches nothing."""
    with outputs.open(encoding="utf-8", newline="\n") as lines:
        for row in map(json.loads, lines):
            if row[_OUTPUT].strip():
                yield {**row, "target": row[_OUTPUT]}


def _write_named(path: Path, rows: Iterable[dict[str, Any]]) -> list[str]:
    """Write pairs into a file for each weight and tag, and return their names for a recipe.

    Args:
        path: of the first file; further ones get a number.
        rows: of `_teachers_row`, with targets.
    """
    files: dict[tuple[str | None, str], tuple[DataName, TextIO]] = {}
    with ExitStack() as stack:
        for row in rows:
            key = row["weight"], "".join(row["tag"])
            if key not in files:
                place = path.with_stem(f"{path.stem}-{len(files) + 1}") if files else path
                files[key] = DataName(str(place), *key), stack.enter_context(place.open("w", encoding="utf-8"))
            left_out = {"weight", "tag", Extra.TAGS, _INPUT, _OUTPUT}
            kept = {name: value for name, value in row.items() if name not in left_out}
            files[key][1].write(json.dumps(kept, ensure_ascii=False) + "\n")
    return [str(name) for name, _ in files.values()]


__all__ = ["Teachers", "write_corpus"]
