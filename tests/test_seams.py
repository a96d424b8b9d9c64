"""What nobody promised us: each seam of docs/ARCHITECTURE.md beside the library that is installed.

The table there is the only list. A row says what we rely on; here it is compared, and our code is searched for private
names of others that stand in no row.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import pytest

from tests.layout import FOLDERS, ROOT, code_files, package_of

CODE = code_files(*FOLDERS)

SET_BY_PYTHON = {"_abc_impl", "_is_protocol", "_is_runtime_protocol", "_backward_cls"}
"""What metaclasses write into every class."""


@dataclass(frozen=True)
class Seam:
    """A name of somebody else's, and what of it we rely on."""

    owner: str
    """Module or class."""
    relied_on: str
    """`f(a, b)`, `x: type`, `x = value` or `x`; see the table's introduction."""
    files: tuple[str, ...]
    purpose: str

    @property
    def name(self) -> str:
        """The attribute of the owner."""
        return re.match(r"\w+", self.relied_on)[0]

    def fault(self) -> str:
        """Return in which way the installed library is another; empty: it is as we rely on."""
        try:
            owner = pkgutil.resolve_name(self.owner)
        except (ImportError, AttributeError):
            return f"there is no {self.owner}"
        try:
            if match := re.fullmatch(r"(.+) = (.+)", self.relied_on):
                found = eval(f"owner.{match[1]}")
                return "" if repr(found) == match[2] else f"it is {found!r}"
            if match := re.fullmatch(r"(.+): (\w+)", self.relied_on):
                found = eval(f"owner.{match[1]}")
                return "" if match[2] in {kind.__name__ for kind in type(found).__mro__} else f"it is {found!r}"
            if match := re.fullmatch(r"(\w+)\((.*)\)", self.relied_on):
                return differs(getattr(owner, match[1]), re.findall(r"[\w*]+", match[2]))
            eval(f"owner.{self.relied_on}")
        except Exception as error:
            is_left_to_instances = self.relied_on == self.name and self.is_mentioned(owner)
            return "" if is_left_to_instances else f"this fails: {error!r}"
        return ""

    def is_mentioned(self, owner: Any) -> bool:
        """Return whether the owner's source has the word: attributes of instances are set in their methods."""
        sources = map(inspect.getsource, [base for base in getattr(owner, "__mro__", [owner]) if base is not object])
        pattern = rf"\bself\.{self.name}\b" if inspect.isclass(owner) else rf"\b{self.name}\b"
        return any(re.search(pattern, source) for source in sources)


def differs(function: Any, wanted: list[str]) -> str:
    """Return how a function's parameters are other than wanted: these first, or, after a star, by name."""
    have = [name for name in inspect.signature(function).parameters if name != "self"]
    fits = set(wanted[1:]) <= set(have) if wanted[:1] == ["*"] else have[: len(wanted)] == wanted
    return "" if fits else f"it takes ({', '.join(have)})"


def read_table() -> list[Seam]:
    """Return the rows of the tables; each table's head names the owner, and a cell may hold several names."""
    text = (ROOT / "docs/ARCHITECTURE.md").read_text(encoding="utf-8")
    section = re.search(r"\n## Seams\n(.*?)(\n## |$)", text, re.DOTALL)[1]
    seams: list[Seam] = []
    owner = ""
    for line in section.splitlines():
        names, files, purpose = [*map(str.strip, line.strip("|").split(" | ")), "", "", ""][:3]
        if not line.startswith("| `"):
            continue
        if files == "ours":
            owner = names.strip("`")
        else:
            for place, name in re.findall(r"`((?:\w+\.)*)([^`]+)`", names):
                seams.append(Seam(f"{owner}.{place}".strip("."), name, tuple(files.split()), purpose))
    return seams


SEAMS = read_table()


def installed(owner: str) -> str:
    """Return "transformers 5.24.0" for one of its modules or classes."""
    top = owner.partition(".")[0]
    if top in sys.stdlib_module_names:
        return f"Python {sys.version.split()[0]}"
    distribution = packages_distributions()[top][0]
    return f"{distribution} {version(distribution)}"


@pytest.mark.parametrize("seam", SEAMS, ids=[f"{seam.owner}.{seam.relied_on}" for seam in SEAMS])
def test_the_library_is_as_we_rely_on(seam: Seam) -> None:
    fault = seam.fault()
    if fault:
        pytest.fail(
            f"{', '.join(seam.files)} relies on {seam.owner}.{seam.relied_on} ({seam.purpose}); in "
            f"{installed(seam.owner)} {fault}. Read what became of it there, mend our files, then its row under "
            f'"Seams" in docs/ARCHITECTURE.md.',
            pytrace=False,
        )


@pytest.mark.parametrize("seam", SEAMS, ids=[f"{seam.owner}.{seam.name}" for seam in SEAMS])
def test_a_row_can_fail_and_names_files_that_use_it(seam: Seam) -> None:
    assert replace(seam, relied_on=seam.relied_on.replace(seam.name, f"{seam.name}_gone", 1)).fault()
    for file in seam.files:
        (path,) = [path for path in CODE if path.name == file or path.relative_to(ROOT).as_posix() == file]
        words = re.findall(r"\w+", seam.relied_on) if " = " in seam.relied_on else [seam.name]
        assert set(words) & set(re.findall(r"\w+", path.read_text(encoding="utf-8"))), f"{file} does not use {seam}"


def our_classes() -> Iterator[type]:
    for path in CODE:
        if path.name not in ("__init__.py", "__main__.py"):
            name = package_of(path.relative_to(ROOT))
            kinds = vars(importlib.import_module(name)).values()
            yield from (kind for kind in kinds if inspect.isclass(kind) and kind.__module__ == name)


def overrides() -> Iterator[tuple[type, str, type]]:
    """Yield (our class, name, the class whose it is) for what we override of others without being invited."""
    for kind in our_classes():
        for name in vars(kind):
            others = (base for base in kind.__mro__ if not base.__module__.startswith("seqloom"))
            theirs = next((base for base in others if name in vars(base)), None)
            if theirs is None or re.fullmatch(r"__\w+__|_\w+_", name) or name in SET_BY_PYTHON:
                continue
            if name.startswith("_"):
                yield kind, name, theirs


def test_what_we_override_stands_in_the_table_and_takes_what_it_may_be_given() -> None:
    complaints = []
    for ours, name, theirs in overrides():
        file = Path(inspect.getsourcefile(ours)).name
        rows = [seam for seam in SEAMS if seam.name == name and issubclass(ours, pkgutil.resolve_name(seam.owner))]
        if not any(file in row.files for row in rows):
            complaints.append(
                f"{file}: {ours.__name__} overrides {theirs.__module__}.{theirs.__name__}.{name}, which nobody "
                f'promised; if no public way does the same, enter it under "Seams" in docs/ARCHITECTURE.md.'
            )
        elif callable(getattr(theirs, name)) and not any(row.fault() for row in rows):
            given, taken = (inspect.signature(getattr(kind, name)).parameters for kind in (theirs, ours))
            is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
            if missing := set() if is_open else set(given) - set(taken) - {"kwargs"}:
                complaints.append(
                    f"{file}: {ours.__name__}.{name} does not take {', '.join(missing)}, which "
                    f"{installed(theirs.__module__)} may hand over; take it, and pass it on."
                )
    assert not complaints, "\n".join(complaints)


def test_private_names_that_we_read_stand_in_the_table() -> None:
    """Attributes `x._name` and keywords `f(_name=...)` that our own code does not define."""
    defined, used = set(), {}
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ClassDef(body=body):
                    defined |= {
                        getattr(each, "name", getattr(getattr(each, "target", None), "id", "")) for each in body
                    }
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    defined.add(name)
                case ast.Attribute(attr=name) | ast.keyword(arg=str(name)) if re.match(r"_[a-z]", name):
                    used.setdefault(name, path.name)
    in_table = set(re.findall(r"\w+", " ".join(seam.relied_on for seam in SEAMS)))
    unknown = {name: file for name, file in used.items() if name not in defined | in_table}
    assert not unknown, f'private names of others: {unknown}; enter them under "Seams" in docs/ARCHITECTURE.md'
