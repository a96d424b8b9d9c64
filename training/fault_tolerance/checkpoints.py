"""Checkpoints that are whole or not there: staged, sealed, moved into place, checked before they are used.

A process can be killed between any two instructions, also between two files of a checkpoint. So nothing is written
where it will be looked for. A checkpoint grows in a staging folder; when every process has written its part, a manifest
with the size and the SHA-256 digest of each file seals it, all is flushed to the disk, and one rename makes it visible:

    OUTPUT/_saving/checkpoint-N  --seal-->  + checkpoint_manifest.json  --rename-->  OUTPUT/checkpoint-N  --> rotation

What a killed run leaves in the staging folder is removed at the next start. Only the manifest is Seqloom's: every other
file is what transformers writes and reads. Renames are atomic on POSIX file systems; names that begin with "_" stay out
of pushes to the Hub.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from seqloom.hub.bundle import MANIFEST_NAME
from seqloom.hub.files import SEAL_NAME as MANIFEST
from seqloom.hub.files import read_object, sha256_of

logger = logging.getLogger(__name__)

STAGING = "_saving"
"""Folder below OUTPUT in which files are written that must not be seen before they are whole."""

PREPARED = "run"
"""Folder below `STAGING` with the records of a run that has not begun yet."""

RECIPE = "recipe.yaml"
"""The record by which a run knows its folder; the first to come and the last to go."""

CARD = "README.md"
"""The model card; no manifest names it, for people edit it and no run needs it to go on."""

BROKEN = "_broken-"
"""What a checkpoint that cannot be used is renamed to: this, then its old name."""

_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_REPLACED = "replaced-"
_TRAINING_STATES = ("optimizer", "pytorch_model_fsdp", "global_step")  # of one device or DDP, FSDP, DeepSpeed


# Finding -------------------------------------------------------------------------------------------------------------


def checkpoint_path(output: Path, update: int) -> Path:
    """Return where the checkpoint of an update stands, or would stand."""
    return output / f"checkpoint-{update}"


def update_of(checkpoint: Path) -> int:
    """Return N of `checkpoint-N`, the number of updates it has learned; -1 for any other name."""
    match = _CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints_in(output: Path) -> list[Path]:
    """Return the checkpoints that Seqloom wrote, oldest first; to it, others are no checkpoints."""
    return [path for path in _named_checkpoints(output) if is_ours(path)]


def foreign_checkpoints_in(output: Path) -> list[Path]:
    """Return what is called checkpoint-N and was not written by Seqloom."""
    return [path for path in _named_checkpoints(output) if not is_ours(path)]


def _named_checkpoints(output: Path) -> list[Path]:
    return sorted((path for path in output.glob("checkpoint-*") if update_of(path) >= 0), key=update_of)


def is_ours(checkpoint: Path) -> bool:
    """Return whether a checkpoint has a manifest of Seqloom, be it damaged: the seal, or that of the model's code."""
    return any((checkpoint / name).is_file() for name in (MANIFEST, MANIFEST_NAME))


def last_whole_checkpoint(output: Path) -> Path | None:
    """Return the newest checkpoint that can be gone on from; broken ones are named in a warning and set aside."""
    for checkpoint in reversed(checkpoints_in(output)):
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        aside = _set_aside(checkpoint)
        logger.warning("%s is skipped: %s. It is kept as %s.", checkpoint, fault, aside.name)
    return None


def find_fault(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint; None if it can train on and every file is as it was written."""
    fault = find_damage(checkpoint)
    if fault is None and not any(name.startswith(_TRAINING_STATES) for name in facts_of(checkpoint)["files"]):
        return "it holds the weights but not the optimizer's state (save_only_model)"
    return fault


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a sealed folder; None if every file is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return next(filter(None, (file_fault(folder / name, facts) for name, facts in files.items())), None)
    except FileNotFoundError:
        return f"it has no {MANIFEST}, so it was not saved to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read ({error or type(error).__name__})"


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """Return what `seal` was told of a checkpoint; nothing if it cannot be read, `find_damage` says why."""
    return read_object(checkpoint / MANIFEST) or {}


def file_fault(path: Path, facts: Mapping[str, Any]) -> str | None:
    """Return how a file differs from its `facts`; None: it does not."""
    size, digest = facts["bytes"], facts["sha256"]
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}"
    return None if sha256_of(path) == digest else f"{path.name} is damaged (its SHA-256 digest is another)"


def _set_aside(checkpoint: Path) -> Path:
    first = BROKEN + checkpoint.name
    names = (checkpoint.with_name(f"{first}-{number}" if number else first) for number in count())
    aside = next(path for path in names if not os.path.lexists(path))
    checkpoint.rename(aside)
    return aside


# Saving --------------------------------------------------------------------------------------------------------------


def seal(checkpoint: Path, **facts: Any) -> None:
    """Write the manifest of a staged checkpoint and flush everything to the disk.

    Args:
        checkpoint: a folder to which nothing will be added.
        facts: what else the manifest should say, for people.
    """
    content = {**facts, "files": file_facts(checkpoint)}
    (checkpoint / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    flush(checkpoint)


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return bytes and SHA-256 of each file below a folder, but of its card."""
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, CARD)
    }


def put_in_place(staged: Path, final: Path) -> None:
    """Make a staged file or folder visible in one step; a folder that stands there already is replaced."""
    replaced = staged.with_name(_REPLACED + final.name)
    if final.is_dir():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    os.replace(staged, final)
    _flush_one(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def rotate(output: Path, limit: int | None, best: str | None) -> None:
    """Remove the oldest checkpoints of ours; the newest and the best one always stay.

    Args:
        output: the run's folder.
        limit: how many to keep; None or 0: all.
        best: the path of the best checkpoint, if there is one.
    """
    checkpoints = checkpoints_in(output)
    kept = {path for path in checkpoints[-1:] if limit} | {path for path in checkpoints if best and path == Path(best)}
    surplus = len(checkpoints) - max(limit, len(kept)) if limit else 0
    for checkpoint in [path for path in checkpoints if path not in kept][: max(0, surplus)]:
        discard(checkpoint, output)


def discard_extra(output: Path, best: str | None) -> None:
    """Remove checkpoints that were saved only because the run was stopped; it has gone on and needs them no more."""
    for checkpoint in checkpoints_in(output):
        if checkpoint != Path(best or "") and facts_of(checkpoint).get("is_extra"):
            discard(checkpoint, output)


def install(staged: Path, output: Path) -> None:
    """Move a finished model to the top of the run's folder, `config.json` last.

    Without `config.json` nothing takes the folder for a model. So whoever looks while the files are moved, or after a
    kill in between, finds no model there, and never a mixture of the old one and the new one.

    Args:
        staged: the saved model, in the staging folder.
        output: the run's folder.
    """
    flush(staged)
    (output / "config.json").unlink(missing_ok=True)
    _flush_one(output)
    files = (path for path in staged.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: (path.name == "config.json", path)):
        place = output / path.relative_to(staged)
        place.parent.mkdir(exist_ok=True)
        put_in_place(path, place)
    shutil.rmtree(staged)


def discard(folder: Path, output: Path) -> None:
    """Remove a folder that at any moment is either whole or gone."""
    doomed = output / STAGING / f"doomed-{folder.name}"
    doomed.parent.mkdir(exist_ok=True)
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def clear_staging(output: Path) -> None:
    """Remove what a killed run has left behind; a checkpoint that was being replaced comes back."""
    staging = output / STAGING
    for replaced in staging.glob(f"{_REPLACED}checkpoint-*"):
        original = output / replaced.name.removeprefix(_REPLACED)
        if not original.exists():
            replaced.rename(original)
    prepared = staging / PREPARED
    for path in (*staging.glob("*"), *prepared.glob("*")):  # what says whose folder this is goes last
        if path not in (prepared, prepared / RECIPE):
            remove(path)
    shutil.rmtree(staging, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder as far as that is possible; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a record that is whole or not there."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or not there.

    Raises:
        OSError: naming the file, whichever step the disk refused.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        _flush_one(temporary)
        put_in_place(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush(folder: Path) -> None:
    """Wait until a folder and all it holds are on the disk, not only in the system's memory; each folder last."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        _flush_one(path)


def _flush_one(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
