"""Photos that are no files of a folder: the members of tar shards, what lies in a store, and Parquet lists of paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pansight.data.formats.webdataset.index import INDEX, PANOPTIC, members_of, read_index, shards_in
from pansight.data.formats.webdataset.storage import (
    Piece,
    is_address,
    joined,
    listing,
    opened,
    parent_of,
    store_of,
    telling,
)
from pansight.data.images import IMAGE_SUFFIXES
from pansight.errors import PansightError

Found = list[tuple[str, Piece]]
"""The name that a photo has in every result, and where its bytes lie."""

COLUMNS = ("path", "file", "file_name", "image", "url", "uri")
"""What the column of a list may be called; else it is the first of texts."""


def is_collection(place: str) -> bool:
    """Whether a place is no photo or folder of photos on a disk, and no pattern of them."""
    if is_address(place) or place.lower().endswith((".tar", ".parquet")):
        return True
    return os.path.isdir(place) and bool(shards_in(listing(place)))


def collected(place: str, recursive: bool = True) -> Found | None:
    """The photos of a collection in their order; None where `place` is none.

    Raises PansightError where it cannot be read, or holds no photo.
    """
    if not is_collection(place):
        return None
    lower = place.lower()
    if lower.endswith(".parquet"):
        found = list(_listed(place))
    elif lower.endswith(".tar"):
        found = list(_members(place))
    elif lower.endswith(IMAGE_SUFFIXES):
        found = [(place.rpartition("/")[2], Piece(place))]
    else:
        shards = shards_in(listing(place))
        found = list(_of_shards(place, shards) if shards else _of_store(place, recursive))
    if not found:
        raise PansightError(where=place, expected=f"at least one image ({' '.join(IMAGE_SUFFIXES)})", found="none")
    return found


def _of_shards(folder: str, shards: dict[str, int]) -> Iterator[tuple[str, Piece]]:
    """Those of an index by their file names, else by the names of the members."""
    if INDEX in listing(folder):
        index = read_index(folder, shards).index
        for number in range(len(index)):
            row = index[number]
            yield row.file_name, Piece(joined(folder, row.shard), *row.image)
        return
    for name in shards:
        yield from _members(joined(folder, name))


def _members(place: str) -> Iterator[tuple[str, Piece]]:
    """The photos in a tar: of a sample with a panoptic PNG, not that one."""
    with opened(place) as file:
        for member in members_of(file, place):
            name = member.name.removeprefix("./")
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.lower().endswith(f".{PANOPTIC}"):
                yield name, Piece(place, member.offset_data, member.size)


def _of_store(folder: str, recursive: bool) -> Iterator[tuple[str, Piece]]:
    """The photos below a folder of a store, in order of their names."""
    with telling(folder):
        store, root = store_of(folder)
        paths = sorted(store.find(root, maxdepth=None if recursive else 1))
    for path in paths:
        name = path[len(root) :].lstrip("/")
        hidden = any(part.startswith(".") for part in name.split("/"))
        if name.lower().endswith(IMAGE_SUFFIXES) and not hidden:
            yield name, Piece(store.unstrip_protocol(path))


def _listed(place: str) -> Iterator[tuple[str, Piece]]:
    """The photos of a list; a path that is not absolute is one beside the list."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        hint = "install the extra pansight[table]"
        raise PansightError(where=place, expected="pyarrow to read Parquet", found="none", hint=hint) from error
    folder = parent_of(place)
    with opened(place) as file:
        try:
            table: Any = pyarrow.parquet.ParquetFile(file)
            texts = [f.name for f in table.schema_arrow if pyarrow.types.is_string(f.type)]
            column = next((name for name in (*COLUMNS, *texts) if name in texts), None)
            if column is None:
                known = ", ".join(table.schema_arrow.names)
                raise PansightError(where=place, expected="a column of paths", found=known or "no column")
            for batch in table.iter_batches(columns=[column]):
                for path in batch.column(0).to_pylist():
                    yield _beside(folder, str(path))
        except pyarrow.ArrowException as error:
            raise PansightError(where=place, expected="a Parquet list of paths", reason=error) from error


def _beside(folder: str, path: str) -> tuple[str, Piece]:
    if is_address(path):
        return path.partition("://")[2], Piece(path)
    if os.path.isabs(path):
        return Path(path).name, Piece(path)
    return path, Piece(joined(folder, path))
