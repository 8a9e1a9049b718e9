"""EfficientPS's fusion: the logits of an object's mask and of its class adapt each other, and the largest wins a pixel.

Mohan, Valada: EfficientPS, IJCV 2021, section 3.5; how masks are brought to the size of the image is seamseg's rule.
The fused maps of the objects are compared one after another with the largest value so far, each in its own part of the
image, so that memory does not grow with their number.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Segment


class Objects(NamedTuple):
    """The N objects of an image that compete for its pixels, in any order."""

    boxes_xyxy: Tensor  # float32 (N, 4), in pixels of the map; the masks are stretched over them
    mask_logits: Tensor  # float (N, M, M)
    scores: Tensor  # float32 (N,)
    categories: Tensor  # int64 (N,): things of the label space


class AdaptiveRule(NamedTuple):
    """The numbers of the fusion; the defaults are those of the released network, except for `bounded`.

    score_threshold: an object takes part if its score is above it. max_overlap: and if no larger share of its mask is
    covered by the masks of better ones. min_stuff_area: stuff of fewer pixels becomes void. mask_factor: mask logits
    are multiplied by it; 1 in the paper.
    bounded: an object can win pixels inside its box alone. Otherwise, as in the released code, its fused logits are 0
    outside, and it also wins pixels there where the logits of all stuff are negative.
    """

    score_threshold: float = 0.5
    max_overlap: float = 0.5
    min_stuff_area: int = 2048
    mask_factor: float = 4.0
    bounded: bool = True


class Part(NamedTuple):
    """A rectangle of pixels, its bottom and right exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)

    @property
    def is_empty(self) -> bool:
        return self.top >= self.bottom or self.left >= self.right

    def within(self, other: Part) -> Part:
        """What both share, empty where they share nothing."""
        top, left = max(self.top, other.top), max(self.left, other.left)
        return Part(top, max(top, min(self.bottom, other.bottom)), left, max(left, min(self.right, other.right)))

    def seen_from(self, other: Part) -> Part:
        """The same pixels, counted from the corner of `other`, which they lie in."""
        return Part(self.top - other.top, self.bottom - other.top, self.left - other.left, self.right - other.left)


def adaptive_fusion(
    semantic_logits: Tensor, semantic: Tensor, objects: Objects, labels: LabelSpace, rule: AdaptiveRule
) -> PanopticSegmentation:
    """The panoptic map of one image.

    semantic_logits float (C, H, W) of all classes of `labels`, semantic int64 (H, W) their largest one at each pixel.
    Where an object wins against all stuff and all other objects, the pixel is its own. Every other pixel gets its
    semantic class if that is stuff of a large enough area, else void; which stuff won the contest does not matter.
    Ids are 1, 2, 3 …: objects by falling score, then stuff in the order of the label space.
    """
    winner, accepted = contest_with_stuff(semantic_logits, objects, [c.id for c in labels.stuff], rule)
    won: list[int] = torch.bincount(winner.flatten(), minlength=len(accepted) + 1)[1:].tolist()
    id_of_winner = torch.zeros(len(accepted) + 1, dtype=torch.int32)
    segments: list[Segment] = []
    for position, (index, pixels) in enumerate(zip(accepted, won, strict=True)):
        if pixels:
            category, score = int(objects.categories[index]), float(objects.scores[index])
            segments.append(Segment(len(segments) + 1, category, score))
            id_of_winner[position + 1] = len(segments)
    ids = id_of_winner.to(winner.device)[winner]  # int32 (H, W)
    left = torch.where(ids == 0, semantic, IGNORE)
    areas: list[int] = torch.bincount((left - IGNORE).flatten(), minlength=len(labels) + 1)[1:].tolist()
    for category in labels.stuff:
        if areas[category.id] >= max(1, rule.min_stuff_area):
            segments.append(Segment(len(segments) + 1, category.id))
            ids.masked_fill_(left == category.id, len(segments))
    return PanopticSegmentation(ids, tuple(segments))


def contest_with_stuff(
    semantic_logits: Tensor, objects: Objects, stuff: Sequence[int], rule: AdaptiveRule
) -> tuple[Tensor, list[int]]:
    """Who has the largest value at each pixel: int32 (H, W), 0 for stuff, k + 1 for the k-th object that takes part.

    → (that map, the indices of the objects that take part, by falling score). semantic_logits float (C, H, W); stuff:
    the classes that compete with the objects, by their semantic logits. Without any, objects compete with the value 0.
    Of equal values the first wins: stuff, then the objects by falling score.
    """
    height, width = semantic_logits.shape[1:]
    whole = Part(0, height, 0, width)
    best = _largest(semantic_logits, stuff)  # (H, W)
    winner = torch.zeros((height, width), dtype=torch.int32, device=best.device)
    covered = torch.zeros((height, width), dtype=torch.bool, device=best.device)
    open_part = whole  # where no object that took part so far had a value of 0 for being elsewhere
    half_a_cell = 0.5 / objects.mask_logits.shape[-1]  # a mask that is read bilinearly reaches so far beyond its box
    accepted: list[int] = []
    boxes: list[list[float]] = objects.boxes_xyxy.tolist()
    order = torch.argsort(objects.scores, descending=True, stable=True)
    order = order[objects.scores[order] > rule.score_threshold]
    for index in order.tolist():
        part = part_of_box(boxes[index], whole, 0.0 if rule.bounded else half_a_cell)
        mask_logits = stretched(objects.mask_logits[index], boxes[index], part)  # (h, w)
        mask, beneath = mask_logits > 0, covered[part.slices]
        area, hidden = int(mask.sum()), int((mask & beneath).sum())
        if area == 0 or hidden / area > rule.max_overlap:
            continue
        beneath |= mask
        accepted.append(index)
        of_class = _inside_box(semantic_logits[int(objects.categories[index])], boxes[index], part)
        fused = fused_logits(rule.mask_factor * mask_logits, of_class)
        _win(best[part.slices], winner[part.slices], fused, len(accepted))
        if not rule.bounded:
            _win_elsewhere(best, winner, open_part, part, len(accepted))
            open_part = open_part.within(part)
    return winner, accepted


def fused_logits(mask_logits: Tensor, semantic_logits: Tensor) -> Tensor:
    """(σ(A) + σ(B)) · (A + B) of each pixel: large where both agree on the object, small where they disagree."""
    return (mask_logits.sigmoid() + semantic_logits.sigmoid()) * (mask_logits + semantic_logits)


def part_of_box(box_xyxy: Sequence[float], whole: Part, margin: float = 0.0) -> Part:
    """The pixels whose centres lie in a box that is grown by `margin` times its sides; whole: the image."""
    x1, y1, x2, y2 = box_xyxy
    across, down = margin * (x2 - x1), margin * (y2 - y1)
    rows = math.ceil(y1 - down - 0.5), math.ceil(y2 + down - 0.5)
    columns = math.ceil(x1 - across - 0.5), math.ceil(x2 + across - 0.5)
    return Part(*rows, *columns).within(whole)


def stretched(mask_logits: Tensor, box_xyxy: Sequence[float], part: Part) -> Tensor:
    """A mask stretched over its box, read bilinearly between the centres of its cells, 0 outside of them.

    mask_logits float (M, M) → float32 (h, w) of the pixels of `part`. Equal to grid_sample, corners not aligned.
    """
    x1, y1, x2, y2 = box_xyxy
    cells = torch.arange(mask_logits.shape[0], device=mask_logits.device)
    weights: list[Tensor] = []
    for first, stop, low, high in ((part.top, part.bottom, y1, y2), (part.left, part.right, x1, x2)):
        centres = torch.arange(first, stop, device=cells.device) + 0.5
        place = (centres - low) * (len(cells) / max(high - low, 1e-12)) - 0.5  # in cells
        weights.append((1 - (place[:, None] - cells).abs()).clamp(min=0))  # (h or w, M)
    with torch.autocast(mask_logits.device.type, enabled=False):
        return weights[0] @ mask_logits.float() @ weights[1].T


def _inside_box(semantic_logits: Tensor, box_xyxy: Sequence[float], part: Part) -> Tensor:
    """The semantic logits (H, W) of a class in the pixels of `part`, 0 outside of the box, which is cut as released.

    Rows ⌊y1 + 1⌋ … round(y2 − 1), both included, and columns alike.
    """
    x1, y1, x2, y2 = box_xyxy
    box = Part(int(y1 + 1), round(y2 - 1) + 1, int(x1 + 1), round(x2 - 1) + 1).within(part)
    result = semantic_logits.new_zeros((part.bottom - part.top, part.right - part.left), dtype=torch.float32)
    result[box.seen_from(part).slices] = semantic_logits[box.slices].float()
    return result


def _largest(semantic_logits: Tensor, classes: Sequence[int]) -> Tensor:
    """The largest logit of these classes at each pixel: (C, H, W) → float32 (H, W), zeros where there are none."""
    if not classes:
        return semantic_logits.new_zeros(semantic_logits.shape[1:], dtype=torch.float32)
    best = semantic_logits[classes[0]].float().clone()
    for index in classes[1:]:
        torch.maximum(best, semantic_logits[index], out=best)
    return best


def _win(best: Tensor, winner: Tensor, values: Tensor, number: int) -> None:
    """Give the pixels where `values` exceed `best` to `number`, in place; all of one shape."""
    larger = values > best
    winner.masked_fill_(larger, number)
    best.copy_(torch.where(larger, values, best))


def _win_elsewhere(best: Tensor, winner: Tensor, open_part: Part, own: Part, number: int) -> None:
    """Let an object compete with the value 0 outside its own part, in place.

    Only in `open_part` can 0 still win: everywhere else an object before had it already.
    """
    if open_part.is_empty:
        return
    larger = best[open_part.slices] < 0
    larger[own.within(open_part).seen_from(open_part).slices] = False
    winner[open_part.slices].masked_fill_(larger, number)
    best[open_part.slices].masked_fill_(larger, 0)
