"""Which languages the text is in: for the model card alone, and asked for where nobody has named them."""

import os
import re
from dataclasses import replace
from pathlib import Path

from seqloom.configuration.recipe import Recipe, RecipeError
from seqloom.configuration.recipe_layers import resolve_recipe
from seqloom.training.fault_tolerance.run_folder import RunFolder
from seqloom.training.monitoring.console import say
from seqloom_cli.command import ask

NO_LANGUAGES = frozenset({"csv", "dat", "gz", "in", "out", "ref", "src", "tgt", "trg", "tsv", "txt", "xml", "zst"})
"""Endings of file names that look like a language's code."""


def settle_languages(recipe: Recipe) -> Recipe:
    """Return a recipe with the languages that a person names when asked, or that the run in its folder was told.

    Only the first process of several asks.
    """
    if recipe.is_demo or "languages" in recipe.named:
        return recipe
    known = _languages_of(RunFolder(Path(recipe.output)))
    if known is not None:
        return replace(recipe, languages=known, named=recipe.named | {"languages"})
    if os.environ.get("RANK", "0") != "0":
        return recipe
    guess = guess_languages(recipe)
    offered = f"Enter: {' '.join(guess)}, -: none" if guess else "Enter: none"
    for _ in range(3):
        answer = ask(f"Languages of the text for its model card, ISO 639 codes, the source's first ({offered}): ")
        if answer is None:
            break
        try:
            languages = [] if answer == "-" else answer.split() or guess
            return replace(recipe, languages=languages, named=recipe.named | {"languages"})
        except RecipeError as error:
            say(str(error))
    return recipe


def hint_at_languages(recipe: Recipe) -> str:
    """Return a line on how to name the languages of a run that nobody has named; "": there is nothing to say."""
    if recipe.is_demo or "languages" in recipe.named:
        return ""
    guess = guess_languages(recipe)
    example = " ".join(guess) if guess else "de" if recipe.task == "continuation" else "de en"
    doubt = ", if that is what they are" if guess else ", for example"
    return f"the model card will name no languages; --languages {example} names them{doubt}"


def guess_languages(recipe: Recipe) -> list[str]:
    """Return what looks like languages in the names of files or columns: train.de train.en, --columns de en."""
    names = [re.sub(r"\.gz$", "", name) for name in recipe.train]
    words = [name.rpartition(".")[2] for name in names] if len(names) == 2 else recipe.columns or []
    is_code = [re.fullmatch("[a-z]{2,3}", word) and word not in NO_LANGUAGES for word in words]
    return list(words) if words and all(is_code) else []


def _languages_of(folder: RunFolder) -> list[str] | None:
    """Return what the run in a folder was told; None: there is none, or its recipe cannot be read."""
    try:
        return resolve_recipe(folder.recipe_file).languages if folder.recipe_file.is_file() else None
    except ValueError:
        return None


__all__ = ["guess_languages", "hint_at_languages", "settle_languages"]
