"""Panoptic-DeepLab's rule: things are the pixels that point to the same centre, their class is what most of them say.

Cheng et al.: Panoptic-DeepLab, CVPR 2020, section 3.3. Two versions of it were published, that of detectron2 and that
of DeepLab2, which differ where a pixel of a thing has no centre, and in the area that stuff needs (`CentreRule`).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.types import LabelSpace, PanopticSegmentation, Segment

PLACES_WORTH_A_THREAD = 1 << 16


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
    heat = torch.where(heat > threshold, heat.float(), -torch.inf)
    side = max(1, window) | 1  # an even window has no centre
    peaks = torch.where(
        F.max_pool2d(heat[None, None], side, stride=1, padding=side // 2)[0, 0] == heat, heat, -torch.inf
    )
    least = -torch.inf if peaks.numel() <= count else peaks.flatten().topk(count).values[-1]
    return (peaks > least).nonzero()


def nearest_centres(centres_yx: Tensor, offsets_yx: Tensor, is_thing: Tensor) -> Tensor:
    """Which centre each pixel of a thing points to: int32 (H, W), numbers from 1, and 0 elsewhere.

    centres int (K, 2), K ≥ 1, offsets float (2, H, W) in pixels, is_thing bool (H, W). Of equally near ones the first.
    """
    result = torch.zeros(is_thing.shape, dtype=torch.int32, device=is_thing.device)
    places = is_thing.nonzero()  # (P, 2)
    pointed = places.T + offsets_yx.float()[:, places[:, 0], places[:, 1]]  # (2, P)
    fast = pointed.device.type == "cpu" and not use_plain()
    nearest = (_nearest_by_loop if fast else plain_nearest)(pointed.contiguous(), centres_yx.float().contiguous())
    result[places[:, 0], places[:, 1]] = nearest
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
    threads = max(1, min(torch.get_num_threads(), count // PLACES_WORTH_A_THREAD))
    bands = list(itertools.pairwise(count * part // threads for part in range(threads + 1)))
    places, centres = places_yx.detach().numpy(), centres_yx.detach().numpy()

    def run(band: tuple[int, int]) -> None:
        kernels.nearest_centres(places, centres, *band, nearest)

    if threads == 1:
        run((0, count))
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, bands))
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
    semantic = semantic_logits.max(0).indices  # argmax(0) is six times slower on the CPU
    thing_classes = torch.tensor([category.is_thing for category in labels], device=semantic.device)
    is_thing = thing_classes[semantic]
    centres = find_centres(heat, rule.threshold, rule.window, rule.centres)
    if len(centres):
        numbers = nearest_centres(centres, offsets_yx, is_thing)
    else:
        numbers = is_thing.int() * (1 if rule.grouping == "deeplab2" else 0)
    count = max(len(centres), 1)
    voted = majority(numbers, semantic, count, len(labels))
    scores = _scores(numbers, voted, semantic_logits, heat)
    pixels: list[int] = torch.bincount(numbers.flatten(), minlength=count + 1)[1:].tolist()
    table = torch.zeros(count + 1, dtype=torch.int32)
    segments: list[Segment] = []
    for number, (area, category, score) in enumerate(zip(pixels, voted.tolist(), scores, strict=True), start=1):
        if area:
            segments.append(Segment(len(segments) + 1, category, score))
            table[number] = len(segments)
    ids = table.to(numbers.device)[numbers]
    areas: list[int] = torch.bincount(semantic.flatten(), minlength=len(labels)).tolist()
    least = max(1, rule.min_stuff_area + (1 if rule.grouping == "deeplab2" else 0))
    for category in labels.stuff:
        if areas[category.id] >= least:
            segments.append(Segment(len(segments) + 1, category.id))
            ids.masked_fill_(semantic == category.id, len(segments))
    return PanopticSegmentation(ids, tuple(segments)), semantic


def _scores(numbers: Tensor, voted: Tensor, semantic_logits: Tensor, heat: Tensor) -> list[float]:
    """0 … 1 of each object; numbers int32 (H, W), voted int64 (K,)."""
    places = (numbers > 0).nonzero()  # (P, 2)
    owner = numbers[places[:, 0], places[:, 1]].long() - 1  # (P,)
    probabilities = semantic_logits[:, places[:, 0], places[:, 1]].float().softmax(0)  # (C, P)
    of_class = probabilities.gather(0, voted[owner][None])[0].double()
    count = len(voted)
    area = torch.bincount(owner, minlength=count).clamp(min=1)
    certainty = torch.bincount(owner, of_class, count) / area
    middle = [(torch.bincount(owner, place.double(), count) / area).long() for place in places.T]
    return (certainty * heat[middle[0], middle[1]].double()).clamp(0, 1).tolist()
