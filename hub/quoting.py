"""Quotes a text of a folder or a server for the place where it goes: a line, Markdown, YAML, a shell.

Whoever made a folder decides on the names and the records in it. A terminal obeys escape codes, Markdown passes HTML
on, a line of YAML can be followed by another key, and a shell runs what stands behind a semicolon.
"""

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from seqloom_cli.command import visible

MOST_SHOWN = 1000
"""The longest text that a line shows whole; of a longer one it shows the ends."""


class Quoted(str):
    """A text that is quoted already."""


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """Return a text on one line, with what a terminal would obey made visible, and not without end."""
    line = visible(text, one_line=True)
    return line if len(line) <= most else f"{line[: most // 2]} [...] {line[-most // 2 :]}"


def shell(argument: object) -> str:
    r"""Return an argument as it can be pasted into a shell: quoted where it has to be, `$'\x1b'` where it is unseen."""
    text = str(argument)
    if visible(text, one_line=True) == text:
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{visible(escaped, one_line=True)}'"


def markdown(text: object) -> Quoted:
    """Return a text that Markdown shows as it is: no markup, no HTML, no end of a table's cell."""
    return text if isinstance(text, Quoted) else Quoted(_MARKUP.sub(r"\\\g<0>", shown(text)))


_MARKUP = re.compile(r"[\\`*\[\]<>&|~$]|(?<!\w)_|_(?!\w)|(?<=https)://|(?<=http)://|(?<=\bwww)\.|@")
"""What begins or ends something in Markdown or HTML within a line; a backslash in front takes that away."""


def code(text: object, *, in_table: bool = False) -> Quoted:
    """Return a text as a code span, between more backticks than stand in it."""
    line = " ".join(shown(text).split())
    ticks = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return Quoted(f"{ticks}{space}{line.replace('|', chr(92) + '|') if in_table else line}{space}{ticks}")


def fenced(text: str, language: str) -> Quoted:
    """Return lines as a block of code, its fence longer than every row of backticks in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Quoted(f"{fence}{language}\n{text.strip(chr(10))}\n{fence}\n")


def python_string(text: object) -> Quoted:
    """Return a literal in double quotes, as the rest of our code has them; JSON's strings are Python's too."""
    return Quoted(visible(json.dumps(str(text), ensure_ascii=False), one_line=True))


def yaml_head(values: Mapping[str, Any]) -> Quoted:
    """Return the lines of a card's head, by a YAML writer; what is None is left out."""
    known = {key: value for key, value in values.items() if value is not None}
    written = yaml.safe_dump(known, sort_keys=False, allow_unicode=True, width=1000)
    if "\x85" in written:  # which PyYAML takes for printable, and reads as a line's end
        written = yaml.safe_dump(known, sort_keys=False, width=1000)
    return Quoted(written.rstrip("\n"))


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


__all__ = ["MOST_SHOWN", "Quoted", "code", "fenced", "markdown", "python_string", "shell", "shown", "yaml_head"]
