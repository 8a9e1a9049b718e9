"""Whether a graph says what its model says: the predictions of both on photos, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.apps.exporting.engines import Runner
from pansight.apps.exporting.tracing import Graph, Size
from pansight.apps.photos.finding import find_photos
from pansight.data.dataset import image_tensor
from pansight.data.formats.shapes import draw_shapes
from pansight.data.images import read_image
from pansight.data.loader import pad_images
from pansight.data.transforms import resize_image
from pansight.ops.fusion.exported import PanopticOutputs, unflatten
from pansight.ops.targets import valid_extents
from pansight.types import Instances, PanopticSegmentation, Prediction, Segment

GENERATED = (240, 320), (320, 240), (187, 251)
"""Sizes (H, W) of the photos that are drawn where none are given."""

ENOUGH = 0.999
"""The share of pixels on which the two must say the same."""


def check_photos(given: str | Path | None) -> list[Tensor]:
    """uint8 (3, H, W) each: those of a file or folder, else generated ones."""
    if given is not None:
        return [image_tensor(read_image(each.file)) for each in find_photos([given]).photos]
    photos: list[Tensor] = []
    for number, (height, width) in enumerate(GENERATED):
        rng = np.random.default_rng(number)
        image = np.empty((height, width, 3), np.uint8)
        draw_shapes(image, rng)
        noise = rng.integers(-20, 21, image.shape)  # a flat background has no texture that anything could go by
        photos.append(image_tensor((image + noise).clip(0, 255).astype(np.uint8)))
    return photos


def inputs_of(photo: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """The inputs of the graph for a photo: images (1, 3, H, W) and valid (1, H, W), for each network."""
    found: list[Tensor] = []
    for size in sizes:
        resized = resize_image(photo, *size.rule.target(photo.shape[1], photo.shape[2]), size.rule.filter)
        found += size.padded(*pad_images([resized], size.rule.divisor))
    return found


@torch.no_grad()
def shares_alike(
    graph: Graph, run: Runner, sizes: Sequence[Size], photos: Sequence[Tensor], tasks: Sequence[str]
) -> list[float]:
    """Of each photo the share of pixels, 0 … 1, on which the model and its graph say the same, in the worst task."""
    shares: list[float] = []
    for photo in photos:
        inputs, size = inputs_of(photo, sizes), [(photo.shape[1], photo.shape[2])]
        found = unflatten(dict(zip(graph.names, run(inputs), strict=True)), graph.like)
        outputs = _outputs(graph.model, inputs)
        decode: Callable[..., list[Prediction]] = graph.model.decode
        if isinstance(found, PanopticOutputs):  # the rule is inside: a map of the size that the network saw
            seen = tuple(valid_extents(*inputs[:2])[0].tolist())
            shares.append(same_pixels(decode(outputs, [seen])[0], panoptic_map(found, seen)))
            continue
        tasks_or_none = [{"task": task} for task in tasks] or [{}]
        pairs = ((decode(each, size, **options)[0] for each in (outputs, found)) for options in tasks_or_none)
        shares.append(min(same_pixels(expected, given) for expected, given in pairs))
    return shares


def panoptic_map(found: PanopticOutputs, extent: tuple[int, int]) -> Prediction:
    """What a graph with the rule inside says of one photo, without padding. extent: (height, width) of the rest."""
    classes, ids = found.masks[0, : extent[0], : extent[1]].unbind(-1)
    numbers: list[int] = found.segment_ids[0].tolist()
    segments = [
        Segment(number, int(classes[ids == number][0]), score)
        for number, score in zip(numbers, found.scores[0].tolist(), strict=True)
        if number and bool((ids == number).any())
    ]
    return Prediction(PanopticSegmentation(ids.int(), tuple(sorted(segments))), None, None)


def _outputs(model: Any, inputs: Sequence[Tensor]) -> Any:
    """What the model itself says, without the graph."""
    images, valid, *further = inputs
    return model(images, valid, (tuple(further),)) if further else model(images, valid)


def same_pixels(one: Prediction, other: Prediction) -> float:
    """The share of pixels on which two predictions of a photo say the same, of their worst part.

    Segments and objects may be numbered in another order: each is compared with the one that shares most of it, which
    must have its class.
    """
    shares = [1.0]
    if one.panoptic is not None and other.panoptic is not None:
        maps = [
            (each.ids.numpy(), {s.id: s.category for s in each.segments}) for each in (one.panoptic, other.panoptic)
        ]
        shares.append(_alike(*maps[0], *maps[1]))
    if one.semantic is not None and other.semantic is not None:
        shares.append(float((one.semantic == other.semantic).float().mean()))
    if one.instances is not None and other.instances is not None:
        height, width = _extent(one.instances, other.instances)
        maps = [_painted(each, height, width) for each in (one.instances, other.instances)]
        shares.append(_alike(*maps[0], *maps[1]))
    return min(shares)


Map = tuple[NDArray[Any], dict[int, int]]
"""ids (H, W), 0: nothing; id → class."""


def _alike(ids: NDArray[Any], classes: dict[int, int], others: NDArray[Any], of_others: dict[int, int]) -> float:
    if not ids.size:
        return 1.0
    pairs, counts = np.unique(np.stack((ids.ravel(), others.ravel())), axis=1, return_counts=True)
    best: dict[int, tuple[int, int]] = {}  # id → (pixels, the id of the other)
    for a, b, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
        best[a] = max(best.get(a, (0, 0)), (count, b))
    alike = sum(count for a, (count, b) in best.items() if classes.get(a) == of_others.get(b))
    return alike / ids.size


def _extent(*found: Instances) -> tuple[int, int]:
    """A canvas (H, W) that all objects lie in."""
    for each in found:
        if each.masks is not None:
            return each.masks.shape[1], each.masks.shape[2]
    corners = [each.boxes_xyxy[:, 2:].amax(0) for each in found if len(each)]
    if not corners:
        return 0, 0
    width, height = (int(side) + 1 for side in torch.stack(corners).amax(0).tolist())
    return height, width


def _painted(found: Instances, height: int, width: int) -> Map:
    """Objects on top of each other, the surest uppermost; boxes where there are no masks."""
    ids = np.zeros((height, width), np.int32)
    for number, place in reversed(list(enumerate(_regions(found), start=1))):
        ids[place] = number
    return ids, dict(enumerate(found.labels.tolist(), start=1))


def _regions(found: Instances) -> Iterator[Any]:
    for index in range(len(found)):
        if found.masks is not None:
            yield found.masks[index].numpy()
        else:
            x1, y1, x2, y2 = (round(side) for side in found.boxes_xyxy[index].tolist())
            yield slice(y1, y2), slice(x1, x2)
