"""Tar shards with categories.json, as `convert --as webdataset` writes them (see data/formats/webdataset)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pansight.data.convert.source import Annotated, ListSource, Source, SourceCategory, with_damaged
from pansight.data.formats.webdataset import WebDataset, is_webdataset, webdataset_parts
from pansight.data.formats.webdataset import open_webdataset as open_shards
from pansight.data.images import decode_ids_png
from pansight.errors import PansightError
from pansight.ops.idmap import present_ids


def open_webdataset(source: Path, split: str | None = None) -> Source:
    """The samples of the shards; photos stay as they are. Raises PansightError where shard or index is damaged."""
    shards = open_shards(source, split)
    categories = [SourceCategory(c.name, c.source_id, c.is_thing, c.color) for c in shards.labels]
    images = [partial(_annotated, shards, number) for number in range(len(shards))]
    return with_damaged(ListSource(categories, images, shards.notes), shards.damaged)


def _annotated(shards: WebDataset, number: int) -> Annotated:
    row = shards.index[number]
    segments = {segment.id: (segment.category, segment.is_crowd) for segment in shards.segments(row)}
    ids = decode_ids_png(shards.png(row).read(), shards.png_name(row))
    strange = set(present_ids(ids).tolist()) - segments.keys() - {0}
    if strange:
        expected = f"only ids of {shards.table_name(row)}"
        raise PansightError(where=shards.png_name(row), expected=expected, found=min(strange))
    size = ids.shape[0], ids.shape[1]
    return Annotated(row.image_id, row.file_name, shards.photo(number).read(), size, (), ids, segments)


def splits_webdataset(source: Path) -> tuple[str, ...]:
    """The parts that are folders of shards; none where the folder itself is one."""
    try:
        return webdataset_parts(str(source)) if is_webdataset(source) and source.is_dir() else ()
    except PansightError:
        return ()


__all__ = ["is_webdataset", "open_webdataset", "splits_webdataset"]
