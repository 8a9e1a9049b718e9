"""The `decode` that MaskFormer, Mask2Former and EoMT share: from class logits and masks to predictions.

Masks are computed only for the queries that a rule asks for.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pansight.errors import choice_error
from pansight.ops.fusion.queries import (
    Canvas,
    fuse_masks,
    keep_queries,
    query_instances,
    semantic_map,
    semantic_scores,
)
from pansight.types import LabelSpace, Prediction

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
