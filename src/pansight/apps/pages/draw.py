"""Pictures of errors: where truth and prediction differ, and truth | prediction | errors side by side.

All images are uint8 (3, H, W) RGB; no input is changed.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.drawing.pixels import Color, Picture, inner_edges, line_width, picture_of, row_map, tensor_of
from pansight.drawing.segments import overlay, segment_colors
from pansight.metrics.panoptic.quality import match_segments
from pansight.types import VOID, LabelSpace, PanopticSegmentation

ERROR_COLORS: dict[str, Color] = {
    "correct": (198, 205, 211),
    "missed": (213, 94, 0),
    "phantom": (0, 114, 178),
    "wrong": (240, 205, 40),
    "border": (112, 120, 128),
    "void": (255, 255, 255),
}
"""What the colours of an error map stand for; orange, blue and yellow differ for colour-blind eyes too (Okabe and Ito).

correct: found by its match. missed: belongs to a truth segment that nobody found. phantom: claimed by a prediction of
something that is not there. wrong: both at once, so a wrong class or a poor shape. border: both segments are matched,
but not with each other: an inexact outline. void: not scored (void or crowd in the truth).
"""


def error_codes(
    truth: PanopticSegmentation, prediction: PanopticSegmentation, background: bool = False
) -> NDArray[np.uint8]:
    """What is right and what is wrong at each pixel: (H, W), positions in ERROR_COLORS.

    Segments are matched as for PQ. background: pixels without a truth segment are background rather than void, so that
    a phantom shows there. Raises PansightError as `match_segments` does.
    """
    result = match_segments(truth, prediction, background)
    correct, missed, phantom, wrong, border, void = range(len(ERROR_COLORS))
    partner = {m.truth.id: m.prediction.id for m in result.matches}
    missed_ids = {s.id for s in result.missed}
    phantom_ids = {s.id for s in result.phantom}
    truth_rows, predicted_rows = row_map(truth), row_map(prediction)  # (H, W), −1 on void
    # the code of every pair (truth segment, predicted segment); last row and column: void
    codes = np.full((len(truth.segments) + 1, len(prediction.segments) + 1), void, np.uint8)
    for t, segment in enumerate(truth.segments):
        if segment.is_crowd:
            continue
        for p, other in enumerate([s.id for s in prediction.segments] + [None]):
            lost, invented = segment.id in missed_ids, other in phantom_ids
            if partner.get(segment.id) == other and not lost:
                codes[t, p] = correct
            else:
                codes[t, p] = (border, phantom, missed, wrong)[2 * lost + invented]
    if background:
        taken = set(partner.values())
        for p, segment in enumerate(prediction.segments):
            codes[-1, p] = phantom if segment.id in phantom_ids else border if segment.id in taken else void
    return codes[truth_rows, predicted_rows]


def error_map(truth: PanopticSegmentation, prediction: PanopticSegmentation, image: Tensor | None = None) -> Tensor:
    """`error_codes` in ERROR_COLORS, the truth's contours darker: uint8 (3, H, W).

    With an image, its grey shape shows through everywhere but on void.
    """
    return tensor_of(_paint_errors(error_codes(truth, prediction), row_map(truth), image))


def panels(
    image: Tensor,
    truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    labels: LabelSpace,
    long_side: int = 640,
    background: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Truth, prediction and errors as three pictures of one size, the longer side about `long_side` pixels.

    Small images are enlarged first, so that lines and names stay fine. A match has the colour of its truth segment.
    background: as for `error_codes`.
    Raises PansightError where image, truth and prediction differ in size.
    """
    picture_of(image, truth.size)  # checks the size
    codes = error_codes(truth, prediction, background)
    truth_colors = segment_colors(truth.segments, labels)
    matches = match_segments(truth, prediction, background).matches
    found = segment_colors(
        prediction.segments, labels, taken={m.prediction.id: truth_colors[m.truth.id] for m in matches}
    )
    height, width = truth.size
    scale = long_side / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    shown, small_truth = resized_image(image, size), resized_map(truth, size)
    small_codes = np.asarray(cv2.resize(codes, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return (
        overlay(shown, small_truth, labels, colors=truth_colors),
        overlay(shown, resized_map(prediction, size), labels, colors=found),
        tensor_of(_paint_errors(small_codes, row_map(small_truth), shown)),
    )


def sheet(
    image: Tensor,
    truth: PanopticSegmentation,
    prediction: PanopticSegmentation,
    labels: LabelSpace,
    long_side: int = 640,
    background: bool = False,
) -> Tensor:
    """truth | prediction | errors as one picture: uint8 (3, h, 3·w + two white gaps), see `panels`."""
    shown = panels(image, truth, prediction, labels, long_side, background)
    pictures = [picture_of(p, (p.shape[1], p.shape[2])) for p in shown]
    gap = np.full((pictures[0].shape[0], max(4, long_side // 80), 3), 255, np.uint8)
    return tensor_of(np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1))


def resized_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) → (3, h, w): averaged when smaller, cubic when larger."""
    picture = picture_of(image, (image.shape[1], image.shape[2]))
    how = cv2.INTER_AREA if size[0] < picture.shape[0] else cv2.INTER_CUBIC
    return tensor_of(cv2.resize(picture, (size[1], size[0]), interpolation=how))


def resized_map(segmentation: PanopticSegmentation, size: tuple[int, int]) -> PanopticSegmentation:
    """The map at another size (h, w), without the segments that vanish; for looking at, not for scoring."""
    rows = row_map(segmentation)
    small = np.asarray(cv2.resize(rows, (size[1], size[0]), interpolation=cv2.INTER_NEAREST_EXACT), np.int16)
    left = set(np.unique(small).tolist())
    ids = np.array([*(s.id for s in segmentation.segments), VOID], np.int32)[small]
    return PanopticSegmentation(
        torch.from_numpy(ids), tuple(s for row, s in enumerate(segmentation.segments) if row in left)
    )


def _paint_errors(codes: NDArray[np.uint8], truth_rows: NDArray[np.int16], image: Tensor | None) -> Picture:
    """codes, truth_rows: (H, W). image: uint8 (3, H, W) or None."""
    colors = np.array(list(ERROR_COLORS.values()), np.float32)
    result = colors[codes]  # (H, W, 3)
    scored = codes != list(ERROR_COLORS).index("void")
    if image is not None:
        grey = cv2.cvtColor(picture_of(image, codes.shape), cv2.COLOR_RGB2GRAY).astype(np.float32)[..., None]
        depth = np.where(codes == 0, 0.4, 0.18)[..., None]  # (H, W, 1): how much of the image shows, most where correct
        shade = 1 - depth + depth * grey / 255
        result = np.where(scored[..., None], result * shade, result)
    edge = inner_edges(truth_rows, line_width(codes.shape)) & scored
    result[edge] *= 0.6
    return result.round().astype(np.uint8)
