"""A bar for long work: with rate and time to go at a terminal, a plain line every half minute elsewhere."""

import io
import math
import sys
from typing import Any

from tqdm import tqdm

SECONDS = 30
"""Between two lines in a log; work that is done before has none."""


def progress_bar(description: str, total: int | None, unit: str, *, done: int = 0) -> "tqdm[Any]":
    """Return a bar on stderr.

    Args:
        description: what is done.
        total: units of the whole work; None: nobody knows.
        unit: what is counted, one of it.
        done: units that were done before.
    """
    facts: dict[str, Any] = {"desc": description, "total": total, "initial": done}
    if sys.stderr.isatty():
        return tqdm(**facts, unit=unit, unit_scale=True, delay=2, dynamic_ncols=True)
    whole = f"{{n_fmt}} of {{total_fmt}} {unit}s, {{rate_fmt}}, {{remaining}} to go"
    form = f"{{desc}}: {whole if total else f'{{n_fmt}} {unit}s, {{rate_fmt}}'}"
    # no thread of tqdm's own draws as well: a line would come twice
    timing: dict[str, Any] = {"mininterval": SECONDS, "maxinterval": math.inf, "miniters": 1, "delay": SECONDS}
    timing["unit_scale"] = unit == "byte"
    return tqdm(**facts, unit=f" {unit}s", file=_Lines(), bar_format=form, **timing)


class _Lines(io.TextIOBase):
    """stderr for what draws over its own last line: each drawing becomes a line."""

    def write(self, text: str) -> int:
        if drawn := text.strip():
            print(drawn, file=sys.stderr, flush=True)
        return len(text)


__all__ = ["progress_bar"]
