"""Learned queries: MaskFormer, Mask2Former and EoMT, which compete with probabilities, and DETR, with logits.

The rules are those of ops/fusion/queries.py of pansight, which names their sources.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..resizing import axis_of, mixed
from ..values import Array, Canvas, Instances, Outputs, Panoptic, Prediction, Rule, Segment
from .maps import bands, boxes_of_masks, falling, largest, numbered, on_canvas, sigmoid, softmax, void
from .semantic import canvas_of


class Kept(NamedTuple):
    """The queries that take part in a panoptic map: their indices, scores float32 and categories, (K,) each."""

    queries: Array
    scores: Array
    categories: Array


class Contest(NamedTuple):
    """winner int64, inside bool (H, W): the query that wins a pixel, and whether it lies in the winner's own mask.

    won, within, mask: int64 (K,), pixels that a query won, those of them in its mask, and all of its mask.
    """

    winner: Array
    inside: Array
    won: Array
    within: Array
    mask: Array


def masks_of_queries(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """MaskFormer, Mask2Former and EoMT. task: "panoptic" (None), "instance", "semantic" or "all"."""
    task = task or "panoptic"
    canvas, classes, masks = canvas_of(outputs, size), outputs["class_logits"][0], outputs["mask_logits"][0]
    panoptic = semantic = instances = None
    if task in ("panoptic", "all"):
        kept = keep_queries(classes, rule.number("rules.score"))
        panoptic = _merged(masks[kept.queries], kept, canvas, rule)
    if task in ("semantic", "all"):
        semantic = semantic_map(classes, masks, canvas)
    if task in ("instance", "all"):
        instances = _instances(classes, masks, canvas, rule)
    return Prediction(panoptic, semantic, instances)


def detr(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """DETR: boxes alone where the graph gives no masks, else by task, as `masks_of_queries`."""
    canvas, classes, threshold = canvas_of(outputs, size), outputs["class_logits"][0], rule.number("score_threshold")
    if "mask_logits" not in outputs:
        return Prediction(instances=_boxes(outputs, size, threshold, rule)[0])
    task, masks = task or "panoptic", outputs["mask_logits"][0]
    panoptic = semantic = instances = None
    if task in ("panoptic", "all"):
        kept = keep_queries(classes, threshold)
        panoptic = _by_logits(masks[kept.queries], kept, canvas, rule)
    if task in ("semantic", "all"):
        semantic = semantic_map(classes, masks, canvas)
    if task in ("instance", "all"):
        found, queries = _boxes(outputs, size, 0.0, rule)
        binary = _binary_masks(masks[queries], canvas, rule.number("mask_threshold"))
        instances = Instances(found.boxes_xyxy, found.labels, found.scores, binary)
    return Prediction(panoptic, semantic, instances)


def keep_queries(class_logits: Array, threshold: float) -> Kept:
    """Queries whose most probable class is one, no object being last, and likelier than the threshold."""
    probabilities = softmax(class_logits)
    scores, categories = probabilities.max(-1), probabilities.argmax(-1)
    queries = np.flatnonzero((categories != class_logits.shape[-1] - 1) & (scores > np.float32(threshold)))
    return Kept(queries, scores[queries], categories[queries])


def contest(mask_logits: Array, scores: Array | None, canvas: Canvas, threshold: float) -> Contest:
    """Which query has the largest value at each pixel: its logit, or with scores its probability times its score."""
    count = len(mask_logits)
    winner, inside = np.zeros(canvas.size, np.int64), np.zeros(canvas.size, np.bool_)
    mask, limit = np.zeros(count, np.int64), np.float32(threshold)
    for start, stop, values in bands(mask_logits.astype(np.float32, copy=False), canvas) if count else ():
        if scores is not None:
            values = sigmoid(values)
            above = values >= limit
            mask += above.sum((1, 2))
            best = largest(values * scores[:, None, None])[1]
            inside[start:stop] = np.take_along_axis(above, best[None], 0)[0]
        else:
            best = largest(values)[1]
        winner[start:stop] = best
    won = np.bincount(winner.reshape(-1), minlength=count)
    return Contest(winner, inside, won, np.bincount(winner[inside], minlength=count), mask)


def _merged(mask_logits: Array, kept: Kept, canvas: Canvas, rule: Rule) -> Panoptic:
    """`fuse_masks`: queries are accepted in their order where they win enough of their own mask."""
    if not len(kept.queries):
        return void(canvas.size)
    cut = rule.number("rules.cut")
    found = contest(mask_logits, kept.scores, canvas, rule.number("rules.mask"))
    ids = np.zeros(len(kept.queries), np.int32)
    segments: list[Segment] = []
    stuff: dict[int, int] = {}
    pixels = zip(found.won.tolist(), found.within.tolist(), found.mask.tolist())
    for k, (won, within, mask) in enumerate(pixels):
        if won == 0 or mask == 0 or (cut and within == 0) or won / mask < rule.number("rules.overlap"):
            continue
        category = int(kept.categories[k])
        if category in stuff:
            ids[k] = stuff[category]
            continue
        ids[k] = numbered(segments, category, float(kept.scores[k]))
        if not rule.labels[category].is_thing:
            stuff[category] = int(ids[k])
    painted = ids[found.winner]
    return Panoptic(np.where(found.inside, painted, 0).astype(np.int32) if cut else painted, tuple(segments))


def _by_logits(mask_logits: Array, kept: Kept, canvas: Canvas, rule: Rule) -> Panoptic:
    """`fuse_detr`: segments of at most 4 pixels are taken out and contested anew, until none is left."""
    categories: list[int] = kept.categories.tolist()
    first = [k if rule.labels[c].is_thing else categories.index(c) for k, c in enumerate(categories)]
    alive = list(range(len(categories)))
    while alive:
        found = contest(mask_logits[alive], None, canvas._replace(size=canvas.extent), -math.inf)
        winner = _as_pil(found.winner, canvas.size)
        pixels = np.bincount(winner.reshape(-1), minlength=len(alive))
        if len(alive) == len(categories):
            pixels = np.bincount(first, weights=pixels, minlength=len(alive))
        large = [k for k, area in zip(alive, pixels.tolist()) if area > 4]
        if large == alive:
            segments = [Segment(n, categories[k], float(kept.scores[k])) for n, k in enumerate(alive, start=1)]
            return Panoptic((winner + 1).astype(np.int32), tuple(segments))
        alive = large
    return void(canvas.size)


def _as_pil(numbers: Array, size: tuple[int, int]) -> Array:
    """A map at `size` by PIL's NEAREST, which adds its step again and again."""
    axes: list[Array] = []
    for source, target in zip(numbers.shape, size):
        places = np.full(target, source / target)
        places[0] = 0.5 * (source / target)
        same = source == target
        axes.append(np.arange(target) if same else np.minimum(np.cumsum(places).astype(np.int64), source - 1))
    return numbers if numbers.shape == tuple(size) else numbers[axes[0][:, None], axes[1]]


def semantic_map(class_logits: Array, mask_logits: Array, canvas: Canvas) -> Array:
    """The class of the largest Σ_q softmax(class)·sigmoid(mask) at each pixel: int64 (H, W)."""
    weights = np.ascontiguousarray(softmax(class_logits)[:, :-1].T)  # (C, Q)
    result = np.empty(canvas.size, np.int64)
    for start, stop, values in bands(mask_logits.astype(np.float32, copy=False), canvas):
        scores = weights @ sigmoid(values).reshape(len(values), -1)  # (C, R · W)
        result[start:stop] = largest(scores.reshape(len(scores), stop - start, -1))[1]
    return result


def _instances(class_logits: Array, mask_logits: Array, canvas: Canvas, rule: Rule) -> Instances:
    """The `rules.top` best pairs of query and class, things alone, masks where the logit is positive."""
    classes = class_logits.shape[-1] - 1
    scores = softmax(class_logits)[:, :-1].reshape(-1)  # (Q · C,)
    index = falling(scores)[: rule.number("rules.top")]
    index = index[np.isin(index % classes, rule.things)]
    queries, place = np.unique(index // classes, return_inverse=True)
    masks, certainty = np.zeros((len(queries), *canvas.size), np.bool_), np.zeros(len(queries), np.float32)
    for n, query in enumerate(queries.tolist()):
        logits = on_canvas(mask_logits[query : query + 1], canvas)[0]
        masks[n] = logits > 0
        certainty[n] = sigmoid(logits[masks[n]]).sum(dtype=np.float64) / (masks[n].sum() + 1e-6)
    boxes, scores = boxes_of_masks(masks), scores[index] * certainty[place]
    order = falling(scores)
    order = order[boxes[place[order], 2] > 0]
    place = place[order]
    return Instances(boxes[place], index[order] % classes, scores[order], masks[place])


def _boxes(outputs: Outputs, size: tuple[int, int], threshold: float, rule: Rule) -> tuple[Instances, Array]:
    """Each query as an object of its most probable thing, by falling score, and its index, int64 (N,)."""
    probabilities = softmax(outputs["class_logits"][0])[:, :-1]
    is_thing = np.array([label.is_thing for label in rule.labels])
    probabilities = np.where(is_thing, probabilities, np.float32(0))
    scores, best = probabilities.max(1), probabilities.argmax(1)
    centre, half = outputs["boxes_cxcywh"][0, :, :2], outputs["boxes_cxcywh"][0, :, 2:] * np.float32(0.5)
    side = np.array([size[1], size[0]] * 2, np.float32)
    boxes = np.concatenate((centre - half, centre + half), axis=1).clip(0, 1) * side
    usable = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores >= np.float32(threshold)) & is_thing[best]
    queries = falling(scores)
    queries = queries[usable[queries]]
    return Instances(boxes[queries], best[queries], scores[queries]), queries


def _binary_masks(logits: Array, canvas: Canvas, threshold: float) -> Array:
    """DETR's masks: bilinear to the canvas, σ > threshold, cut, the nearest pixel of the file: bool (N, H, W)."""
    share = np.float32(threshold)
    level = np.log(share / (1 - share))
    rows, columns = (_nearest(seen, side) for seen, side in zip(canvas.extent, canvas.size))
    masks = np.empty((len(logits), *canvas.size), np.bool_)
    down, across = axis_of(logits.shape[1], canvas.padded[0]), axis_of(logits.shape[2], canvas.padded[1])
    for mask, each in zip(masks, logits):
        full = mixed(mixed(each, across, False), down, True) > level
        mask[:] = full[: canvas.extent[0], : canvas.extent[1]][rows[:, None], columns]
    return masks


def _nearest(source: int, target: int) -> Array:
    """The source place of each target place by torch's nearest neighbour."""
    step = np.float32(source) / np.float32(target)
    return np.minimum((np.arange(target, dtype=np.float32) * step).astype(np.int64), source - 1)
