"""A folder of commit 8d00292, whose code knows no transformers after 5.23; see tests/fixtures/make_old_folder.py."""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

from safetensors.torch import save_file

ARCHIVE = Path(__file__).parent / "fixtures" / "folder_8d00292.zip"


def unpack_old_folder(folder: Path, model: Any) -> Path:
    """Write such a folder with the weights of a model; tied ones once, as in every folder."""
    with ZipFile(ARCHIVE) as packed:
        packed.extractall(folder)
    tied = model.all_tied_weights_keys
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
