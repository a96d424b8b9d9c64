"""Makes a checkpoint folder self-contained: the code of its classes stands beside the weights, as flat files.

transformers loads such a folder with `trust_remote_code=True` where Seqloom is not installed: `auto_map` in config.json
names the classes, and transformers finds the files that they need through `from .file import` only. Its own copying
(`register_for_auto_class`) fails on code that lives in several folders: it stops at `from ..folder.file import` and
silently leaves out absolute imports. So this module follows the imports of the model's files, copies all files that it
meets into the folder, and shortens `from seqloom.<folder>.<file> import` to `from .<file> import`. Apart from a header
and the lines that end the configuration's copy (`REGISTRATION`) the copies are the sources.

    save_pretrained, Trainer's checkpoints, push_to_hub
        -> SeqloomConfig.save_pretrained -> after_save = write_bundle -> *.py, manifest, auto_map, custom_pipelines

When such a model is saved again where Seqloom is not installed, transformers copies the files of configuration and
model, and what they import. Nothing of these imports the pipelines or CTranslate2's loader. So the configuration's copy
ends with imports of their files, which are then copied too, and with what `import seqloom` does for the installed
classes.
"""

import ast
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

from seqloom.hub.pipeline_seqloom import PIPELINES
from seqloom.modeling.canary import write_whole

ENTRY_MODULES = (
    "seqloom.configuration.configuration_seqloom",
    "seqloom.modeling.modeling_seqloom",
    "seqloom.hub.pipeline_seqloom",
    "seqloom.hub.export.ctranslate2_loader",
)
"""The files that transformers asks for by name, and what `REGISTRATION` names; what they import is copied with them."""

AUTO_MAP = {
    "AutoConfig": "configuration_seqloom.SeqloomConfig",
    "AutoModel": "modeling_seqloom.SeqloomModel",
    "AutoModelForSeq2SeqLM": "modeling_seqloom.SeqloomForConditionalGeneration",
    "AutoModelForCausalLM": "modeling_seqloom.SeqloomForCausalLM",
}
"""Auto class -> file and class in the folder."""

CUSTOM_PIPELINES = {
    task: {"impl": f"pipeline_seqloom.{cls.__name__}", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}
    for task, cls in PIPELINES.items()
}
"""Task -> file and class in the folder, and the Auto class of its model."""

REGISTRATION = """

# In a folder only, in place of `import seqloom`. Seeing the imports, transformers copies the files with this one.
from .ctranslate2_loader import offer_loader  # noqa: E402
from .pipeline_seqloom import make_text_generation_safe  # noqa: E402

SeqloomConfig.when_made = offer_loader
make_text_generation_safe()
"""
"""The end of the configuration's copy; the source cannot have it, for the configuration imports nothing of hub."""

ALLOWED_PACKAGES = frozenset({"torch", "transformers", "huggingface_hub"}) | sys.stdlib_module_names
"""What every reader of a folder has; huggingface_hub is a requirement of transformers."""

MANIFEST_NAME = "seqloom_manifest.json"
"""The file that holds the Seqloom version and the SHA-256 of every code file."""

STAND_IN = re.compile(r"_next_[0-9a-f]{8}$")
"""How the name of a file ends that stands in for another one while a folder is upgraded; see hub/upgrade.py."""

# transformers finds relative imports by a pattern, at the beginning of a line only; so ours have to stand there too.
_OUR_IMPORT = re.compile(r"^(\s*from\s+)(seqloom\.\w+)(\.\w+)(\s+import\b)")


class BundleError(ValueError):
    """A checkpoint folder cannot be made self-contained."""


def write_bundle(folder: str | PathLike[str]) -> None:
    """Write code and manifest into a checkpoint folder and name its classes and pipelines in config.json.

    Every file appears whole or not at all, code before the config that names it; doing it twice changes nothing.

    Args:
        folder: where `save_pretrained` has just written config.json.

    Raises:
        BundleError: if there is no readable config.json, or the code imports what a reader may lack.
    """
    folder = Path(folder)
    config = _read_config(folder / "config.json")
    write_code(folder)
    write_whole(folder / "config.json", config_text(name_code(config)))


def write_code(folder: str | PathLike[str]) -> None:
    """Write the code files and their manifest into a folder; all anew, because a push uploads what was just written.

    Raises:
        BundleError: if the code imports what a reader of the folder may lack.
    """
    for name, text in bundle_files().items():
        write_whole(Path(folder) / name, text)


def name_code(config: Mapping[str, Any], ending: str = "") -> dict[str, Any]:
    """Return a configuration that names our classes and pipelines beside those of others.

    Args:
        config: what config.json holds.
        ending: what the names of our files get at their end, where stand-ins have to be named (see `STAND_IN`).
    """

    def named(reference: object) -> str:
        """modeling_seqloom.SeqloomModel -> modeling_seqloom_next_1a2b3c4d.SeqloomModel."""
        return str(reference).replace(".", f"{ending}.")

    classes = {name: named(reference) for name, reference in AUTO_MAP.items()}
    pipelines = {task: {**entry, "impl": named(entry["impl"])} for task, entry in CUSTOM_PIPELINES.items()}
    return {
        **config,
        "auto_map": classes | _foreign_entries(config.get("auto_map") or {}),
        "custom_pipelines": pipelines | _foreign_entries(config.get("custom_pipelines") or {}),
    }


def config_text(config: Mapping[str, Any]) -> str:
    """Return config.json as transformers writes it."""
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


@cache
def bundle_files() -> dict[str, str]:
    """Return file name -> text of the code files and their manifest.

    Raises:
        BundleError: if the code imports what a reader of the folder may lack.
    """
    sources = close_over(ENTRY_MODULES, _read_module)
    release = version("seqloom")
    files = {f"{_stem(module)}.py": flatten(module, source, release) for module, source in sources.items()}
    files["configuration_seqloom.py"] += REGISTRATION
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    manifest = {"seqloom_version": release, "sha256": digests}
    return {**files, MANIFEST_NAME: json.dumps(manifest, indent=2, sort_keys=True) + "\n"}


def close_over(modules: Iterable[str], read: Callable[[str], str]) -> dict[str, str]:
    """Return module (`seqloom.<folder>.<file>`) -> source of those given and all of Seqloom that they import, sorted.

    Raises:
        BundleError: for an import that a flat folder cannot have, and for two files of the same name.
    """
    sources: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        if module not in sources:
            sources[module] = read(module)
            waiting += our_imports(module, sources[module]).values()
    _refuse_same_names(sources)
    return dict(sorted(sources.items()))


def our_imports(module: str, source: str) -> dict[int, str]:
    """Return line index (from 0) -> module for every import of a Seqloom file, wherever it stands in a module's source.

    Raises:
        BundleError: for an import that a flat folder cannot have.
    """
    lines = source.split("\n")  # as Python counts them; splitlines() would also cut at form feeds
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom) or _imported_packages(node) <= ALLOWED_PACKAGES:
            continue
        match = _OUR_IMPORT.match(lines[node.lineno - 1])
        if match is None or isinstance(node, ast.Import):
            raise BundleError(
                f"{_source_file(module)}, line {node.lineno}: `{ast.unparse(node)}` cannot go into a checkpoint "
                f"folder, whose readers have torch, transformers and the standard library only; do without it, or, "
                f"for a file of Seqloom, write `from seqloom.<folder>.<file> import ...` on a line of its own."
            )
        found[node.lineno - 1] = match[2] + match[3]
    return found


def flatten(module: str, source: str, release: str) -> str:
    """Return a module's source as it stands in the folder: a header, and imports of Seqloom's files shortened."""
    lines = source.split("\n")
    for index in our_imports(module, source):
        lines[index] = _OUR_IMPORT.sub(r"\1\3\4", lines[index])
    header = (
        f"# Seqloom {release}, {_source_file(module)}: a copy, so that torch and transformers can load this folder.\n"
        f"# SPDX-License-Identifier: Apache-2.0\n"
    )
    return header + "\n".join(lines)


def _foreign_entries(entries: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of somebody else's classes and pipelines, which transformers registered and copied."""
    ours = {_stem(module) for module in ENTRY_MODULES}

    def file_of(entry: Any) -> str:
        """{"impl": "my_pipeline.MyPipeline", ...} or "my_model.MyModel" -> my_pipeline, my_model."""
        reference = entry["impl"] if isinstance(entry, dict) else entry
        return STAND_IN.sub("", str(reference).split(".")[0])

    return {name: entry for name, entry in entries.items() if file_of(entry) not in ours}


def _imported_packages(node: ast.Import | ast.ImportFrom) -> set[str]:
    """Return the top-level packages of an import statement; "" for a relative one."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    is_relative = isinstance(node, ast.ImportFrom) and node.level > 0
    return {"" if is_relative else name.split(".")[0] for name in names}


def _refuse_same_names(modules: Iterable[str]) -> None:
    by_name: dict[str, str] = {}
    for module in sorted(modules):
        other = by_name.setdefault(_stem(module), module)
        if other != module:
            raise BundleError(
                f"{_source_file(other)} and {_source_file(module)} have the same name, and a checkpoint folder is "
                f"flat; rename one of them."
            )


def _stem(module: str) -> str:
    """seqloom.modeling.modeling_seqloom -> modeling_seqloom, its file in the folder."""
    return module.rpartition(".")[2]


def _source_file(module: str) -> str:
    """seqloom.modeling.modeling_seqloom -> modeling/modeling_seqloom.py, its place in the repository."""
    return "/".join(module.split(".")[1:]) + ".py"


def _read_module(module: str) -> str:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise BundleError(f"{module} is imported by the model and cannot be found; is Seqloom installed completely?")
    return Path(spec.origin).read_text(encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    """Read config.json; a process that saves the same folder at the same time may have written half of it so far."""
    if not path.is_file():
        raise BundleError(f"{path.parent} holds no config.json; save the model there with save_pretrained first.")
    problem: json.JSONDecodeError | None = None
    for _ in range(_READ_ATTEMPTS):
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            problem = error
            time.sleep(_READ_PAUSE)
    raise BundleError(f"{path} is not valid JSON ({problem}); save the model again.") from problem


_READ_ATTEMPTS, _READ_PAUSE = 50, 0.02  # seconds: one in all, a thousand times what writing a config takes
