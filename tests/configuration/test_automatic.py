"""What `auto` chooses: by kind of task and number of examples; and that whatever is named wins over it."""

from pathlib import Path
from typing import Any

import pytest

from seqloom.configuration.automatic import AVERAGED, Choice, choice_of_old, choose, explain
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe
from seqloom.configuration.task_kind import Looks

SENTENCES = ["Ein Mann steht auf der Straße.", "Zwei Hunde spielen im Schnee."]
CHINESE = ["一个男人站在街上。", "两只狗在雪地里玩。"]
WORDS, PHONES = ["ablakok", "gondolja"], ["ɒ b l ɒ k o k", "ɡ o n d o jː ɒ"]
TRANSLATION, SPELLING = Looks.of(SENTENCES, SENTENCES[::-1]), Looks.of(WORDS, PHONES)


def fit(num_examples: int, looks: Looks = TRANSLATION, **keys: Any) -> tuple[Recipe, str, Choice]:
    recipe = resolve_recipe(None, {"train": ["a", "b"], **keys})
    choice = choose(recipe, num_examples, looks)
    fitted = fit_recipe(recipe, choice)
    return fitted, explain(choice, recipe, fitted), choice


@pytest.mark.parametrize(
    ("num_examples", "preset", "vocab_size", "dropout", "rate", "tokens"),
    [
        (8_000, "tiny", 4_000, 0.3, 2.5e-3, 4_096),
        (30_000, "tiny", 10_000, 0.3, 3e-3, 4_096),
        (150_000, "medium", 10_000, 0.3, 5e-4, 8_192),
        (5_000_000, "base", 37_000, 0.1, 7e-4, 50_000),
        (40_000_000, "big", 32_000, 0.1, 5e-4, 50_000),
    ],
)
def test_each_size_of_translation_gets_what_was_published_for_it(
    num_examples: int, preset: str, vocab_size: int, dropout: float, rate: float, tokens: int
) -> None:
    recipe, line, _ = fit(num_examples)
    config = recipe.model_config()
    assert (recipe.preset, recipe.vocab_size, config.dropout) == (preset, vocab_size, dropout)
    assert (recipe.training_arguments["learning_rate"], recipe.tokens_per_update) == (rate, tokens)
    assert config.d_model == PRESETS[preset].model.get("d_model", 512)
    assert (recipe.tokenizers, recipe.tokenizer, recipe.joint_vocabulary) == (("bpe", "bpe"), "bpe", True)
    assert line.startswith("sentences, for they have 6 words on average: tokenizer bpe; preset ")
    for part in (f"vocabulary {vocab_size:,}", f"dropout {dropout}", f"{tokens:,} tokens an update", "epochs"):
        assert part in line


def test_words_to_phones_are_characters_to_words_in_updates_of_so_many_examples() -> None:
    recipe, line, choice = fit(8_000, SPELLING)
    assert (recipe.tokenizers, recipe.joint_vocabulary) == (("char", "word"), False)
    assert (recipe.tokenizer, recipe.source_tokenizer, recipe.target_tokenizer) == ("auto", "char", "word")
    characters, phones = 7.5 + 1, 7 + 1
    assert recipe.tokens_per_update == round(8_000 // 32 * (characters + phones))
    assert choice.metrics == ("exact_match", "per", "wer")
    assert "words -> phones, for the targets are 9 symbols" in line
    assert "tokenizer char -> word" in line
    assert "vocabulary" not in line
    assert fit(300, SPELLING)[0].tokens_per_update == round(32 * (characters + phones))
    assert fit(10**6, SPELLING)[0].tokens_per_update == round(256 * (characters + phones))
    assert fit(107_000, SPELLING)[0].preset == "small"


def test_muon_learns_strings_where_an_update_takes_longer_than_its_step() -> None:
    recipe, line, _ = fit(8_000, SPELLING)
    assert recipe.muon
    assert line.endswith("4,125 tokens an update, cosine schedule, 100 epochs, matrices learned by Muon")
    instead = [
        fit(8_000, SPELLING, muon=False),
        fit(8_000, SPELLING, optim="adafactor"),
        fit(8_000, SPELLING, init_from="parent"),
    ]
    without = [*instead, fit(300, SPELLING), fit(8_000, TRANSLATION)]
    assert not any(recipe.muon or "Muon" in line for recipe, line, _ in without)
    assert {recipe.training_arguments["num_train_epochs"] for recipe, *_ in instead} == {150}  # Adam wants more of them
    assert all("150 epochs" in line for _, line, _ in instead)
    assert fit(8_000, SPELLING, init_from="parent", muon=True)[0].muon  # warned of, and done
    assert fit(8_000, SPELLING, optim="adafactor", num_train_epochs=7)[0].training_arguments["num_train_epochs"] == 7


LABELS = Looks.of(SENTENCES * 200, ["good", "bad", "bad"] * 133 + ["good"])
SPELT = Looks.of([text[:3] + text[4:] for text in SENTENCES] * 200, SENTENCES * 200)


@pytest.mark.parametrize("looks", [LABELS, SPELT])
def test_labels_and_spelling_want_no_larger_model_than_strings(looks: Looks) -> None:
    recipe, line, _ = fit(80_000, looks)
    assert (recipe.preset, recipe.muon, recipe.training_arguments["num_train_epochs"]) == ("small", True, 20)
    assert recipe.training_arguments["warmup_steps"] == (0.1 if looks is LABELS else 1000)
    assert "3 layers of 256" in line
    assert recipe.vocab_size == (5_000 if looks is LABELS else 10_000)
    assert fit(8_000, LABELS)[0].training_arguments["num_train_epochs"] == 200


def test_labels_have_no_bleu_for_they_have_no_four_words() -> None:
    assert fit(8_000, LABELS)[2].metrics == ("exact_match", "chrf")
    commands = Looks.of(
        [text * 2 for text in SENTENCES] * 200, ["I_WALK I_RUN I_WALK I_TURN", "I_RUN I_RUN I_RUN I_WALK"] * 200
    )
    assert fit(8_000, commands)[2].metrics == ("exact_match", "chrf", "bleu")
    assert fit(8_000, Looks.of(SENTENCES, CHINESE))[2].metrics[0] == "bleu"


def documents(num_sentences: int) -> Looks:
    return Looks.of([" ".join(SENTENCES * (num_sentences // 2))] * 250, SENTENCES * 125)


def test_updates_hold_long_examples_and_epochs_are_fewer_by_as_much() -> None:
    recipe, _, _ = fit(2_000, looks := documents(60))
    tokens = looks.source.tokens("bpe") + looks.target.tokens("bpe")
    assert recipe.tokens_per_update == recipe.tokens_per_device == round(32 * tokens) > 8_192
    assert recipe.training_arguments["num_train_epochs"] == round(200 * 4_096 / recipe.tokens_per_update)
    recipe, _, _ = fit(250, documents(800))
    assert (recipe.tokens_per_update, recipe.tokens_per_device) == (25_000, 25_000)
    few_long = Looks.of([*SENTENCES * 150, *[" ".join(SENTENCES * 300)] * 6], SENTENCES[::-1] * 153)
    assert 7_000 > fit(306, few_long)[0].tokens_per_update > 300 * sum(map(len, SENTENCES)) / 4
    assert "tokens_per_device" not in fit(2_000, documents(10))[2].settings
    named = fit(2_000, documents(60), tokens_per_update=999)[0]
    assert (named.tokens_per_update, named.training_arguments["num_train_epochs"]) == (999, 200)


def test_a_side_without_spaces_has_a_vocabulary_of_its_own() -> None:
    recipe, _, _ = fit(30_000, Looks.of(CHINESE, SENTENCES))
    assert (recipe.tokenizers, recipe.joint_vocabulary, recipe.vocab_size) == (("char", "bpe"), False, 5_000)
    recipe, line, _ = fit(30_000, Looks.of(CHINESE, CHINESE[::-1]))
    assert (recipe.tokenizer, recipe.joint_vocabulary, recipe.vocab_size) == ("char", True, Recipe.vocab_size)
    assert "vocabulary" not in line


def test_what_is_named_wins() -> None:
    keys = {"dropout": 0.1, "learning_rate": 1e-3, "vocab_size": 500, "max_steps": 9, "tokens_per_update": 99}
    recipe, line, _ = fit(30_000, tokenizer="unigram", **keys)
    assert (recipe.preset, recipe.model["dropout"], recipe.vocab_size) == ("tiny", 0.1, 500)
    assert (recipe.tokenizer, recipe.tokens_per_update) == ("unigram", 99)
    assert (recipe.training_arguments["learning_rate"], recipe.training_arguments["max_steps"]) == (1e-3, 9)
    assert line.endswith("(Wu et al. 2021): all else as named")
    assert line.startswith("preset tiny")


@pytest.mark.parametrize(
    ("named", "tokenizers"),
    [
        ({"tokenizer": "bpe"}, ("bpe", "bpe")),
        ({"target_tokenizer": "char"}, ("char", "char")),
        ({"source_tokenizer": "bpe"}, ("bpe", "word")),
        ({"tokenizer": "char", "target_tokenizer": "unigram"}, ("char", "unigram")),
        ({"tokenizer": "auto"}, ("char", "word")),
        ({"joint_vocabulary": True}, ("char", "char")),
        ({"bpe_dropout": 0.1}, ("bpe", "bpe")),
        ({"bpe_dropout": 0.1, "source_tokenizer": "word"}, ("word", "word")),
        ({"preset": "base"}, ("char", "word")),
    ],
)
def test_vocabularies_go_with_what_is_named(named: dict[str, Any], tokenizers: tuple[str, str]) -> None:
    recipe, line, _ = fit(8_000, SPELLING, **named)
    assert (recipe.tokenizers, recipe.joint_vocabulary) == (tokenizers, tokenizers[0] == tokenizers[1])
    assert ("preset" in line) == ("preset" not in named)


def test_nothing_is_chosen_where_all_is_named() -> None:
    for name in ("multi30k-en-de", "g2p-cmudict", "demo"):
        shipped = resolve_recipe(name)
        choice = choose(shipped, 100, SPELLING)
        assert fit_recipe(shipped, choice) == shipped
        assert explain(choice, shipped, shipped) == ""


def test_late_checkpoints_are_averaged_where_a_run_has_some() -> None:
    assert fit(30_000, max_steps=10_000)[0].average_checkpoints == AVERAGED
    assert fit(30_000, max_steps=4_000)[0].average_checkpoints == 2
    assert fit(30_000, max_steps=1_500)[0].average_checkpoints == 0
    assert fit(30_000, max_steps=4_000, save_steps=200)[0].average_checkpoints == AVERAGED
    assert fit(30_000, max_steps=4_000, save_steps=0.05)[0].average_checkpoints == AVERAGED
    recipe, line, _ = fit(30_000, max_steps=10_000)
    assert "the last 5 checkpoints averaged" in line
    assert recipe.training_arguments["save_total_limit"] == 5
    for key, value in {
        "ema_decay": 0.9,
        "save_total_limit": 2,
        "save_strategy": "no",
        "average_checkpoints": 0,
    }.items():
        assert fit(30_000, max_steps=10_000, **{key: value})[0].average_checkpoints == 0


@pytest.mark.parametrize("looks", [TRANSLATION, SPELLING, Looks.of(CHINESE, SENTENCES)])
def test_the_fitted_recipe_comes_back_from_its_file(tmp_path: Path, looks: Looks) -> None:
    recipe, _, _ = fit(8_000, looks, valid=["c", "d"], metrics=list(choose(Recipe(), 8_000, looks).metrics))
    recipe.save(tmp_path / "recipe.yaml")
    loaded = resolve_recipe(tmp_path / "recipe.yaml")
    assert loaded == recipe
    assert loaded.training_arguments["eval_strategy"] == "steps"
    assert fit_recipe(loaded, choose(loaded, 10**7, TRANSLATION)) == loaded
    again = resolve_recipe(tmp_path / "recipe.yaml", {"tokenizer": "bpe"})
    assert again.tokenizers == ("bpe", "bpe"), "tokenizer names both sides, those of the file too"


def test_an_old_run_keeps_what_it_was_started_with(tmp_path: Path) -> None:
    recipe, _, _ = fit(8_000, TRANSLATION, average_checkpoints=0, metrics=["bleu"])
    asked = resolve_recipe(None, {"train": ["a", "b"]})
    assert fit_recipe(asked, choice_of_old(recipe)).flat() == {**recipe.flat(), "metrics": []}


def test_two_kinds_are_two_vocabularies() -> None:
    recipe = resolve_recipe(None, {"train": ["a", "b"], "source_tokenizer": "char", "target_tokenizer": "word"})
    assert not recipe.joint_vocabulary
    one = resolve_recipe(None, {"train": ["a", "b"], "source_tokenizer": "char", "target_tokenizer": "char"})
    assert (one.tokenizer, one.source_tokenizer, one.joint_vocabulary) == ("char", None, True)
    with pytest.raises(RecipeError, match="the source's is char, the target's word; leave joint_vocabulary out"):
        resolve_recipe(
            None,
            {"train": ["a", "b"], "tokenizer": "char", "target_tokenizer": "word", "joint_vocabulary": True},
        )
    with pytest.raises(RecipeError, match="name the kind of its vocabulary with tokenizer alone"):
        resolve_recipe(None, {"train": ["a"], "task": "continuation", "source_tokenizer": "char"})


def test_sources_full_of_numbers_are_read_digit_by_digit() -> None:
    sums = [(f"What is {n * 7} plus {n * 3} ?", f"It is {n * 10} , of course .") for n in range(1000, 1400)]
    recipe, line, _ = fit(8_000, Looks.of(*zip(*sums, strict=True)))
    assert recipe.tokenizer == "bpe"
    assert recipe.split_digits
    assert "numbers read digit by digit" in line
    assert not fit(8_000, Looks.of(*zip(*sums, strict=True)), split_digits=False)[0].split_digits
    years = [(f"{text} 19{n:02}", text) for text in SENTENCES for n in range(10)]
    assert not fit(8_000, Looks.of(*zip(*years, strict=True)))[0].split_digits
    assert not fit(8_000, Looks.of([source for source, _ in sums], ["AH0 B"] * 400))[0].split_digits


KOREAN, KOREAN_PHONES = ["깨지다", "한국말"], ["k͈ ɛ d͡ʑ i d a̠", "ha̠ n ɡ u ŋ m a̠ ɭ"]


def test_hangul_that_becomes_phones_is_read_letter_by_letter() -> None:
    recipe, line, _ = fit(8_000, Looks.of(KOREAN, KOREAN_PHONES))
    assert (recipe.normalization, recipe.joint_vocabulary) == ("nfd", False)
    assert "Hangul read letter by letter (nfd)" in line
    assert fit(8_000, Looks.of(KOREAN, KOREAN_PHONES), normalization="nfc")[0].normalization == "nfc"
    assert fit(8_000, Looks.of(KOREAN, ["kkaejida", "hangungmal"]))[0].normalization == "nfd"
    assert fit(8_000, Looks.of(KOREAN, KOREAN[::-1]))[0].normalization == "nfc"
    assert fit(8_000, SPELLING)[0].normalization == "nfc"


def test_sources_in_letters_have_a_vocabulary_of_their_own() -> None:
    keys: dict[str, Any] = {"train": ["a", "b"], "tokenizer": "char", "normalization": "nfd"}
    assert not resolve_recipe(None, keys).joint_vocabulary
    with pytest.raises(RecipeError, match="leave joint_vocabulary out, or take another normalization"):
        resolve_recipe(None, keys | {"joint_vocabulary": True})
    with pytest.raises(RecipeError, match="use nfc or nfkc with task=continuation"):
        resolve_recipe(None, {"train": ["a.txt"], "task": "continuation", "normalization": "nfd"})
