"""From queries (a class distribution and a mask each) to a panoptic map, by the rules of each official repository.

Rules: spec 11 (DETR), 12 (MaskFormer), 13 (Mask2Former), 14 (EoMT), 17.4 (transformers). Only kept queries are looked
at, and only cells near a border get the argmax at full size: the result is that of the plain rule.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pansight.types import Instances, LabelSpace, PanopticSegmentation


class Kept(NamedTuple):
    """K queries of one image that say something, in query order."""

    queries: Tensor  # int64 (K,), index among the Q
    scores: Tensor  # float32 (K,)
    categories: Tensor  # int64 (K,), indices into the LabelSpace


class Canvas(NamedTuple):
    """How mask logits reach the size of the file: bilinear to `padded`, cut to `extent`, bilinear to `size`; (H, W)."""

    padded: tuple[int, int]
    extent: tuple[int, int]
    size: tuple[int, int]


def keep_queries(class_logits: Tensor, threshold: float) -> Kept:
    """Queries whose most probable class (softmax over all, no-object last) is a class, and likelier than `threshold`.

    class_logits (Q, C + 1).
    """
    raise NotImplementedError


def fuse_detr(mask_logits: Tensor, kept: Kept, canvas: Canvas, labels: LabelSpace) -> PanopticSegmentation:
    """DETR's PostProcessPanoptic (spec 11): mask_logits float (K, h, w) of the kept queries.

    Every pixel goes to the query of the highest logit; stuff of one class is one segment; segments of at most 4 pixels
    are taken out and their pixels given to the others, until none is left.
    """
    raise NotImplementedError


def fuse_masks(
    mask_logits: Tensor,
    kept: Kept,
    canvas: Canvas,
    labels: LabelSpace,
    overlap: float = 0.8,
    mask_threshold: float = 0.5,
    cut: bool = True,
) -> PanopticSegmentation:
    """MaskFormer's (cut=False), Mask2Former's and EoMT's (cut=True) panoptic inference (spec 12, 13).

    mask_logits float (K, h, w). cut: only pixels where the mask itself is at least `mask_threshold` are written.
    """
    raise NotImplementedError


def fuse_hf(
    mask_logits: Tensor,
    kept: Kept,
    size: tuple[int, int] | None,
    labels: LabelSpace,
    overlap: float = 0.8,
    mask_threshold: float = 0.5,
    eomt: bool = False,
) -> PanopticSegmentation:
    """The rules of transformers' ``post_process_panoptic_segmentation`` (spec 17.4), for comparison.

    mask_logits float (K, h, w); size None keeps (h, w). eomt: the variant of its EoMT processor. Ids are ours (from 1,
    0 = void, one segment a row), whatever transformers calls them; stuff categories are the ones fused.
    """
    raise NotImplementedError


def semantic_map(class_logits: Tensor, mask_logits: Tensor, canvas: Canvas) -> Tensor:
    """argmax over classes of Σ_q softmax(class)·sigmoid(mask): (Q, C + 1), (Q, h, w) → int64 (H, W), no void."""
    raise NotImplementedError


def query_instances(
    class_logits: Tensor, mask_logits: Tensor, canvas: Canvas, labels: LabelSpace, top: int = 100
) -> Instances:
    """Mask2Former's instance inference: the `top` of all Q × C scores, things only, masks where the logit is positive,

    scored by class probability times the mean probability inside the mask. boxes_xyxy are the masks' own.
    """
    raise NotImplementedError
