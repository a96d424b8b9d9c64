"""An export that makes itself: beside the folder, on first use, and anew when the folder has changed.

FOLDER
FOLDER.ctranslate2-int8       where FOLDER's parent can be written
$HF_HOME/seqloom/...          elsewhere
"""

import os
import sys
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME

from seqloom.hub.export.ctranslate2_export import export_ctranslate2
from seqloom.hub.export.output_folder import EXPORT_NAME, ExportError, refuse_foreign
from seqloom.hub.files import read_object, sha256_of

SOURCES = ("config.json", "generation_config.json", "tokenizer.json", "target/tokenizer.json")
"""Files, beside the weights, that an export is made of."""


def engine_folder(folder: str | PathLike[str], quantization: str = "float32") -> Path:
    """Return the export of a folder; it is made, and compared with torch, if there is none of this folder as it is.

    Raises:
        ExportError: if it cannot be made, or if something else lies in its place.
        ImportError: if CTranslate2 is not installed.
    """
    folder = Path(folder).resolve()
    made_of = digests_of(folder)
    places = _places(folder, quantization, made_of)
    for place in places:
        if (read_object(place / EXPORT_NAME) or {}).get("made_of") == made_of and _is_whole(place):
            return place
    place = next(place for place in places if _is_writable(place.parent))
    print(f"Making {place}, once, and comparing it with torch ...", file=sys.stderr)
    export_ctranslate2(folder, place, quantization=quantization, made_of=made_of)
    return place


def digests_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that decides on answers."""
    weights = sorted(path.name for path in folder.glob("model*.safetensors"))
    return {name: sha256_of(folder / name) for name in (*SOURCES, *weights) if (folder / name).is_file()}


def _places(folder: Path, quantization: str, made_of: dict[str, str]) -> list[Path]:
    name = f"{folder.name}.ctranslate2-{quantization}"
    of_weights = next((digest[:16] for file, digest in made_of.items() if file.endswith(".safetensors")), "none")
    return [folder.with_name(name), Path(HF_HOME) / "seqloom" / of_weights / name]


def _is_whole(place: Path) -> bool:
    try:
        refuse_foreign(place)
    except ExportError:
        return False
    return True


def _is_writable(place: Path) -> bool:
    """Whether files can be made in a folder, or in the one that would hold it."""
    existing: Any = next(parent for parent in (place, *place.parents) if parent.exists())
    return os.access(existing, os.W_OK | os.X_OK)


__all__ = ["digests_of", "engine_folder"]
