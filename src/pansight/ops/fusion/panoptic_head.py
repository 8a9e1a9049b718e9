"""The panoptic head of UPSNet: one map of scores for each stuff class and each object, and one for "unknown".

Xiong et al., UPSNet: A Unified Panoptic Segmentation Network, CVPR 2019, 3.3 (the head and its unknown class), 3.4 (how
masks are pruned, and how segments are looked at once more by the semantic branch).

Classes are numbered stuff first: 0 … S − 1 are stuff, S … C − 1 things. The scores of an image with N objects are
numbered alike: stuff, S + i for object i, and S + N for unknown, whose pixels become void. The head has no parameters.

Two twins compute it: `panoptic_logits` makes a map for every object, as training needs it, where maps have a quarter of
the image's size; `panoptic_winners` finds the winner of each pixel at the image's own size with a running maximum, and
never holds the map of an object outside its box.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.ops.fusion.contest import Canvas, resized
from pansight.ops.fusion.instances import accept_instances
from pansight.ops.targets import InstanceTargets, lookup, semantic_map
from pansight.types import IGNORE, LabelSpace, PanopticSegmentation, Segment

CHANNELS_AT_A_TIME = 8
"""So many classes are resized to the size of the image together, which bounds the memory."""


class Objects(NamedTuple):
    """N objects of one image, by falling score.

    crops int64 (N, 4): the pixels x1 … x2 − 1, y1 … y2 − 1 of a map (`crops_of`); things int64 (N,): index among
    ``labels.things``; mask_logits float32 (N, M, M), of the crop.
    """

    crops: Tensor
    things: Tensor
    mask_logits: Tensor

    def some(self, index: Tensor) -> Objects:
        """The objects of these numbers, int64 (K,)."""
        return Objects(*(column[index] for column in self))


class Winners(NamedTuple):
    """code int64 (H, W): the number of the highest score of each pixel. semantic int64 (H, W): its likeliest class."""

    code: Tensor
    semantic: Tensor


def crops_of(boxes_xyxy: Tensor, size: tuple[int, int], stride: int = 1) -> Tensor:
    """The pixels that boxes cover in a map of `size` (H, W), which has one pixel for `stride` of the image.

    boxes float32 (N, 4) in pixels of the image → int64 (N, 4), x2 and y2 exclusive, at least one pixel each. The last
    pixel is the nearest to a box's last pixel (x2 − 1 here, where boxes end at an edge), the first is rounded down.
    """
    limit = boxes_xyxy.new_tensor((size[1], size[0]))
    first = (boxes_xyxy[:, :2] / stride).floor().clamp(min=0).minimum(limit - 1)
    stop = ((boxes_xyxy[:, 2:] - 1) / stride).round() + 1
    return torch.cat((first, torch.maximum(stop.minimum(limit), first + 1)), dim=1).to(torch.int64)


def resize_matrix(first: Tensor, stop: Tensor, extent: int, cells: int) -> Tensor:
    """Bilinear resizing of `cells` values to the pixels first … stop − 1 as a matrix: float32 (N, extent, cells).

    first, stop int64 (N,), for each of N objects; corners are not aligned. Rows of pixels elsewhere are zero.
    """
    pixel = torch.arange(extent, device=first.device)  # (extent,)
    offset, length = pixel - first[:, None], (stop - first)[:, None]
    place = ((offset + 0.5) * cells / length - 0.5).clamp(min=0, max=cells - 1)  # (N, extent), in cells
    weight = (1 - (place[:, :, None] - torch.arange(cells, device=first.device)).abs()).clamp(min=0)
    return weight * ((offset >= 0) & (offset < length))[:, :, None]


def panoptic_logits(semantic_logits: Tensor, stuff: int, objects: Objects) -> Tensor:
    """The scores of stuff, objects and unknown: float32 (S + N + 1, H, W), differentiable.

    semantic_logits float (C, H, W), the first `stuff` of them of stuff. The score of an object is the logit of its
    class plus that of its mask inside its box, and 0 outside, as UPSNet was trained. Unknown is what the semantic
    branch says of things beyond what it says of these objects: max over classes − max over objects.
    """
    height, width = semantic_logits.shape[1:]
    with torch.autocast(semantic_logits.device.type, enabled=False):
        semantic_logits = semantic_logits.float()
        x1, y1, x2, y2 = objects.crops.unbind(1)
        cells = objects.mask_logits.shape[-1]
        down, across = resize_matrix(y1, y2, height, cells), resize_matrix(x1, x2, width, cells)
        is_inside = _is_between(y1, y2, height)[:, :, None] & _is_between(x1, x2, width)[:, None, :]  # (N, H, W)
        things = semantic_logits[stuff:]
        of_objects = torch.where(is_inside, things[objects.things], 0.0)  # (N, H, W)
        masks = down @ objects.mask_logits.float() @ across.transpose(1, 2)
        unknown = things.amax(0)
        if len(of_objects):
            unknown = unknown - of_objects.amax(0)
        return torch.cat((semantic_logits[:stuff], of_objects + masks, unknown[None]))


def _is_between(first: Tensor, stop: Tensor, extent: int) -> Tensor:
    pixel = torch.arange(extent, device=first.device)
    return (pixel >= first[:, None]) & (pixel < stop[:, None])


def panoptic_winners(logits: Tensor, stuff: int, canvas: Canvas, objects: Objects) -> Winners:
    """The highest of `panoptic_logits` at each pixel, the first of equal ones, and the likeliest class.

    logits float (C, h, w), resized to ``canvas.padded`` and cut to ``canvas.extent``, in whose pixels `objects` are;
    the result is brought to ``canvas.size``, the nearest pixel for each. Where there is no object, UPSNet's own code
    has one of zeros whose pixels are void, and so has this.
    """
    rule = plain_winners if use_plain() else winners_in_boxes
    return Winners(*(nearest_pixels(numbers, canvas.size) for numbers in rule(logits, stuff, canvas, objects)))


def plain_winners(logits: Tensor, stuff: int, canvas: Canvas, objects: Objects) -> Winners:
    """`panoptic_winners` word by word, of the size ``canvas.extent``: with a map for every class and every object."""
    semantic = resized(logits.float(), canvas.padded)[:, : canvas.extent[0], : canvas.extent[1]]
    scores = panoptic_logits(semantic, stuff, objects)
    if len(objects.things) == 0:
        scores = torch.cat((scores[:-1], scores[-1:].clamp(min=0)))
    return Winners(scores.max(0).indices, semantic.max(0).indices)


def winners_in_boxes(logits: Tensor, stuff: int, canvas: Canvas, objects: Objects) -> Winners:
    """`plain_winners` with a few maps in memory, whatever the number of classes and objects."""
    extent = canvas.extent
    count, device = len(objects.things), logits.device
    best_stuff, best_thing = _Best(extent, device), _Best(extent, device)
    best_object, seen = _Best(extent, device, count), torch.full(extent, -torch.inf, device=device)
    pasted = _Pasted(objects, extent)
    things: list[int] = objects.things.tolist()
    for start in range(0, len(logits), CHANNELS_AT_A_TIME):
        chunk = logits[start : start + CHANNELS_AT_A_TIME].float()
        maps = resized(chunk, canvas.padded)[:, : extent[0], : extent[1]]
        split = min(max(stuff - start, 0), len(maps))
        best_stuff.update(maps[:split], start)
        best_thing.update(maps[split:], start + split)
        for number, thing in enumerate(things):
            channel = stuff + thing - start
            if not 0 <= channel < len(maps):
                continue
            box = pasted.boxes[number]
            said = maps[channel][box]
            best_object.update_in(box, said + pasted.mask(number), number)
            seen[box] = torch.maximum(seen[box], said)
    outside = _first_outside(pasted.boxes, extent, device)
    is_outside_one = outside < count
    best_object.update_where(is_outside_one, 0.0, outside)  # the score of an object outside its box
    seen = torch.where(is_outside_one, seen.clamp(min=0), seen)
    unknown = best_thing.value - seen if count else best_thing.value.clamp(min=0)
    code = torch.where(best_object.value > best_stuff.value, stuff + best_object.number, best_stuff.number)
    code = torch.where(unknown > torch.maximum(best_object.value, best_stuff.value), stuff + count, code)
    semantic = torch.where(best_thing.value > best_stuff.value, best_thing.number, best_stuff.number)
    return Winners(code, semantic)


class _Best:
    """A running maximum of numbered maps, and the number that it comes from: the least of equal ones."""

    def __init__(self, size: tuple[int, int], device: torch.device, first: int = 0):
        self.value = torch.full(size, -torch.inf, device=device)
        self.number = torch.full(size, first, dtype=torch.int64, device=device)

    def update(self, maps: Tensor, first: int) -> None:
        """maps float32 (K, H, W), numbered first, first + 1 …, all of them higher than the numbers before."""
        if len(maps) == 0:
            return
        value, index = maps.max(0)
        self.update_where(value > self.value, value, index + first)

    def update_in(self, box: tuple[slice, slice], value: Tensor, number: int) -> None:
        """value float32 (h, w), the map of this number inside `box`."""
        held, of = self.value[box], self.number[box]
        is_better = (value > held) | ((value == held) & (of > number))
        held.copy_(torch.where(is_better, value, held))
        of.masked_fill_(is_better, number)

    def update_where(self, where: Tensor, value: Tensor | float, number: Tensor) -> None:
        """value and number (H, W), at the pixels of `where`."""
        is_better = where & ((value > self.value) | ((value == self.value) & (number < self.number)))
        self.value = torch.where(is_better, value, self.value)
        self.number = torch.where(is_better, number, self.number)


class _Pasted:
    """Masks of objects at the size of a map, each inside its box alone."""

    def __init__(self, objects: Objects, size: tuple[int, int]):
        x1, y1, x2, y2 = objects.crops.unbind(1)
        cells = objects.mask_logits.shape[-1]
        self.logits = objects.mask_logits.float()
        self.down, self.across = resize_matrix(y1, y2, size[0], cells), resize_matrix(x1, x2, size[1], cells)
        self.boxes = [(slice(top, bottom), slice(left, right)) for left, top, right, bottom in objects.crops.tolist()]

    def mask(self, number: int) -> Tensor:
        """Logits float32 (h, w) of an object in its box."""
        rows, columns = self.boxes[number]
        with torch.autocast(self.logits.device.type, enabled=False):
            return self.down[number, rows] @ self.logits[number] @ self.across[number, columns].T


def _first_outside(boxes: Sequence[tuple[slice, slice]], size: tuple[int, int], device: torch.device) -> Tensor:
    """int64 (H, W): the first object in whose box each pixel is not; the number of objects where there is none."""
    first = torch.zeros(size, dtype=torch.int64, device=device)
    for number, box in enumerate(boxes):
        part = first[box]
        part.masked_fill_(part == number, number + 1)
    return first


def prune_masks(objects: Objects, size: tuple[int, int], max_overlap: float = 0.3) -> Tensor:
    """The objects that are kept of those found, by falling score: int64 (K,), ascending numbers.

    An object is dropped where its mask (logit > 0) is empty, or where more than max_overlap of it lies on the masks of
    better objects of its class that were kept. `objects` in a map of `size` (H, W).
    """
    pasted = _Pasted(objects, size)
    things: list[int] = objects.things.tolist()
    kept: list[int] = []
    for thing in sorted(set(things)):
        taken = torch.zeros(size, dtype=torch.bool, device=objects.crops.device)
        for number, its in enumerate(things):
            if its != thing:
                continue
            mask, beneath = pasted.mask(number) > 0, taken[pasted.boxes[number]]
            area = int(mask.sum())
            if area == 0 or int((mask & beneath).sum()) / area > max_overlap:
                continue
            kept.append(number)
            beneath |= mask
    return torch.tensor(sorted(kept), dtype=torch.int64, device=objects.crops.device)


def nearest_pixels(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A map of numbers (h, w) at `size` (H, W): each pixel is that of the same relative place, rounded down."""
    rows, columns = (torch.arange(new, device=x.device) * old // new for old, new in zip(x.shape, size, strict=True))
    return x[rows[:, None], columns]


def segments_of_winners(
    winners: Winners, things: Tensor, scores: Tensor, labels: LabelSpace, min_stuff_area: int = 4096
) -> PanopticSegmentation:
    """Winners of a contest to segments: objects by falling score, then stuff. things int64, scores float (N,).

    The semantic branch has a last word on each object: where at least half of its pixels, and more than of any other
    class, are of one stuff class, it is stuff. Then stuff of fewer pixels than min_stuff_area becomes void.
    """
    stuff, count = len(labels.stuff), len(things)
    code = winners.code.clone()
    of_class = _pixels_of_objects(winners, stuff, count, len(labels))  # (N, C)
    area = of_class.sum(1)
    pixels, majority = of_class.max(1) if count else (area, area)
    is_stuff = (majority < stuff) & (2 * pixels >= area) & (area > 0)
    target = torch.arange(stuff + count + 1)
    target[stuff : stuff + count] = torch.where(is_stuff, majority, target[stuff : stuff + count])
    code = target.to(code.device)[code]
    left = torch.bincount(code.flatten(), minlength=stuff + count + 1).tolist()
    ids = torch.zeros(stuff + count + 1, dtype=torch.int32)
    segments: list[Segment] = []
    for number, (thing, score) in enumerate(zip(things.tolist(), scores.tolist(), strict=True)):
        if left[stuff + number]:
            segments.append(Segment(len(segments) + 1, labels.things[thing].id, score))
            ids[stuff + number] = len(segments)
    for number, category in enumerate(labels.stuff):
        if left[number] >= max(1, min_stuff_area):
            segments.append(Segment(len(segments) + 1, category.id))
            ids[number] = len(segments)
    return PanopticSegmentation(ids.to(code.device)[code], tuple(segments))


def _pixels_of_objects(winners: Winners, stuff: int, count: int, classes: int) -> Tensor:
    """int64 (N, C) on the CPU: how many of the pixels that each object has won are likeliest of each class."""
    number = winners.code - stuff
    is_object = (number >= 0) & (number < count)
    both = number[is_object] * classes + winners.semantic[is_object]
    return torch.bincount(both, minlength=count * classes).view(count, classes).cpu()


def merge_beside_stuff(
    masks: Tensor,
    scores: Tensor,
    categories: Tensor,
    semantic: Tensor,
    labels: LabelSpace,
    score_threshold: float = 0.6,
    max_overlap: float = 0.3,
    min_stuff_area: int = 4096,
) -> PanopticSegmentation:
    """The heuristic merge that UPSNet is compared with (the paper's MR-CNN-PSP), of the same network's branches.

    masks bool (N, H, W), scores float (N,), categories int64 (N,): indices into `labels`. semantic int64 (H, W): the
    likeliest category of each pixel. Objects as in `accept_instances`. Stuff counts its pixels before objects cover
    some of them; pixels of things without an object are void.
    """
    ids, accepted = accept_instances(masks, scores, score_threshold, max_overlap)
    segments = [
        Segment(place + 1, int(categories[index]), float(scores[index])) for place, index in enumerate(accepted)
    ]
    free = ids == 0
    for category in labels.stuff:
        region = semantic == category.id
        visible = region & free
        if int(region.sum()) >= max(1, min_stuff_area) and bool(visible.any()):
            segments.append(Segment(len(segments) + 1, category.id))
            ids.masked_fill_(visible, len(segments))
    return PanopticSegmentation(ids, tuple(segments))


def kept_objects(boxes_xyxy: Tensor, share: float, progress: float = 0.0) -> Tensor:
    """The true objects that the panoptic head is shown: int64 (K,), ascending, K = max(⌊share · N⌋, 1), none of none.

    boxes float32 (N, 4). Which ones is drawn by the boxes themselves and by how far training has come (0 … 1), so that
    it does not depend on what else is in the batch, and a repeated step is the same.
    """
    count = len(boxes_xyxy)
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=boxes_xyxy.device)
    weights = torch.tensor((3.0, 5.0, 7.0, 11.0), dtype=torch.float64)
    number = int((boxes_xyxy.detach().cpu().double() * weights).sum() * 16) + round(progress * 2**30)
    chance = torch.Generator().manual_seed(number % 2**62)
    order = torch.randperm(count, generator=chance, device="cpu")
    return order[: max(int(share * count), 1)].sort().values.to(boxes_xyxy.device)


def panoptic_target(
    truth: PanopticSegmentation, targets: InstanceTargets, kept: Tensor, labels: LabelSpace, stride: int
) -> Tensor:
    """What the scores of `panoptic_logits` should say, at every `stride`-th pixel: int64 (⌈H / stride⌉, ⌈W / stride⌉).

    kept int64 (K,): the objects of `targets` that the head is shown, S + 0 … S + K − 1 in this order. All other things
    (crowds too) are unknown, S + K; void is IGNORE. Where annotations overlap, the later object has the pixel.
    """
    height, width = truth.size
    stuff = [c.id for c in labels.stuff]
    unknown = len(stuff) + len(kept)
    class_of_category = [stuff.index(c.id) if not c.is_thing else unknown for c in labels]
    ids = truth.ids[::stride, ::stride]
    target = semantic_map(PanopticSegmentation(ids, truth.segments), class_of_category).to(kept.device)
    number = torch.full((len(targets.things),), unknown, dtype=torch.int64, device=kept.device)
    number[kept] = torch.arange(len(stuff), unknown, device=kept.device)
    if len(number) == 0:
        return target
    stack = targets.mask_stack[:, :height:stride, :width:stride]
    if len(stack) == 1:
        of_objects = lookup(stack[0].to(torch.int32), targets.mask_value, number, IGNORE)
        return torch.where(of_objects == IGNORE, target, of_objects)
    rows = torch.arange(1, len(number) + 1, device=kept.device, dtype=torch.int16)  # 0: no object
    last = ((stack[targets.mask_index] == targets.mask_value[:, None, None]) * rows[:, None, None]).amax(0).long()
    return torch.where(last == 0, target, number[(last - 1).clamp(min=0)])


def region_classes(target: Tensor, boxes_xyxy: Tensor, image_index: Tensor, size: int) -> Tensor:
    """The class at the centre of each cell of a size × size grid over each box: int64 (N, size, size).

    target int64 (B, H, W), boxes float32 (N, 4) in its pixels, image_index int64 (N,).
    """
    step = (torch.arange(size, device=target.device) + 0.5) / size  # (size,)
    corner, sides = boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    x, y = ((corner[:, k, None] + step * sides[:, k, None]).long().clamp(min=0) for k in (0, 1))  # (N, size)
    x, y = x.clamp(max=target.shape[2] - 1), y.clamp(max=target.shape[1] - 1)
    return target[image_index[:, None, None], y[:, :, None], x[:, None, :]]


def panoptic_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of `panoptic_logits` (K, H, W), summed over the pixels that are not IGNORE in target (H, W)."""
    return F.cross_entropy(logits[None].float(), target[None], ignore_index=IGNORE, reduction="sum")
