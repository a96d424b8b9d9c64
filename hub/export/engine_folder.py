"""The export of a folder that a command makes for itself, once, in the cache.

It is made again when the folder's files, the engine or Seqloom are no longer those it was made of. One that lies
beside the folder is nobody's proof: whoever wrote the folder may have written it, with other weights.
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
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    place = Path(constants.HF_HOME) / "seqloom" / f"{folder.name}-ctranslate2-{quantization}-{digest}"
    manifest = read_object(place / EXPORT_NAME) or {}
    versions = {f"{name}_version": version(name) for name in ("seqloom", "ctranslate2")}
    if manifest.items() >= {"made_from": made_from, **versions}.items():
        refuse_foreign(place)  # every file is as it was written
        return place
    logger.warning("Exporting %s to %s, once; a minute or so.", folder.name, place)
    try:
        export_ctranslate2(folder, place, quantization=quantization)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ExportError(f"{place.parent} cannot be written; name another cache with HF_HOME.") from error
    return place


__all__ = ["engine_folder"]
