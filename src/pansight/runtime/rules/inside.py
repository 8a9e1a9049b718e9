"""A graph that has the rule inside gives the panoptic map of what the network saw; here it becomes one of the photo."""

from __future__ import annotations

import numpy as np

from ..values import Array, Outputs, Panoptic, Prediction, Segment


def applied(outputs: Outputs, valid: Array, size: tuple[int, int]) -> Prediction:
    """The map at `size` (H, W): each pixel is that of the nearest centre. Segments without a pixel left are dropped.

    outputs: `masks` int64 (1, H', W', 2), class and segment of each pixel, `segment_ids` and `scores` (1, Q), 0 where
    there is no segment. valid: bool (H', W'), False on padding.
    """
    seen = int(valid.any(1).sum()), int(valid.any(0).sum())
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(seen, size))
    classes, ids = np.moveaxis(outputs["masks"][0][rows[:, None], columns], -1, 0)
    numbers, first = np.unique(ids, return_index=True)
    category = dict(zip(numbers.tolist(), classes.reshape(-1)[first].tolist()))
    of_segments = zip(outputs["segment_ids"][0].tolist(), outputs["scores"][0].tolist())
    segments = sorted(Segment(number, category[number], score) for number, score in of_segments if number in category)
    return Prediction(Panoptic(ids.astype(np.int32), tuple(s for s in segments if s.id)))
