"""The panoptic maps that transformers' image processors would make of what our models say, for comparison.

Our models decode by the rules of their official repositories, from which transformers' differ (``fuse_hf``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from pansight.ops.fusion.queries import Canvas, fuse_hf, keep_queries
from pansight.types import PanopticSegmentation


class Rule(NamedTuple):
    """How the processor of one system differs from those of the others."""

    logits_size: tuple[int, int] | None = None
    """All mask logits are brought to this size before anything else, whatever the image."""
    eomt: bool = False
    """Of every block's prediction the last one counts, padding is cut off, and pixels outside of masks stay void."""


RULES = {
    "detr": Rule(),
    "maskformer": Rule(),
    "mask2former": Rule(logits_size=(384, 384)),
    "eomt": Rule(eomt=True),
}
"""By the architecture of a model's entry; all but EoMT's know nothing of padding."""


@torch.no_grad()
def decode_like_transformers(
    architecture: str,
    model: Any,
    outputs: Any,
    sizes: Sequence[tuple[int, int]],
    score_threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap: float = 0.8,
) -> list[PanopticSegmentation]:
    """``post_process_panoptic_segmentation`` of transformers, its defaults included.

    architecture: a key of `RULES`. outputs: of the model's forward. sizes: (H, W) of the maps, one an image. A query
    counts where its class is likelier than score_threshold, and stays where it wins more than `overlap` of its mask.
    """
    rule = RULES[architecture]
    class_logits = outputs.class_logits[-1] if rule.eomt else outputs.class_logits  # (B, Q, C + 1)
    maps: list[PanopticSegmentation] = []
    for image, size in enumerate(sizes):
        kept = keep_queries(class_logits[image], score_threshold)
        masks = model.mask_logits(outputs, image, kept.queries)  # (K, h, w)
        canvas: tuple[int, int] | Canvas = size
        if rule.eomt:
            height, width = outputs.extents[image].tolist()
            padded = (masks.shape[1] * model.stride, masks.shape[2] * model.stride)
            canvas = Canvas(padded, (height, width), size)
        found = fuse_hf(masks, kept, canvas, model.labels, overlap, mask_threshold, rule.eomt, rule.logits_size)
        maps.append(found)
    return maps
