"""The systems, one file each, and the table of their builders."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pansight.errors import PansightError, choice_error
from pansight.models.detr import (
    detr,
    detr_panoptic,
    detr_panoptic_r50,
    detr_panoptic_r50_dc5,
    detr_panoptic_r101,
    detr_r50,
    detr_r50_dc5,
    detr_r101,
)
from pansight.models.eomt import (
    eomt,
    eomt_base_640,
    eomt_dinov3_base_640,
    eomt_dinov3_large_640,
    eomt_dinov3_large_1280,
    eomt_dinov3_small_640,
    eomt_giant_640,
    eomt_giant_1280,
    eomt_large_640,
    eomt_large_1280,
    eomt_small_640,
)
from pansight.models.faster_rcnn import (
    faster_rcnn,
    faster_rcnn_r50_d2,
    faster_rcnn_r50_tv,
    faster_rcnn_r50_tv_v2,
    faster_rcnn_r101_d2,
)
from pansight.models.mask2former import (
    mask2former,
    mask2former_r50,
    mask2former_r101,
    mask2former_swin_base,
    mask2former_swin_large,
    mask2former_swin_small,
    mask2former_swin_tiny,
)
from pansight.models.mask_rcnn import (
    mask_rcnn,
    mask_rcnn_r50_d2,
    mask_rcnn_r50_tv,
    mask_rcnn_r50_tv_v2,
    mask_rcnn_r101_d2,
)
from pansight.models.maskformer import (
    maskformer,
    maskformer_r50,
    maskformer_r101,
    maskformer_swin_base,
    maskformer_swin_large,
    maskformer_swin_small,
    maskformer_swin_tiny,
)
from pansight.models.panoptic_fpn import panoptic_fpn, panoptic_fpn_r50_d2, panoptic_fpn_r101_d2
from pansight.types import LabelSpace

MODELS: dict[str, Callable[..., Any]] = {
    "faster_rcnn": faster_rcnn,
    "faster_rcnn_r50_tv": faster_rcnn_r50_tv,
    "faster_rcnn_r50_tv_v2": faster_rcnn_r50_tv_v2,
    "faster_rcnn_r50_d2": faster_rcnn_r50_d2,
    "faster_rcnn_r101_d2": faster_rcnn_r101_d2,
    "mask_rcnn": mask_rcnn,
    "mask_rcnn_r50_tv": mask_rcnn_r50_tv,
    "mask_rcnn_r50_tv_v2": mask_rcnn_r50_tv_v2,
    "mask_rcnn_r50_d2": mask_rcnn_r50_d2,
    "mask_rcnn_r101_d2": mask_rcnn_r101_d2,
    "panoptic_fpn": panoptic_fpn,
    "panoptic_fpn_r50_d2": panoptic_fpn_r50_d2,
    "panoptic_fpn_r101_d2": panoptic_fpn_r101_d2,
    "detr": detr,
    "detr_r50": detr_r50,
    "detr_r50_dc5": detr_r50_dc5,
    "detr_r101": detr_r101,
    "detr_panoptic": detr_panoptic,
    "detr_panoptic_r50": detr_panoptic_r50,
    "detr_panoptic_r50_dc5": detr_panoptic_r50_dc5,
    "detr_panoptic_r101": detr_panoptic_r101,
    "maskformer": maskformer,
    "maskformer_r50": maskformer_r50,
    "maskformer_r101": maskformer_r101,
    "maskformer_swin_tiny": maskformer_swin_tiny,
    "maskformer_swin_small": maskformer_swin_small,
    "maskformer_swin_base": maskformer_swin_base,
    "maskformer_swin_large": maskformer_swin_large,
    "mask2former": mask2former,
    "mask2former_r50": mask2former_r50,
    "mask2former_r101": mask2former_r101,
    "mask2former_swin_tiny": mask2former_swin_tiny,
    "mask2former_swin_small": mask2former_swin_small,
    "mask2former_swin_base": mask2former_swin_base,
    "mask2former_swin_large": mask2former_swin_large,
    "eomt": eomt,
    "eomt_small_640": eomt_small_640,
    "eomt_base_640": eomt_base_640,
    "eomt_large_640": eomt_large_640,
    "eomt_large_1280": eomt_large_1280,
    "eomt_giant_640": eomt_giant_640,
    "eomt_giant_1280": eomt_giant_1280,
    "eomt_dinov3_small_640": eomt_dinov3_small_640,
    "eomt_dinov3_base_640": eomt_dinov3_base_640,
    "eomt_dinov3_large_640": eomt_dinov3_large_640,
    "eomt_dinov3_large_1280": eomt_dinov3_large_1280,
}
"""name → builder(labels, **options) → a model with forward, loss, decode, labels and resize (docs/architecture.md)."""

NEED_THINGS = ("faster_rcnn", "mask_rcnn", "panoptic_fpn")
"""Systems around a detector, which has nothing to learn from stuff alone; by the start of their names."""


def build(name: str, labels: LabelSpace, **options: Any) -> Any:
    """The model `name` for `labels`. Raises PansightError for an unknown name or option, listing what exists."""
    if name not in MODELS:
        raise choice_error("model", name, MODELS)
    known = builder_options(name)
    for option in options:
        if option not in known:
            raise choice_error(f"option of model {name}:", option, known)
    if not labels.things and name.startswith(NEED_THINGS):
        raise PansightError(f"model {name}: expected at least one thing among the classes, found stuff only")
    return MODELS[name](labels, **options)


def builder_options(name: str) -> dict[str, Any]:
    """Option → default value of a builder."""
    parameters = list(inspect.signature(MODELS[name]).parameters.values())[1:]  # labels come first
    return {p.name: p.default for p in parameters}
