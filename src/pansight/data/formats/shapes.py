"""Generated images of squares, circles and triangles, as in the classic Mask R-CNN tutorial.

Source: the "shapes" notebook of matterport/Mask_RCNN (MIT); its rules are kept: 1 to 4 shapes, half-extent s uniform
in 20 … side/4, centres at least 20 px inside, any colours, boxes suppressed at IoU 0.3 (later shapes win), later shapes
drawn on top. Different here: every image is a pure function of (seed, split, index); under 128 px the 20 px scale.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.data.dataset import ids_tensor, image_tensor
from pansight.errors import PansightError, choice_error
from pansight.ops.idmap import IdArray, present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment

SHAPES = ("square", "circle", "triangle")
STREAMS = {"train": 0, "val": 1, "test": 2}

LABELS = LabelSpace.from_names(SHAPES, ("background",))
LABELS_VOID = LabelSpace.from_names(SHAPES)
BACKGROUND = len(SHAPES)
TRIANGLE = SHAPES.index("triangle")

SIN_60 = math.sin(math.radians(60))


class Shapes:
    """`count` images of `height` × `width` px, made on demand.

    split: train, val and test are different streams of the same seed. background: "stuff" makes the uncovered pixels
    one segment of a stuff class, "void" leaves them 0. triangles: the share of the images that have a triangle, to
    study a rare class; in the others, what would be one is a square or a circle. None: what chance brings, about two
    of three. Raises PansightError for sizes under 16 px, negative numbers, and a share that is none.
    """

    def __init__(
        self,
        count: int = 1000,
        height: int = 128,
        width: int = 128,
        seed: int = 0,
        split: str = "train",
        background: str = "stuff",
        triangles: float | None = None,
    ):
        if split not in STREAMS:
            raise choice_error("split of shapes", split, STREAMS)
        if background not in ("stuff", "void"):
            raise choice_error("background", background, ("stuff", "void"))
        if count < 1 or seed < 0:
            raise PansightError(where="shapes", expected="count ≥ 1 and seed ≥ 0", found=f"count {count}, seed {seed}")
        if min(height, width) < 16:
            raise PansightError(where="shapes", expected="at least 16×16 pixels", found=f"{height}×{width}")
        if triangles is not None and not 0 <= triangles <= 1:
            raise PansightError(where="shapes: triangles", expected="a share from 0 to 1", found=triangles)
        self.triangles = triangles
        self.count, self.height, self.width = count, height, width
        self.seed, self.split, self.background = seed, split, background
        self.labels = LABELS if background == "stuff" else LABELS_VOID

    def __len__(self) -> int:
        return self.count

    def image_id(self, index: int) -> int:
        """Ids count from 1, as in COCO."""
        return index + 1

    def file_name(self, index: int) -> str:
        return f"{index:06d}.png"

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, STREAMS[self.split], index))
        image = np.empty((self.height, self.width, 3), np.uint8)
        ids, kinds = draw_shapes(image, rng, self.triangles)
        visible = {int(n) for n in present_ids(ids)} - {0}
        segments = [Segment(n, kind) for n, kind in enumerate(kinds, 1) if n in visible]
        if self.background == "stuff":
            number = len(kinds) + 1
            if (empty := ids == 0).any():
                ids[empty] = number
                segments.append(Segment(number, BACKGROUND))
        truth = PanopticSegmentation(ids_tensor(ids), tuple(segments))
        return Sample(image_tensor(image), truth, self.image_id(index), (self.height, self.width))


def draw_shapes(
    image: NDArray[np.uint8], rng: np.random.Generator, triangles: float | None = None
) -> tuple[IdArray, list[int]]:
    """Fill `image` uint8 (H, W, 3) with a new drawing. triangles: as of `Shapes`.

    Returns int32 ids (H, W), k for the k-th shape drawn and 0 elsewhere, and each shape's index into SHAPES.
    """
    height, width = image.shape[:2]
    side = min(height, width)
    border = 20 if side >= 128 else max(2, side * 20 // 128)  # also the least half-extent, as in the tutorial
    # every draw at once, since each call costs microseconds: background and shape colours, then the rest
    colors = rng.integers(0, 256, (5, 3)).tolist()
    count = int(rng.integers(1, 5))
    kinds = rng.integers(0, len(SHAPES), count).tolist()
    center_y = rng.integers(border, height - border, count).tolist()
    center_x = rng.integers(border, width - border, count).tolist()
    extents = rng.integers(border, side // 4 + 1, count).tolist()
    if triangles is not None:
        kinds = _with_triangles(kinds, rng.random() < triangles, rng)
    placed = list(zip(kinds, center_y, center_x, extents, colors[1:]))
    image[:] = colors[0]
    ids = np.zeros((height, width), np.int32)
    kept = suppress([(x - s, y - s, x + s, y + s) for _, y, x, s, _ in placed])
    for number, n in enumerate(kept, 1):
        kind, y, x, s, color = placed[n]
        _draw(image, kind, y, x, s, color)
        _draw(ids, kind, y, x, s, [number])
    return ids, [kinds[n] for n in kept]


def _with_triangles(kinds: list[int], wanted: bool, rng: np.random.Generator) -> list[int]:
    """The kinds of shapes with a triangle at the end, which nothing covers or suppresses, or with none."""
    if wanted:
        return [*kinds[:-1], TRIANGLE]
    return [int(rng.integers(0, TRIANGLE)) if kind == TRIANGLE else kind for kind in kinds]


def _draw(canvas: NDArray[np.uint8] | IdArray, kind: int, y: int, x: int, s: int, color: list[int]) -> None:
    """One filled shape of half-extent s around (y, x), clipped at the border."""
    if kind == 0:
        cv2.rectangle(canvas, (x - s, y - s), (x + s, y + s), color, -1)
    elif kind == 1:
        cv2.circle(canvas, (x, y), s, color, -1)
    else:
        half = s / SIN_60
        points = np.array([[x, y - s], [x - half, y + s], [x + half, y + s]]).astype(np.int32)
        cv2.fillPoly(canvas, [points], color)


def suppress(boxes_xyxy: list[tuple[int, int, int, int]], threshold: float = 0.3) -> list[int]:
    """Non-maximum suppression in which later boxes win; indices of the kept ones, ascending."""
    kept: list[int] = []
    for n in reversed(range(len(boxes_xyxy))):
        if all(_iou(boxes_xyxy[n], boxes_xyxy[k]) <= threshold for k in kept):
            kept.append(n)
    return kept[::-1]


def _iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    inside_w, inside_h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if inside_w <= 0 or inside_h <= 0:
        return 0.0
    inside = inside_w * inside_h
    return inside / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inside)
