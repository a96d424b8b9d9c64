"""Languages: taken from the run that is there, asked for at a terminal, hinted at elsewhere."""

import pytest

from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training import languages
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.languages import guess_languages, hint_at_languages, settle_languages


def recipe(tmp_path, **keys):
    return resolve_recipe(None, {"train": ["a.de", "a.en"], "output": str(tmp_path / "run"), **keys})


@pytest.fixture
def answers(monkeypatch):
    """What the person at the terminal says, in turn; none: there is nobody."""
    said = []
    monkeypatch.setattr(languages, "ask", lambda question: said.pop(0) if said else None)
    return said


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (["de fr"], ["de", "fr"]),
        ([""], ["de", "en"]),
        (["-"], []),
        (["German", "de"], ["de"]),
        (["x1", "x2", "x3"], []),
    ],
)
def test_a_person_is_asked(tmp_path, answers, said, named):
    answers += said
    assert settle_languages(recipe(tmp_path)).languages == named


def test_where_nobody_sits_a_line_says_how(tmp_path, answers, capsys):
    unsettled = settle_languages(recipe(tmp_path))
    assert unsettled.languages == []
    assert "--languages de en names them, if that is what they are" in hint_at_languages(unsettled)
    named = settle_languages(recipe(tmp_path, languages=["fr"]))
    assert named.languages == ["fr"]
    assert hint_at_languages(named) == ""
    answers += ["-"]
    assert hint_at_languages(settle_languages(recipe(tmp_path))) == "", "who wants none hears no more of it"
    assert capsys.readouterr().out == "", "an error is not preceded by a hint"


def test_what_was_answered_once_is_not_asked_again(tmp_path, answers):
    folder = RunFolder(tmp_path / "run")
    folder.open(recipe(tmp_path, languages=["de", "fr"]))
    folder.begin()
    answers.append("xx")
    assert settle_languages(recipe(tmp_path)).languages == ["de", "fr"]
    assert answers == ["xx"]


@pytest.mark.parametrize(
    ("keys", "guess"),
    [
        ({"train": ["x.de.gz", "x.en.gz"]}, ["de", "en"]),
        ({"train": ["train.src", "train.tgt"]}, []),
        ({"train": ["a.tsv"], "columns": ["de", "en"]}, ["de", "en"]),
        ({"train": ["a.tsv"]}, []),
    ],
)
def test_names_of_files_and_columns_are_a_guess(tmp_path, keys, guess):
    assert guess_languages(recipe(tmp_path, **keys)) == guess
