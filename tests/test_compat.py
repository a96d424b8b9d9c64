"""Which releases the compat suite runs through; the suite itself is `make compat`."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def compat():
    spec = importlib.util.spec_from_file_location("compat", ROOT / ".ci" / "compat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def older(compat, bound, *released):
    return [str(version) for version in compat.older_releases(SpecifierSet(bound), map(Version, released))]


def test_the_oldest_and_the_last_patch_of_each_minor_version_below_the_newest(compat):
    released = ("5.24.0", "5.20.2", "5.23.0", "5.22.0", "5.22.2", "5.22.10", "5.21.1", "5.21.0", "6.0.0", "5.24.1")
    assert older(compat, ">=5.21,<6", *released) == ["5.21.0", "5.22.10", "5.23.0"]


def test_release_candidates_are_left_out(compat):
    assert older(compat, ">=5.21,<6", "5.21.0", "5.22.0rc1", "5.22.0", "5.23.0rc1") == ["5.21.0"]


def test_where_one_release_is_admitted_none_is_older(compat):
    assert older(compat, ">=5.24,<6", "5.23.0", "5.24.0") == []


def test_lowest_is_every_lower_bound_but_torch(compat):
    requirements = map(Requirement, ["torch>=2.6", "transformers>=5.21,<6", "Babel>=2.14"])
    assert compat.lowest_pins(requirements) == ["transformers==5.21", "Babel==2.14"]


def test_every_dependency_has_a_place_in_the_lowest_cell(compat):
    names = {requirement.name for requirement in compat.declared()}
    assert {pin.split("==")[0] for pin in compat.lowest_pins(compat.declared())} == names - {"torch"}
    assert {"transformers", "datasets", "starlette", "matplotlib"} < names


def test_an_index_that_names_no_versions_is_no_empty_list_of_cells(compat, monkeypatch, tmp_path):
    silent = tmp_path / "python"
    silent.write_text("#!/bin/sh\necho nothing\n")
    silent.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(silent))
    with pytest.raises(SystemExit, match=r"`pip index versions torch` answered 'nothing\\n', which names no versions"):
        compat.released("torch")


def test_one_cell_that_fails_does_not_hide_the_next_and_fails_the_run(compat, monkeypatch):
    ran = []
    monkeypatch.setattr(sys, "argv", ["compat.py", "5.21.0", "lowest"])
    monkeypatch.setattr(compat, "run_cell", lambda name: ran.append(name) or name == "lowest")
    with pytest.raises(SystemExit, match=r"compat suite failed with 5\.21\.0$"):
        compat.main()
    assert ran == ["5.21.0", "lowest"]


def test_the_suite_names_what_exists(compat):
    assert not [name for name in compat.SUITE if not (ROOT / name.split("::")[0]).exists()]


def test_the_workflows_begin_with_the_oldest_python_that_is_admitted():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    (oldest,) = re.findall(r'^requires-python = ">=([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert workflow["jobs"]["newest"]["strategy"]["matrix"]["python"][0] == oldest
