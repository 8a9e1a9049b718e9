"""Id maps: int32 (H, W) arrays that give each pixel its segment id, and their RGB coding in COCO panoptic PNGs.

The coding is panopticapi's: id = R + 256·G + 65536·B, 0 = void. All functions work on runs of equal pixels along rows
instead of single pixels: the map of a photo has a few thousand runs, but several hundred thousand pixels.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError

MAX_ID = 256**3 - 1
"""The largest id that an RGB-coded PNG can hold."""

IdArray = NDArray[np.int32]


def rgb_to_ids(rgb: NDArray[np.uint8]) -> IdArray:
    """uint8 (H, W, 3), red first → int32 (H, W)."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise PansightError(where="RGB-coded ids", expected="uint8 (H, W, 3)", found=f"{rgb.dtype} {rgb.shape}")
    import cv2  # here, since figures from files do without it

    ids = np.empty(rgb.shape[:2], np.int32)
    # A fourth byte turns each pixel into one little-endian integer: seven times as fast as three multiplications.
    bytes_view = ids.view(np.uint8).reshape(*rgb.shape[:2], 4)  # (H, W, 4) R G B A
    cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA, dst=bytes_view)
    if not np.little_endian:
        ids.byteswap(inplace=True)
    ids &= MAX_ID  # cvtColor sets A to 255
    return ids


def ids_to_rgb(ids: IdArray) -> NDArray[np.uint8]:
    """int32 (H, W) → uint8 (H, W, 3), red first. Raises PansightError for ids outside 0 … 256³ − 1."""
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > MAX_ID):
        bad = int(ids.min()) if int(ids.min()) < 0 else int(ids.max())
        raise PansightError(where="id map", expected=f"ids 0 … {MAX_ID}", found=bad)
    little = np.ascontiguousarray(ids, dtype="<i4")
    return np.ascontiguousarray(little.view(np.uint8).reshape(*ids.shape, 4)[..., :3])  # (H, W, 4) → (H, W, 3)


class Runs(NamedTuple):
    """A map as runs of equal pixels, each within one row; all int64 (R,) but ids."""

    ids: IdArray
    starts: NDArray[np.int64]  # index of the first pixel in the flattened map
    lengths: NDArray[np.int64]


def runs_of(ids: IdArray) -> Runs:
    """The runs of an int32 (H, W) map in reading order."""
    flat = np.ascontiguousarray(ids).reshape(-1)  # (H·W,)
    if not flat.size:
        return Runs(flat, np.zeros(0, np.int64), np.zeros(0, np.int64))
    first = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=first[1:])
    first[:: ids.shape[1]] = True
    starts = np.flatnonzero(first)
    return Runs(flat[starts], starts, np.diff(starts, append=flat.size))


def present_ids(ids: IdArray) -> IdArray:
    """The different ids of a map, ascending, 0 included where it occurs. Equals np.unique at a tenth of its time."""
    flat = np.ascontiguousarray(ids).reshape(-1)  # (H·W,)
    if not flat.size:
        return flat.copy()
    last = np.flatnonzero(flat[1:] != flat[:-1])  # last pixel of each run but the final one
    ordered = np.sort(np.append(flat[last], flat[-1]))
    return ordered[np.append(True, ordered[1:] != ordered[:-1])]


def areas(ids: IdArray) -> dict[int, int]:
    """Pixels of each id in the map, ids ascending, 0 included where it occurs."""
    runs = runs_of(ids)
    different, inverse = np.unique(runs.ids, return_inverse=True)
    counts = np.zeros(len(different), np.int64)
    np.add.at(counts, inverse, runs.lengths)
    return dict(zip(different.tolist(), counts.tolist()))


def boxes_xyxy(ids: IdArray) -> dict[int, tuple[int, int, int, int]]:
    """The tight box of each id in the map, ids ascending, void left out: (x1, y1, x2, y2), x2 and y2 exclusive."""
    runs = runs_of(ids)
    width = max(1, ids.shape[1])
    top, left = runs.starts // width, runs.starts % width
    different, inverse = np.unique(runs.ids, return_inverse=True)
    low = np.full((len(different), 2), np.iinfo(np.int64).max, np.int64)
    high = np.zeros((len(different), 2), np.int64)
    np.minimum.at(low, inverse, np.stack([left, top], 1))
    np.maximum.at(high, inverse, np.stack([left + runs.lengths, top + 1], 1))
    rows = zip(different.tolist(), np.hstack([low, high]).tolist())
    return {number: (box[0], box[1], box[2], box[3]) for number, box in rows if number != 0}


def relabel(ids: IdArray, mapping: dict[int, int]) -> IdArray:
    """Replace ids: those that `mapping` lacks become 0. Returns a new int32 map of the same size."""
    runs = runs_of(ids)
    different, inverse = np.unique(runs.ids, return_inverse=True)
    values = np.array([mapping.get(number, 0) for number in different.tolist()], np.int32)
    return np.repeat(values[inverse], runs.lengths).reshape(ids.shape)  # (R,) → (H·W,) → (H, W)


def paint_in_order(masks: NDArray[np.bool_], numbers: list[int], order: list[int]) -> IdArray:
    """Overlapping masks bool (N, H, W) → one int32 (H, W) map: masks[n] gets numbers[n]; later in `order` on top."""
    ids = np.zeros(masks.shape[1:], np.int32)
    for n in order:
        ids[masks[n]] = numbers[n]
    return ids
