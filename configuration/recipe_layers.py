"""From layers to a recipe, the later one wins: defaults < preset < recipe file < command line.

A recipe file groups its keys by chapter; on the command line they are flat. The resolved recipe is written into the run
folder and can be started again as it is.
"""

import logging
from collections.abc import Mapping
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from seqloom.configuration.automatic import Choice
from seqloom.configuration.data_size import AUTO, starting_preset
from seqloom.configuration.recipe import CHAPTERS, HOLD_OUT, SIDES, Recipe, RecipeError, means_nothing
from seqloom.configuration.recipe_keys import TRAINING_DEFAULTS, known_keys, own_keys, read_value, refuse_key
from seqloom.configuration.recipe_values import read_yaml
from seqloom.configuration.suggestion import did_you_mean

logger = logging.getLogger(__name__)

DEMO_RECIPE = "demo"
"""The shipped recipe that runs when nothing is named."""


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with Seqloom, for `--recipe NAME`."""
    folder = resources.files("seqloom.configuration.recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def resolve_recipe(file: str | PathLike[str] | None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Lay the layers of a recipe on top of each other: defaults < preset < recipe file < overrides.

    Args:
        file: a YAML file, or the bare name of a shipped recipe; None: the defaults where `overrides` names training
            text, else the date demo.
        overrides: recipe keys without chapters, as on the command line; text is converted to what the key holds.

    Raises:
        RecipeError: naming the key, the rule and the remedy; ValueError: where `SeqloomConfig` refuses the model.
    """
    chosen = _read_flat(overrides or {}, where="")
    if file is None and not chosen.get("train"):
        file = DEMO_RECIPE
    written = {} if file is None else _read_file(file)
    if file is not None and "train" not in {**written, **chosen}:
        raise RecipeError(
            f"{file} names no training text; add train: to its chapter data, or --train to the command line "
            f"(train: [] stands for the built-in date demo)."
        )
    if "tokenizer" in chosen:  # names both sides, those of the file too
        written = {key: value for key, value in written.items() if key not in ("source_tokenizer", "target_tokenizer")}
    _warn_of_hidden_preset(written, chosen)
    preset = starting_preset({"preset": Recipe.preset, **written, **chosen}["preset"])
    named = frozenset({**written, **chosen})
    return _build({**TRAINING_DEFAULTS, **preset.model, **preset.training, **written, **chosen}, named)


def fit_recipe(recipe: Recipe, choice: Choice) -> Recipe:
    """Put what the training text suggests into a recipe with `auto` for its preset or tokenizers.

    Args:
        recipe: as `resolve_recipe` left it.
        choice: of `automatic.choose`, or what the run recorded of it.

    Returns:
        The recipe, in which every value that its author did not name fits the data. One that leaves nothing to choose
        comes back as it is.

    Raises:
        RecipeError, ValueError: where what was named does not go together with what was chosen.
    """
    if recipe.preset != AUTO and AUTO not in recipe.tokenizers:
        return recipe
    flat = recipe.flat()
    if recipe.preset == AUTO:
        named = {key: flat[key] for key in recipe.named - {"preset"}}
        flat = {**TRAINING_DEFAULTS, **choice.settings, **named}
    flat |= dict(zip(SIDES, recipe.tokenizers_or(choice.tokenizers), strict=True))
    return _build(flat, recipe.named)


def with_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Put values into a recipe for those keys that its author did not name.

    Raises:
        RecipeError, ValueError: where they do not go together with what was named.
    """
    own = {key: value for key, value in values.items() if key not in recipe.named}
    return _build({**recipe.flat(), **own}, recipe.named)


def _read_file(file: str | PathLike[str]) -> dict[str, Any]:
    """Read a recipe file and flatten its chapters."""
    try:
        document = read_yaml(_recipe_text(file))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except ValueError as error:
        raise error if isinstance(error, RecipeError) else RecipeError(f"{file} is {error}.") from error
    return _read_flat(_flatten({} if document is None else document, f"{file}: "), where=f"{file}: ")


def _recipe_text(file: str | PathLike[str]) -> str:
    """The text of a file, or of a shipped recipe where no such file exists."""
    if Path(file).is_file():
        return Path(file).read_text(encoding="utf-8-sig")
    shipped, name = shipped_recipes(), str(file).removesuffix(".yaml")
    if name in shipped:
        return resources.files("seqloom.configuration.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    raise RecipeError(
        f"recipe={file} is neither a file nor a shipped recipe; {did_you_mean(name, shipped)}the shipped ones are "
        f"{', '.join(shipped)}."
    )


def _flatten(document: Any, where: str) -> dict[str, Any]:
    """Take the chapters away, refusing keys that stand in the wrong one."""
    if not isinstance(document, dict):
        raise RecipeError(f"{where}a recipe is a mapping of the chapters {', '.join(CHAPTERS)}; this is {document!r}.")
    flat: dict[str, Any] = {}
    for chapter, content in document.items():
        if chapter not in CHAPTERS:
            _refuse_chapter(str(chapter), content, where)
        if content is not None and not isinstance(content, dict):
            raise RecipeError(
                f"{where}{chapter}={content!r}: {chapter} is a chapter; write its keys below it, "
                f"for example {chapter}: {{{_first_key(chapter)}: ...}}."
            )
        for name, value in (content or {}).items():
            _check_chapter(str(name), chapter, where)
            flat[str(name)] = value
    return flat


def _refuse_chapter(name: str, value: Any, where: str) -> NoReturn:
    if name in known_keys():
        raise RecipeError(f"{where}{name} stands outside the chapters; it belongs in {known_keys()[name].chapter}:")
    if not isinstance(value, dict):
        refuse_key(name, value, where)
    hint = did_you_mean(name, CHAPTERS)
    raise RecipeError(f"{where}{name} is not a chapter of a recipe; {hint}they are {', '.join(CHAPTERS)}.")


def _check_chapter(name: str, chapter: str, where: str) -> None:
    key = known_keys().get(name)
    if key is not None and key.chapter != chapter:
        raise RecipeError(f"{where}{name} stands in the chapter {chapter}; it belongs in {key.chapter}:")


def _read_flat(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert every value to what its key holds."""
    return {name: read_value(name, value, where) for name, value in values.items()}


def _warn_of_hidden_preset(written: Mapping[str, Any], chosen: Mapping[str, Any]) -> None:
    """A preset named on the command line loses against every value that the recipe file spells out."""
    if chosen.get("preset", AUTO) in (AUTO, written.get("preset", chosen.get("preset"))):
        return
    preset = starting_preset(chosen["preset"])
    hidden = [
        f"{name}={written[name]}"
        for name, value in {**preset.model, **preset.training}.items()
        if name not in chosen and written.get(name, value) != value
    ]
    if hidden:
        logger.warning(
            f"preset={preset.name} does not change {', '.join(hidden)}: the recipe file spells them out; "
            f"override them on the command line too, or take them out of the file."
        )


def _build(values: Mapping[str, Any], named: frozenset[str]) -> Recipe:
    """Hand every value to its owner and check them together."""
    owned: dict[str, dict[str, Any]] = {"recipe": {}, "model": {}, "training_arguments": {}}
    for name, value in values.items():
        owned[known_keys()[name].owner][name] = value
    has_validation = not means_nothing(owned["recipe"].get("valid", [HOLD_OUT])) or not owned["recipe"].get("train")
    owned["training_arguments"].setdefault("eval_strategy", "steps" if has_validation else "no")
    if "save_total_limit" not in named:  # what is to be averaged must still be there at the end
        wants_best = owned["training_arguments"].get("load_best_model_at_end")
        wants_best = wants_best or owned["recipe"].get("early_stopping_patience")
        averaged = owned["recipe"].get("average_checkpoints", 0)
        kept = max(TRAINING_DEFAULTS["save_total_limit"], averaged + bool(wants_best))
        owned["training_arguments"]["save_total_limit"] = kept
    recipe = Recipe(
        **owned["recipe"], model=owned["model"], training_arguments=owned["training_arguments"], named=named
    )
    recipe.model_config()  # refuses a model that cannot be built before any data is read
    return recipe


def _first_key(chapter: str) -> str:
    return next(key.name for key in own_keys() if key.chapter == chapter)


__all__ = ["DEMO_RECIPE", "fit_recipe", "resolve_recipe", "shipped_recipes", "with_values"]
