"""COCO's JSONs (https://cocodataset.org/#format-data), as its makers and other tools write them.

Instances: polygons or run lengths that may overlap; Roboflow's `_annotations.coco.json`, CVAT's
`instances_default.json` and Label Studio's `result.json` are found too. Detection-format panoptic: the same with stuff
among the classes. Panoptic: RGB-coded PNGs. Area and box are not read, but counted from the masks. Masks stay packed
until their image is wanted, so that the file's size is about what it takes in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace

from pansight.data.categories import category_table
from pansight.data.convert.lookup import image_size
from pansight.data.convert.polygons import expect_short, region_of_polygons, region_of_rle
from pansight.data.convert.readers.coco.files import choose_file, coco_files, parts_of
from pansight.data.convert.readers.coco.stuff import OTHER, STUFF, stuff_maps
from pansight.data.convert.source import Annotated, ListSource, Region, Source, SourceCategory, with_damaged
from pansight.data.convert.values import read_annotation
from pansight.data.dataset import expect
from pansight.data.formats.coco_files import best_folder, data_root, image_folders, names_in
from pansight.data.images import MAX_PIXELS, read_rgb_ids
from pansight.data.paths import named_folder
from pansight.errors import PansightError, choice_error
from pansight.files import decode_json
from pansight.ops.idmap import MAX_ID, IdArray, present_ids
from pansight.types import Flag, read_flag

T = TypeVar("T", bound="_ObjectFile | _PanopticFile")
BOXES = ("error", "draw", "skip")


class _Image(msgspec.Struct):
    id: int | str
    file_name: str
    height: int | float | None = None
    width: int | float | None = None


class _Annotation(msgspec.Struct):
    image_id: int | str
    category_id: int
    id: int | str | None = None
    segmentation: msgspec.Raw = msgspec.Raw(b"null")
    bbox: msgspec.Raw = msgspec.Raw(b"null")
    iscrowd: Flag = 0
    score: float | None = None


class _Segment(msgspec.Struct):
    id: int
    category_id: int
    iscrowd: Flag = 0


class _Panoptic(msgspec.Struct):
    image_id: int | str
    file_name: str
    segments_info: list[_Segment]


class _Category(msgspec.Struct):
    id: int
    name: str
    isthing: Flag = None
    color: list[int] | None = None


class _ObjectFile(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


class _PanopticFile(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Panoptic]
    categories: list[_Category]


# --- instances and detection-format panoptic -------------------------------------------------------------------------


def open_coco_instances(
    source: Path,
    split: str | None = None,
    *,
    json: str | None = None,
    images: str | None = None,
    stuff: str | None = None,
    boxes: str = "error",
) -> Source:
    """COCO instances; classes are things, unless the file says otherwise or they are COCO's own stuff.

    json: the annotation file; images: the folder of the images; both else looked for. stuff: COCO-stuff under the
    objects, a folder of pixel maps or a JSON (see readers.coco.stuff). boxes: of annotations that have a box, but no
    mask: "error", "draw" (the box is the mask) or "skip".
    Raises PansightError, naming the file and annotation, for anything that is not so.
    """
    return _objects(Path(source), split, "coco_instances", json, images, stuff, boxes)


def open_coco_detection_panoptic(
    source: Path, split: str | None = None, *, json: str | None = None, images: str | None = None
) -> Source:
    """COCO panoptic in the detection format: one run-length mask per segment.

    `isthing` is the file's, or COCO's own where the classes are COCO's; else it is left open. Options and errors as of
    open_coco_instances.
    """
    return _objects(Path(source), split, "coco_detection_panoptic", json, images, None, "error")


def _objects(
    source: Path, split: str | None, kind: str, json: str | None, images: str | None, stuff: str | None, boxes: str
) -> Source:
    if boxes not in BOXES:
        raise choice_error("boxes", boxes, BOXES)
    part, file = choose_file(source, kind, split, json)
    content = _read(file, _ObjectFile)
    folder, rows, told = _with_images(source, file, part, images, content.images)
    categories, index, notes = _categories(content.categories, file, all_things=kind == "coco_instances")
    notes += told
    by_image: dict[int | str, list[_Annotation]] = {row.id: [] for row in rows}
    damaged: list[PansightError] = []
    for annotation in content.annotations:
        try:
            _check_annotation(annotation, by_image, index, file)
        except PansightError as error:
            if error.code == "unlisted_category":  # the classes themselves are not whole
                raise
            damaged.append(error)
            continue
        by_image[annotation.image_id].append(annotation)
    under: Callable[[_Image, tuple[int, int]], IdArray] | None = None
    if stuff is not None:
        under = _stuff_reader(source, Path(stuff), part)
        notes.append(f"stuff of {stuff} lies under all objects")
    first = len(categories)
    categories += STUFF if under is not None else ()

    def one(row: _Image, annotations: list[_Annotation]) -> Annotated:
        image = folder / row.file_name
        size = _size(row, image, file)
        regions = [_region(a, size, index[a.category_id], f"{file}: annotation {a.id}", boxes) for a in annotations]
        empty = tuple(index[a.category_id] for a, region in zip(annotations, regions) if region is None)
        ids = None if under is None else under(row, size)
        segments = (
            {} if ids is None else {v: (first + v - STUFF[0].source_id, False) for v in present_ids(ids).tolist()}
        )
        segments.pop(0, None)
        found = tuple(region for region in regions if region is not None)
        return Annotated(row.id, row.file_name, image, size, found, ids, segments, empty)

    found = ListSource(categories, [partial(one, row, by_image[row.id]) for row in rows], notes)
    return with_damaged(found, damaged)


def _check_annotation(annotation: _Annotation, by_image: dict[Any, Any], index: dict[int, int], file: Path) -> None:
    where = f"{file}: annotation {annotation.id}"
    if annotation.image_id not in by_image:
        raise PansightError(where=where, expected="a listed image", found=f"image_id {annotation.image_id!r}")
    if annotation.category_id not in index:
        raise PansightError(
            where=where,
            expected="a listed category",
            found=f"category_id {annotation.category_id!r}",
            code="unlisted_category",
        )


def _region(annotation: _Annotation, size: tuple[int, int], category: int, where: str, boxes: str) -> Region | None:
    """None where it covers no pixel."""
    expect_short(bytes(annotation.segmentation), b",", where)
    mask = _plain(annotation.segmentation, where)
    score = 1.0 if annotation.score is None else annotation.score
    crowd = bool(read_flag(annotation.iscrowd, where, "iscrowd"))
    if isinstance(mask, dict):
        return region_of_rle(mask, size, category, where, is_crowd=crowd, score=score)
    if mask in (None, []):
        if boxes != "draw":
            expect(boxes == "skip", where, "a mask (boxes=draw takes the box for one, boxes=skip leaves it out)", mask)
            return None
        mask = _box_polygon(_plain(annotation.bbox, where), where)
    polygons = [outline for outline in _polygons(mask, where) if len(outline) >= 3]  # fewer points cover no pixel
    return region_of_polygons(polygons, size, category, where, is_crowd=crowd, score=score)


def _polygons(mask: Any, where: str) -> list[np.ndarray]:
    """Polygons as COCO writes them, [[x1, y1, x2, y2, …], …]; [x1, y1, …] and [[x, y], …] are understood."""
    expect(isinstance(mask, list), where, "polygons or a run-length mask in 'segmentation'", mask)
    if all(isinstance(part, list) and len(part) == 2 for part in mask) and len(mask) > 2:
        mask = [[value for point in mask for value in point]]
    elif not any(isinstance(part, list) for part in mask):
        mask = [mask]
    outlines: list[np.ndarray] = []
    for part in mask:
        good = isinstance(part, list) and len(part) % 2 == 0 and {int, float}.issuperset(map(type, part))
        expect(good, where, "polygons of x, y pairs", part)
        outlines.append(np.array(part, np.float64).reshape(-1, 2))  # (2N,) → (N, 2)
    return outlines


def _box_polygon(box: Any, where: str) -> list[list[float]]:
    good = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    expect(good, where, "a mask, or a box [x, y, w, h]", box)
    x, y, width, height = box
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _stuff_reader(source: Path, stuff: Path, part: str | None) -> Callable[[_Image, tuple[int, int]], IdArray]:
    """(row of an image, (H, W)) → int32 (H, W) category ids of the stuff, 0 = none."""
    root = source.parent if source.is_file() else source
    place = next((p for p in (root / stuff, stuff) if p.exists()), None)
    if place is None:
        raise PansightError(where=stuff, expected="COCO-stuff, a folder of pixel maps or a JSON", found="nothing there")
    listed = place / f"stuff_{part}.json"
    if place.is_dir() and not listed.is_file():
        read = stuff_maps(place, part)
        return lambda row, size: read(row.file_name, size)
    file = listed if place.is_dir() else place
    content = _read(file, _ObjectFile)
    known = {category.source_id for category in STUFF}
    by_image: dict[int | str, list[_Annotation]] = {}
    for annotation in content.annotations:
        if annotation.category_id == OTHER:
            continue
        if annotation.category_id not in known:
            found = f"category_id {annotation.category_id}"
            raise PansightError(
                where=f"{file}: annotation {annotation.id}", expected="COCO-stuff's ids 92 … 183", found=found
            )
        by_image.setdefault(annotation.image_id, []).append(annotation)

    def paint(row: _Image, size: tuple[int, int]) -> IdArray:
        ids = np.zeros(size, np.int32)
        for a in by_image.get(row.id, ()):
            region = _region(a, size, 0, f"{file}: annotation {a.id}", "error")
            if region is not None:
                (height, width), (top, left) = region.mask.shape, (region.top, region.left)
                ids[top : top + height, left : left + width][region.mask] = a.category_id
        return ids

    return paint


# --- panoptic --------------------------------------------------------------------------------------------------------


def open_coco_panoptic(
    source: Path,
    split: str | None = None,
    *,
    json: str | None = None,
    images: str | None = None,
    panoptic: str | None = None,
) -> Source:
    """COCO panoptic itself: to change classes, to fill, or to write it in another format.

    json, images, panoptic: the annotation file and the folders of images and PNGs; else looked for. `isthing` may be
    missing. Raises PansightError, naming file and image, where JSON and PNG disagree.
    """
    root = Path(source)
    part, file = choose_file(root, "coco_panoptic", split, json)
    content = _read(file, _PanopticFile)
    folder, named, told = _with_images(root, file, part, images, content.images)
    categories, index, notes = _categories(content.categories, file, all_things=False)
    rows = {row.id: row for row in named}
    pngs, names, more = _pngs(root, file, panoptic, [annotation.file_name for annotation in content.annotations])
    notes += (*told, *more)
    seen: set[int | str] = set()
    pairs: list[tuple[_Panoptic, str]] = []
    damaged: list[PansightError] = []
    for annotation, name in zip(content.annotations, names):
        where = f"{file}: image {annotation.image_id!r}"
        if annotation.image_id not in rows:
            found = f"{annotation.image_id!r}"
            damaged.append(PansightError(where=file, expected="annotations of listed images", found=found))
            continue
        pairs.append((annotation, name))
        if annotation.image_id in seen:
            raise PansightError(where=where, expected="one annotation per image", found="several")
        seen.add(annotation.image_id)
        _check_segments(annotation.segments_info, index, where)
    if len(seen) < len(rows):
        notes.append(f"{len(rows) - len(seen)} images without annotation are left out")

    def one(annotation: _Panoptic, name: str) -> Annotated:
        row, png = rows[annotation.image_id], pngs / name
        ids = read_rgb_ids(png)
        segments = {
            s.id: (index[s.category_id], bool(read_flag(s.iscrowd, f"{png}: segment {s.id}", "iscrowd")))
            for s in annotation.segments_info
        }
        strange = set(present_ids(ids).tolist()) - segments.keys() - {0}
        if strange:
            raise PansightError(where=png, expected=f"only ids that {file.name} lists", found=min(strange))
        size = ids.shape[0], ids.shape[1]
        return Annotated(row.id, row.file_name, folder / row.file_name, size, (), ids, segments)

    return with_damaged(ListSource(categories, [partial(one, *pair) for pair in pairs], notes), damaged)


def _check_segments(segments: list[_Segment], index: dict[int, int], where: str) -> None:
    for segment in segments:
        if not 1 <= segment.id <= MAX_ID:
            raise PansightError(where=where, expected=f"segment ids 1 … {MAX_ID}", found=segment.id)
        if segment.category_id not in index:
            found = f"category_id {segment.category_id}"
            raise PansightError(
                where=f"{where}: segment {segment.id}",
                expected="a listed category",
                found=found,
                code="unlisted_category",
            )
    if len({segment.id for segment in segments}) < len(segments):
        raise PansightError(where=where, expected="each segment id once", found="one twice")


def _pngs(root: Path, file: Path, panoptic: str | None, stated: list[str]) -> tuple[Path, list[str], tuple[str, ...]]:
    """(folder of the PNGs, the name of each in it, notes)."""
    base = data_root(root) if root.is_file() else root
    candidates = [file.with_suffix(""), *(base / place / file.stem for place in ("", "annotations")), base / "panoptic"]
    found = best_folder([*candidates, file.parent], stated) or candidates[0]
    folder = found if panoptic is None else named_folder(base, panoptic, "a folder of PNGs")
    return folder, *names_in(folder, stated, file)


# --- what they share -------------------------------------------------------------------------------------------------


def _read(file: Path, kind: type[T]) -> T:
    content = decode_json(read_annotation(file, "COCO annotations"), kind, file)
    if len({row.id for row in content.images}) < len(content.images):
        raise PansightError(where=file, expected="each image id once", found="one twice")
    return content


def _plain(raw: msgspec.Raw, where: str) -> Any:
    return decode_json(bytes(raw), object, where)


def _size(row: _Image, image: Path, file: Path) -> tuple[int, int]:
    """(H, W) as the file says, or the image where the file does not."""
    if row.height is None or row.width is None:
        return image_size(image)
    height, width = int(row.height), int(row.width)
    good = height == row.height > 0 and width == row.width > 0 and height * width <= MAX_PIXELS
    expect(good, f"{file}: image {row.id!r}", "a size in pixels", (row.height, row.width))
    return height, width


def _categories(
    rows: list[_Category], file: Path, all_things: bool
) -> tuple[tuple[SourceCategory, ...], dict[int, int], list[str]]:
    """(classes, category id → index, notes). all_things: what neither the file nor COCO calls stuff is a thing."""
    if not rows:
        raise PansightError(where=file, expected="categories", found="none")
    published = {(row["id"], row["name"]): bool(row["isthing"]) for row in category_table("coco_panoptic")}
    published |= {(category.source_id, category.name): False for category in STUFF}
    silent = [row for row in rows if row.isthing is None]
    categories: list[SourceCategory] = []
    for row in rows:
        known = published.get((row.id, row.name), True if all_things else None)
        said = read_flag(row.isthing, f"{file}: category {row.id}", "isthing")
        categories.append(SourceCategory(row.name, row.id, known if said is None else said, _color(row.color)))
    index = {row.id: n for n, row in enumerate(rows)}
    if len(index) < len(rows):
        raise PansightError(where=file, expected="each category id once", found="one twice")
    notes: list[str] = []
    if silent and all_things:
        notes.append(
            "COCO instances lists objects: its classes are things, but for COCO's own stuff (--things decides)"
        )
    elif silent and all(c.is_thing is not None for c in categories):
        notes.append("isthing is not in the file; its classes are COCO's, and so is the answer")
    return tuple(categories), index, notes


def _color(color: list[int] | None) -> tuple[int, int, int] | None:
    if color is None or len(color) != 3 or not all(0 <= v <= 255 for v in color):
        return None
    return color[0], color[1], color[2]


def _with_images(
    source: Path, file: Path, part: str | None, images: str | None, rows: list[_Image]
) -> tuple[Path, list[_Image], tuple[str, ...]]:
    """(the folder of the images, the likeliest where none has any; the rows with the names in it; notes)."""
    root = data_root(source) if source.is_file() else source
    stated = [row.file_name for row in rows]
    if images is None:
        candidates = image_folders(root, file, file.stem.split("_")[0], part)
        folder = best_folder(candidates, stated) or candidates[0]
    else:
        folder = named_folder(root, images)
    names, notes = names_in(folder, stated, file)
    return folder, [replace(row, file_name=name) for row, name in zip(rows, names)], notes


# --- telling them apart ----------------------------------------------------------------------------------------------


def is_coco_instances(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it, and is not panoptic as well; cheap, never raises."""
    return _holds(source, "coco_instances") and not is_coco_panoptic(source)


def is_coco_detection_panoptic(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it, and has no PNGs as well; cheap, never raises."""
    return _holds(source, "coco_detection_panoptic") and not is_coco_panoptic(source)


def is_coco_panoptic(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    return _holds(source, "coco_panoptic")


def _holds(source: Path, kind: str) -> bool:
    try:
        return bool(coco_files(source, kind))
    except (OSError, ValueError):
        return False


splits_coco_instances = partial(parts_of, kind="coco_instances")
splits_coco_detection_panoptic = partial(parts_of, kind="coco_detection_panoptic")
splits_coco_panoptic = partial(parts_of, kind="coco_panoptic")
