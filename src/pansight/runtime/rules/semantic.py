"""Semantic networks: the likeliest class of each pixel."""

from __future__ import annotations

from ..values import Canvas, Outputs, Prediction, Rule
from .maps import likeliest


def semantic(outputs: Outputs, size: tuple[int, int], rule: Rule, task: str | None = None) -> Prediction:
    """Logits (1, C, h, w), resized as bilinear maps to `size` (H, W), of which the largest wins."""
    canvas = canvas_of(outputs, size)
    return Prediction(semantic=likeliest(outputs["logits"][0], canvas, rule.number("align_corners")))


def canvas_of(outputs: Outputs, size: tuple[int, int]) -> Canvas:
    """The sizes on the way of maps to a photo of `size` (H, W), of outputs that tell their canvas and extents."""
    height, width = outputs["canvas"].reshape(-1).tolist()
    top, left = outputs["extents"][0].tolist()
    return Canvas((height, width), (top, left), size)
