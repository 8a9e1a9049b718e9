"""ADE20K: the scene parsing benchmark with its instances (ADEChallengeData2016), and the full release of 2021.

Benchmark. ``annotations/`` holds classes 1 … 150 (0 = other), ``annotations_instance/`` a thing's class 1 … 100 in the
red and its number in the green channel. As in the usual panoptic files (MaskFormer's preparation script), stuff comes
from the first, things from the second and over it; pixels of a thing class without an instance are void.

Full release. ``*_seg.png`` holds the class in red and green, R // 10 · 256 + G, and the object in blue; the names of
the classes are in the JSON beside it (``name_ndx`` is that number). The set's index_ade20k.pkl is never opened.
Nothing there says what is a thing. Parts of objects (``*_parts_*.png``) are left out.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np

from pansight.data.categories import category_table
from pansight.data.convert.lookup import choose_part, files_ending, image_beside, image_size
from pansight.data.convert.source import Annotated, Source, SourceCategory
from pansight.data.convert.values import expect_size, read_annotation, read_values, segments_of, unannotated
from pansight.data.images import read_rgb_ids
from pansight.errors import PansightError
from pansight.files import decode_json, json_text
from pansight.ops.idmap import IdArray

PARTS = ("training", "validation")


class Ade20k:
    """One part of ADEChallengeData2016. Segment ids: the class 1 … 150 of stuff, class·1000 + number of a thing."""

    def __init__(self, root: Path, part: str, notes: list[str]):
        self.root, self.part = root, part
        rows = category_table("ade20k_panoptic")
        self.categories = tuple(
            SourceCategory(row["name"], row["id"], bool(row["isthing"]), tuple(row["color"])) for row in rows
        )
        self._class_of_instance = {row["instanceId"]: row["annotationId"] for row in rows if row["isthing"]}
        self._stuff = {row["annotationId"] for row in rows if not row["isthing"]}
        self._files = files_ending(root / "annotations" / part, ".png")
        if not self._files:
            raise PansightError(where=root / "annotations" / part, expected="PNGs of classes", found="none")
        images = root / "images" / part
        if not images.is_dir():
            raise PansightError(
                where=images,
                expected="the images (ADEChallengeData2016.zip)",
                found="no such folder",
                code="missing_file",
            )
        self.notes = (*notes, *unannotated(images, (file.stem for file in self._files)))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Annotated:
        file = self._files[index]
        instance_file = self.root / "annotations_instance" / self.part / file.name
        classes = read_values(file, 8, "classes of ADE20K")
        if not instance_file.is_file():
            raise PansightError(
                where=instance_file, expected=f"the instances of {file.name}", found="no such file", code="missing_file"
            )
        things = self._things(instance_file)
        expect_size(instance_file, things.shape, classes.shape, file)
        ids, segments = segments_of(np.where(things > 0, things, classes), lambda v: self._meaning(v, file))
        size, images = (ids.shape[0], ids.shape[1]), self.root / "images" / self.part
        image = image_beside(images, file.stem) or images / f"{file.stem}.jpg"
        image_size(image, size)
        return Annotated(file.stem, image.name, image, size, ids=ids, segments=segments)

    def _things(self, file: Path) -> IdArray:
        """class·1000 + number per pixel, 0 where there is no instance: int32 (H, W)."""
        coded = read_rgb_ids(file)
        red, green = coded & 255, (coded >> 8) & 255
        table = np.zeros(256, np.int32)
        for instance_class, annotation_class in self._class_of_instance.items():
            table[instance_class] = annotation_class
        numbered = green > 0
        known = table[red]
        if (numbered & (known == 0)).any():
            bad = int(red[numbered & (known == 0)][0])
            raise PansightError(where=file, expected="classes 1 … 100 in the red channel of an instance", found=bad)
        return np.where(numbered, known * 1000 + green, np.int32(0))

    def _meaning(self, value: int, file: Path) -> tuple[int, int, bool] | None:
        if value > 1000:
            return value, value // 1000 - 1, False
        if value > len(self.categories):
            raise PansightError(where=file, expected=f"classes 0 … {len(self.categories)}", found=value)
        return (value, value - 1, False) if value in self._stuff else None


def open_ade20k(source: Path, split: str | None = None) -> Source:
    """ADE20K scene parsing with its instances (ADEChallengeData2016).

    Raises PansightError listing what was looked for.
    """
    root = _root(source)
    for folder, archive in (("annotations", "ADEChallengeData2016.zip"), ("annotations_instance", "a tar of its own")):
        if not (root / folder).is_dir():
            raise PansightError(
                where=root, expected=f"{folder}/ ({archive})", found="no such folder", code="missing_file"
            )
    part, note = choose_part(_parts(root / "annotations"), split, root / "annotations")
    if part is None:
        raise PansightError(where=root / "annotations", expected=" or ".join(PARTS), found="neither")
    return Ade20k(root, part, [note] if note else [])


def splits_ade20k(source: Path) -> tuple[str, ...]:
    return _parts(_root(source) / "annotations")


def _root(source: Path) -> Path:
    return source / "ADEChallengeData2016" if (source / "ADEChallengeData2016").is_dir() else source


def _parts(folder: Path) -> tuple[str, ...]:
    return tuple(part for part in PARTS if (folder / part).is_dir())


def is_ade20k(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    marks = [_root(source) / name for name in ("annotations_instance", "objectInfo150.txt")]
    return (_root(source) / "annotations").is_dir() and any(mark.exists() for mark in marks)


# --- the full release of 2021 ----------------------------------------------------------------------------------------


class _Parts(msgspec.Struct):
    part_level: int | str | list[int] = 0


class _Object(msgspec.Struct):
    """MATLAB wrote these files: what is not known is an empty list, a list of one object is the object."""

    name: str | list[str]
    name_ndx: int | list[int]
    parts: _Parts = msgspec.field(default_factory=_Parts)


class _Annotation(msgspec.Struct):
    object: list[_Object] | _Object


class _File(msgspec.Struct):
    annotation: _Annotation


class Ade20kFull:
    """One part of the full release. Segment ids: class·256 + blue value; category ids: the set's own class numbers.

    All JSON files of the part are read once for the names of the classes.
    """

    def __init__(self, folder: Path, notes: list[str]):
        self.folder = folder
        self._files = files_ending(folder, "_seg.png", recursive=True)
        if not self._files:
            raise PansightError(where=folder, expected="*_seg.png below it", found="none")
        names: dict[int, str] = {}
        self._damaged: dict[Path, PansightError] = {}
        for file in self._files:
            try:
                found = _names(_beside(file, ".json"))
            except PansightError as error:
                self._damaged[file] = error.with_traceback(None)
                continue
            for number, name in found.items():
                names.setdefault(number, name)
        if len(self._damaged) == len(self._files):
            raise self._damaged[self._files[0]]
        count = Counter(names.values())
        ordered = sorted(names)
        self.categories = tuple(
            SourceCategory(f"{names[n]} ({n})" if count[names[n]] > 1 else names[n], n, None) for n in ordered
        )
        self._index = {number: index for index, number in enumerate(ordered)}
        told = ("the full release does not say which classes are things", "parts of objects are left out")
        annotated = {f"{file.stem.removesuffix('_seg')}.jpg" for file in self._files}
        bare = [file.name for file in files_ending(folder, ".jpg", recursive=True) if file.name not in annotated]
        if bare:
            told += (f"{len(bare)} images have no annotation and are left out: {bare[0]}, …",)
        self.notes = (*notes, *told)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Annotated:
        file = self._files[index]
        if file in self._damaged:
            raise self._damaged[file]
        coded = read_rgb_ids(file)
        classes = (coded & 255) // 10 * 256 + ((coded >> 8) & 255)
        values = np.where(classes > 0, classes * 256 + (coded >> 16), np.int32(0))
        ids, segments = segments_of(values, lambda value: self._meaning(value, file))
        size, image = (ids.shape[0], ids.shape[1]), _beside(file, ".jpg")
        image = image_beside(file.parent, image.stem) or image
        image_size(image, size)
        return Annotated(image.stem, image.name, image, size, ids=ids, segments=segments)

    def _meaning(self, value: int, file: Path) -> tuple[int, int, bool] | None:
        if value == 0:
            return None
        index = self._index.get(value // 256)
        if index is None:
            raise PansightError(where=file, expected="classes that the JSON files name", found=f"class {value // 256}")
        return value, index, False


def _beside(file: Path, suffix: str) -> Path:
    return file.with_name(file.name[: -len("_seg.png")] + suffix)


def _names(file: Path) -> dict[int, str]:
    """Class number → name of the objects in one annotation file; parts of objects are left out."""
    if file.with_name(f"{file.stem}_atr.txt").is_file() and not file.is_file():
        raise PansightError(
            where=file, expected="the names of its objects", found="none", hint="this is the release of 2017"
        )
    data = json_text(read_annotation(file, "the names of the objects"), file)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        data = data.decode("latin-1").encode()  # some free-text fields of the release are in it
    objects = decode_json(data, _File, file).annotation.object
    names: dict[int, str] = {}
    for row in objects if isinstance(objects, list) else [objects]:
        if isinstance(row.name, str) and isinstance(row.name_ndx, int) and row.parts.part_level in (0, "0"):
            names[row.name_ndx] = row.name.strip()
    return names


def open_ade20k_full(source: Path, split: str | None = None) -> Source:
    """ADE20K full release of 2021.

    Raises PansightError listing what was looked for.
    """
    images = _full_images(source)
    if images is None:
        raise PansightError(
            where=source,
            expected="images/ADE/training (ADE20K_2021_17_01)",
            found="no such folder",
            code="missing_file",
        )
    part, note = choose_part(_parts(images), split, images)
    assert part is not None  # _full_images found one
    return Ade20kFull(images / part, [note] if note else [])


def _full_images(source: Path) -> Path | None:
    """The folder that holds training/ and validation/ by scene."""
    places = (source / "images" / "ADE", source / "ADE20K_2021_17_01" / "images" / "ADE")
    return next((place for place in places if _parts(place)), None)


def splits_ade20k_full(source: Path) -> tuple[str, ...]:
    images = _full_images(source)
    return () if images is None else _parts(images)


def is_ade20k_full(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return _full_images(source) is not None
