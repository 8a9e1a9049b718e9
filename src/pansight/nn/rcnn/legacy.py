"""The two-stage detector by the older convention, that of the first Detectron and of mmdet 1, which UPSNet and
EfficientPS were trained with.

There a box from x1 to x2 contains both of these pixels, so that its width is x2 − x1 + 1. A box of this package ends at
the edge behind its last pixel, x2 + 1, and its width is the plain difference. Told so, the overlap and the area of two
boxes, their code, suppression, and clipping to an image are the same numbers in both conventions. What remains to be
set, by arguments of `RPN`, `RoIPooler` and `RCNN`, is:

- anchors lie around the centre of a cell (not its corner), and are rounded, in the one way or the other (`CELLS`);
- Detectron reads the features of a box up to its last pixel, which is one pixel less (`end_shift` −1); mmdet does not;
- the level of a region has its 1e-6 inside the logarithm;
- the background is class 0, and has rows of its own in all predictors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pansight.nn.rcnn.roi_heads import BoxPredictor, MaskHead, RoIPooler, TwoLinear
from pansight.nn.rcnn.rpn import RPN
from pansight.nn.rcnn.two_stage import RCNN


def detectron1_cells(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Anchors around the centre of the first cell: float32 (A, 4). ratio = height / width.

    The sides are rounded first, for a box as large as the cell, and `scale` makes them larger then: at stride 4 and
    ratio 0.5 they are 6 and 3 pixels, times 8.
    """
    width = (stride * stride / torch.tensor(ratios, dtype=torch.float64)).sqrt().round()
    height = (width * torch.tensor(ratios, dtype=torch.float64)).round()
    half = 0.5 * scale * torch.stack((width, height), dim=1)  # (A, 2)
    return (0.5 * stride + torch.cat((-half, half), dim=1)).float()


def mmdet1_cells(stride: int, scale: float, ratios: Sequence[float]) -> Tensor:
    """Arguments and result as `detectron1_cells`. The sides are exact, and the first and last pixels are rounded."""
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    side = scale * stride * torch.stack((1 / root, root), dim=1)  # (A, 2) width, height
    center = 0.5 * (stride - 1)
    half = 0.5 * (side - 1)
    return torch.cat(((center - half).round(), (center + half).round() + 1), dim=1).float()


CELLS: dict[str, Callable[[int, float, Sequence[float]], Tensor]] = {
    "detectron1": detectron1_cells,
    "mmdet1": mmdet1_cells,
}
"""name → (stride, scale, ratios) → anchors of one level: whose arithmetic gives them."""


def legacy_rcnn(
    things: int,
    in_channels: int = 256,
    strides: Sequence[int] = (4, 8, 16, 32, 64),
    roi_strides: Sequence[int] = (4, 8, 16, 32),
    anchor_scale: float = 8.0,
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    anchor_rule: str = "detectron1",
    anchor_sizes: Sequence[float] = (),
    roi_op: str = "align",
    end_shift: float = -1.0,
    level_eps: float = 1e-6,
    canonical_size: float = 224.0,
    box_features: int = 1024,
    mask_convs: int = 4,
    mask_channels: int = 256,
    mask_head: nn.Module | None = None,
    pre_nms: tuple[int, int] = (2000, 1000),
    post_nms: tuple[int, int] = (2000, 1000),
    rpn_loss_per_budget: bool = True,
    low_quality_iou: float = 0.0,
    limits_shrinking: bool = False,
    roi_samples: int = 512,
    rpn_beta: float = 1 / 9,
    box_beta: float = 1.0,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections: int = 100,
) -> RCNN:
    """The heads of a detector by the older convention, for `things` classes; the defaults are UPSNet's.

    strides: of all maps, which the RPN looks at; roi_strides: of the first ones, which regions are read from.
    anchor_scale: sides of the anchors in strides; anchor_sizes: their sides in pixels instead, one for each level.
    anchor_rule: a key of CELLS. end_shift, level_eps (inside the logarithm), canonical_size: of `RoIPooler`.
    mask_head: instead of the plain one that mask_convs and mask_channels give; it has 1 + things classes.
    The rest: see `RPN` and `RCNN`. EfficientPS has strides up to 32, anchor_rule "mmdet1", end_shift 0, level_eps
    2.5e-7 (1e-6 in units of 56 pixels), rpn_loss_per_budget False, low_quality_iou 0.3, limits_shrinking, 256 samples.
    """
    sizes = anchor_sizes or [anchor_scale * stride for stride in strides]
    rule = CELLS[anchor_rule]
    cells = [rule(stride, size / stride, anchor_ratios) for stride, size in zip(strides, sizes, strict=True)]
    rpn = RPN(
        in_channels,
        ratios=anchor_ratios,
        strides=strides,
        pre_nms=pre_nms,
        post_nms=post_nms,
        beta=rpn_beta,
        loss_per_budget=rpn_loss_per_budget,
        cells=torch.stack(cells),
        low_quality_iou=low_quality_iou,
        limits_shrinking=limits_shrinking,
    )
    pool = RoIPooler(7, roi_op, 2, False, 0.0, level_eps, canonical_size, end_shift)
    masks = MaskHead(in_channels, 1 + things, mask_convs, mask_channels) if mask_head is None else mask_head
    return RCNN(
        rpn,
        pool,
        TwoLinear(in_channels, 7, box_features),
        BoxPredictor(box_features, 1 + things, 1 + things),
        pool._replace(size=14),
        masks,
        strides=roi_strides,
        background_first=True,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections=detections,
        samples=roi_samples,
        box_beta=box_beta,
    )
