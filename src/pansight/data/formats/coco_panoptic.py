"""COCO panoptic: one JSON and RGB-coded PNGs (https://cocodataset.org/#format-data), read and written.

Categories come out things first, then stuff, each in the order of the file; `source_id` keeps the file's own ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from pansight.data.dataset import Dataset, expect, ids_tensor, image_tensor
from pansight.data.formats.coco_files import data_root, expect_folder, find_json, image_folders, names_in
from pansight.data.images import check_stored, read_image, read_rgb_ids, write_png
from pansight.data.paths import named_file, named_folder
from pansight.errors import PansightError
from pansight.files import Publication, decode_json, flat_name, read_json, read_plain
from pansight.ops.idmap import MAX_ID, IdArray, areas, boxes_xyxy, ids_to_rgb, present_ids
from pansight.types import LabelSpace, PanopticSegmentation, Sample, Segment, read_flag


class CocoPanoptic:
    """Images with a panoptic PNG each. notes: lines on files that are read under another path than the JSON gives, and
    on images without an annotation, which are not listed. damaged: annotations of images that are not listed.

    json: the annotation file. images, panoptic: folders of the images and of the PNGs. content: the parsed file, where
    the caller has it already. absent_segments: listed segments without a pixel are left out, not an error (ADE20K).
    Raises PansightError, in one line, where the JSON has another shape than the format's; a sample raises it where its
    files are missing or damaged, differ in size, or disagree with the JSON about the ids.
    """

    def __init__(
        self,
        json: str | Path,
        images: str | Path,
        panoptic: str | Path,
        content: dict[str, Any] | None = None,
        absent_segments: bool = False,
    ):
        self.absent_segments = absent_segments
        self.json, self.images, self.panoptic = Path(json), Path(images), Path(panoptic)
        content = read_coco_json(self.json) if content is None else content
        self.labels = things_first(content["categories"], self.json)
        self._index(content)

    def _index(self, content: dict[str, Any]) -> None:
        """Check every row of the file once and keep it in a few flat arrays (118,000 images of COCO: about 15 MB)."""
        known = {source: category.id for source, category in self.labels.by_source_id().items()}
        names = image_names(content["images"], self.json)
        self._image_ids: list[str | int] = []
        rows: list[tuple[int, int, bool]] = []
        self._first = [0]
        self.damaged: list[PansightError] = []
        pngs: list[Any] = []
        for annotation in content["annotations"]:
            try:
                image_id = _image_id(annotation, names, self.json)
            except PansightError as error:
                self.damaged.append(error.with_traceback(None))
                continue
            rows += read_segments(annotation, known, f"{self.json}: image {image_id}")
            self._image_ids.append(image_id)
            self._first.append(len(rows))
            pngs.append(annotation.get("file_name"))
        stated = [names[image_id] for image_id in self._image_ids]
        self._image_names, notes = names_in(self.images, stated, self.json)
        self._png_names, more = names_in(self.panoptic, pngs, self.json)
        self.notes = notes + more
        missing = set(names) - set(self._image_ids)
        first = min(missing, key=str, default="")
        if missing and not self._image_ids:
            found = f"none for image {first} ({len(missing)} in all)"
            none = PansightError(where=self.json, expected="an annotation for every image", found=found)
            raise next(iter(self.damaged), none)
        if missing:
            self.notes += (f"{len(missing)} images without annotation are left out, such as {first!r:.80}",)
        if len(set(self._image_ids)) != len(self._image_ids):
            raise PansightError(where=self.json, expected="one annotation per image", found="an image_id twice")
        self._rows = np.array(rows, np.int32).reshape(-1, 3)  # (S, 3): id, category, is_crowd

    def __len__(self) -> int:
        return len(self._image_ids)

    def image_id(self, index: int) -> str | int:
        return self._image_ids[index]

    def file_name(self, index: int) -> str:
        return self._image_names[index]

    def problem(self, index: int) -> PansightError | None:
        """Why an image cannot be used, as far as this is told without decoding it; None where nothing is wrong."""
        try:
            png = check_stored(self.panoptic / self._png_names[index])
            if png.kind != "png":
                raise PansightError(
                    where=self.panoptic / self._png_names[index],
                    expected="an 8-bit RGB PNG of segment ids",
                    found="another format",
                )
            check_stored(self.images / self._image_names[index], (png.height, png.width))
        except PansightError as error:
            return error.with_traceback(None)  # which would keep what was read
        return None

    def __getitem__(self, index: int) -> Sample:
        rows = self._rows[self._first[index] : self._first[index + 1]].tolist()
        segments = tuple(Segment(number, category, 1.0, bool(crowd)) for number, category, crowd in rows)
        png = self.panoptic / self._png_names[index]
        ids = read_rgb_ids(png)
        if self.absent_segments:
            present = set(present_ids(ids).tolist())
            segments = tuple(s for s in segments if s.id in present)
        check_ids(ids, {s.id for s in segments}, png, self.json)
        size = ids.shape[0], ids.shape[1]
        image = read_image(self.images / self._image_names[index], mask_size=size)
        return Sample(image_tensor(image), PanopticSegmentation(ids_tensor(ids), segments), self.image_id(index), size)


def check_ids(ids: IdArray, listed: set[int], png: str | Path, json_file: str | Path) -> None:
    """Raises PansightError unless the non-zero ids of a map are exactly the listed ones."""
    name = os.path.basename(json_file)
    present = set(present_ids(ids).tolist()) - {0}
    if present == listed:
        return
    if present - listed:
        raise PansightError(where=png, expected=f"only ids that {name} lists", found=min(present - listed))
    lost = min(listed - present)
    raise PansightError(where=png, expected=f"every id that {name} lists", found=f"no pixel of {lost}")


def read_coco_json(path: Path) -> dict[str, Any]:
    """The file as JSON with its three lists, of which images and categories are not empty.

    Annotations stay packed until they are asked for: as Python objects they would take several times the bytes.
    """
    packed = _packed(path)
    content = read_json(path) if packed is None else packed
    expect(
        isinstance(content, dict), path, "a JSON object with images, annotations, categories", type(content).__name__
    )
    for key in ("images", "annotations", "categories"):
        found = content.get(key, "nothing")
        expect(isinstance(found, list | PackedRows), path, f"a list under {key!r}", found)
        rows = found if isinstance(found, list) else ()  # packed ones are all objects
        bad = next((row for row in rows if not isinstance(row, dict)), None)
        expect(bad is None, path, f"objects in {key!r}", bad)
    if not content["images"]:
        raise PansightError(where=path, expected="images", found="an empty data set")
    if not content["categories"]:
        raise PansightError(where=path, expected="categories", found="none")
    return content


class PackedRows(Sequence[dict[str, Any]]):
    """The objects of a JSON list, each decoded as it is asked for. Raises PansightError there, naming the file."""

    def __init__(self, rows: Sequence[msgspec.Raw], source: Path):
        self._rows, self._source = rows, source

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        return decode_json(bytes(self._rows[index]), object, self._source)


def _packed(path: Path) -> dict[str, Any] | None:
    """The lists of a file, annotations packed; None where anything is odd, which the plain way of reading tells."""
    try:
        data = read_plain(path)
        if any(data.count(f'"{key}"'.encode()) != 1 for key in ("images", "annotations", "categories")):
            return None  # a key may stand there twice
        lists = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        rows = msgspec.json.decode(lists["annotations"], type=list[msgspec.Raw])
        if not all(memoryview(row)[:1] == b"{" for row in rows):
            return None
        plain = {key: decode_json(bytes(lists[key]), object, path) for key in ("images", "categories")}
        return {**plain, "annotations": PackedRows(rows, path)}
    except (OSError, KeyError, ValueError, RecursionError, PansightError):  # msgspec's errors are ValueErrors
        return None


def things_first(categories: list[dict[str, Any]], source: Path) -> LabelSpace:
    """Things, then stuff, each in the order of the file."""
    try:
        ordered = sorted(categories, key=lambda row: not read_flag(row.get("isthing"), "category", "isthing"))
        return LabelSpace.from_json(ordered)
    except PansightError as error:
        raise error.at(source) from error
    except (TypeError, ValueError) as error:
        raise PansightError(where=source, expected="categories with id, name, isthing, color", found=error) from error


def image_names(images: list[dict[str, Any]], source: Path) -> dict[str | int, str]:
    """image id → file name as the JSON gives it."""
    names: dict[str | int, str] = {}
    for row in images:
        expect(isinstance(row.get("id"), str | int), source, "an id (number or text) for every image", row)
        expect(isinstance(row.get("file_name"), str), source, "a file name for every image", row.get("file_name"))
        names[row["id"]] = row["file_name"]
    if len(names) != len(images):
        raise PansightError(where=source, expected="each image id once", found=f"{len(images) - len(names)} repeated")
    return names


def _image_id(annotation: dict[str, Any], names: dict[str | int, str], source: Path) -> str | int:
    image_id = annotation.get("image_id")
    if not isinstance(image_id, str | int) or image_id not in names:
        raise PansightError(where=source, expected="annotations of the listed images", found=f"image_id {image_id!r}")
    return image_id


def read_segments(annotation: dict[str, Any], known: dict[int, int], where: str) -> list[tuple[int, int, bool]]:
    """(id, category, is_crowd) of each segment of one annotation, checked. known: category id of the file → index."""
    segments = annotation.get("segments_info")
    if not isinstance(segments, list):
        raise PansightError(where=where, expected="a list segments_info (COCO panoptic)", found=f"{segments!r:.80}")
    rows: list[tuple[int, int, bool]] = []
    seen: set[int] = set()
    for segment in segments:
        if not isinstance(segment, dict):
            raise PansightError(where=where, expected="segments as objects", found=f"{segment!r:.80}")
        number, category = segment.get("id"), segment.get("category_id")
        if not isinstance(number, int) or not 1 <= number <= MAX_ID:
            raise PansightError(where=where, expected=f"segment ids 1 … {MAX_ID}", found=f"{number!r}")
        if not isinstance(category, int) or category not in known:
            raise PansightError(
                where=f"{where}: segment {number}",
                expected="a listed category",
                found=f"category_id {category!r}",
                code="unlisted_category",
            )
        if number in seen:
            raise PansightError(where=where, expected="each segment id once", found=f"{number} twice")
        seen.add(number)
        is_crowd = read_flag(segment.get("iscrowd"), f"{where}: segment {number}", "iscrowd")
        rows.append((number, known[category], bool(is_crowd)))
    return rows


# --- opening ---------------------------------------------------------------------------------------------------------


def open_coco_panoptic(
    source: str | Path,
    split: str | None = None,
    json: str | Path | None = None,
    images: str | Path | None = None,
    panoptic: str | Path | None = None,
) -> CocoPanoptic:
    """A data folder or an annotation file; the folders of images and PNGs are found in the usual places unless named,
    below the data folder or as they stand.

    Raises PansightError listing what was looked for.
    """
    root, file = coco_json(Path(source), "panoptic", split, json)
    content = read_coco_json(file)
    if images is None:
        stated = list(image_names(content["images"], file).values())
        folder = expect_folder(image_folders(root, file, "panoptic", split), stated, file, "the images", "images")
    else:
        folder = named_folder(root, images)
    pngs = file.with_suffix("")
    if panoptic is not None:
        pngs = named_folder(root, panoptic, "a folder of PNGs")
    elif content["annotations"]:
        stated = [str(row.get("file_name")) for row in content["annotations"]]
        candidates = [pngs, root / file.stem, root / "annotations" / file.stem, root / "panoptic", file.parent]
        pngs = expect_folder(candidates, stated, file, "the PNGs", "panoptic")
    return CocoPanoptic(file, folder, pngs, content)


def coco_json(source: Path, prefix: str, split: str | None, json: str | Path | None) -> tuple[Path, Path]:
    """(data folder, annotation file) of a source that is either, or of the file `json`.

    Raises PansightError listing what was looked for.
    """
    if source.is_file():
        return data_root(source), source if json is None else named_file(data_root(source), json, "an annotation file")
    file = find_json(source, prefix, split) if json is None else named_file(source, json, "an annotation file")
    if file is None:
        names = f"{prefix}_{split or '*'}*.json"
        raise PansightError(where=source, expected=f"annotations/{names} or {names} (COCO {prefix})", found="none")
    return source, file


# --- writing ---------------------------------------------------------------------------------------------------------


class PanopticWriter:
    """Write COCO panoptic image by image, PNGs at once and the JSON at the end; all appear together or not at all.

        with PanopticWriter("out/predictions.json", labels) as writer:
            writer.add(139, "000000000139.jpg", segmentation)

    The PNGs go to a folder named like the JSON without its suffix. beside: further folders that appear with the two;
    what is to stand there is written to `writer.beside` meanwhile. Raises PansightError where JSON or PNGs exist and
    `overwrite` is not set, and where a segmentation is not valid: ids and segments must agree.
    """

    def __init__(self, json: str | Path, labels: LabelSpace, overwrite: bool = False, beside: Sequence[Path] = ()):
        self.json, self.labels, self.overwrite = Path(json), labels, overwrite
        self.folder = self.json.with_suffix("")
        self._publication = Publication(self.folder, self.json, *beside)
        self._partial, self._listing, *self.beside = self._publication.temporaries
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._png_names: set[str] = set()

    def __enter__(self) -> PanopticWriter:
        taken = [path for path in (self.json, self.folder) if path.exists()]
        if taken and not self.overwrite:
            raise PansightError(
                where=taken[0], expected="no such file or folder yet", found="one", hint="nothing was written"
            )
        self._publication.begin()
        try:
            self._partial.mkdir()
        except OSError as error:
            raise self._publication.failure(error) from error
        return self

    def add(self, image_id: str | int, file_name: str, segmentation: PanopticSegmentation) -> None:
        """One image, by the name of its file; the PNG takes its stem, with folders flattened."""
        ids = segmentation.ids.cpu().numpy()
        png_name = flat_name(file_name, ".png", self._png_names)
        check_ids(ids, {s.id for s in segmentation.segments}, self.folder / png_name, self.json)
        write_png(self._partial / png_name, ids_to_rgb(ids))
        height, width = segmentation.size
        self._images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        rows = segment_rows(segmentation, ids, self.labels)
        self._annotations.append({"image_id": image_id, "file_name": png_name, "segments_info": rows})

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._publication.discard()

    def _publish(self) -> None:
        content = {"images": self._images, "annotations": self._annotations, "categories": self.labels.to_json()}
        try:
            self._listing.write_text(json.dumps(content), encoding="utf-8")
        except OSError as error:
            raise self._publication.failure(error) from error
        self._publication.publish()


def segment_rows(segmentation: PanopticSegmentation, ids: IdArray, labels: LabelSpace) -> list[dict[str, Any]]:
    """``segments_info``: source category ids, areas and boxes [x, y, w, h] counted from the map, plain numbers."""
    pixels, boxes = areas(ids), boxes_xyxy(ids)
    rows: list[dict[str, Any]] = []
    for segment in segmentation.segments:
        x1, y1, x2, y2 = boxes[segment.id]
        row: dict[str, Any] = {"id": segment.id, "category_id": labels[segment.category].source_id}
        row |= {"area": pixels[segment.id], "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(segment.is_crowd)}
        rows.append(row if segment.score == 1.0 else row | {"score": float(segment.score)})
    return rows


def write_coco_panoptic(
    json: str | Path,
    items: Iterable[tuple[str | int, str, PanopticSegmentation]],
    labels: LabelSpace,
    overwrite: bool = False,
) -> None:
    """Every (image_id, file_name, segmentation) of `items` through a PanopticWriter."""
    with PanopticWriter(json, labels, overwrite) as writer:
        for image_id, file_name, segmentation in items:
            writer.add(image_id, file_name, segmentation)


def export_coco_panoptic(dataset: Dataset, folder: str | Path, split: str = "train", overwrite: bool = False) -> Path:
    """Any data set as ``annotations/panoptic_SPLIT.json`` + PNGs + images as ``SPLIT/*.png``; returns the JSON's path.

    Raises PansightError where the image folder or the annotations exist and `overwrite` is not set.
    """
    folder = Path(folder)
    images, target = folder / split, folder / "annotations" / f"panoptic_{split}.json"
    if images.exists() and not overwrite:
        raise PansightError(where=images, expected="no such folder yet", found="one", hint="nothing was written")
    with PanopticWriter(target, dataset.labels, overwrite, beside=[images]) as writer:
        for index in range(len(dataset)):
            sample = dataset[index]
            name = f"{Path(dataset.file_name(index)).with_suffix('').as_posix().replace('/', '_')}.png"
            write_png(writer.beside[0] / name, sample.image.permute(1, 2, 0).numpy())
            writer.add(sample.image_id, name, sample.truth)
    return target
