"""Lines to be pasted do what they say, whatever text or folder stands in them."""

import subprocess

import pytest
from datasets import are_progress_bars_disabled
from transformers.utils import logging

from seqloom.hub.push import check_repo_name
from seqloom.training.monitoring.console import as_repo, echo, library_bars, say_how_to_use

TEXTS = ["""C'est "l'été" $HOME `id` !x""", "-n", "a\\tb\\c", "今天的天气很", "tab\there", "* ; rm -rf x #", "a\u202eb"]


@pytest.mark.parametrize("text", TEXTS)
def test_the_line_for_the_shell_hands_the_text_over_as_it_is(text):
    done = subprocess.run(["bash", "-c", echo(text)], capture_output=True, text=True, check=True)
    assert done.stdout == text + "\n"


@pytest.mark.parametrize("text", TEXTS)
def test_every_line_of_the_end_is_quoted(text, tmp_path, capsys):
    folder = f"-out {text}"
    results = {"updates": 3, "seconds": 2.0, "test_bleu": 12.345, "test_truncated": 4}
    say_how_to_use(folder, results, [text], ["x"], "1 kB", num_beams=4)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[1].endswith(": 3 updates in 2 s; scored with 4 beams, and greedily in training")
    assert "test        bleu 12.35, truncated 4" in lines
    spy = "seqloom() { printf '%s\\0' \"$@\"; }; "  # prints what it is handed
    for line in (line for line in lines if " seqloom generate" in line or line.startswith("seqloom ")):
        done = subprocess.run(["bash", "-c", spy + line], capture_output=True, text=True, check=True, cwd=tmp_path)
        words = done.stdout.split("\0")[:-1]
        assert words[1] == f"./{folder}", line
        if words[0] == "push":
            check_repo_name(words[2])
    python = [line for line in lines if line.startswith(("write =", "print("))]
    seen = []
    scope = {
        "pipeline": lambda task, model, **_: (
            seen.append(model) or (lambda t, **_: seen.append(t) or [{"generated_text": ""}])
        )
    }
    exec("\n".join(python), scope)
    assert seen == [folder, text]


@pytest.mark.parametrize("name", ["My model (2)", "über", "--x--", "a..b", "....", "x" * 200])
def test_a_folder_s_name_becomes_one_that_the_hub_takes(name):
    check_repo_name(f"owner/{as_repo(name)}")


def test_libraries_draw_no_bars_into_a_log_file():
    before = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    with library_bars(wanted=True):
        assert are_progress_bars_disabled()
        assert not logging.is_progress_bar_enabled()
    assert (are_progress_bars_disabled(), logging.is_progress_bar_enabled()) == before
