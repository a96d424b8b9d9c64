"""What endangers everybody who opens a folder, even with the installed classes; `check_folder` refuses it.

    manifest   the code is not what the manifest beside it says
    pickles    loading one runs whatever it says, under whatever name
    paths      code, weights, kernels, another model's name and links that lead out of the folder
    files      pipes and devices; settings and weights that are none
    costs      sizes, numbers and templates that ask for time or memory without end (hub/costs.py)

Files are read, as far as has to be, and nothing of them is run. Only a chat template of others is rendered, in Jinja's
sandbox and in a process of its own that may take two seconds.
"""

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any

from seqloom.hub.bundle import MANIFEST_NAME
from seqloom.hub.costs import number_faults, parameter_fault, size_fault, template_faults, weight_fault
from seqloom.hub.files import MOST_SETTINGS, RUN_FOLDERS, entries_below, read_object, read_text, sha256_of
from seqloom.hub.pickles import is_pickle
from seqloom.hub.quoting import shell, shown
from seqloom.hub.setting_kinds import CONFIG_KINDS, GENERATION_KINDS, TOKENIZER_KINDS, config_fault, kind_faults

TRAINER_STATE = ("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state*.pth", "global_step*/*.pt")
"""Pickles that Trainer keeps beside trainer_state.json, DeepSpeed's in a folder. Only a run that goes on reads them,
and Trainer does so with weights_only=True."""

TRAINING_ARGUMENTS = "training_args.bin"
"""A pickle that Trainer writes beside every model, and that neither it nor anything here ever reads."""


class FolderError(ValueError):
    """A folder that no `seqloom` command opens."""


class Kind(StrEnum):
    """What is the matter with a file."""

    OK = "ok"  # released code
    NOTE = "note"  # worth knowing, no reason for distrust
    OLDER = "older"  # released code, but not of this release
    CHANGED = "changed"  # code that is not as released
    MISSING = "missing"  # released code that is not there
    EXTRA = "extra"  # code that was never released
    UNKNOWN = "unknown"  # code of a version that this one does not know
    MANIFEST = "manifest"  # the manifest and the files disagree
    PICKLE = "pickle"  # loading it can run anything
    OUTSIDE = "outside"  # it points out of the folder
    BROKEN = "broken"  # it cannot be read, and so cannot be judged
    COST = "cost"  # it takes time or memory without end


DANGERS = frozenset({Kind.MANIFEST, Kind.PICKLE, Kind.OUTSIDE, Kind.BROKEN, Kind.COST})
"""What `check_folder` refuses. Not changed or extra code, for no `seqloom` command runs a folder's code."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    kind: Kind
    file: str
    """Relative to the folder, as it is called there."""
    text: str
    """Value, rule and remedy; what a folder says in it is shown as it is."""

    @property
    def is_problem(self) -> bool:
        """Whether it speaks against trusting the folder."""
        return self.kind not in (Kind.OK, Kind.NOTE, Kind.OLDER)

    def __str__(self) -> str:
        return f"{self.kind:<8}  {shown(self.file)}: {shown(self.text)}"


def check_folder(folder: str | PathLike[str], *, allow: Collection[Kind] = ()) -> None:
    """Refuse a folder that is dangerous to open, even for those who run no code of it.

    Of `RUN_FOLDERS` in it only links and pickles are looked at, since loading the model reads nothing of them.

    Args:
        folder: a checkpoint folder.
        allow: kinds of danger that the caller takes care of.

    Raises:
        FolderError: for a pickle, a path that leaves the folder, a manifest that disagrees with the files, files that
            cannot be read or ask for time without end, and where there is no config.json.
    """
    top = require_config(folder)
    found = [*find_dangers(top), *find_dangers_of_runs(top)]
    refuse_first(top, [each for each in found if each.kind in DANGERS.difference(allow)])


def refuse_first(folder: Path, findings: list[Finding]) -> None:
    """Raise what is wrong with a folder, if anything is.

    Raises:
        FolderError: with the first finding, and the command that lists them all.
    """
    if findings:
        others = f" (and {len(findings) - 1} more: seqloom verify {shell(folder)} lists them)" if findings[1:] else ""
        raise FolderError(f"{shown(folder / findings[0].file)}: {shown(findings[0].text)}{others}")


def require_config(folder: str | PathLike[str]) -> Path:
    """Return the path of a folder that holds a config.json.

    Raises:
        FolderError: if it holds none.
    """
    if not (Path(folder) / "config.json").is_file():
        raise FolderError(
            f"{shown(folder)} holds no config.json; name the folder that seqloom train wrote (its --output)."
        )
    return Path(folder)


def find_dangers(folder: Path) -> list[Finding]:
    """Return what is dangerous in a model's folder, the run's own folders in it left out."""
    names = names_in(folder)
    return [
        *_check_manifest(folder),
        *_find_pickles(folder, names),
        *_find_links_outside(folder, names),
        *_find_broken_files(folder, names),
        *_find_paths_outside(folder),
        *_find_costs(folder, names),
    ]


def find_dangers_of_runs(folder: Path) -> list[Finding]:
    """Return the links and the pickles in the run's folders below a model's, and what is no file."""
    names = names_in(folder, of_runs=True)
    found = [*_find_pickles(folder, names), *_find_links_outside(folder, names), *_find_no_files(folder, names)]
    return [each for each in found if each.is_problem]


# Files ----------------------------------------------------------------------------------------------------------------


def _check_manifest(folder: Path) -> Iterator[Finding]:
    path = folder / MANIFEST_NAME
    if not path.is_file():
        text = "not there; transformers leaves it out when it saves a model where Seqloom is not installed."
        yield Finding(Kind.NOTE, MANIFEST_NAME, text)
        return
    digests = (read_object(path) or {}).get("sha256")
    if not isinstance(digests, dict) or not digests:
        yield Finding(Kind.MANIFEST, MANIFEST_NAME, f"it holds no digests of the code; {_MANIFEST_REMEDY}")
        return
    for name, digest in sorted(digests.items()):
        file = folder / name
        is_there = _is_plain(name) and file.is_file() and not size_fault(name, file.stat().st_size)
        found = sha256_of(file) if is_there else "missing"
        if found != digest:
            rule = f"its SHA-256 {found[:12]} is not {str(digest)[:12]}, which {MANIFEST_NAME} says"
            yield Finding(Kind.MANIFEST, name, f"{rule}; {_MANIFEST_REMEDY}")


_MANIFEST_REMEDY = (
    f"somebody changed the folder after it was saved. Get it anew, or save the model again; if the change is your own, "
    f"delete {MANIFEST_NAME}."
)


def _find_pickles(folder: Path, names: Iterable[str]) -> Iterator[Finding]:
    """Find pickles. Those that Trainer itself leaves are only noted: no command and no from_pretrained reads them."""
    expected, referred = [], {file for _, settings in settings_in(folder) for _, file in _file_references(settings)}
    for name in names:
        if not (folder / name).is_file() or not is_pickle(folder / name):
            continue
        if _is_trainers(folder, name) and name not in referred:
            expected.append(name)
            continue
        rule = "a pickle, and loading one can run anything; weights belong in safetensors"
        yield Finding(Kind.PICKLE, name, f"{rule}. Delete it, or have its author save the model as safetensors.")
    if expected:
        text = "pickles of Trainer's, which only a run that goes on reads; push without them."
        yield Finding(Kind.NOTE, ", ".join(expected), text)


def _is_trainers(folder: Path, name: str) -> bool:
    run, _, rest = name.partition("/")
    if rest and any(fnmatch(run, pattern) for pattern in RUN_FOLDERS):
        return any(fnmatch(f"/{rest}", f"*/{state}") for state in (*TRAINER_STATE, TRAINING_ARGUMENTS))
    is_state = (folder / "trainer_state.json").is_file() and any(fnmatch(name, state) for state in TRAINER_STATE)
    return is_state or name == TRAINING_ARGUMENTS


def _find_links_outside(folder: Path, names: Iterable[str]) -> Iterator[Finding]:
    """Find symbolic links out of the folder.

    A snapshot in the Hub's cache consists of links to the blobs of its repository, and these, since huggingface_hub
    2.4, of links to blobs that all repositories share.
    """
    for name in names:
        if _leads_outside(folder, name):
            rule = f"a link to {shown(os.readlink(folder / name))}, out of the folder"
            yield Finding(Kind.OUTSIDE, name, f"{rule}; put the file itself there, or delete the link.")


def _leads_outside(folder: Path, name: str) -> bool:
    if not (folder / name).is_symlink():
        return False
    home = folder.resolve()
    homes = [home]
    if home.parent.name == "snapshots":
        repository = home.parents[1]
        homes.append(repository / "blobs")
        if repository.name.startswith("models--"):
            homes.append(repository.parent / "blobs")
    try:
        end = (folder / name).resolve()
    except (OSError, RuntimeError):  # links in a circle
        return True
    return not any(end.is_relative_to(home) for home in homes)


def _find_no_files(folder: Path, names: Iterable[str]) -> Iterator[Finding]:
    """Find pipes, devices and links to nothing; a link out of the folder is another matter."""
    for name in names:
        path = folder / name
        if not path.is_file() and not path.is_dir() and not _leads_outside(folder, name):
            text = "no regular file, so reading it may never end; put a file there, or delete it."
            yield Finding(Kind.BROKEN, name, text)


def _find_broken_files(folder: Path, names: list[str]) -> Iterator[Finding]:
    yield from _find_no_files(folder, names)
    for name in setting_files(folder):
        if (folder / name).is_file() and read_object(folder / name) is None:
            text = "no JSON object, so nobody can say what it refers to; get the folder anew, or save the model again."
            yield Finding(Kind.BROKEN, name, text)
    for name in names:
        if name.endswith(".json") and name not in setting_files(folder) and not _is_json(folder / name):
            yield Finding(Kind.BROKEN, name, "no JSON; get the folder anew, or delete the file if it is your own.")
        if name.endswith(".safetensors") and (folder / name).is_file() and not _leads_outside(folder, name):
            yield from (Finding(Kind.BROKEN, name, fault) for fault in filter(None, [weight_fault(folder / name)]))


def _is_json(path: Path) -> bool:
    """Whether a file holds JSON, nested no deeper than Python can read; what is no file or too large is said apart."""
    try:
        if path.is_file() and path.stat().st_size <= MOST_SETTINGS:
            json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return False
    return True


def _find_costs(folder: Path, names: Iterable[str]) -> Iterator[Finding]:
    for name in names:
        path = folder / name
        if path.is_file() and (fault := size_fault(name, path.stat().st_size)):
            yield Finding(Kind.COST, name, fault)
    yield from _find_faults_of_settings(folder)
    for name in names:
        if name.endswith((".jinja", "tokenizer_config.json", "chat_template.json", "processor_config.json")):
            yield from (Finding(Kind.COST, name, text) for text in template_faults(folder, name))


def _find_faults_of_settings(folder: Path) -> Iterator[Finding]:
    """Find numbers without end in the model's settings, and, where there are none, values that cannot be."""
    config, generation = (read_object(folder / name) or {} for name in ("config.json", "generation_config.json"))
    costs = [Finding(Kind.COST, "config.json", text) for text in number_faults(config)]
    costs += [Finding(Kind.COST, "config.json", text) for text in filter(None, [parameter_fault(folder)])]
    yield from costs
    faults = [] if costs else [config_fault(config) or next(kind_faults(config, CONFIG_KINDS, None), None)]
    yield from (Finding(Kind.BROKEN, "config.json", text) for text in filter(None, faults))
    costs = [Finding(Kind.COST, "generation_config.json", text) for text in number_faults(generation)]
    yield from costs
    found = [] if costs else kind_faults(generation, GENERATION_KINDS, config.get("vocab_size"))
    yield from (Finding(Kind.BROKEN, "generation_config.json", text) for text in found)
    tokenizer = read_object(folder / "tokenizer_config.json") or {}
    found = kind_faults(tokenizer, TOKENIZER_KINDS, None)
    yield from (Finding(Kind.BROKEN, "tokenizer_config.json", text) for text in found)


# What settings refer to -----------------------------------------------------------------------------------------------

_PATH_REMEDY = "correct the entry, or get the folder anew."


def _find_paths_outside(folder: Path) -> Iterator[Finding]:
    for name, settings in settings_in(folder):
        faults = [
            f"{key} is {reference!r}, and code has to lie in the folder itself, as file.Class; {_PATH_REMEDY}"
            for key, reference in code_references(settings)
            if not FLAT_REFERENCE.fullmatch(reference)
        ]
        faults += [
            f"{key} is {file!r}, a path {where}; {_PATH_REMEDY}"
            for key, file in _file_references(settings)
            if (where := _place_outside(file))
        ]
        faults += [
            f"{key} is {settings[key]!r}, code of a repository on the Hub; delete the entry, and choose the kernel "
            f"where you load."
            for key in sorted(_KERNEL_KEYS & settings.keys())
            if any("/" in kernel for kernel in _strings(settings[key]))
        ]
        if name == "adapter_config.json" and (base := settings.get("base_model_name_or_path")):
            faults.append(f"base_model_name_or_path is {base!r}, and with PEFT that is loaded instead; {_ADAPTER}")
        yield from (Finding(Kind.OUTSIDE, name, fault) for fault in faults)


_ADAPTER = "move the adapter's files to a folder of their own, or get the folder anew."

FLAT_REFERENCE = re.compile(r"[^\W\d]\w*\.[^\W\d]\w*")
"""file.Class. transformers would also follow "owner/repository--file.Class" and "/elsewhere/file.Class"."""

_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation"})
"""Where transformers takes "owner/repository" for a kernel to fetch from the Hub."""


def code_references(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (where it stands, "file.Class") for every class that transformers would look for in a folder."""
    for key in ("auto_map", "custom_pipelines"):
        entries = settings.get(key) or {}
        for name, entry in entries.items() if isinstance(entries, dict) else [("", entries)]:
            reference = entry.get("impl") if isinstance(entry, dict) else entry
            yield from ((f"{key} {name}".rstrip(), text) for text in _strings(reference))


def _file_references(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (where it stands, path) for every file that a setting names: shards, weights, vocabularies."""
    for key, value in settings.items():
        if key in ("weight_map", "transformers_weights") or key.endswith(("_file", "_files")):
            yield from ((key, text) for text in dict.fromkeys(_strings(value)))


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in nested lists and the values of dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _place_outside(path: str) -> str:
    """Return where a relative path leads, read as on Windows or elsewhere, if not into the model's own folder."""
    pure = PureWindowsPath(path)
    if pure.drive or pure.root or ".." in pure.parts:
        return "out of the folder"
    is_of_run = pure.parts and any(fnmatch(pure.parts[0], pattern) for pattern in RUN_FOLDERS)
    return "into a folder of the run, which is not the model's" if is_of_run else ""


def _is_plain(name: str) -> bool:
    return not _place_outside(name) and PureWindowsPath(name).name == name


# Reading --------------------------------------------------------------------------------------------------------------


def names_in(folder: Path, *, of_runs: bool = False) -> list[str]:
    """Return every file and every link below a folder, with "/" between the parts; links are not followed.

    Args:
        folder: a model's.
        of_runs: the names in `RUN_FOLDERS`, instead of all others.
    """
    return [name for name in entries_below(folder) if _is_of_run(name) is of_runs]


def _is_of_run(name: str) -> bool:
    first, inside, _ = name.partition("/")
    return bool(inside) and any(fnmatch(first, pattern) for pattern in RUN_FOLDERS)


def setting_files(folder: Path) -> list[str]:
    """Return the JSON files in which transformers looks for names of other files; tokenizer.json is data."""
    names = (name for name in names_in(folder) if not name.startswith("run/"))
    return [name for name in names if name.endswith(("config.json", ".index.json"))]


def settings_in(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and content of every file of settings."""
    for name in setting_files(folder):
        yield name, read_object(folder / name) or {}


__all__ = [
    "DANGERS",
    "FLAT_REFERENCE",
    "Finding",
    "FolderError",
    "Kind",
    "check_folder",
    "code_references",
    "find_dangers",
    "find_dangers_of_runs",
    "names_in",
    "refuse_first",
    "require_config",
    "setting_files",
    "settings_in",
]
