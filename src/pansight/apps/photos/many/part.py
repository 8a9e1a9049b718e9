"""A part of a large prediction: photos that one process predicts and writes as one folder, whole or not at all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.photos import Wanted, read_photo
from pansight.apps.photos.finding import Photo
from pansight.data.formats.results import INSTANCES, PANOPTIC, ResultsWriter
from pansight.data.formats.webdataset.storage import Piece
from pansight.engine.predict import PhotoPrediction, Predictor
from pansight.engine.predict.pipeline import Result, Shown
from pansight.errors import PansightError
from pansight.files import read_json, replacing_folder
from pansight.types import LabelSpace

SEGMENTS, IMAGES = "segments.parquet", "images.parquet"


class Part(NamedTuple):
    """Photos that are predicted together. first: the number of the first one among all, from 1, which is its id."""

    number: int
    first: int
    photos: Sequence[Photo]

    @property
    def name(self) -> str:
        return f"part-{self.number:06d}"

    def to_json(self) -> str:
        """As text, which Ray's tables hold."""
        return json.dumps([self.number, self.first, [(str(p.file), p.name, p.piece) for p in self.photos]])

    @classmethod
    def from_json(cls, text: str) -> Part:
        number, first, rows = json.loads(text)
        photos = [Photo(Path(file), name, None if piece is None else Piece(*piece)) for file, name, piece in rows]
        return cls(number, first, photos)


class Done(NamedTuple):
    """What a part came to. failed: photos that could not be read."""

    number: int
    images: int
    segments: int
    failed: int
    seconds: float


def predict_part(part: Part, predictor: Predictor, options: dict[str, Any], batch_size: int, out: Path) -> Done:
    """Predict the photos of a part and write ``OUT/part-000000/``: what `predict` writes of them but the overlays, a
    row for each segment in segments.parquet, and one for each photo in images.parquet.

    A photo that cannot be read has its error there. options: of the decode, as for `predict`. Raises PansightError
    where the folder cannot be written.
    """
    wanted = Wanted.of(predictor, options, None)
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    with replacing_folder(out / part.name) as folder:
        numbered = list(enumerate(part.photos, part.first))
        with ResultsWriter(folder, predictor.labels, listing=True) as writer:
            results = predictor.stream(numbered, _read, batch_size, **wanted.options)
            with closing(results):
                for number, photo, found in _narrowed(results, wanted):
                    if isinstance(found, PansightError):
                        rows.append({"id": number, "file_name": photo.name, "error": str(found)})
                        continue
                    height, width = found.photo.shape[:2]
                    writer.add(number, photo.name, found, size=(height, width))
                    rows.append({"id": number, "file_name": photo.name, "height": height, "width": width})
        segments = segment_rows(folder, predictor.labels)
        _write_tables(folder, rows, segments)
    failed = sum("error" in row for row in rows)
    return Done(part.number, len(rows) - failed, len(segments), failed, time.perf_counter() - start)


def _read(numbered: tuple[int, Photo]) -> Shown | PansightError:
    photo = numbered[1]
    try:
        return Shown(read_photo(photo.piece or photo.file, photo.name))
    except PansightError as error:
        return error


def _narrowed(
    results: Iterator[Result[tuple[int, Photo]]], wanted: Wanted
) -> Iterator[tuple[int, Photo, PhotoPrediction | PansightError]]:
    for result in results:
        number, photo = result.item
        found = result.found
        yield number, photo, found if isinstance(found, PansightError) else wanted.narrowed(found)


# --- tables ----------------------------------------------------------------------------------------------------------


def segment_rows(folder: Path, labels: LabelSpace) -> list[dict[str, Any]]:
    """A row for each segment, else for each object, that `ResultsWriter` wrote into a folder."""
    rows: list[dict[str, Any]] = []
    names = {category.source_id: category for category in labels}
    if (folder / f"{PANOPTIC}.json").is_file():
        for annotation in read_json(folder / f"{PANOPTIC}.json")["annotations"]:
            for segment in annotation["segments_info"]:
                score = float(segment.get("score", 1.0))
                rows.append(
                    {"image_id": annotation["image_id"], "png": annotation["file_name"], "score": score}
                    | {key: segment[key] for key in ("id", "category_id", "area", "bbox")}
                )
    if (folder / f"{INSTANCES}.json").is_file():
        for found in read_json(folder / f"{INSTANCES}.json")["annotations"]:
            mask = found.get("segmentation")
            row = {key: found[key] for key in ("image_id", "category_id", "score", "bbox")}
            rows.append(row if mask is None else row | {"mask": mask["counts"]})
    for row in rows:
        category = names[row["category_id"]]
        row |= {"name": category.name, "isthing": category.is_thing}
    return rows


def _write_tables(folder: Path, images: list[dict[str, Any]], segments: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    whole, text, number = pyarrow.int64(), pyarrow.string(), pyarrow.float64()
    of_images = {"id": whole, "file_name": text, "height": whole, "width": whole, "error": text}
    of_segments = {"image_id": whole, "id": whole, "category_id": whole, "name": text, "isthing": pyarrow.bool_()}
    of_segments |= {"score": number, "area": whole, "bbox": pyarrow.list_(number, 4), "png": text, "mask": text}
    for file, rows, kinds in ((IMAGES, images, of_images), (SEGMENTS, segments, of_segments)):
        columns = {name: [row.get(name) for row in rows] for name in kinds}
        table = pyarrow.table(columns, schema=pyarrow.schema(list(kinds.items())))
        pyarrow.parquet.write_table(table, folder / file, compression="zstd")


def parts_of(photos: Sequence[Photo], size: int) -> list[Part]:
    """All photos in parts of `size`, in their order."""
    count = -(-len(photos) // size)
    return [Part(n, n * size + 1, photos[n * size : (n + 1) * size]) for n in range(count)]
