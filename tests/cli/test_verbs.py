"""The command line: what each verb is handed, what a mistake is answered with, which code a script sees."""

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import pytest

from seqloom.configuration.recipe import Recipe
from seqloom.hub import generate, push
from seqloom.hub.page import walk_file
from seqloom.training import distillation
from seqloom.training.scoring import evaluation, evaluation_files, score_page
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
    line = "generate dir --prefix p --prefix_column c --ensemble one two --report r --alignments a --length_penalty 0.6"
    assert verbs.main([*line.split(), *"--sample --temperature 0.7 --top_p 0.9".split()]) == 0
    search = generate.Search(sample=True, temperature=0.7, top_p=0.9, length_penalty=0.6)
    files = {"report_file": "r", "alignments_file": "a"}
    assert generated[3] == generate.Job(
        "dir", prefix="p", prefix_column="c", ensemble=("one", "two"), search=search, **files
    )


def test_distill_hands_over_its_teachers_and_trains_on_what_they_wrote(
    trained: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def write(recipe: Recipe, *rest: Any) -> Recipe:
        asked.append((recipe.train, *rest))
        return replace(recipe, train=["written"])

    monkeypatch.setattr(distillation, "write_corpus", write)
    line = "distill one two --train a b --unlabelled c d --teacher_beams 3 --processes 2 --output out"
    assert verbs.main(line.split()) == 0
    assert asked == [(["a", "b"], distillation.Teachers(("one", "two"), 3, 2), ["c", "d"])]
    assert [(recipe.train, recipe.output) for recipe in trained] == [(["written"], "out")]


def test_evaluate_hands_over_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, write, write_page = Mock(), Mock(), Mock()
    monkeypatch.setattr(evaluation, "evaluate_folder", evaluate)
    monkeypatch.setattr(evaluation_files, "write_evaluation", write)
    monkeypatch.setattr(score_page, "write_page", write_page)
    monkeypatch.setattr(evaluation_files, "describe_evaluation", Mock(return_value=""))
    line = "evaluate dir --test t --columns c1 c2 --references r1 r2 --by b1 b2 --where w=1 v=2 --task continuation"
    more = "--any_reference --train n1 n2 --metrics bleu chrf --beams 3 --max_new_tokens 7 --compare other -o out"
    assert verbs.main([*line.split(), *more.split()]) == 0
    options = evaluation.EvaluationOptions(
        columns=("c1", "c2"),
        references=("r1", "r2"),
        by=("b1", "b2"),
        where=("w=1", "v=2"),
        merge=True,
        task="continuation",
        metrics=("bleu", "chrf"),
        training=("n1", "n2"),
        num_beams=3,
        max_new_tokens=7,
        compare="other",
    )
    assert evaluate.call_args == call("dir", ["t"], options)
    assert write.call_args == write_page.call_args == call(evaluate(), "out")
    assert verbs.main("evaluate at/dir --test t u --where none".split()) == 0
    assert evaluate.call_args == call("at/dir", ["t", "u"], evaluation.EvaluationOptions(where=()))
    assert write.call_args == write_page.call_args == call(evaluate(), "dir-evaluation")
    assert verbs.main("evaluate dir --test t".split()) == 0
    assert evaluate.call_args == call("dir", ["t"], evaluation.EvaluationOptions())


def test_push_and_copy_hand_over_their_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, send, copy, describe = Mock(return_value=[]), Mock(), Mock(return_value=[]), Mock(return_value="")
    for name, caught in {
        "plan_push": plan,
        "push_folder": send,
        "copy_folder": copy,
        "describe_push": describe,
    }.items():
        monkeypatch.setattr(push, name, caught)
    for more, with_run in (([], False), (["--with_run"], True)):
        assert verbs.main(["push", "dir", "a/b", *more]) == verbs.main(["copy", "dir", "to", *more]) == 0
        assert plan.call_args == call("dir", "a/b", with_run=with_run)
        assert send.call_args == call("dir", "a/b", private=True, with_run=with_run, message="Upload a Seqloom model")
        assert copy.call_args == call("dir", "to", with_run=with_run)
    assert verbs.main("push dir a/b --public --message m".split()) == 0
    assert send.call_args == call("dir", "a/b", private=False, with_run=False, message="m")
    assert verbs.main("push dir a/b --dry_run".split()) == 0
    assert send.call_count == 3


def test_walk_hands_over_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = Mock(return_value="")
    monkeypatch.setattr(walk_file, "write_walk", walk)
    assert verbs.main("walk dir text".split()) == 0
    assert walk.call_args == call("dir", "text", "walk.html", target=None, num_beams=None, every_layer=False)
    assert verbs.main("walk dir text -o page --target t --beams 3 --every_layer".split()) == 0
    assert walk.call_args == call("dir", "text", "page", target="t", num_beams=3, every_layer=True)


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("train --train a --learing_rate 1", 1, "learing_rate=1 is not a recipe key; did you mean learning_rate?\n"),
        ("train a.tsv", 1, "a.tsv stands alone; write --key value, for example --train a.tsv.\n"),
        ("train --recipe nowhere.yaml", 1, "recipe=nowhere.yaml is neither a file nor a shipped recipe; "),
        ("distill test_verbs.py --train a", 2, "test_verbs.py is a file and stands among the teachers; folders "),
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
    line: str,
    code: int,
    text: str,
    capsys: pytest.CaptureFixture[str],
    trained: list[Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(Path(__file__).parent)
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
