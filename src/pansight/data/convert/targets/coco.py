"""Write COCO panoptic and COCO instances, row by row, so that memory does not grow with the data set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as coco_mask

from pansight.data.convert.overlap import Resolved
from pansight.data.convert.source import Annotated
from pansight.data.images import encode_png
from pansight.errors import PansightError
from pansight.files import flat_name, write_bytes
from pansight.ops.idmap import areas, boxes_xyxy, ids_to_rgb
from pansight.types import LabelSpace


class CocoPanopticTarget:
    """``annotations/panoptic_SPLIT.json``, its PNGs in ``annotations/panoptic_SPLIT/``, images in ``SPLIT/``."""

    def __init__(self, folder: Path, labels: LabelSpace):
        self.folder, self.labels, self.notes = folder, labels, ()
        self._files: dict[str, _SplitFile] = {}
        self._png_names: dict[str, set[str]] = {}

    def image_file(self, split: str, file_name: str) -> Path:
        return self.folder / split / file_name

    def draw(self, image: Annotated, result: Resolved) -> tuple[bytes, list[dict[str, Any]]]:
        """(PNG, rows of its segments)."""
        return drawn_panoptic(result, self.labels)

    def add(self, split: str, image: Annotated, drawn: tuple[bytes, list[dict[str, Any]]]) -> None:
        name = f"panoptic_{split}"
        file = self._files.setdefault(split, _SplitFile(self.folder / "annotations" / f"{name}.json"))
        taken = self._png_names.setdefault(split, set())
        png = flat_name(image.file_name, ".png", taken)
        write_bytes(self.folder / "annotations" / name / png, drawn[0])
        file.add("images", image_row(image))
        file.add("annotations", {"image_id": image.image_id, "file_name": png, "segments_info": drawn[1]})

    def close(self) -> None:
        for file in self._files.values():
            file.close(self.labels.to_json())


def drawn_panoptic(result: Resolved, labels: LabelSpace) -> tuple[bytes, list[dict[str, Any]]]:
    """(the RGB-coded PNG of an image, its ``segments_info``)."""
    pixels, boxes = areas(result.ids), boxes_xyxy(result.ids)
    rows: list[dict[str, Any]] = []
    for segment in result.segments:
        x1, y1, x2, y2 = boxes[segment.id]
        row: dict[str, Any] = {"id": segment.id, "category_id": labels[segment.category].source_id}
        row |= {"area": pixels[segment.id], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(segment.is_crowd)}
        rows.append(row if segment.score == 1.0 else row | {"score": segment.score})
    return encode_png(ids_to_rgb(result.ids)), rows


class CocoInstancesTarget:
    """``annotations/instances_SPLIT.json`` with run-length masks, images in ``SPLIT/``. Things only."""

    def __init__(self, folder: Path, labels: LabelSpace):
        if not labels.things:
            raise PansightError(
                where="coco_instances", expected="classes that are things", found="only stuff (see --things)"
            )
        self.folder, self.labels = folder, labels
        self._files: dict[str, _SplitFile] = {}
        self._count, self._stuff = 0, 0

    @property
    def notes(self) -> tuple[str, ...]:
        return (f"{self._stuff} segments of stuff are left out: COCO instances lists objects",) if self._stuff else ()

    def image_file(self, split: str, file_name: str) -> Path:
        return self.folder / split / file_name

    def draw(self, image: Annotated, result: Resolved) -> tuple[int, list[dict[str, Any]]]:
        """(segments of stuff, rows of the others)."""
        pixels, boxes = areas(result.ids), boxes_xyxy(result.ids)
        things = [segment for segment in result.segments if self.labels[segment.category].is_thing]
        rows: list[dict[str, Any]] = []
        for segment in things:
            x1, y1, x2, y2 = boxes[segment.id]
            packed = coco_mask.encode(np.asfortranarray(result.ids == segment.id))
            row: dict[str, Any] = {"image_id": image.image_id}
            row |= {"category_id": self.labels[segment.category].source_id, "iscrowd": int(segment.is_crowd)}
            row |= {"area": pixels[segment.id], "bbox": [x1, y1, x2 - x1, y2 - y1]}
            row["segmentation"] = {"size": list(image.size), "counts": packed["counts"].decode("ascii")}
            rows.append(row if segment.score == 1.0 else row | {"score": segment.score})
        return len(result.segments) - len(things), rows

    def add(self, split: str, image: Annotated, drawn: tuple[int, list[dict[str, Any]]]) -> None:
        path = self.folder / "annotations" / f"instances_{split}.json"
        file = self._files.setdefault(split, _SplitFile(path))
        file.add("images", image_row(image))
        self._stuff += drawn[0]
        for row in drawn[1]:
            self._count += 1
            file.add("annotations", {"id": self._count, **row})

    def close(self) -> None:
        rows = [row for row in self.labels.to_json() if row["isthing"]]
        for file in self._files.values():
            file.close([{key: row[key] for key in ("id", "name", "color")} for row in rows])


def image_row(image: Annotated) -> dict[str, Any]:
    height, width = image.size
    return {"id": image.image_id, "file_name": image.file_name, "height": height, "width": width}


class _SplitFile:
    """A COCO JSON that is written while its rows come: each list into a file of its own, joined at the end."""

    def __init__(self, path: Path):
        self.path = path
        self._begun: set[str] = set()

    def add(self, name: str, row: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # opened for each row, some microseconds: no file stays open where a conversion fails
        with self._part(name).open("a", encoding="utf-8") as file:
            file.write((",\n" if name in self._begun else "\n") + json.dumps(row))
        self._begun.add(name)

    def _part(self, name: str) -> Path:
        return self.path.with_suffix(f".{name}.part")

    def close(self, categories: Iterable[dict[str, Any]]) -> None:
        with self.path.open("w", encoding="utf-8") as whole:
            for name in ("images", "annotations"):
                whole.write(f'{"{" if name == "images" else ", "}"{name}": [')
                if name in self._begun:
                    with self._part(name).open(encoding="utf-8") as file:
                        shutil.copyfileobj(file, whole, 2**20)
                    self._part(name).unlink()
                whole.write("]")
            whole.write(f', "categories": {json.dumps(list(categories))}}}\n')
