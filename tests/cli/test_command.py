"""What every command shares: exit codes, one paragraph per error, clean ends."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from seqloom.modeling.canary import CanaryError
from seqloom_cli import command
from seqloom_cli.command import CommandParser, UsageError, explain_error, run_command


def failing(error: BaseException) -> Callable[[], int]:
    def fail() -> int:
        raise error

    return fail


def test_the_commands_own_code_is_the_exit_code() -> None:
    assert run_command(lambda: None) == run_command(lambda: 0) == 0
    assert run_command(lambda: 3) == 3


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("a is 1;\n   use 2."), 1, "a is 1; use 2.\n"),
        (UsageError("--x is no flag"), 2, "--x is no flag\n"),
        (FileNotFoundError(2, "No such file or directory", "x.txt"), 1, "x.txt: No such file or directory.\n"),
        (OSError("plain"), 1, "plain\n"),
        (ImportError("install seqloom[export]"), 1, "install seqloom[export]\n"),
        (CanaryError("wrong under 6.0;\n install 5.24."), 1, "wrong under 6.0; install 5.24.\n"),
        (KeyError("x"), 1, "KeyError: 'x' (unexpected; run it again with --debug to see where)\n"),
        (ValueError(), 1, "ValueError: no message (unexpected; run it again with --debug to see where)\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted.\n"),
    ],
)
def test_an_error_is_one_paragraph(
    error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(failing(error)) == code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", text)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(failing(ValueError("here")), debug=True) == 1
    assert capsys.readouterr().err.startswith("Traceback (most recent call last)")


def test_explained_errors_are_never_empty() -> None:
    assert explain_error(RuntimeError("x\ny")).startswith("RuntimeError: x y (unexpected")


def test_left_over_flags_are_refused() -> None:
    parser = CommandParser(prog="tool")
    parser.add_argument("--beams")
    parser.refuse([])
    with pytest.raises(UsageError, match=r"--bems=3 is not an argument of tool; did you mean --beams\?"):
        parser.refuse(["--bems=3"])
    with pytest.raises(UsageError, match=r"xyz is not an argument of tool; tool --help shows what it takes."):
        parser.refuse(["xyz"])
    with pytest.raises(UsageError, match="expected one argument; tool --help shows how it is called"):
        parser.parse_args(["--beams"])
    assert parser.parse_known_args(["--beam", "3"])[1] == ["--beam", "3"]  # no abbreviations


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_a_closed_pipe_is_a_clean_end() -> None:
    script = (  # the file alone: importing seqloom takes seconds
        f"import runpy, sys; run_command = runpy.run_path({command.__file__!r})['run_command']; "
        "sys.exit(run_command(lambda: [print('x' * 100) for _ in range(10**5)] and None))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() == 141
