"""A folder's chat template within bounds of time, memory and text; what goes beyond them is refused in a sentence."""

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

RENDER_SECONDS = 10.0
"""Templates take milliseconds; a busy machine gets to start a process meanwhile."""

PATIENCE = 30
"""Seconds of the clock for each of the processor, on a busy machine or where the system does not count the latter."""

MAX_REASON = 200
"""Characters of what a template says about itself in a message."""


class TemplateFault(ValueError):  # noqa: N818
    """A template that cannot be rendered within its bounds; the text says why, without a full stop."""

    def __init__(self, why: str, *, is_costly: bool) -> None:
        """Say why.

        Args:
            why: half a sentence.
            is_costly: whether time, memory or text were too much; else the template itself refuses, or is broken.
        """
        super().__init__(why)
        self.is_costly = is_costly


class ChatTemplate:
    """One template and the process that renders it, begun anew whenever it had to be killed."""

    def __init__(
        self, template: str, variables: Mapping[str, object] | None = None, *, cpu_seconds: float | None = None
    ) -> None:
        """Take a template.

        Args:
            template: Jinja.
            variables: what it may name besides the messages: special tokens.
            cpu_seconds: of the processor that a rendering may take, with patience by the clock; None: `RENDER_SECONDS`
                by both.
        """
        self._template, self._variables, self._cpu_seconds = template, dict(variables or {}), cpu_seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, source: str, max_characters: int) -> str:
        """Return the text for a chat of one user message.

        Raises:
            TemplateFault: if the template fails, or takes too much.
        """
        return self.render_chat([{"role": "user", "content": source}], max_characters)

    def render_chat(self, messages: Sequence[Mapping[str, str]], max_characters: int) -> str:
        """Return the text for a chat.

        Raises:
            TemplateFault: if the template fails, or takes too much.
        """
        given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        asked = {
            "template": self._template,
            "max_characters": max_characters,
            "seconds": self._cpu_seconds or RENDER_SECONDS,
            "variables": {**given, **self._variables},
        }
        with self._lock:
            answer = json.loads(self._ask(json.dumps(asked)))
        if "error" in answer:
            reason = " ".join(answer["error"].split()).rstrip(".")
            raise TemplateFault(reason[:MAX_REASON], is_costly=answer["is_costly"])
        return str(answer["text"])

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, line: str) -> str:
        if self._process is None or self._process.poll() is not None:
            command = [sys.executable, "-I", str(Path(__file__).with_name("template_worker.py"))]
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                command,
                stdin=pipe,
                stdout=pipe,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                start_new_session=True,  # Ctrl-C is for the server, which finishes what it has begun
            )
        process = self._process
        assert process.stdin is not None, "it is a pipe"
        assert process.stdout is not None, "it is a pipe"
        timer = threading.Timer(PATIENCE * self._cpu_seconds if self._cpu_seconds else RENDER_SECONDS, process.kill)
        timer.start()
        try:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer.endswith("\n"):
            self.close()
            seconds = self._cpu_seconds or RENDER_SECONDS
            why = f"it takes more than {seconds:g} seconds, or ends the process that renders it"
            raise TemplateFault(why, is_costly=True)
        return answer


__all__ = ["ChatTemplate", "TemplateFault"]
