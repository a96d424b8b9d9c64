"""A bar for long work: with rate and time to go at a terminal, a plain line every half minute elsewhere."""

import io
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30
"""Between two lines in a log; work that is done before has none."""


def progress_bar(description: str, total: int, unit: str) -> "tqdm[Any]":
    """Return a bar on stderr.

    Args:
        description: what is done.
        total: units of the whole work.
        unit: what is counted, one of it.
    """
    if sys.stderr.isatty():
        return tqdm(desc=description, total=total, unit=unit, unit_scale=True, delay=2, dynamic_ncols=True)
    form = f"{{desc}}: {{n_fmt}} of {{total_fmt}} {unit}s, {{rate_fmt}}, {{remaining}} to go"
    timing: dict[str, Any] = {"mininterval": SECONDS, "maxinterval": 2 * SECONDS, "delay": SECONDS}
    return tqdm(desc=description, total=total, unit=f" {unit}s", file=_Lines(), bar_format=form, **timing)


class _Lines(io.TextIOBase):
    """stderr for what draws over its own last line: each drawing becomes a line."""

    def write(self, text: str) -> int:
        if drawn := text.strip():
            print(drawn, file=sys.stderr, flush=True)
        return len(text)


__all__ = ["progress_bar"]
