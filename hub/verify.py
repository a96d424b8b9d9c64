"""Tells whether a folder can be trusted: is its code the released code, and does nothing in it point outside?

`trust_remote_code=True` runs the Python files of a folder. Whoever changes them can change the manifest beside them as
well, so `verify_folder` compares the files with what the installed Seqloom would write, and with the digests of other
releases in the tables below. It reads files and runs nothing.

    folder --> code       ok | changed | missing | extra | unknown    compared with bundle_files(), RELEASES, EARLIER
           |              older                                       released, but not the latest: seqloom upgrade
           --> dangers    manifest, pickles, paths, files, costs      hub/dangers.py

Dangers endanger everybody who opens the folder: `check_folder` refuses it then, and every `seqloom` command calls that
first. The commands run the installed classes, never a folder's own code. What passes a folder on to others, `push` and
`space`, calls `check_code` too.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from seqloom.hub.bundle import MANIFEST_NAME, bundle_files
from seqloom.hub.costs import size_fault
from seqloom.hub.dangers import (
    DANGERS,
    FLAT_REFERENCE,
    Finding,
    FolderError,
    Kind,
    check_folder,
    code_references,
    find_dangers,
    find_dangers_of_runs,
    names_in,
    refuse_first,
    require_config,
    settings_in,
)
from seqloom.hub.files import models_in, read_object, sha256_of
from seqloom.hub.quoting import shell, shown

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


def verify_folder(folder: str | PathLike[str]) -> list[Finding]:
    """Compare a folder, and every `checkpoint-N` in it, with the released code; nothing in it is run.

    Returns:
        What was found, good news included. If no finding `is_problem`, all code is the released code.

    Raises:
        FolderError: if there is no config.json.
    """
    top = require_config(folder)
    found = [
        Finding(found.kind, f"{part.relative_to(top) / found.file}", found.text)
        for part in [top, *models_in(top)]
        for found in [*_compare_code(part), *find_dangers(part)]
    ]
    return [*found, *(each for each in find_dangers_of_runs(top) if each not in found)]


def check_code(folder: str | PathLike[str], *, concerns: Callable[[str], bool] = lambda name: True) -> None:
    """Refuse a folder whose code is not known; for whatever passes the folder on to others.

    Args:
        folder: a checkpoint folder.
        concerns: which files are passed on, by their names in the folder.

    Raises:
        FolderError: naming the file and the remedy.
    """
    top = require_config(folder)
    problems = [found for found in _compare_code(top) if found.is_problem and concerns(found.file)]
    own = f" If the folder is your own, seqloom upgrade {shell(folder)} gives it the code of the installed Seqloom."
    is_ours = {Kind.CHANGED: own, Kind.MISSING: own, Kind.EXTRA: " hf upload sends a folder as it is."}
    refuse_first(top, [Finding(each.kind, each.file, each.text + is_ours.get(each.kind, "")) for each in problems])


def summarize(folder: str | PathLike[str], findings: Iterable[Finding]) -> str:
    """Return the verdict in one line: what was judged, and what was not."""
    problems = sum(found.is_problem for found in findings)
    if problems:
        lines = "1 line above speaks" if problems == 1 else f"{problems} lines above speak"
        return (
            f"{shown(folder)}: NOT only the released code and safe files, {lines} against it; do not load it with "
            f"trust_remote_code=True."
        )
    return (
        f"{shown(folder)}: the code is the released code, and there is no pickle, no path out of the folder, and no "
        f"cost without end. Not judged: what weights, tokenizer and chat template make of a text."
    )


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
        release = claimed if re.fullmatch(r"\d[\w.+]{0,30}", str(claimed)) else None  # it will be pasted
        remedy = f"verify with seqloom=={release} installed, or with a later version" if release else "get it anew"
        text = (
            f"it says that Seqloom {claimed} wrote the code, and Seqloom {ours} does not know that release; {remedy}."
        )
        return [Finding(Kind.UNKNOWN, MANIFEST_NAME, text)]
    paths = [path for path in folder.glob("*.py") if path.is_file() and not size_fault(path.name, path.stat().st_size)]
    found = {path.name: sha256_of(path) for path in paths}
    release = max(known, key=lambda release: len(known[release].items() & found.items()))  # the first of equals
    digests = known[release]
    compared = [_compare_file(name, found.get(name), digest, release) for name, digest in sorted(digests.items())]
    if release != ours:
        text = f"older code; seqloom upgrade {shell(folder)} gives the folder that of Seqloom {ours}."
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
    for name in names_in(folder):
        if Path(name).suffix.lower() in CODE_SUFFIXES and name not in released:
            rule = "no part of the released code, and transformers may run it with trust_remote_code=True"
            yield Finding(Kind.EXTRA, name, f"{rule}; delete it, or read it before you trust it.")


def _find_foreign_references(folder: Path, released: Mapping[str, str]) -> Iterator[Finding]:
    """Find classes in auto_map and custom_pipelines that are not in a released file."""
    for name, settings in settings_in(folder):
        for key, reference in code_references(settings):
            if FLAT_REFERENCE.fullmatch(reference) and f"{reference.split('.')[0]}.py" not in released:
                rule = f"{key} names {reference}, which is not in the released code"
                yield Finding(Kind.EXTRA, name, f"{rule}; delete the entry, or read that file before you trust it.")


def _claimed_version(folder: Path) -> str | None:
    """Return the version that the manifest names; None where there is no manifest that names one."""
    manifest = read_object(folder / MANIFEST_NAME) or {}
    return str(manifest["seqloom_version"]) if "seqloom_version" in manifest else None


__all__ = [
    "DANGERS",
    "EARLIER",
    "RELEASES",
    "Finding",
    "FolderError",
    "Kind",
    "check_code",
    "check_folder",
    "release_digests",
    "summarize",
    "verify_folder",
]
