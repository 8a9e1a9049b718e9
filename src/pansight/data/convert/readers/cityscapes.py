"""Cityscapes as downloaded: gtFine or gtCoarse with instance ids, label ids or polygons, one folder per city.

What comes out is what createPanopticImgs of cityscapesScripts makes, but for the images' names, which it gets wrong:
segment id = value in instanceIds (label·1000 + number; the bare label where objects could not be told apart, which is
a crowd of a thing and all there is of stuff); the 19 evaluated classes, all else void. Polygons are painted in the
order of the file with the same library that the makers used, so they give the same map as instanceIds.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from PIL import Image, ImageDraw

from pansight.data.categories import category_table
from pansight.data.convert.lookup import choose_part, image_size
from pansight.data.convert.polygons import expect_short
from pansight.data.convert.source import Annotated, Source, SourceCategory
from pansight.data.convert.values import read_annotation, read_values, segments_of, unannotated
from pansight.data.images import MAX_PIXELS
from pansight.errors import PansightError, choice_error
from pansight.files import decode_json
from pansight.ops.idmap import IdArray
from pansight.types import Flag, read_flag

FOLDERS = ("gtFine", "gtCoarse")
PARTS = ("train", "val", "test", "train_extra")
SUFFIXES = {"instance_ids": "instanceIds.png", "polygons": "polygons.json", "label_ids": "labelIds.png"}
"""Kind of annotation → end of its file names; where several are there, the first is read."""

CATEGORY_IDS = {"label": "id", "train": "trainId"}
"""Choice of category ids → column of the set's table."""

MAX_COORDINATE = 1_000_000


class _Object(msgspec.Struct):
    label: str
    polygon: list[tuple[float, float]]  # x, y
    deleted: Flag = 0


class _Polygons(msgspec.Struct):
    imgHeight: int
    imgWidth: int
    objects: list[_Object]


class Label(NamedTuple):
    """A row of the set's own table of labels."""

    id: int
    name: str
    category: int | None  # index among the evaluated classes; None: left void
    has_instances: bool


class Cityscapes:
    """The annotations of one kind in one part of the set."""

    def __init__(self, root: Path, folder: str, part: str, kind: str, ids: str, notes: list[str]):
        self.folder, self.part, self.kind = root / folder / part, part, kind
        images = root / "leftImg8bit" / part
        self.images = images if images.is_dir() else None
        every = category_table("cityscapes_all_labels")
        evaluated = [row for row in every if not row["ignoreInEval"]]
        number = CATEGORY_IDS[ids]
        self.categories = tuple(
            SourceCategory(row["name"], row[number], bool(row["isthing"]), tuple(row["color"])) for row in evaluated
        )
        index = {row["id"]: n for n, row in enumerate(evaluated)}
        labels = [Label(row["id"], row["name"], index.get(row["id"]), row["hasInstances"]) for row in every]
        self._by_id, self._by_name = {label.id: label for label in labels}, {label.name: label for label in labels}
        self._end = f"_{folder}_{SUFFIXES[kind]}"
        self._files = sorted(self.folder.glob(f"*/[!.]*{self._end}"))
        if not self._files:
            raise PansightError(where=self.folder, expected=f"CITY/*{self._end}", found="none")
        self.notes = (*notes, *self._remarks())

    def _remarks(self) -> list[str]:
        crowds = "labelIds do not tell objects apart: the pixels of a thing class are one crowd"
        remarks = [crowds] if self.kind == "label_ids" else []
        if self.images is None:
            return [*remarks, f"no images: leftImg8bit/{self.part} (leftImg8bit_trainvaltest.zip) is not there"]
        stems = (file.name.removesuffix(self._end) for file in self._files)
        return [*remarks, *unannotated(self.images, stems, "_leftImg8bit")]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Annotated:
        file = self._files[index]
        image_id = file.name.removesuffix(self._end)
        name = f"{image_id}_leftImg8bit.png"
        image = None if self.images is None else self.images / file.parent.name / name
        values = self._painted(file, image) if self.kind == "polygons" else self._read(file, image)
        ids, segments = segments_of(values, lambda value: self._meaning(value, file))
        return Annotated(image_id, name, image, (ids.shape[0], ids.shape[1]), ids=ids, segments=segments)

    def _meaning(self, value: int, file: Path) -> tuple[int, int, bool] | None:
        """(segment id, category, is_crowd) of a pixel value; None for labels that are not evaluated."""
        label = self._by_id.get(value if value < 1000 else value // 1000)
        if label is None:
            raise PansightError(where=file, expected="labels 0 … 33 (times 1000 + number)", found=value)
        if label.category is None:
            return None
        return value, label.category, value < 1000 and label.has_instances

    def _read(self, file: Path, image: Path | None) -> IdArray:
        """int32 (H, W), the values of a PNG."""
        values = read_values(file, 16 if self.kind == "instance_ids" else 8, f"{self.kind} of Cityscapes")
        if image is not None:
            image_size(image, (values.shape[0], values.shape[1]))
        return values

    def _painted(self, file: Path, image: Path | None) -> IdArray:
        """int32 (H, W) as in instanceIds.png."""
        data = read_annotation(file, "polygons of Cityscapes")
        expect_short(data, b",", file)
        content = decode_json(data, _Polygons, file)
        height, width = content.imgHeight, content.imgWidth
        if min(height, width) < 1 or height * width > MAX_PIXELS:
            raise PansightError(where=file, expected="imgHeight and imgWidth in pixels", found=f"{height} and {width}")
        if image is not None:
            image_size(image, (height, width))  # before anything is painted: the file may promise any size
        canvas = Image.new("I", (width, height), 0)
        pen = ImageDraw.Draw(canvas)
        seen: dict[int, int] = {}  # label → objects so far
        for number, row in enumerate(content.objects):
            if read_flag(row.deleted, f"{file}: object {number}", "deleted"):
                continue
            where = f"{file}: object {number}"
            label, is_group = self._label(row.label, where)
            if len(row.polygon) < 2 or any(max(abs(x), abs(y)) > MAX_COORDINATE for x, y in row.polygon):
                raise PansightError(
                    where=where, expected="a polygon [[x, y], …] in pixels", found=f"{row.polygon!r:.60}"
                )
            if label.id < 0:
                continue  # license plates are part of their cars
            value = label.id
            if label.has_instances and not is_group:
                value = label.id * 1000 + seen.get(label.id, 0)
                seen[label.id] = seen.get(label.id, 0) + 1
                if seen[label.id] > 1000:
                    raise PansightError(where=where, expected=f"at most 1000 objects {label.name!r}", found="more")
            pen.polygon(row.polygon, fill=value)
        return np.array(canvas, np.int32)

    def _label(self, name: str, where: str) -> tuple[Label, bool]:
        """(label, whether it is a group of objects). "cargroup" is a group of "car"; "polegroup" a label of its own."""
        label = self._by_name.get(name) or self._by_name.get(name.removesuffix("group"))
        if label is None:
            raise PansightError(where=where, expected="a label of Cityscapes", found=f"{name!r:.60}")
        return label, name not in self._by_name


def open_cityscapes(
    source: Path,
    split: str | None = None,
    annotations: str | None = None,
    folder: str | None = None,
    ids: str = "label",
) -> Source:
    """Cityscapes gtFine: instanceIds, labelIds or polygons.

    annotations: "instance_ids", "polygons" or "label_ids"; without it the first of these that is there.
    folder: "gtFine" or "gtCoarse". ids: "label" for category ids 7 … 33, "train" for 0 … 18.
    Raises PansightError listing what was looked for.
    """
    root, found = _root_and_folder(source)
    folder = folder or found
    if folder not in FOLDERS:
        raise choice_error("folder of Cityscapes", folder, FOLDERS)
    if ids not in CATEGORY_IDS:
        raise choice_error("category ids", ids, CATEGORY_IDS)
    if annotations is not None and annotations not in SUFFIXES:
        raise choice_error("kind of annotation", annotations, SUFFIXES)
    if not (root / folder).is_dir():
        raise PansightError(
            where=root, expected=f"{folder}/ ({folder}_trainvaltest.zip)", found="no such folder", code="missing_file"
        )
    part, note = choose_part(_parts(root / folder), split, root / folder)
    if part is None:
        raise PansightError(where=root / folder, expected=", ".join(PARTS[:3]), found="none of these folders")
    place = root / folder / part
    kinds = [annotations] if annotations is not None else list(SUFFIXES)
    kind = next((k for k in kinds if next(place.glob(f"*/[!.]*_{folder}_{SUFFIXES[k]}"), None)), None)
    if kind is None:
        names = ", ".join(f"*_{folder}_{SUFFIXES[k]}" for k in kinds)
        raise PansightError(where=place, expected=f"CITY/ with one of {names}", found="none")
    return Cityscapes(root, folder, part, kind, ids, [note] if note else [])


def splits_cityscapes(source: Path) -> tuple[str, ...]:
    """The parts that are annotated: in those of the test part all is void, to be read by its name only."""
    root, folder = _root_and_folder(source)
    return tuple(part for part in _parts(root / folder) if part != "test")


def _root_and_folder(source: Path) -> tuple[Path, str]:
    """(folder above gtFine and leftImg8bit, name of the annotation folder in it)."""
    if source.name in FOLDERS:
        return source.parent, source.name
    return source, next((folder for folder in FOLDERS if (source / folder).is_dir()), FOLDERS[0])


def _parts(folder: Path) -> list[str]:
    return [part for part in PARTS if (folder / part).is_dir()]


def is_cityscapes(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return source.is_dir() and (source.name in FOLDERS or any((source / folder).is_dir() for folder in FOLDERS))
