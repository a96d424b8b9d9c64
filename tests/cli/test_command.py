"""What every command shares: exit codes, one paragraph per error, clean ends."""

import os
import shlex
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
        (OSError(28, "Full", "x"), 1, "x: Full; make room on that disk, and start the command again.\n"),
        (OSError(28, "Full"), 1, "Full; make room on that disk, and start the command again.\n"),
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\ttext\nof two lines, 今天, naïve", "plain\ttext\nof two lines, 今天, naïve"),
        ("\x1b[2J\x1b[1;31mok", r"\x1b[2J\x1b[1;31mok"),
        ("a\rb\x08\x7f\x9b", r"a\rb\x08\x7f\x9b"),
        ("model\u202e\u2066nib.", r"model\u202e\u2066nib."),
        ("a\u2028b\u2029c\u0085d\ufeff", r"a\u2028b\u2029c\x85d\ufeff"),
        ("half \ud800", r"half \ud800"),
        ("می\u200cخواهم 👨\u200d👩", "می\u200cخواهم 👨\u200d👩"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert command.visible(text) == shown
    assert command.visible(shown) == shown, "what is shown once is shown so again"
    assert command.visible("a\nb", one_line=True) == r"a\nb"
    assert explain_error(ValueError(text)) == command.visible(" ".join(text.split()))


def run_python(script: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, **options)


PRINTS = "print('今天 \\u202e', flush=True); import sys; print('天气', file=sys.stderr); print('the end')"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-8"])
def test_a_console_that_lacks_a_character_shows_its_number(encoding: str) -> None:
    script = f"from seqloom_cli.command import run_command\nrun_command(lambda: exec({PRINTS!r}))"
    run = run_python(script, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert run.returncode == 0, run.stderr
    assert ("今天" in run.stdout) is (encoding == "utf-8")
    assert (r"\u4eca\u5929" in run.stdout) is (encoding != "utf-8")
    assert run.stdout.endswith("the end\n")


@pytest.mark.parametrize("stdout", ["closed pipe", "/dev/full", "closed"])
def test_work_outlives_what_it_prints_to(stdout: str, tmp_path: os.PathLike[str]) -> None:
    if stdout == "/dev/full" and not os.path.exists(stdout):
        pytest.skip("this system has no /dev/full")
    done = os.path.join(tmp_path, "done")
    work = f"print_what_goes(); {PRINTS}; open({done!r}, 'w').close()"
    script = f"from seqloom_cli.command import *\nimport sys\nsys.exit(run_command(lambda: exec({work!r})))"
    shell = {"closed pipe": "| true", "/dev/full": "> /dev/full 2>&1", "closed": ">&-"}[stdout]
    command_line = f"{sys.executable} -c {shlex.quote(script)} {shell}; echo ${{PIPESTATUS[0]}}"
    run = subprocess.run(["bash", "-c", command_line], capture_output=True, text=True, timeout=120)
    assert run.stdout.split()[-1] == "0", run
    assert os.path.exists(done)


def test_a_warning_cannot_move_the_cursor_either() -> None:
    work = r"import logging; logging.getLogger('seqloom.x').warning('%s is skipped', 'a\x1b[2Jb')"
    run = run_python(f"from seqloom_cli.command import run_command\nrun_command(lambda: exec({work!r}))")
    assert run.stderr == "a\\x1b[2Jb is skipped\n"
