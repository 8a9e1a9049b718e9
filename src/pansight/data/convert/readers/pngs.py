"""Images with PNGs whose pixel values are instance numbers, or classes.

Instance numbers (8 or 16 bit, or the indices of a palette; 0 = background): the layouts of `data.instance_png`, such as
Data Science Bowl 2018 and Penn-Fudan. Classes (the same kinds of PNG, or RGB by a table of colours): `images/` +
`labels/` and the like; a stuff class is one segment, a thing class as many as it has connected components.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from unicodedata import normalize

import cv2
import numpy as np

from pansight.data.convert.class_table import (
    PixelClass,
    checked_classes,
    classes_of_names,
    find_class_table,
    read_classes,
)
from pansight.data.convert.lookup import choose_part, image_size, images_by_stem, walk_images
from pansight.data.convert.source import Annotated, Source, SourceCategory, with_damaged
from pansight.data.dataset import part_folders
from pansight.data.formats.instance_png import LAYOUTS
from pansight.data.images import read_bytes, read_header, read_index_png, read_rgb_ids
from pansight.errors import PansightError, choice_error
from pansight.files import listed
from pansight.ops.idmap import IdArray, boxes_xyxy, present_ids, relabel

Pair = tuple[str, Path, Path]
"""(name below the image folder without suffix, image file, PNG)."""

INSTANCE_FOLDERS = tuple((images, masks) for images, masks, _ in LAYOUTS)
CLASS_FOLDERS = tuple(
    (images, masks)
    for images in ("images", "image", "imgs", "img", "JPEGImages")
    for masks in ("labels", "masks", "label", "mask", "annotations", "SegmentationClass", "semantic", "gt")
)
MASK_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_L", "_P", "_gt", "_seg", "_semantic")
"""What may follow the name of an image in that of its PNG."""

MAX_UNNAMED = 256
"""More values than this without a table of classes are taken for instance numbers by mistake."""


# --- instances -------------------------------------------------------------------------------------------------------


class _InstancePngs:
    """A disjoint map of one thing class an image, as the files give it."""

    def __init__(self, images: Path, pairs: list[Pair], thing: str, background: str, notes: tuple[str, ...]):
        self.categories = (SourceCategory(thing, 1, True),)
        if background == "stuff":
            self.categories += (SourceCategory("background", 2, False),)
            notes += ("pixels of value 0 are the stuff class 'background' (option background=void leaves them void)",)
        self.notes = notes
        self._images, self._pairs = images, pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Annotated:
        name, image, png = self._pairs[index]
        ids = read_index_png(png)
        size = image_size(image, (ids.shape[0], ids.shape[1]))
        segments = {int(number): (0, False) for number in present_ids(ids) if number != 0}
        if len(self.categories) > 1 and (ids == 0).any():
            number = max(segments, default=0) + 1
            ids = np.where(ids == 0, np.int32(number), ids)
            segments[number] = 1, False
        return Annotated(name, image.relative_to(self._images).as_posix(), image, size, ids=ids, segments=segments)


def open_instance_png(
    source: Path,
    split: str | None = None,
    *,
    image_folder: str | None = None,
    mask_folder: str | None = None,
    thing: str | None = None,
    background: str = "stuff",
) -> Source:
    """Images with instance-number PNGs, 8 or 16 bit or a palette (Penn-Fudan, nuclei); 0 = background.

    image_folder, mask_folder: the names of the two where they are called otherwise. thing: name of the class.
    background: "stuff" makes the zeros one segment of a class of that name, "void" leaves them void.
    Raises PansightError listing what was looked for; or where nothing is a pair; a PNG without an image
    is an image that raises it.
    """
    if background not in ("stuff", "void"):
        raise choice_error("background", background, ("stuff", "void"))
    images, masks, notes = _folders(Path(source), split, image_folder, mask_folder, INSTANCE_FOLDERS)
    pairs, unpaired, missing = _pairs(images, masks)
    usual = next((usual for _, folder, usual in LAYOUTS if folder in masks.parts[-2:]), "object")
    return with_damaged(_InstancePngs(images, pairs, thing or usual, background, notes + unpaired), missing)


def is_instance_png(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return _is_layout(source, INSTANCE_FOLDERS)


def splits_instance_png(source: Path) -> tuple[str, ...]:
    """The parts that have folders of their own."""
    return tuple(part for part in _parts(source, INSTANCE_FOLDERS) if part)


# --- classes ---------------------------------------------------------------------------------------------------------


class _SemanticPngs:
    """Class maps: stuff as one segment a class, things cut into connected components."""

    def __init__(
        self,
        images: Path,
        pairs: list[Pair],
        classes: list[PixelClass],
        ignored: frozenset[int],
        min_area: int,
        connectivity: int,
        notes: tuple[str, ...],
    ):
        kept = [c for c in classes if c.value not in ignored]
        self.categories = tuple(SourceCategory(c.name, c.value, c.is_thing, c.color) for c in kept)
        self.notes = notes
        self._images, self._pairs = images, pairs
        self._min_area, self._connectivity = min_area, connectivity
        numbers = {c.value: n + 1 for n, c in enumerate(kept)}  # class n is n + 1 in a map, 0 = void
        self._values = dict.fromkeys(ignored, 0) | numbers
        self._colors = {_color_id(c.color): numbers.get(c.value, 0) for c in classes if c.color is not None}

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Annotated:
        name, image, png = self._pairs[index]
        classes = self._class_map(png)
        size = image_size(image, (classes.shape[0], classes.shape[1]))
        ids, segments = self._segments(classes)
        return Annotated(name, image.relative_to(self._images).as_posix(), image, size, ids=ids, segments=segments)

    def _class_map(self, png: Path) -> IdArray:
        """int32 (H, W): index of the class + 1, 0 = void. Raises PansightError for values of no class."""
        in_color = bool(self._colors) and _is_rgb(png)
        values, known = (read_rgb_ids(png), self._colors) if in_color else (_class_numbers(png), self._values)
        unknown = [v for v in present_ids(values).tolist() if v not in known]
        if unknown:
            v = unknown[0]
            found = (
                f"colour {(v & 255, v >> 8 & 255, v >> 16)}" if in_color else f"value {v} (option ignore={v} for void)"
            )
            raise PansightError(where=png, expected=f"pixels of the {len(self.categories)} classes", found=found)
        return relabel(values, known)

    def _segments(self, classes: IdArray) -> tuple[IdArray, dict[int, tuple[int, bool]]]:
        """Class map → id map and its table; ids from 1, classes in their order."""
        ids = np.zeros_like(classes)
        segments: dict[int, tuple[int, bool]] = {}
        for value, (x1, y1, x2, y2) in boxes_xyxy(classes).items():
            mask = classes[y1:y2, x1:x2] == value
            first = len(segments) + 1
            if not self.categories[value - 1].is_thing:
                ids[y1:y2, x1:x2][mask] = first
                segments[first] = value - 1, False
                continue
            count, parts, stats, _ = cv2.connectedComponentsWithStats(
                mask.astype(np.uint8), connectivity=self._connectivity, ltype=cv2.CV_32S
            )
            large = stats[:, cv2.CC_STAT_AREA] >= self._min_area
            large[0] = False  # what is not of this class
            numbers = np.zeros(count, np.int32)
            numbers[large] = np.arange(first, first + int(large.sum()))
            ids[y1:y2, x1:x2] += numbers[parts]
            segments |= dict.fromkeys(numbers[large].tolist(), (value - 1, False))
        return ids, segments


def open_semantic_png(
    source: Path,
    split: str | None = None,
    *,
    image_folder: str | None = None,
    mask_folder: str | None = None,
    classes: str | Sequence[str] | None = None,
    things: tuple[str, ...] | None = None,
    ignore: int | str | Sequence[int | str] = (255,),
    min_area: int = 1,
    connectivity: int = 8,
) -> Source:
    """Images with class PNGs: 8 or 16 bit grey, a palette (indices), or RGB by a table of colours.

    image_folder, mask_folder: the names of the two where they are called otherwise. classes: a table (see class_table),
    or the names in the order of their values, from 0; else a table in the folder, else class_0 … of values that occur.
    things: names of the classes that are cut into connected components; without it those that the table calls things.
    ignore: values, or names of classes, that are void. min_area: components of fewer pixels become void.
    connectivity: 8 (pixels that touch at a corner are together) or 4.
    Raises PansightError listing what was looked for; naming the file where a PNG has no such class.
    """
    if connectivity not in (4, 8):
        raise PansightError(where="connectivity", expected="4 or 8", found=connectivity)
    root = Path(source)
    images, masks, notes = _folders(root, split, image_folder, mask_folder, CLASS_FOLDERS)
    pairs, unpaired, missing = _pairs(images, masks)
    ignored = listed(ignore)
    table, told = _class_table(root, masks, pairs, classes, {int(v) for v in ignored if str(v).isdecimal()})
    by_name = {c.name: c.value for c in table}
    for name in ignored:
        if not str(name).isdecimal() and name not in by_name:
            raise choice_error("class", str(name), by_name)
    values = frozenset(int(v) if str(v).isdecimal() else by_name[str(v)] for v in ignored)
    if things is not None:
        named = listed(things, by_name)
        table = [c._replace(is_thing=c.name in named) for c in table]
    if any(c.is_thing for c in table):
        told += (
            f"things are connected components of their class ({connectivity}-connected): "
            "objects that touch are one segment, an object seen in two pieces is two",
        )
        if min_area > 1:
            told += (f"components of fewer than {min_area} pixels are void",)
    found = _SemanticPngs(images, pairs, table, values, min_area, connectivity, notes + unpaired + told)
    return with_damaged(found, missing)


def is_semantic_png(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return _is_layout(source, CLASS_FOLDERS)


def splits_semantic_png(source: Path) -> tuple[str, ...]:
    """The parts that have folders of their own."""
    return tuple(part for part in _parts(source, CLASS_FOLDERS) if part)


def _class_table(
    root: Path, masks: Path, pairs: list[Pair], classes: str | Sequence[str] | None, ignored: set[int]
) -> tuple[list[PixelClass], tuple[str, ...]]:
    """(classes, notes): the user's, else those of a table in the folder, else those that occur."""
    if classes is not None and not isinstance(classes, str):
        return classes_of_names(classes), ()
    if classes is not None:
        file = next((f for f in (root / classes, Path(classes)) if f.is_file()), None)
        if file is None and "," not in classes:
            raise PansightError(
                where="classes", expected="a file or names with commas between them", found=f"{classes!r}"
            )
        return (classes_of_names(listed(classes)), ()) if file is None else (read_classes(file), ())
    file = find_class_table((masks, masks.parent, root))
    if file is not None:
        return read_classes(file), (f"names of the classes are those of {file.relative_to(root)}",)
    values: set[int] = set()
    for _, _, png in pairs:
        values.update(present_ids(_class_numbers(png)).tolist())
        if len(values) > MAX_UNNAMED:
            found = (
                f"more than {MAX_UNNAMED} values (instance numbers are --from instance_png; else option classes=FILE)"
            )
            raise PansightError(where=masks, expected="class numbers", found=found)
    found = [PixelClass(f"class_{value}", value) for value in sorted(values - ignored)]
    told = (
        "no names of classes were given (option classes=FILE or NAMES): class_N is the class of the pixels of value N"
    )
    return checked_classes(found, masks), (told,)


def _class_numbers(png: Path) -> IdArray:
    """int32 (H, W). Raises PansightError where the classes are told by colours."""
    try:
        return read_index_png(png)
    except PansightError as error:
        if error.code == "wrong_format":
            expected = "expected class numbers, or a table of colours (option classes=FILE); found RGB"
            raise PansightError(expected, where=png) from error
        raise


def _is_rgb(png: Path) -> bool:
    header = read_header(read_bytes(png), png)
    return header.kind == "png" and header.channels >= 3


def _color_id(color: tuple[int, int, int]) -> int:
    """As read_rgb_ids codes it."""
    return color[0] + 256 * color[1] + 65536 * color[2]


# --- where images and PNGs are ---------------------------------------------------------------------------------------


def _places(root: Path, folders: Sequence[tuple[str, str]]) -> Iterator[tuple[str, Path, Path]]:
    """(part or "", images, PNGs) of the layouts that are looked for."""
    for part in ("", *part_folders(root, *(root / images for images, _ in folders))):
        for images, masks in folders:
            yield part, root / part / images, root / part / masks
            if part:
                yield part, root / images / part, root / masks / part
        if folders is CLASS_FOLDERS:
            if part:
                yield part, root / part, root / f"{part}annot"  # CamVid as SegNet and CVAT write it
            yield part, root / part, root / part  # a.jpg and a_mask.png side by side


def _parts(root: Path, folders: Sequence[tuple[str, str]]) -> dict[str, tuple[Path, Path]]:
    """part → (images, PNGs); "" alone where the images lie in no folders of parts, or in such and elsewhere too."""
    found: dict[str, tuple[Path, Path]] = {}
    try:
        for part, images, masks in _places(root, folders):
            if part not in found and _has_pair(images, masks):
                found[part] = images, masks
    except (OSError, ValueError):
        return {}
    whole = found.pop("", None)
    if whole is None or any(images.is_relative_to(whole[0]) for images, _ in found.values()):
        return found
    return {"": whole}


def _folders(
    root: Path, split: str | None, image_folder: str | None, mask_folder: str | None, folders: Sequence[tuple[str, str]]
) -> tuple[Path, Path, tuple[str, ...]]:
    """(images, PNGs, notes). Raises PansightError listing what was looked for."""
    if (image_folder is None) != (mask_folder is None):
        raise PansightError("expected both image_folder and mask_folder, or neither; found one", where=root)
    if image_folder is not None and mask_folder is not None:
        folders = ((image_folder, mask_folder),)
    found = _parts(root, folders)
    if not found or (split is not None and "" in found):
        looked = ", ".join(f"{a}/ + {b}/" for a, b in folders[:9]) + ("" if len(folders) < 9 else " …")
        where = root if split is None else f"{root}, part {split!r}"
        raise PansightError(f"expected images with PNGs of the same name in {looked}; found none", where=where)
    part, note = choose_part(found, split, root)
    return (*found[part or ""], () if note is None else (note,))


def _is_layout(source: Path, folders: Sequence[tuple[str, str]]) -> bool:
    try:
        return any(_has_pair(images, masks) for _, images, masks in _places(source, folders))
    except (OSError, ValueError):
        return False


def _has_pair(images: Path, masks: Path) -> bool:
    """Whether one of the first images has its PNG."""
    if not images.is_dir() or not masks.is_dir():
        return False
    for file in islice(walk_images(images), 50):
        place = masks / file.relative_to(images).parent
        stems = dict.fromkeys((file.stem, normalize("NFC", file.stem), normalize("NFD", file.stem)))
        endings = [ending + suffix for ending in _endings(images, masks) for suffix in (".png", ".PNG")]
        if any((place / f"{stem}{ending}").is_file() for stem in stems for ending in endings):
            return True
    return False


def _endings(images: Path, masks: Path) -> tuple[str, ...]:
    return MASK_ENDINGS if images != masks else MASK_ENDINGS[1:]


def _pairs(images: Path, masks: Path) -> tuple[list[Pair], tuple[str, ...], list[PansightError]]:
    """Images with their PNGs, a note on those that have none, and an error for every PNG that has no image.

    Raises PansightError where there is no pair.
    """
    files = images_by_stem(images)
    pngs = {stem: file for stem, file in images_by_stem(masks).items() if file.suffix.lower() == ".png"}
    endings = _endings(images, masks)
    if images == masks:
        pngs = {stem: file for stem, file in pngs.items() if stem.endswith(endings)}
        files = {stem: file for stem, file in files.items() if stem not in pngs}
    pairs: list[Pair] = []
    for stem, file in files.items():
        ending = next((ending for ending in endings if stem + ending in pngs), None)
        if ending is not None:
            pairs.append((stem, file, pngs.pop(stem + ending)))
    lost = [
        PansightError(where=png, expected=f"an image of this name in {images}", found="none") for png in pngs.values()
    ]
    if lost and not pairs:
        raise lost[0]
    if not pairs:
        raise PansightError(where=images, expected=f"images with PNGs of the same name in {masks}", found="none")
    missing = files.keys() - {stem for stem, _, _ in pairs}
    if not missing:
        return pairs, (), lost
    first = files[min(missing)].name
    return pairs, (f"{len(missing)} of {len(files)} images have no PNG and are left out, the first is {first}",), lost
