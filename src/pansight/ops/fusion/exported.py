"""What an exported graph gives: the outputs of a model as tensors with names, and back, so that decode starts there.

The tensors are those of the model's outputs, a NamedTuple, by the names of its fields; names of what is nested are
joined by dots (``detections.boxes_xyxy``, ``kernels.0``). Where decode would still need weights, the graph goes on
until it needs none: systems of learned queries give `QueryOutputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from pansight.errors import PansightError


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


@runtime_checkable
class GivesQueries(Protocol):
    """A model whose decode makes masks of its outputs, by its weights or as products."""

    def with_masks(self, outputs: Any) -> QueryOutputs:
        """The outputs of `forward` with the masks of all queries. Its decode takes them as it takes those."""
        ...


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
