"""Lines of input in groups that are answered together."""

import queue
import threading
from collections.abc import Iterable, Iterator
from itertools import chain

from seqloom.hub.decoding.job import GenerateError, Job
from seqloom.hub.decoding.rows import Layout, Row, format_of
from seqloom.hub.lines import decode_line
from seqloom.hub.tags import Tags

WINDOW = 512
"""Lines that are sorted by length, decoded, and committed together."""

WINDOW_BYTES = 1 << 22
"""Bytes after which a window is full, however few its lines."""

Window = list[tuple[bytes, Row]]
"""Lines as they stand in the input, and what is on them."""


def layout_of(job: Job, lines: Iterator[bytes]) -> tuple[Layout, int, Iterator[bytes]]:
    """Return what is where on a line, how many lines of header there are, and the lines behind it."""
    name = job.input_file or "stdin"
    read_as = job.input_format or format_of(job.input_file)
    write_as = job.output_format or (format_of(job.output_file) if job.output_file else read_as)
    layout = Layout(name, read_as, write_as, job.column, job.prefix_column, tags=Tags.of(job.folder))
    if read_as == "text" and (job.column or job.prefix_column):
        raise GenerateError(f"{name} is read as text, which has no columns; add --input_format tsv or jsonl.")
    if read_as != "tsv" or (first := next(lines, None)) is None:
        return layout, 0, lines
    layout, is_header = layout.with_first_line(decode_line(first, 1, name))
    return layout, int(is_header), lines if is_header else chain([first], lines)


def windows_of(lines: Iterator[bytes], *, whole: bool) -> Iterator[list[bytes]]:
    """Group lines: always the same ones where they come from a file, else as many as have come."""
    if not whole:
        yield from _windows_as_they_come(lines)
        return
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if len(held) == WINDOW or size >= WINDOW_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _windows_as_they_come(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    come: queue.Queue[bytes | BaseException | None] = queue.Queue(WINDOW)

    def read() -> None:
        try:
            for line in lines:
                come.put(line)
            come.put(None)
        except BaseException as error:
            come.put(error)

    threading.Thread(target=read, daemon=True).start()
    while True:
        window = [come.get()]
        while len(window) < WINDOW and not come.empty() and isinstance(window[-1], bytes):
            window.append(come.get())
        last = window[-1]
        if found := [line for line in window if isinstance(line, bytes)]:
            yield found
        if isinstance(last, BaseException):
            raise last
        if last is None:
            return


def parsed(layout: Layout, windows: Iterable[list[bytes]], number: int) -> Iterator[Window]:
    """Read what stands on the lines; those before a broken one are answered before it is refused."""
    for lines in windows:
        window: Window = []
        try:
            for line in lines:
                window.append((line, layout.parse(decode_line(line, number, layout.name), number)))
                number += 1
        except ValueError:
            if window:
                yield window
            raise
        yield window


__all__ = ["WINDOW", "Window", "layout_of", "parsed", "windows_of"]
