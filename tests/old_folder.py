"""Folders as earlier commits wrote them; see fixtures/make_old_folder.py.

8d00292 wrote no canary, and its code knows no transformers after 5.23.
"""

from pathlib import Path
from typing import Any
from zipfile import ZipFile

from safetensors.torch import save_file

from seqloom.modeling.canary import write_canary

FIXTURES = Path(__file__).parent / "fixtures"


def unpack_old_folder(folder: Path, model: Any, commit: str = "8d00292") -> Path:
    """Write such a folder with the weights of a model; tied ones once, as in every folder."""
    with ZipFile(FIXTURES / f"folder_{commit}.zip") as packed:
        packed.extractall(folder)
    tied = model.all_tied_weights_keys
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if (folder / "canary.py").is_file():
        write_canary(model, folder)
    return folder
