"""From the maps of Panoptic FCN to segments: candidates at each level, kernel fusion, masks.

Li et al.: Fully Convolutional Networks for Panoptic Segmentation, CVPR 2021, sections 3.2 to 3.4; the rules are those
of its published code (Apache-2.0). Matrix NMS, which the paper compares with: Wang et al., SOLOv2, NeurIPS 2020.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.centres.kernels import mean_kernels
from pansight.ops.fusion.contest import Canvas, on_canvas
from pansight.ops.fusion.exported import KernelOutputs
from pansight.ops.fusion.instances import merge_by_label_map
from pansight.ops.fusion.queries import boxes_of_masks
from pansight.ops.regions.boxes import highest
from pansight.types import IGNORE, Instances, LabelSpace, Prediction

WINDOWS = (3, 3, 3, 5, 5)
"""Side of the mean that is added to the scores of P3 … P7 before peaks are looked for."""
MASKS_AT_ONCE = 64


class KernelRules(NamedTuple):
    """Thresholds of decode; the defaults are those of the published networks for COCO."""

    thing: float = 0.05
    """A peak is a candidate if its score is above this."""
    stuff: float = 0.05
    """A region of stuff is a candidate if its mean score is above this."""
    candidates: int = 50
    """Peaks of a level that are looked at."""
    similarity: float = 0.9
    """Kernels of a cosine of at least this are of one object; 1 switches kernel fusion off."""
    class_aware: bool = True
    """Only kernels of one class are fused."""
    matrix_nms: bool = False
    """Scores fall where a better object of the class has a similar mask."""
    mask: float = 0.4
    """A pixel is inside a mask if its probability is above this."""
    min_score: float = 0.05
    """Objects below this score are dropped, after it was multiplied by the certainty of the mask."""
    detections: int = 100
    """Objects that are kept of an image."""
    score: float = 0.2
    """Objects below this score have no place in the panoptic map."""
    overlap: float = 0.5
    """Nor have those of which more than this share is covered by better ones."""
    min_stuff_area: int = 4096
    """Nor has stuff of fewer pixels."""


class Candidates(NamedTuple):
    """N kernels: vectors float32 (N, D), classes int64 (N,), scores float32 (N,)."""

    kernels: Tensor
    classes: Tensor
    scores: Tensor

    def some(self, index: Tensor) -> Candidates:
        return Candidates(*(column[index] for column in self))

    def above(self, threshold: float) -> Candidates:
        """Those with scores above it."""
        return self.some(self.scores > threshold)


def joined(parts: Sequence[Candidates]) -> Candidates:
    """The candidates of several levels as one list."""
    return Candidates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def thing_candidates(logits: Tensor, kernels: Tensor, window: int, count: int) -> Candidates:
    """Peaks of a level: logits (classes, h, w), kernels (D, h, w) → the best `count`, those without a score included.

    A score is the mean of its own probability and of the mean of a `window` around it, in which places outside of the
    map count as zero. A peak is the largest of its class among its eight neighbours; other places have the score 0, and
    so has what is not among the best h · w.
    """
    scores = logits.float().sigmoid()
    scores = (scores + F.avg_pool2d(scores[None], window, 1, window // 2)[0]) / 2
    peaks = scores * (F.max_pool2d(scores[None], 3, 1, 1)[0] == scores)
    of_class, places = highest(peaks.flatten(1), count)  # (classes, K)
    best, index = highest(of_class.flatten()[None], count)
    chosen = places.flatten()[index[0]]
    has_score = torch.arange(best.shape[1], device=best.device) < scores.shape[1] * scores.shape[2]
    vectors = kernels.float().flatten(1).T[chosen]
    return Candidates(vectors, index[0] // of_class.shape[1], best[0].clamp(min=0) * has_score)


def stuff_candidates(logits: Tensor, kernels: Tensor) -> Candidates:
    """The regions of a level, where each place belongs to its best class: logits (classes, h, w), kernels (D, h, w).

    One for each class. The score is the mean probability in the region, 0 where it is empty, the kernel the mean over
    the map of those in the region.
    """
    best = logits.float().sigmoid().flatten(1).max(0)  # of each place
    classes = torch.arange(len(logits), device=logits.device)
    regions = best.indices == classes[:, None]  # (classes, h · w)
    scores = (regions.float() @ best.values) / regions.sum(1).clamp(min=1)
    return Candidates(mean_kernels(kernels, regions.view(logits.shape)), classes, scores)


def prediction_of_kernels(
    found: KernelOutputs, canvas: Canvas, labels: LabelSpace, category_of_class: Sequence[int], rules: KernelRules
) -> Prediction:
    """Kernels fused, their masks, and the merge of objects with stuff. found: of one image, without the axis of images.

    category_of_class: of each class of stuff its index among `labels`, or IGNORE.
    """
    things = Candidates(found.thing_kernels, found.thing_classes, found.thing_scores).above(rules.thing)
    things = fuse_things(things, rules.similarity, rules.class_aware)
    levels, classes = found.stuff_scores.shape
    of_class = torch.arange(classes, device=found.features.device).repeat(levels)
    stuff = Candidates(found.stuff_kernels.flatten(0, 1), of_class, found.stuff_scores.flatten()).above(rules.stuff)
    semantic = stuff_map(fuse_stuff(stuff), found.features, canvas, category_of_class)
    categories = torch.tensor([c.id for c in labels.things], device=found.features.device)
    objects = thing_instances(things, found.features, canvas, categories, rules)
    assert objects.masks is not None
    panoptic = merge_by_label_map(
        objects.masks,
        objects.scores,
        objects.labels,
        semantic,
        labels,
        rules.score,
        rules.overlap,
        rules.min_stuff_area,
    )
    return Prediction(panoptic, None, objects)


def fuse_things(found: Candidates, similarity: float, class_aware: bool = True) -> Candidates:
    """Kernel fusion (section 3.3): similar kernels become one, their mean, with the best of their scores.

    By falling score, a kernel survives if no better one is similar to it, whether that one survives or not. It is fused
    with those whose first similar kernel it is; a kernel whose first similar one does not survive has no part in
    anything. So the relation is not transitive, and this is no greedy suppression. A similarity of 1 fuses nothing:
    only rounding would decide which cosines reach it.
    """
    found = found.some(found.scores.argsort(descending=True, stable=True))
    count = len(found.scores)
    if not count or similarity >= 1:
        return found
    directions = found.kernels / found.kernels.norm(dim=1, keepdim=True).clamp(min=1e-8)
    similar = directions @ directions.T >= similarity
    if class_aware:
        similar &= found.classes[:, None] == found.classes
    similar = similar.triu(1)
    similar.fill_diagonal_(True)  # also of a zero vector, which has no direction
    order = torch.arange(count, 0, -1, device=similar.device)
    first = (similar * order[:, None]).argmax(0)  # (N,): the best kernel that each one is similar to
    sums = torch.zeros_like(found.kernels).index_add_(0, first, found.kernels)
    survivors = (first == torch.arange(count, device=first.device)).nonzero().flatten()
    members = first.bincount(minlength=count)[survivors]
    return found.some(survivors)._replace(kernels=sums[survivors] / members[:, None])


def fuse_stuff(found: Candidates) -> Candidates:
    """One kernel and one score of each class: their means over the levels, by rising class."""
    classes, index, counts = found.classes.unique(return_inverse=True, return_counts=True)
    kernels = found.kernels.new_zeros((len(classes), found.kernels.shape[1])).index_add_(0, index, found.kernels)
    scores = found.scores.new_zeros(len(classes)).index_add_(0, index, found.scores)
    return Candidates(kernels / counts[:, None], classes, scores / counts)


def matrix_nms(masks: Tensor, classes: Tensor, scores: Tensor, sigma: float = 2.0) -> Tensor:
    """Scores lowered by the overlap with better objects of the class: SOLOv2's Gaussian Matrix NMS.

    masks bool (N, h, w), classes int64 (N,), scores float32 (N,), falling → float32 (N,). The overlap with an object
    counts the less, the more that one overlaps a better one itself.
    """
    if not len(scores):
        return scores
    flat = masks.flatten(1).float()
    shared, area = flat @ flat.T, flat.sum(1)
    overlaps = shared / (area[:, None] + area - shared).clamp(min=1)
    overlaps = (overlaps * (classes[:, None] == classes)).triu(1)  # [i, j]: i is better than j
    worst = overlaps.amax(0)[:, None]  # of i itself
    return scores * torch.exp(-sigma * (overlaps**2 - worst**2)).amin(0)


def thing_instances(
    found: Candidates, features: Tensor, canvas: Canvas, categories: Tensor, rules: KernelRules
) -> Instances:
    """Objects of one image at the size of its file, by falling score.

    found: fused kernels (N, D) with classes among things; features float (D, h, w); categories int64 (things,).
    Scores are multiplied by the mean probability inside the mask.
    """
    pixels = features.float()
    certainty, masks = _certainty(found.kernels, pixels, rules.mask, rules.matrix_nms)
    scores = found.scores * certainty
    order = scores.argsort(descending=True, stable=True)
    found, scores = found.some(order), scores[order]
    if masks is not None:
        scores = matrix_nms(masks[order], found.classes, scores)
        order = scores.argsort(descending=True, stable=True)
        found, scores = found.some(order), scores[order]
    count = min(rules.detections, int((scores >= rules.min_score).sum()))
    found, scores = Candidates(*(column[:count] for column in found)), scores[:count]
    full = torch.zeros((count, *canvas.size), dtype=torch.bool, device=features.device)
    for mask, kernel in zip(full, found.kernels, strict=True):  # one at a time: full size is large
        mask.copy_(on_canvas(_probabilities(kernel[None], pixels), canvas)[0] > rules.mask)
    boxes = boxes_of_masks(full)
    seen = boxes[:, 2] > boxes[:, 0]
    return Instances(boxes[seen], categories[found.classes[seen]], scores[seen], full[seen])


def _certainty(kernels: Tensor, pixels: Tensor, threshold: float, wants_masks: bool) -> tuple[Tensor, Tensor | None]:
    """The mean probability inside each mask, and the masks bool (N, h, w) where they are wanted."""
    certainty, masks = kernels.new_zeros(len(kernels)), list[Tensor]()
    for first in range(0, len(kernels), MASKS_AT_ONCE):
        some = slice(first, first + MASKS_AT_ONCE)
        said = _probabilities(kernels[some], pixels)
        inside = said > threshold
        certainty[some] = (said * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        if wants_masks:
            masks.append(inside)
    if not wants_masks:
        return certainty, None
    return certainty, torch.cat(masks) if masks else certainty.new_zeros((0, *pixels.shape[1:]), dtype=torch.bool)


def _probabilities(kernels: Tensor, features: Tensor) -> Tensor:
    """(N, D), (D, h, w) → (N, h, w)."""
    return torch.einsum("nd,dhw->nhw", kernels, features).sigmoid()


def stuff_map(found: Candidates, features: Tensor, canvas: Canvas, category_of_class: Sequence[int]) -> Tensor:
    """int64 (H, W) at the size of the file: the category of the class of the highest probability at each pixel.

    found: fused kernels, by rising class; features float (D, h, w). Of equal classes the first wins; IGNORE where no
    class was found, and where category_of_class says so.
    """
    best = torch.zeros(canvas.size, device=features.device)
    winner = torch.full(canvas.size, IGNORE, dtype=torch.int64, device=features.device)
    for kernel, number in zip(found.kernels, found.classes.tolist(), strict=True):
        said = on_canvas(_probabilities(kernel[None], features.float()), canvas)[0]
        wins = said > best
        best = torch.where(wins, said, best)
        winner.masked_fill_(wins, category_of_class[number])
    return winner
