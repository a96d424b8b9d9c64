"""The recipe, from its layers: one YAML grouped by chapter, flat on the command line.

Four layers make a recipe, the later one wins: defaults < preset < recipe file < command line. The resolved recipe is
written into the run folder and can be started again as it is. What the keys are and mean stands in `recipe_fields`
(ours) and `recipe_keys` (all).
"""

import argparse
import logging
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from seqloom.configuration.data_size import AUTO, PROVISIONAL, explain_choice, settings_for, starting_preset
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe_fields import CHAPTERS, Recipe, RecipeError
from seqloom.configuration.recipe_keys import (
    TRAINING_DEFAULTS,
    Key,
    known_keys,
    own_keys,
    read_value,
    refuse_key,
    shown,
)
from seqloom.configuration.recipe_values import PlainText, choices_of, read_yaml

logger = logging.getLogger(__name__)

DEMO_RECIPE = "demo"
"""The shipped recipe that runs when nothing is named."""


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with Seqloom, for `--recipe NAME`."""
    folder = resources.files("seqloom.configuration.recipes")
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def load_recipe(path: str | PathLike[str]) -> Recipe:
    """Read a recipe file, or a shipped recipe by its bare name.

    Raises:
        RecipeError: naming the file, the key, the rule and the remedy.
    """
    return resolve_recipe(path, {})


def resolve_recipe(file: str | PathLike[str] | None, overrides: Mapping[str, Any]) -> Recipe:
    """Lay the layers of a recipe on top of each other: defaults < preset < recipe file < overrides.

    Args:
        file: a YAML file, or the bare name of a shipped recipe; None: the defaults where `overrides` names training
            text, else the date demo.
        overrides: recipe keys without chapters, as on the command line; text is converted to what the key holds.

    Raises:
        RecipeError: naming the key, the rule and the remedy; ValueError: where `SeqloomConfig` refuses the model.
    """
    chosen = _read_flat(overrides, where="")
    if file is None and not chosen.get("train"):
        file = DEMO_RECIPE
    written = {} if file is None else _read_file(file)
    if file is not None and "train" not in {**written, **chosen}:
        raise RecipeError(
            f"{file} names no training text; add train: to its chapter data, or --train to the command line "
            f"(train: [] stands for the built-in date demo)."
        )
    _warn_of_hidden_preset(written, chosen)
    preset = starting_preset({"preset": _own_default("preset"), **written, **chosen}["preset"])
    named = frozenset({**written, **chosen})
    return _build({**TRAINING_DEFAULTS, **preset.model, **preset.training, **written, **chosen}, named)


def fit_recipe(recipe: Recipe, num_examples: int) -> tuple[Recipe, str]:
    """Put what the size of the data suggests into a recipe with `preset: auto`; any other comes back as it is.

    Args:
        recipe: as `resolve_recipe` left it.
        num_examples: training examples, known once the corpus is read.

    Returns:
        The recipe, in which every value that its author did not name fits the data, and a line that says why; the
        line is empty where a preset was named.

    Raises:
        RecipeError, ValueError: where what was named does not go together with what was chosen.
    """
    if recipe.preset != AUTO:
        return recipe, ""
    flat = recipe.flat()
    named = {key: flat[key] for key in recipe.named - {"preset"}}
    settings = settings_for(num_examples, tokenizer=recipe.tokenizer)
    fitted = _build({**TRAINING_DEFAULTS, **settings, **named}, recipe.named)
    return fitted, explain_choice(num_examples, fitted.flat(), recipe.named)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser what `seqloom train` takes; read the rest with `parse_known_args` and `recipe_from_arguments`."""
    parser.allow_abbrev = False
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help=f"a recipe, or the name of a shipped one: {', '.join(shipped_recipes())}; every key below overrides it",
    )
    parser.add_argument("--help_all", "--help-all", action=_HelpAll, help="also list the keys that are passed through")
    parser.epilog = _overview()


def recipe_from_arguments(namespace: argparse.Namespace, unknown: Sequence[str]) -> Recipe:
    """Resolve the recipe of a command line.

    Args:
        namespace: what the parser of `add_recipe_arguments` understood.
        unknown: what it left over: `--key value`, `--key=value`, `--train A B`, `--bf16`; `-` and `_` are the same.

    Raises:
        RecipeError: for anything that is no recipe key, with the one that was probably meant.
    """
    return resolve_recipe(namespace.recipe, parse_flags(unknown))


def parse_flags(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `--key value ...` pairs: no value means true, several make a list, the last of equal flags wins.

    Raises:
        RecipeError: for a value that no flag stands before.
    """
    flags: dict[str, list[str]] = {}
    values: list[str] | None = None
    for argument in arguments:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            values = flags[name.replace("-", "_")] = [value] if equals else []
        elif values is None:
            raise RecipeError(f"{argument} stands alone; write --key value, for example --train {argument}.")
        else:
            values.append(argument)
    return {name: _flag_value(values) for name, values in flags.items()}


def _flag_value(values: list[str]) -> Any:
    if len(values) == 1:
        return PlainText(values[0])
    return values or True


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
    near = get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise RecipeError(
        f"recipe={file} is neither a file nor a shipped recipe; {hint}the shipped ones are {', '.join(shipped)}."
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
    near = get_close_matches(name, CHAPTERS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
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
    has_validation = bool(owned["recipe"].get("valid")) or not owned["recipe"].get("train")
    owned["training_arguments"].setdefault("eval_strategy", "steps" if has_validation else "no")
    if "save_total_limit" not in named:  # what is to be averaged must still be there at the end
        kept = max(TRAINING_DEFAULTS["save_total_limit"], owned["recipe"].get("average_checkpoints", 0))
        owned["training_arguments"]["save_total_limit"] = kept
    recipe = Recipe(
        **owned["recipe"], model=owned["model"], training_arguments=owned["training_arguments"], named=named
    )
    recipe.model_config()  # refuses a model that cannot be built before any data is read
    return recipe


class _HelpAll(argparse.Action):
    """`--help_all`: the help, then the keys that are passed through to the model and to the Trainer."""

    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        passed = [key for key in known_keys().values() if key.owner != "recipe"]
        print(parser.format_help() + "\n" + "\n\n".join(_help_chapters(passed)))
        parser.exit()


def _overview() -> str:
    """The part of `--help` that explains the keys of Seqloom's own."""
    pointer = (
        "Every field of SeqloomConfig (d_model, encoder_layers, dropout, norm_position, ...) and of transformers' "
        "Seq2SeqTrainingArguments (learning_rate, max_steps, num_train_epochs, warmup_steps, save_steps, eval_steps, "
        "seed, bf16, report_to, ...) is a key too: --help_all lists them. Without --recipe and --train the built-in "
        f"date demo is trained. Values in [brackets] are the defaults; preset auto starts from {PROVISIONAL} and lets "
        "the number of training examples decide on what nobody names."
    )
    presets = "\n".join(_help_line(name, preset.description) for name, preset in PRESETS.items())
    return "\n\n".join([*_help_chapters(own_keys()), f"presets:\n{presets}", textwrap.fill(pointer, 110)])


def _help_chapters(keys: Iterable[Key]) -> list[str]:
    keys = list(keys)
    grouped = ((chapter, [key for key in keys if key.chapter == chapter]) for chapter in CHAPTERS)
    return [f"{chapter}:\n" + "\n".join(_help_key(key) for key in group) for chapter, group in grouped if group]


def _help_key(key: Key) -> str:
    default = "" if key.default in (None, [], "") else f" [{shown(getattr(key.default, 'value', key.default))}]"
    choices = choices_of(key.hint)
    words = f" {{{', '.join(str(choice) for choice in choices)}}}" if 0 < len(choices) < 6 else ""
    return _help_line(f"--{key.name}", key.help + words + default)


def _help_line(name: str, text: str) -> str:
    indent = " " * 24
    lines = textwrap.fill(text, 110, initial_indent=indent, subsequent_indent=indent)
    return f"  {name:<22}{lines[24:]}" if len(name) < 22 else f"  {name}\n{lines}"


def _own_default(name: str) -> Any:
    return next(key.default for key in own_keys() if key.name == name)


def _first_key(chapter: str) -> str:
    return next(key.name for key in own_keys() if key.chapter == chapter)


__all__ = [
    "Recipe",
    "RecipeError",
    "add_recipe_arguments",
    "fit_recipe",
    "load_recipe",
    "recipe_from_arguments",
    "resolve_recipe",
    "shipped_recipes",
]
