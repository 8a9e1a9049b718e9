"""Outlines, run lengths and masks to regions, in the one way that every reader uses.

Pixels of a polygon are those of pycocotools (a polygon is walked at five times the resolution), drawn by hotcoco.
Run lengths are COCO's: down the columns, background first; packed text, bytes, or a plain list of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from pansight.data.convert.source import Region
from pansight.errors import PansightError

MAX_OUTLINE = 1_000_000
"""Pixels of outline that one polygon may have: the walk along it takes some 100 bytes for each of them."""

MAX_NUMBERS = 2 * MAX_OUTLINE
"""Numbers that one shape may be written with: each takes 32 bytes until it is drawn."""

Points = NDArray[np.floating[Any]] | NDArray[np.integer[Any]] | Sequence[Sequence[float]]


def region_of_polygons(
    polygons: Sequence[Points],
    size: tuple[int, int],
    category: int,
    where: str,
    *,
    holes: Sequence[Points] = (),
    even_odd: bool = False,
    is_crowd: bool = False,
    score: float = 1.0,
) -> Region | None:
    """The pixels inside any of `polygons`, float (N, 2) x, y in pixels of the image, and inside none of `holes`.

    The corner of the first pixel is (0, 0); what lies outside `size` (H, W) is cut off. even_odd: pixels inside an odd
    number of polygons instead. None where no pixel is covered: fewer than 3 points, thinner than a pixel, or outside
    the image. Raises PansightError, beginning with `where` (file and annotation), for coordinates that are no finite
    numbers, and for outlines too long to be meant.
    """
    drawn = [_packed_polygon(points, size, where) for points in polygons if not _is_degenerate(points)]
    if not drawn:
        return None
    if even_odd and len(drawn) > 1:
        mask = np.zeros(size, np.bool_)
        for packed in drawn:
            mask ^= np.asarray(coco_mask.decode(packed), np.bool_)
        region = region_of_mask(mask, category, is_crowd=is_crowd, score=score)
    else:
        merged = coco_mask.merge(drawn) if len(drawn) > 1 else drawn[0]
        region = _region_of_counts(unpack_counts(merged["counts"], where), size, category, is_crowd, score)
    if region is None or not holes:
        return region
    mask = region.mask.copy()
    for points in holes:
        if _is_degenerate(points):
            continue
        hole = np.asarray(coco_mask.decode(_packed_polygon(points, size, where)), np.bool_)
        mask &= ~hole[region.top :, region.left :][: mask.shape[0], : mask.shape[1]]
    return region_of_mask(mask, category, region.top, region.left, is_crowd=is_crowd, score=score)


def expect_short(text: Any, mark: Any, where: str | Path) -> None:
    """text: a shape, or all shapes of an image, as the file writes them; mark: what stands between two numbers.

    Raises PansightError, beginning with `where`, for more numbers than any shape has, before one of them is read.
    """
    if text.count(mark) > MAX_NUMBERS:
        raise PansightError(where=where, expected=f"at most {MAX_NUMBERS} numbers in a shape", found=text.count(mark))


def region_of_mask(
    mask: NDArray[np.bool_],
    category: int,
    top: int = 0,
    left: int = 0,
    *,
    is_crowd: bool = False,
    score: float = 1.0,
) -> Region | None:
    """The tight cut-out, a copy, of a bool (h, w) mask whose first pixel is at (top, left); None where it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    first, last = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[first:last].any(axis=0))
    begin, end = int(columns[0]), int(columns[-1]) + 1
    return Region(mask[first:last, begin:end].copy(), top + first, left + begin, category, is_crowd, score)


def region_of_rle(
    rle: Any,
    size: tuple[int, int],
    category: int,
    where: str,
    *,
    is_crowd: bool = False,
    score: float = 1.0,
) -> Region | None:
    """COCO run lengths ``{"size": [H, W], "counts": …}`` of an image of `size`; None where no pixel is covered.

    Raises PansightError, beginning with `where`, where they are malformed or for another size.
    """
    if not isinstance(rle, dict) or "counts" not in rle:
        raise PansightError(where=where, expected="run lengths {size, counts}", found=f"{rle!r:.60}")
    if "size" in rle and rle["size"] != list(size) and rle["size"] != tuple(size):
        raise PansightError(where=where, expected=f"a mask of size {list(size)}", found=f"{rle['size']!r:.60}")
    counts = unpack_counts(rle["counts"], where)
    if counts.sum() != size[0] * size[1]:
        raise PansightError(where=where, expected=f"run lengths of {size[0] * size[1]} pixels", found=int(counts.sum()))
    return _region_of_counts(counts, size, category, is_crowd, score)


def unpack_counts(counts: Any, where: str) -> NDArray[np.int64]:
    """COCO counts as int64 (R,), all ≥ 0: from a list of numbers, or from the packed text (5 bits a character,
    differences to the run before the last from the fourth run on: pycocotools' rleFrString)."""
    if isinstance(counts, str):
        try:
            counts = counts.encode("ascii")
        except UnicodeEncodeError as error:
            raise PansightError(where=where, expected="packed run lengths", found=f"{counts!r:.60}") from error
    if isinstance(counts, bytes):
        lengths = _unpack(np.frombuffer(counts, np.uint8), where)
    elif isinstance(counts, list) and all(type(c) is int and 0 <= c < 2**40 for c in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise PansightError(where=where, expected="run lengths (text or whole numbers)", found=f"counts {counts!r:.60}")
    if lengths.size and int(lengths.min()) < 0:
        raise PansightError(where=where, expected="run lengths of 0 or more", found=int(lengths.min()))
    return lengths


def _unpack(text: NDArray[np.uint8], where: str) -> NDArray[np.int64]:
    codes = text.astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)  # the last character of each number
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) > 63 or not last.size or last[-1] != codes.size - 1):
        raise PansightError(where=where, expected="packed run lengths", found=f"{text.tobytes()!r:.60}")
    if not codes.size:
        return codes
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(codes.size) - np.repeat(first, last - first + 1)
    if int(place.max()) > 7:  # more than 40 bits
        raise PansightError(
            where=where, expected="packed run lengths", found=f"a number of {int(place.max()) + 1} characters"
        )
    numbers = np.add.reduceat((codes & 31) << (5 * place), first)
    negative = (codes[last] & 16) != 0
    numbers -= negative.astype(np.int64) << (5 * (last - first + 1))
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers


def _is_degenerate(points: Points) -> bool:
    """Whether these are x, y pairs, but too few to enclose anything: what a click or a double click leaves."""
    return len(points) < 3 and all(len(point) == 2 for point in points)


def _packed_polygon(points: Points, size: tuple[int, int], where: str) -> dict[str, Any]:
    outline = np.asarray(points, np.float64)
    if outline.ndim != 2 or outline.shape[1:] != (2,) or len(outline) < 3:
        raise PansightError(where=where, expected="polygons of 3 or more x, y pairs", found=f"{points!r:.60}")
    with np.errstate(over="ignore", invalid="ignore"):
        length = float(np.abs(outline - np.roll(outline, 1, axis=0)).max(axis=1).sum())
        far = float(np.abs(outline).max())
    if not far < 2 * MAX_OUTLINE:  # also where it is no number
        raise PansightError(where=where, expected="finite coordinates in pixels of the image", found=far)
    if length > MAX_OUTLINE:
        raise PansightError(where=where, expected=f"an outline of at most {MAX_OUTLINE} pixels", found=f"{length:.0f}")
    return coco_mask.frPyObjects([outline.reshape(-1).tolist()], *size)[0]  # (N, 2) → (2N,)


def _region_of_counts(
    counts: NDArray[np.int64], size: tuple[int, int], category: int, is_crowd: bool, score: float
) -> Region | None:
    """Only the columns that hold pixels are spread out, not the image."""
    height = size[0]
    ends = counts.cumsum()
    filled = np.flatnonzero(counts[1::2]) * 2 + 1  # the runs of foreground
    if not len(filled):
        return None
    left, right = int(ends[filled[0] - 1]) // height, (int(ends[filled[-1]]) - 1) // height + 1
    edges = np.clip(ends, left * height, right * height) - left * height
    lengths = np.diff(edges, prepend=0, append=(right - left) * height)
    values = np.arange(len(lengths)) % 2 == 1
    values[len(ends) :] = False  # what follows the last run
    columns = np.repeat(values, lengths).reshape(right - left, height)  # (w·H,) → (w, H)
    return region_of_mask(columns.T, category, 0, left, is_crowd=is_crowd, score=score)
