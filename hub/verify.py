"""Tells whether a folder can be trusted: is its code the released code, and does nothing in it point outside?

`trust_remote_code=True` runs the Python files of a folder. Whoever changes them can change the manifest beside them as
well, so `verify_folder` compares the files with what the installed Seqloom would write, and with the digests of other
releases in the tables below. It reads files and runs nothing.

    folder --> code       ok | changed | missing | extra | unknown    compared with bundle_files(), RELEASES, EARLIER
           |              older                                       released, but not the latest: seqloom upgrade
           --> manifest   does it agree with the files beside it?
           --> pickles    loading one runs whatever it says
           --> paths      code, weights and links outside the folder

Manifest, pickles and paths endanger everybody who opens the folder: `check_folder` refuses it then, and every `seqloom`
command calls that first. The commands run the installed classes, never a folder's own code.
"""

import json
import os
import pickletools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from importlib.metadata import version
from os import PathLike
from pathlib import Path, PureWindowsPath
from typing import Any

from seqloom.hub.bundle import MANIFEST_NAME, bundle_files
from seqloom.hub.files import RUN_FOLDERS, models_in, read_object, sha256_of

RELEASES: dict[str, dict[str, str]] = {}
"""Released version -> code file -> SHA-256 of what that version writes. Development versions have no entry here. In a
release that lacks its own, a test fails and prints the entry to add."""

EARLIER: dict[str, dict[str, str]] = {
    "0d384d5": {
        "canary.py": "f3ee28055b52f520f29c5d3f22cd4d18834233e8c44756d2084ad3ae88ccc2cc",
        "configuration_seqloom.py": "b0be30372686eadc1a6acb098c24c1df470d1b0b2649d71e5db8a6e6b3137358",
        "fast_dropout.py": "e67f171536fb9b247fbcaaab8c0bfb08b8c590969414582e075b237fb0c4f71e",
        "fused_loss.py": "f56adb21d089903fb90537890ab55e4a54fbd04e50ebc071eeef8cedba55cc11",
        "library.py": "0ef0e5917b39512357558851279f1e9849c87d39329193a9291f2fe43db154e2",
        "modeling_seqloom.py": "53c0b85c78e834991e3c8150df3a7dbde43d86a6788726de546bba9b18d1d9c9",
        "pipeline_seqloom.py": "5c3af79313403729474575cc66a8e47981d4cc1bc93b633d380cec88522d5468",
    },
    "8d00292": {
        "configuration_seqloom.py": "5521c2f973c40872847c2765a24c0803fe2f3dc9310894b451bb247d0f7e94ee",
        "fast_dropout.py": "e67f171536fb9b247fbcaaab8c0bfb08b8c590969414582e075b237fb0c4f71e",
        "fused_loss.py": "f56adb21d089903fb90537890ab55e4a54fbd04e50ebc071eeef8cedba55cc11",
        "modeling_seqloom.py": "cb4d48b3f711fcad78650168379e709a09cae773c43ce3fbf9bfc68516cf13ef",
        "packing.py": "b907613d0e027b8a859a3f9ed42f29370b64b2fa67fca4ae0d1a5b697bdb2160",
        "pipeline_seqloom.py": "5c3af79313403729474575cc66a8e47981d4cc1bc93b633d380cec88522d5468",
    },
}
"""Commit -> the same, for development versions whose folders people have; they share one version number."""

CODE_SUFFIXES = frozenset({".py", ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib"})
"""What Python can import."""

PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
"""Names of what torch.load and its kin read. Such a file may still be no pickle: its first byte tells."""

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


DANGERS = frozenset({Kind.MANIFEST, Kind.PICKLE, Kind.OUTSIDE, Kind.BROKEN})
"""What `check_folder` refuses. Not changed or extra code, for no `seqloom` command runs a folder's code."""


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    kind: Kind
    file: str
    """Relative to the folder."""
    text: str
    """Value, rule and remedy."""

    @property
    def is_problem(self) -> bool:
        """Whether it speaks against trusting the folder."""
        return self.kind not in (Kind.OK, Kind.NOTE, Kind.OLDER)

    def __str__(self) -> str:
        return f"{self.kind:<8}  {self.file}: {self.text}"


def verify_folder(folder: str | PathLike[str]) -> list[Finding]:
    """Compare a folder, and every `checkpoint-N` in it, with the released code; nothing in it is run.

    Returns:
        What was found, good news included. If no finding `is_problem`, all code is the released code.

    Raises:
        FolderError: if there is no config.json.
    """
    top = _require_config(folder)
    return [
        Finding(found.kind, f"{part.relative_to(top) / found.file}", found.text)
        for part in [top, *models_in(top)]
        for found in [*_compare_code(part), *_find_dangers(part)]
    ]


def check_folder(folder: str | PathLike[str], *, allow: Collection[Kind] = ()) -> None:
    """Refuse a folder that is dangerous to open, even for those who run no code of it.

    `RUN_FOLDERS` in it are not looked into, since loading the model reads nothing of them.

    Args:
        folder: a checkpoint folder.
        allow: kinds of danger that the caller takes care of.

    Raises:
        FolderError: for a pickle, a path that leaves the folder, a manifest that disagrees with the files, settings
            that cannot be read, and where there is no config.json.
    """
    top = _require_config(folder)
    dangers = [found for found in _find_dangers(top) if found.kind in DANGERS.difference(allow)]
    if dangers:
        others = f" (and {len(dangers) - 1} more: seqloom verify {folder} lists them)" if dangers[1:] else ""
        raise FolderError(f"{top / dangers[0].file}: {dangers[0].text}{others}")


def summarize(folder: str | PathLike[str], findings: Iterable[Finding]) -> str:
    """Return the verdict in one sentence."""
    problems = sum(found.is_problem for found in findings)
    if problems:
        lines = "1 line above speaks" if problems == 1 else f"{problems} lines above speak"
        return f"{folder}: NOT only the released code, {lines} against it; do not load it with trust_remote_code=True."
    return f"{folder}: the released code and nothing else."


def release_digests() -> dict[str, str]:
    """Return code file -> SHA-256 of what this installation writes: the entry of `RELEASES` for its version."""
    digests: dict[str, str] = json.loads(bundle_files()[MANIFEST_NAME])["sha256"]
    return digests


# Code ---------------------------------------------------------------------------------------------------------------


def _compare_code(folder: Path) -> list[Finding]:
    """Compare every code file of a folder with the release that the manifest names, or the one most like it."""
    claimed, ours = _claimed_version(folder), version("seqloom")
    known = _known_code(claimed)
    if not known:
        text = (
            f"it says that Seqloom {claimed} wrote the code, and Seqloom {ours} does not know that release; verify "
            f"with seqloom=={claimed} installed, or with a later version."
        )
        return [Finding(Kind.UNKNOWN, MANIFEST_NAME, text)]
    found = {path.name: sha256_of(path) for path in folder.glob("*.py") if path.is_file()}
    release = max(known, key=lambda release: len(known[release].items() & found.items()))  # the first of equals
    digests = known[release]
    compared = [_compare_file(name, found.get(name), digest, release) for name, digest in sorted(digests.items())]
    if release != ours:
        text = f"older code; seqloom upgrade {folder} gives the folder that of Seqloom {ours}."
        compared.append(Finding(Kind.OLDER, MANIFEST_NAME, text))
    return [*compared, *_find_extra_code(folder, digests), *_find_foreign_references(folder, digests)]


def _known_code(claimed: str | None) -> dict[str, dict[str, str]]:
    """Return name -> digests of all known code that a folder may hold which claims a version; None: no version."""
    ours = version("seqloom")
    if claimed not in (ours, None):
        return {str(claimed): RELEASES[str(claimed)]} if claimed in RELEASES else {}
    earlier = {f"at commit {commit}": digests for commit, digests in EARLIER.items()}
    return {ours: release_digests()} | earlier | (RELEASES if claimed is None else {})


def _compare_file(name: str, found: str | None, digest: str, release: str) -> Finding:
    remedy = "get the folder from its author anew, or save the model again with save_pretrained."
    if found is None:
        return Finding(Kind.MISSING, name, f"Seqloom {release} writes this file, and it is not there; {remedy}")
    if found == digest:
        return Finding(Kind.OK, name, f"the code of Seqloom {release}.")
    since = " as it is installed here (a development version may have changed since)" if ".dev" in release else ""
    rule = f"SHA-256 {found[:12]}... is not {digest[:12]}..., that of Seqloom {release}{since}"
    return Finding(Kind.CHANGED, name, f"{rule}; {remedy}")


def _find_extra_code(folder: Path, released: Mapping[str, str]) -> Iterator[Finding]:
    for name in _names_in(folder):
        if Path(name).suffix.lower() in CODE_SUFFIXES and name not in released:
            rule = "no part of the released code, and transformers may run it with trust_remote_code=True"
            yield Finding(Kind.EXTRA, name, f"{rule}; delete it, or read it before you trust it.")


def _find_foreign_references(folder: Path, released: Mapping[str, str]) -> Iterator[Finding]:
    """Find classes in auto_map and custom_pipelines that are not in a released file."""
    for name, settings in _settings_in(folder):
        for key, reference in _code_references(settings):
            if _FLAT_REFERENCE.fullmatch(reference) and f"{reference.split('.')[0]}.py" not in released:
                rule = f"{key} names {reference}, which is not in the released code"
                yield Finding(Kind.EXTRA, name, f"{rule}; delete the entry, or read that file before you trust it.")


def _claimed_version(folder: Path) -> str | None:
    """Return the version that the manifest names; None where there is no manifest that names one."""
    manifest = read_object(folder / MANIFEST_NAME) or {}
    return str(manifest["seqloom_version"]) if "seqloom_version" in manifest else None


# Dangers ------------------------------------------------------------------------------------------------------------


def _find_dangers(folder: Path) -> list[Finding]:
    return [
        *_check_manifest(folder),
        *_find_pickles(folder),
        *_find_links_outside(folder),
        *_find_broken_settings(folder),
        *_find_paths_outside(folder),
    ]


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
        found = sha256_of(file) if _is_plain(name) and file.is_file() else "missing"
        if found != digest:
            rule = f"its SHA-256 {found[:12]} is not {str(digest)[:12]}, which {MANIFEST_NAME} says"
            yield Finding(Kind.MANIFEST, name, f"{rule}; {_MANIFEST_REMEDY}")


_MANIFEST_REMEDY = (
    f"somebody changed the folder after it was saved. Get it anew, or save the model again; if the change is your own, "
    f"delete {MANIFEST_NAME}."
)


def _find_pickles(folder: Path) -> Iterator[Finding]:
    """Find pickles. Those that Trainer itself leaves are only noted: no command and no from_pretrained reads them."""
    expected = []
    for name in _names_in(folder):
        if Path(name).suffix.lower() not in PICKLE_SUFFIXES or not _may_be_pickle(folder / name):
            continue
        if _is_trainers(folder, name):
            expected.append(name)
            continue
        rule = "a pickle, and loading one can run anything; weights belong in safetensors"
        yield Finding(Kind.PICKLE, name, f"{rule}. Delete it, or have its author save the model as safetensors.")
    if expected:
        text = "pickles of Trainer's, which only a run that goes on reads; push without them."
        yield Finding(Kind.NOTE, ", ".join(expected), text)


def _is_trainers(folder: Path, name: str) -> bool:
    is_state = (folder / "trainer_state.json").is_file() and any(fnmatch(name, state) for state in TRAINER_STATE)
    return is_state or name == TRAINING_ARGUMENTS


def _may_be_pickle(path: Path) -> bool:
    """Whether a pickle, or a zip of pickles, can begin with the first byte; a CTranslate2 model begins otherwise."""
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except OSError:  # a folder behind a link, or a link into nowhere, which is reported as such
        return False
    return first.decode("latin-1") in _FIRST_CHARACTERS


_FIRST_CHARACTERS = frozenset(opcode.code for opcode in pickletools.opcodes) | {"P"}  # "PK" is a zip


def _find_links_outside(folder: Path) -> Iterator[Finding]:
    """Find symbolic links out of the folder; a snapshot in the Hub's cache consists of links to the blobs beside it."""
    home = folder.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for name in _names_in(folder):
        path = folder / name
        if path.is_symlink() and not any(path.resolve().is_relative_to(home) for home in homes):
            rule = f"a link to {os.readlink(path)}, out of the folder"
            yield Finding(Kind.OUTSIDE, name, f"{rule}; put the file itself there, or delete the link.")


def _find_broken_settings(folder: Path) -> Iterator[Finding]:
    for path in _setting_files(folder):
        if read_object(path) is None:
            text = "no JSON object, so nobody can say what it refers to; get the folder anew, or save the model again."
            yield Finding(Kind.BROKEN, path.name, text)


def _find_paths_outside(folder: Path) -> Iterator[Finding]:
    remedy = "correct the entry, or get the folder anew."
    for name, settings in _settings_in(folder):
        faults = [
            f"{key} is {reference!r}, and code has to lie in the folder itself, as file.Class; {remedy}"
            for key, reference in _code_references(settings)
            if not _FLAT_REFERENCE.fullmatch(reference)
        ]
        faults += [
            f"{key} is {file!r}, a path out of the folder; {remedy}"
            for key, file in _file_references(settings)
            if not _stays_inside(file)
        ]
        faults += [
            f"{key} is {settings[key]!r}, code of a repository on the Hub; delete the entry, and choose the kernel "
            f"where you load."
            for key in _KERNEL_KEYS & settings.keys()
            if any("/" in kernel for kernel in _strings(settings[key]))
        ]
        yield from (Finding(Kind.OUTSIDE, name, fault) for fault in faults)


# What settings refer to ---------------------------------------------------------------------------------------------

_FLAT_REFERENCE = re.compile(r"[^\W\d]\w*\.[^\W\d]\w*")
"""file.Class. transformers would also follow "owner/repository--file.Class" and "/elsewhere/file.Class"."""

_KERNEL_KEYS = frozenset({"attn_implementation", "_attn_implementation", "experts_implementation"})
"""Where transformers takes "owner/repository" for a kernel to fetch from the Hub."""


def _code_references(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
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


def _stays_inside(path: str) -> bool:
    """Whether a relative path, read as on Windows or elsewhere, goes nowhere up and has no drive."""
    pure = PureWindowsPath(path)
    return not pure.drive and not pure.root and ".." not in pure.parts


def _is_plain(name: str) -> bool:
    return _stays_inside(name) and PureWindowsPath(name).name == name


# Reading ------------------------------------------------------------------------------------------------------------


def _require_config(folder: str | PathLike[str]) -> Path:
    if not (Path(folder) / "config.json").is_file():
        raise FolderError(f"{folder} holds no config.json; name the folder that seqloom train wrote (its --output).")
    return Path(folder)


def _names_in(folder: Path) -> list[str]:
    """Return every file and every link below a folder, with "/" between the parts; links are not followed.

    `RUN_FOLDERS` are left out: loading the model reads nothing of them, and settings that lead there are refused.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        here = Path(place).relative_to(folder)
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        if here == Path():
            folders[:] = [name for name in folders if not any(fnmatch(name, pattern) for pattern in RUN_FOLDERS)]
        names += [(here / name).as_posix() for name in [*files, *links]]
    return sorted(names)


def _setting_files(folder: Path) -> list[Path]:
    """Return the JSON files in which transformers looks for names of other files; tokenizer.json is data."""
    return sorted({*folder.glob("*config.json"), *folder.glob("*.index.json")})


def _settings_in(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _setting_files(folder):
        yield path.name, read_object(path) or {}


__all__ = [
    "DANGERS",
    "EARLIER",
    "RELEASES",
    "Finding",
    "FolderError",
    "Kind",
    "check_folder",
    "release_digests",
    "summarize",
    "verify_folder",
]
