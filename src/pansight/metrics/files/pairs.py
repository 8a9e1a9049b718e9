"""Pair the images of a truth with those of a prediction, both given as COCO panoptic files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pansight.errors import PansightError
from pansight.files import read_plain, safe_join
from pansight.metrics.files.class_map import ClassMap, map_overlaps, map_table
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.panoptic.matching import ImageMatch, SegmentTable, match_tables
from pansight.ops.idmap import IdArray, relabel
from pansight.ops.maps.label_png import LabelPng, PairCounter, open_label_png
from pansight.ops.maps.overlap import Overlaps
from pansight.types import VOID


class Pair(NamedTuple):
    """One image, matched."""

    image_id: str | int
    file_name: str  # of the truth's PNG
    size: tuple[int, int]  # (H, W)
    match: ImageMatch
    truth_ids: IdArray | None  # int32 (H, W), where maps were asked for
    prediction_ids: IdArray | None
    stale_areas: int  # truth segments whose area in the JSON is not what the PNG has


class PanopticPairs:
    """The images of `truth` with their predictions, by image id; predictions of other images are passed over.

    truth_folder, prediction_folder: of the PNGs. class_map: where the label spaces differ; results are in the truth's.
    strict: as panopticapi counts: areas of the truth from its JSON, of each class only the last crowd, and pixels of
    the truth with an id that its JSON lacks are no void.
    Raises PansightError where an image has no prediction; an image, where a file is missing, damaged or inconsistent.
    """

    def __init__(
        self,
        truth: PanopticFile,
        truth_folder: str | Path,
        prediction: PanopticFile,
        prediction_folder: str | Path,
        class_map: ClassMap | None = None,
        strict: bool = False,
    ):
        if strict and class_map is not None:
            raise PansightError(
                where="strict compatibility", expected="no class map", found="one", hint="panopticapi knows none"
            )
        self.truth, self.prediction, self.class_map, self.strict = truth, prediction, class_map, strict
        self.truth_folder, self.prediction_folder = Path(truth_folder), Path(prediction_folder)
        self._partners = [prediction.index(image_id) for image_id in truth.image_ids]

    def __len__(self) -> int:
        return len(self.truth)

    def read(self, index: int, counter: PairCounter, maps: bool = False) -> Pair:
        """Image number `index` of the truth. maps: keep the id maps too. counter: one for each thread."""
        image_id = self.truth.image_ids[index]
        truth = _open(self.truth_folder, self.truth, index)
        prediction = _open(self.prediction_folder, self.prediction, self._partners[index])
        overlaps = counter.count(truth, prediction)
        try:
            match, stale, changed = self._match(index, overlaps)
        except PansightError as error:
            raise error.at(f"image {image_id} ({truth.name}, {prediction.name})") from error
        truth_ids, prediction_ids = (
            _changed_ids(counter.decode(png), numbers) if maps else None
            for png, numbers in zip((truth, prediction), changed)
        )
        size = truth.height, truth.width
        return Pair(image_id, self.truth.file_names[index], size, match, truth_ids, prediction_ids, stale)

    def _match(self, index: int, overlaps: Overlaps) -> tuple[ImageMatch, int, tuple[dict[int, int], dict[int, int]]]:
        truth, prediction = self.truth.table(index), self.prediction.table(self._partners[index])
        stated = self.truth.stated_areas(index)
        if self.strict:
            if (stated < 0).any():
                number = int(truth.ids[int(np.argmax(stated < 0))])
                raise PansightError(where=f"truth: segment {number}", expected="an area in the JSON", found="none")
            stray = np.setdiff1d(overlaps.first, np.append(truth.ids, VOID)).tolist()
            return match_tables(truth, prediction, overlaps, stated), 0, (dict.fromkeys(stray, VOID), {})
        if self.class_map is None:
            match = match_tables(truth, prediction, overlaps)
            return match, int(((stated >= 0) & (stated != match.truth_area)).sum()), ({}, {})
        return self._match_mapped(truth, prediction, stated, overlaps)

    def _match_mapped(
        self, truth: SegmentTable, prediction: SegmentTable, stated: NDArray[np.float64], overlaps: Overlaps
    ) -> tuple[ImageMatch, int, tuple[dict[int, int], dict[int, int]]]:
        assert self.class_map is not None
        stale = _stale_areas(truth, stated, overlaps)
        truth, gone = map_table(truth, self.class_map.truth)
        prediction, joined = map_table(prediction, self.class_map.prediction, self.class_map.joined)
        return match_tables(truth, prediction, map_overlaps(overlaps, gone, joined)), stale, (gone, joined)


def _open(folder: Path, file: PanopticFile, index: int) -> LabelPng:
    path = safe_join(folder, file.file_names[index], file.path)
    try:
        data = read_plain(path)
    except FileNotFoundError as error:
        raise PansightError(
            where=path, expected=f"the PNG of image {file.image_ids[index]}", found="no such file", code="missing_file"
        ) from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    return open_label_png(data, str(path))


def _changed_ids(ids: IdArray, changed: dict[int, int]) -> IdArray:
    if not changed:
        return ids
    same = {number: number for number in np.unique(ids).tolist()}
    return relabel(ids, same | changed)


def _stale_areas(truth: SegmentTable, stated: NDArray[np.float64], overlaps: Overlaps) -> int:
    """How many segments have another area in the JSON than in the PNG."""
    order = np.argsort(truth.ids)
    place = np.searchsorted(truth.ids[order], overlaps.first)
    place = np.minimum(place, max(len(order) - 1, 0))
    known = truth.ids[order][place] == overlaps.first if len(order) else np.zeros(len(overlaps.first), bool)
    counted = np.zeros(len(truth.ids), np.int64)
    np.add.at(counted, order[place[known]], overlaps.pixels[known])
    return int(((stated >= 0) & (stated != counted)).sum())
