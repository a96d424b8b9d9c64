"""transformers' own common tests, of the very version that is installed, against our classes and against Marian's.

None of ours may fail, and none may be skipped that Marian passes. They are asked of PyPI: a release's sdist holds the
tests of models (some 200), though not those of generation and export, which only a checkout has:

    git clone --depth 1 --branch v5.24.0 https://github.com/huggingface/transformers
    SEQLOOM_TRANSFORMERS_SOURCE=transformers pytest -m slow tests/system/test_transformers_own.py

Several folders, with os.pathsep between them, complete one another: the first that has a file is asked for it.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import transformers

pytestmark = pytest.mark.slow

SOURCE = "SEQLOOM_TRANSFORMERS_SOURCE"
STANDINS = {
    "tests/generation/test_utils.py": ["GenerationTesterMixin"],
    "tests/exporters/test_export.py": ["ExportTesterMixin", "ExportGenerateTesterMixin"],
}
"""What an sdist lacks and its tests import: stood in for by classes without tests."""
OURS = Path(__file__).parents[1] / "transformers_common.py"
KINDS = ["TestSeqloomPaper", "TestSeqloomModern"]


def sources(folder: Path) -> list[Path]:
    """Return the source trees of transformers that somebody named; else download the sdist of what is installed."""
    if named := os.environ.get(SOURCE):
        return [Path(name).resolve() for name in named.split(os.pathsep)]
    release = f"transformers=={transformers.__version__}"
    download = [*"-m pip download --no-deps --no-binary :all: -d".split(), str(folder), release]
    subprocess.run([sys.executable, *download], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder, filter="data")
    return [archive.with_name(archive.name.removesuffix(".tar.gz"))]


def lay_out(tree: Path, folder: Path) -> None:
    """Make one tree in which transformers' tests can be imported, with ours among them."""
    for source in reversed(sources(folder)):
        shutil.copytree(source / "tests", tree / "tests", dirs_exist_ok=True)
    for missing, names in STANDINS.items():
        if not (tree / missing).exists():
            (tree / missing).parent.mkdir(parents=True, exist_ok=True)
            (tree / missing).write_text("".join(f"class {name}:\n    pass\n\n\n" for name in names))
    for package in {tree / "tests", *((tree / file).parent for file in STANDINS)}:
        (package / "__init__.py").touch()
    shutil.copy(OURS, tree / "tests" / f"test_{OURS.name}")
    shutil.copy(OURS.with_name("toy.py"), tree / "tests")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Return for each class of `transformers_common.py` what became of its tests: "passed", or the reason otherwise."""
    tree, report = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("report") / "report.xml"
    lay_out(tree, tmp_path_factory.mktemp("source"))
    options = ["-c", os.devnull, "--rootdir", str(tree), "-p", "no:cacheprovider", "--disable-warnings", "-q"]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", f"tests/test_{OURS.name}"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tree), *filter(None, [os.environ.get("PYTHONPATH")])])},
        capture_output=True,
        encoding="utf-8",
    )
    assert run.returncode in (0, 1), run.stdout + run.stderr  # 1: some failed, which the tests below name
    return read_report(report)


def read_report(report: Path) -> dict[str, dict[str, str]]:
    """Return outcomes by class and test; of several, as subtests have them, the worst."""
    outcomes: dict[str, dict[str, str]] = {}
    for case in ET.parse(report).iter("testcase"):
        ends = [f"{end.tag}: {end.get('message')}" for end in case if end.tag in ("failure", "error", "skipped")]
        tests = outcomes.setdefault(case.get("classname", "").rpartition(".")[2], {})
        tests[case.get("name", "")] = max(["passed", *ends], key=severity)
    return outcomes


def severity(end: str) -> int:
    """Return how far from passing a test ended."""
    return {"passed": 0, "skipped": 1}.get(end.partition(":")[0], 2)


def test_marian_is_a_measure(outcomes: dict[str, dict[str, str]]) -> None:
    assert list(outcomes["TestMarian"].values()).count("passed") > 90


@pytest.mark.parametrize("kind", KINDS)
def test_ours_pass_what_marian_passes_and_fail_nothing(outcomes: dict[str, dict[str, str]], kind: str) -> None:
    marian, ours = outcomes["TestMarian"], outcomes[kind]
    assert ours.keys() >= marian.keys()
    assert not {name: end for name, end in ours.items() if severity(end) > severity(marian.get(name, "passed"))}
