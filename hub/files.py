"""Files of a model's folder: what they are called, and how they are read. Standard library only."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: nothing is kept out
    fcntl = None  # type: ignore[assignment]

RUN_FOLDERS = ("checkpoint-*", "_saving", "_broken-*")
"""What a run keeps beside its model: checkpoints, each a folder of its own, and what a killed run leaves."""

SEAL_NAME = "checkpoint_manifest.json"
"""By this file a run knows that a checkpoint is whole: it holds the size and the SHA-256 of each file."""

CURVE_NAME = "learning_curve.png"
"""The picture of a run's loss and scores, which its model card shows."""

MOST_SETTINGS = 1 << 24
"""Bytes of the largest file of settings or records that is read."""


def read_text(path: Path, most: int = MOST_SETTINGS) -> str:
    """Return the text of a regular file; a pipe or a device might never end.

    Raises:
        ValueError: if it is no regular file, has more than `most` bytes, or is no UTF-8.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no regular file; put one there, or delete it.")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{path} has {size:,} bytes, and such a file is read up to {most:,}; get the folder anew.")
    return path.read_text(encoding="utf-8")


def refuse_no_place(path: Path) -> None:
    """Refuse a name under which no file can be written, before anything is computed for it.

    Raises:
        ValueError: for a name in a folder that does not exist, and for that of a folder or a device.
    """
    parent = path.absolute().parent
    if not parent.exists():
        raise ValueError(f"{path}: the folder {parent} does not exist; create it.")
    if not path.resolve().parent.is_dir() or (path.exists() and not path.is_file()):  # a link leads to its file
        raise ValueError(f"{path} is no place for a file; name another.")


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file; None if there is no file, or anything else in it."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def naming(file: object) -> Iterator[None]:
    """Let an error of the system name the file, which one of an open file does not."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(file)) from error


def try_lock(handle: int) -> bool:
    """Lock an open file or folder unless somebody else has; where there are no locks, nobody is kept out."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EAGAIN, errno.EACCES)
    return True


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_made_from(folder: Path) -> dict[str, str]:
    """Return file -> SHA-256 of all in a model's folder that decides what it answers."""
    patterns = ("config.json", "generation_config.json", "tokenizer*.json", "target/tokenizer*.json", "*.safetensors")
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


def recorded_outputs(folder: Path, most: int | None = None) -> list[dict[str, str]] | None:
    """Return "source", "target" and "output" of the run's test examples, at most so many; None where it left none.

    Raises:
        ValueError: naming the line that is not one of ours.
    """
    path = folder / "run" / "test_outputs.jsonl"
    if not path.is_file():
        return None
    rows = []
    with path.open(encoding="utf-8", newline="\n") as file:
        lines = iter(lambda: file.readline(MOST_SETTINGS), "")  # a line that never ends is no JSON
        for number, line in enumerate(islice(lines, most), start=1):
            try:
                record = json.loads(line)
                rows.append({name: str(record[name]) for name in ("source", "target", "output")})
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                found = f"{path}: line {number} is no test example"
                raise ValueError(f"{found}; delete the file, or bring it back.") from error
    return rows


def entries_below(folder: str | PathLike[str]) -> list[str]:
    """Return whatever is no folder below one, and links to folders: relative to it, with forward slashes, in order.

    Links are not followed.
    """
    names: list[str] = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        names += [(Path(place) / name).relative_to(folder).as_posix() for name in [*files, *links]]
    return sorted(names)


def names_below(folder: str | PathLike[str]) -> list[str]:
    """Return those of `entries_below` that are files."""
    return [name for name in entries_below(folder) if (Path(folder) / name).is_file()]


def models_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that hold a model; links are not followed."""
    checkpoints = (path for path in sorted(folder.glob(RUN_FOLDERS[0])) if not path.is_symlink())
    return [path for path in checkpoints if (path / "config.json").is_file()]


__all__ = [
    "CURVE_NAME",
    "MOST_SETTINGS",
    "RUN_FOLDERS",
    "SEAL_NAME",
    "entries_below",
    "files_made_from",
    "models_in",
    "names_below",
    "naming",
    "read_object",
    "read_text",
    "recorded_outputs",
    "sha256_of",
    "try_lock",
]
