"""What an evaluation leaves behind: outputs for people and scripts, scores, and lines for a terminal."""

import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from seqloom.hub.lines import one_line
from seqloom.hub.quoting import shell
from seqloom.modeling.canary import write_whole
from seqloom.training.metrics import bleu_tokenizer_for
from seqloom.training.scoring.evaluation import Evaluation, Row
from seqloom.training.scoring.evaluation_text import EvaluationText
from seqloom.training.scoring.groups import free_name


def write_evaluation(evaluation: Evaluation, output: str | PathLike[str]) -> dict[str, Path]:
    """Write outputs and scores; each file is whole or not there.

    Args:
        evaluation: of `evaluate_folder`.
        output: a folder; others' files in it stay.

    Returns:
        What was written, by name.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    streams = _reference_streams(evaluation.text)
    lines = {"output.txt": evaluation.answers.outputs}
    lines |= {f"reference{'' if n == 1 else f'.{n}'}.txt": texts for n, texts in enumerate(streams, start=1)}
    if evaluation.other:
        lines["other.txt"] = evaluation.other.outputs
    contents = {name: "".join(f"{one_line(text)}\n" for text in texts) for name, texts in lines.items()}
    rows = _output_rows(evaluation)
    contents["outputs.jsonl"] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    flat = [{key: value for key, value in row.items() if key != "references"} for row in rows]
    for line, several in zip(flat, zip(*streams, strict=True), strict=True):
        line |= {f"reference{'' if n == 1 else f'_{n}'}": text for n, text in enumerate(several, start=1)}
    table = [list(flat[0]), *(list(line.values()) for line in flat)]
    contents["outputs.tsv"] = "".join("\t".join(_cell(value) for value in line) + "\n" for line in table)
    contents["scores.json"] = json.dumps(_record(evaluation), ensure_ascii=False, indent=1) + "\n"
    for name, content in contents.items():
        write_whole(folder / name, content)
    return {name: folder / name for name in contents}


def _reference_streams(text: EvaluationText) -> list[list[str]]:
    """Return all first references, all second ones, ...; "" where an example has fewer."""
    most = max(map(len, text.references))
    return [[(several[n] if n < len(several) else "") for several in text.references] for n in range(most)]


def _output_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    text, rows = evaluation.text, []
    for number, (source, references) in enumerate(zip(text.sources, text.references, strict=True)):
        row: dict[str, Any] = {"source": source, "references": references}
        row["output"] = evaluation.answers.outputs[number]
        row[evaluation.sentence_metric] = _digits(evaluation.sentence_scores[number])
        if evaluation.answers.is_cut is not None:
            row["is_cut"] = bool(evaluation.answers.is_cut[number])
        if evaluation.other:
            row["other"] = evaluation.other.outputs[number]
            if evaluation.other_scores is not None:
                row[f"other_{evaluation.sentence_metric}"] = _digits(evaluation.other_scores[number])
        if evaluation.nearness:
            row["nearness"] = round(evaluation.nearness.nearest[number].similarity, 4)
        rows.append(row | {free_name(column, row): values[number] for column, values in text.columns.items()})
    return rows


def _digits(score: float) -> float | None:
    """Return a score as it is written; JSON has no NaN, the score of what could not be read."""
    return None if np.isnan(score) else round(float(score), 4)


def _cell(value: Any) -> str:
    """Return a value as a field of a TSV line, in which tabs and line ends are spaces; nothing for None."""
    return one_line("" if value is None else str(value)).replace("\t", " ").replace("\r", " ")


def _record(evaluation: Evaluation) -> dict[str, Any]:
    cut = evaluation.answers.is_cut
    return {
        "folder": evaluation.folder,
        "test": evaluation.text.name,
        "num_examples": len(evaluation.text),
        "scores": [asdict(row) for row in evaluation.rows],
        "truncated": None if cut is None else int(cut.sum()),
        "seconds": round(evaluation.answers.seconds, 1),
        "compared_with": evaluation.other.name if evaluation.other else None,
        "nearest_training_target": evaluation.memory,
        "groups": [asdict(group) for group in evaluation.groups],
        "notes": evaluation.notes,
    }


def describe_evaluation(evaluation: Evaluation, output: str | PathLike[str]) -> str:
    """Say for a terminal what was found, and where it lies."""
    width = max(len(row.label) for row in evaluation.rows)
    lines = [f"{evaluation.folder} on {evaluation.text.name}, {len(evaluation.text):,} examples"]
    for row in evaluation.rows:
        bounds = f"  [{row.interval[0]:.2f}, {row.interval[1]:.2f}]" if row.interval else ""
        lines.append(f"  {row.label:{width}}  {row.value:8.2f}{bounds}{describe_difference(row)}")
    if evaluation.memory:
        copied = ", ".join(f"{name} {value:.2f}" for name, value in evaluation.memory.items())
        lines.append(f"  Copying the target of the nearest training line would score {copied}.")
    lines += [f"  {note}" for note in evaluation.notes]
    if command := sacrebleu_command(evaluation, Path(output)):
        lines.append(f"The same by sacreBLEU's own command:\n  {command}")
    lines.append(f"Outputs, scores and the page: {Path(output) / 'evaluation.html'}")
    return "\n".join(lines)


def describe_difference(row: Row) -> str:
    """Say how a score compares with the other system's; nothing where there is none."""
    if row.difference is None:
        return ""
    low, high = row.difference.interval
    change = f"{row.difference.value:+.2f} [{low:+.2f}, {high:+.2f}]"
    p_values = f"p = {row.difference.p_value:.4f}, bootstrap {row.difference.p_bootstrap:.4f}"
    return f"; other {row.other:.2f}, difference {change}, {p_values}"


def sacrebleu_command(evaluation: Evaluation, output: Path) -> str:
    """Return the line that scores the written files with sacreBLEU; empty where it would not say the same."""
    flags = {"bleu": "bleu", "chrf": "chrf", "chrf++": "chrf --chrf-word-order 2", "ter": "ter"}
    asked = [row for row in evaluation.rows if row.metric in flags]
    if {"chrf", "chrf++"} <= {row.metric for row in asked}:
        asked = [row for row in asked if row.metric != "chrf++"]
    if not asked or len(set(map(len, evaluation.text.references))) > 1:  # in files a missing reference is an empty one
        return ""
    streams = len(_reference_streams(evaluation.text))
    names = [output / f"reference{'' if n == 1 else f'.{n}'}.txt" for n in range(1, streams + 1)]
    tokenizer = bleu_tokenizer_for(evaluation.text.first_references)
    words = [" ".join(shell(name) for name in names), "-i", shell(output / "output.txt"), "-m"]
    words += [flags[row.metric].split()[0] for row in asked]
    words += [part for row in asked for part in flags[row.metric].split()[1:]]
    words += ["--tokenize", tokenizer] if any(row.metric == "bleu" for row in asked) else []
    if tokenizer != "13a" and any(row.metric == "ter" for row in asked):
        words += ["--ter-normalized", "--ter-asian-support"]
    return f"python -m sacrebleu {' '.join(words)}"


__all__ = ["describe_difference", "describe_evaluation", "sacrebleu_command", "write_evaluation"]
