r"""Lines of text, however many, read one at a time.

Lines end at "\n" or "\r\n" alone, as in the corpus reader, and a byte order mark is dropped.
"""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

MOST_LINE_BYTES = 4 << 20
"""Bytes of a line that are kept, more than any model reads; the rest of a longer one is counted and dropped."""

_PIECE = 1 << 20

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(input_file: str | None) -> list[str]:
    """Read all lines of a file, plain or .gz, or of stdin.

    Raises:
        ValueError: naming the line that is not UTF-8, or the file that is no whole gzip file.
    """
    with open_bytes(input_file) as file:
        lines = stream_lines(file)
        return [decode_line(line, number, input_file or "stdin") for number, line in enumerate(lines, start=1)]


@contextmanager
def open_bytes(input_file: str | None) -> Iterator[IO[bytes]]:
    """Open a file, plain or .gz, or stdin, for reading bytes.

    Raises:
        ValueError: while reading, for a .gz that is no whole gzip file.
    """
    if input_file is None:
        yield sys.stdin.buffer
    elif not input_file.endswith(".gz"):
        with Path(input_file).open("rb") as plain:
            yield plain
    else:
        try:
            with gzip.open(input_file) as packed:
                yield packed  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            found = f"{input_file} is not a whole gzip file ({error})"
            raise ValueError(f"{found}; copy it again, or rename it.") from error


def stream_lines(file: IO[bytes]) -> Iterator[bytes]:
    r"""Yield each line as bytes, its "\n" included; of an endless one, the first `MOST_LINE_BYTES` and no "\n"."""
    is_first = True
    while line := file.readline(MOST_LINE_BYTES):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_PIECE)
        yield line.removeprefix(BYTE_ORDER_MARK) if is_first else line
        is_first = False


def count_lines(input_file: str) -> int:
    """Return how many lines a file has."""
    count, last = 0, b"\n"
    with open_bytes(input_file) as file:
        while piece := file.read(_PIECE):
            count, last = count + piece.count(b"\n"), piece[-1:]
    return count + (last != b"\n")


def decode_line(line: bytes, number: int, name: str) -> str:
    """Return the text of a line, without its end.

    Raises:
        ValueError: naming the line, if it is not UTF-8.
    """
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        if len(line) == MOST_LINE_BYTES and error.reason == "unexpected end of data":  # cut inside a character
            return line[: error.start].decode("utf-8")
        raise ValueError(f"{name}: line {number} is not UTF-8 (byte {error.start + 1}); convert it first.") from error


def one_line(text: str) -> str:
    """Return a text with spaces for its line ends: as outputs are, and as files of lines hold it."""
    return text.replace("\r\n", " ").replace("\n", " ")


__all__ = ["count_lines", "decode_line", "one_line", "open_bytes", "read_lines", "stream_lines"]
