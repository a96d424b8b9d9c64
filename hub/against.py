"""Compares all files of a folder with those of another folder, or of a repository on the Hub, by size and digest.

Of a repository nothing is downloaded: the Hub lists the SHA-256 of large files and git's SHA-1 of the others.
"""

import filecmp
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

from seqloom.hub.dangers import FolderError, require_config
from seqloom.hub.files import entries_below, sha256_of
from seqloom.hub.quoting import shown

OWN_NOTES = ".cache/huggingface/"
"""What `hf download --local-dir` leaves in a folder; it is no file of the model, and is not compared."""


@dataclass(frozen=True)
class Comparison:
    """One line: how a file compares."""

    verdict: str
    """ "same", "differs", "only here" or "only there"."""
    file: str
    """Relative to both folders."""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.verdict:<10}  {shown(self.file)}{f': {shown(self.why)}' if self.why else ''}"


def compare_folder(folder: str | PathLike[str], other: str) -> list[Comparison]:
    """Compare all files of a folder with those of another one.

    Args:
        folder: a model.
        other: a folder; or, if there is none of this name, `owner/name` of a repository, with `@revision` if it is not
            main.

    Raises:
        FolderError: if `folder` holds no config.json, or there is no `other`.
    """
    here = _files_in(require_config(folder))
    there: Mapping[str, Any] = _files_in(Path(other)) if Path(other).is_dir() else _files_of(other)
    return [_compare(name, here.get(name), there.get(name)) for name in sorted({*here, *there})]


def describe_comparison(folder: str | PathLike[str], other: str, compared: Iterable[Comparison]) -> str:
    """Return the verdict in one sentence."""
    verdicts = [each.verdict for each in compared]
    num_same = verdicts.count("same")
    if num_same == len(verdicts):
        return f"{shown(folder)}: all {num_same} files are those of {shown(other)}."
    return f"{shown(folder)}: {len(verdicts) - num_same} of {len(verdicts)} files are NOT those of {shown(other)}."


def _compare(name: str, here: Path | None, there: Any) -> Comparison:
    if here is None or there is None:
        return Comparison("only there" if here is None else "only here", name)
    if not here.is_file():
        return Comparison("differs", name, "no regular file here")
    if isinstance(there, Path):
        if not there.is_file():
            return Comparison("differs", name, "no regular file there")
        sizes, is_same = (here.stat().st_size, there.stat().st_size), lambda: filecmp.cmp(here, there, shallow=False)
    else:
        sizes, is_same = (here.stat().st_size, there.size), lambda: _is_of_hub(here, there)
    if sizes[0] != sizes[1]:
        return Comparison("differs", name, f"{sizes[0]:,} bytes here, {sizes[1]:,} there")
    return Comparison("same", name) if is_same() else Comparison("differs", name, "of the same size")


def _is_of_hub(path: Path, listed: Any) -> bool:
    """Compare a file with what the Hub lists: SHA-256 where it is stored apart, else what git calls it."""
    if listed.lfs is not None:
        return sha256_of(path) == listed.lfs.sha256
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == listed.blob_id


def _files_in(folder: Path) -> dict[str, Path]:
    """Return name -> path of whatever is no folder, and of links to folders, which are not followed."""
    return {name: folder / name for name in entries_below(folder) if not name.startswith(OWN_NOTES)}


def _files_of(name: str) -> dict[str, Any]:
    """Return name -> what the Hub says of it, for all files of a repository."""
    repo, _, revision = name.partition("@")
    api = HfApi()
    try:
        listed = list(api.list_repo_tree(repo, recursive=True, revision=revision or None))
    except OfflineModeIsEnabled as error:
        raise FolderError(
            f"{shown(name)} is no folder here, and HF_HUB_OFFLINE=1 forbids to ask the Hub; unset it."
        ) from error
    except (HFValidationError, HfHubHTTPError) as error:
        response = getattr(error, "response", None)
        if response is not None and (response.status_code == 429 or response.status_code >= 500):
            raise FolderError(f"{api.endpoint} answered {response.status_code}; try again later.") from error
        raise FolderError(
            f"{shown(name)} is neither a folder here nor a repository that {api.endpoint} shows you; name a folder, or "
            f"owner/name[@revision]; `hf auth login` opens private ones."
        ) from error
    except (HTTPError, OSError) as error:
        raise FolderError(
            f"{api.endpoint} does not answer ({type(error).__name__}: {shown(error)}), and {shown(name)} is no folder "
            f"here; try again later."
        ) from error
    return {entry.path: entry for entry in listed if hasattr(entry, "blob_id")}


__all__ = ["Comparison", "compare_folder", "describe_comparison"]
