"""From queries (a class distribution and a mask each) to a panoptic map, by the rule of each official repository.

Each rule names its source, and docs/systems/ explains it. Only kept queries are looked at; which of them has a pixel
is decided by `contest`.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import choice_error
from pansight.ops.fast import use_plain
from pansight.ops.fast.memory import canvas_rows
from pansight.ops.fusion.contest import Canvas, contest, nearest_source, on_canvas, painted
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

__all__ = [
    "Canvas",
    "Kept",
    "binary_masks",
    "fuse_detr",
    "fuse_hf",
    "fuse_masks",
    "keep_queries",
    "query_instances",
    "semantic_map",
    "semantic_scores",
]

FLOATS_AT_ONCE = 1 << 23
"""A semantic map is computed in bands of rows, with at most this many numbers of masks and class maps at a time."""


class Kept(NamedTuple):
    """The K queries of one image that take part in its panoptic map, in query order."""

    queries: Tensor  # int64 (K,), index among the Q
    scores: Tensor  # float32 (K,)
    categories: Tensor  # int64 (K,), indices into the LabelSpace


def keep_queries(class_logits: Tensor, threshold: float) -> Kept:
    """Queries whose most probable class (softmax over all, no-object last) is a class, and likelier than `threshold`.

    class_logits (Q, C + 1).
    """
    scores, categories = class_logits.float().softmax(-1).max(-1)  # (Q,)
    queries = ((categories != class_logits.shape[-1] - 1) & (scores > threshold)).nonzero().flatten()  # (K,)
    return Kept(queries, scores[queries], categories[queries])


def fuse_detr(mask_logits: Tensor, kept: Kept, canvas: Canvas, labels: LabelSpace) -> PanopticSegmentation:
    """DETR's ``PostProcessPanoptic`` (facebookresearch/detr, models/segmentation.py).

    mask_logits float (K, h, w) of the kept queries.

    Every pixel goes to the query of the highest logit; stuff of one class is one segment; segments of at most 4 pixels
    are taken out and their pixels given to the others, until none is left.
    The contest is held at the size that the network saw: logits go bilinearly to `padded` and are cut to `extent`.
    Its result goes to `size` as PIL's NEAREST does it, and pixels are counted there.
    The official loop merges stuff in its first round only. There a later query of a class has no pixel of its own, so
    it is taken out as too small, and in the next round its pixels are contested anew: the first query of each stuff
    class stays. Nothing kept, or nothing left: all void.
    """
    categories: list[int] = kept.categories.tolist()
    first = [k if labels[c].is_thing else categories.index(c) for k, c in enumerate(categories)]
    alive = list(range(len(categories)))
    seen = canvas._replace(size=canvas.extent)
    while alive:
        chosen = torch.tensor(alive, device=mask_logits.device)
        found = contest(mask_logits[chosen], kept.scores[chosen], seen, "never", -math.inf)
        code = _nearest(found.code, canvas.size)
        # the contest has counted its own pixels, which are those of the file where nothing is resized
        won = found.won if code is found.code else torch.bincount(code.flatten() >> 1, minlength=len(alive))
        pixels = won.tolist()
        if len(alive) == len(categories):
            pixels = np.bincount(first, weights=pixels).tolist()
        large = [k for k, area in zip(alive, pixels, strict=False) if area > 4]
        if large == alive:
            rows = [Segment(n, categories[k], float(kept.scores[k])) for n, k in enumerate(alive, start=1)]
            return _painted(code, [(row.id, row.id) for row in rows], rows)
        alive = large
    return _void(canvas.size, mask_logits.device)


def _nearest(code: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(code.shape) == tuple(size):
        return code
    rows, columns = (nearest_source(a, b).to(code.device) for a, b in zip(code.shape, size, strict=True))
    return code[rows][:, columns]


def fuse_masks(
    mask_logits: Tensor,
    kept: Kept,
    canvas: Canvas,
    labels: LabelSpace,
    overlap: float = 0.8,
    mask_threshold: float = 0.5,
    cut: bool = True,
) -> PanopticSegmentation:
    """``panoptic_inference`` of MaskFormer (cut=False) and of Mask2Former (cut=True), which EoMT shares.

    Source: mask_former_model.py and maskformer_model.py of the two repositories.

    mask_logits float (K, h, w). cut: only pixels where the mask itself is at least `mask_threshold` are written.
    Queries are accepted in their order. A stuff class has the score of its first accepted query.
    """
    found = contest(mask_logits, kept.scores, canvas, "last", mask_threshold)
    numbers = [0] * len(kept.queries)
    rows: list[Segment] = []
    stuff: dict[int, int] = {}  # category → id
    pixels = zip(found.won.tolist(), found.inside.tolist(), found.mask.tolist(), strict=True)
    for k, (won, inside, mask) in enumerate(pixels):
        if won == 0 or mask == 0 or (cut and inside == 0) or won / mask < overlap:
            continue
        category = int(kept.categories[k])
        if category in stuff:
            numbers[k] = stuff[category]
            continue
        rows.append(Segment(len(rows) + 1, category, float(kept.scores[k])))
        numbers[k] = rows[-1].id
        if not labels[category].is_thing:
            stuff[category] = rows[-1].id
    return _painted(found.code, [(0 if cut else number, number) for number in numbers], rows)


def fuse_hf(
    mask_logits: Tensor,
    kept: Kept,
    size: tuple[int, int] | Canvas | None,
    labels: LabelSpace,
    overlap: float = 0.8,
    mask_threshold: float = 0.5,
    eomt: bool = False,
    logits_size: tuple[int, int] | None = None,
) -> PanopticSegmentation:
    """The rules of transformers' ``post_process_panoptic_segmentation``, for comparison.

    mask_logits float (K, h, w). The probabilities are resized to `size`; None keeps (h, w). logits_size: the logits are
    resized there before, (384, 384) in its Mask2Former. eomt: the variant of its EoMT processor, where `size` may be
    the Canvas on which the logits are resized, cut and resized again. Stuff categories are the ones fused.

    The map is exactly theirs, 0 = void (their EoMT counts from −1; here all is 1 more). That includes their collision
    of ids: after a second query of a stuff class they go on counting from the id of that class, so the next segment
    may share its id with an earlier one of another class. Their table then has two rows of one id; ours has the later
    row alone, the one that a dictionary by id (as panopticapi builds) keeps. So has a stuff class of several queries.
    """
    if isinstance(size, Canvas):
        canvas = size
    else:
        between = logits_size or (mask_logits.shape[1], mask_logits.shape[2])
        canvas = Canvas(between, between, size or between)
    found = contest(mask_logits, kept.scores, canvas, "last" if eomt else "between", mask_threshold, not eomt)
    numbers = [0] * len(kept.queries)
    rows: dict[int, Segment] = {}
    stuff: dict[int, int] = {}  # category → id
    current = 0
    for k, category in enumerate(kept.categories.tolist()):
        if found.won[k] == 0 or found.mask[k] == 0 or (eomt and found.inside[k] == 0):
            continue
        if not float(found.won[k] / found.mask[k]) > overlap:  # the ratio is of float32: 4 / 5 is more than 0.8
            continue
        if category in stuff:
            numbers[k] = stuff[category]
            if eomt:
                continue
            current = numbers[k]
        else:
            current += 1
            numbers[k] = current
        rows[numbers[k]] = Segment(numbers[k], category, float(kept.scores[k]))
        if not labels[category].is_thing:
            stuff[category] = numbers[k]
    return _painted(found.code, [(0 if eomt else number, number) for number in numbers], list(rows.values()))


def _painted(code: Tensor, numbers: list[tuple[int, int]], rows: list[Segment]) -> PanopticSegmentation:
    """numbers[k]: the id of pixels that query k won (outside its own mask, inside it)."""
    if not numbers:
        return _void((code.shape[0], code.shape[1]), code.device)
    table = torch.tensor(numbers, dtype=torch.int32, device=code.device).flatten()  # (2 K,)
    return PanopticSegmentation(painted(code, table), tuple(rows))


def _void(size: tuple[int, int], device: torch.device) -> PanopticSegmentation:
    return PanopticSegmentation(torch.zeros(size, dtype=torch.int32, device=device), ())


def semantic_map(class_logits: Tensor, mask_logits: Tensor, canvas: Canvas) -> Tensor:
    """The class of the highest of `semantic_scores` at each pixel: int64 (H, W), no void."""
    result = torch.empty(canvas.size, dtype=torch.int64, device=class_logits.device)
    for rows, scores in _bands(class_logits, mask_logits, canvas):
        result[rows.start : rows.stop] = scores.max(0).indices
    return result


def semantic_scores(class_logits: Tensor, mask_logits: Tensor, canvas: Canvas) -> Tensor:
    """Σ_q softmax(class)·sigmoid(mask), MaskFormer's semantic inference: (Q, C + 1), (Q, h, w) → float32 (C, H, W)."""
    shape = (class_logits.shape[1] - 1, *canvas.size)
    result = torch.empty(shape, dtype=torch.float32, device=class_logits.device)
    for rows, scores in _bands(class_logits, mask_logits, canvas):
        result[:, rows.start : rows.stop] = scores
    return result


def _bands(class_logits: Tensor, mask_logits: Tensor, canvas: Canvas) -> Iterator[tuple[range, Tensor]]:
    """(rows, their semantic scores (C, R, W)), band after band."""
    weights = class_logits.float().softmax(-1)[:, :-1].T  # (C, Q)
    height, width = canvas.size
    with torch.autocast(weights.device.type, enabled=False):
        if use_plain():
            masks = on_canvas(mask_logits, canvas).sigmoid()  # (Q, H, W)
            yield range(height), torch.einsum("cq,qhw->chw", weights, masks)
            return
    step = max(1, FLOATS_AT_ONCE // ((weights.shape[0] + weights.shape[1]) * width))
    for start in range(0, height, step):
        rows = range(start, min(start + step, height))
        with torch.autocast(weights.device.type, enabled=False):
            masks = canvas_rows(mask_logits, canvas, rows).sigmoid().flatten(1)  # (Q, R · W)
            yield rows, (weights @ masks).unflatten(1, (-1, width))


def query_instances(
    class_logits: Tensor, mask_logits: Tensor, canvas: Canvas, labels: LabelSpace, top: int = 100
) -> Instances:
    """Mask2Former's instance inference: the `top` of all Q × C scores, things only, masks where the logit is positive,

    scored by class probability times the mean probability inside the mask. boxes_xyxy are the masks' own; a query whose
    mask is empty says nothing.
    """
    classes = class_logits.shape[-1] - 1
    scores = class_logits.float().softmax(-1)[:, :-1].flatten()  # (Q · C,)
    scores, index = scores.topk(min(top, len(scores)), sorted=False)
    things = torch.tensor([c.is_thing for c in labels], dtype=torch.bool, device=scores.device)[index % classes]
    scores, index = scores[things], index[things]
    queries, place = (index // classes).unique(return_inverse=True)  # (U,) ascending, (N,)
    masks = torch.zeros((len(queries), *canvas.size), dtype=torch.bool, device=scores.device)
    certainty = torch.zeros(len(queries), device=scores.device)
    for n, query in enumerate(queries.tolist()):
        logits = on_canvas(mask_logits[query : query + 1], canvas)[0]  # (H, W), one at a time: full size is large
        masks[n] = logits > 0
        certainty[n] = (logits.sigmoid() * masks[n]).sum() / (masks[n].sum() + 1e-6)
    boxes = boxes_of_masks(masks)
    scores = scores * certainty[place]
    order = scores.argsort(descending=True, stable=True)
    order = order[boxes[place[order], 2] > 0]
    place = place[order]
    return Instances(boxes[place], (index % classes)[order], scores[order], masks[place])


def binary_masks(logits: Tensor, canvas: Canvas, threshold: float) -> Tensor:
    """DETR's PostProcessSegm: bilinear to the canvas, σ > threshold, cut, nearest to the file: bool (N, H, W)."""
    height, width = canvas.extent
    level = torch.tensor(threshold).logit().item()
    masks = torch.empty((len(logits), *canvas.size), dtype=torch.bool, device=logits.device)
    for mask, logit in zip(masks, logits, strict=True):
        full = F.interpolate(logit[None, None], canvas.padded, mode="bilinear", align_corners=False)
        inside = (full[:, :, :height, :width] > level).byte()
        mask.copy_(F.interpolate(inside, canvas.size)[0, 0])
    return masks


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes at pixel edges: bool (N, H, W) → xyxy float32 (N, 4), 0 where a mask is empty."""
    bounds: list[Tensor] = []
    for seen in (masks.view(torch.uint8).amax(1), masks.view(torch.uint8).amax(2)):  # (N, W), (N, H)
        after = torch.arange(1, seen.shape[1] + 1, device=masks.device)
        high = (seen * after).amax(1)
        low = seen.shape[1] - (seen * after.flip(0)).amax(1)
        bounds += [torch.where(high > 0, low, 0), high]
    x1, x2, y1, y2 = bounds
    return torch.stack((x1, y1, x2, y2), dim=1).float()


# --- what MaskFormer, Mask2Former and EoMT share: from class logits and masks on demand to predictions ---------------

TASKS = ("panoptic", "instance", "semantic", "all")


class QueryRules(NamedTuple):
    """Thresholds of a model's decode; the defaults are those of MaskFormer, Mask2Former and EoMT as published."""

    score: float = 0.8
    """A query takes part in the panoptic map if the probability of its class is above this."""
    mask: float = 0.5
    """A pixel is inside a mask if its probability is at least this."""
    overlap: float = 0.8
    """A query must win at least this share of its own mask."""
    cut: bool = True
    """Only pixels inside the mask are written; in MaskFormer all pixels that a query won."""
    top: int = 100
    """The number of pairs of query and class that the instance task keeps."""

    def replaced(self, score: float | None, mask: float | None, overlap: float | None) -> QueryRules:
        """With the thresholds that are given; None keeps the default."""
        given = {"score": score, "mask": mask, "overlap": overlap}
        return self._replace(**{name: value for name, value in given.items() if value is not None})


def checked_task(task: str | None, default: str = "panoptic", known: Sequence[str] = TASKS) -> str:
    """`task`, or the default for None. Raises PansightError listing the known ones."""
    task = task or default
    if task not in known:
        raise choice_error("task", task, known)
    return task


def decode_queries(
    class_logits: Tensor,
    mask_logits: Callable[[int, Tensor | None], Tensor],
    canvases: Sequence[Canvas],
    labels: LabelSpace,
    rules: QueryRules,
    task: str | None,
) -> list[Prediction]:
    """class_logits (B, Q, C + 1), no object last; mask_logits(image, queries int64 (K,) or None for all) → (K, h, w).

    Masks are asked for of kept queries alone, but for the semantic and the instance task.
    """
    task = checked_task(task)
    predictions: list[Prediction] = []
    for image, canvas in enumerate(canvases):
        classes = class_logits[image].float()
        panoptic = semantic = instances = None
        if task in ("panoptic", "all"):
            kept = keep_queries(classes, rules.score)
            masks = mask_logits(image, kept.queries)
            panoptic = fuse_masks(masks, kept, canvas, labels, rules.overlap, rules.mask, rules.cut)
        if task != "panoptic":
            masks = mask_logits(image, None)
            if task != "instance":
                semantic = semantic_map(classes, masks, canvas)
            if task != "semantic":
                instances = query_instances(classes, masks, canvas, labels, rules.top)
        predictions.append(Prediction(panoptic, semantic, instances))
    return predictions


def query_class_scores(
    class_logits: Tensor, mask_logits: Callable[[int, Tensor | None], Tensor], canvases: Sequence[Canvas]
) -> list[Tensor]:
    """`semantic_scores` of each image, float32 (C, H, W), of what `decode_queries` takes."""
    return [
        semantic_scores(class_logits[image].float(), mask_logits(image, None), canvas)
        for image, canvas in enumerate(canvases)
    ]


def canvases_of(padded: Sequence[int], extents: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Canvas]:
    """One Canvas an image: padded (H, W) of the batch, extents int64 (B, 2), sizes (H, W) of the files."""
    return [
        Canvas((padded[0], padded[1]), (extent[0], extent[1]), (size[0], size[1]))
        for extent, size in zip(extents.tolist(), sizes, strict=True)
    ]
