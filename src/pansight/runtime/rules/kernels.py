"""Panoptic FCN: candidates become kernels of one segment each, whose products with the features are its mask.

The rules are those of ops/fusion/kernels.py of pansight, which names their sources.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..values import IGNORE, Array, Canvas, Instances, Outputs, Prediction, Rule
from .instances import merged
from .maps import boxes_of_masks, falling, on_canvas, sigmoid

QUARTER = 4
"""Pixels of the network to a place of the features."""


class Candidates(NamedTuple):
    """N kernels: vectors float32 (N, D), classes int64 (N,), scores float32 (N,)."""

    kernels: Array
    classes: Array
    scores: Array

    def some(self, index: Array) -> Candidates:
        """The candidates of these numbers, or where a bool array is true."""
        return Candidates(*(column[index] for column in self))


def panoptic_fcn(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Objects over stuff."""
    features = outputs["features"][0].astype(np.float32, copy=False)
    height, width = (QUARTER * side for side in features.shape[1:])
    top, left = outputs["extents"][0].tolist()
    canvas = Canvas((height, width), (top, left), size)
    names = ("thing_kernels", "thing_classes", "thing_scores")
    things = Candidates(*(outputs[name][0] for name in names))
    things = _fused_things(things.some(things.scores > np.float32(rule.number("rules.thing"))), rule)
    kernels, scores = outputs["stuff_kernels"][0], outputs["stuff_scores"][0]
    classes = np.tile(np.arange(scores.shape[1]), len(scores))  # of each level and class
    stuff = Candidates(kernels.reshape(-1, kernels.shape[-1]), classes, scores.reshape(-1))
    stuff = _fused_stuff(stuff.some(stuff.scores > np.float32(rule.number("rules.stuff"))))
    found = _objects(things, features, canvas, rule)
    merge = {"score_threshold": "score", "max_overlap": "overlap", "min_stuff_area": "min_stuff_area"}
    numbers = {name: rule.number(f"rules.{key}") for name, key in merge.items()}
    return Prediction(
        merged(found, _stuff_map(stuff, features, canvas, rule), rule._replace(options=numbers)), None, found
    )


def _fused_things(found: Candidates, rule: Rule) -> Candidates:
    """A kernel survives if no better one is similar to it, as the mean of those whose first similar one it is."""
    found = found.some(falling(found.scores))
    count, similarity = len(found.scores), rule.number("rules.similarity")
    if not count or similarity >= 1:
        return found
    lengths = np.linalg.norm(found.kernels, axis=1, keepdims=True)
    directions = found.kernels / np.maximum(lengths, np.float32(1e-8))
    similar = directions @ directions.T >= np.float32(similarity)
    if rule.number("rules.class_aware"):
        similar &= found.classes[:, None] == found.classes
    similar = np.triu(similar, 1)
    np.fill_diagonal(similar, True)  # also of a zero vector, which has no direction
    first = similar.argmax(0)  # the best kernel that each one is similar to
    sums = np.zeros_like(found.kernels)
    np.add.at(sums, first, found.kernels)
    survivors = np.flatnonzero(first == np.arange(count))
    members = np.bincount(first, minlength=count)[survivors]
    return found.some(survivors)._replace(kernels=sums[survivors] / members[:, None].astype(np.float32))


def _fused_stuff(found: Candidates) -> Candidates:
    """One kernel and one score of each class: their means over the levels, by rising class."""
    classes, index, counts = np.unique(found.classes, return_inverse=True, return_counts=True)
    kernels = np.zeros((len(classes), found.kernels.shape[1]), np.float32)
    scores = np.zeros(len(classes), np.float32)
    np.add.at(kernels, index, found.kernels)
    np.add.at(scores, index, found.scores)
    counts = counts.astype(np.float32)
    return Candidates(kernels / counts[:, None], classes, scores / counts)


def _objects(found: Candidates, features: Array, canvas: Canvas, rule: Rule) -> Instances:
    """Objects at the size of the photo, by falling score, which the mean probability inside the mask is part of."""
    threshold = np.float32(rule.number("rules.mask"))
    certainty = np.zeros(len(found.kernels), np.float32)
    masks: list[Array] = []
    for number, kernel in enumerate(found.kernels):  # one at a time: their products are large
        said = _probabilities(kernel, features)
        inside = said > threshold
        certainty[number] = said[inside].sum(dtype=np.float32) / (inside.sum() + np.float32(1e-6))
        masks += [inside] if rule.number("rules.matrix_nms") else []
    scores = found.scores * certainty
    order = falling(scores)
    found, scores = found.some(order), scores[order]
    if masks:
        scores = _matrix_nms(np.stack(masks)[order], found.classes, scores)
        order = falling(scores)
        found, scores = found.some(order), scores[order]
    count = min(rule.number("rules.detections"), int((scores >= np.float32(rule.number("rules.min_score"))).sum()))
    full = np.zeros((count, *canvas.size), np.bool_)
    for mask, kernel in zip(full, found.kernels):
        mask[:] = on_canvas(_probabilities(kernel, features)[None], canvas)[0] > threshold
    boxes = boxes_of_masks(full)
    seen = boxes[:, 2] > boxes[:, 0]
    labels = np.array(rule.things, np.int64)[found.classes[:count]]
    return Instances(boxes[seen], labels[seen], scores[:count][seen], full[seen])


def _matrix_nms(masks: Array, classes: Array, scores: Array, sigma: float = 2.0) -> Array:
    """SOLOv2's: scores lowered by the overlap with better objects of the class; masks bool (N, h, w), best first."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    shared, area = flat @ flat.T, flat.sum(1)
    overlaps = shared / np.maximum(area[:, None] + area - shared, np.float32(1))
    overlaps = np.triu(overlaps * (classes[:, None] == classes), 1).astype(np.float32)  # [i, j]: i is better than j
    worst = overlaps.max(0)[:, None]  # of i itself
    return scores * np.exp(np.float32(-sigma) * (overlaps**2 - worst**2)).min(0)


def _stuff_map(found: Candidates, features: Array, canvas: Canvas, rule: Rule) -> Array:
    """int64 (H, W): the class of stuff that is likeliest at each pixel of the photo, the first of equal ones."""
    best, winner = np.zeros(canvas.size, np.float32), np.full(canvas.size, IGNORE, np.int64)
    for kernel, number in zip(found.kernels, found.classes.tolist()):
        said = on_canvas(_probabilities(kernel, features)[None], canvas)[0]
        wins = said > best
        np.copyto(best, said, where=wins)
        winner[wins] = rule.number("category_of_class")[number]
    return winner


def _probabilities(kernel: Array, features: Array) -> Array:
    """(D,), (D, h, w) → (h, w)."""
    return sigmoid(np.tensordot(kernel.astype(np.float32, copy=False), features, 1))
