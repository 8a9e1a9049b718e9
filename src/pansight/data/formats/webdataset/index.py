"""Where the samples of tar shards lie, so that each can be read by itself: ``index.jsonl``, or the shards themselves.

A line of the file is a JSON list: the name of the shard, the id and the file name of the image, then offset and size in
bytes of the image, of its panoptic PNG and of its table of segments. The lines stay as they are, those of a file on a
disk in the file, and are decoded as they are asked for: an image takes 8 bytes of memory besides.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from pansight.data.formats.webdataset.storage import Piece, file_size, is_address, joined, opened
from pansight.data.images import IMAGE_SUFFIXES
from pansight.errors import PansightError
from pansight.files import decode_json, safe_join

INDEX = "index.jsonl"
TABLE, PANOPTIC = "json", "panoptic.png"
"""How the members of a sample end, behind its key and a dot; its image ends as images do."""

Extent = tuple[int, int]
"""Offset and size in bytes."""

CHUNK = 2**24
MAX_TABLE = 2**26
"""Bytes that the table of one image may have."""


class Row(msgspec.Struct, array_like=True, frozen=True):
    """A sample: a line of the index."""

    shard: str
    image_id: int | str
    file_name: str
    image: Extent
    panoptic: Extent
    table: Extent


class Head(msgspec.Struct):
    """What the index takes from the table of a sample."""

    image_id: int | str
    file_name: str


encode_row = msgspec.json.Encoder().encode
_decode_row = msgspec.json.Decoder(Row).decode


class Index:
    """The rows of a folder of shards, by number. shards: name → bytes.

    Raises PansightError for a line that is none, a sample that does not lie in its shard, and for an image twice.
    """

    def __init__(self, lines: Any, shards: Mapping[str, int], where: str):
        self._lines, self._ends, self.where = lines, _line_ends(lines), where
        seen = np.zeros(len(self), np.int64)
        for number in range(len(self)):
            row = self[number]
            _check(row, shards, f"{where}: line {number + 1}")
            seen[number] = hash(row.image_id)
        if len(np.unique(seen)) < len(seen):
            raise PansightError(where=where, expected="each image id once", found="one twice")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> Row:
        first = int(self._ends[number - 1]) + 1 if number else 0
        try:
            return _decode_row(bytes(self._lines[first : int(self._ends[number])]))
        except msgspec.DecodeError as error:
            expected = "[shard, id, file name, image, PNG, table]"
            raise PansightError(where=f"{self.where}: line {number + 1}", expected=expected, reason=error) from error


def _line_ends(lines: Any) -> np.ndarray:
    """int64 (N,): where each line ends."""
    data = np.frombuffer(lines, np.uint8)
    pieces = [np.flatnonzero(data[first : first + CHUNK] == 10) + first for first in range(0, len(data), CHUNK)]
    ends = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
    if len(data) and data[-1] != 10:  # no line feed behind the last line
        ends = np.append(ends, len(data))
    return ends.astype(np.int64)


def _check(row: Row, shards: Mapping[str, int], where: str) -> None:
    if row.shard not in shards:
        raise PansightError(where=where, expected="a shard of the folder", found=f"{row.shard!r:.80}")
    safe_join(Path(), row.file_name, where)
    for start, size in (row.image, row.panoptic, row.table):
        if start < 0 or size < 0 or start + size > shards[row.shard]:
            found = f"{size} bytes from byte {start} on in {row.shard} of {shards[row.shard]}"
            raise PansightError(where=where, expected="a sample within its shard", found=found)


@dataclass(frozen=True)
class Found:
    """An index, and the errors of samples that are not in it."""

    index: Index
    damaged: tuple[PansightError, ...] = ()


def read_index(folder: str, shards: Mapping[str, int]) -> Found:
    """The index of the `shards` of a folder: of its file, else found by going through the shards.

    Raises PansightError where the file is damaged, or a shard no tar.
    """
    place = joined(folder, INDEX)
    size = file_size(place)
    if size > 0:
        lines = Piece(place).read() if is_address(place) else np.memmap(place, np.uint8, "r")
        return Found(Index(lines, shards, place))
    lines, damaged = bytearray(), list[PansightError]()
    for name in shards:
        for found in scanned(joined(folder, name), name):
            if isinstance(found, PansightError):
                damaged.append(found)
            else:
                lines += encode_row(found) + b"\n"
    return Found(Index(bytes(lines), shards, folder), tuple(damaged))


# --- shards without an index -----------------------------------------------------------------------------------------


def scanned(place: str, name: str) -> Iterator[Row | PansightError]:
    """The samples of the tar at `place` in their order: members that lie together and have one key, all up to the first
    dot of their names. An error in place of a sample that lacks a member or whose table is none.

    Raises PansightError where it is no tar, as one that is packed (.tar.gz): nothing could be read out of its middle.
    """
    with opened(place) as file:
        try:
            key, parts = "", dict[str, Extent]()
            for member in members_of(file, place):
                path, _, ending = member.name.rpartition("/")[2].partition(".")
                here = f"{member.name.rpartition('/')[0]}/{path}"
                if here != key and parts:
                    yield _sample(place, name, key, parts)
                    parts = {}
                key = here
                parts[ending.lower()] = member.offset_data, member.size
            if parts:
                yield _sample(place, name, key, parts)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            reason = " ".join(str(error).split())
            raise PansightError(where=place, expected="a whole tar, not packed", reason=reason) from error


def members_of(file: Any, place: str) -> Iterator[tarfile.TarInfo]:
    """The plain files in a tar. Only headers are read."""
    behind = -1
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (member := archive.next()) is not None:
            if member.offset_data <= behind or member.size < 0:  # a header that would be read for ever
                raise PansightError(where=place, expected="a whole tar", found=f"a damaged header {member.name!r:.80}")
            behind = member.offset_data
            cast(Any, archive).members = []  # which would grow with the shard
            if member.isreg() and not member.issparse() and not member.name.rpartition("/")[2].startswith("."):
                yield member


def _sample(place: str, shard: str, key: str, parts: Mapping[str, Extent]) -> Row | PansightError:
    where = f"{place}/{key.lstrip('/')}."
    image = next((ending for ending in parts if f".{ending}" in IMAGE_SUFFIXES), None)
    for ending, wanted in ((TABLE, TABLE), (PANOPTIC, PANOPTIC), (image, "an image")):
        if ending not in parts:
            return PansightError(where=where, expected=wanted, found=", ".join(sorted(parts)), code="missing_file")
    assert image is not None
    try:
        size = parts[TABLE][1]
        if size > MAX_TABLE:
            raise PansightError(where=f"{where}{TABLE}", expected=f"at most {MAX_TABLE} bytes", found=size)
        head = decode_json(Piece(place, *parts[TABLE]).read(), Head, f"{where}{TABLE}")
    except PansightError as error:
        return error.with_traceback(None)
    return Row(shard, head.image_id, head.file_name, parts[image], parts[PANOPTIC], parts[TABLE])


def shards_in(names: Mapping[str, int]) -> dict[str, int]:
    """The tars among the names of a folder, with their bytes."""
    return {name: size for name, size in names.items() if name.lower().endswith(".tar") and size >= 0}
