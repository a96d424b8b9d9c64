"""A recipe on the command line: flags that are read, and the help that explains them."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from seqloom.configuration.data_size import AUTO, starting_preset
from seqloom.configuration.presets import PRESETS
from seqloom.configuration.recipe import CHAPTERS, Recipe, RecipeError
from seqloom.configuration.recipe_keys import Key, known_keys, own_keys, shown
from seqloom.configuration.recipe_layers import resolve_recipe, shipped_recipes
from seqloom.configuration.recipe_values import PlainText, choices_of


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser what `seqloom train` takes; read the rest with `parse_known_args` and `recipe_from_arguments`."""
    parser.allow_abbrev = False
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help=f"a recipe, or the name of a shipped one: {', '.join(shipped_recipes())}; every key below overrides it",
    )
    text = "do everything until the first update, say what would be trained, and leave nothing behind"
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help=text)
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
    start = starting_preset(AUTO).name
    pointer = (
        "Every field of SeqloomConfig (d_model, encoder_layers, dropout, norm_position, ...) and of transformers' "
        "Seq2SeqTrainingArguments (learning_rate, max_steps, num_train_epochs, warmup_steps, save_steps, eval_steps, "
        "seed, bf16, report_to, ...) is a key too: --help_all lists them. Without --recipe and --train the built-in "
        f"date demo is trained. Values in [brackets] are the defaults; preset auto starts from {start} and lets the "
        "training text decide on what nobody names."
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


__all__ = ["add_recipe_arguments", "recipe_from_arguments"]
