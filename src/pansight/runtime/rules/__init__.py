"""From the outputs of a graph to a prediction, by the rule of each system: what `decode` does in pansight."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..values import IGNORE, Instances, Outputs, Prediction, Rule
from .adaptive import efficientps
from .centres import panoptic_deeplab
from .instances import boxes_and_masks, fcis, mask_rcnn, merged, panoptic_fpn
from .kernels import panoptic_fcn
from .queries import detr, masks_of_queries
from .semantic import semantic
from .winners import upsnet

Decode = Callable[[Outputs, tuple[int, int], Rule, str | None], Prediction]
"""(outputs of one photo, its size (H, W), the rule's numbers and classes, a task or None) → the prediction."""


def combined(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Two networks: the objects of the one over the stuff of the other, each in its own classes before that."""
    parts: list[Prediction] = []
    for network, its_task in (("instances", "instance"), ("semantic", "semantic")):
        inner, start = rule.networks[network], f"{network}."
        of_network = {name.removeprefix(start): each for name, each in outputs.items() if name.startswith(start)}
        parts.append(RULES[inner.name](of_network, size, inner, its_task))
    found, semantic_map = parts[0].instances, parts[1].semantic
    assert found is not None  # the builder of the model has looked at what its networks give
    assert semantic_map is not None
    of_things, of_stuff = (rule.number(f"{network}_classes") for network in ("instances", "semantic"))
    if of_things:
        found = Instances(found.boxes_xyxy, np.array(of_things, np.int64)[found.labels], found.scores, found.masks)
    if of_stuff:  # IGNORE looks up the last
        semantic_map = np.array([*of_stuff, IGNORE], np.int64)[semantic_map]
    return Prediction(merged(found, semantic_map, rule), semantic_map, found)


RULES: dict[str, Decode] = {
    "fast_rcnn": boxes_and_masks,
    "faster_rcnn": boxes_and_masks,
    "mask_rcnn": mask_rcnn,
    "fcis": fcis,
    "panoptic_fpn": panoptic_fpn,
    "panoptic_fcn": panoptic_fcn,
    "panoptic_deeplab": panoptic_deeplab,
    "upsnet": upsnet,
    "efficientps": efficientps,
    "detr": detr,
    "detr_panoptic": detr,
    "maskformer": masks_of_queries,
    "mask2former": masks_of_queries,
    "eomt": masks_of_queries,
    "fcn": semantic,
    "fcn_vgg16": semantic,
    "segnet": semantic,
    "unet": semantic,
    "unet_original": semantic,
    "pspnet": semantic,
    "deeplabv3": semantic,
    "deeplabv3plus": semantic,
    "semantic_fpn": semantic,
    "combined": combined,
}
"""The name of a system → its rule."""
