"""The export of a folder that a command makes for itself, once: beside the folder, or in the cache where it may not.

It is made again when the folder's files or the engine are no longer those it was made of.
"""

import errno
import hashlib
import logging
from importlib.metadata import version
from os import PathLike
from pathlib import Path

from huggingface_hub import constants

from seqloom.hub.export.ctranslate2_export import export_ctranslate2, refuse_missing_engine
from seqloom.hub.export.output_folder import EXPORT_NAME, ExportError, refuse_foreign
from seqloom.hub.files import files_made_from, read_object

logger = logging.getLogger(__name__)


def engine_folder(folder: str | PathLike[str], quantization: str = "float32") -> Path:
    """Return an export of a folder for CTranslate2 that is whole, and of the folder as it is; make it if there is none.

    Args:
        folder: a trained model.
        quantization: number format of the weights, one of `QUANTIZATIONS`.

    Raises:
        ExportError: if it cannot be made, or something else lies in its place.
        ConversionError: for a network that the engine cannot compute.
        ImportError: if CTranslate2 is not installed.
    """
    refuse_missing_engine()
    folder = Path(folder).resolve()
    made_from = files_made_from(folder)
    for place in places_for(folder, quantization):
        manifest = read_object(place / EXPORT_NAME) or {}
        if manifest.get("made_from") == made_from and manifest["ctranslate2_version"] == version("ctranslate2"):
            refuse_foreign(place)  # every file is as it was written
            return place
    for place in places_for(folder, quantization):
        try:
            logger.warning("Exporting %s to %s, once; a minute or so.", folder.name, place)
            export_ctranslate2(folder, place, quantization=quantization)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        else:
            return place
    raise ExportError(
        f"neither {place.parent} nor the folder of {folder.name} can be written; name another cache with HF_HOME."
    )


def places_for(folder: Path, quantization: str) -> list[Path]:
    """Return where an export may lie, the first choice first."""
    name = f"{folder.name}-ctranslate2-{quantization}"
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return [folder.with_name(name), Path(constants.HF_HOME) / "seqloom" / f"{name}-{digest}"]


__all__ = ["engine_folder"]
