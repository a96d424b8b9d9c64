"""The command line: what each verb is handed, what a mistake is answered with, which code a script sees."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from seqloom.configuration.recipe import Recipe
from seqloom.hub import generate
from seqloom_cli import verbs


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """Catch the recipes that would be trained."""
    from seqloom.training import train as module

    recipes: list[Recipe] = []
    monkeypatch.setattr(module, "train", lambda recipe, dry_run: recipes.append(recipe))
    return recipes


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Catch the calls that would decode."""
    calls: list[Any] = []
    monkeypatch.setattr(generate, "generate_file", calls.append)
    return calls


def test_train_hands_over_the_resolved_recipe(trained: list[Recipe]) -> None:
    line = "train --recipe multi30k-en-de --train a b --max-steps 3 --bf16 --output out --debug"
    assert verbs.main(line.split()) == 0
    (recipe,) = trained
    assert (recipe.train, recipe.output, recipe.vocab_size) == (["a", "b"], "out", 10_000)
    assert recipe.training_arguments["max_steps"] == 3
    assert recipe.training_arguments["bf16"] is True


def test_train_without_arguments_is_the_demo(trained: list[Recipe]) -> None:
    assert verbs.main(["train"]) == 0
    assert trained[0].is_demo


def test_generate_hands_over_its_flags(generated: list[Any]) -> None:
    assert verbs.main("generate dir -i in -o out --beams 3 --n-best 2 --max_new_tokens 7".split()) == 0
    search = generate.Search(num_beams=3, n_best=2, max_new_tokens=7)
    assert generated == [generate.Job("dir", input_file="in", output_file="out", search=search)]
    assert verbs.main(["--debug", "generate", "dir"]) == 0
    assert generated[1] == generate.Job("dir")
    line = "generate dir --engine ctranslate2 --quantization int8 --sample --top_k 5 --seed 3 --long-lines split"
    assert verbs.main(line.split()) == 0
    search = generate.Search(sample=True, top_k=5, seed=3)
    assert generated[2] == generate.Job(
        "dir", engine="ctranslate2", quantization="int8", search=search, long_lines="split"
    )


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("train --train a --learing_rate 1", 1, "learing_rate=1 is not a recipe key; did you mean learning_rate?\n"),
        ("train a.tsv", 1, "a.tsv stands alone; write --key value, for example --train a.tsv.\n"),
        ("train --recipe nowhere.yaml", 1, "recipe=nowhere.yaml is neither a file nor a shipped recipe; "),
        ("generate dir --bems 3", 2, "--bems is not an argument of seqloom generate; did you mean --beams?\n"),
        ("generate dir --beam 3", 2, "--beam is not an argument of seqloom generate; did you mean --beams?\n"),
        (
            "generate dir --beams 0",
            2,
            "argument --beams: '0' must be a whole number of at least 1; seqloom generate --he",
        ),
        ("generate", 2, "the following arguments are required: FOLDER; seqloom generate --help shows how it is called"),
        ("generate nowhere -i /dev/null", 1, "nowhere holds no config.json; name the folder that seqloom train wrote"),
        ("generate nowhere -i no.txt", 1, "no.txt: No such file or directory.\n"),
        ("trian", 2, "trian is not a verb of seqloom; did you mean train?"),
        ("frobnicate", 2, "frobnicate is not a verb of seqloom; seqloom --help shows what it takes."),
        ("--bogus", 2, "--bogus is not an argument of seqloom; "),
    ],
)
def test_a_mistake_is_one_line_on_stderr(
    line: str, code: int, text: str, capsys: pytest.CaptureFixture[str], trained: list[Recipe]
) -> None:
    assert verbs.main(line.split()) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(text)
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not trained


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main(["train", "--train", "a", "--seed", "x", "--debug"]) == 1
    assert capsys.readouterr().err.startswith("Traceback")


def test_help_is_work_done(capsys: pytest.CaptureFixture[str]) -> None:
    for line, wanted in (
        ("--help", ["train", "generate"]),
        ("train --help", ["--tokens_per_update", "presets:", "deep-encoder-shallow-decoder", "zh-continuation"]),
        ("train --help_all", ["--weight_decay", "--norm_position", "--tokenizer"]),
        ("generate --help", ["--beams", "--n_best", "--max_new_tokens"]),
    ):
        assert verbs.main(line.split()) == 0
        text = capsys.readouterr().out
        assert all(word in text for word in wanted)


def test_no_verb_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: seqloom")


def test_the_verbs_are_those_that_work() -> None:
    """The public command line, frozen: later verbs are added here when they do something."""
    assert verbs.verbs_of(verbs.build_parser()) == [
        "train",
        "distill",
        "data",
        "check",
        "generate",
        "evaluate",
        "verify",
        "upgrade",
        "serve",
        "push",
        "copy",
        "walk",
        "lesson",
        "space",
        "export",
    ]


def test_arguments_come_from_the_process_by_default(monkeypatch: pytest.MonkeyPatch, trained: list[Recipe]) -> None:
    monkeypatch.setattr(sys, "argv", ["seqloom", "train", "--train", "a"])
    assert verbs.main() == 0
    assert trained[0].train == ["a"]


def test_nothing_imports_the_command_line() -> None:
    root = Path(verbs.__file__).parents[1]
    for folder in ("configuration", "modeling", "training", "hub"):
        for file in (root / folder).rglob("*.py"):
            assert "seqloom_cli.verbs" not in file.read_text("utf-8"), file


def test_version_names_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.main(["--version"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("seqloom 0.")
    # A build such as +cu132 is no part of what the index calls a release, and torch.__version__ names it all the same.
    assert f"(transformers {version('transformers')}, torch {version('torch')})" in line


@pytest.mark.parametrize("module", ["seqloom", "seqloom_cli"])
def test_the_command_is_a_module_too(module: str) -> None:
    run = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0
    assert "train a model from a recipe" in run.stdout
