"""Where answers go: files that go on after a kill, or standard output; and what is counted of them."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from seqloom.hub.decoding.answers import MOST_CHARACTERS, Answer
from seqloom.hub.decoding.job import Job, work_of
from seqloom.hub.decoding.journal import Journal
from seqloom.hub.decoding.rows import Layout, Row
from seqloom.hub.files import naming
from seqloom.hub.quoting import shown
from seqloom_cli.command import visible

MOST_NAMED = 10
"""Lines without an answer that are named at the end."""


@dataclass
class Tally:
    """What is said at the end; kept over a kill."""

    total: int = 0
    cut: int = 0
    """Lines whose best output ended because no more tokens were allowed."""
    beyond: int = 0
    """Lines with a source that is longer than any of the training."""
    trained: int = 0
    """Tokens of that one."""
    faulty: int = 0
    """Lines without an answer."""
    first: list[int] = field(default_factory=list)
    """Some of these."""
    endless: int = 0
    """Of these, lines with more characters than are tokenized, whole or split."""

    def count(self, rows: Sequence[Row], groups: Sequence[Sequence[Answer]]) -> None:
        """Count the answers to some rows."""
        faulty = [row.number for row, group in zip(rows, groups, strict=True) if group[0].fault]
        self.total += len(rows)
        self.cut += sum(group[0].is_cut for group in groups)
        beyond = [group[0].beyond for group in groups if group[0].beyond]
        self.beyond += len(beyond)
        self.trained = max(beyond, default=self.trained)
        self.faulty += len(faulty)
        self.endless += sum(len(row.source) > MOST_CHARACTERS for row in rows)
        self.first += faulty[: MOST_NAMED - len(self.first)]

    def remarks(self) -> Iterator[str]:
        """Return what to say of outputs that were cut, and of sources beyond the longest that was trained on."""
        if self.cut:
            yield (
                f"{self.cut:,} of {self.total:,} lines have outputs that were cut: no more tokens were allowed; "
                f"--max_new_tokens allows more."
            )
        if self.beyond:
            yield (
                f"{self.beyond:,} of {self.total:,} lines are longer than {self.trained:,} tokens, the longest source "
                f"of the training, and what is written for such lengths is often wrong; --long_lines split cuts them "
                f"at the ends of sentences."
            )

    def fault_sentence(self, folder: str) -> str:
        """Return what to say of lines without an answer."""
        some = ", ".join(f"{number:,}" for number in self.first) + (", ..." if self.faulty > len(self.first) else "")
        if self.endless == self.faulty:
            remedy = f"Cut them to {MOST_CHARACTERS:,} characters or less"
        else:
            end = f", up to {MOST_CHARACTERS:,} characters" if self.endless else ""
            remedy = f"With --long_lines split they are cut at the ends of sentences{end}"
        return (
            f"{self.faulty:,} of {self.total:,} lines are too long for {shown(folder)} and have an empty output: "
            f"{some}. {remedy}; all others are written."
        )


class Sink(ABC):
    """Takes what answers the lines, in their order."""

    tally: Tally
    done: int = 0
    """Lines of input, behind a header, that had their answers when the sink was opened."""

    def behind(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Return the lines that have no answer yet."""
        return lines

    @abstractmethod
    def write(self, lines: list[bytes], texts: list[str]) -> None:
        """Write what answers some lines: for each file its text."""

    @abstractmethod
    def finish(self) -> None:
        """End, when all is written."""


class FileSink(Sink):
    """Files that go on after a kill."""

    def __init__(self, journal: Journal, header: str) -> None:
        """Go on with a journal; where it is empty, the output begins with a header."""
        self.journal, self.done = journal, journal.lines
        self.tally = Tally(**journal.notes)
        self._header = "" if journal.lines or journal.is_finished else header

    def behind(self, lines: Iterator[bytes]) -> Iterator[bytes]:
        """Return the lines that have no answer yet."""
        if self.journal.is_finished:
            return iter(())
        self.journal.skip(lines)
        return lines

    def write(self, lines: list[bytes], texts: list[str]) -> None:
        """Commit what answers some lines."""
        self.journal.commit(lines, [self._header + texts[0], *texts[1:]], asdict(self.tally))
        self._header = ""

    def finish(self) -> None:
        """Put the files in their places."""
        if self._header:
            self.write([], [""] * len(self.journal.files))
        self.journal.finish()


class StreamSink(Sink):
    """Standard output, and files beside it that begin anew each time."""

    def __init__(self, files: Sequence[IO[bytes]], header: str) -> None:
        """Write a header."""
        self.tally = Tally()
        sys.stdout.flush()
        self._files = [sys.stdout.buffer, *files]
        self.write([], [header] + [""] * len(files))

    def write(self, lines: list[bytes], texts: list[str]) -> None:
        """Write what answers some lines, at once."""
        for file, text in zip(self._files, texts, strict=True):
            with naming("standard output" if file is sys.stdout.buffer else file.name):
                file.write((visible(text) if file.isatty() else text).encode())
                file.flush()

    def finish(self) -> None:
        """Nothing is left to do."""


@contextmanager
def open_sink(job: Job, layout: Layout) -> Iterator[Sink]:
    """Open where a job's answers go.

    Raises:
        JournalError: if what an earlier command has left there is not this job's.
    """
    n_best = job.search.n_best
    header = layout.header_line(n_best=n_best, with_score=n_best is not None)
    if job.output_file is None:
        with ExitStack() as stack:
            yield StreamSink([stack.enter_context(Path(file).open("wb")) for file in job.files], header)
        return
    begins_anew = job.overwrite or job.input_file is None  # who knows whether stdin says the same twice
    files = [Path(file).resolve() for file in (job.output_file, *job.files)]  # a link stays, and leads to the output
    with closing(Journal(files, work_of(job, layout), overwrite=begins_anew)) as journal:
        if journal.lines and not journal.is_finished:
            print(f"{files[0]}: going on behind line {journal.lines:,}.", file=sys.stderr)
        elif not journal.lines and files[0].is_file() and files[0].stat().st_size:
            print(f"{files[0]} exists; it is replaced when all is written.", file=sys.stderr)
        yield FileSink(journal, header)


def texts_of(job: Job, layout: Layout, rows: Sequence[Row], groups: Sequence[Sequence[Answer]]) -> list[str]:
    """Return what each file gets for some rows: output, report, alignments."""
    n_best = job.search.n_best is not None
    pairs = list(zip(rows, groups, strict=True))
    scored = [(row, [(out.text, out.score if n_best else None) for out in group]) for row, group in pairs]
    texts = ["".join(layout.render(row, outputs, n_best=n_best) for row, outputs in scored)]
    if job.report_file is not None:
        texts.append("".join(_report_line(row, rank, out) for row, g in pairs for rank, out in enumerate(g, start=1)))
    if job.alignments_file is not None:
        texts.append("".join(f"{_pharaoh_line(out)}\n" for _, group in pairs for out in group))
    return texts


def _report_line(row: Row, rank: int, output: Answer) -> str:
    detail = output.detail
    facts: dict[str, Any] = {"line": row.number, "rank": rank, "output": output.text}
    if output.fault:
        facts["fault"] = output.fault
    if detail is not None:
        written, source = len(detail.tokens), output.source_tokens - output.pieces  # without the end of each
        facts |= {
            "score": output.score,
            "source_tokens": source,
            "output_tokens": written,
            "length_ratio": round(written / source, 4) if source else None,
            "cut": output.is_cut,
            "repeated": detail.repeated,
            "uncovered": detail.uncovered,
            "pieces": output.pieces,
            "confidence": [list(pair) for pair in zip(detail.tokens, detail.probabilities)],
        }
    return json.dumps(facts, ensure_ascii=False) + "\n"


def _pharaoh_line(output: Answer) -> str:
    return " ".join(f"{source}-{target}" for source, target in output.detail.pairs) if output.detail else ""


__all__ = ["FileSink", "Sink", "StreamSink", "Tally", "open_sink", "texts_of"]
