"""COCO instances: polygons and run-length masks that may overlap (https://cocodataset.org/#format-data).

The overlapping objects are in `Sample.instances`, crowds included. `Sample.truth` is a disjoint map of them,
smaller ones painted over larger ones and all over crowds; what no object covers is void, or one stuff segment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask
from numpy.typing import NDArray

from pansight.data.dataset import expect, ids_tensor, image_tensor
from pansight.data.formats.coco_files import expect_folder, image_folders, names_in
from pansight.data.formats.coco_panoptic import coco_json, image_names, read_coco_json
from pansight.data.images import check_stored, read_image
from pansight.data.paths import named_folder
from pansight.errors import PansightError, choice_error
from pansight.ops.idmap import boxes_xyxy, paint_in_order, present_ids
from pansight.types import (
    Category,
    Instances,
    LabelSpace,
    PanopticSegmentation,
    Sample,
    Segment,
    palette_color,
    read_flag,
)


class CocoInstances:
    """Images with lists of objects.

    background: "void", or "stuff" to make the uncovered pixels one segment of a class of that name. notes: lines on
    images that are read under another path than the JSON gives. damaged: annotations that are left out, since their
    image is not listed, their outlines have too few points or lie outside of the image, or their masks are empty.
    Raises PansightError where the JSON has another shape than the format's; a sample raises it where its image is
    missing, damaged or of another size than the JSON says, or an object's mask or flag is malformed.
    """

    def __init__(
        self,
        json: str | Path,
        images: str | Path,
        background: str = "void",
        content: dict[str, Any] | None = None,
    ):
        if background not in ("stuff", "void"):
            raise choice_error("background", background, ("stuff", "void"))
        self.json, self.images, self.background = Path(json), Path(images), background
        content = read_coco_json(self.json) if content is None else content
        self.labels = _labels(content["categories"], background, self.json)
        self._known = {source: category.id for source, category in self.labels.by_source_id().items()}
        self._rows: list[dict[str, Any]] = content["images"]
        names = image_names(self._rows, self.json)
        for row in self._rows:
            expect(all(isinstance(row.get(k), int) for k in ("height", "width")), self.json, "image sizes", row)
        position = {image_id: index for index, image_id in enumerate(names)}
        self._names, self.notes = names_in(self.images, list(names.values()), self.json)
        self._objects: list[list[dict[str, Any]]] = [[] for _ in self._rows]
        self.damaged: list[PansightError] = []
        self._problems: dict[int, PansightError] = {}  # of images whose objects are not all known
        for annotation in content["annotations"]:
            self._add(annotation, position)

    def _add(self, annotation: dict[str, Any], position: dict[str | int, int]) -> None:
        """Put an annotation among the objects of its image, or among what is left out."""
        image_id, where = annotation.get("image_id"), f"{self.json}: annotation {annotation.get('id')}"
        if not isinstance(image_id, str | int) or image_id not in position:
            self.damaged.append(PansightError(where=where, expected="a listed image", found=f"image_id {image_id!r}"))
            return
        if annotation.get("category_id") not in self._known:
            raise PansightError(
                where=where,
                expected="a listed category",
                found=f"{annotation.get('category_id')!r}",
                code="unlisted_category",
            )
        index, segmentation = position[image_id], annotation.get("segmentation")
        row = self._rows[index]
        size = row["height"], row["width"]
        if isinstance(segmentation, list) and any(map(_is_degenerate, segmentation)):
            whole = [polygon for polygon in segmentation if not _is_degenerate(polygon)]
            if not whole:
                found = f"{segmentation!r:.60}"
                self.damaged.append(PansightError(where=where, expected="an outline of 3 or more points", found=found))
                return
            annotation, segmentation = {**annotation, "segmentation": whole}, whole
        try:
            read_flag(annotation.get("iscrowd"), where, "iscrowd")
            _check_segmentation(segmentation, size, where)
        except PansightError as error:
            self._problems.setdefault(index, error.with_traceback(None))
            return
        if _may_be_empty(segmentation, size) and not decode_segmentation(segmentation, size, where).any():
            expected, found = f"a mask with pixels in the image ({size[0]}×{size[1]})", f"{segmentation!r:.60}"
            self.damaged.append(PansightError(where=where, expected=expected, found=found))
            return
        self._objects[index].append(annotation)

    def __len__(self) -> int:
        return len(self._rows)

    def image_id(self, index: int) -> str | int:
        return self._rows[index]["id"]

    def file_name(self, index: int) -> str:
        return self._names[index]

    def problem(self, index: int) -> PansightError | None:
        """Why an image cannot be used, as far as this is told without decoding it; None where nothing is wrong."""
        row = self._rows[index]
        try:
            check_stored(self.images / self._names[index], (row["height"], row["width"]))
        except PansightError as error:
            return error.with_traceback(None)  # which would keep what was read
        return self._problems.get(index)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        size = row["height"], row["width"]
        image = read_image(self.images / self._names[index], mask_size=size)
        if index in self._problems:
            raise self._problems[index]
        objects = self._objects[index]
        masks = np.zeros((len(objects), *size), bool)  # (N, H, W)
        for n, annotation in enumerate(objects):
            where = f"{self.json}: annotation {annotation.get('id')}"
            masks[n] = decode_segmentation(annotation["segmentation"], size, where)
        keep = [n for n, mask in enumerate(masks) if mask.any()]  # a polygon thinner than a pixel has no mask
        if len(keep) < len(objects):
            objects, masks = [objects[n] for n in keep], masks[keep]
        labels = [self._known[annotation["category_id"]] for annotation in objects]
        crowds = [bool(read_flag(annotation.get("iscrowd"), self.json, "iscrowd")) for annotation in objects]
        truth = self._disjoint(masks, labels, crowds)
        instances = make_instances(masks, labels, crowds)
        return Sample(image_tensor(image), truth, self.image_id(index), size, instances)

    def _disjoint(self, masks: NDArray[np.bool_], labels: list[int], crowds: list[bool]) -> PanopticSegmentation:
        """Give each pixel one id, n + 1 for object n; objects that are covered entirely have no segment."""
        pixels = masks.sum(axis=(1, 2)).tolist()
        order = sorted(range(len(labels)), key=lambda n: (not crowds[n], -pixels[n]))
        ids = paint_in_order(masks, [n + 1 for n in range(len(labels))], order)
        visible = set(present_ids(ids).tolist())
        segments = [Segment(n + 1, labels[n], 1.0, crowds[n]) for n in range(len(labels)) if n + 1 in visible]
        if self.background == "stuff" and 0 in visible:
            number = len(labels) + 1
            ids[ids == 0] = number
            segments.append(Segment(number, len(self.labels) - 1))
        return PanopticSegmentation(ids_tensor(ids), tuple(segments))


def make_instances(masks: NDArray[np.bool_], labels: list[int], crowds: list[bool]) -> Instances:
    """Truth from masks bool (N, H, W), none of them empty; boxes are the masks' own."""
    import torch  # when the first tensor is made, see data/dataset.py

    boxes = [boxes_xyxy(mask.astype(np.int32))[1] for mask in masks]
    return Instances(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),  # (N, 4)
        torch.tensor(labels, dtype=torch.int64),
        torch.ones(len(labels)),
        torch.from_numpy(masks),
        torch.tensor(crowds, dtype=torch.bool),
    )


def decode_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """Polygons ``[[x1, y1, …], …]``, or run lengths ``{size, counts}`` packed or not → 0/1 uint8 (H, W).

    Raises PansightError where they are malformed or for another size.
    """
    _check_segmentation(segmentation, size, where)
    height, width = size
    try:
        if isinstance(segmentation, list):
            packed = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            packed = coco_mask.frPyObjects(segmentation, height, width)
        else:
            packed = segmentation
        mask = coco_mask.decode(packed)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise PansightError(where=where, expected="a mask", found=f"one that cannot be decoded: {error}") from error
    if mask.shape != size:
        raise PansightError(where=where, expected=f"a mask of size {[height, width]}", found=list(mask.shape))
    return mask


def _check_segmentation(segmentation: Any, size: tuple[int, int], where: str) -> None:
    """Raises PansightError unless these are polygons or run lengths of an image of `size`; nothing is decoded."""
    height, width = size
    if not isinstance(segmentation, list | dict) or not segmentation:
        found = f"{segmentation!r:.40}"
        raise PansightError(where=where, expected="polygons or a run-length mask in 'segmentation'", found=found)
    if isinstance(segmentation, dict):
        stated = segmentation.get("size")
        if stated != [height, width]:
            raise PansightError(where=where, expected=f"a mask of size {[height, width]}", found=f"{stated!r}")
        counts = segmentation.get("counts")
        if isinstance(counts, list):
            total = sum(c for c in counts if isinstance(c, int))
            if total != height * width or not all(isinstance(c, int) and c >= 0 for c in counts):
                raise PansightError(where=where, expected=f"run lengths of {height * width} pixels", found=total)
        elif not isinstance(counts, str):
            raise PansightError(where=where, expected="run lengths", found=f"counts {counts!r:.60}")
        return
    for polygon in segmentation:
        good = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not good or not all(isinstance(v, int | float) for v in polygon):
            raise PansightError(where=where, expected="polygons of 3 or more x, y pairs", found=f"{polygon!r:.60}")


def _is_degenerate(polygon: Any) -> bool:
    """Whether a polygon has fewer than 3 different points, and so no pixel; a long one is not looked at."""
    if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) > 8:
        return False
    if not all(isinstance(value, int | float) for value in polygon):
        return False
    return len(set(zip(polygon[::2], polygon[1::2]))) < 3


SHORT = 16
"""A shape of at most so many numbers or letters may have no pixel, and is looked at before it is used."""


def _may_be_empty(segmentation: Any, size: tuple[int, int]) -> bool:
    """Whether polygons or run lengths, well formed, are worth drawing to see whether they have any pixel.

    Polygons that all begin outside of the image, or are short and cover less than a few pixels; short run lengths.
    """
    if isinstance(segmentation, dict):
        return len(segmentation["counts"]) <= SHORT
    height, width = size
    return all(
        not (0 <= polygon[0] < width and 0 <= polygon[1] < height)
        or (len(polygon) <= SHORT and _doubled_area(polygon) < 8)
        for polygon in segmentation
    )


def _doubled_area(polygon: list[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(x * below - right * y for x, y, right, below in zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1])))


def _labels(categories: list[dict[str, Any]], background: str, source: Path) -> LabelSpace:
    """All things, in the order of the file; with "stuff", a last class `background` under the next free source id."""
    try:
        things = LabelSpace.from_json([{**row, "isthing": 1} for row in categories])
    except PansightError as error:
        raise error.at(source) from error
    except (TypeError, ValueError) as error:
        raise PansightError(where=source, expected="categories with id and name", found=error) from error
    if background == "void":
        return things
    free = max(c.source_id for c in things) + 1
    return LabelSpace([*things, Category(len(things), "background", False, palette_color(len(things)), free)])


def open_coco_instances(
    source: str | Path,
    split: str | None = None,
    json: str | Path | None = None,
    images: str | Path | None = None,
    background: str = "void",
) -> CocoInstances:
    """A data folder or an annotation file; the image folder is found in the usual places unless named, below the data
    folder or as it stands.

    Raises PansightError listing what was looked for.
    """
    root, file = coco_json(Path(source), "instances", split, json)
    content = read_coco_json(file)
    if images is None:
        stated = list(image_names(content["images"], file).values())
        folder = expect_folder(image_folders(root, file, "instances", split), stated, file, "the images", "images")
    else:
        folder = named_folder(root, images)
    return CocoInstances(file, folder, background, content)
