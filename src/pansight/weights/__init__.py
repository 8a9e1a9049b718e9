"""Loading checkpoints into our models; one file for each origin, that is, for each layout of tensor names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from pansight.errors import PansightError, shown
from pansight.weights import licences
from pansight.weights.keys import BESIDE, MISFITS
from pansight.weights.native import CONFIG, HUB_ID, TENSORS, download, find_folder, load_folder, save_model
from pansight.weights.official import detectron2, detr, eomt, mask2former, maskformer, torchvision
from pansight.weights.official.panoptic import (
    efficientps,
    panoptic_deeplab,
    panoptic_deeplab_authors,
    panoptic_fcn,
    upsnet,
)
from pansight.weights.official.semantic import (
    caffe,
    deeplab_detectron2,
    deeplab_torchvision,
    fcn_torchvision,
    pspnet,
    smp,
    smp_unet,
)
from pansight.weights.transfer import TransferReport, transfer
from pansight.weights.unpickle import read_tensors

__all__ = ["ORIGINS", "TransferReport", "load_model", "read_tensors", "save_model", "transfer"]

HUB_MARK = "hf:"
"""May stand before a hub id (``hf:owner/name``, ``hf://owner/name``)."""

ORIGINS = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "detr": detr,
    "maskformer": maskformer,
    "mask2former": mask2former,
    "eomt": eomt,
    "UPSNet": upsnet,
    "torchvision's FCN": fcn_torchvision,
    "torchvision's DeepLab": deeplab_torchvision,
    "detectron2's DeepLab": deeplab_detectron2,
    "semseg": pspnet,
    "segmentation_models_pytorch": smp,
    "Caffe's FCN or SegNet": caffe,
    "segmentation_models_pytorch's Unet": smp_unet,
    "EfficientPS": efficientps,
    "Panoptic FCN": panoptic_fcn,
    "detectron2's Panoptic-DeepLab": panoptic_deeplab,
    "Panoptic-DeepLab": panoptic_deeplab_authors,
}
"""Each has ``recognises(state) -> bool`` and ``load(state, source) -> (model, name, options)``."""


def load_model(path: str | Path) -> tuple[Any, str, dict[str, Any]]:
    """A run folder (its best checkpoint, else its last), a saved folder of ours or of transformers, a hub id or an
    official checkpoint file.

    → (model in eval mode on the CPU, its name in MODELS, the options it was built with). The licence of known weights
    is logged, by the logger "pansight". Raises PansightError, one line with the file, what was expected and what was
    found.
    """
    if f"{path}".startswith(HUB_MARK) and not Path(path).exists():
        path = f"{path}".removeprefix(HUB_MARK).lstrip("/")
    folder = find_folder(path)
    is_hub_id = folder is None and not Path(path).exists() and HUB_ID.fullmatch(str(path)) is not None
    if is_hub_id:
        folder = download(str(path))
    if folder is not None and smp.is_folder(folder):
        path, folder = folder / TENSORS, None
    if folder is not None:
        loaded = load_folder(folder, str(path))
        licences.show_folder(folder, str(path), is_hub_id)
        return loaded
    state = read_tensors(path)
    if (found := _recognised(state, str(path))) is not None:
        return _load_official(*found, str(path))
    some = ", ".join(shown(name, 80) for name in list(state)[:3])
    parent = Path(path).parent
    hint = f"{CONFIG} lies beside it: load the folder {parent}" if (parent / CONFIG).is_file() else ""
    expected = f"a checkpoint of {' or '.join(ORIGINS)}"
    raise PansightError(where=path, expected=expected, found=f"tensors {some} …", hint=hint)


def _recognised(state: dict[str, Tensor], source: str) -> tuple[str, dict[str, Tensor]] | None:
    """(the key of ORIGINS, the tensors under the names that it knows), or None.

    Names may all begin with the attribute of a class around the network, whatever its author called it.
    """
    left_out = ""
    for _ in range(3):
        layout = next((layout for layout, origin in ORIGINS.items() if origin.recognises(state)), None)
        if layout is not None:
            if left_out:
                licences.show(f"weights    {source}: took the tensors, without their prefix {left_out}")
            return layout, state
        network = {name: tensor for name, tensor in state.items() if not BESIDE.fullmatch(name)}
        first = {name.partition(".")[0] for name in network}
        if len(first) != 1 or not all("." in name for name in network):
            return None
        left_out += f"{first.pop()}."
        state = {name.partition(".")[2]: tensor for name, tensor in network.items()}
    return None


def _load_official(layout: str, state: dict[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    try:
        loaded = ORIGINS[layout].load(state, source)
    except MISFITS as error:
        found = f"{type(error).__name__}: {' '.join(f'{error}'.split())}"
        raise PansightError(where=source, expected=f"a whole checkpoint ({layout})", found=found) from error
    licences.show_file(source, layout, loaded[1])
    return loaded
