r"""A file of text: its facts, its lines, and the words for what is wrong with its bytes.

Python's own gzip module does the work, a line at a time, so a file never has to fit into memory. What is fixed here
and nowhere else:

- A line ends at "\n" only. U+2028, NEL, VT, FF and a lone "\r" are characters of the line, so two files that `wc -l`
  finds aligned stay aligned (`str.splitlines` and text mode break them apart).
- A "\r" before "\n" (Windows line end) and a byte order mark at the start of a file belong to the file, not to the
  text: both are removed and counted.
- Text is UTF-8. Nothing is replaced or skipped: the file is read to its end first, so that one error names all the
  lines that need repair, with a guess at the encoding and the command that converts it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shlex
import stat
import sys
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from datasets import are_progress_bars_disabled
from tqdm import tqdm

from seqloom.configuration.data_names import format_of
from seqloom.configuration.suggestion import SENTENCE, did_you_mean
from seqloom.hub.progress_bar import progress_bar
from seqloom_cli.public_data import how_to_make

_UTF_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_CONTAINERS = (
    (b"\x1f\x8b", "gzip", "give it a name that ends in .gz"),
    (b"PAR1\x15", "Parquet", "give it a name that ends in .parquet"),
    (b"PK\x03\x04", "zip", "unpack it first"),
    (b"BZh91AY&SY", "bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "zstd", "unpack it with unzstd"),
    (b"%PDF-", "PDF", "extract its text first"),
    (b"\x89PNG", "PNG", "write down what it shows"),
    (b"\xff\xd8\xff", "JPEG", "write down what it shows"),
    (b"\xd0\xcf\x11\xe0", "Word or Excel", "save it as text, UTF-8"),
    (b"SQLite format 3", "SQLite", "export its table as .tsv or .csv"),
)

BLANK_CHARACTERS = "".join(
    chr(code)
    for first, last in (
        (0x00, 0x20),  # C0 controls and space
        (0x7F, 0xA0),  # DEL, C1 controls, no-break space
        (0xAD, 0xAD),  # soft hyphen
        (0x1680, 0x1680),
        (0x180E, 0x180E),
        (0x2000, 0x200F),  # spaces, zero-width space and joiners, direction marks
        (0x2028, 0x202F),  # line and paragraph separator, direction overrides, narrow no-break space
        (0x205F, 0x206F),  # word joiner, invisible operators, isolates
        (0x3000, 0x3000),  # ideographic space
        (0xFEFF, 0xFEFF),  # byte order mark
    )
    for code in range(first, last + 1)
)
"""Characters that leave a line blank to the eye: white space, controls and zero-width characters."""

MAX_LINE_BYTES = 1 << 26
"""Longest line accepted; a longer one is a binary file or a data set without line ends, and would fill the memory."""

FOREIGN_LINE_ENDS = {
    "\r": ("CR, as old Macs and some spreadsheets write them", "tr '\\r' '\\n' < {0} > {0}.lf"),
    "\u2028": ("U+2028", "perl -CSD -pe 's/\\x{{2028}}/\\n/g' {0} > {0}.lf"),
    "\u2029": ("U+2029", "perl -CSD -pe 's/\\x{{2029}}/\\n/g' {0} > {0}.lf"),
    "\x85": ("NEL (U+0085)", "perl -CSD -pe 's/\\x{{85}}/\\n/g' {0} > {0}.lf"),
    "\x0b": ("VT (U+000B)", "tr '\\013' '\\n' < {0} > {0}.lf"),
    "\x0c": ("FF (U+000C)", "tr '\\f' '\\n' < {0} > {0}.lf"),
    "\x1e": ("RS (U+001E)", "tr '\\036' '\\n' < {0} > {0}.lf"),
}
"""What other programs end lines with -> its name, and the command that makes line ends of it."""

MAX_DEFECTS = 1000
"""Reading stops early after this many defects: the file is then wrong as a whole."""


class CorpusError(ValueError):
    """A data set that cannot be trained on: what was found, the rule it breaks, and how to repair it."""

    rule = "unreadable"
    """What `seqloom check` calls it."""


class LineCountError(CorpusError):
    """Two files that are to be line-aligned and are not equally long."""

    rule = "line-counts"


class Defects:
    """Collects the unusable lines of a file, so that one error names them all."""

    def __init__(self, path: str, verdict: str, rule: str = "record") -> None:
        self.path, self.verdict, self.rule = path, verdict, rule
        self.lines = array("q")
        self.examples: list[str] = []

    @property
    def num(self) -> int:
        """Unusable lines so far."""
        return len(self.lines)

    @property
    def is_full(self) -> bool:
        """Whether there are so many that the file is wrong as a whole and reading on teaches nothing."""
        return self.num >= MAX_DEFECTS and _REPORT.get() is None

    def add(self, line: int, finding: str) -> None:
        """Note that `line` (1-based) is unusable, and why."""
        self.lines.append(line)
        if len(self.examples) < 5:
            self.examples.append(f"line {line:,}: {finding}")

    def check(self, num_lines: int, remedy: str) -> None:
        """Raise a `CorpusError` when something was collected in the `num_lines` read so far; see `reported_to`."""
        if not self.num:
            return
        if report := _REPORT.get():
            report(self, remedy)
            return
        rest = self.num - len(self.examples)
        listed = "; ".join(self.examples) + (f"; and {rest:,} more" if rest else "")
        total = f"the first {num_lines:,}" if self.is_full else f"{num_lines:,}"
        raise CorpusError(f"{self.path}: {self.num:,} of {total} lines {self.verdict}. {listed}. {remedy}")


Report = Callable[["Defects | CorpusError", str], None]
"""Takes what is wrong with a file, and the remedy (an error's message has it already)."""

_REPORT: ContextVar[Report | None] = ContextVar("report", default=None)


@contextmanager
def reported_to(report: Report) -> Iterator[None]:
    """Hand what is wrong with a text file to `report` and read on, where otherwise an error would end the reading."""
    token = _REPORT.set(report)
    try:
        yield
    finally:
        _REPORT.reset(token)


def is_reported() -> bool:
    """Return whether somebody is told what is wrong and reads on; see `reported_to`."""
    return _REPORT.get() is not None


def is_blank(text: str | None) -> bool:
    """True when `text` holds nothing a reader can see: None, empty, or `BLANK_CHARACTERS` only."""
    return not text or not text.strip(BLANK_CHARACTERS)


def reading_bar(description: str, total: int | None, unit: str) -> tqdm[Any]:
    """Return a bar, or lines in a log; at a terminal `datasets.disable_progress_bars()` turns it off."""
    if sys.stderr.isatty() and are_progress_bars_disabled():
        return tqdm(disable=True)
    return progress_bar(description, total, unit)


class _MeteredFile(io.FileIO):
    """The bytes of a file, with a progress bar that moves as they are read."""

    def __init__(self, path: str, work: str) -> None:
        super().__init__(path)
        self._bar = reading_bar(f"{work} {Path(path).name}", os.fstat(self.fileno()).st_size, "byte")

    def readinto(self, buffer: Any) -> int:
        """Read as `io.FileIO` does."""
        num_bytes: int = super().readinto(buffer)
        self._bar.update(num_bytes)
        return num_bytes

    def close(self) -> None:
        """Close file and bar."""
        self._bar.close()
        super().close()


@dataclass
class FileFacts:
    """What a file was when it was read."""

    path: str
    """As the user named it."""
    num_bytes: int
    """Size on disk, compressed if the file is."""
    sha256: str
    """Of the bytes on disk."""
    num_lines: int | None = None
    """Lines of text read, headers and blank lines included; a last line without end counts. None for Parquet."""
    num_crlf_lines: int = 0
    """Lines that ended in CR LF; the CR is not part of the text."""
    has_byte_order_mark: bool = False
    """Whether it began with a UTF-8 byte order mark, which is not part of the text."""

    @classmethod
    def of(cls, path: str) -> FileFacts:
        """Check that `path` is a readable file, and take its size and fingerprint.

        Raises:
            CorpusError: If it is missing (with the name of a neighbour that is close), not a regular file, or not
                readable.
        """
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode):
                raise CorpusError(
                    f"{path} is no regular file; a corpus is read more than once. Save it to a file first."
                )
            return cls(path, status.st_size, _digest(path, status.st_ino, status.st_size, status.st_mtime_ns))
        except FileNotFoundError as error:
            raise CorpusError(_describe_missing_file(path)) from error
        except OSError as error:
            raise CorpusError(
                f"{path} cannot be read: {error.strerror}. Check the file and its permissions."
            ) from error


@lru_cache(maxsize=256)
def _digest(path: str, *_state: int) -> str:
    """Return the SHA-256 of a file; `settle_columns` opens it, and the corpus opens it again."""
    with _MeteredFile(path, "Fingerprint of") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def neighbours(path: str) -> list[str]:
    """Return the names of all that lies in the folder of `path`."""
    folder = Path(path).parent
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _describe_missing_file(path: str) -> str:
    if command := how_to_make(path):
        return f"{path} does not exist; `{command}` fetches its public corpus and writes it."
    folder = Path(path).parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does the folder {folder}. Check the path; it is taken from {os.getcwd()}."
    hint = did_you_mean(Path(path).name, neighbours(path), SENTENCE)
    return f"{path} does not exist.{hint or f' Check the path; it is taken from {os.getcwd()}.'}"


class TextFile:
    """One text file, plain or .gz, as an iterator of decoded lines without their line ends.

    Its `facts` are checked and taken when it is opened; those of its lines are complete when it has been read.

    Raises:
        CorpusError: If it is no readable file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.facts = FileFacts.of(path)
        self._num_lines_beyond_ascii = 0  # good ones: the file is UTF-8, if not all of it
        self._undecodable = self._new_defects()
        self._undecodable_sample = b""
        self._foreign_ends: Counter[str] = Counter()

    @property
    def num_lines(self) -> int:
        """Lines read so far."""
        return self.facts.num_lines or 0

    def first_line(self) -> str:
        """Return the first line, "" if there is none; bytes that are no UTF-8 are told of when the file is read.

        Raises:
            CorpusError: For a file that is no text.
        """
        raw_line = next(self._raw_lines(), b"")
        return raw_line.decode("utf-8", "replace").removeprefix("\ufeff").rstrip("\r\n")

    def __iter__(self) -> Iterator[str]:
        """Yield the lines; raises `CorpusError` at the end when some could not be decoded, or are no lines."""
        try:
            yield from self._lines()
        except CorpusError as error:
            if (report := _REPORT.get()) is None:
                raise
            report(error, "")

    def _lines(self) -> Iterator[str]:
        self.facts.num_lines = self.facts.num_crlf_lines = 0
        self._undecodable = self._new_defects()
        for number, raw_line in enumerate(self._raw_lines(), 1):
            self.facts.num_lines = number
            if len(raw_line) > MAX_LINE_BYTES:
                raise CorpusError(self._describe_long_line())
            line = self._strip_line_end(self._decode(raw_line))
            if not line.isprintable():  # next to none is, and asking costs a tenth of looking for each
                self._foreign_ends.update({end: line.count(end) for end in FOREIGN_LINE_ENDS if end in line})
            yield line
        self.check_encoding()
        self._check_line_ends()

    def _new_defects(self) -> Defects:
        return Defects(self.path, "cannot be read as UTF-8", "encoding")

    def check_encoding(self) -> None:
        """Raise a `CorpusError` when lines read so far were not UTF-8."""
        self._undecodable.check(self.num_lines, self._encoding_remedy())

    def _check_line_ends(self) -> None:
        """Refuse a file in which most lines end otherwise: all of them together would be one example.

        Texts that are quoted may hold such characters: in CSV all, in JSON those that it takes as they are.
        """
        kind = format_of(self.path)
        quoted = {"csv": FOREIGN_LINE_ENDS, "jsonl": "\x85\u2028\u2029"}.get(kind, "")
        counts = Counter({end: count for end, count in self._foreign_ends.items() if end not in quoted})
        for end, count in counts.most_common(1):
            if count > max(1, self.num_lines):
                name, command = FOREIGN_LINE_ENDS[end]
                unpacked = self.path.removesuffix(".gz")
                unpack = f"gunzip -k {shlex.quote(self.path)}; " if self.path.endswith(".gz") else ""
                raise CorpusError(
                    f"{self.path} has {self.num_lines:,} lines that end in \\n and {count:,} that end in {name}. A "
                    f"line is one example, and ends in \\n. Convert it: {unpack}{command.format(shlex.quote(unpacked))}"
                )

    def _raw_lines(self) -> Iterator[bytes]:
        with _open_bytes(self.path) as stream, self._explained_gzip_errors():
            if content := name_foreign_content(self.path, stream.peek(4096)[:4096]):
                raise CorpusError(f"{self.path} {content}")
            yield from iter(partial(stream.readline, MAX_LINE_BYTES + 1), b"")

    @contextmanager
    def _explained_gzip_errors(self) -> Iterator[None]:
        try:
            yield
        except EOFError as error:
            raise CorpusError(
                f"{self.path} is a truncated gzip file: its compressed data stop before their end. "
                f"Copy or download it again (gunzip -t {shlex.quote(self.path)} tells when it is whole)."
            ) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise CorpusError(
                f"{self.path} is a damaged gzip file: {error} after {self.num_lines:,} lines. "
                f"Copy or download it again (gunzip -t {shlex.quote(self.path)} tells when it is whole)."
            ) from error

    def _decode(self, raw_line: bytes) -> str:
        try:
            text = raw_line.decode("utf-8")
        except UnicodeDecodeError as error:
            return self._note_undecodable(raw_line, error)
        if not text.isascii():
            self._num_lines_beyond_ascii += 1
        if self.num_lines == 1 and text.startswith("\ufeff"):
            self.facts.has_byte_order_mark = True
            return text[1:]
        return text

    def _note_undecodable(self, raw_line: bytes, error: UnicodeDecodeError) -> str:
        self._undecodable_sample += raw_line[:200] if len(self._undecodable_sample) < 20_000 else b""
        self._undecodable.add(self.num_lines, f"byte 0x{raw_line[error.start]:02X} at position {error.start + 1:,}")
        if self._undecodable.is_full:
            self.check_encoding()
        return raw_line.decode("utf-8", errors="replace")  # never trained on: check_encoding raises

    def _encoding_remedy(self) -> str:
        encoding = guess_encoding(self._undecodable_sample)
        if encoding and self._num_lines_beyond_ascii < self._undecodable.num:
            command = iconv_command(self.path, encoding)
            return f"Text must be UTF-8; this looks like {encoding}. Convert it: {command}"
        return "Text must be UTF-8; the rest of the file is. Repair these lines, or remove them on both sides."

    def _strip_line_end(self, text: str) -> str:
        if text.endswith("\r\n"):
            self.facts.num_crlf_lines += 1
            return text[:-2]
        return text.removesuffix("\n")

    def _describe_long_line(self) -> str:
        return (
            f"{self.path} line {self.num_lines:,} is longer than {MAX_LINE_BYTES >> 20} MiB; a line (up to \\n) is one "
            "example. Break the text into lines, or name the file after its format."
        )


@contextmanager
def _open_bytes(path: str) -> Iterator[io.BufferedReader[Any]]:
    """Open a file; yields its content, unpacked if .gz."""
    with io.BufferedReader(_MeteredFile(path, "Reading"), 1 << 16) as raw:
        if not path.endswith(".gz"):
            yield raw
            return
        head = raw.peek(2)[:2]
        if head and head != b"\x1f\x8b":
            raise CorpusError(
                f"{path} is not gzip, though its name ends in .gz (it starts with {head!r}). "
                f"Rename it to {path.removesuffix('.gz')}, or compress it with gzip."
            )
        yield io.BufferedReader(gzip.GzipFile(fileobj=raw), 1 << 16)


def shorten(text: str, width: int = 40) -> str:
    """Return `text` as it may stand in an error message: quoted, control characters escaped, at most `width` long."""
    return repr(text if len(text) <= width else text[: width - 1] + "…")


def iconv_command(path: str, encoding: str) -> str:
    """Return the shell command that rewrites the file `path` from `encoding` to UTF-8."""
    root, suffix = os.path.splitext(path.removesuffix(".gz"))
    if path.endswith(".gz"):
        made = shlex.quote(f"{root}.utf8{suffix}.gz")
        return f"gunzip -c {shlex.quote(path)} | iconv -f {encoding} -t UTF-8 | gzip > {made}"
    return f"iconv -f {encoding} -t UTF-8 {shlex.quote(path)} > {shlex.quote(f'{root}.utf8{suffix}')}"


def name_foreign_content(path: str, head: bytes) -> str | None:
    """Say what a file is when its first bytes show that it is not UTF-8 text; None when nothing speaks against it.

    Args:
        path: The file's name, for the remedy.
        head: The first bytes (a few KiB), decompressed.
    """
    for mark, encoding in _UTF_MARKS:
        if head.startswith(mark):
            return f"is {encoding} (byte order mark), not UTF-8. Convert it: {iconv_command(path, encoding)}"
    for mark, kind, remedy in _CONTAINERS:
        if head.startswith(mark):
            return f"is a {kind} file, not text: {remedy}."
    if head.count(0) * 4 > len(head):
        encoding = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
        return (
            f"is not text: {head.count(0):,} of its first {len(head):,} bytes are NUL. "
            f"If it is {encoding} without a byte order mark, convert it: {iconv_command(path, encoding)}"
        )
    is_undecodable = b"\xef\xbf\xbd" in head.decode("utf-8", "replace")[:-1].encode()
    if head[:8].count(0) > 1 or (0 in head and is_undecodable):  # lengths and versions stand in front of most formats
        return "is not text: it has NUL bytes, as weights and programs have. Give a file of text."
    return None


def guess_encoding(sample: bytes) -> str | None:
    """Name the encoding of a file that is not UTF-8 from the bytes of its undecodable lines, or None.

    Args:
        sample: The undecodable lines. GB18030 text is mostly pairs of two high bytes (the GB 2312 block), Western
            one-byte text mostly single high bytes between ASCII letters.
    """
    num_high = sum(byte >= 0x80 for byte in sample)
    num_in_pairs = 2 * len(re.findall(rb"[\xa1-\xf7][\xa1-\xfe]", sample))
    if num_high and num_in_pairs > 0.8 * num_high:
        return "GB18030"
    if len(re.findall(rb"(?<![\x80-\xff])[\xc0-\xff](?![\x80-\xff])", sample)) > 0.5 * num_high:
        return "WINDOWS-1252"
    return None
