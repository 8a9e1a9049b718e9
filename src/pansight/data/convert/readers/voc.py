"""Pascal VOC segmentation: SegmentationClass and SegmentationObject, palette PNGs of class and object numbers.

255 is the border between objects and stays void; 0 is the background, a stuff class unless asked otherwise. Annotation
tools write the same folders with classes of their own, listed with their colours in labelmap.txt; the PNGs may then be
in colours instead of numbers.
"""

from __future__ import annotations

from pathlib import Path

from pansight.data.categories import category_table
from pansight.data.convert.lookup import choose_part, image_size, images_by_stem
from pansight.data.convert.source import Annotated, Source, SourceCategory
from pansight.data.convert.values import expect_size, read_values, segments_of
from pansight.data.dataset import safe_join
from pansight.data.images import PNG_RGB, read_bytes, read_header, read_rgb_ids
from pansight.errors import PansightError, choice_error
from pansight.ops.idmap import IdArray, present_ids, relabel

BORDER = 255
PARTS = ("train", "val", "trainval", "test")


class Voc:
    """The images of one list. Segment ids: the object's number; the background has the first number that is free.

    colors: RGB as R + 256·G + 65536·B → class, for PNGs in colours.
    """

    def __init__(
        self,
        root: Path,
        stems: list[str],
        categories: tuple[SourceCategory, ...],
        colors: dict[int, int],
        background: str,
        notes: list[str],
    ):
        self.root, self.background, self.notes = root, background, tuple(notes)
        self.categories = categories if background == "stuff" else categories[1:]
        self._offset = 0 if background == "stuff" else 1
        self._colors, self._classes, self._stems = colors, len(categories), stems
        folder = root / "JPEGImages"
        if not folder.is_dir():
            raise PansightError(f"{folder}: expected the images, found no such folder")
        self._images = images_by_stem(folder)

    def __len__(self) -> int:
        return len(self._stems)

    def __getitem__(self, index: int) -> Annotated:
        stem = self._stems[index]
        class_file = self.root / "SegmentationClass" / f"{stem}.png"
        object_file = self.root / "SegmentationObject" / f"{stem}.png"
        image = self._images.get(stem)
        if image is None:
            raise PansightError(f"{self.root / 'JPEGImages' / stem}.jpg: expected the image of {stem}, found none")
        classes = self._read_classes(class_file)
        objects = self._read_objects(object_file)
        expect_size(object_file, objects.shape, classes.shape, class_file)
        size = classes.shape[0], classes.shape[1]
        image_size(image, size)
        values = classes * 65536 + objects
        values[(classes == BORDER) | (objects == BORDER)] = -1
        owner = self._owners(present_ids(values).tolist(), object_file)
        ids, segments = segments_of(values, lambda value: self._meaning(value, owner))
        return Annotated(stem, image.name, image, size, ids=ids, segments=segments)

    def _owners(self, values: list[int], file: Path) -> dict[int, int]:
        """Object → class. Raises PansightError where an object has several, or the background, or things no object."""
        owner: dict[int, int] = {}
        for value in values:
            if value < 0:
                continue
            number, label = value & 65535, value >> 16
            if (number == 0) != (label == 0):
                expected, found = ("no object", number) if label == 0 else ("an object", 0)
                name = self._name(label)
                raise PansightError(f"{file}: expected {expected} where the class is {name!r}, found {found}")
            if owner.setdefault(number, label) != label:
                names = f"{self._name(owner[number])} and {self._name(label)}"
                raise PansightError(f"{file}: expected one class for object {number}, found {names}")
        return owner

    def _meaning(self, value: int, owner: dict[int, int]) -> tuple[int, int, bool] | None:
        if value > 0:
            return value & 65535, (value >> 16) - self._offset, False
        if value == 0 and self.background == "stuff":
            return max(owner, default=0) + 1, 0, False
        return None

    def _name(self, label: int) -> str:
        return self.categories[label - self._offset].name if label >= self._offset else "background"

    def _read_classes(self, file: Path) -> IdArray:
        """int32 (H, W): index of the class, BORDER on borders."""
        if not _is_rgb(file):
            classes = read_values(file, 8, "classes of Pascal VOC")
            unknown = [n for n in present_ids(classes).tolist() if n >= self._classes and n != BORDER]
            if unknown:
                raise PansightError(f"{file}: expected classes 0 … {self._classes - 1} or 255, found {unknown[0]}")
            return classes
        coded = read_rgb_ids(file)
        unknown = [n for n in present_ids(coded).tolist() if n not in self._colors]
        if unknown:
            red, green, blue = unknown[0] & 255, (unknown[0] >> 8) & 255, unknown[0] >> 16
            raise PansightError(f"{file}: expected colours of labelmap.txt, found {red},{green},{blue}")
        return relabel(coded, self._colors)

    def _read_objects(self, file: Path) -> IdArray:
        """int32 (H, W): number of the object, 0 = background, BORDER on borders."""
        if not _is_rgb(file):
            return read_values(file, 8, "objects of Pascal VOC")
        coded = read_rgb_ids(file)
        border = _coded((224, 224, 192))
        colors = [n for n in present_ids(coded).tolist() if n not in (0, border)]
        if len(colors) >= BORDER:
            raise PansightError(f"{file}: expected at most {BORDER - 1} objects, found {len(colors)}")
        return relabel(coded, {border: BORDER} | {color: n for n, color in enumerate(colors, 1)})


def _is_rgb(file: Path) -> bool:
    if not file.is_file():
        raise PansightError(f"{file}: expected annotations of Pascal VOC, found no such file")
    header = read_header(read_bytes(file), file)
    return header.kind == "png" and header.png_color == PNG_RGB


def _coded(color: tuple[int, int, int]) -> int:
    return color[0] + 256 * color[1] + 65536 * color[2]


def _label_map(file: Path) -> tuple[tuple[SourceCategory, ...], dict[int, int]]:
    """(classes, background first; colour → class) from lines ``name:r,g,b:parts:actions``; # begins a comment."""
    rows: list[tuple[str, tuple[int, int, int]]] = []
    for number, line in enumerate(_lines(file), 1):
        name, _, rest = line.partition(":")
        values = rest.partition(":")[0].split(",")
        if not name or len(values) != 3 or not all(v.strip().isdecimal() and int(v) <= 255 for v in values):
            raise PansightError(
                f"{file}: line {number}: expected name:red,green,blue:parts:actions, found {line!r:.60}"
            )
        red, green, blue = (int(v) for v in values)
        rows.append((name, (red, green, blue)))
    rows.sort(key=lambda row: row[0] != "background")
    if len(rows) > BORDER:
        raise PansightError(f"{file}: expected at most {BORDER} classes, found {len(rows)}")
    if not rows or rows[0][0] != "background":
        raise PansightError(f"{file}: expected a class 'background', found {', '.join(n for n, _ in rows) or 'none'}")
    colors = {_coded(color): index for index, (_, color) in enumerate(rows)}
    if len(colors) != len(rows):
        raise PansightError(f"{file}: expected each colour once, found one repeated")
    categories = [SourceCategory(n, i, None if i else False, color) for i, (n, color) in enumerate(rows)]
    return tuple(categories), {_coded((224, 224, 192)): BORDER} | colors


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PansightError(f"{file}: expected lines of text, found: {error}") from error
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
            raise PansightError(f"{root}: expected SegmentationClass/ and SegmentationObject/, found no {folder}/")
    lists = root / "ImageSets" / "Segmentation"
    present = sorted(file.stem for file in lists.glob("[!.]*.txt"))
    parts = sorted(present, key=lambda name: PARTS.index(name) if name in PARTS else len(PARTS))
    part, note = choose_part(parts, split, lists)
    if part is None:
        stems = sorted(file.stem for file in (root / "SegmentationObject").glob("[!.]*.png"))
    else:
        names = dict.fromkeys(_lines(lists / f"{part}.txt"))
        stems = [safe_join(Path(), name, lists / f"{part}.txt").as_posix() for name in names]
    if not stems:
        raise PansightError(f"{lists / f'{part}.txt' if part else root}: expected names of images, found none")
    notes = [note] if note else []
    if (root / "labelmap.txt").is_file():
        categories, colors = _label_map(root / "labelmap.txt")
    else:
        rows = category_table("pascal_voc")
        categories = tuple(SourceCategory(r["name"], r["id"], bool(r["isthing"]), tuple(r["color"])) for r in rows)
        colors = {_coded((224, 224, 192)): BORDER} | {_coded(tuple(r["color"])): r["id"] for r in rows}
    return Voc(root, stems, categories, colors, background, notes)


def is_voc(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    root = _root(source)
    return (root / "SegmentationObject").is_dir() and (root / "SegmentationClass").is_dir()
