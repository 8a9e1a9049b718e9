"""The figures of a combination: of its two parts, each on its own, and of the panoptic map that they make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pansight.apps.scoring.pairing import read_reference
from pansight.data.dataset import ids_tensor
from pansight.data.formats.predictions.listing import ImageId, ListedImage
from pansight.data.images import read_rgb_ids
from pansight.errors import PansightError
from pansight.files import safe_join
from pansight.metrics import create_metrics, evaluation_record
from pansight.metrics.bootstrap.records import with_intervals
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.machine import machine_rows
from pansight.metrics.panoptic.dagger import PanopticQualityDagger
from pansight.metrics.panoptic.errors import ErrorAnalysis
from pansight.metrics.panoptic.quality import PanopticQuality
from pansight.metrics.without_overlaps import WithoutOverlaps
from pansight.ops.idmap import present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Prediction, Sample, Segment


class Truth:
    """A COCO panoptic truth without its photos. images: by the names of the photos where the file has them.

    folder: of the PNGs, by default the folder of the JSON's name. Raises PansightError as `PanopticFile` does, and
    where there is no such folder.
    """

    def __init__(self, path: Path, folder: Path | None):
        self.file = PanopticFile(path)
        self.labels: LabelSpace = self.file.labels
        self.folder = path.with_suffix("") if folder is None else folder
        if not self.folder.is_dir():
            hint = "name it: --gt-dir"
            raise PansightError(where=path, expected=f"its PNGs in {self.folder}", found="no such folder", hint=hint)
        listed = {image.id: image for image in read_reference(path, classes_needed=False).images or ()}
        names = zip(self.file.image_ids, self.file.file_names, strict=True)
        self.images = [listed.get(image_id, ListedImage(image_id, name)) for image_id, name in names]

    def __len__(self) -> int:
        return len(self.file)

    def sample(self, image_id: ImageId) -> Sample:
        """The truth of an image; its photo is left empty. Raises PansightError for a bad PNG."""
        index = self.file.index(image_id)
        png = safe_join(self.folder, self.file.file_names[index], self.file.path)
        ids = read_rgb_ids(png)
        table = self.file.table(index)
        columns = zip(table.ids.tolist(), table.categories.tolist(), table.crowd.tolist(), strict=True)
        segments = tuple(Segment(number, category, 1.0, crowd) for number, category, crowd in columns)
        strange = set(present_ids(ids).tolist()) - {s.id for s in segments} - {0}
        if strange:
            raise PansightError(where=png, expected=f"only ids that {self.file.path.name} lists", found=min(strange))
        truth = PanopticSegmentation(ids_tensor(ids), segments)
        return Sample(torch.empty((3, 0, 0), dtype=torch.uint8), truth, image_id, truth.size)


class MachineFigures:
    """PQ of the panoptic maps, IoU of the semantic maps and AP of the instances that these were merged from."""

    def __init__(self, labels: LabelSpace):
        self.metrics = create_metrics(labels)
        self.alone = PanopticQuality(labels)
        self.errors, self.dagger = ErrorAnalysis(labels), PanopticQualityDagger(labels)
        self.without_overlaps = WithoutOverlaps(labels)

    def update(self, prediction: Prediction, stuff_alone: PanopticSegmentation, truth: Sample) -> None:
        """Add one image. stuff_alone: of its semantic map. Raises PansightError where sizes differ from the truth's."""
        height, width = truth.size
        assert prediction.panoptic is not None
        if prediction.panoptic.size != truth.size:
            expected, found = f"{height}×{width} (its truth)", "×".join(map(str, prediction.panoptic.size))
            raise PansightError(
                where=f"image {truth.image_id}",
                expected=f"predictions of {expected}",
                found=f"{found} (height × width)",
            )
        match = self.metrics["panoptic"].update(prediction, truth)
        self.metrics["semantic"].update(prediction, truth)
        self.metrics["instances"].update(prediction, truth)
        self.without_overlaps.update(prediction, truth, self.metrics["instances"].last_truth)
        self.alone.update(Prediction(stuff_alone), truth)
        self.errors.update(match)
        self.dagger.update(match)

    def record(self) -> dict[str, Any]:
        """The content of evaluation.json."""
        record = evaluation_record(self.metrics) | self.errors.compute() | {"pq_dagger": self.dagger.compute()}
        record["without_overlaps"] = self.without_overlaps.compute()
        record["machine"] = machine_rows(record, self.alone.compute()["Stuff"])
        return with_intervals(record)
