"""What `seqloom check` found: as text for a terminal, as JSON for programs, as one page of HTML for a person."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from seqloom.training.checking.fault_rules import RULES, Harm, Rule
from seqloom.training.checking.row_store import RowStore
from seqloom.training.reading.sources import Source
from seqloom_cli.command import visible

SHOWN_CHARACTERS = 160
"""Of each text of an example."""

SHOWN_LINES = 12
"""Numbers of lines in a report that people read; JSON has them all."""

FEW = 0.001
"""A smaller share of a split's rows makes a harmful fault doubtful: one swapped pair in thousands spoils nothing."""

COMMON = 0.3
"""What so many rows have is the task rather than a fault."""


@dataclass(frozen=True)
class Example:
    """One row that shows a fault."""

    line: int
    texts: list[str]
    """Source and target, or the text; long ones are cut."""

    @classmethod
    def of(cls, line: int, texts: Sequence[str | None]) -> Example:
        """Cut the texts of a row to what is shown."""
        return cls(line, [_cut(text or "") for text in texts])


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text):,} characters)"


@dataclass
class Finding:
    """One fault of one split."""

    rule: str
    split: str
    count: int
    lines: array[int] = field(default_factory=lambda: array("q"))
    """Lines (or records) that have it, from 1."""
    examples: list[Example] = field(default_factory=list)
    message: str = ""
    """What else there is to say."""
    train_lines: array[int] = field(default_factory=lambda: array("q"))
    """Of a leak: where in the training text."""
    num_rows: int = 0
    """Of the split."""

    @property
    def facts(self) -> Rule:
        """The row of the table."""
        return RULES[self.rule]

    @property
    def harm(self) -> Harm:
        """How much it hurts here: less where few rows have it, or so many that it is the task."""
        harm, share = self.facts.harm, self.count / max(1, self.num_rows)
        if self.facts.find and harm < Harm.refused and share > COMMON:
            return Harm.note
        return Harm.doubtful if harm == Harm.harmful and share < FEW else harm

    @property
    def where(self) -> str:
        """Its first lines, in words."""
        listed = ", ".join(f"{line:,}" for line in self.lines[:SHOWN_LINES])
        more = len(self.lines) - SHOWN_LINES
        text = f"line{'s' * (len(self.lines) > 1)} {listed}" + (f" and {more:,} more" if more > 0 else "")
        if self.train_lines:
            return f"{text}; in train: {', '.join(f'{line:,}' for line in self.train_lines[:SHOWN_LINES])}, …"
        return text if self.lines else ""

    @property
    def amount(self) -> str:
        """How many rows, and which share."""
        if not self.lines:
            return ""
        return f"{self.count:,} of {self.num_rows:,}" + (
            f" ({self.count / self.num_rows:.2%})" if self.num_rows else ""
        )

    def to_json(self) -> dict[str, Any]:
        """As it stands in the JSON report."""
        return {
            "rule": self.rule,
            "split": self.split,
            "harm": self.harm.name,
            "meaning": self.facts.meaning,
            "remedy": self.facts.remedy,
            "count": self.count,
            "message": self.message,
            "lines": list(self.lines),
            "train_lines": list(self.train_lines),
            "examples": [vars(example) for example in self.examples],
        }


@dataclass(frozen=True)
class SplitFacts:
    """A split in numbers."""

    split: str
    name: str
    num_rows: int
    files: list[dict[str, Any]]
    lengths: list[list[int]]
    """Each side: shortest, median, 99 % and longest, in characters."""
    ratio: float | None
    """Median of target length / source length."""

    @classmethod
    def of(cls, split: str, source: Source | None, store: RowStore) -> SplitFacts:
        """Gather the numbers of a split that has been read."""
        lengths = np.concatenate([records["lengths"] for records in store.chunks()] or [np.zeros((0, 2), "u2")])
        sides = [lengths[:, side] for side in range(2 if store.is_pairs else 1)]
        quantiles = [np.quantile(side, (0, 0.5, 0.99, 1)).astype(int).tolist() if len(side) else [] for side in sides]
        both = lengths[(lengths > 0).all(axis=1)].astype(float)
        ratio = float(np.median(both[:, 1] / both[:, 0])) if store.is_pairs and len(both) else None
        files = [
            {
                "path": file.path,
                "num_bytes": file.num_bytes,
                "num_lines": file.num_lines,
                "num_crlf_lines": file.num_crlf_lines,
                "has_byte_order_mark": file.has_byte_order_mark,
            }
            for file in (source.files if source else ())
        ]
        return cls(split, source.name if source else "", store.num_rows, files, quantiles, ratio)

    def describe(self) -> str:
        """The numbers in one line."""
        names = ("source", "target") if len(self.lengths) == 2 else ("text",)
        sides = [
            f"{name} {least:,}-{most:,} characters, half below {half:,}"
            for name, (least, half, _, most) in zip(names, filter(None, self.lengths))
        ]
        ratio = [f"target / source {self.ratio:.2f}"] if self.ratio else []
        return "; ".join([f"{self.num_rows:,} rows", *sides, *ratio])


@dataclass
class Report:
    """All that was found, worst first once it is finished."""

    splits: list[SplitFacts] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What could not be looked for, and why."""

    def finish(self) -> None:
        """Note what the files say, take lines out that training refuses anyway, and sort by harm."""
        for facts in self.splits:
            for file in facts.files:
                self._note_file(facts.split, file)
        sizes = {facts.split: facts.num_rows for facts in self.splits}
        refused = {
            split: {
                line
                for found in self.findings
                if found.split == split and found.rule == "encoding"
                for line in found.lines
            }
            for split in sizes
        }
        for found in self.findings:
            found.num_rows = sizes.get(found.split, found.num_rows)  # a glance has counted its own rows
            if found.facts.harm < Harm.refused and found.lines and refused.get(found.split):
                found.lines = array("q", (line for line in found.lines if line not in refused[found.split]))
                found.examples = [example for example in found.examples if example.line not in refused[found.split]]
                found.count = len(found.lines)
        order = list(RULES)
        splits = list(sizes)
        self.findings = sorted(
            (found for found in self.findings if found.count),
            key=lambda found: (
                -found.harm,
                order.index(found.rule),
                splits.index(found.split) if found.split in splits else 9,
            ),
        )

    def _note_file(self, split: str, file: dict[str, Any]) -> None:
        if file["num_crlf_lines"]:
            message = f"{file['path']}: {file['num_crlf_lines']:,} of {file['num_lines']:,} lines."
            self.findings.append(Finding("crlf", split, file["num_crlf_lines"], message=message))
        if file["has_byte_order_mark"]:
            self.findings.append(Finding("byte-order-mark", split, 1, message=f"{file['path']}."))

    @property
    def worst(self) -> Harm | None:
        """The harm of the worst finding."""
        return max((found.harm for found in self.findings), default=None)

    def to_json(self) -> str:
        """Everything, every line named."""
        report = {
            "worst": None if self.worst is None else self.worst.name,
            "splits": [vars(facts) for facts in self.splits],
            "findings": [found.to_json() for found in self.findings],
            "notes": self.notes,
        }
        return json.dumps(report, ensure_ascii=False, indent=1) + "\n"

    def to_html(self) -> str:
        """One page that needs nothing else."""
        environment = Environment(loader=PackageLoader("seqloom.training.checking", "."), autoescape=True)
        environment.filters["visible"] = visible
        return environment.get_template("check_page.html.jinja").render(report=self, harms=reversed(Harm))

    def to_text(self) -> str:
        """What a terminal shows."""
        lines = [f"{facts.split:6}{facts.describe()}" for facts in self.splits]
        for found in self.findings:
            lines += ["", f"{found.harm.name.upper():9} {found.rule}, {found.split}: {found.amount or found.count}"]
            lines += [f"          {text}" for text in (f"{found.facts.meaning}.", found.where, found.message) if text]
            lines += [f"          {example.line:>7,} | {' | '.join(example.texts)}" for example in found.examples[:3]]
            lines += [f"          -> {found.facts.remedy}"] * bool(found.facts.remedy)
        counted = [f"{sum(found.harm == harm for found in self.findings)} {harm.name}" for harm in reversed(Harm)]
        lines += ["", *self.notes, f"Found: {', '.join(counted)}." if self.findings else "Nothing found."]
        return "\n".join(lines)

    def write(self, path: str, text: str) -> None:
        """Write one form of the report."""
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
