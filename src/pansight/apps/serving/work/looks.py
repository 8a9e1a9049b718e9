"""What networks said of photos of the page, kept so that a slider decides again without running them.

While a slider is dragged the decision is made at a small size, since most of its time grows with the number of pixels;
once it is let go, at the size of the photo.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.apps.serving.answers import as_panoptic, regions_of
from pansight.apps.serving.http.problems import refusal
from pansight.drawing.segments import segment_colors
from pansight.engine.predict import Look
from pansight.interop.photo import PhotoPrediction
from pansight.ops.idmap import IdArray, areas, boxes_xyxy
from pansight.types import LabelSpace, PanopticSegmentation

AREAS = ("min_stuff_area", "min_area")
"""Options in pixels, which shrink with the size at which is decided."""


@dataclass(frozen=True, eq=False)
class KeptLook:
    """A photo, uint8 RGB (H, W, 3), and what the model of this name said of it."""

    model: str
    photo: NDArray[np.uint8]
    look: Look
    labels: LabelSpace

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the photo."""
        return self.photo.shape[0], self.photo.shape[1]

    @property
    def bytes(self) -> int:
        return self.photo.nbytes + self.look.bytes

    def decide(self, options: Mapping[str, Any], score: float, side: int | None) -> tuple[PanopticSegmentation, float]:
        """(the segments, how many pixels of the photo one of their map stands for).

        side: the longer side of the map, at most; None: that of the photo.
        """
        height, width = self.size
        scale = 1.0 if side is None else min(1.0, side / max(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        share = size[0] * size[1] / (height * width)
        scaled = {name: int(value * share) if name in AREAS else value for name, value in options.items()}
        (found,) = self.look.decide(scaled, [size])
        return regions_of(found, size, score), 1 / share

    def prediction(self, options: Mapping[str, Any], score: float) -> PhotoPrediction:
        """At the size of the photo, with a panoptic map."""
        (found,) = self.look.decide(options)
        return as_panoptic(found, self.photo, self.labels, score)


class Looks:
    """The looks that are kept, the oldest let go where they take more than `most` bytes; any thread may ask."""

    def __init__(self, most: int):
        self._most = most
        self._kept: OrderedDict[str, KeptLook] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, look: KeptLook) -> tuple[str, int]:
        """(its name, which nobody can guess, the bytes that are kept now). The newest one stays, however large."""
        name = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[name] = look
            while len(self._kept) > 1 and self._bytes() > self._most:
                self._kept.popitem(last=False)
            return name, self._bytes()

    def find(self, name: str) -> KeptLook:
        """Raises `Refusal` for one that was let go, or never was."""
        with self._lock:
            if name not in self._kept:
                raise refusal(404, "look", "one that is kept", "none", "send the photo again")
            self._kept.move_to_end(name)
            return self._kept[name]

    def _bytes(self) -> int:
        return sum(look.bytes for look in self._kept.values())


def segment_map(found: PanopticSegmentation, labels: LabelSpace, pixels: float) -> bytes:
    """Segments as the page reads them: a line of JSON, then the map as runs.

    The JSON: {"size": [h, w], "runs": R, "segments": [{"category", "name", "thing", "color", "score", "area", "box"}]};
    areas and boxes [x, y, width, height] in pixels of the photo, `pixels` of them for one of the map. Behind its line
    break: R lengths, uint32; then the row of the segments of each, uint16, from 1, 0 = void; both little-endian.
    """
    ids = found.ids.numpy()
    rows, lengths = _runs(ids, [segment.id for segment in found.segments])
    counted, boxes, colors = areas(ids), boxes_xyxy(ids), segment_colors(found.segments, labels)
    step = pixels**0.5
    segments: list[dict[str, Any]] = []
    for segment in found.segments:
        category = labels[segment.category]
        x1, y1, x2, y2 = boxes.get(segment.id, (0, 0, 0, 0))
        segments.append(
            {
                "category": segment.category,
                "name": category.name,
                "thing": category.is_thing,
                "color": list(colors[segment.id]),
                "score": round(segment.score, 4),
                "area": round(counted.get(segment.id, 0) * pixels),
                "box": [round(side * step) for side in (x1, y1, x2 - x1, y2 - y1)],
            }
        )
    head = {"size": list(found.size), "runs": len(rows), "segments": segments}
    return json_line(head) + lengths.astype("<u4").tobytes() + rows.astype("<u2").tobytes()


def json_line(head: dict[str, Any]) -> bytes:
    """ASCII without line breaks, filled up with blanks so that what follows begins at a multiple of four bytes."""
    line = json.dumps(head, allow_nan=False).encode()
    return line + b" " * (-(len(line) + 1) % 4) + b"\n"


def _runs(ids: IdArray, numbers: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of equal pixels in reading order, across the ends of rows: (place in `numbers` from 1, length) of each."""
    flat = np.ascontiguousarray(ids).reshape(-1)  # (H·W,)
    starts = np.append(0, np.flatnonzero(flat[1:] != flat[:-1]) + 1)
    known = np.array(sorted(numbers), np.int64)
    places = np.array(numbers, np.int64).argsort() + 1
    values = flat[starts]
    if not len(known):
        return np.zeros(len(starts), np.int64), np.diff(starts, append=flat.size)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    rows = np.where(known[at] == values, places[at], 0)
    return rows, np.diff(starts, append=flat.size)
