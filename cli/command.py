"""What every command shares: readable errors, exit codes, a clean end on Ctrl-C and on a closed pipe.

`seqloom` and `accelerate launch training/train.py` go through here, so that both say the same on the same mistake.
Imports the standard library alone.
"""

import argparse
import contextlib
import errno
import io
import logging
import os
import select
import sys
import traceback
import unicodedata
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, NoReturn

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 1, 2, 130, 141
EXIT_STOPPED = 75
"""Ended on request before the work was done; the same command goes on. EX_TEMPFAIL of sysexits.h: "try again"."""


class UsageError(ValueError):
    """A command line that cannot be understood."""


class StoppedError(KeyboardInterrupt):
    """A command that was asked to stop and did; like Ctrl-C it passes through `except Exception`."""

    def __init__(self, message: str, exit_code: int = EXIT_STOPPED) -> None:
        """Say what was kept and how to go on.

        Args:
            message: for the user; empty: another process says it.
            exit_code: what the command ends with.
        """
        super().__init__(message)
        self.exit_code = exit_code


class CommandParser(argparse.ArgumentParser):
    """ArgumentParser that raises instead of printing its usage, and takes no abbreviated flags."""

    complete: "Callable[[CommandParser], None] | None" = None
    """Adds arguments that take long to know, once a command line has come to this parser."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # type: ignore[arg-type]

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as argparse does, with all arguments there."""
        if self.complete:
            complete, self.complete = self.complete, None
            complete(self)
        return super().parse_known_args(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{message}; {self.prog} --help shows how it is called.")

    def refuse(self, unknown: list[str]) -> None:
        """Refuse left-over arguments, with the flag that was probably meant.

        Raises:
            UsageError: if anything is left over.
        """
        if not unknown:
            return
        flags = [flag for action in self._actions for flag in action.option_strings]
        self._refuse_word(unknown[0], "an argument", unknown[0].partition("=")[0], flags)

    def refuse_verb(self, verb: str, known: Collection[str]) -> None:
        """Refuse a verb that does not exist, with the one that was probably meant.

        Raises:
            UsageError: if it is not among those known.
        """
        if verb not in known:
            self._refuse_word(verb, "a verb", verb, known)

    def _refuse_word(self, word: str, kind: str, spelling: str, known: Collection[str]) -> NoReturn:
        near = get_close_matches(spelling, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help shows what it takes."
        raise UsageError(f"{word} is not {kind} of {self.prog}; {hint}")


def run_command(command: Callable[[], int | None], *, debug: bool = False) -> int:
    """Run a command to its exit code; an error becomes one paragraph on stderr.

    Args:
        command: does the work; returns an exit code, or None for 0.
        debug: show the traceback of an error instead.

    Returns:
        0 done, 1 failed, 2 misused, 75 stopped on request and ready to go on, 130 interrupted, 141 the reader of stdout
        went away.
    """
    try:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # closed by whoever called
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the end
            elif isinstance(stream, io.TextIOWrapper):
                # a log file shows each line when it is written, and a console without Chinese shows its numbers
                stream.reconfigure(line_buffering=True, errors="backslashreplace")
        if logging.lastResort:  # what prints warnings where nobody has set up logging
            logging.lastResort.setFormatter(_VisibleFormatter())
        code = command() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains while closing
        return EXIT_BROKEN_PIPE
    except StoppedError as stop:
        if str(stop):
            print(f"\n{stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(explain_error(error), file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED


class _VisibleFormatter(logging.Formatter):
    """Formats a record as it is, with what a terminal would obey shown."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        return visible(super().format(record))


class _Forgiving(io.FileIO):
    """A file that takes what cannot be written for written."""

    def write(self, data: Any) -> int:
        """Write, or not: the reader has gone away, or the disk of the log file is full."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def print_what_goes() -> None:
    """Let no print end the work from now on: what a closed or full stdout or stderr does not take is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, AttributeError):  # no file at all: nothing that could be full or closed
            stream.flush()
            raw = io.BufferedWriter(_Forgiving(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True))


def ask(question: str, seconds: float = 60.0) -> str | None:
    """Return what a person at the terminal answers; None where there is none, or nobody answers in time."""
    if not (sys.stdin and sys.stderr and sys.stdin.isatty() and sys.stderr.isatty() and os.name == "posix"):
        return None
    print(visible(question), end="", file=sys.stderr, flush=True)
    if not select.select([sys.stdin], [], [], seconds)[0]:
        print(f"\nNo answer in {seconds:.0f} s; going on without.", file=sys.stderr)
        return None
    return sys.stdin.readline().strip()


def visible(text: object, *, one_line: bool = False) -> str:
    r"""Return a text in which nothing moves a cursor, hides or reorders: ESC becomes \x1b.

    Folders, texts, requests and servers decide on much that is printed, and a terminal obeys what it is sent.

    Args:
        text: anything that can be printed.
        one_line: whether a line break is shown, too.
    """
    kept = _HARMLESS if one_line else _HARMLESS | {"\n"}
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if character not in kept and unicodedata.category(character) in _UNSEEN
        else character
        for character in str(text)
    )


_UNSEEN = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})
"""Categories of Unicode: controls, formats (which turn the direction of a line), line separators, lone surrogates."""

_HARMLESS = frozenset({"\t", "\u00ad", "\u200c", "\u200d"})
"""Of these the tabulator, the soft hyphen, and what joins or parts letters of Persian, Hindi and emoji."""


def explain_error(error: Exception) -> str:
    """An error as one paragraph: as it is where it was written for a user, with its kind where it was not.

    Behind it stands what was added on its way (`add_note`).
    """
    return visible(" ".join([_words_of(error), *getattr(error, "__notes__", ())]))


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def _words_of(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and (error.filename is not None or error.errno in _FULL):
        place = "" if error.filename is None else f"{error.filename}: "
        remedy = "; make room on that disk, and start the command again" if error.errno in _FULL else ""
        return f"{place}{error.strerror}{remedy}."
    is_ours = type(error).__module__.startswith(("seqloom.", "seqloom_cli."))
    if text and (is_ours or isinstance(error, (ValueError, OSError, ImportError))):
        return text
    kind = type(error).__name__
    return f"{kind}: {text or 'no message'} (unexpected; run it again with --debug to see where)"


__all__ = [
    "CommandParser",
    "StoppedError",
    "UsageError",
    "ask",
    "explain_error",
    "print_what_goes",
    "run_command",
    "visible",
]
