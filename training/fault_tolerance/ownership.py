"""Whose folder is it? A run starts only where nothing is in its way that it did not write.

A folder is ours if its `run/recipe.yaml`, or the one that is being prepared, begins as `Recipe` begins it. There every
name below is ours, but for a `checkpoint-N` without a manifest. In any other folder nothing may stand under a name that
a run would write, rename or delete; data and scripts may lie beside. What is in the way is named, and nothing is
touched, whatever the command line says.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PureWindowsPath

from transformers.tokenization_utils_base import (
    ADDED_TOKENS_FILE,
    CHAT_TEMPLATE_FILE,
    FULL_TOKENIZER_FILE,
    SPECIAL_TOKENS_MAP_FILE,
    TOKENIZER_CONFIG_FILE,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME

from seqloom.configuration.recipe import RECIPE_HEADER, RecipeError
from seqloom.hub.bundle import bundle_files
from seqloom.hub.files import CURVE_NAME, RUN_FOLDERS
from seqloom.hub.files import SEAL_NAME as MANIFEST
from seqloom.modeling.canary import CANARY_NAME
from seqloom.training.fault_tolerance.checkpoints import (
    CARD,
    PREPARED,
    RECIPE,
    STAGING,
    facts_of,
    foreign_checkpoints_in,
    remove,
)

TOKENIZER = (
    *(FULL_TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, SPECIAL_TOKENS_MAP_FILE, ADDED_TOKENS_FILE, CHAT_TEMPLATE_FILE),
    "target",
)
"""What a tokenizer is saved in; `target` where the sides have one each."""

MODEL = (CONFIG_NAME, GENERATION_CONFIG_NAME, "model*.safetensors*", TRAINING_ARGS_NAME)
"""What transformers saves a model in, and the pickle that it would add."""

RECORDS = (
    *("results.json", "data.json", "environment.json", "weights.json", "model_manifest.json", "stopped.json"),
    *(
        "parent.json",
        "check.json",
        "test_outputs.jsonl",
        "history.jsonl",
        "report.html",
        "gradient_flow.jsonl",
        "gradient_flow.png",
    ),
)
"""What a run writes into `run/` beside its recipe and its vocabulary."""

FOLDERS = ("run", "run/tokenizer", "run/tokenizer/target", "target", STAGING, f"{STAGING}/{PREPARED}")
"""Folders that a run writes into and clears; none may be a link, for what it leads to is somebody else's."""

_UNFINISHED = ".*.tmp"  # what `write_text` was killed at


def names_of_ours() -> tuple[str, ...]:
    """Return every name, or its pattern, that a run writes, renames or deletes at the top of its folder."""
    return ("run", *RUN_FOLDERS, *MODEL, *TOKENIZER, CARD, CURVE_NAME, CANARY_NAME, MANIFEST, *bundle_files())


def refuse_foreign(output: Path) -> None:
    """Refuse a folder in which something is in the way that Seqloom did not write.

    Raises:
        RecipeError: naming it; nothing was touched.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise RecipeError(
            f"output={output} is a file or a broken link, and a run needs a folder; name another --output."
        )
    for parent in output.parents:
        if parent.exists() and not parent.is_dir():
            raise RecipeError(f"output={output} lies below {parent}, which is a file; name another --output.")
    is_ours = _is_ours(output)
    links = [name for name in FOLDERS if (output / name).is_symlink()] if is_ours else []
    if links:
        raise RecipeError(
            f"{output / links[0]} is a link, and a run would write and delete where it leads. Nothing was touched. Put "
            "a folder in its place, or take another --output."
        )
    found = [path.name for path in foreign_checkpoints_in(output)] if is_ours else sorted(_in_the_way(output))
    if not found:
        return
    others = f" (and {len(found) - 1} more: {', '.join(found[1:9])})" if found[1:] else ""
    why = "has no manifest of Seqloom" if is_ours else f"was not written by a run of Seqloom: there is no run/{RECIPE}"
    raise RecipeError(
        f"{output / found[0]}{others} is in the way, for a run would write, rename or delete what is called so, and it "
        f"{why}. Nothing was touched. Move it away, or take another --output."
    )


def _is_ours(output: Path) -> bool:
    return any(_begins_as_recipe(home / RECIPE) for home in (output / "run", output / STAGING / PREPARED))


def _begins_as_recipe(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(RECIPE_HEADER)) == RECIPE_HEADER.encode()
    except OSError:
        return False


def _in_the_way(output: Path) -> Iterator[str]:
    """Yield what has a name of ours in a folder that is not; what a run killed at its first file has left is not."""
    names = names_of_ours()
    for path in output.iterdir() if output.is_dir() else ():
        is_begun = path.name in ("run", STAGING) and _is_begun(path)
        if not is_begun and any(fnmatch(path.name.lower(), name.lower()) for name in names):
            yield path.name


def _is_begun(folder: Path) -> bool:
    """Return whether a folder holds nothing but what comes before the recipe."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    left = [path for path in folder.iterdir() if not fnmatch(path.name, _UNFINISHED) and path.name != "stopped.json"]
    return all(path.name == PREPARED and folder.name == STAGING and _is_begun(path) for path in left)


def forget_records(records: Path) -> None:
    """Remove what an earlier run wrote into `run/`, but for its recipe; what else lies there is its owner's."""
    home = records / "tokenizer"
    recorded = filter(_is_below, facts_of(home).get("files", {}))
    for name in {*TOKENIZER, *recorded, MANIFEST} - {"target"}:
        remove(home / name)
    for name in TOKENIZER:
        remove(home / "target" / name)
    for folder in (home / "target", home):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    for path in (*(records / name for name in RECORDS), *records.glob(_UNFINISHED)):
        remove(path)


def _is_below(name: str) -> bool:
    """Return whether a name out of a record is that of something inside its folder, on Windows and elsewhere."""
    pure = PureWindowsPath(name)
    return bool(pure.parts) and not (pure.drive or pure.root or ".." in pure.parts)
