"""Write tar shards of photo, panoptic PNG and table, as data/formats/webdataset reads them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from pansight.data.convert.overlap import Resolved
from pansight.data.convert.source import Annotated
from pansight.data.convert.targets.coco import drawn_panoptic
from pansight.data.formats.webdataset import CATEGORIES
from pansight.data.formats.webdataset.index import INDEX, PANOPTIC, TABLE, Extent, Row, encode_row
from pansight.errors import PansightError
from pansight.files import write_json
from pansight.types import LabelSpace

SHARD_BYTES = 256 * 2**20
"""A shard of so many bytes or more is closed, and the next one begun."""

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)


class WebDatasetTarget:
    """``SPLIT/shard-000000.tar`` …, ``SPLIT/index.jsonl`` beside them, ``categories.json`` above."""

    def __init__(self, folder: Path, labels: LabelSpace):
        self.folder, self.labels, self.notes = folder, labels, ()
        self._parts: dict[str, _Part] = {}
        self._photo = folder / "photo.part"

    def image_file(self, split: str, file_name: str) -> Path:
        """The photo waits here until it is added to its shard."""
        return self._photo

    def draw(self, image: Annotated, result: Resolved) -> tuple[bytes, list[dict[str, Any]]]:
        """(PNG, rows of its segments)."""
        return drawn_panoptic(result, self.labels)

    def add(self, split: str, image: Annotated, drawn: tuple[bytes, list[dict[str, Any]]]) -> None:
        if not self._photo.is_file():
            raise PansightError(where="webdataset", expected="photos in the shards", found="--images none")
        photo = self._photo.read_bytes()
        self._photo.unlink()
        part = self._parts.setdefault(split, _Part(self.folder / split))
        height, width = image.size
        table = {"image_id": image.image_id, "file_name": image.file_name, "height": height, "width": width}
        part.add(image, photo, drawn[0], json.dumps({**table, "segments_info": drawn[1]}).encode())

    def close(self) -> None:
        for part in self._parts.values():
            part.close_shard()
        write_json(self.folder / CATEGORIES, self.labels.to_json())


class _Part:
    """The shards of one part, written sample by sample: no file stays open where a conversion fails."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._shard = self._samples = self._bytes = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, image: Annotated, photo: bytes, png: bytes, table: bytes) -> None:
        if self._bytes >= SHARD_BYTES:
            self.close_shard()
            self._shard, self._bytes = self._shard + 1, 0
        key, name = f"{self._samples:09d}", self._name()
        suffix = PurePosixPath(image.file_name).suffix.lower() or ".jpg"
        extents: list[Extent] = []
        with (self.folder / name).open("ab") as file:
            for ending, data in ((suffix[1:], photo), (PANOPTIC, png), (TABLE, table)):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                header = info.tobuf(tarfile.GNU_FORMAT)
                file.write(header + data + bytes(-len(data) % tarfile.BLOCKSIZE))
                extents.append((self._bytes + len(header), len(data)))
                self._bytes = file.tell()
        with (self.folder / INDEX).open("ab") as file:
            file.write(encode_row(Row(name, image.image_id, image.file_name, *extents)) + b"\n")
        self._samples += 1

    def close_shard(self) -> None:
        with (self.folder / self._name()).open("ab") as file:
            file.write(END_OF_TAR)

    def _name(self) -> str:
        return f"shard-{self._shard:06d}.tar"
