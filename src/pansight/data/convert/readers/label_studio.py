"""Label Studio's JSON export: polygons, brush masks, rectangles and ellipses (labelstud.io/guide/export).

Coordinates are per cent of width and height; rectangles turn clockwise about their first corner, ellipses about their
centre. Images are found by the end of their URL or path; an upload is ``<8 hex digits>-<name>`` in Label Studio and
may be called ``<name>`` beside the export. Of several annotations of a task the one marked ground truth is read, else
the first; cancelled ones and predictions are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pansight.data.convert.lookup import choose_part, files_ending, image_size, short_names, stems
from pansight.data.convert.polygons import expect_short, region_of_mask, region_of_polygons
from pansight.data.convert.shapes import ellipse_points, rectangle_points
from pansight.data.convert.source import Annotated, Region, Source, SourceCategory, with_damaged
from pansight.data.dataset import part_folders
from pansight.data.images import IMAGE_SUFFIXES, MAX_PIXELS
from pansight.data.paths import locate_all, named_folder, path_parts, spellings
from pansight.errors import PansightError
from pansight.files import decode_json, open_plain, read_plain
from pansight.types import Flag, read_flag

KINDS = ("polygon", "brush", "rectangle", "ellipse")
MAX_DETECTED_BYTES = 2**28


class _Labels(msgspec.Struct):
    """Of a result's value, what tells its class."""

    polygonlabels: list[str] | None = None
    brushlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None
    ellipselabels: list[str] | None = None
    labels: list[str] | None = None
    closed: bool = True


class _Shape(msgspec.Struct):
    """Of a result's value, what is drawn."""

    points: list[list[float]] = []
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0
    radiusX: float = 0.0
    radiusY: float = 0.0
    rotation: float = 0.0
    format: str = "rle"
    rle: list[int] = []


class _Result(msgspec.Struct):
    type: str = ""
    id: str | int | None = None
    to_name: str | None = None
    value: msgspec.Raw = msgspec.Raw(b"{}")
    original_width: float | None = None
    original_height: float | None = None
    image_rotation: float | None = None


class _Annotation(msgspec.Struct):
    result: list[_Result] = []
    was_cancelled: Flag = None
    ground_truth: Flag = None


class _Task(msgspec.Struct):
    id: int | str | None = None
    data: dict[str, Any] | None = None
    annotations: list[_Annotation] | None = None
    completions: list[_Annotation] | None = None  # before version 1.0
    predictions: list[msgspec.Raw] | None = None
    file_upload: str | None = None


class _Head(msgspec.Struct):
    data: dict[str, Any] | None = None
    annotations: list[msgspec.Raw] | None = None
    completions: list[msgspec.Raw] | None = None


class _Drawing(NamedTuple):
    """A result that is a region."""

    number: int
    kind: str
    label: str
    result: _Result


class _Row(NamedTuple):
    where: str  # file and task
    image: Path | None
    text: str  # how the task names its image
    upload: str  # the name of an uploaded file; empty where it was none
    size: tuple[int, int] | None  # as the annotation gives it
    drawings: list[_Drawing]


class _LabelStudio:
    def __init__(self, rows: list[_Row], notes: tuple[str, ...]):
        labels = sorted({drawing.label for row in rows for drawing in row.drawings})
        self.categories = tuple(SourceCategory(label, index + 1) for index, label in enumerate(labels))
        self.notes = notes
        self._rows = rows
        self._known = {label: index for index, label in enumerate(labels)}
        found = [row.image for row in rows if row.image is not None]
        self._names = short_names(found) if found else [_output_name(row.text, row.where) for row in rows]
        self._image_ids = stems(self._names)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Annotated:
        row = self._rows[index]
        size = row.size if row.image is None else image_size(row.image, row.size)
        if size is None:
            raise PansightError(
                where=row.where, expected="an image file or original_width and _height", found="neither"
            )
        drawn = [(d, _region(d, size, self._known[d.label], row.where)) for d in row.drawings]
        regions = tuple(region for _, region in drawn if region is not None)
        empty = tuple(self._known[d.label] for d, region in drawn if region is None)
        return Annotated(self._image_ids[index], self._names[index], row.image, size, regions, empty=empty)


def open_label_studio(source: Path, split: str | None = None, *, image_folder: str | None = None) -> Source:
    """Label Studio's JSON export (not JSON-MIN): the file, or a folder with it and the images beside it or in images/.

    image_folder: that of the images where it is another. Where no image is found at all, maps are made at the sizes
    that the annotations give. Raises PansightError, naming task and result, where the file is damaged, some of the
    images are missing or of another size, or a shape is none.
    """
    source = Path(source)
    if split is not None:
        part, _ = choose_part(part_folders(source), split, source)
        source = source / str(part)
    file = _json_of(source)
    root = named_folder(file.parent, image_folder)
    counts: Counter[str] = Counter()
    rows = list(_rows(_tasks(file), file, counts))
    if not rows:
        raise PansightError(where=file, expected="annotated tasks", found="none")
    rows, missing = _with_images(rows, root, source if source.is_dir() and image_folder is None else root)
    return with_damaged(_LabelStudio(rows, tuple(_notes(rows, counts))), missing)


def is_label_studio(source: Path) -> bool:
    """Whether `source`, a folder or a file, looks like it; cheap, never raises."""
    try:
        return len(_exports(source)) > 0
    except (OSError, PansightError):
        return False


# --- the file --------------------------------------------------------------------------------------------------------


def _exports(source: Path) -> list[Path]:
    """The JSON files that begin as a list and hold tasks with annotations."""
    files = [source] if source.is_file() else files_ending(source, ".json")[:20]
    if not files and source.is_dir():
        inner = [path for path in sorted(source.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        files = [file for folder in inner[:20] for file in files_ending(folder, ".json")[:20]]
    found: list[Path] = []
    for file in files:
        if file.suffix.lower() != ".json" or file.stat().st_size > MAX_DETECTED_BYTES:
            continue
        with open_plain(file) as opened:
            begin = opened.read(100)
        if b"\0" not in begin and not begin.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):  # UTF-16 has zeros
            continue
        try:
            heads = decode_json(read_plain(file), list[_Head], file)
        except PansightError:
            continue
        if any(head.data is not None and (head.annotations or head.completions) is not None for head in heads):
            found.append(file)
    return found


def _json_of(source: Path) -> Path:
    if source.is_file():
        return source
    found = _exports(source) or files_ending(source, ".json")
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:3]) or "none"
        raise PansightError(where=source, expected="one JSON export of Label Studio", found=names, hint="name the file")
    return found[0]


def _tasks(file: Path) -> list[_Task]:
    try:
        data = read_plain(file)
    except OSError as error:
        raise PansightError("cannot be read", where=file, reason=error.strerror or error, code="cannot_read") from error
    tasks = decode_json(data, list[_Task], file)
    if tasks and all(task.data is None for task in tasks):
        raise PansightError(
            where=file,
            expected="tasks with data and annotations",
            found="none",
            hint="JSON-MIN lacks them: export as JSON",
        )
    return tasks


def _rows(tasks: list[_Task], file: Path, counts: Counter[str]) -> Iterator[_Row]:
    """The annotated tasks, not yet with their images."""
    for number, task in enumerate(tasks, 1):
        where = f"{file}: task {number if task.id is None else task.id}"
        every = task.annotations or task.completions or []
        given = [a for a in every if not read_flag(a.was_cancelled, where, "was_cancelled")]
        counts["predictions"] += len(task.predictions or [])
        if not given:
            counts["unannotated"] += 1
            continue
        counts["several"] += len(given) > 1
        chosen = next((a for a in given if read_flag(a.ground_truth, where, "ground_truth")), given[0])
        texts = _image_texts(task, where)
        for key, results in _by_image(list(texts), chosen.result, where).items():
            place = where if len(texts) == 1 else f"{where} ({key})"
            drawings = list(_drawings(results, place, counts))
            sizes = {_stated_size(d.result, place) for d in drawings} or {_stated_size(r, place) for r in results}
            sizes.discard(None)
            if len(sizes) > 1:
                raise PansightError(where=place, expected="results of one image size", found=sorted(sizes, key=str))
            upload = (task.file_upload or "") if len(texts) == 1 else ""
            yield _Row(place, None, texts[key], upload, next(iter(sizes), None), drawings)


def _by_image(keys: list[str], results: list[_Result], where: str) -> dict[str, list[_Result]]:
    """The results of each image of a task, by the key of its data.

    A result names the tag that it is drawn on (to_name), and a tag's key is not in the export: it is the one of the
    same name, or the only one with the same digits at its end (img2 and image2). Raises PansightError for any other.
    """
    found: dict[str, list[_Result]] = {key: [] for key in keys}
    for number, result in enumerate(results, 1):
        tag = result.to_name or ""
        same = [key for key in keys if key == tag] or [key for key in keys if _digits(key) == _digits(tag)]
        if len(keys) > 1 and len(same) != 1:
            raise PansightError(
                where=f"{where}: result {number}",
                expected=f"a to_name that tells which image is meant ({', '.join(keys)})",
                found=f"{tag!r:.60}",
            )
        found[keys[0] if len(keys) == 1 else same[0]].append(result)
    return found


def _digits(name: str) -> str:
    """The digits that a name ends with; the name itself where there are none."""
    return name[len(name.rstrip("0123456789")) :] or name


def _drawings(results: list[_Result], where: str, counts: Counter[str]) -> Iterator[_Drawing]:
    """The results that are regions, each with its class; what is left out is counted by kind."""
    values = [decode_json(bytes(r.value), _Labels, f"{where}: result {n}") for n, r in enumerate(results, 1)]
    by_id = {r.id: v.labels for r, v in zip(results, values) if r.type == "labels" and r.id is not None and v.labels}
    for number, (result, value) in enumerate(zip(results, values), 1):
        kind = result.type.removesuffix("labels")
        if kind not in KINDS:
            if result.type != "labels":
                counts[f"kind {result.type or 'without type'}"] += 1
            continue
        own = {"polygon": value.polygonlabels, "brush": value.brushlabels, "rectangle": value.rectanglelabels}
        names = own.get(kind, value.ellipselabels) or value.labels or by_id.get(result.id or "") or []
        if not names or not value.closed:
            counts["kind " + (f"{kind} without a label" if value.closed else f"open {kind}")] += 1
            continue
        counts["ambiguous"] += len(names) > 1
        yield _Drawing(number, kind, names[0], result)


def _stated_size(result: _Result, where: str) -> tuple[int, int] | None:
    height, width = result.original_height, result.original_width
    if height is None or width is None:
        return None
    if not (height % 1 == 0 and width % 1 == 0 and min(height, width) >= 1 and height * width <= MAX_PIXELS):
        raise PansightError(
            where=where, expected="original_width and _height in pixels", found=f"{width:g} and {height:g}"
        )
    return int(height), int(width)


def _notes(rows: list[_Row], counts: Counter[str]) -> Iterator[str]:
    if counts["unannotated"]:
        yield f"{counts['unannotated']} tasks have no annotation that was not cancelled and are left out"
    if counts["several"]:
        yield f"{counts['several']} tasks have several annotations: the ground truth is read, else the first"
    if counts["predictions"]:
        yield f"{counts['predictions']} predictions are left out"
    if counts["ambiguous"]:
        yield f"{counts['ambiguous']} regions have several labels: the first is read"
    kinds = [f"{count} {kind[5:]}" for kind, count in sorted(counts.items()) if kind.startswith("kind ")]
    if kinds:
        yield f"results that are no regions are left out: {', '.join(kinds)}"
    if all(row.image is None for row in rows):
        yield "no image was found: sizes are those of the annotations"


# --- images ----------------------------------------------------------------------------------------------------------


def _image_texts(task: _Task, where: str) -> dict[str, str]:
    """How the task names its images: the texts of its data that end like one, each image once."""
    data = task.data or {}
    texts = {key: value for key, value in data.items() if isinstance(value, str) and not value.startswith("data:")}
    images = {key: text for key, text in texts.items() if _path_of(text).lower().endswith(IMAGE_SUFFIXES)}
    found = {text: key for key, text in reversed(images.items())}  # of two keys for one image the first
    if not found:
        raise PansightError(where=where, expected="an image file or URL in data", found=f"{sorted(data)!r:.120}")
    return {key: text for key, text in images.items() if found[text] == key}


def _path_of(text: str) -> str:
    """The path within a URL, a storage link or a path: what may be a file's name here."""
    return next(spellings(text))


def _with_images(rows: list[_Row], root: Path, outer: Path) -> tuple[list[_Row], list[PansightError]]:
    """The rows with their image files, below `root` or else `outer`, and an error for every row without; all rows
    without files where there is none at all.

    Raises PansightError where several tasks have the same image.
    """
    places = [root, root / "images", outer, outer / "images"]
    found = locate_all([row.text for row in rows], places, others=[[row.upload] if row.upload else [] for row in rows])
    if found.ambiguous:
        path = next(iter(found.ambiguous.values())).path
        raise PansightError(
            where=path, expected="an image for every task", found="several tasks that may mean this one"
        )
    if all(located is None for located in found.files):
        return rows, []
    missing = [
        PansightError(where=row.where, expected=f"{row.text!r:.120} in {root} or its images/", found="none")
        for row, located in zip(rows, found.files)
        if located is None
    ]
    there = [(row, located.path) for row, located in zip(rows, found.files) if located is not None]
    twice = next((image for image, count in Counter(image for _, image in there).items() if count > 1), None)
    if twice is not None:
        raise PansightError(where=twice, expected="an image for every task", found="several tasks with this one")
    return [row._replace(image=image) for row, image in there], missing


def _output_name(text: str, where: str) -> str:
    name = next(reversed(path_parts(_path_of(text))), "")
    if not name or "\0" in name or ":" in name:
        raise PansightError(where=where, expected="the name of an image file", found=f"{text!r:.120}")
    return name


# --- shapes ----------------------------------------------------------------------------------------------------------


def _region(drawing: _Drawing, size: tuple[int, int], category: int, where: str) -> Region | None:
    where = f"{where}: result {drawing.number} ({drawing.kind})"
    if drawing.result.image_rotation:
        found = f"image_rotation {drawing.result.image_rotation:g}"
        raise PansightError(where=where, expected="an image that was not turned in Label Studio", found=found)
    value = bytes(drawing.result.value)
    expect_short(value, b",", where)
    shape = decode_json(value, _Shape, where)
    if drawing.kind == "brush":
        if shape.format != "rle":
            raise PansightError(where=where, expected="a brush mask of format 'rle'", found=f"{shape.format!r:.40}")
        return region_of_mask(decode_brush(shape.rle, size, where), category)
    if any(len(point) != 2 for point in shape.points):
        raise PansightError(where=where, expected="points of two numbers", found=f"{shape.points!r:.60}")
    if any(not -100 <= v <= 200 for point in (*shape.points, (shape.x, shape.y)) for v in point):
        raise PansightError(where=where, expected="coordinates in per cent of the image", found="others")
    height, width = size
    percent = np.array((width, height)) / 100
    if drawing.kind == "polygon":
        outline = [(x * width / 100, y * height / 100) for x, y in shape.points]
    elif drawing.kind == "rectangle":
        if shape.width < 0 or shape.height < 0:
            raise PansightError(
                where=where, expected="a width and height", found=f"{shape.width:g} and {shape.height:g}"
            )
        (x, y), (w, h) = (shape.x, shape.y) * percent, (shape.width, shape.height) * percent
        outline = rectangle_points(x, y, w, h, shape.rotation)
    else:
        (x, y), (radius_x, radius_y) = (shape.x, shape.y) * percent, (shape.radiusX, shape.radiusY) * percent
        outline = ellipse_points(x, y, radius_x, radius_y, shape.rotation, where)
    return region_of_polygons([outline], size, category, where)


def decode_brush(rle: list[int], size: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """Label Studio's run lengths of RGBA pixels → bool (H, W): where alpha is above half of its largest value.

    A stream of bits: 32 the number of values (4·H·W), 5 the bits of a value less 1, four times 4 the bits of a length
    less 1; then runs: 1 whether it repeats, 2 which length, the length less 1, and one value or that many values.
    Raises PansightError, beginning with `where`, where it is damaged or for another size.
    """
    try:
        data = bytes(rle)
    except ValueError as error:
        raise PansightError(where=where, expected="run lengths as bytes 0 … 255", found=error) from error
    bits, pixels = 8 * len(data), size[0] * size[1]
    alpha = np.zeros(pixels, np.uint8)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        first, at = at, at + count
        if at > bits:
            raise PansightError(where=where, expected=f"run lengths of {pixels} pixels", found="an early end")
        return int.from_bytes(data[first >> 3 : (at + 7) >> 3], "big") >> (-at % 8) & ((1 << count) - 1)

    total, word, lengths = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    if total != 4 * pixels or word != 8:
        found = f"{total} of {word} bits"
        raise PansightError(where=where, expected=f"run lengths of {4 * pixels} values of 8 bits (RGBA)", found=found)
    begin = 0
    while begin < total:
        repeats, length = take(1), take(lengths[take(2)]) + 1
        end = begin + length
        if end > total:
            raise PansightError(where=where, expected=f"run lengths of {total} values", found=end)
        if repeats:
            alpha[begin >> 2 : end >> 2] = take(8)
        else:
            first, at = at, at + 8 * length
            if at > bits:
                raise PansightError(where=where, expected=f"run lengths of {pixels} pixels", found="an early end")
            values = np.unpackbits(np.frombuffer(data[first >> 3 : (at + 7) >> 3], np.uint8))
            values = np.packbits(values[first & 7 :][: 8 * length])
            alpha[begin >> 2 : end >> 2] = values[(3 - begin) % 4 :: 4]
        begin = end
    return (2 * alpha.astype(np.int16) > int(alpha.max())).reshape(size)  # (H·W,) → (H, W)
