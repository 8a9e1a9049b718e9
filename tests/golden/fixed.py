"""Weights, photos and truths that are the same numbers on every machine: what golden numbers are made from.

Everything is computed from the raw stream of PCG64, which numpy promises never to change, and from integers.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

KINDS = ("panoptic_fpn", "mask_rcnn", "faster_rcnn")
SIZES = ((192, 256), (150, 201))
"""(height, width) of the two photos; in one batch the second one is padded to the right and below."""

OUTPUT_SIZES = ((300, 400), (338, 452))
"""The sizes that predictions are asked for: the photos' own sizes before they were resized."""

LARGE_SIZES = ((384, 512), (300, 402))
"""Those of the photos that are twice as large, which `large_truth` belongs to."""

OBJECTS = (
    (
        (12, 10, 80, 70, 17),
        (60, 120, 130, 240, 2),
        (100, 30, 180, 100, 0),
        (20, 180, 60, 220, 62),
        (140, 150, 190, 181, 0),
    ),
    ((30, 20, 110, 90, 56), (70, 110, 140, 190, 17)),
)
"""Of each photo: top, left, bottom, right and thing class of its objects."""

STUFF_ROWS = ((0, 60, 5), (70, 120, 33), (120, 192, 52))
"""First row, last row and stuff class of the bands behind the objects; rows between them are void."""

SAMPLES = 24
"""Numbers kept of each gradient."""


def uniform(name: str, count: int) -> np.ndarray:
    """float32 (count,) in −√3 … √3, so of mean 0 and deviation 1; another sequence for every name."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)  # 24 bits: exact in float32
    return (unit - np.float32(0.5)) * np.float32(12**0.5)


def weight(name: str, shape: Sequence[int], salt: str) -> Tensor:
    """The tensor of a detectron2 key.

    Filters sum to zero, so that what all channels have in common does not drown the picture in a deep network; the
    last norm of a residual branch is small, so that the sum over blocks stays in range; the first norm of a network
    with a pyramid takes pixels that nobody divided by a deviation.
    """
    values = torch.from_numpy(uniform(f"{salt} {name}", int(np.prod(shape)))).reshape(tuple(shape))
    if name.endswith("norm.running_var"):
        return 1 + 0.2 * values
    if name.endswith("norm.weight"):
        return (1 + 0.2 * values) * (1 / 60 if "bottom_up.stem." in name else 0.3 if ".conv3." in name else 1.0)
    if values.ndim == 1:
        return 0.1 * values
    values = values.flatten(1)
    values = values - values.mean(1, keepdim=True)
    return (values * (2 / values.shape[1]) ** 0.5).reshape(tuple(shape))


def detectron2_weights(kind: str, golden: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A whole state dict; `golden` has its ``layout``, and ``gain`` and ``bias`` of the layers that predict."""
    state: dict[str, Tensor] = {}
    for row in golden["layout"].tolist():
        name, *sides = row.split()
        state[name] = weight(name, [int(side) for side in sides], kind)
    for entry, value in golden.items():
        what, _, layer = entry.partition(" ")
        if what == "gain":
            state[f"{layer}.weight"] *= torch.from_numpy(value)
        elif what == "bias":
            state[f"{layer}.bias"] = torch.from_numpy(value)
    return state


def photo(index: int, salt: str) -> Tensor:
    """uint8 RGB (3, H, W): colours on a grid of 16 pixels, linear in between, in integers."""
    height, width = SIZES[index]
    rows, columns = height // 16 + 2, width // 16 + 2
    grid = uniform(f"{salt} photo {index}", 3 * rows * columns).reshape(3, rows, columns)
    grid = torch.from_numpy((grid * 73 + 127.5).astype(np.int64))  # 1 … 254
    y, x = torch.arange(height), torch.arange(width)
    grid = grid[:, y // 16] * (16 - y % 16)[:, None] + grid[:, y // 16 + 1] * (y % 16)[:, None]  # (3, H, columns)
    grid = grid[:, :, x // 16] * (16 - x % 16) + grid[:, :, x // 16 + 1] * (x % 16)  # (3, H, W)
    return (grid // 256).to(torch.uint8)


def truth(index: int) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
    """→ (ids int32 (H, W), (id, thing class) of the objects, (id, stuff class) of the stuff); 0 is void."""
    ids = torch.zeros(SIZES[index], dtype=torch.int32)
    stuff: list[tuple[int, int]] = []
    for top, bottom, category in STUFF_ROWS:
        stuff.append((100 + len(stuff), category))
        ids[top:bottom] = stuff[-1][0]
    things: list[tuple[int, int]] = []
    for top, left, bottom, right, category in OBJECTS[index]:
        things.append((len(things) + 1, category))
        ids[top:bottom, left:right] = things[-1][0]
        ids[top : top + 12, left : left + 17] = 0  # a corner is missing: a mask is not its box
    return ids, things, stuff


def twice(maps: Tensor) -> Tensor:
    """(…, H, W) → (…, 2 H, 2 W), each pixel four times."""
    return maps.repeat_interleave(2, -2).repeat_interleave(2, -1)


def large_truth(index: int) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
    """As `truth`, twice as large, and once more as it was, in the lower right quarter: objects of all sizes."""
    ids, things, stuff = truth(index)
    large = twice(ids)
    height, width = ids.shape
    large[height:, width:] = torch.where((ids > 0) & (ids < 100), ids + 10, ids)
    seen = set(large.unique().tolist())
    both = things + [(number + 10, category) for number, category in things]
    return large, [one for one in both if one[0] in seen], [one for one in stuff if one[0] in seen]


def in_order(count: int, **_: Any) -> Tensor:
    """Instead of torch.randperm, on both sides: what is drawn is known.

    Anchors are taken in wide steps, so that all places and levels occur. Proposals, fewer, are taken in their order:
    one more or less of them, by a rounding error, must not change which others are drawn.
    """
    order = torch.arange(count)
    return order if count < 3000 else order * 1_000_003 % count  # a prime: every number occurs once


def spread(tensor: Tensor, count: int) -> np.ndarray:
    """At most `count` numbers at even steps through a tensor, float32."""
    flat = tensor.detach().float().flatten()
    return flat[:: -(-len(flat) // count)].numpy()


def norm_and_samples(gradients: Iterable[Tensor]) -> np.ndarray:
    """Of each of K gradients its L2 norm and SAMPLES of its numbers, zeros in place of missing ones.

    → float32 (K, 1 + SAMPLES).
    """
    rows = [torch.cat((g.double().norm().float()[None], torch.from_numpy(spread(g, SAMPLES)))) for g in gradients]
    return torch.stack([F.pad(row, (0, 1 + SAMPLES - len(row))) for row in rows]).numpy()
