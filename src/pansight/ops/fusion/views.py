"""Several views of the same photos, resized and mirrored, made one: maps are averaged, detections pooled.

As in the testing of Mask R-CNN at several scales, the boxes of all views compete with each other in non-maximum
suppression. A box that is left keeps the mask that its own view gave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fusion.instances import Detections


class Frame(NamedTuple):
    """Where a batch of photos lies in one view of it, in pixels of the network.

    extents: int64 (B, 2), (height, width) of each photo without its padding. canvas: (height, width) with it, which a
    map of that view covers. mirrored: whether left and right of the photo are exchanged, before it is padded.
    """

    extents: Tensor
    canvas: tuple[int, int]
    mirrored: bool = False


def mean_map(maps: Sequence[Tensor], frames: Sequence[Frame], align_corners: bool = False) -> Tensor:
    """The mean of the maps (B, C, h, w) of all views, as if they were of the first, which must not be mirrored.

    align_corners: the outermost places of a map lie on the centres of the outermost pixels of its canvas; otherwise
    its places share the canvas equally.
    """
    whole = maps[0].float()
    for view, frame in zip(maps[1:], frames[1:], strict=True):
        whole = whole + _read(view.float(), frame, frames[0], maps[0].shape[2:], align_corners)
    return whole / len(maps)


def _read(maps: Tensor, frame: Frame, first: Frame, shape: Sequence[int], align_corners: bool) -> Tensor:
    """Maps (B, C, h, w) of one view, read at the places that a map of `shape` of the first view has."""
    axes: list[Tensor] = []
    for axis, count in enumerate(shape):
        place = torch.arange(count, device=maps.device, dtype=torch.float32)
        spans = first.canvas[axis], frame.canvas[axis]
        # measured from the edge of the canvas, so that half a pixel lies before the centre of the first one
        at = place * (spans[0] - 1) / max(1, count - 1) + 0.5 if align_corners else (place + 0.5) * spans[0] / count
        share = at[None] / first.extents[:, axis, None]  # (B, count) of the photo
        if frame.mirrored and axis == 1:
            share = 1 - share
        at = share * frame.extents[:, axis, None]
        axes.append((at - 0.5) * 2 / max(1, spans[1] - 1) - 1 if align_corners else at * 2 / spans[1] - 1)
    down, across = axes
    shape = (len(maps), down.shape[1], across.shape[1])
    grid = torch.stack((across[:, None, :].expand(shape), down[:, :, None].expand(shape)), dim=-1)  # (B, h, w, 2), x, y
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=align_corners)


def pooled(found: Sequence[Detections], frames: Sequence[Frame]) -> Detections:
    """The detections of all views, none suppressed, with boxes and masks as the first view would have them.

    They stand in the order of the views; `image_index` tells the photo as before.
    """
    columns: list[Detections] = []
    for each, frame in zip(found, frames, strict=True):
        boxes, masks = each.boxes_xyxy, each.mask_logits
        width = frame.extents[each.image_index, 1].to(boxes.dtype)
        if frame.mirrored:
            boxes = torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)
            masks = masks.flip(2)
        factors = (frames[0].extents / frame.extents).flip(1)[each.image_index]  # (D, 2), x first
        columns.append(each._replace(boxes_xyxy=boxes * factors.repeat(1, 2), mask_logits=masks))
    return Detections(*(torch.cat(column) for column in zip(*columns, strict=True)))


def frames_of(
    extents: Sequence[Tensor], mirrored: Sequence[bool], maps: Sequence[Tensor] = (), stride: int = 1
) -> list[Frame]:
    """The frame of each view. maps (B, C, h, w): of each view, `stride` pixels to a place; (): none is read."""
    shapes: list[tuple[int, int]] = [(stride * each.shape[2], stride * each.shape[3]) for each in maps]
    return [Frame(*each) for each in zip(extents, shapes or [(0, 0)] * len(extents), mirrored, strict=True)]
