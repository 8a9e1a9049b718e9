"""AP without overlaps (AP^NO): the average precision of the things of a panoptic map.

A pixel of a panoptic map belongs to one segment, while detections may overlap; so a detector loses some of its AP when
it is made panoptic. Kirillov, He, Girshick, Rother, Dollár: Panoptic Segmentation, CVPR 2019, section 6, give both
figures side by side: AP of the detections, and AP^NO of what remains of them after the merge, with the same scores.
"""

from __future__ import annotations

from typing import Any

from pansight.metrics.average_precision import AveragePrecision, Objects, objects_of_map
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.types import LabelSpace, Prediction, Sample


class WithoutOverlaps:
    """Gathers the thing segments of predicted panoptic maps as detections, by the scores of the segments.

    Only predictions that have instances as well count: a model without any has no AP to compare with. `compute` gives
    {} where an image lacks either.
    """

    def __init__(self, labels: LabelSpace, max_detections: int = 100):
        self.precision = AveragePrecision(labels, max_detections)
        self._lacking = 0

    def update(self, prediction: Prediction, sample: Sample, truth: Objects | None) -> None:
        """Add one image. truth: its objects as `AveragePrecision` has them."""
        panoptic = prediction.panoptic
        if panoptic is None or prediction.instances is None or truth is None:
            self._lacking += 1
            return
        table = SegmentTable.of(panoptic.segments)
        found = objects_of_map(panoptic.ids.detach().cpu().numpy(), table, self.precision.labels)
        self.precision.add(sample.image_id, sample.truth.size, truth, found)

    def compute(self) -> dict[str, dict[str, float | None]]:
        """`box` and `mask` → the twelve figures of COCO, as in `AveragePrecision.compute`."""
        return {} if self._lacking else self.precision.figures()

    def merge(self, other: WithoutOverlaps) -> None:
        """Add what another process gathered. Raises PansightError for another label space or max_detections."""
        self.precision.merge(other.precision)
        self._lacking += other._lacking

    def state_dict(self) -> dict[str, Any]:
        """All that was gathered, as plain JSON values."""
        return self.precision.state_dict() | {"lacking": self._lacking}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was gathered by a `state_dict`."""
        self.precision.load_state_dict(state)
        self._lacking = int(state["lacking"])
