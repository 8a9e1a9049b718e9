"""Augmentations that move pixels: callables ``(sample, rng) -> sample`` that do not change their input.

Geometry is decided once and applied to the image (resized by the filter of the model's rule, bent bilinearly), the id
map and the masks of `Sample.instances` (nearest), all with pixel centres at half-integers, so
that nothing shifts. Segments that vanish leave the table; objects that vanish leave the instances; boxes are taken anew
from the masks. A proposed region becomes the box of the pixels that came from inside of it. A sample may lose all of
these.
All randomness comes from the generator that is passed in: the same generator state gives the same sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pansight.data.dataset import ids_tensor, image_array, image_tensor
from pansight.errors import PansightError
from pansight.ops.idmap import boxes_xyxy, present_ids
from pansight.ops.resize import ResizeRule, resize_photo
from pansight.types import Instances, PanopticSegmentation, Sample

Array = NDArray[Any]  # uint8 (or float32) photo, uint8 mask or int32 ids; OpenCV's own types say no more
Warp = Callable[[Array, bool], Array]
"""(array (H, W) or (H, W, 3), is the photo) → the same kind of array, moved; the photo is interpolated, ids never."""


class Transform(Protocol):
    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...


def apply_warp(sample: Sample, warp: Warp, keeps_all: bool = False) -> Sample:
    """Warp the image, the ids and the objects of a sample. keeps_all: no id can vanish, so the table stays as it is."""
    image = warp(image_array(sample.image), True)
    ids = warp(sample.truth.ids.numpy(), False)
    segments = sample.truth.segments
    if not keeps_all:
        visible = set(present_ids(ids).tolist())
        segments = tuple(s for s in segments if s.id in visible)
    truth = PanopticSegmentation(ids_tensor(ids), segments)
    instances = None if sample.instances is None else _warp_instances(sample.instances, warp, ids.shape)
    proposals = None if sample.proposals is None else _warp_proposals(sample.proposals, warp, sample.truth.size)
    return replace(sample, image=image_tensor(image), truth=truth, instances=instances, proposals=proposals)


def _warp_instances(instances: Instances, warp: Warp, size: tuple[int, ...]) -> Instances:
    if instances.masks is None:
        raise PansightError(
            where="Sample.instances", expected="masks", found="boxes only", hint="transforms move masks"
        )
    masks = np.empty((len(instances), *size), np.uint8)  # (N, h, w)
    for n, mask in enumerate(instances.masks.view(torch.uint8).numpy()):
        masks[n] = warp(mask, False)
    found = [boxes_xyxy(mask.astype(np.int32)).get(1) for mask in masks]
    boxes = [box for box in found if box is not None]
    keep = torch.tensor([box is not None for box in found], dtype=torch.bool)
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),  # (n, 4)
        instances.labels[keep],
        instances.scores[keep],
        torch.from_numpy(masks).view(torch.bool)[keep],
        None if instances.is_crowd is None else instances.is_crowd[keep],
    )


GRID = 128
"""Regions are followed through a warp by at most so many pixels of a row and of a column."""


def _warp_proposals(proposals: Tensor, warp: Warp, size: tuple[int, int]) -> Tensor:
    """Regions, float32 (P, 4) as shares of an image of `size` (H, W), in the warped image, without those that vanish.

    Some pixels of the new image are asked which pixel of the old one they show. Where one affine map explains all of
    them, as it does for resizing, cutting, mirroring and turning, a region becomes the box of its four mapped corners;
    else the box of the pixels that came from inside of it.
    """
    height, width = size
    warped = warp(np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width), False)
    rows, columns = (np.linspace(0, side, min(side, GRID) + 1) for side in warped.shape)
    v, u = (((edges[:-1] + edges[1:]) / 2).astype(np.intp) for edges in (rows, columns))
    shown = warped[np.ix_(v, u)].astype(np.int64)  # (r, c), 0 where nothing of the old image is
    y, x = (part + 0.5 for part in np.divmod(shown - 1, width))
    boxes = proposals.double().numpy() * np.array([width, height] * 2)
    grid_v, grid_u = np.meshgrid(v + 0.5, u + 0.5, indexing="ij")
    seen = shown > 0
    points = np.stack((grid_u[seen], grid_v[seen], np.ones(int(seen.sum()))), axis=1)  # (n, 3)
    fitted, _, rank, _ = np.linalg.lstsq(points, np.stack((x[seen], y[seen]), axis=1), rcond=None)
    if rank == 3 and np.abs(points @ fitted - np.stack((x[seen], y[seen]), axis=1)).max() <= 1:
        found = _mapped_boxes(boxes, np.linalg.inv(fitted[:2]), fitted[2])
    else:
        found = _spanned_boxes(boxes, np.where(seen, x, -1.0), np.where(seen, y, -1.0), columns, rows)
    found = found.clip(0, [warped.shape[1], warped.shape[0]] * 2)
    kept = (found[:, 2:] > found[:, :2]).all(1)
    return torch.from_numpy(found[kept] / ([warped.shape[1], warped.shape[0]] * 2)).float()


def _mapped_boxes(boxes: Array, inverse: Array, offset: Array) -> Array:
    """The boxes of the corners of float64 (P, 4), each moved by (corner − offset) @ inverse → (P, 4)."""
    corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]  # (P, 4, 2)
    moved = (corners - offset) @ inverse
    return np.concatenate((moved.min(1), moved.max(1)), axis=1)


def _spanned_boxes(boxes: Array, x: Array, y: Array, columns: Array, rows: Array) -> Array:
    """The boxes, in the grid with these edges, of the points that came from inside of each region; empty for none.

    boxes float64 (P, 4); x, y float64 (r, c), where each point came from, negative where from nowhere → (P, 4).
    """
    x1, y1, x2, y2 = boxes.T[:, :, None, None]
    inside = (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)  # (P, r, c)
    left, right = _span(inside.any(1), columns)
    top, bottom = _span(inside.any(2), rows)
    return np.stack((left, top, right, bottom), axis=1)


def _span(inside: Array, edges: Array) -> tuple[Array, Array]:
    """Of bool (P, parts) the edges before the first and behind the last part; both 0 where there is none."""
    first = inside.argmax(1)
    last = inside.shape[1] - inside[:, ::-1].argmax(1)
    found = inside.any(1)
    return np.where(found, edges[first], 0.0), np.where(found, edges[last], 0.0)


def resize_ids(ids: Array, height: int, width: int) -> Array:
    """Nearest pixel, at (i + 0.5)·scale − 0.5 as photos are; INTER_NEAREST would be half a source pixel off."""
    if ids.shape[:2] == (height, width):
        return ids
    return cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def resize_image(image: Tensor, height: int, width: int, filter: str) -> Tensor:
    """A photo, uint8 (3, H, W), at (height, width) by a filter of ops/resize.py; "plain" makes it float32."""
    return image_tensor(resize_photo(image_array(image), height, width, filter))


def resize_sample(sample: Sample, height: int, width: int, filter: str) -> Sample:
    """The sample at (height, width), its photo as `resize_image` makes it."""
    old_height, old_width = sample.truth.size
    if (old_height, old_width) == (height, width):
        return replace(sample, image=resize_image(sample.image, height, width, filter))

    def resize(array: Array, photo: bool) -> Array:
        return resize_photo(array, height, width, filter) if photo else resize_ids(array, height, width)

    return apply_warp(sample, resize, keeps_all=height >= old_height and width >= old_width)


class Compose:
    """Several augmentations, one after the other, with one random generator."""

    def __init__(self, transforms: Sequence[Transform]):
        self.transforms = tuple(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class Resize:
    """Resize to the size that a rule gives."""

    def __init__(self, rule: ResizeRule):
        self.rule = rule

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        return resize_sample(sample, *self.rule.target(*sample.truth.size), self.rule.filter)


class ResizeShortestEdge:
    """Multi-scale training: the short side drawn from `shorts`, the long side at most `long` (pixels), else as `rule`.

    rule: the model's, of which the rounding and the filter are taken.
    """

    def __init__(self, shorts: Sequence[int], long: int, rule: ResizeRule):
        if not shorts or min(shorts) < 1 or long < 1:
            raise PansightError(
                where="ResizeShortestEdge", expected="sides of at least 1", found=f"{tuple(shorts)} and {long}"
            )
        self.shorts, self.rule = tuple(shorts), rule._replace(long=long, height=0, width=0)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        short = self.shorts[int(rng.integers(len(self.shorts)))]
        return resize_sample(sample, *self.rule._replace(short=short).target(*sample.truth.size), self.rule.filter)


class HorizontalFlip:
    """Flip left and right, with probability `p`."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        return apply_warp(sample, lambda array, photo: cv2.flip(array, 1), keeps_all=True)


class VerticalFlip:
    """Flip top and bottom, with probability `p`; for views from above and through microscopes."""

    def __init__(self, p: float = 0.5):
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        return apply_warp(sample, lambda array, photo: cv2.flip(array, 0), keeps_all=True)


class Rot90:
    """Rotate by 0, 1, 2 or 3 quarter turns counter-clockwise, equally likely; for views from above and through
    microscopes.
    """

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        turns = int(rng.integers(4))
        if turns == 0:
            return sample
        return apply_warp(sample, lambda array, photo: np.rot90(array, turns).copy(), keeps_all=True)


class ScaleJitter:
    """Large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste"): fit into `size` × `size` px, times a random factor.

    The factor is uniform in [low, high], 0.1 … 2 in the paper. Follow with FixedSizeCrop(size). filter: the model's.
    """

    def __init__(self, size: int, low: float = 0.1, high: float = 2.0, filter: str = "pillow"):
        if size < 1 or not 0 < low <= high:
            raise PansightError(
                where="ScaleJitter", expected="size ≥ 1 and 0 < low ≤ high", found=f"{size}, {low}, {high}"
            )
        self.size, self.low, self.high, self.filter = size, low, high, filter

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.truth.size
        scale = rng.uniform(self.low, self.high) * self.size / max(height, width)
        return resize_sample(sample, max(1, round(height * scale)), max(1, round(width * scale)), self.filter)


def crop_sample(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The rectangle [top, top + height) × [left, left + width), which must lie inside; a copy."""

    def crop(array: Array, photo: bool) -> Array:
        return array[top : top + height, left : left + width].copy()

    return apply_warp(sample, crop)


class RandomCrop:
    """A window of at most `height` × `width` px, uniformly placed; smaller images stay whole on that axis."""

    def __init__(self, height: int, width: int):
        if height < 1 or width < 1:
            raise PansightError(where="crop", expected="at least 1×1 pixels", found=f"{height}×{width}")
        self.height, self.width = height, width

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        old_height, old_width = sample.truth.size
        height, width = min(self.height, old_height), min(self.width, old_width)
        top, left = (int(rng.integers(old_height - height + 1)), int(rng.integers(old_width - width + 1)))
        if (height, width) == (old_height, old_width):
            return sample
        return crop_sample(sample, top, left, height, width)


class FixedSizeCrop:
    """RandomCrop to `size` × `size` px, smaller images padded (right, bottom) with `fill` and void.

    fill=None leaves the padding to the loader: with ``divisor=size`` it pads to the same size and marks it invalid.
    """

    def __init__(self, size: int, fill: int | None = None):
        self.crop = RandomCrop(size, size)
        self.size, self.fill = size, fill

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = self.crop(sample, rng)
        height, width = sample.truth.size
        if self.fill is None or (height, width) == (self.size, self.size):
            return sample
        bottom, right, fill = self.size - height, self.size - width, self.fill

        def pad(array: Array, photo: bool) -> Array:
            sides = [(0, bottom), (0, right)] + [(0, 0)] * (array.ndim - 2)
            return np.pad(array, sides, constant_values=fill if photo else 0)

        return apply_warp(sample, pad, keeps_all=True)


class ElasticDeformation:
    """A smooth random bending, with probability `p` (Simard et al. 2003, drawn on a coarse grid).

    magnitude: standard deviation of the displacement at the grid points, in pixels. spacing: pixels between them.
    grid: so many points a side over the whole image in place of the spacing, the outer ones at its corners; U-Net
    (Ronneberger et al. 2015, section 3.1) takes 3 and a magnitude of 10. Between the points it is bicubic. Outside of
    the image, its mirror image is used, for the photo and the ids alike.
    """

    def __init__(self, magnitude: float = 8.0, spacing: int = 64, p: float = 0.5, grid: int = 0):
        if magnitude < 0 or spacing < 1 or grid not in (0, *range(2, 65)):
            raise PansightError(
                where="ElasticDeformation",
                expected="magnitude ≥ 0, spacing ≥ 1, grid 0 or 2 … 64",
                found=f"{magnitude}, {spacing}, {grid}",
            )
        self.magnitude, self.spacing, self.p, self.grid = magnitude, spacing, p, grid

    def displacements(self, height: int, width: int, rng: np.random.Generator) -> Array:
        """float32 (H, W, 2): where the pixel at each place comes from, as (x, y) from there, in pixels."""
        if self.grid:
            points = rng.normal(0.0, self.magnitude, (1, 2, self.grid, self.grid)).astype(np.float32)
            shift = F.interpolate(torch.from_numpy(points), (height, width), mode="bicubic", align_corners=True)
            return shift[0].permute(1, 2, 0).numpy()  # (1, 2, H, W) → (H, W, 2)
        grid = (height // self.spacing + 3, width // self.spacing + 3, 2)
        coarse = rng.normal(0.0, self.magnitude, grid).astype(np.float32)
        shift = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return shift.reshape(height, width, 2)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        height, width = sample.truth.size
        shift = self.displacements(height, width, rng)
        map_x = shift[..., 0] + np.arange(width, dtype=np.float32)
        map_y = shift[..., 1] + np.arange(height, dtype=np.float32)[:, None]

        def bend(array: Array, photo: bool) -> Array:
            if photo:
                return cv2.remap(array, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
            # gather by rounded coordinates: cv2.remap knows no int32, and ids do not fit its other types
            return array[_mirror(np.rint(map_y), height), _mirror(np.rint(map_x), width)]

        return apply_warp(sample, bend)


def _mirror(index: NDArray[np.float32], length: int) -> NDArray[np.intp]:
    """Indices beyond 0 … length − 1 mirrored at the border pixel's edge: … 1 0 | 0 1 … as cv2.BORDER_REFLECT."""
    wrapped = np.mod(index.astype(np.intp), 2 * length)
    return np.minimum(wrapped, 2 * length - 1 - wrapped)
