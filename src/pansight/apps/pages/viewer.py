"""The viewer: truth | prediction | errors of every image, in a page that needs no server and no network.

Each image becomes one line of JavaScript: the photo (JPEG), two small label maps (row numbers) and the rows of both
segment tables. The page paints colours, errors and highlights from them. These lines are written to a folder as the
images come, so memory stays flat; a page of up to INLINE_IMAGES takes them all in, a larger one loads them from
`NAME_files/` as they are looked at, through <script> elements: pages opened from a disk may not read files otherwise.
"""

from __future__ import annotations

import base64
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pansight.apps.pages.figures import environment, error_style, figures_of, measured_facts, script_json
from pansight.errors import PansightError
from pansight.files import Publication
from pansight.metrics.panoptic.errors import ERRORS, SegmentErrors
from pansight.metrics.panoptic.matching import ImageMatch, SegmentTable
from pansight.ops.idmap import IdArray, boxes_xyxy, relabel
from pansight.types import LabelSpace

INLINE_IMAGES = 300
"""A page of more images keeps them in a folder beside it."""
INLINE_BYTES = 48_000_000
"""So does a page that would grow beyond this."""
PICTURE_SIDE = 640
"""Longer side of a photo and its label maps, pixels; smaller images keep their size."""
PICTURE_QUALITY = 78
"""Of JPEG, 0..100: a COCO photo takes 85 KB and 1 ms; WebP saves a tenth of the bytes for thirty times the time."""


class ViewerImage(NamedTuple):
    """One image as the viewer takes it; ids as in the tables of `match`, 0 = void."""

    image_id: str | int
    photo: NDArray[np.uint8] | None  # (H, W, 3) RGB; None: drawn on plain grey
    truth_ids: IdArray  # int32 (H, W)
    prediction_ids: IdArray  # int32 (H, W)
    match: ImageMatch
    errors: SegmentErrors
    score: float | None  # fraction, PQ unless the page names another; None where nothing was there or predicted


class EncodedImage(NamedTuple):
    """An image as its page holds it: JSON of `image_row` and of `image_content`, some 100 KB."""

    row: str
    content: str


def encode(image: ViewerImage) -> EncodedImage:
    """About 5 ms for an image of COCO's size. Raises PansightError where photo and maps differ in size."""
    return EncodedImage(script_json(image_row(image)), script_json(image_content(image)))


class ViewerWriter:
    """Writes the page OUT.html, and OUT_files/ beside it where the images are too many; all of it or nothing.

        with ViewerWriter(Path("out.html"), labels, "my model on my data") as writer:
            for image in images:
                writer.add(image)
            writer.finish(record)  # the content of evaluation.json: its figures stand above the images

    Raises PansightError where the page or its folder exists and `overwrite` is not set, or cannot be written.
    """

    def __init__(self, out: Path, labels: LabelSpace, title: str, overwrite: bool = False):
        self.out, self.labels, self.title, self.overwrite = Path(out), labels, title, overwrite
        self.folder = self.out.with_name(f"{self.out.stem}_files")
        self._publication = Publication(self.out, self.folder)
        self._page, self._partial = self._publication.temporaries
        self._index: list[str] = []  # JSON of each image's row in the list
        self._bytes = 0

    def __enter__(self) -> ViewerWriter:
        taken = [path for path in (self.out, self.folder) if path.exists()]
        if taken and not self.overwrite:
            raise PansightError(
                where=taken[0], expected="no such file or folder yet", found="one", hint="nothing was written"
            )
        if self.out.is_dir():
            raise PansightError(where=self.out, expected="a file to write the page to", found="a folder")
        foreign = [path for path in _entries(self.folder) if not re.fullmatch(r"\d+\.js", path.name)]
        if foreign:
            raise PansightError(
                where=self.folder, expected="a viewer's folder to replace", found=f"{foreign[0].name} in it"
            )
        self._publication.begin()
        try:
            self._partial.mkdir()
        except OSError as error:
            raise self._publication.failure(error) from error
        return self

    def add(self, image: ViewerImage | EncodedImage) -> None:
        """An image, or what another process made of it by `encode`: the writer then only writes.

        Raises PansightError where photo and maps differ in size.
        """
        row, content = image if isinstance(image, EncodedImage) else encode(image)
        number = len(self._index)
        line = _line(number, content)
        try:
            (self._partial / f"{number}.js").write_text(line, encoding="ascii")
        except OSError as error:
            raise self._publication.failure(error) from error
        self._bytes += len(line)
        self._index.append(row)

    def finish(self, record: dict[str, Any]) -> Path:
        """Put page and folder in their places and give the path of the page."""
        count = len(self._index)
        inside = count <= INLINE_IMAGES and self._bytes <= INLINE_BYTES
        data = viewer_data(self.labels, self._index, "" if inside else self.folder.name)
        contents = (_content(self._partial / f"{k}.js") for k in range(count)) if inside else iter(())
        now = datetime.now()
        page = environment().get_template("viewer/page.html.j2")
        text = page.generate(
            title=self.title,
            date=f"{now.day} {now:%B %Y, %H:%M}",
            count=count,
            folder="" if inside else self.folder.name,
            viewer={"data": data, "contents": contents, "figure": "PQ"},
            version=version("pansight"),
            facts=measured_facts({"images": count, **record.get("about", {})}),
            **figures_of(record, self.labels),
        )
        try:
            with self._page.open("w", encoding="utf-8") as file:
                file.writelines(text)
            if inside:  # the folder of an earlier page goes, and none comes
                shutil.rmtree(self._partial)
        except OSError as error:
            raise self._publication.failure(error) from error
        self._publication.publish()
        return self.out

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._publication.discard()


def viewer_data(labels: LabelSpace, index: Iterable[str], folder: str = "", figure: str = "PQ") -> str:
    """What the page knows of all images, as JSON for a <script> element: classes, errors, and a row for each image.

    index: the row of each `EncodedImage`. folder: where their contents lie, "" for inside the page. figure: what the
    images are scored by.
    """
    head = {
        "folder": folder,
        "figure": figure,
        "classes": [{"name": c.name, "thing": c.is_thing, "color": list(c.color)} for c in labels],
        "errors": [error_style(key) for key in ERRORS],
    }
    return script_json(head)[:-1] + ', "images": [' + ",\n".join(index) + "]}"


def image_row(image: ViewerImage) -> list[Any]:
    """An image in the list: id, score, width, height, and [category, error, segments, …] for the filters."""
    keys = np.concatenate(
        [
            table.categories * len(ERRORS) + errors
            for table, errors in (
                (image.match.truth, image.errors.truth),
                (image.match.prediction, image.errors.prediction),
            )
        ]
    ).astype(np.int64)
    found, counts = np.unique(keys, return_counts=True)
    triples = np.stack([found // len(ERRORS), found % len(ERRORS), counts], 1)  # (pairs, 3)
    height, width = image.truth_ids.shape
    score = None if image.score is None else round(float(image.score), 6)
    return [image.image_id, score, width, height, triples.ravel().tolist()]


def image_content(image: ViewerImage) -> dict[str, Any]:
    """What is loaded when an image is looked at: the photo and both sides.

    A side is its label map and one row for each segment: id, category, area, box (x, y, width, height in pixels of the
    file), error, row of the partner on the other side (−1: none), IoU with it, score, crowd (0 or 1).
    Raises PansightError where photo and maps differ in size, or a score is no finite number.
    """
    height, width = image.truth_ids.shape
    for name, array in (("prediction", image.prediction_ids), ("photo", image.photo)):
        if array is not None and array.shape[:2] != (height, width):
            found = f"{array.shape[0]} × {array.shape[1]}"
            raise PansightError(
                where=f"image {image.image_id}: {name}", expected=f"{height} × {width} as the truth", found=found
            )
    scale = min(1.0, PICTURE_SIDE / max(height, width, 1))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    match, errors = image.match, image.errors
    strange = np.flatnonzero(~np.isfinite(match.prediction.scores))
    if strange.size:
        segment, score = (column[strange[0]] for column in (match.prediction.ids, match.prediction.scores))
        raise PansightError(
            where=f"image {image.image_id}: prediction: segment {segment}", expected="a finite score", found=score
        )
    truth = (match.truth, match.truth_area, errors.truth, errors.truth_partner, errors.truth_iou)
    prediction = (
        match.prediction,
        match.prediction_area,
        errors.prediction,
        errors.prediction_partner,
        errors.prediction_iou,
    )
    return {
        "size": size,
        "photo": None if image.photo is None else data_url(image.photo, size),
        "truth": _side(image.truth_ids, size, *truth),
        "prediction": _side(image.prediction_ids, size, *prediction),
    }


def _side(
    ids: IdArray,
    size: tuple[int, int],
    table: SegmentTable,
    area: NDArray[np.int64],
    errors: NDArray[np.uint8],
    partner: NDArray[np.int64],
    iou: NDArray[np.float64],
) -> dict[str, Any]:
    boxes = boxes_xyxy(ids)
    rows: list[list[Any]] = []
    columns = (table.ids, table.categories, area, errors, partner, iou, table.scores, table.crowd)
    for number, category, pixels, error, other, overlap, score, crowd in zip(*(c.tolist() for c in columns)):
        x1, y1, x2, y2 = boxes.get(number, (0, 0, 0, 0))
        box = (x1, y1, x2 - x1, y2 - y1)
        rows.append([number, category, pixels, *box, error, other, round(overlap, 6), round(score, 6), int(crowd)])
    return label_map(ids, table.ids.tolist(), size) | {"rows": rows}


def label_map(ids: IdArray, numbers: list[int], size: tuple[int, int]) -> dict[str, Any]:
    """int32 (H, W) ids → the map at `size` (h, w) as base64 text: places in `numbers` from 1, 0 = void.

    Nearest pixels; each line is coded as its XOR with the line above, little-endian in `bits` bits, then deflated.
    PNG would need the page to read pixels back from a canvas, which browsers may blur against tracking.
    """
    height, width = ids.shape
    ys = ((np.arange(size[0]) + 0.5) * height / size[0]).astype(np.int64)
    xs = ((np.arange(size[1]) + 0.5) * width / size[1]).astype(np.int64)
    small = ids if ids.shape == size else ids[ys][:, xs]  # (h, w)
    bits = 8 if len(numbers) < 256 else 16 if len(numbers) < 65536 else 32
    rows = relabel(small, {number: place for place, number in enumerate(numbers, 1)}).astype(f"<u{bits // 8}")
    coded = rows.copy()
    coded[1:] ^= rows[:-1]
    return {"bits": bits, "map": base64.b64encode(zlib.compress(coded.tobytes(), 2)).decode("ascii")}


def data_url(photo: NDArray[np.uint8], size: tuple[int, int]) -> str:
    """uint8 (H, W, 3) RGB → a JPEG of (h, w) as a data URL."""
    small = photo if photo.shape[:2] == size else cv2.resize(photo, size[::-1], interpolation=cv2.INTER_AREA)
    ok, code = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, PICTURE_QUALITY])
    if not ok:
        raise PansightError("a photo could not be encoded as JPEG", where="viewer")
    return "data:image/jpeg;base64," + base64.b64encode(code.tobytes()).decode("ascii")


def _line(number: int, content: str) -> str:
    return f"viewerImage({number},\n{content}\n);\n"


def _content(path: Path) -> str:
    """The JSON of a file that `_line` wrote."""
    return path.read_text(encoding="ascii").split("\n", 1)[1].removesuffix("\n);\n")


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())
