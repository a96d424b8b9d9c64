"""Defaults that depend on the data: the row for a size, and that whatever is named wins over it."""

import itertools
from typing import Any

import pytest

from seqloom.configuration.data_size import SIZES, settings_for, size_for
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import Recipe
from seqloom.configuration.recipe_layers import fit_recipe, resolve_recipe


def fit(num_examples: int, **keys: Any) -> tuple[Recipe, str]:
    return fit_recipe(resolve_recipe(None, {"train": ["a", "b"], **keys}), num_examples)


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
def test_each_size_gets_what_was_published_for_it(
    num_examples: int, preset: str, vocab_size: int, dropout: float, rate: float, tokens: int
) -> None:
    recipe, reason = fit(num_examples)
    config = recipe.model_config()
    assert (recipe.preset, recipe.vocab_size, config.dropout) == (preset, vocab_size, dropout)
    assert (recipe.training_arguments["learning_rate"], recipe.tokens_per_update) == (rate, tokens)
    assert config.d_model == PRESETS[preset].model.get("d_model", 512)
    assert reason.startswith(f"preset {preset} for {num_examples:,} examples, ")
    for part in (f"vocabulary {vocab_size:,}", f"dropout {dropout}", f"{tokens:,} tokens an update", "epochs"):
        assert part in reason


def test_larger_data_never_gets_less() -> None:
    rows = [settings_for(int(size.below) - 1 if size.below < 1e9 else 10**9, tokenizer="bpe") for size in SIZES]
    names = [row["preset"] for row in rows]
    assert names == sorted(names, key=list(PRESETS).index)
    assert all(a["dropout"] >= b["dropout"] for a, b in itertools.pairwise(rows))
    assert all(a["num_train_epochs"] > b["num_train_epochs"] for a, b in itertools.pairwise(rows))
    assert [size_for(count) for count in (1, 15_000, 10**12)] == [SIZES[0], SIZES[1], SIZES[-1]]


def test_what_is_named_wins() -> None:
    recipe, reason = fit(30_000, dropout=0.1, learning_rate=1e-3, vocab_size=500, max_steps=9, tokens_per_update=99)
    assert (recipe.preset, recipe.model["dropout"], recipe.vocab_size) == ("tiny", 0.1, 500)
    assert recipe.training_arguments["learning_rate"] == 1e-3
    assert recipe.training_arguments["max_steps"] == 9
    assert recipe.tokens_per_update == 99
    assert reason.endswith("(Wu et al. 2021): all else as named")


def test_a_named_preset_is_left_alone() -> None:
    recipe = resolve_recipe(None, {"train": ["a", "b"], "preset": "base"})
    assert fit_recipe(recipe, 100) == (recipe, "")
    shipped = resolve_recipe("multi30k-en-de")
    assert fit_recipe(shipped, 100) == (shipped, "")


def test_characters_are_as_many_as_there_are() -> None:
    recipe, reason = fit(5_000_000, tokenizer="char")
    assert recipe.vocab_size == Recipe.vocab_size
    assert "vocabulary" not in reason


def test_the_fitted_recipe_comes_back_from_its_file(tmp_path: Any) -> None:
    recipe, _ = fit(8_000, valid=["c", "d"], average_checkpoints=5)
    recipe.save(tmp_path / "recipe.yaml")
    loaded = resolve_recipe(tmp_path / "recipe.yaml")
    assert loaded == recipe
    assert loaded.training_arguments["eval_strategy"] == "steps"
    assert fit_recipe(loaded, 10**7) == (loaded, "")
