"""The folder of an export: it appears whole or not at all, and only what we wrote is ever replaced.

DIR's parent/.DIR.<random>.part    files grow here; if anything fails they are removed
    |  manifest: SHA-256 of every file, and what was exported
    |  rename
    v
DIR                                an older export of ours gives way, if every file in it is as we wrote it
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any
from uuid import uuid4

from seqloom.hub.files import entries_below, read_object, sha256_of

EXPORT_NAME = "seqloom_export.json"
"""The manifest; it marks a folder as an export."""


class ExportError(ValueError):
    """An export that was not made; nothing was changed."""


@contextmanager
def new_export(output: str | PathLike[str]) -> Iterator[Path]:
    """Give a folder to fill, and put it in the place of `output` when the block ends without an error.

    Args:
        output: does not exist, or is empty, or holds an export of ours that nobody has added to.

    Raises:
        ExportError: for any other folder, before anything is written.
    """
    output = Path(output).resolve()
    refuse_foreign(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    staged = output.with_name(f".{output.name}.{uuid4().hex[:8]}.part")
    staged.mkdir()
    try:
        yield staged
        refuse_foreign(output)  # an hour may have passed
        _take_place(staged, output)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def seal_export(folder: Path, facts: dict[str, Any]) -> None:
    """Write the manifest of a filled folder.

    Args:
        folder: holds all other files.
        facts: what is to be known of the export; no key is "sha256".
    """
    digests = {name: sha256_of(folder / name) for name in entries_below(folder)}
    text = json.dumps({**facts, "sha256": digests}, indent=2, ensure_ascii=False) + "\n"
    (folder / EXPORT_NAME).write_text(text, encoding="utf-8", newline="\n")


def refuse_foreign(output: Path) -> None:
    """Refuse a place where something lies that we did not write.

    Raises:
        ExportError: naming it.
    """
    if not output.exists():
        return
    remedy = "name a folder that does not exist, or move this one away"
    if not output.is_dir():
        raise ExportError(f"{output} is a file, and an export is a folder; {remedy}.")
    names = entries_below(output)
    if not names and not any(output.iterdir()):
        return
    ours = _manifest(output)
    if ours is None:
        raise ExportError(f"{output} holds something, and no export of ours; {remedy}.")
    for name in names:
        if name != EXPORT_NAME and ours.get(name) != _sha256(output / name):
            raise ExportError(f"{output / name} is not as an export has written it, and would be lost; {remedy}.")


def _take_place(staged: Path, output: Path) -> None:
    """Rename; what stood there before is ours, see `refuse_foreign`, and leaves last."""
    if not output.exists():
        staged.rename(output)
        return
    old = output.with_name(f"{staged.name}.old")
    output.rename(old)
    try:
        staged.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old)


def _manifest(folder: Path) -> dict[str, str] | None:
    """Return file -> SHA-256 as an export's manifest says; None: there is none."""
    digests = (read_object(folder / EXPORT_NAME) or {}).get("sha256")
    return digests if isinstance(digests, dict) else None


def _sha256(path: Path) -> str:
    """Return the digest of a file; of a link or device, which no export writes, none that equals another."""
    return "not a file" if path.is_symlink() or not path.is_file() else sha256_of(path)


__all__ = ["EXPORT_NAME", "ExportError", "new_export", "refuse_foreign", "seal_export"]
