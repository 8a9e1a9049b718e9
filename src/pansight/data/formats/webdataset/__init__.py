"""WebDataset: tar shards that hold photo, panoptic PNG and table of segments of each sample, read at any place.

    categories.json          the classes, as in COCO panoptic
    train/index.jsonl        where each sample lies (see index.py); without it, the shards are gone through once
    train/shard-000000.tar   000000000.jpg, 000000000.panoptic.png, 000000000.json, 000000001.jpg …
    val/…

The table of a sample is its row of COCO panoptic, {"image_id", "file_name", "segments_info"}, and stays in the shard
until the sample is read: memory does not grow with the annotations. The folder may lie in any store that fsspec
reaches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pansight.data.dataset import SPLITS, ids_tensor, image_tensor, means_split, split_of
from pansight.data.formats.coco_panoptic import check_ids, read_segments, things_first
from pansight.data.formats.webdataset.index import PANOPTIC, TABLE, Extent, Row, read_index, shards_in
from pansight.data.formats.webdataset.storage import Piece, is_address, joined, listing, parent_of
from pansight.data.images import END, check_content, decode_ids_png, decode_image
from pansight.errors import PansightError
from pansight.files import decode_json
from pansight.types import PanopticSegmentation, Sample, Segment

CATEGORIES = "categories.json"


class WebDataset:
    """The samples of the shards of one folder. damaged: the errors of samples that are not listed.

    folder: where the shards are. shards: their names and bytes. categories: rows of COCO panoptic. source: where the
    categories are from. Raises PansightError where the index or a shard is damaged; a sample raises it where its own
    files are.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, folder: str, shards: dict[str, int], categories: list[dict[str, Any]], source: str):
        self.folder = folder
        self.labels = things_first(categories, Path(source))
        self._known = {source_id: category.id for source_id, category in self.labels.by_source_id().items()}
        found = read_index(folder, shards)
        self.index, self.damaged = found.index, found.damaged
        if not len(self.index) and self.damaged:
            raise self.damaged[0]

    def __len__(self) -> int:
        return len(self.index)

    def image_id(self, index: int) -> str | int:
        return self.index[index].image_id

    def file_name(self, index: int) -> str:
        return self.index[index].file_name

    def photo(self, index: int) -> Piece:
        """Where the file of a photo lies, which is as it was."""
        row = self.index[index]
        return self._piece(row, row.image)

    def png(self, row: Row) -> Piece:
        """Where the panoptic PNG of a sample lies."""
        return self._piece(row, row.panoptic)

    def problem(self, index: int) -> PansightError | None:
        """Why a sample cannot be used, as far as this is told without decoding it; None where nothing is wrong.

        Nothing is read of shards in a store, whose every request takes its time.
        """
        if is_address(self.folder):
            return None
        row = self.index[index]
        try:
            self.segments(row)
            png, where = self.png(row), self.png_name(row)
            header = check_content(png.ends(END), png.read, png.size, where)
            if header.kind != "png":
                raise PansightError(where=where, expected="an 8-bit RGB PNG of segment ids", found="another format")
            photo = self._piece(row, row.image)
            size = header.height, header.width
            check_content(photo.ends(END), photo.read, photo.size, self.photo_name(row), size)
        except PansightError as error:
            return error.with_traceback(None)  # which would keep what was read
        return None

    def __getitem__(self, index: int) -> Sample:
        row = self.index[index]
        segments, where = self.segments(row), self.png_name(row)
        ids = decode_ids_png(self.png(row).read(), where)
        check_ids(ids, {segment.id for segment in segments}, where, self.table_name(row))
        size = ids.shape[0], ids.shape[1]
        image = decode_image(self._piece(row, row.image).read(), self.photo_name(row), size)
        return Sample(image_tensor(image), PanopticSegmentation(ids_tensor(ids), segments), row.image_id, size)

    def segments(self, row: Row) -> tuple[Segment, ...]:
        """The segments of a sample, by its table. Raises PansightError where that is damaged."""
        where = self.table_name(row)
        table = decode_json(self._piece(row, row.table).read(), dict[str, Any], where)
        found = read_segments(table, self._known, where)
        return tuple(Segment(number, category, 1.0, crowd) for number, category, crowd in found)

    def _piece(self, row: Row, extent: Extent) -> Piece:
        return Piece(joined(self.folder, row.shard), *extent)

    def photo_name(self, row: Row) -> str:
        """What errors call the photo of a sample."""
        return joined(joined(self.folder, row.shard), row.file_name)

    def png_name(self, row: Row) -> str:
        return f"{self.photo_name(row).rpartition('.')[0]}.{PANOPTIC}"

    def table_name(self, row: Row) -> str:
        return f"{self.photo_name(row).rpartition('.')[0]}.{TABLE}"


def open_webdataset(source: str | Path, split: str | None = None) -> WebDataset:
    """A folder of shards, or of parts that are such folders, or one shard; also one in a store, as s3://bucket/data.

    Without a split the only folder of shards is taken, else that of the training part. Raises PansightError listing
    what was looked for.
    """
    place = str(source)
    if place.lower().endswith(".tar"):
        folder = parent_of(place)
        shards = {name: size for name, size in shards_in(listing(folder)).items() if joined(folder, name) == place}
    else:
        folder = _folder_of_part(place, split)
        shards = shards_in(listing(folder))
    if not shards:
        raise PansightError(where=place, expected="shards (*.tar)", found="none")
    for home in (folder, parent_of(folder)):
        if CATEGORIES in listing(home):
            file = joined(home, CATEGORIES)
            return WebDataset(folder, shards, read_categories(file), file)
    raise PansightError(where=place, expected=f"{CATEGORIES} beside the shards or above them", found="none")


def read_categories(file: str) -> list[dict[str, Any]]:
    """The rows of categories.json. Raises PansightError where it is none."""
    rows = decode_json(Piece(file).read(), list[dict[str, Any]], file)
    if not rows:
        raise PansightError(where=file, expected="categories", found="none")
    return rows


def _folder_of_part(place: str, split: str | None) -> str:
    parts = webdataset_parts(place)
    if split is None and (shards_in(listing(place)) or not parts):
        return place
    meant = [part for part in parts if means_split(part, split or "train")]
    exact = [part for part in meant if part == split] or meant
    if not exact:
        raise PansightError(where=place, expected=f"a folder of shards for {split}", found=", ".join(parts) or "none")
    return joined(place, exact[0])


def webdataset_parts(place: str) -> tuple[str, ...]:
    """The folders of shards within a folder that name a part of a data set: training parts first."""
    order = list(SPLITS)
    parts = [(split_of(name), name) for name, size in listing(place).items() if size < 0]
    ranked = sorted((order.index(part), name) for part, name in parts if part is not None)
    return tuple(name for _, name in ranked if shards_in(listing(joined(place, name))))


def is_webdataset(source: str | Path) -> bool:
    """Whether a folder or file looks like it; cheap, never raises."""
    place = str(source)
    try:
        if place.lower().endswith(".tar"):
            home = parent_of(place)
            return CATEGORIES in {**listing(parent_of(home)), **listing(home)}
        names = listing(place)
        if shards_in(names):
            return CATEGORIES in names or CATEGORIES in listing(parent_of(place))
        return CATEGORIES in names and bool(webdataset_parts(place))
    except PansightError:
        return False
