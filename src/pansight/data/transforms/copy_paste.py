"""Copy-paste of objects: Ghiasi et al. 2021, "Simple Copy-Paste is a Strong Data Augmentation Method", section 3.

As there, a random subset of the objects of a second image, which is augmented like the first, is pasted onto the first.
Different from there: edges are not blended, so that every pixel belongs to exactly one image; the second image is
placed anywhere over the first where their sizes differ; and what is left of a segment that is nearly covered goes too.
On an id map, whose segments are disjoint, this is exact: a pasted object takes its pixels away from what was there.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from pansight.data.dataset import Dataset
from pansight.data.transforms.geometry import Transform
from pansight.ops.idmap import boxes_xyxy
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Sample, Segment

LEAST_SHARE = 0.1
"""A segment of which less than this share of its pixels is still seen is removed: what is left no longer shows it."""


class CopyPaste:
    """After `transform`: with probability `p`, objects of another image of `dataset`, which passes `transform` too.

    Everything is drawn from the generator of the sample, so the result depends on neither workers nor resumption.
    """

    def __init__(self, dataset: Dataset, transform: Transform, p: float = 0.5):
        self.dataset, self.transform, self.p = dataset, transform, p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = self.transform(sample, rng)
        if rng.random() >= self.p:
            return sample
        other = self.transform(self.dataset[int(rng.integers(len(self.dataset)))], rng)
        labels = self.dataset.labels
        objects = objects_of(other, labels)
        if len(objects) == 0:
            return sample
        chosen = torch.from_numpy(rng.permutation(len(objects))[: int(rng.integers(1, len(objects) + 1))])
        assert objects.masks is not None  # of objects_of
        # small objects lie above large ones, as the readers paint masks that overlap
        chosen = chosen[objects.masks[chosen].flatten(1).sum(1).argsort(descending=True, stable=True)]
        slack = [new - old for new, old in zip(sample.truth.size, other.truth.size)]
        rows, columns = (int(rng.integers(min(0, most), max(0, most) + 1)) for most in slack)
        return paste_objects(sample, other, _at(objects, chosen), (rows, columns), labels)


def objects_of(sample: Sample, labels: LabelSpace) -> Instances:
    """The things of a sample, with masks and without crowds; of its id map where it has no instances besides."""
    found = sample.instances
    if found is None or found.masks is None:
        return _of_map(sample.truth, labels)
    if found.is_crowd is None:
        return found
    return _at(found, torch.nonzero(~found.is_crowd)[:, 0])


def paste_objects(
    sample: Sample, other: Sample, objects: Instances, shift: tuple[int, int], labels: LabelSpace
) -> Sample:
    """`sample` with `objects` of `other` pasted onto it, their pixels moved by `shift` = (rows, columns).

    objects: with masks (N, h, w) of the size of `other`; where they overlap, the later one lies above in the id map.
    The image, the id map and the instances of the result are new; ids of pasted segments are the smallest free ones.
    Segments and objects of which less than LEAST_SHARE is left are removed; their pixels become void.
    """
    assert objects.masks is not None  # of objects_of
    size = sample.truth.size
    photo = _moved(other.image, shift, size)
    masks = _moved(objects.masks, shift, size)  # (N, H, W)
    whole = objects.masks.flatten(1).sum(1)  # (N,)
    seen = masks.flatten(1).sum(1)
    kept = (seen > 0) & (seen >= LEAST_SHARE * whole)
    masks, pasted_labels, whole = masks[kept], objects.labels[kept], whole[kept]
    if len(masks) == 0:
        return sample
    covered = masks.any(0)  # (H, W)
    image = torch.where(covered, photo.to(sample.image.dtype), sample.image)
    ids = sample.truth.ids.clone()
    before = _areas(ids)
    used = {s.id for s in sample.truth.segments} | before.keys()
    new_ids = list(islice((n for n in count(1) if n not in used), len(masks)))
    segments = list(sample.truth.segments)
    for new_id, mask, label, area in zip(new_ids, masks, pasted_labels.tolist(), whole.tolist(), strict=True):
        ids[mask] = new_id
        segments.append(Segment(new_id, label))
        before[new_id] = area
    after = _areas(ids)
    stay = [s for s in segments if after.get(s.id, 0) and after[s.id] >= LEAST_SHARE * before[s.id]]
    gone = after.keys() - {s.id for s in stay} - {0}
    ids[torch.isin(ids, torch.tensor(sorted(gone), dtype=torch.int32))] = 0
    instances = None
    if sample.instances is not None or other.instances is not None:
        instances = _joined(sample, labels, masks, pasted_labels, covered)
    truth, proposals = PanopticSegmentation(ids, tuple(stay)), _joined_proposals(sample, other, shift)
    return replace(sample, image=image, truth=truth, instances=instances, proposals=proposals)


def _joined_proposals(sample: Sample, other: Sample, shift: tuple[int, int]) -> Tensor | None:
    """The regions that were proposed for either image, as shares of the first; None where there are none for one."""
    if sample.proposals is None or other.proposals is None:
        return sample.proposals
    sides = [torch.tensor([width, height] * 2) for height, width in (sample.truth.size, other.truth.size)]
    moved = (other.proposals * sides[1] + torch.tensor([shift[1], shift[0]] * 2)) / sides[0]
    moved = moved.clamp(0, 1)
    return torch.cat([sample.proposals, moved[(moved[:, 2:] > moved[:, :2]).all(1)]])


def _joined(sample: Sample, labels: LabelSpace, masks: Tensor, pasted: Tensor, covered: Tensor) -> Instances:
    """The objects of `sample`, without what `covered` (H, W) hides, and those that are pasted, which may overlap."""
    own = sample.instances if sample.instances is not None else _of_map(sample.truth, labels, crowds=True)
    assert own.masks is not None  # transforms have refused boxes without masks
    left = own.masks & ~covered
    areas, before = left.flatten(1).sum(1), own.masks.flatten(1).sum(1)
    keep = (areas > 0) & (areas >= LEAST_SHARE * before)
    own_crowd = torch.zeros(len(own), dtype=torch.bool) if own.is_crowd is None else own.is_crowd
    crowd = torch.cat([own_crowd[keep], torch.zeros(len(pasted), dtype=torch.bool)])
    return _with_boxes(
        torch.cat([left[keep], masks]),
        torch.cat([own.labels[keep], pasted]),
        torch.cat([own.scores[keep], torch.ones(len(pasted))]),
        crowd,
    )


def _of_map(truth: PanopticSegmentation, labels: LabelSpace, crowds: bool = False) -> Instances:
    """The things of an id map as objects; crowds: those too."""
    things = [s for s in truth.segments if labels[s.category].is_thing and (crowds or not s.is_crowd)]
    ids = torch.tensor([s.id for s in things], dtype=torch.int32)
    return _with_boxes(
        truth.ids == ids[:, None, None],
        torch.tensor([s.category for s in things], dtype=torch.int64),
        torch.ones(len(things)),
        torch.tensor([s.is_crowd for s in things], dtype=torch.bool),
    )


def _with_boxes(masks: Tensor, labels: Tensor, scores: Tensor, is_crowd: Tensor) -> Instances:
    """masks bool (N, H, W), none of them empty but of segments that are not in the map; these are left out."""
    found = [boxes_xyxy(mask.to(torch.int32).numpy()).get(1) for mask in masks]
    keep = torch.tensor([box is not None for box in found], dtype=torch.bool)
    boxes = torch.tensor([box for box in found if box is not None], dtype=torch.float32).reshape(-1, 4)
    return Instances(boxes, labels[keep], scores[keep], masks[keep], is_crowd[keep])


def _at(objects: Instances, index: Tensor) -> Instances:
    masks = None if objects.masks is None else objects.masks[index]
    crowd = None if objects.is_crowd is None else objects.is_crowd[index]
    return Instances(objects.boxes_xyxy[index], objects.labels[index], objects.scores[index], masks, crowd)


def _moved(stack: Tensor, shift: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(K, h, w) → (K, H, W) of `size`, moved by `shift` = (rows, columns), zero where nothing comes to lie."""
    result = stack.new_zeros((len(stack), *size))
    target, source = zip(*(_overlap(s, old, new) for s, old, new in zip(shift, stack.shape[1:], size)), strict=True)
    result[:, target[0], target[1]] = stack[:, source[0], source[1]]
    return result


def _overlap(shift: int, old: int, new: int) -> tuple[slice, slice]:
    """The part of an axis of length `new` that one of length `old`, moved by `shift`, covers, in both of them."""
    first, end = max(shift, 0), max(min(shift + old, new), max(shift, 0))
    return slice(first, end), slice(first - shift, end - shift)


def _areas(ids: Tensor) -> dict[int, int]:
    found, areas = torch.unique(ids, return_counts=True)
    return dict(zip(found.tolist(), areas.tolist(), strict=True))
