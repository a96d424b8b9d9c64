"""The package as a user gets it: what lies where, who imports whom, what the wheel holds, what the README promises."""

import ast
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.layout import FOLDERS, ROOMS, ROOT, code_files, is_source, package_of, relative

MAY_IMPORT = {
    "cli": {"seqloom", *ROOMS},
    "seqloom": {"configuration", "modeling", "hub", "cli"},
    "configuration": set(),
    "modeling": {"configuration"},
    "hub": {"configuration", "modeling"},
    "training": {"configuration", "modeling", "hub"},
}
"""The arrows between the rooms; see docs/ARCHITECTURE.md."""

LENT = ("seqloom_cli.command.", "seqloom_cli.public_data.")
"""What the command lends to all rooms: files that import the standard library alone."""

TRAIN_COMMAND = "pip install -e . && accelerate launch training/train.py"
TEST_COMMAND = 'pip install -e ".[test]" && pytest'

DOCUMENTS = [relative(path) for path in (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))]


@pytest.fixture(scope="session")
def project():
    """Return pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def shipped_files():
    """Return every file of the shipped folders, Python's caches left out."""
    return [p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*")) if p.is_file() and is_source(p)]


def imports_of(path):
    """Return (module, is it relative, does it stand at the top level of the file) for every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top_level = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, False, id(node) in top_level) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [
                (f"{node.module or ''}.{alias.name}", node.level > 0, id(node) in top_level) for alias in node.names
            ]
    return found


def room_of(module):
    """Return the folder at the top of the repository that holds a module; None for what is not ours."""
    first, _, rest = f"{module}.".partition(".")
    second = rest.partition(".")[0]
    if first == "seqloom":
        return second if second in ROOMS else "seqloom"
    return "cli" if first == "seqloom_cli" else None


def import_graph():
    """Return module -> our modules that it imports, wherever in the file."""
    modules = {package_of(relative(path)): path for path in code_files(*FOLDERS)}

    def known(name):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        return name

    imported = {module: {known(name) for name, *_ in imports_of(path)} for module, path in modules.items()}
    return {module: found - {"", module} for module, found in imported.items()}


def reached_from(module, graph):
    """Return every module that the import of one loads of ours."""
    reached, waiting = set(), [module]
    while waiting:
        for name in graph[waiting.pop()] - reached:
            reached.add(name)
            waiting.append(name)
    return reached


class TestLayout:
    def test_every_folder_with_code_is_a_package_of_seqloom(self, project):
        folders = {relative(path.parent) for path in code_files(*FOLDERS)}
        tops = {package_of(folder): folder for folder in folders if "/" not in folder}
        assert {"seqloom": "seqloom", **project["tool"]["setuptools"]["package-dir"]} == tops  # folders below follow
        assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(map(package_of, folders))

    def test_file_names_are_unique_because_a_hub_folder_is_flat(self):
        names = Counter(path.name for path in code_files(*FOLDERS, "tests", "benchmarks"))
        assert not {name for name, count in names.items() if count > 1} - {"__init__.py", "__main__.py", "conftest.py"}

    def test_no_file_beside_train_hides_a_package(self):
        """`accelerate launch training/train.py` puts training/ first on the path; evaluate.py would be a trap."""
        taken = sys.stdlib_module_names | packages_distributions().keys()
        assert not {path.stem for path in code_files("training")} & taken

    def test_licence_is_apache_2_to_the_letter(self):
        """The digest is that of the text which apache.org publishes."""
        digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
        assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

    def test_changelog_is_open(self):
        assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


class TestImports:
    def test_rooms_are_imported_through_seqloom(self):
        """A bare `import modeling` would make a second class object beside that of seqloom.modeling."""
        assert not [
            f"{relative(path)}: {module}"
            for path in code_files(*FOLDERS, "tests", "benchmarks")
            for module, is_relative, _ in imports_of(path)
            if is_relative or module.split(".")[0] in (*ROOMS, "cli")
        ]

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_arrows_between_the_rooms_run_one_way(self, folder):
        allowed = MAY_IMPORT[folder] | {folder}
        assert not [
            f"{relative(path)}: {module}"
            for path in code_files(folder)
            for module, _, _ in imports_of(path)
            if room_of(module) not in {None, *allowed} and not module.startswith(LENT)
        ]

    def test_no_arrow_runs_back_up_inside_a_room(self):
        """A folder inside a room may use the files above it, but none that use the folder."""
        graph = import_graph()
        folders = {package_of(relative(path.parent)) for path in code_files(*ROOMS)} - {f"seqloom.{r}" for r in ROOMS}
        up = [
            f"{module} imports {above}, which imports {folder}"
            for folder in sorted(folders)
            for module in sorted(graph)
            for above in sorted(graph[module])
            if module.startswith(f"{folder}.") and room_of(above) == room_of(module)
            if not above.startswith(f"{folder}.")
            and any(m.startswith(f"{folder}.") for m in reached_from(above, graph))
        ]
        assert not up

    @pytest.mark.parametrize("folder", ROOMS)
    def test_only_the_face_and_the_command_know_the_face(self, folder):
        """`import seqloom` inside would hide which room is meant."""
        assert not [
            f"{relative(path)}: {module}"
            for path in code_files(folder)
            for module, _, _ in imports_of(path)
            if room_of(module) == "seqloom"
        ]

    def test_a_reader_loads_what_readers_need(self):
        """transformers itself imports jinja2 and the Hub's client, so what counts is which files of ours are loaded."""
        script = "import sys, seqloom; print(*sorted(m for m in sys.modules if m.startswith('seqloom')))"
        run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
        rooms = {"seqloom", "seqloom.configuration", "seqloom.modeling", "seqloom.hub", "seqloom.hub.export"}
        hub = {"seqloom.hub.bundle", "seqloom.hub.pipeline_seqloom", "seqloom.hub.export.ctranslate2_loader"}
        loaded = set(run.stdout.split()) - rooms
        assert {module for module in loaded if room_of(module) not in ("configuration", "modeling")} == hub

    @pytest.mark.parametrize("line", ["--help", "generate --help", "data", "trian"])
    def test_the_command_answers_without_torch(self, line):
        script = (
            "import sys\nfrom seqloom_cli.verbs import main\ncode = main(sys.argv[1:])\n"
            "assert not {'torch', 'transformers', 'seqloom'} & sys.modules.keys()\nsys.exit(code)"
        )
        run = subprocess.run([sys.executable, "-c", script, *line.split()], capture_output=True, text=True, timeout=120)
        assert run.returncode == (2 if line == "trian" else 0), run.stderr
        assert "seqloom" in (run.stderr if line == "trian" else run.stdout)

    def test_everything_imported_is_declared(self, project):
        """Dependencies at the top of a file, extras inside the function that needs them, or the file it imports."""
        imported_by_functions = {"chat_server.py", "connection.py"}
        required = distributions(project["project"]["dependencies"])
        optional = set().union(*map(distributions, project["project"]["optional-dependencies"].values()))
        providers = packages_distributions()
        assert not [
            f"{relative(path)}: {module}"
            for path in code_files(*FOLDERS)
            for module, _, is_top_level in imports_of(path)
            if (package := module.split(".")[0]) not in sys.stdlib_module_names | {"seqloom", "seqloom_cli"}
            and not set(map(normalise, providers.get(package, [package])))
            & (required if is_top_level and path.name not in imported_by_functions else required | optional)
        ]


def normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(requirements):
    """Return the normalised names in a list of requirements."""
    return {normalise(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


class TestProject:
    def test_dependencies_have_lower_bounds(self, project):
        extras = project["project"]["optional-dependencies"]
        published = [requirement for name, extra in extras.items() if name != "dev" for requirement in extra]
        for requirement in project["project"]["dependencies"] + published:
            assert ">=" in requirement or requirement.startswith("seqloom[")
        assert any(re.fullmatch(r"transformers>=5[.\d]*,<6", each) for each in project["project"]["dependencies"])

    def test_torch_is_not_bound_to_a_build(self, project):
        (torch,) = (each for each in project["project"]["dependencies"] if each.startswith("torch"))
        assert re.fullmatch(r"torch>=[\d.]+", torch)

    def test_extras(self, project):
        assert set(project["project"]["optional-dependencies"]) == {
            "test",
            "dev",
            "export",
            "onnx",
            "plots",
            "serving",
        }


def write_wheel(folder):
    """Build a wheel from a copy of the sources and return its path; needs no network."""
    source, out = folder / "source", folder / "wheel"
    out.mkdir()
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """Build the wheel once."""
    return write_wheel(tmp_path_factory.mktemp("package"))


class TestWheel:
    def test_nothing_generic_lands_in_site_packages(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        info = next(name for name in names if name.endswith("/METADATA")).split("/")[0]
        assert {name.split("/")[0] for name in names} == {"seqloom", "seqloom_cli", info}
        assert info.startswith("seqloom-")

    def test_every_file_of_the_folders_is_in_it(self, wheel):
        """Recipes, py.typed and templates included: what is no Python file has to be named in package-data."""
        held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
        assert held == {
            f"{package_of(relative(path.parent)).replace('.', '/')}/{path.name}" for path in shipped_files()
        }

    def test_metadata(self, wheel):
        archive = zipfile.ZipFile(wheel)
        texts = {Path(name).name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" in name}
        assert "License-Expression: Apache-2.0" in texts["METADATA"]
        assert "seqloom = seqloom_cli.verbs:main" in texts["entry_points.txt"]
        assert texts["LICENSE"] == (ROOT / "LICENSE").read_text(encoding="utf-8")

    @pytest.mark.slow
    def test_installed_it_works_away_from_the_sources(self, wheel, tmp_path):
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
        script = (
            "import seqloom, seqloom_cli.verbs\n"
            "print(seqloom.__file__)\n"
            "raise SystemExit(seqloom_cli.verbs.main(['train', '--help']))"
        )
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(str(tmp_path / "site"))
        assert "zh-continuation" in run.stdout, "the shipped recipes came along"


def test_what_is_exported_is_there():
    import seqloom

    assert set(seqloom._ON_DEMAND) < set(seqloom.__all__)
    assert all(callable(getattr(seqloom, name)) for name in seqloom.__all__)


def code_blocks(document, language):
    """Return the fenced code blocks of a Markdown file, joined lines included."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [block.replace("\\\n", " ") for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def shell_lines(document):
    lines = "\n".join(code_blocks(document, "bash")).splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def commands(program):
    """Return the arguments of each call of a program in the documents' shell blocks, pipes and && resolved."""
    lines = [line for document in DOCUMENTS if document != "docs/LOG.md" for line in shell_lines(document)]
    calls = [shlex.split(piece, comments=True) for line in lines for piece in re.split(r"\||&&", line)]
    return [call[1:] for call in calls if call and call[0] == program]


class TestDocuments:
    def test_readme_has_the_two_commands(self):
        lines = shell_lines("README.md")
        assert TRAIN_COMMAND in lines
        assert TEST_COMMAND in lines

    def test_ci_runs_the_readme_test_command(self):
        assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    def test_the_documents_have_commands(self):
        assert len(commands("seqloom")) > 50

    @pytest.mark.parametrize("arguments", commands("seqloom"), ids=" ".join)
    def test_commands_are_understood(self, arguments):
        from seqloom.configuration.recipe_flags import recipe_from_arguments
        from seqloom_cli.verbs import build_parser

        asked = [argument for argument in arguments if argument != "--help"]
        namespace, rest = build_parser().parse_known_args(asked)
        if namespace.verb in ("train", "distill"):
            recipe_from_arguments(namespace, rest)
        else:
            assert not rest

    def test_make_targets_exist(self):
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        lines = [line for document in DOCUMENTS for line in shell_lines(document)]
        named = {word for line in lines for word in re.findall(r"\bmake ([\w-]+)", line)}
        assert {"check"} <= named <= targets

    @pytest.mark.parametrize("document", ["README.md", "docs/RECIPES.md"])
    def test_python_examples_can_be_parsed(self, document):
        blocks = code_blocks(document, "python")
        assert blocks
        for block in blocks:
            ast.parse(block)

    def test_linked_files_exist(self):
        links = {
            (document, link)
            for document in DOCUMENTS
            for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / document).read_text(encoding="utf-8"))
            if "://" not in link
        }
        assert len(links) > 30
        assert not [each for each in sorted(links) if not ((ROOT / each[0]).parent / each[1]).exists()]

    def test_files_that_are_named_exist(self):
        """In documents, comments and docstrings: a path whose first folder is ours leads somewhere."""
        pattern = (
            rf"(?<![\w/.-])((?:{'|'.join((*FOLDERS, 'tests', 'benchmarks', 'docs'))})/[\w/]+\.(?:py|md|jinja|yaml))\b"
        )
        files = [*code_files(*FOLDERS, "tests", "benchmarks"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        named = {
            (relative(path), found)
            for path in files
            if path.name not in ("CHANGELOG.md", "test_bundle.py", "test_upgrade.py", "test_transformers_own.py")
            for found in re.findall(pattern, path.read_text(encoding="utf-8"))
        }
        assert len(named) > 50
        assert not [where for where in sorted(named) if not (ROOT / where[1]).exists()]

    def test_pointers_into_the_log_lead_to_an_entry(self):
        entries = re.findall(
            r"^## (.+?) \(\d{4}-\d\d-\d\d\): ", (ROOT / "docs/LOG.md").read_text("utf-8"), re.MULTILINE
        )
        assert len(entries) == len(set(entries)) > 20
        files = [*shipped_files(), *code_files("tests", "benchmarks"), ROOT / "README.md", *ROOT.glob("docs/*.md")]
        pointers = {
            pointer: relative(path)
            for path in files
            for pointer in re.findall(r"\bLOG: ([\w -]+?)[);.,]", path.read_text(encoding="utf-8"))
        }
        assert len(pointers) > 8
        assert not pointers.keys() - set(entries), pointers
