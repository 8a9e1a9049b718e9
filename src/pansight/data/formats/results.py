"""What a model found in images, as files that other tools read: `predict` and `evaluate` write the same ones.

- COCO panoptic: predictions.json and predictions/*.png, where the model gives panoptic maps
- else semantic maps: semantic.json and semantic/*.png, grey, the data set's own category ids, 16-bit where needed
- else, or besides, objects: instances.json, COCO results (box [x, y, w, h], score, mask as run lengths)
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pansight.data.dataset import ids_tensor
from pansight.data.formats.coco_panoptic import PanopticWriter
from pansight.data.images import read_rgb_ids, write_png
from pansight.errors import PansightError
from pansight.files import flat_name, read_json, replacing, replacing_folder, write_json
from pansight.ops.maps.rle import mask_codes
from pansight.types import Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

if TYPE_CHECKING:
    from torch import Tensor

PANOPTIC, SEMANTIC, INSTANCES = "predictions", "semantic", "instances"
"""The kinds of results: NAME.json, and the folder NAME of PNGs but for objects."""


class ResultsWriter:
    """Writes predictions into `folder` as they come; each kind appears whole at the end, or not at all.

    What stood there is replaced, kinds included that this time there are none of. listing: instances.json names images
    and classes too, as an annotation file of COCO does, for ids that are nowhere else: {"images": …, "annotations": …,
    "categories": …} instead of the bare list of results.
    """

    def __init__(self, folder: str | Path, labels: LabelSpace, listing: bool = False):
        self.folder, self.labels, self.listing = Path(folder), labels, listing
        self._stack = ExitStack()
        self._writers: dict[str, Any] = {}

    def __enter__(self) -> ResultsWriter:
        return self

    def add(
        self,
        image_id: str | int,
        file_name: str,
        prediction: Prediction,
        codes: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        """One image, by the name of its file. codes: `mask_codes` of the instances, where they are known already.
        size: (H, W), for the listing of a model that gives boxes alone.
        """
        if prediction.panoptic is not None:
            self._writer(PANOPTIC, self._panoptic).add(image_id, file_name, prediction.panoptic)
            return
        if prediction.semantic is not None:
            self._writer(SEMANTIC, self._semantic).add(image_id, file_name, prediction.semantic)
        if prediction.instances is not None:
            rows = coco_results(image_id, prediction.instances, self.labels, codes)
            self._writer(INSTANCES, self._objects).add(image_id, file_name, rows, size)

    def join(self, parts: Sequence[Path]) -> None:
        """Add what other writers wrote into the folders `parts`, which are removed."""
        for part in parts:
            self._join_panoptic(part)
            if (part / f"{SEMANTIC}.json").is_file():
                for row in read_json(part / f"{SEMANTIC}.json")["images"]:
                    png = part / SEMANTIC / row["semantic"]
                    self._writer(SEMANTIC, self._semantic).move(row, png)
            if (part / f"{INSTANCES}.json").is_file():
                self._writer(INSTANCES, self._objects).add_rows(read_json(part / f"{INSTANCES}.json"))
            shutil.rmtree(part, ignore_errors=True)

    def _join_panoptic(self, part: Path) -> None:
        if not (part / f"{PANOPTIC}.json").is_file():
            return
        content = read_json(part / f"{PANOPTIC}.json")
        index = {source: c.id for source, c in self.labels.by_source_id().items()}
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            segments = tuple(
                Segment(row["id"], index[row["category_id"]], row.get("score", 1.0))
                for row in annotation["segments_info"]
            )
            ids = ids_tensor(read_rgb_ids(part / PANOPTIC / annotation["file_name"]))
            found = PanopticSegmentation(ids, segments)
            self._writer(PANOPTIC, self._panoptic).add(image["id"], image["file_name"], found)

    def _writer(self, kind: str, make: Callable[[], Any]) -> Any:
        if kind not in self._writers:
            self._writers[kind] = self._stack.enter_context(make())
        return self._writers[kind]

    def _panoptic(self) -> PanopticWriter:
        return PanopticWriter(self.folder / f"{PANOPTIC}.json", self.labels, overwrite=True)

    def _semantic(self) -> SemanticWriter:
        return SemanticWriter(self.folder, self.labels)

    def _objects(self) -> _ObjectsWriter:
        return _ObjectsWriter(self.folder / f"{INSTANCES}.json", self.labels if self.listing else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            for name in {PANOPTIC, SEMANTIC, INSTANCES} - set(self._writers):
                (self.folder / f"{name}.json").unlink(missing_ok=True)
                shutil.rmtree(self.folder / name, ignore_errors=True)


class SemanticWriter:
    """semantic/*.png and semantic.json: which PNG is of which image, the categories, and the value of void."""

    def __init__(self, folder: Path, labels: LabelSpace):
        self.folder, self.labels = folder, labels
        self._stack = ExitStack()
        self._rows: list[dict[str, Any]] = []
        self._names: set[str] = set()

    def __enter__(self) -> SemanticWriter:
        self._partial = self._stack.enter_context(replacing_folder(self.folder / SEMANTIC))
        return self

    def add(self, image_id: str | int, file_name: str, semantic: Tensor) -> None:
        png = self._name_of(file_name)
        write_png(self._partial / png, category_ids(semantic, self.labels))
        size = {"height": semantic.shape[0], "width": semantic.shape[1]}
        self._rows.append({"id": image_id, "file_name": file_name, "semantic": png, **size})

    def move(self, row: dict[str, Any], png: Path) -> None:
        """Take over a row of semantic.json with its PNG."""
        name = self._name_of(row["file_name"])
        os.replace(png, self._partial / name)
        self._rows.append({**row, "semantic": name})

    def _name_of(self, file_name: str) -> str:
        """As PanopticWriter names them."""
        return flat_name(file_name, ".png", self._names)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is None:
            void = int(np.iinfo(_kind_of(self.labels)).max)
            content = {"images": self._rows, "categories": self.labels.to_json(), "void": void}
            write_json(self.folder / f"{SEMANTIC}.json", content)


class _ObjectsWriter:
    """instances.json, written line by line: the masks of a large data set would not fit into memory.

    labels: of the classes to be named, together with the images; None: the bare list of results.
    """

    def __init__(self, path: Path, labels: LabelSpace | None):
        self.path, self.labels = path, labels
        self._stack = ExitStack()
        self._images: list[dict[str, Any]] = []
        self._first = True

    def __enter__(self) -> _ObjectsWriter:
        temporary = self._stack.enter_context(replacing(self.path))
        self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8"))
        self._file.write("[" if self.labels is None else '{"annotations": [')
        return self

    def add(
        self, image_id: str | int, file_name: str, rows: list[dict[str, Any]], size: tuple[int, int] | None
    ) -> None:
        sides = {} if size is None else {"height": size[0], "width": size[1]}
        self._images.append({"id": image_id, "file_name": file_name, **sides})
        self.add_rows(rows)

    def add_rows(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.write(("\n" if self._first else ",\n") + json.dumps(row, allow_nan=False))
            self._first = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.labels is None:
            self._file.write("\n]\n")
        elif kind is None and self.labels is not None:
            rest = {"images": self._images, "categories": self.labels.to_json()}
            self._file.write(f"\n], {json.dumps(rest)[1:]}\n")
        self._stack.__exit__(kind, error, trace)


def coco_results(
    image_id: str | int, instances: Instances, labels: LabelSpace, codes: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """One COCO result an object: box [x, y, w, h] in pixels, score, the data set's own category id, its mask if any."""
    if codes is None and instances.masks is not None:
        codes = mask_codes(instances.masks)
    rows: list[dict[str, Any]] = []
    boxes, classes, scores = instances.boxes_xyxy.tolist(), instances.labels.tolist(), instances.scores.tolist()
    for n, ((x1, y1, x2, y2), category, score) in enumerate(zip(boxes, classes, scores, strict=True)):
        row: dict[str, Any] = {"image_id": image_id, "category_id": labels[category].source_id, "score": score}
        row["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        if codes is not None and instances.masks is not None:
            row["segmentation"] = {"size": list(instances.masks.shape[1:]), "counts": codes[n]}
        rows.append(row)
    return rows


def category_ids(semantic: Tensor, labels: LabelSpace) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """int64 (H, W), indices into `labels` → the data set's own ids; IGNORE becomes the largest number of the type."""
    kind = _kind_of(labels)
    ids = [category.source_id for category in labels]
    if not 0 <= min(ids) <= max(ids) < np.iinfo(kind).max:
        raise PansightError(
            where="semantic map", expected="category ids of 0 … 65534", found=f"{min(ids)} … {max(ids)}"
        )
    table = np.array([*ids, np.iinfo(kind).max], kind)  # IGNORE, which is −1, looks up the last
    return cast(Any, table[semantic.numpy()])


def _kind_of(labels: LabelSpace) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if max(category.source_id for category in labels) < 255 else np.uint16
