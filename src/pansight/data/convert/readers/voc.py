"""Pascal VOC segmentation: SegmentationClass and SegmentationObject, palette PNGs of class and object numbers.

255 is the border between objects and stays void; 0 is the background, a stuff class unless asked otherwise. Annotation
tools write the same folders with classes of their own, listed in labelmap.txt, class_names.txt or the like, some with
colours; the PNGs may then be in colours instead of numbers. Only where no such table lies are the names Pascal VOC's.
"""

from __future__ import annotations

from pathlib import Path

from pansight.data.categories import category_table
from pansight.data.convert.class_table import BACKGROUND, PixelClass, find_class_table, read_classes
from pansight.data.convert.lookup import choose_part, either_case, files_ending, image_size, images_by_stem
from pansight.data.convert.source import Annotated, Source, SourceCategory
from pansight.data.convert.values import expect_size, read_values, segments_of
from pansight.data.dataset import SPLITS, split_of
from pansight.data.images import read_bytes, read_header, read_rgb_ids
from pansight.errors import PansightError, choice_error
from pansight.files import read_text, safe_join
from pansight.ops.idmap import IdArray, present_ids, relabel

BORDER = 255
BORDER_COLOR = 224 + 256 * 224 + 65536 * 192  # as read_rgb_ids reads it: number 255 of the set's palette
LISTS = Path("ImageSets", "Segmentation")
PARTS = ("train", "val", "trainval", "test")


class Voc:
    """The images of one list. Segment ids: the object's number; the background has the first number that is free."""

    def __init__(self, root: Path, stems: list[str], classes: list[PixelClass], background: str, notes: list[str]):
        self.root, self.notes, self._stems, self._classes = root, tuple(notes), stems, classes
        self._background = next(n for n, row in enumerate(classes) if row.name == "background")
        kept = [n for n in range(len(classes)) if n != self._background or background == "stuff"]
        self.categories = tuple(
            SourceCategory(row.name, row.value, row.is_thing, row.color) for row in (classes[n] for n in kept)
        )
        self._index = {n: index for index, n in enumerate(kept)}  # class → category
        self._by_color = {_coded(row.color): n for n, row in enumerate(classes) if row.color is not None}
        self._by_color.setdefault(BORDER_COLOR, BORDER)
        self._by_value = {BORDER: BORDER} | {row.value: n for n, row in enumerate(classes)}
        folder = root / "JPEGImages"
        if not folder.is_dir():
            raise PansightError(where=folder, expected="the images", found="no such folder", code="missing_file")
        self._images = images_by_stem(folder)

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Annotated:
        stem = self._stems[index]
        class_file = either_case(self.root / "SegmentationClass" / f"{stem}.png")
        object_file = either_case(self.root / "SegmentationObject" / f"{stem}.png")
        image = self._images.get(stem)
        if image is None:
            raise PansightError(
                where=f"{self.root / 'JPEGImages' / stem}.jpg", expected=f"the image of {stem}", found="none"
            )
        classes = self._read_classes(class_file)
        objects = self._read_objects(object_file)
        expect_size(object_file, objects.shape, classes.shape, class_file)
        size = classes.shape[0], classes.shape[1]
        image_size(image, size)
        values = classes * 65536 + objects
        values[(classes == BORDER) | (objects == BORDER)] = -1
        owner = self._owners([value for value in present_ids(values).tolist() if value >= 0], object_file)
        ids, segments = segments_of(values, lambda value: self._meaning(value, owner))
        name = image.relative_to(self.root / "JPEGImages").as_posix()
        return Annotated(stem, name, image, size, ids=ids, segments=segments)

    def _owners(self, values: list[int], file: Path) -> dict[int, int]:
        """Object → class. Raises PansightError where an object has several, or the background, or things no object."""
        owner: dict[int, int] = {}
        for value in values:
            number, label = value & 65535, value >> 16
            name = self._classes[label].name
            if (number == 0) != (label == self._background):
                expected = "an object" if number == 0 else "no object"
                raise PansightError(where=file, expected=f"{expected} where the class is {name!r}", found=number)
            if owner.setdefault(number, label) != label:
                names = f"{self._classes[owner[number]].name} and {name}"
                raise PansightError(where=file, expected=f"one class for object {number}", found=names)
        return owner

    def _meaning(self, value: int, owner: dict[int, int]) -> tuple[int, int, bool] | None:
        """(segment id, category, is_crowd) of class · 65536 + object; −1 is the border."""
        category = self._index.get(value >> 16) if value >= 0 else None
        if category is None:
            return None
        return (value & 65535) or max(owner) + 1, category, False

    def _read_classes(self, file: Path) -> IdArray:
        """int32 (H, W): index of the class, BORDER on borders."""
        if not _is_rgb(file):
            classes = read_values(file, 8, "classes of Pascal VOC")
            unknown = [n for n in present_ids(classes).tolist() if n not in self._by_value]
            if unknown:
                raise PansightError(
                    where=file,
                    expected=f"classes 0 … {max(row.value for row in self._classes)} or 255",
                    found=unknown[0],
                    hint="the names of other classes are read from class_names.txt beside the folders",
                )
            return relabel(classes, self._by_value)
        coded = read_rgb_ids(file)
        unknown = [n for n in present_ids(coded).tolist() if n not in self._by_color]
        if unknown:
            red, green, blue = unknown[0] & 255, (unknown[0] >> 8) & 255, unknown[0] >> 16
            raise PansightError(where=file, expected="colours of the table of classes", found=f"{red},{green},{blue}")
        return relabel(coded, self._by_color)

    def _read_objects(self, file: Path) -> IdArray:
        """int32 (H, W): number of the object, 0 = background, BORDER on borders."""
        if not _is_rgb(file):
            return read_values(file, 8, "objects of Pascal VOC")
        coded = read_rgb_ids(file)
        colors = [n for n in present_ids(coded).tolist() if n not in (0, BORDER_COLOR)]
        if len(colors) >= BORDER:
            raise PansightError(where=file, expected=f"at most {BORDER - 1} objects", found=len(colors))
        return relabel(coded, {BORDER_COLOR: BORDER} | {color: n for n, color in enumerate(colors, 1)})


def _is_rgb(file: Path) -> bool:
    if not file.is_file():
        raise PansightError(where=file, expected="annotations of Pascal VOC", found="no such file", code="missing_file")
    header = read_header(read_bytes(file), file)
    return header.kind == "png" and header.channels >= 3


def _coded(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]


def _class_table(root: Path, source: Path) -> tuple[list[PixelClass], str]:
    """(classes, a note where their names are from): of a table, which does not tell things, or the set's own."""
    file = find_class_table((root, source, root / "ImageSets", root / "SegmentationClass"))
    if file is None:
        rows = category_table("pascal_voc")
        note = "no table of classes (class_names.txt, labelmap.txt) lies there: their names are those of Pascal VOC"
        return [PixelClass(r["name"], r["id"], tuple(r["color"]), bool(r["isthing"])) for r in rows], note
    rows = read_classes(file)
    if len(rows) > BORDER or all(row.name not in BACKGROUND for row in rows):
        raise PansightError(where=file, expected=f"at most {BORDER} classes, one of them 'background'", found=len(rows))
    renamed = [row._replace(name="background", is_thing=False) if row.name in BACKGROUND else row for row in rows]
    return renamed, f"names of the classes are those of {file.name}"


def _lines(file: Path) -> list[str]:
    text = read_text(file, "lines of text")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _root(source: Path) -> Path:
    """The folder with SegmentationObject: `source`, or the newest VOC<year> in it or in its VOCdevkit."""
    places = [source, *sorted(source.glob("VOC*"), reverse=True), *sorted(source.glob("VOCdevkit/VOC*"), reverse=True)]
    return next((place for place in places if (place / "SegmentationObject").is_dir()), source)


def open_voc(source: Path, split: str | None = None, background: str = "stuff") -> Source:
    """Pascal VOC SegmentationClass + SegmentationObject.

    background: "stuff" keeps it as a class, "void" leaves it void. Raises PansightError listing what was looked for.
    """
    if background not in ("stuff", "void"):
        raise choice_error("background", background, ("stuff", "void"))
    root = _root(source)
    for folder in ("SegmentationClass", "SegmentationObject"):
        if not (root / folder).is_dir():
            hint = "; classes alone are read by --from semantic_png" if folder == "SegmentationObject" else ""
            raise PansightError(
                where=root, expected="SegmentationClass/ and SegmentationObject/", found=f"no {folder}/{hint}"
            )
    lists = root / LISTS
    part, note = choose_part(_parts(lists), split, lists)
    if part is None:
        stems = [file.stem for file in files_ending(root / "SegmentationObject", ".png")]
    else:
        names = dict.fromkeys(_lines(lists / f"{part}.txt"))
        stems = [safe_join(Path(), name, lists / f"{part}.txt").as_posix() for name in names]
    if not stems:
        raise PansightError(where=lists / f"{part}.txt" if part else root, expected="names of images", found="none")
    classes, told = _class_table(root, source)
    return Voc(root, stems, classes, background, [told] if note is None else [note, told])


def splits_voc(source: Path) -> tuple[str, ...]:
    """train, val and test, which have no image in common; else whatever lists there are."""
    present = _parts(_root(source) / LISTS)
    usual = tuple(part for part in present if part in SPLITS)
    return usual or tuple(part for part in present if split_of(part) is not None) or present


def _parts(lists: Path) -> tuple[str, ...]:
    """The names of the lists, the usual ones first."""
    present = [file.stem for file in files_ending(lists, ".txt")]
    return tuple(sorted(present, key=lambda name: PARTS.index(name) if name in PARTS else len(PARTS)))


def is_voc(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    root = _root(source)
    return (root / "SegmentationObject").is_dir() and (root / "SegmentationClass").is_dir()
