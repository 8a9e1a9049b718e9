"""Panoptic-DeepLab's rule: things are the pixels that point to the same centre, their class is what most of them say.

Cheng et al.: Panoptic-DeepLab, CVPR 2020, section 3.3. Two versions of it were published, that of detectron2 and that
of DeepLab2, which differ where a pixel of a thing has no centre, and in the area that stuff needs (`CentreRule`).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.types import LabelSpace, PanopticSegmentation, Segment

PLACES_WORTH_A_THREAD = 1 << 16

VALUES_AT_ONCE = 1 << 18
"""Logits of a few rows of all classes: 1 MiB."""


class CentreRule(NamedTuple):
    """The numbers of the rule; the defaults are those of detectron2's Cityscapes models.

    threshold: a centre needs a larger heat. window: and the largest one of this square of places around it. centres:
    at most so many are kept. min_stuff_area: stuff of fewer pixels becomes void.
    grouping: "detectron2": pixels of things are void where no centre is found at all. "deeplab2": they become one
    object then, and stuff needs more than min_stuff_area pixels.
    """

    threshold: float = 0.1
    window: int = 7
    centres: int = 200
    min_stuff_area: int = 2048
    grouping: str = "detectron2"


def find_centres(heat: Tensor, threshold: float, window: int, count: int) -> Tensor:
    """The peaks of a heat map, float (H, W) → int64 (K, 2) y and x, in reading order.

    A peak is above the threshold and the largest value of the window × window places around it. Of more than `count`
    peaks those are kept that are larger than the `count`-th value: one less than `count`, or fewer where values are
    equal, as both published versions have it.
    """
    heat, reach = heat.float().contiguous(), max(1, window) // 2  # an even window has no centre: it is one larger
    fast = heat.device.type == "cpu" and not use_plain()
    peaks = (_peaks_by_loop if fast else plain_peaks)(heat, threshold, reach).nonzero()  # (K, 2)
    if len(peaks) < count:
        return peaks
    values = heat[peaks[:, 0], peaks[:, 1]]
    return peaks[values > values.topk(count).values[-1]]


def plain_peaks(heat: Tensor, threshold: float, reach: int) -> Tensor:
    """bool (H, W): the places above the threshold whose value is the largest of those up to `reach` rows and columns
    away. heat float32 (H, W).
    """
    side = 2 * reach + 1
    largest = F.max_pool2d(heat[None, None], (side, 1), stride=1, padding=(reach, 0))
    largest = F.max_pool2d(largest, (1, side), stride=1, padding=(0, reach))[0, 0]
    return (heat == largest) & (heat > threshold)


def _peaks_by_loop(heat: Tensor, threshold: float, reach: int) -> Tensor:
    """The same for tensors on the CPU: most places have a larger one beside them, and most are below the threshold."""
    from pansight.ops.fast.kernels import centres as kernels  # here: numba takes its time to load

    peaks = np.zeros(tuple(heat.shape), np.bool_)
    values, least = heat.detach().numpy(), float(np.float32(threshold))  # torch compares in float32
    in_parts(len(peaks), peaks.size, lambda first, last: kernels.peaks(values, least, reach, first, last, peaks))
    return torch.from_numpy(peaks)


def in_parts(count: int, size: int, run: Callable[[int, int], None]) -> None:
    """run(first, last) over parts of 0 … count, each in a thread of its own where `size` numbers are worth it."""
    threads = max(1, min(torch.get_num_threads(), size // PLACES_WORTH_A_THREAD))
    bounds = [count * part // threads for part in range(threads + 1)]
    if threads == 1:
        run(0, count)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, bounds[:-1], bounds[1:]))


def nearest_centres(centres_yx: Tensor, offsets_yx: Tensor, is_thing: Tensor) -> Tensor:
    """Which centre each pixel of a thing points to: int32 (H, W), numbers from 1, and 0 elsewhere.

    centres int (K, 2), K ≥ 1, offsets float (2, H, W) in pixels, is_thing bool (H, W). Of equally near ones the first.
    """
    pixels = is_thing.flatten().nonzero()[:, 0]  # (P,)
    pointed = offsets_yx.float().flatten(1)[:, pixels]  # (2, P)
    pointed[0] += pixels // is_thing.shape[1]
    pointed[1] += pixels % is_thing.shape[1]
    fast = pointed.device.type == "cpu" and not use_plain()
    nearest = (_nearest_by_loop if fast else plain_nearest)(pointed, centres_yx.float().contiguous())
    result = torch.zeros(is_thing.shape, dtype=torch.int32, device=is_thing.device)
    result.view(-1)[pixels] = nearest
    return result


def plain_nearest(places_yx: Tensor, centres_yx: Tensor) -> Tensor:
    """places float32 (2, P), centres float32 (K, 2) → int32 (P,): the number of the nearest centre, from 1."""
    best = torch.full_like(places_yx[0], torch.inf)
    nearest = torch.ones_like(best, dtype=torch.int32)
    for number, (y, x) in enumerate(centres_yx, start=1):
        distance = (y - places_yx[0]) ** 2 + (x - places_yx[1]) ** 2
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        nearest.masked_fill_(nearer, number)
    return nearest


def _nearest_by_loop(places_yx: Tensor, centres_yx: Tensor) -> Tensor:
    """The same for tensors on the CPU."""
    from pansight.ops.fast.kernels import centres as kernels  # here: numba takes its time to load

    count = places_yx.shape[1]
    nearest = np.empty(count, np.int32)
    places, centres = places_yx.detach().numpy(), centres_yx.detach().numpy()
    in_parts(count, count, lambda first, last: kernels.nearest_centres(places, centres, first, last, nearest))
    return torch.from_numpy(nearest)


def majority(numbers: Tensor, semantic: Tensor, count: int, classes: int) -> Tensor:
    """The class that most pixels of each object say: int64 (count,); the smallest one of several that as many say.

    numbers int (H, W): the object of each pixel, from 1, 0 elsewhere; semantic int64 (H, W). An object without pixels
    is of class 0.
    """
    votes = torch.bincount((numbers.long() * classes + semantic).flatten(), minlength=(count + 1) * classes)
    # the largest one that comes first: max() may return any of several equal ones
    votes = votes.view(-1, classes)[1:]  # (count, classes)
    return (votes == votes.max(1, keepdim=True).values).int().argmax(1)


def group_pixels(
    semantic_logits: Tensor, heat: Tensor, offsets_yx: Tensor, labels: LabelSpace, rule: CentreRule
) -> tuple[PanopticSegmentation, Tensor]:
    """→ (the panoptic map of one image, its semantic map int64 (H, W)).

    semantic_logits float (C, H, W) of all classes of `labels`, heat float (H, W), offsets float (2, H, W) in pixels.
    Objects come first, in the order of their centres, then stuff in the order of the label space. The score of an
    object is the mean probability of its class in its mask, times the heat at the mean place of the mask (which may lie
    outside of it): what AP is computed with.
    """
    likeliest, semantic = semantic_logits.max(0)  # argmax(0) is six times slower on the CPU
    thing_classes = torch.tensor([category.is_thing for category in labels], device=semantic.device)
    is_thing = thing_classes[semantic]
    centres = find_centres(heat, rule.threshold, rule.window, rule.centres)
    if len(centres):
        numbers = nearest_centres(centres, offsets_yx, is_thing)
    else:
        numbers = is_thing.int() * (1 if rule.grouping == "deeplab2" else 0)
    count = max(len(centres), 1)
    voted = majority(numbers, semantic, count, len(labels))
    scores = _scores(numbers, voted, semantic_logits, likeliest, heat)
    pixels: list[int] = torch.bincount(numbers.flatten(), minlength=count + 1)[1:].tolist()
    of_object = torch.zeros(count + 1, dtype=torch.int32)
    segments: list[Segment] = []
    for number, (area, category, score) in enumerate(zip(pixels, voted.tolist(), scores, strict=True), start=1):
        if area:
            segments.append(Segment(len(segments) + 1, category, score))
            of_object[number] = len(segments)
    areas: list[int] = torch.bincount(semantic.flatten(), minlength=len(labels)).tolist()
    least = max(1, rule.min_stuff_area + (1 if rule.grouping == "deeplab2" else 0))
    of_stuff = torch.zeros(len(labels), dtype=torch.int32)
    for category in labels.stuff:
        if areas[category.id] >= least:
            segments.append(Segment(len(segments) + 1, category.id))
            of_stuff[category.id] = len(segments)
    # objects lie where the class is a thing, whose number among stuff is 0
    ids = of_object.to(numbers.device)[numbers] + of_stuff.to(numbers.device)[semantic]
    return PanopticSegmentation(ids, tuple(segments)), semantic


def _scores(numbers: Tensor, voted: Tensor, semantic_logits: Tensor, likeliest: Tensor, heat: Tensor) -> list[float]:
    """0 … 1 of each object; numbers int32 (H, W), voted int64 (K,), likeliest (H, W): the largest logit of each pixel.

    The probability of a pixel is read for the class that its object has. A few rows at a time are in the processor's
    cache while the classes are gone through.
    """
    count, width = len(voted), numbers.shape[1]
    class_of = torch.cat([voted.new_zeros(1), voted])
    certainty = torch.zeros(count + 1, dtype=torch.float64, device=heat.device)
    for rows in torch.arange(len(numbers)).split(max(1, VALUES_AT_ONCE // (width * len(semantic_logits)))):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        owner = numbers[part].long()  # (h, W), 0 outside of objects
        logits = semantic_logits[:, part].float() - likeliest[part].float()  # (C, h, W)
        probability = (logits.gather(0, class_of[owner][None])[0] - logits.exp().sum(0).log()).exp()
        certainty += torch.bincount(owner.flatten(), probability.flatten().double(), count + 1)
    pixels = numbers.flatten().nonzero()[:, 0]  # (P,)
    owner = numbers.flatten()[pixels].long() - 1
    area = torch.bincount(owner, minlength=count).clamp(min=1)
    places = pixels // width, pixels % width
    middle = [(torch.bincount(owner, place.double(), count) / area).long() for place in places]
    return (certainty[1:] / area * heat[middle[0], middle[1]].double()).clamp(0, 1).tolist()
