"""A short run of what goes on for hours by hand: recipes and files that nobody would write."""

from tests.fuzz import fuzz_corpora, fuzz_recipes


def test_every_recipe_is_resolved_or_refused() -> None:
    assert fuzz_recipes.run(examples=200) >= 200


def test_every_file_is_read_or_refused() -> None:
    assert fuzz_corpora.run(examples=200) >= 200
