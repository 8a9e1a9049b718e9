"""Drawn images for the viewer's tests."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from pansight.apps.pages.viewer import ViewerImage, ViewerWriter
from pansight.metrics.overlap import count_overlaps
from pansight.metrics.panoptic.errors import ErrorAnalysis, classify_errors
from pansight.metrics.panoptic.matching import SegmentTable, match_tables
from pansight.types import LabelSpace, Segment

LABELS = LabelSpace.from_names(["cat"], ["grass", "<img src=x onerror=alert(1)>"])


def truth_map() -> np.ndarray:
    """(20, 40): cat 7 top left, cat 300 right of it, grass 9 below; the rest is void."""
    ids = np.zeros((20, 40), np.int32)
    ids[:10, :10] = 7
    ids[:10, 20:30] = 300
    ids[12:16, :20] = 9
    return ids


def predicted_map() -> np.ndarray:
    """(20, 40): cat 1 on most of cat 7, segment 2 on the grass with another class, cat 3 on void."""
    ids = np.zeros((20, 40), np.int32)
    ids[:8, :10] = 1
    ids[12:16, :20] = 2
    ids[16:18, 36:38] = 3
    return ids


def drawn(
    image_id: str | int = "a",
    pq: float | None = 0.25,
    photo: np.ndarray | None = None,
    truth_ids: np.ndarray | None = None,
    truth: Iterable[tuple[int, int]] = ((7, 0), (300, 0), (9, 1)),
    prediction_ids: np.ndarray | None = None,
    prediction: Iterable[tuple[int, int, float]] = ((1, 0, 0.9), (2, 2, 0.5), (3, 0, 0.25)),
) -> ViewerImage:
    """truth: (id, category) of each segment; prediction: (id, category, score)."""
    if truth_ids is None:
        truth_ids, made = truth_map(), predicted_map()
    else:
        made = np.zeros_like(truth_ids)
        prediction = [] if prediction_ids is None else prediction
    found = made if prediction_ids is None else prediction_ids
    if photo is None:
        photo = np.full((*truth_ids.shape, 3), 90, np.uint8)
    tables = (
        SegmentTable.of(Segment(i, c) for i, c in truth),
        SegmentTable.of(Segment(i, c, score) for i, c, score in prediction),
    )
    match = match_tables(*tables, count_overlaps(torch.from_numpy(truth_ids), torch.from_numpy(found)))
    errors = classify_errors(match, np.array([c.is_thing for c in LABELS]))
    return ViewerImage(image_id, photo, truth_ids, found, match, errors, pq)


def write_page(out: Path, images: Iterable[ViewerImage], overwrite: bool = False) -> Path:
    analysis = ErrorAnalysis(LABELS)
    with ViewerWriter(out, LABELS, "A model", overwrite) as writer:
        for image in images:
            writer.add(image)
            analysis.update(image.match, image.errors)
        return writer.finish(analysis.compute())
