"""Loading checkpoints into our models; one file for each origin, that is, for each layout of tensor names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.errors import PansightError
from pansight.weights import licences
from pansight.weights.keys import MISFITS
from pansight.weights.native import CONFIG, HUB_ID, download, find_folder, load_folder, save_model
from pansight.weights.official import detectron2, detr, eomt, mask2former, maskformer, torchvision
from pansight.weights.transfer import TransferReport, transfer
from pansight.weights.unpickle import read_tensors

__all__ = ["ORIGINS", "TransferReport", "load_model", "read_tensors", "save_model", "transfer"]

ORIGINS = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "detr": detr,
    "maskformer": maskformer,
    "mask2former": mask2former,
    "eomt": eomt,
}
"""Each has ``recognises(state) -> bool`` and ``load(state, source) -> (model, name, options)``."""


def load_model(path: str | Path) -> tuple[Any, str, dict[str, Any]]:
    """A run folder (its best checkpoint, else its last), a saved folder of ours or of transformers, a hub id or an
    official checkpoint file.

    → (model in eval mode on the CPU, its name in MODELS, the options it was built with). The licence of known weights
    is logged, by the logger "pansight". Raises PansightError, one line with the file, what was expected and what was
    found.
    """
    folder = find_folder(path)
    is_hub_id = folder is None and not Path(path).exists() and HUB_ID.fullmatch(str(path)) is not None
    if is_hub_id:
        folder = download(str(path))
    if folder is not None:
        loaded = load_folder(folder, str(path))
        licences.show_folder(folder, str(path), is_hub_id)
        return loaded
    state = read_tensors(path)
    for layout, origin in ORIGINS.items():
        if origin.recognises(state):
            try:
                loaded = origin.load(state, str(path))
            except MISFITS as error:
                found = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise PansightError(
                    where=path, expected=f"a whole checkpoint ({layout})", found=f"{found:.200}"
                ) from error
            licences.show_file(str(path), layout, loaded[1])
            return loaded
    some = ", ".join(list(state)[:3])
    parent = Path(path).parent
    hint = f"; {CONFIG} lies beside it: load the folder {parent}" if (parent / CONFIG).is_file() else ""
    raise PansightError(where=path, expected=f"a checkpoint of {' or '.join(ORIGINS)}", found=f"tensors {some} …{hint}")
