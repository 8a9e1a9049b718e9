"""What an exported graph gives: the outputs of a model as tensors with names, and back, so that decode starts there.

The tensors are those of the model's outputs, a NamedTuple, by the names of its fields; names of what is nested are
joined by dots (``detections.boxes_xyxy``, ``kernels.0``). Where decode would still need weights, the graph goes on
until it needs none: systems of learned queries give `QueryOutputs`, Panoptic FCN gives `KernelOutputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.errors import PansightError
from pansight.ops.fusion.queries import QueryRules
from pansight.types import IGNORE, LabelSpace


class QueryOutputs(NamedTuple):
    """Learned queries with their masks made: what the graph of DETR, MaskFormer, Mask2Former or EoMT gives."""

    class_logits: Tensor  # (B, Q, C + 1), no object last
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image
    canvas: Tensor  # int64 (2,): (height, width) of the padded images, which the masks cover
    mask_logits: Tensor | None = None  # float32 (B, Q, h, w); None of a DETR for boxes
    boxes_cxcywh: Tensor | None = None  # float32 (B, Q, 4), 0 … 1 of the unpadded image; DETR's alone

    def masks(self, image: int, queries: Tensor | None = None) -> Tensor:
        """float32 (K, h, w) of the given queries (int64 (K,)) of one image; of all where none are given."""
        assert self.mask_logits is not None
        return self.mask_logits[image] if queries is None else self.mask_logits[image, queries]


class KernelOutputs(NamedTuple):
    """Candidates of Panoptic FCN with kernels as wide as the features, best first: what its graph gives."""

    thing_kernels: Tensor  # float32 (B, N, D): of the places of all levels that are most like a centre
    thing_classes: Tensor  # int64 (B, N), index among labels.things
    thing_scores: Tensor  # float32 (B, N), 0 where there are fewer places
    stuff_kernels: Tensor  # float32 (B, L, C, D), of each level and class of stuff
    stuff_scores: Tensor  # float32 (B, L, C), 0 where no place of the level is of the class
    features: Tensor  # float32 (B, D, H/4, W/4)
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class PanopticOutputs(NamedTuple):
    """A panoptic map of what the network saw, padding included: what a graph with the rule inside gives."""

    masks: Tensor  # int64 (B, H, W, 2): the class of each pixel, IGNORE where void, and its segment, 0 where void
    segment_ids: Tensor  # int64 (B, Q): the segment that each query became, 0 where it became none
    scores: Tensor  # float32 (B, Q): of these segments, 0 where there is none


@runtime_checkable
class HasLastSteps(Protocol):
    """A model whose decode needs its weights, or makes masks as products, which a graph does for it."""

    def last_steps(self, outputs: Any) -> Any:
        """The outputs of `forward`, so far that no weights are needed. Its decode takes them as it takes those."""
        ...


def finished(model: Any, outputs: Any) -> Any:
    """What a graph gives where the model gives `outputs`."""
    return model.last_steps(outputs) if isinstance(model, HasLastSteps) else outputs


def flatten(outputs: Any) -> dict[str, Tensor]:
    """The tensors of a NamedTuple by their names; what is None, or no tensor, has no place in it.

    >>> sorted(flatten(MaskRCNNOutputs(detections, extents)))[:2]
    ['detections.boxes_xyxy', 'detections.image_index']
    """
    return dict(_leaves(outputs, ""))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    for key, each in _parts(value):
        yield from _leaves(each, f"{name}.{key}" if name else key)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of what a NamedTuple, tuple or list holds."""
    if isinstance(value, tuple | list):
        names: Sequence[str] = getattr(value, "_fields", ()) or [str(index) for index in range(len(value))]  # pyright: ignore[reportUnknownArgumentType]
        yield from zip(names, value, strict=True)  # pyright: ignore[reportUnknownArgumentType]


def unflatten(tensors: Mapping[str, Tensor], like: Any) -> Any:
    """The outputs of the shape of `like` with these tensors: the inverse of `flatten`.

    like: outputs of the same model for any images. What is no tensor is taken from there.
    Raises PansightError where a tensor of `like` is missing.
    """
    return _rebuilt(tensors, like, "")


def _rebuilt(tensors: Mapping[str, Tensor], like: Any, name: str) -> Any:
    kind: Any = type(like)  # pyright: ignore[reportUnknownVariableType]
    if isinstance(like, Tensor):
        if name not in tensors:
            raise PansightError(where="outputs of the graph", expected=name, found=", ".join(tensors) or "none")
        return tensors[name]
    if not isinstance(like, tuple | list):
        return like
    named = bool(getattr(like, "_fields", ()))  # pyright: ignore[reportUnknownArgumentType]
    parts = [_rebuilt(tensors, each, f"{name}.{key}" if name else key) for key, each in _parts(like)]  # pyright: ignore[reportUnknownArgumentType]
    return kind(*parts) if named else kind(parts)


def panoptic_of_queries(
    outputs: QueryOutputs, size: tuple[int, int], labels: LabelSpace, rules: QueryRules
) -> PanopticOutputs:
    """`ops.fusion.queries.fuse_masks` without anything that depends on values, so that a graph can have it.

    size: (H, W) of the padded images. Of queries that are not kept nothing is seen; the others are what the rule makes
    of them at the size of the image that the network saw.
    """
    images = range(outputs.class_logits.shape[0])
    of_images = (_panoptic_of_one(outputs, image, size, labels, rules) for image in images)
    return PanopticOutputs(*(torch.stack(column) for column in zip(*of_images, strict=True)))


def _panoptic_of_one(
    outputs: QueryOutputs, image: int, size: tuple[int, int], labels: LabelSpace, rules: QueryRules
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of `PanopticOutputs` of one image."""
    scores, category = outputs.class_logits[image].float().softmax(-1).max(-1)  # (Q,)
    kept = (category != len(labels)) & (scores > rules.score)
    masks = F.interpolate(outputs.masks(image).float()[None], size, mode="bilinear", align_corners=False)[0].sigmoid()
    rows, columns = (torch.arange(side, device=masks.device) for side in size)
    seen = (rows[:, None] < outputs.extents[image, 0]) & (columns < outputs.extents[image, 1])  # (H, W)
    values = torch.where(kept, scores, -1.0)[:, None, None] * masks  # what is not kept is below all that is
    winner = values.max(0).indices  # (H, W)
    inside = (masks >= rules.mask) & seen  # (Q, H, W)
    wins = (winner == torch.arange(len(masks), device=masks.device)[:, None, None]) & seen & kept[:, None, None]
    won, area, within = (each.flatten(1).sum(1) for each in (wins, inside, wins & inside))  # (Q,)
    accepted = kept & (won > 0) & (area > 0) & (won / area.clamp(min=1) >= rules.overlap)
    if rules.cut:
        accepted = accepted & (within > 0)
    number = _numbers(accepted, category, labels)
    leads = number.leads
    painted = number.ids[winner] * ((wins & inside) if rules.cut else wins).any(0)  # (H, W)
    classes = torch.where(painted > 0, category[winner], IGNORE)
    none = torch.zeros_like(number.ids)
    return torch.stack((classes, painted), dim=-1), torch.where(leads, number.ids, none), scores * leads


class _Numbered(NamedTuple):
    ids: Tensor  # int64 (Q,): the segment of each query, 0: none
    leads: Tensor  # bool (Q,): the first query of its segment


def _numbers(accepted: Tensor, category: Tensor, labels: LabelSpace) -> _Numbered:
    """Segments are numbered in the order of the queries; queries of a class of stuff are one segment."""
    is_stuff = torch.tensor([not each.is_thing for each in labels] + [False], device=category.device)[category]
    same = (category[:, None] == category) & (is_stuff & accepted)[:, None] & accepted  # (Q, Q)
    place = torch.arange(len(category), device=category.device)
    leads = accepted & ~(same & (place < place[:, None])).any(1)  # no earlier query is of the same stuff
    ids = leads.cumsum(0) * leads
    return _Numbered(torch.where(leads, ids, (same * ids).amax(1)), leads)
