"""Gives an old folder today's code. Weights and tokenizer stay as they are, to the byte.

An upgrade is a list of steps. Each step writes one file, whole, or removes one. Before the first step is taken, the
list is complete and was tried on a copy of the folder:

    folder --> rows         what its weights say: the rows of its canary, or else of forced passes made now
           --> steps        file -> new content, in order
           --> a copy       links to the weights, all steps taken: does `generate` write there what the rows say?
           --> folder       the steps taken

A process can be killed between any two steps. Code files import each other, so a folder in which half of them are new
would not load. Hence the new code is first written beside the old code, as stand-ins with names of their own. Then
config.json, replaced in one step, sends readers to the stand-ins, and later back to the usual names:

    *_next_1a2b3c4d.py, then a config.json that names them      from here on the folder runs the new code
    *.py, then the usual config.json                            the same code under its own names; stand-ins removed

Only what Seqloom wrote is replaced or removed: files whose digests stand in the manifest or belong to a known release.
All other files are kept, and named.
"""

import hashlib
import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from seqloom.configuration.configuration_seqloom import SeqloomConfig
from seqloom.hub.bundle import MANIFEST_NAME, STAND_IN, bundle_files, config_text, name_code
from seqloom.hub.files import SEAL_NAME, models_in, read_object, sha256_of
from seqloom.hub.loading import no_loading_bar
from seqloom.hub.model_card import CARD_NAME, card_bytes, is_generated, weights_sha256
from seqloom.hub.quoting import shell, shown
from seqloom.hub.verify import EARLIER, RELEASES, Kind, check_folder, release_digests
from seqloom.modeling.canary import (
    CANARY_NAME,
    canary_text,
    find_faults,
    read_canary,
    rows_that_hold,
    write_canary,
    write_whole,
)
from seqloom.modeling.library import REMEDY, WeightsError, describe_running, running_library
from seqloom.modeling.modeling_seqloom import SeqloomForConditionalGeneration, SeqloomModel

Step = tuple[str, bytes | None]
"""A file in the folder, and what it will hold; None: it is removed."""


class UpgradeError(ValueError):
    """A folder that is not upgraded; it is as it was."""


@dataclass(frozen=True)
class Upgrade:
    """What is done to a folder."""

    folder: Path
    steps: tuple[Step, ...] = ()
    """In the order in which they are taken; none if the folder has today's code."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """File that is kept -> what its owner should know about it."""


def plan_upgrade(folder: str | PathLike[str], *, replace_edited: bool = False) -> Upgrade:
    """Find out what has to be done to a folder, and try it on a copy; nothing is written to the folder.

    Args:
        folder: a model, old or not.
        replace_edited: replace even code that somebody has edited, and keep that as FILE.edited.

    Raises:
        ValueError: for a folder that is no Seqloom model, is dangerous to open, holds edited code, or would not answer
            rightly afterwards.
    """
    folder = Path(folder)
    _refuse_others(folder)
    proofs = _proofs(folder)
    edited = [name for name in _outdated(folder) if (folder / name).exists() and not _is_ours(folder, name, proofs)]
    if edited and not replace_edited:
        raise UpgradeError(_explain_edited(folder, edited))
    aside = {name: _free_name(folder, f"{name}.edited") for name in edited}
    steps: list[Step] = [(copy, (folder / name).read_bytes()) for name, copy in aside.items()]
    steps += [*_renew_code(folder, proofs), *_renew_card(folder)]
    steps += _renew_canary(folder, steps)
    kept = {copy: f"{name} as you had edited it." for name, copy in aside.items()} | _kept(folder, proofs)
    return Upgrade(folder, tuple(_keep_sealed(folder, steps)), kept)


def upgrade_folder(folder: str | PathLike[str], *, replace_edited: bool = False) -> Upgrade:
    """Give a folder today's code; see `plan_upgrade`.

    Killed at any moment, it leaves a folder that works, and the same call then does the rest.

    Raises:
        ValueError: as there, and for a folder that cannot be written; nothing was changed.
    """
    upgrade = plan_upgrade(folder, replace_edited=replace_edited)
    if upgrade.steps and not os.access(upgrade.folder, os.W_OK | os.X_OK):
        raise UpgradeError(
            f"{shown(upgrade.folder)} cannot be written, so nothing was changed; copy it, and upgrade the copy."
        )
    take(upgrade.folder, upgrade.steps)
    return upgrade


def take(folder: Path, steps: tuple[Step, ...]) -> None:
    """Take steps, one after the other."""
    for name, content in steps:
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            write_whole(folder / name, content)


def describe_upgrade(upgrade: Upgrade, *, dry_run: bool = False) -> str:
    """Return a line for each file that was, or in a `dry_run` would be, written, removed or kept, and a verdict."""
    last = {name: content for name, content in upgrade.steps if STAND_IN.search(Path(name).stem) is None}
    changed = sorted((name, content) for name, content in last.items() if name not in upgrade.kept)
    lines = [f"{'remove' if content is None else 'write':<8}  {shown(name)}" for name, content in changed]
    lines += [f"keep      {shown(name)}: {shown(why)}" for name, why in sorted(upgrade.kept.items())]
    return "\n".join([*lines, _verdict(upgrade, dry_run)])


def _verdict(upgrade: Upgrade, dry_run: bool) -> str:
    folder, release = shown(upgrade.folder), f"the code of Seqloom {version('seqloom')}"
    if not upgrade.steps:
        return f"{folder} has {release}; there is nothing to do."
    if dry_run:
        return f"{folder}: nothing was changed; without --dry_run this is done."
    return (
        f"{folder} has {release} and answers rightly under {describe_running()}. The weights are as they were "
        f"(SHA-256 {weights_sha256(upgrade.folder)[:12]}...), and so is the tokenizer."
    )


# What is refused ------------------------------------------------------------------------------------------------------


def _refuse_others(folder: Path) -> None:
    check_folder(folder, allow={Kind.MANIFEST})  # code that differs from the manifest was edited; plan_upgrade says so
    kind = _object(folder / "config.json").get("model_type")
    if kind != SeqloomConfig.model_type:
        raise UpgradeError(
            f"{shown(folder)} holds a model of type {shown(kind)}, not seqloom; only Seqloom's folders are upgraded."
        )
    weights_sha256(folder)  # refuses a folder without weights
    if folder.resolve().parent.name == "snapshots":
        raise UpgradeError(
            f"{shown(folder)} is a copy in the Hub's cache, which the next download replaces; get one of your own with "
            f"hf download OWNER/NAME --local-dir DIR, upgrade DIR, and push it."
        )


def _explain_edited(folder: Path, edited: list[str]) -> str:
    are, them, files, each = ("are", "them", "the files", "each") if edited[1:] else ("is", "it", "the file", "it")
    return (
        f"{', '.join(edited)} in {shown(folder)} {are} not as Seqloom wrote {them}, and half old, half new code would "
        f"not run; nothing was changed. Move {files} out of the way, or let --replace_edited keep {each} as "
        f"{edited[0]}.edited."
    )


# Steps --------------------------------------------------------------------------------------------------------------


def _code() -> dict[str, bytes]:
    return {name: text.encode() for name, text in bundle_files().items() if name != MANIFEST_NAME}


def _outdated(folder: Path) -> list[str]:
    """Return the code files that a folder lacks, or whose text is not today's."""
    return [name for name, content in _code().items() if _read(folder / name) != content]


def _free_name(folder: Path, name: str) -> str:
    return name if not (folder / name).exists() else _free_name(folder, f"{name}~")


def _renew_code(folder: Path, proofs: Mapping[str, set[str]]) -> Iterator[Step]:
    """Yield the steps to today's code, manifest and config.json; see the module for their order."""
    config, manifest = _object(folder / "config.json"), bundle_files()[MANIFEST_NAME].encode()
    outdated = _outdated(folder)
    stand_ins = {path.name: None for path in folder.glob("*.py") if _is_stand_in(path)}
    stale = dict.fromkeys(_stale(folder, proofs))
    if outdated:
        ending = f"_next_{hashlib.sha256(manifest).hexdigest()[:8]}"
        new = {f"{Path(name).stem}{ending}.py": _stand_in(text, ending) for name, text in _code().items()}
        yield from new.items()
        yield "config.json", config_text(name_code(config, ending)).encode()
        yield MANIFEST_NAME, _manifest_between(new, proofs)
        yield from ((name, _code()[name]) for name in outdated)
        yield from stale.items()  # now, while the manifest in the folder still proves that they are ours
        stand_ins |= dict.fromkeys(new)
    renewed = name_code(config)
    if outdated or config != renewed:
        yield "config.json", config_text(renewed).encode()
    if outdated or _read(folder / MANIFEST_NAME) != manifest:
        yield MANIFEST_NAME, manifest
    yield from (stand_ins if outdated else stale | stand_ins).items()


def _stand_in(text: bytes, ending: str) -> bytes:
    """Return code that imports the stand-ins of its neighbours."""
    return re.sub(rb"^(\s*from \.\w+)( import\b)", rb"\g<1>" + ending.encode() + rb"\2", text, flags=re.MULTILINE)


def _is_stand_in(path: Path) -> bool:
    """Whether an upgrade that was killed has left this file: nobody else uses such names with our header."""
    return STAND_IN.search(path.stem) is not None and _has_header(path)


def _manifest_between(new: Mapping[str, bytes], proofs: Mapping[str, set[str]]) -> bytes:
    """Return the manifest while files are replaced: the stand-ins' digests, and all that the others may have."""
    digests = {name: hashlib.sha256(text).hexdigest() for name, text in new.items()}
    replacing = {name: sorted(known) for name, known in proofs.items()}
    return _json({"seqloom_version": version("seqloom"), "sha256": digests, "replacing": replacing})


def _renew_card(folder: Path) -> Iterator[Step]:
    card, today = _read(folder / CARD_NAME), card_bytes(folder)
    if card not in (None, today):
        yield CARD_NAME, today


def _keep_sealed(folder: Path, steps: list[Step]) -> list[Step]:
    """Add steps that keep a checkpoint's seal true, so that its run can go on from it before, between and after them.

    While files change, the seal does not name them.
    """
    seal, after = _object(folder / SEAL_NAME), dict(steps)
    if not steps or not isinstance(seal.get("files"), dict):
        return steps
    untouched = {name: facts for name, facts in seal["files"].items() if name not in after}
    touched = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(after.items())
        if content is not None and name != CARD_NAME
    }
    first, last = ({**seal, "files": files} for files in (untouched, untouched | touched))
    return [(SEAL_NAME, _json(first)), *steps, (SEAL_NAME, _json(last))]


# Whose is it --------------------------------------------------------------------------------------------------------


def _proofs(folder: Path) -> dict[str, set[str]]:
    """Return code file -> SHA-256 of what we may have written there: manifest, releases, this installation."""
    manifest = _object(folder / MANIFEST_NAME)
    tables = [release_digests(), *RELEASES.values(), *EARLIER.values(), manifest.get("sha256")]
    proofs: defaultdict[str, set[str]] = defaultdict(set)
    for name, digest in (entry for table in tables if isinstance(table, dict) for entry in table.items()):
        proofs[name].add(str(digest))
    replacing = manifest.get("replacing")
    for name, known in replacing.items() if isinstance(replacing, dict) else ():
        proofs[name].update(map(str, known))
    return dict(proofs)


def _is_ours(folder: Path, name: str, proofs: Mapping[str, set[str]]) -> bool:
    path = folder / name
    return path.is_file() and sha256_of(path) in proofs.get(name, ()) and _has_header(path)


def _has_header(path: Path) -> bool:
    return path.read_bytes().startswith(b"# Seqloom ")


def _other_code(folder: Path) -> list[str]:
    """Return the Python files of a folder that are no part of today's code."""
    return [path.name for path in sorted(folder.glob("*.py")) if path.name not in _code() and not _is_stand_in(path)]


def _stale(folder: Path, proofs: Mapping[str, set[str]]) -> list[str]:
    """Return files of ours that today's code no longer has."""
    return [name for name in _other_code(folder) if _is_ours(folder, name, proofs)]


def _kept(folder: Path, proofs: Mapping[str, set[str]]) -> dict[str, str]:
    edited = "once Seqloom's, edited since; nothing of ours reads it any more."
    others = [name for name in _other_code(folder) if not _is_ours(folder, name, proofs)]
    kept = {name: edited if name in proofs else "not Seqloom's." for name in others}
    card = _read(folder / CARD_NAME)
    if card is not None and not is_generated(card.decode(errors="replace")):
        kept[CARD_NAME] = "edited, and not overwritten."
    own = "a folder of its own; seqloom upgrade {} upgrades it."
    return kept | {path.name: own.format(shell(path)) for path in models_in(folder)}


# Canary -------------------------------------------------------------------------------------------------------------


def _renew_canary(folder: Path, steps: list[Step]) -> Iterator[Step]:
    """Yield the step that writes the canary, after a copy of the folder with all other steps taken has passed it.

    Raises:
        UpgradeError: if `generate` writes something else there than the weights said before.
    """
    path = folder / CANARY_NAME
    canary = read_canary(path) if path.is_file() else None
    if not steps and canary is not None:
        return
    rows = rows_that_hold(_load(folder))
    with TemporaryDirectory() as place:
        copy = Path(place) / "model"
        _link(folder, copy)
        take(copy, tuple(steps))
        model = _load(copy)
        if canary is None or not canary.rows:
            write_canary(model, copy)
            canary = read_canary(copy / CANARY_NAME)
        if faults := rows and find_faults(model, rows):
            raise UpgradeError(
                f"{shown(folder)} would not answer rightly with today's code under {describe_running()}: "
                f"{'; '.join(faults)}. Nothing was changed. Upgrade it under a tested library; {REMEDY}"
            )
    if running_library() not in canary.tested and canary.rows:
        canary.tested.append(running_library())
    yield CANARY_NAME, canary_text(canary).encode()


def _load(folder: Path) -> Any:
    """Load a folder with the installed class.

    Raises:
        UpgradeError: if its weights are not all of those that the class has.
    """
    is_bare = _object(folder / "config.json").get("architectures") == [SeqloomModel.__name__]
    loader = SeqloomModel if is_bare else SeqloomForConditionalGeneration
    try:
        with no_loading_bar():
            return loader.from_pretrained(folder, use_safetensors=True).eval()
    except WeightsError as error:
        raise UpgradeError(
            f"{error} Nothing was changed; use it with the Seqloom that wrote it, for {version('seqloom')} is another."
        ) from error


def _link(folder: Path, copy: Path) -> None:
    """Make a folder of links to the files of another one; copies, where the system has no links."""
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in (".bin", ".pt", ".pth"):  # Trainer's pickles stay where they are
            try:
                (copy / path.name).symlink_to(path.resolve())
            except OSError:
                shutil.copyfile(path, copy / path.name)


# Reading ------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) or {}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


__all__ = ["Step", "Upgrade", "UpgradeError", "describe_upgrade", "plan_upgrade", "take", "upgrade_folder"]
