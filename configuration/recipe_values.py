"""From text to typed values: how a recipe and a command line are read.

YAML guesses a value's type from its spelling, and YAML 1.1 guesses badly: `1e-3` is text, `eval_strategy: no` is False,
`010` is 8. Here the key decides: a recipe's scalars stay text until `convert` turns them into what the key's annotation
asks for, so the recipe file and the command line are read by the same rules.
"""

import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable
from enum import Enum
from os import PathLike, fspath
from typing import Any, Literal, Union, get_args, get_origin

import yaml

_TRUE = ("true", "yes", "on", "1")
_NULL = ("", "null", "~", "None")
_FALSE = ("false", "no", "off", "0")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_MOST_DIGITS = 400
"""A whole number with more is beyond all that can be computed with; Python itself reads 4,300 and no more."""
_NUMBER = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?")


class MismatchError(ValueError):
    """A value that cannot be what its annotation asks for; `describe` has the words for it."""


class PlainText(str):
    """Text nobody quoted: it may stand for a number, a truth value or a list."""

    __slots__ = ()


class PlainLoader(yaml.SafeLoader):
    """SafeLoader that refuses aliases: a few lines of them make billions of entries."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose what comes next."""
        if self.check_event(yaml.AliasEvent):
            alias = self.peek_event()
            raise yaml.composer.ComposerError(None, None, f"write *{alias.anchor} out", alias.start_mark)
        return super().compose_node(parent, index)


class _TextLoader(PlainLoader):
    """PlainLoader that leaves every unquoted scalar but null as `PlainText` and refuses a key written twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - the class attribute PyYAML looks up

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping as YAML 1.2 wants it: each key once."""
        mapping = super().construct_mapping(node, deep=deep)
        if len(mapping) < len(node.value):
            ((twice, _),) = Counter(key_node.value for key_node, _ in node.value).most_common(1)
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands there twice", node.start_mark)
        return mapping


def _construct_text(loader: _TextLoader, node: yaml.ScalarNode) -> str:
    return PlainText(node.value) if node.style is None else str(node.value)


_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_TextLoader.add_constructor("tag:yaml.org,2002:str", _construct_text)


class _TextDumper(yaml.SafeDumper):
    """SafeDumper that also quotes text which `_TextLoader` and `convert` would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal lists out twice: anchors are noise in a recipe."""
        return True


def _represent_text(dumper: _TextDumper, text: str) -> yaml.ScalarNode:
    # PyYAML breaks lines at U+0085, even in quotes
    is_safe = text.isprintable() and guess(PlainText(text)) == text and text not in _NULL
    style = None if is_safe else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_TextDumper.add_representer(str, _represent_text)


def read_yaml(text: str) -> Any:
    """Parse YAML, leaving unquoted scalars as `PlainText`.

    Raises:
        ValueError: one line that says where the YAML is broken.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(f"not valid YAML, {place}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML, {' '.join(str(error).split())}") from error


def write_yaml(values: Any) -> str:
    """Write YAML that `read_yaml` and `convert` read back to the same values."""
    return yaml.dump(values, Dumper=_TextDumper, sort_keys=False, allow_unicode=True, width=4096)


def guess(value: Any) -> Any:
    """Give unquoted text the type it spells (YAML 1.2: true, 12, 1e-3); for places that no annotation covers."""
    if isinstance(value, dict):
        return {str(key): guess(item) for key, item in value.items()}
    if isinstance(value, list):
        return [guess(item) for item in value]
    if not isinstance(value, PlainText):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    return _number(value) if _NUMBER.fullmatch(value) else str(value)


def convert(value: Any, hint: Any) -> Any:
    """Turn `value` (text from a recipe or a command line, or a Python value) into what the annotation asks for.

    Raises:
        MismatchError: if it cannot be that.
    """
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(hint))
    choices = _choices(hint)
    if choices:
        return _convert_choice(value, choices)
    if (origin or hint) not in _KINDS:
        raise MismatchError
    return _KINDS[origin or hint][0](value)


def describe(hint: Any) -> str:
    """Say in words what the annotation asks for, e.g. "a whole number or null"."""
    if get_origin(hint) in (Union, types.UnionType):
        members = sorted(_writable(get_args(hint)), key=_rank)
        words = [describe(member) for member in members if member is not type(None)]
        if "a number" in words:
            words = [word for word in words if word != "a whole number"]
        return " or ".join(dict.fromkeys(words + ["null"] * (type(None) in members)))
    choices = _choices(hint)
    if choices:
        return f"one of {', '.join(str(choice) for choice in choices)}"
    return _KINDS.get(get_origin(hint) or hint, (None, "something that no recipe can hold"))[1]


def choices_of(hint: Any) -> list[Any]:
    """Every value that an annotation enumerates, through Optional too; [] where it does not enumerate."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return [choice for member in members for choice in _choices(member)]


def _choices(hint: Any) -> list[Any]:
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [member.value for member in hint] if isinstance(hint, type) and issubclass(hint, Enum) else []


def _convert_union(value: Any, members: Iterable[Any]) -> Any:
    members = _writable(members)
    for member in sorted(members, key=_rank):
        if str in members and _is_one_word_for_list(value, member):
            continue
        try:
            return convert(value, member)
        except MismatchError:
            continue
    raise MismatchError


def _writable(members: Iterable[Any]) -> list[Any]:
    """Drop what text cannot be (classes of transformers), and `str` beside an enumeration of the valid words."""
    kept = [member for member in members if _choices(member) or (get_origin(member) or member) in _KINDS]
    has_words = any(isinstance(member, type) and issubclass(member, Enum) for member in kept)
    return [member for member in kept if not (has_words and member is str)]


def _is_one_word_for_list(value: Any, member: Any) -> bool:
    return get_origin(member) is list and isinstance(value, str) and not value.startswith("[")


def _rank(hint: Any) -> float:
    """The strictest reading first; an enumeration stands between null and the rest."""
    return 0.5 if _choices(hint) else list(_KINDS).index(get_origin(hint) or hint)


def _convert_choice(value: Any, choices: list[Any]) -> Any:
    value = value.value if isinstance(value, Enum) else value
    for choice in choices:
        if value == choice and isinstance(value, str) == isinstance(choice, str):
            return choice
        if isinstance(choice, bool) and isinstance(value, PlainText) and value.lower() == str(choice).lower():
            return choice
    if value is False and "no" in choices:  # YAML 1.1 and Python users write no for it
        return "no"
    raise MismatchError


def _convert_null(value: Any) -> None:
    if not _is_null(value):
        raise MismatchError


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, PlainText) and value in _NULL)


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise MismatchError


def _convert_int(value: Any) -> int:
    number = _convert_float(value)
    if number != int(number):
        raise MismatchError
    return int(number)


def _convert_float(value: Any) -> float:
    """Read a number; whole ones stay whole, so that `warmup_steps: 2000` is written back as it was."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = _number(value.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise MismatchError
    return value


def _number(text: str) -> int | float:
    digits = text.replace("_", "")
    is_whole = _INTEGER.fullmatch(digits) and len(digits) < _MOST_DIGITS
    return int(digits) if is_whole else float(digits)


def _convert_text(value: Any) -> str:
    if not isinstance(value, (str, PathLike)):
        raise MismatchError
    return str(fspath(value))


def _convert_list(value: Any) -> list[str]:
    if _is_null(value):
        return []
    if isinstance(value, PlainText) and value.startswith("[") and value.endswith("]"):
        value = _read_flow(value)
    if isinstance(value, (str, PathLike)):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise MismatchError
    return [_convert_text(item) for item in value]


def _convert_dict(value: Any) -> dict[str, Any]:
    if isinstance(value, PlainText) and value.startswith("{"):
        value = _read_flow(value)
    if not isinstance(value, dict):
        raise MismatchError
    return {str(key): guess(item) for key, item in value.items()}


def _read_flow(text: str) -> Any:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise MismatchError from error


_KINDS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    type(None): (_convert_null, "null"),
    bool: (_convert_bool, "true or false"),
    int: (_convert_int, "a whole number"),
    float: (_convert_float, "a number"),
    dict: (_convert_dict, "a mapping such as {key: value}"),
    list: (_convert_list, "a list of words"),
    str: (_convert_text, "text"),
}
"""How each type is read and what it is called, the strictest first: text fits everything and comes last."""

__all__ = ["MismatchError", "PlainText", "choices_of", "convert", "describe", "guess", "read_yaml", "write_yaml"]
