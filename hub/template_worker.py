"""Renders chat templates in a process of its own, which may be killed: a template is a program that came with a folder.

A loop in a loop or `'x' * 10**9` cannot be stopped inside a process without ending it. hub/chat_template.py
starts this file and gives it one JSON object a line, `{"template", "max_characters", "seconds", "variables"}`; a line
of `{"text"}` or `{"error", "is_costly"}` comes back. Runs by its path, and imports the standard library and jinja2.
"""

import json
import re
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_ERROR = 1000
"""Characters of an error; a template may write its own."""

MAX_BYTES = 1 << 30
"""Memory of this process."""


class CostlyError(ValueError):
    """A template that writes too much."""


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return what transformers renders chat templates with (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    return environment


def render(environment: ImmutableSandboxedEnvironment, asked: dict[str, Any]) -> str:
    """Return what a template makes of its variables.

    Raises:
        CostlyError: if that is too long.
        TemplateError: if it cannot be done.
    """
    pieces, room = [], asked["max_characters"]
    for piece in compiled(environment, asked["template"]).generate(asked["variables"]):
        pieces.append(piece)
        room -= len(piece)
        if room < 0:
            raise CostlyError(f"it writes more than {asked['max_characters']:,} characters")
    return "".join(pieces)


@lru_cache
def compiled(environment: ImmutableSandboxedEnvironment, template: str) -> Template:
    """Return a template ready to run; the next request brings the same one."""
    # transformers marks the assistant's part for training; here the mark means nothing
    template = re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", template)
    template = re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", template)
    return environment.from_string(template)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(value: Any, **options: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **options})


def _strftime_now(form: str) -> str:
    return datetime.now().astimezone().strftime(form)


def main() -> None:
    """Answer line by line until nobody asks any more."""
    with suppress(ImportError, ValueError, OSError):  # Windows has none, macOS not always
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    environment = make_environment()
    limit_time = getattr(signal, "setitimer", lambda *_: None)  # Windows has none
    for line in sys.stdin:
        asked = json.loads(line)
        limit_time(getattr(signal, "ITIMER_PROF", 0), asked["seconds"])  # its signal ends the process
        answer: dict[str, str | bool]
        try:
            answer = {"text": render(environment, asked)}
        except MemoryError:
            answer = {"error": f"it takes more than {MAX_BYTES >> 20:,} MiB of memory", "is_costly": True}
        except CostlyError as error:
            answer = {"error": str(error), "is_costly": True}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:MAX_ERROR], "is_costly": False}
        limit_time(getattr(signal, "ITIMER_PROF", 0), 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
