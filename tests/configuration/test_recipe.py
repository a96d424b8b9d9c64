"""Recipes: layers, chapters, the command line, and every sentence that a mistake is answered with."""

import argparse
import dataclasses
import logging
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st
from transformers import Seq2SeqTrainingArguments

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import CHAPTERS, Recipe, RecipeError, field_docs, means_nothing, own_fields
from seqloom.configuration.recipe_flags import add_recipe_arguments, parse_flags, recipe_from_arguments
from seqloom.configuration.recipe_keys import RESERVED, SYNONYMS, known_keys
from seqloom.configuration.recipe_layers import resolve_recipe, shipped_recipes


def resolve(line: str, file: Path | None = None) -> Recipe:
    return resolve_recipe(file, parse_flags(shlex.split(line)))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        path = tmp_path / "my.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# layers --------------------------------------------------------------------


def test_defaults_are_the_papers() -> None:
    recipe = resolve("--train a.de a.en")
    arguments = recipe.training_arguments
    assert (arguments["adam_beta1"], arguments["adam_beta2"], arguments["adam_epsilon"]) == (0.9, 0.98, 1e-9)
    assert arguments["lr_scheduler_type"] == "inverse_sqrt"
    assert arguments["label_smoothing_factor"] == recipe.model_config().label_smoothing == 0.1
    assert arguments["eval_strategy"] == "steps", "a part of the training text is held out"
    assert resolve("--train a b --valid c d").training_arguments["eval_strategy"] == "steps"
    for nothing in ("none", "0", "null"):
        recipe = resolve(f"--train a b --valid {nothing}")
        assert (recipe.valid, recipe.training_arguments["eval_strategy"]) == ([], "no")


def test_later_layers_win(recipe_file: Any) -> None:
    preset = PRESETS["tiny"]
    file = recipe_file("data: {train: [a]}\nmodel: {preset: tiny, dropout: 0.2}\ntraining: {learning_rate: 1e-4}")
    recipe = resolve_recipe(file)
    assert recipe.model["d_model"] == preset.model["d_model"] == 128  # the preset over the default
    assert recipe.training_arguments["warmup_steps"] == preset.training["warmup_steps"]
    assert recipe.tokens_per_update == preset.training["tokens_per_update"]
    assert recipe.model["dropout"] == 0.2  # the file over the preset
    assert recipe.training_arguments["learning_rate"] == 1e-4
    recipe = resolve("--dropout 0 --learning-rate=3e-3 --warmup_steps 7", file)  # the command line over the file
    assert recipe.model["dropout"] == 0
    assert recipe.training_arguments["learning_rate"] == 3e-3
    assert recipe.training_arguments["warmup_steps"] == 7


def test_values_are_typed_by_their_key(recipe_file: Any) -> None:
    file = recipe_file("data:\n  train: 2024\ntraining:\n  learning_rate: 1e-3\n  save_strategy: no\n  bf16: yes\n")
    recipe = resolve_recipe(file)
    assert recipe.train == ["2024"]
    assert recipe.training_arguments["learning_rate"] == 0.001
    assert recipe.training_arguments["save_strategy"] == "no"
    assert recipe.training_arguments["bf16"] is True


def test_python_values_are_taken_as_they_are() -> None:
    recipe = resolve_recipe(None, {"train": [Path("a"), "b"], "seed": 3, "bf16": False, "eval_strategy": "no"})
    assert (recipe.train, recipe.training_arguments["seed"]) == (["a", "b"], 3)
    assert recipe.training_arguments["bf16"] is False


def test_nothing_named_is_the_demo(recipe_file: Any) -> None:
    recipe = resolve("")
    assert recipe.is_demo
    assert recipe == resolve_recipe("demo") == resolve_recipe("demo.yaml")
    assert resolve("--max_steps 3").is_demo
    assert not resolve("--train a").is_demo
    assert resolve("--train a").preset == Recipe.preset
    assert resolve_recipe(recipe_file("data: {train: []}")).is_demo


def test_a_recipe_without_text_is_no_demo(recipe_file: Any) -> None:
    file = recipe_file("model:\n  preset: tiny\n")
    with pytest.raises(
        RecipeError, match=r"my.yaml names no training text; add train: to its chapter data, or --train"
    ):
        resolve_recipe(file)
    assert resolve("--train a", file).model["d_model"] == 128


def test_model_config_takes_the_tokenizers_size() -> None:
    config = resolve("--train a --norm_position pre").model_config(vocab_size=123)
    assert (config.vocab_size, config.norm_position) == (123, "pre")


def test_a_preset_that_the_file_hides_is_said(recipe_file: Any, caplog: pytest.LogCaptureFixture) -> None:
    file = recipe_file("data: {train: [a]}\nmodel: {preset: tiny, dropout: 0.2}")
    with caplog.at_level(logging.WARNING):
        resolve("--preset tiny", file)
        assert not caplog.records
        recipe = resolve("--preset small", file)
    assert recipe.model["dropout"] == 0.2
    message = (
        "preset=small does not change dropout=0.2: the recipe file spells them out; override them on the command line "
        "too, or take them out of the file."
    )
    assert caplog.messages == [message]


# round trip --------------------------------------------------------------------


def test_a_resolved_recipe_is_grouped_and_reloads(tmp_path: Path) -> None:
    recipe = resolve(
        "--train 'a b.de' 1e-3 --valid null --columns= --lr_scheduler_kwargs '{x: 1e-5, y: \"1\"}' --seed 7"
    )
    recipe.save(tmp_path / "recipe.yaml")
    assert resolve_recipe(tmp_path / "recipe.yaml") == recipe
    assert [line[:-1] for line in recipe.to_yaml().splitlines() if line and line[0] != " "] == list(CHAPTERS)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
WORD = TEXT | st.sampled_from(["null", "~", "no", "1e-3", "010", "[x]", "{x}", "- x", "a: b", "#", "今天.txt", " a "])
COUNT = st.integers(1, 10**6)
VALID = st.lists(WORD, max_size=2).filter(lambda names: not names or not means_nothing(names))
VALUES = st.fixed_dictionaries(
    {"train": st.lists(WORD, min_size=1, max_size=2), "valid": VALID},
    optional={
        "vocab_size": st.integers(5, 10**6),
        "joint_vocabulary": st.booleans(),
        "normalization": st.sampled_from(["nfc", "nfkc", "none"]),
        "preset": st.sampled_from(sorted(PRESETS)),
        "dropout": st.floats(0, 0.99),
        "use_gated_ffn": st.booleans(),
        "output": WORD.filter(lambda word: word.strip() and word[0] != "~"),  # which is the home folder
        "max_source_length": st.none() | COUNT,
        "tokens_per_update": COUNT,
        "learning_rate": st.floats(0, 1),
        "warmup_steps": st.integers(0, 10**5) | st.floats(0, 1),
        "max_steps": st.just(-1) | st.integers(1, 10**6),
        "bf16": st.booleans(),
        "tf32": st.booleans() | st.none(),
        "report_to": WORD.filter(lambda word: word[0] != "[") | st.lists(WORD, max_size=2),
        "save_strategy": st.sampled_from(["no", "steps", "epoch", "best"]),
        "run_name": st.none() | TEXT,
        "lr_scheduler_kwargs": st.none()
        | st.dictionaries(TEXT, WORD | COUNT | st.floats(0, 1) | st.booleans(), max_size=2),
        "metrics": st.lists(WORD, max_size=2),
    },
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
@example({"train": ["a"], "metrics": ["auto"]})
def test_every_recipe_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    try:
        recipe = resolve_recipe(None, values)
    except RecipeError as error:  # a name that says what cannot be, such as -5 or a.tsv:0
        if re.search(r"cannot (be held out|hold examples|stand in front)|says nothing of text", str(error)):
            reject()
        raise
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.save(file)
    assert resolve_recipe(file) == recipe
    for name, value in values.items():
        owner = known_keys()[name].owner
        meant = [] if (name, value) == ("metrics", ["auto"]) else value  # auto is to name none
        assert (getattr(recipe, name) if owner == "recipe" else getattr(recipe, owner)[name]) == meant


# the command line --------------------------------------------------------------------


def test_flags_in_every_spelling() -> None:
    line = "--train a b --tokens-per-update=9 --joint_vocabulary false --bf16 --max_steps -1 --seed 1 --seed 2"
    recipe = resolve(line)
    assert (recipe.train, recipe.tokens_per_update, recipe.joint_vocabulary) == (["a", "b"], 9, False)
    assert recipe.training_arguments["bf16"] is True
    assert recipe.training_arguments["max_steps"] == -1
    assert recipe.training_arguments["seed"] == 2


def test_several_values_make_a_list() -> None:
    assert resolve("--train a --report_to wandb tensorboard").training_arguments["report_to"] == [
        "wandb",
        "tensorboard",
    ]
    assert resolve("--train a --report_to none").training_arguments["report_to"] == "none"
    assert resolve("--train '[a, b]'").train == ["a", "b"]


def test_the_parser_of_the_training_script(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(prog="train.py")
    add_recipe_arguments(parser)
    recipe = recipe_from_arguments(*parser.parse_known_args(["--train", "a", "--recipe", "multi30k-en-de", "--valid="]))
    assert (recipe.train, recipe.valid, recipe.num_beams) == (["a"], [], 5)
    with pytest.raises(RecipeError, match="reci=demo is not a recipe key"):
        recipe_from_arguments(*parser.parse_known_args(["--reci", "demo"]))
    for flag, wanted in (("--help", "--tokens_per_update"), ("--help_all", "--weight_decay")):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])
        text = capsys.readouterr().out
        assert wanted in text
        assert all(f"--{item.name}" in text for item in own_fields())


def test_every_key_has_a_chapter_a_type_and_a_meaning() -> None:
    assert set(field_docs(Recipe)) == {field.name for field in dataclasses.fields(Recipe)}
    for key in known_keys().values():
        assert key.chapter in CHAPTERS
        assert key.help, key.name


def test_reserved_and_foreign_names_point_to_real_keys() -> None:
    fields = {field.name for cls in (Seq2SeqTrainingArguments, SeqloomConfig) for field in dataclasses.fields(cls)}
    assert set(RESERVED) <= fields
    assert set(SYNONYMS.values()) <= set(known_keys())
    assert not {*SYNONYMS, *RESERVED} & set(known_keys())


# shipped recipes --------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_explain_every_key(name: str) -> None:
    import importlib.resources

    recipe = resolve_recipe(name)
    assert recipe.model_config().vocab_size == recipe.vocab_size
    text = importlib.resources.files("seqloom.configuration.recipes").joinpath(f"{name}.yaml").read_text("utf-8")
    assert text.startswith("# ")
    assert set(shipped_recipes()) >= {"demo", "zh-continuation", "multi30k-en-de", "g2p-cmudict"}


def test_multi30k_has_the_published_geometry() -> None:
    recipe = resolve_recipe("multi30k-en-de")
    config, arguments = recipe.model_config(), recipe.training_arguments
    assert (config.encoder_layers, config.decoder_layers, config.d_model, config.encoder_ffn_dim) == (4, 4, 128, 256)
    assert (config.encoder_attention_heads, config.dropout) == (4, 0.3)
    assert (recipe.tokenizer, recipe.vocab_size, recipe.joint_vocabulary) == ("bpe", 10_000, True)
    assert (arguments["label_smoothing_factor"], recipe.average_checkpoints, recipe.num_beams) == (0.1, 10, 5)


def test_a_file_in_the_folder_goes_before_a_shipped_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text("data: {train: [mine]}")
    assert resolve_recipe("demo").train == ["mine"]


# errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--learning_rate fast", "learning_rate=fast must be a number; for example learning_rate=0.001."),
        ("--vocab_size 10,000", "vocab_size=10,000 must be a whole number; for example vocab_size=10000."),
        ("--bf16 maybe", "bf16=maybe must be true or false; for example bf16=false."),
        (
            "--test",
            "test stands without a value; write the names of one or two files behind it, for example --test test.de",
        ),
        (
            "--columns",
            "columns stands without a value; write one or more words behind it, for example --columns german",
        ),
        (
            "--seed",
            "seed stands without a value; write a whole number behind it, for example --seed 42, or leave it out.",
        ),
        ("--output a b", "output=a b must be text; for example output=seqloom-model."),
        ("--vocab_size 2", "vocab_size=2 is too small; it must be at least 5."),
        ("--learning_rate -1", "learning_rate=-1 is too small; it must be at least 0."),
        ("--learning_rate inf", "learning_rate=inf must be a number"),
        ("--num_proc 9999999999", "num_proc=9999999999 is too large; it must be at most 1,000,000,000."),
        ("--vocab_size 10000000000", "vocab_size=10000000000 is too large; it must be at most 1,000,000,000."),
        ("--max_steps 0", "max_steps=0 is too small; it must be at least 1, or -1: num_train_epochs decides."),
        ("--max_steps -3", "max_steps=-3 is too small; it must be at least 1, or -1"),
        ("--eval_steps 0", "eval_steps=0 is too small; it must be above 0: a number of updates, or a share of"),
        ("--save_steps -2", "save_steps=-2 is too small; it must be above 0"),
        ("--save_total_limit 0", "save_total_limit=0 is too small; it must be at least 1, or null: all are kept."),
        ("--adam_beta2 1", "adam_beta2=1 is too large; it must be at least 0 and below 1."),
        ("--seed 4294967296", "seed=4294967296 is too large; it must be at least 0 and at most 4,294,967,295."),
        ("--train mine --valid 2.0", "valid=2.0 cannot be held out; write a number of examples, 1000, or a share"),
        ("--train mine --test -5", "test=-5 cannot be held out; write a number of examples"),
        ("--task pair", "task=pair is unknown; did you mean pairs? It must be one of pairs, continuation."),
        ("--resume always", "resume=always must be one of auto, never; for example resume=auto."),
        ("--optim adam", "optim=adam is unknown; did you mean adamw_torch?"),
        ("--preset smal", "preset=smal is unknown; did you mean small? It must be one of demo, tiny, small, medium"),
        ("--learing_rate 1", "learing_rate=1 is not a recipe key; did you mean learning_rate?"),
        ("--tokens_per_updat 1", "tokens_per_updat=1 is not a recipe key; did you mean tokens_per_update?"),
        ("--batch_size 32", "batch_size=32 is not a recipe key; did you mean tokens_per_update?"),
        ("--hidden_size 3", "hidden_size=3 is not a recipe key; did you mean d_model?"),
        ("--qqqq 1", "qqqq=1 is not a recipe key; seqloom train --help_all lists all keys."),
        ("--output_dir x", "output_dir cannot be set in a recipe: use output."),
        (
            "--per_device_train_batch_size 8",
            "per_device_train_batch_size cannot be set in a recipe: use tokens_per_device",
        ),
        ("--label_smoothing 0.1", "label_smoothing cannot be set in a recipe: use label_smoothing_factor."),
        ("--label_smoothing_factor 1", "label_smoothing_factor=1 is outside [0, 1); it is a share, e.g. 0.1."),
        ("--encoder_attention_heads 7", "encoder_attention_heads=7 does not divide d_model=256; use one of 1, 2, 4"),
        ("--norm_position middle", "norm_position='middle' is unknown; use one of post, pre."),
        ("--train a b c", "train names 3 files (a, b, c); give two line-aligned files, source and target, or one file"),
        ("--task continuation --train a b", "train=a b: task=continuation reads one raw text, not two aligned files"),
        ("--task continuation --valid a b", "valid=a b: task=continuation reads one raw text"),
        (
            "--task continuation --joint_vocabulary no",
            "joint_vocabulary=false: prompt and continuation are one language",
        ),
        ("--num_splits 2", "num_splits=2 splits documents, and task=pairs has none; leave it out, or use task="),
        ("--columns a", "columns=a does not fit task=pairs; it reads two columns, source and target."),
        (
            "--task continuation --columns a b",
            "columns=a b does not fit task=continuation; it reads one column, the text",
        ),
        (
            "--columns a b --train x y",
            "columns=a b: the line-aligned files x and y have no columns; leave columns out.",
        ),
        (
            "--languages en German",
            "languages=en German: German is not a language code; write two or three small letters",
        ),
        ("--where language", "where=language names no column and value; write COLUMN=VALUE, e.g. language=de."),
        ("--where =de", "where==de names no column and value; write COLUMN=VALUE"),
        ("--where a=b --train x y", "where=a=b: the line-aligned files x and y have no columns to select by"),
        ("--overwrite", "overwrite=true starts over and resume=auto goes on; add --resume never, or leave overwrite"),
        (
            "--eval_strategy steps --valid none",
            "eval_strategy=steps needs something to score and valid names nothing; add --valid",
        ),
        (
            "--bpe_dropout 0.1 --tokenizer char",
            "bpe_dropout=0.1 skips merges or words and tokenizer=char has neither; leave",
        ),
        ("--bpe_dropout 1", "bpe_dropout=1 is outside [0, 1); use e.g. 0.1, or 0 for off."),
        (
            "--packing true --attention_dropout 0.1",
            "packing=true has no kernel with attention_dropout=0.1; set it to 0 (dropout stays), or leave packing out.",
        ),
        ("--ema_decay 1", "ema_decay=1 is outside [0, 1); use e.g. 0.999, or 0 for off."),
        (
            "--ema_decay 0.9 --average_checkpoints 3",
            "ema_decay=0.9 and average_checkpoints=3 are two ways to average the same weights; leave one of them out.",
        ),
        ("--average_by best", "average_by=best chooses among checkpoints and average_checkpoints=0 takes none; add"),
        (
            "--average_checkpoints 5 --save_strategy no",
            "average_checkpoints=5 needs checkpoints and save_strategy=no writes none; use save_strategy=steps.",
        ),
        (
            "--average_checkpoints 5 --save_total_limit 4",
            "save_total_limit=4 deletes checkpoints that average_checkpoints=5 needs; raise it to 5 or leave it out.",
        ),
        (
            "--early_stopping_patience 3 --valid none",
            "early_stopping_patience=3 needs a score to compare and eval_strategy=no gives none; add --valid.",
        ),
        (
            "--train a b --early_stopping_patience 3 --eval_strategy no",
            "early_stopping_patience=3 needs a score to compare and eval_strategy=no gives none; leave it out.",
        ),
        (
            "--train a b --valid c d --average_by best --average_checkpoints 2 --save_strategy epoch",
            "average_by=best needs a checkpoint for each score: eval_strategy=steps and save_strategy=epoch must be",
        ),
        (
            "--train a b --valid c d --early_stopping_patience 3 --eval_steps 200",
            "early_stopping_patience=3 needs a score for each checkpoint: save_steps=500 is not a multiple of",
        ),
    ],
)
def test_a_mistake_is_answered_with_value_rule_and_remedy(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        resolve(line if "--train" in line else f"--train x {line}")
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--valid a", "valid=a is given and train is not; add --train with your training text, or leave valid out"),
        ("--task continuation", "task=continuation needs a text and train names none; add --train FILE."),
        ("--where a=b", "where=a=b: the demo has no columns to select by; leave where out."),
        ("--columns a b", "columns=a b: the demo has no columns; leave columns out."),
        ("a.tsv", "a.tsv stands alone; write --key value, for example --train a.tsv."),
    ],
)
def test_mistakes_without_training_text(line: str, sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve(line)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rate: 1", "learning_rate stands outside the chapters; it belongs in training:"),
        ("model: {learning_rate: 1}", "learning_rate stands in the chapter model; it belongs in training:"),
        ("training: {vocab_size: 100}", "vocab_size stands in the chapter training; it belongs in tokenizer:"),
        (
            "tokenizer: bpe",
            "tokenizer='bpe': tokenizer is a chapter; write its keys below it, for example tokenizer: {tok",
        ),
        ("trainig: {seed: 1}", "trainig is not a chapter of a recipe; did you mean training? they are data, tokenizer"),
        ("learing_rate: 1", "learing_rate=1 is not a recipe key; did you mean learning_rate?"),
        ("model: {d_modle: 1}", "d_modle=1 is not a recipe key; did you mean d_model?"),
        ("training: {seed: x}", "seed=x must be a whole number; for example seed=42."),
        ("- a", "a recipe is a mapping of the chapters data, tokenizer, model, training, evaluation; this is ['a']."),
    ],
)
def test_a_mistake_in_a_file_names_the_file(recipe_file: Any, text: str, sentence: str) -> None:
    file = recipe_file(text)
    with pytest.raises(RecipeError) as caught:
        resolve_recipe(file)
    assert str(caught.value).startswith(f"{file}: {sentence}")


def test_unreadable_recipes(recipe_file: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"my.yaml is not valid YAML, line 1, column 1: seed stands there twice"):
        resolve_recipe(recipe_file("seed: 1\nseed: 2"))
    (tmp_path / "latin.yaml").write_bytes(b"data: {train: [\xe9]}")
    with pytest.raises(RecipeError, match=r"latin.yaml is not UTF-8 text \(byte 15\); save it as UTF-8."):
        resolve_recipe(tmp_path / "latin.yaml")
    with pytest.raises(RecipeError, match=r"recipe=demoo is neither a file nor a shipped recipe; did you mean demo\?"):
        resolve_recipe("demoo")


def test_a_token_never_stands_in_a_message() -> None:
    with pytest.raises(RecipeError, match=r"hub_token cannot be set in a recipe: .*HF_TOKEN") as caught:
        resolve("--train a --hub_token hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_where_groups_values_by_column() -> None:
    recipe = resolve("--train x.tsv --where lang=de lang=nl text=a=b")
    assert recipe.selection() == {"lang": ["de", "nl"], "text": ["a=b"]}


def test_the_home_in_output_is_found_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = resolve_recipe(None, {"output": "~/m"})
    assert recipe.output == str(tmp_path / "m") == resolve_recipe(None, {"output": recipe.output}).output
    with pytest.raises(RecipeError, match="is, or lies in, the folder to be written; name another --output"):
        resolve_recipe(None, {"output": "~/m", "train": ["a.tsv"], "init_from": str(tmp_path / "m" / "checkpoint-5")})


def test_averaging_and_the_best_have_room_beside_each_other() -> None:
    keys = {"train": ["a.tsv"], "average_checkpoints": 5}
    assert resolve_recipe(None, keys).training_arguments["save_total_limit"] == 5
    assert resolve_recipe(None, {**keys, "load_best_model_at_end": True}).training_arguments["save_total_limit"] == 6
