"""No run without a judge: what is held out of a training text, and what is said where nothing can be."""

import json
import random
from itertools import pairwise

import pytest
from datasets import Dataset, DatasetDict

from seqloom.configuration.recipe import RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.held_out import found_in, hold_out, same_source, shares_of
from seqloom.training.preparation import describe_rivals, read_corpus, settle
from seqloom.training.reading.sources import Extra
from seqloom.training.train import train
from tests.toy import SMALL_RUN, write_reversals


def rows(count, copies=3, seed=0):
    """Sources of which each stands there `copies` times, spelt in two ways, in any order."""
    texts = [f"{'Source' if copy % 2 else 'source  '} {n}" for n in range(count // copies) for copy in range(copies)]
    random.Random(seed).shuffle(texts)
    return Dataset.from_dict({"source": texts, "target": [f"t{i}" for i in range(len(texts))]})


def sources_of(part):
    return {same_source(text) for text in part["source"][:]}


def test_a_source_goes_wholly_into_one_part():
    parts = hold_out(rows(900), {"test": 60, "validation": 90}, seed=1)
    assert {name: len(part) for name, part in parts.items()} == {"train": 750, "test": 60, "validation": 90}
    sets = [sources_of(part) for part in parts.values()]
    assert not any(one & other for one in sets for other in sets if one is not other)
    assert sum(map(len, sets)) == 300


def test_the_choice_depends_on_text_and_seed_alone():
    shares = {"validation": 90}
    chosen = [sources_of(hold_out(rows(900, seed=seed), shares, seed=1)["validation"]) for seed in (0, 5)]
    assert chosen[0] == chosen[1], "the order of the lines does not matter"
    assert chosen[0] != sources_of(hold_out(rows(900), shares, seed=2)["validation"])
    kept = hold_out(rows(900), shares, seed=1)["train"]["target"][:]
    numbers = [int(target[1:]) for target in kept]
    assert all(one < other for one, other in pairwise(numbers)), "rows keep their order"


def shares(num_rows, **keys):
    return shares_of(resolve_recipe(None, {"train": ["a", "b"], **keys}), num_rows)


def test_how_much_is_held_out():
    assert shares(499) == {}
    assert shares(500) == {"validation": 50}
    assert shares(8_000) == {"validation": 400}
    assert shares(2_000_000) == {"validation": 1_000}
    assert shares(8_000, valid="none") == shares(8_000, valid="0") == shares(8_000, valid=["c", "d"]) == {}
    assert shares(200, valid="0.05", test="30") == {"test": 30, "validation": 10}


def test_more_than_half_is_refused_and_the_remedy_works():
    with pytest.raises(RecipeError, match=r"valid=1000 would hold out 1,000 of 800 training examples.* such as 0.05"):
        shares(800, valid="1000")
    assert shares(800, valid="0.05") == {"validation": 40}


def test_too_few_different_sources_are_refused():
    same = Dataset.from_dict({"source": ["a"] * 600, "target": ["b"] * 600})
    with pytest.raises(RecipeError, match=r"1 different sources are too few to hold out 50 of 600 .*--valid none"):
        hold_out(same, {"validation": 50}, seed=1)
    with pytest.raises(RecipeError, match=r"to hold out 50 of 600 examples for the test set; .*--test none"):
        hold_out(same, {"test": 50}, seed=1)


def test_training_lines_are_found():
    training = rows(900).select(range(100, 900))
    known = training[5]["source"]
    assert found_in(training, [known, "elsewhere", known]) == {known}


def test_corpora_too_small_say_so(tmp_path):
    recipe = resolve_recipe(None, {**SMALL_RUN, **write_reversals(tmp_path, train=60)})
    corpus, facts = read_corpus(recipe)
    settled, lines = settle(recipe, corpus, facts, ["cer"])
    assert settled.metrics == ["cer"]
    assert set(corpus) == {"train"}
    assert settled.valid == []
    assert settled.training_arguments["eval_strategy"] == "no"
    assert lines["valid"].startswith(
        "none, for 60 training examples are too few to hold some out unasked: nothing will"
    )
    assert shares_of(resolve_recipe(None, {"train": ["a", "b"], "valid": "0.1"}), 60) == {"validation": 6}


def tagged_run(folder, num_real, *names, **keys):
    """Real pairs, and twice as many synthetic ones of which half have the sources of real ones, spelt otherwise."""
    (folder / "real.tsv").write_text("".join(f"word {n}\treal {n}.\n" for n in range(num_real)))
    rows = range(num_real // 2, num_real // 2 + 2 * num_real)
    (folder / "back.tsv").write_text("".join(f"Word  {n}\tsynthetic {n}.\n" for n in rows))
    files = [f"{folder}/{name}" for name in names]
    recipe = resolve_recipe(None, {**SMALL_RUN, "train": files, **keys})
    corpus, facts = read_corpus(recipe)
    _, lines = settle(recipe, corpus, facts, ["cer"])
    return corpus, facts, lines


def test_synthetic_text_is_no_judge_and_gives_no_source_of_one_away(tmp_path):
    corpus, facts, lines = tagged_run(tmp_path, 1000, "real.tsv:2", "back.tsv:0.5,tag=bt", test="20")
    train, validation, test = (corpus[split] for split in ("train", "validation", "test"))
    assert (len(validation), len(test)) == (50, 20), "a twentieth of the real text, not of all"
    assert all(target.startswith("real") for part in (validation, test) for target in part["target"][:])
    held = sources_of(validation) | sources_of(test)
    assert not held & sources_of(train)
    lost = sum(f"word {n}" in held for n in range(500, 1000))
    assert len(train) == 1000 - 70 + 2000 - lost
    assert facts["train"]["num_dropped"] == {
        "held out for test": 20,
        "held out for validation": 50,
        "source held out": lost,
    }
    assert lines["valid"] == (
        f"50 examples held out of the training text but for {tmp_path}/back.tsv:0.5,tag=bt, which lost {lost} of the "
        f"same sources, whole sources; --valid none for none"
    )
    plain = tagged_run(tmp_path, 1000, "real.tsv", "back.tsv")[1]
    assert plain["train"]["num_rows"] == 3000 - plain["validation"]["num_rows"] == 2850


def test_tags_that_every_corpus_has_are_no_sign_of_synthetic_text(tmp_path):
    corpus, _, lines = tagged_run(tmp_path, 1000, "real.tsv:tag=hun", "back.tsv:tag=deu")
    assert len(corpus["validation"]) == 150
    assert {target.split()[0] for target in corpus["validation"]["target"][:]} == {"real", "synthetic"}
    assert lines["valid"].startswith("150 examples held out of the training text, whole sources;")


def test_few_real_examples_are_said_to_be_few(tmp_path):
    corpus, _, lines = tagged_run(tmp_path, 300, "real.tsv", "back.tsv:tag=bt")
    assert set(corpus) == {"train"}
    assert lines["valid"].startswith("none, for 300 training examples without a tag are too few")


def test_documents_are_held_out_before_they_are_cut(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"document number {n} says what {n} others do not\n" for n in range(600)))
    recipe = resolve_recipe(None, {"task": "continuation", "train": [str(text)], "num_splits": 3})
    corpus, facts = read_corpus(recipe)
    whole = [{s + t for s, t in zip(part["source"], part["target"], strict=True)} for part in corpus.values()]
    assert not whole[0] & whole[1]
    assert {name: len(part) for name, part in corpus.items()} == {"train": 3 * 550, "validation": 3 * 50}
    assert settle(recipe, corpus, facts, ["bleu"])[0].valid == ["50"]


def test_a_run_is_judged_and_goes_on_with_the_same_judge(tmp_path, capsys):
    files = write_reversals(tmp_path, train=600)
    keys = {**SMALL_RUN, **files, "encoder_layers": 1, "decoder_layers": 1, "save_steps": 2, "num_beams": 1}
    keys |= {"output": str(tmp_path / "run"), "test": "30", "max_new_tokens": 9}
    first = train(resolve_recipe(None, {**keys, "max_steps": 2}))
    printed = capsys.readouterr().out
    assert "valid     50 examples held out of the training text, whole sources; --valid none for none" in printed
    assert "test      30 examples held out" in printed
    assert "520 train, 50 validation, 30 test examples" in printed
    assert {"validation_exact_match", "test_exact_match_ci95"} <= first.keys()
    data = json.loads((tmp_path / "run" / "run" / "data.json").read_text())
    assert data["train"]["num_dropped"] == {"held out for test": 30, "held out for validation": 50}
    card = (tmp_path / "run" / "README.md").read_text()
    assert "30 held out for test, 50 held out for validation" in card
    assert "0 sources of the test set are training sources as well." in card
    (tmp_path / "run" / "run" / "results.json").unlink()  # as a run that has not ended
    train(resolve_recipe(None, {**keys, "max_steps": 3}))
    assert json.loads((tmp_path / "run" / "run" / "data.json").read_text()) == data
    (tmp_path / "run" / "run" / "results.json").unlink()
    with pytest.raises(RecipeError, match="valid=50 and is now asked to go on with valid=60"):
        train(resolve_recipe(None, {**keys, "valid": "60"}))
    with pytest.raises(RecipeError, match="training text has changed"):
        train(resolve_recipe(None, {**keys, "test": "40"}))


def test_examples_that_are_training_lines_say_so(tmp_path, capsys):
    files = write_reversals(tmp_path, train=60, valid=4)
    learned = (tmp_path / "train.src").read_text().splitlines()[0]
    lines = [learned, *(tmp_path / "valid.src").read_text().splitlines()[1:]]
    (tmp_path / "valid.src").write_text("".join(f"{line}\n" for line in lines))
    keys = {**SMALL_RUN, **files, "test": files["valid"], "max_steps": 1, "eval_steps": 1, "num_beams": 1}
    results = train(resolve_recipe(None, {**keys, "output": str(tmp_path / "run"), "max_new_tokens": 9}))
    printed = capsys.readouterr().out
    assert f"source     {learned}  (a training line)" in printed
    assert printed.count("(a training line)") == 2, "among the samples, and among the examples of the end"
    assert "learned   1 of 4 test sources are training lines; the others score exact_match" in printed
    assert results["test_in_training"] == 1
    assert "test_unseen_cer" in results
    card = (tmp_path / "run" / "README.md").read_text()
    assert "1 sources of the test set are training sources as well; on the others: Exact match (% of outputs)" in card


def test_targets_that_one_output_cannot_both_equal_are_told():
    pairs = {"source": ["a", "a", "b", "b", "c"], "target": ["x", "y", "z", "z", "x"]}
    corpus = DatasetDict({"train": Dataset.from_dict(pairs), "test": Dataset.from_dict(pairs)})
    assert describe_rivals(corpus).startswith("2 of 5 test examples have a source that others have with another target")
    corpus["test"] = corpus["test"].add_column(Extra.TAGS, ["<x>", "<y>", "", "", ""])
    assert describe_rivals(corpus) == ""
