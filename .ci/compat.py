"""Runs the compat suite with releases that pyproject.toml admits and the newest of everything is not.

    python .ci/compat.py                  every cell
    python .ci/compat.py 5.22.2 lowest    these: a release of transformers, or the lowest bounds of all we depend on

The cells are the oldest transformers, the last patch of each minor version after it, and `lowest`. The newest is left
to the whole suite. A cell is a small virtual environment in front of the one that runs this file: the packages that
differ are its own, the rest is shared, torch above all, which therefore is never the oldest. PYTHONPATH would not do in
its place, for the tests that start a process outside drop it.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]

SUITE = [
    "tests/modeling",  # contracts, and generate in all modes
    "tests/hub/test_bundle.py",
    "tests/hub/serving/test_chat_server.py",
    "tests/hub/test_generate.py",
    "tests/hub/test_pipeline_seqloom.py",
    "tests/test_seams.py",
    "tests/system/test_demo_journey.py",
    "tests/system/test_remote_code.py",  # the doors from outside
    "tests/system/test_resume.py::test_a_real_process_killed_inside_a_save",
    "tests/system/test_text_generation_outside.py",
    "tests/training/test_train.py",
    "tests/training/test_trainer.py",
]
"""Where it shows that a release calls something otherwise."""

LEFT_OUT = "_graph"
"""Tests with this in their name compile for as long as a third of the rest takes; what they find is torch's."""

LOWEST = "lowest"
"""The cell with the lower bound of each dependency."""

READ_VERSIONS = "import importlib.metadata as m, json, sys; print(json.dumps([m.version(n) for n in sys.argv[1:]]))"


def older_releases(admitted: SpecifierSet, released: Iterable[Version]) -> list[Version]:
    """Return the oldest admitted release and the last patch of each minor version between it and the newest."""
    versions = sorted(admitted.filter(released))
    last_patch = {version.release[:2]: version for version in versions}
    oldest, newest = versions[0].release[:2], versions[-1].release[:2]
    between = [version for minor, version in last_patch.items() if oldest < minor < newest]
    return [versions[0], *between] if versions[0] != versions[-1] else []


def lowest_pins(requirements: Iterable[Requirement]) -> list[str]:
    """Return `name==lower bound` for each requirement but torch, whose old releases have no small CPU build on PyPI."""
    lower = [(each.name, bound.version) for each in requirements for bound in each.specifier if bound.operator == ">="]
    return [f"{name}=={version}" for name, version in lower if name != "torch"]


def declared() -> list[Requirement]:
    """Return what the package depends on, with the extras that its tests use."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    client = [each for each in extras["test"] if each.startswith("openai")]
    return [Requirement(each) for each in (*project["dependencies"], *extras["serving"], *extras["plots"], *client)]


def released(name: str) -> list[Version]:
    """Ask pip's index for the final releases of a package."""
    command = [sys.executable, "-m", "pip", "index", "versions", name]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = re.search("^Available versions: (.+)$", answer, re.MULTILINE)
    if not found:
        raise SystemExit(f"`pip index versions {name}` answered {answer!r}, which names no versions; name the cells")
    return [Version(each) for each in found[1].split(", ")]


def make_environment(folder: Path, pins: list[str]) -> Path:
    """Put the pinned packages in front of the packages of this environment.

    Args:
        folder: becomes the virtual environment.
        pins: requirements with ==.

    Returns:
        The environment's Python, which was seen to find every pinned version.

    Raises:
        SystemExit: pip cannot install them together, or another version is in front.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # Not the path alone: the .pth files of the shared folder count too, and one of them leads to seqloom.
    (site / "shared.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--only-binary=:all:", *pins]
    if subprocess.run(install, check=False, env=environment()).returncode:
        raise SystemExit(f"pip cannot install {' '.join(pins)}; mend the bounds in pyproject.toml")
    names, wanted = zip(*(pin.split("==") for pin in pins), strict=True)
    read = subprocess.run(
        [python, "-c", READ_VERSIONS, *names], check=True, stdout=subprocess.PIPE, text=True, env=environment()
    )
    wrong = {n: v for n, v, w in zip(names, json.loads(read.stdout), wanted, strict=True) if Version(v) != Version(w)}
    if wrong:
        raise SystemExit(f"{folder} finds {wrong} and not what was installed; pins: {' '.join(pins)}")
    return python


def environment() -> dict[str, str]:
    """Return the variables for a cell: one core, and no PYTHONPATH, which would stand in front of what it installs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}


def run_cell(name: str) -> bool:
    """Run the suite in one cell, print what it said and how long it took, and return whether all of it passed."""
    pins = lowest_pins(declared()) if name == LOWEST else [f"transformers=={name}"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder), pins)
        installed = time.monotonic()
        command = [python, "-m", "pytest", "-q", "-k", f"not {LEFT_OUT}", *SUITE]
        tests = subprocess.run(command, check=False, cwd=ROOT, env=environment(), capture_output=True, text=True)
    seconds = f"{installed - start:.0f} s to install, {time.monotonic() - installed:.0f} s of tests"
    verdict = "failed" if tests.returncode else "passed"
    said = tests.stdout + tests.stderr if tests.returncode else tests.stdout.splitlines()[-1]
    print(f"\n== compat {name}: {' '.join(pins)}\n{said}\n== compat {name}: {verdict}, {seconds}", flush=True)
    return tests.returncode == 0


def all_cells() -> list[str]:
    """Return the names of the cells that pyproject.toml asks for today."""
    (transformers,) = (each for each in declared() if each.name == "transformers")
    return [*map(str, older_releases(transformers.specifier, released("transformers"))), LOWEST]


def main() -> None:
    """Run the named cells or all, as many at once as there are cores; exit with 1 and name those that failed."""
    cells = sys.argv[1:] or all_cells()
    with ThreadPoolExecutor(os.cpu_count()) as cores:
        failed = [name for name, passed in zip(cells, cores.map(run_cell, cells), strict=True) if not passed]
    if failed:
        raise SystemExit(f"compat suite failed with {', '.join(failed)}")


if __name__ == "__main__":
    main()
