"""The truth of a photo, as a COCO panoptic PNG with its JSON, to be looked at beside what was found."""

from __future__ import annotations

import json
from typing import Any

from pansight.apps.serving.http.problems import refusal
from pansight.errors import PansightError
from pansight.ops.idmap import present_ids
from pansight.ops.maps.label_png import decode_ids, open_label_png
from pansight.types import Category, LabelSpace, PanopticSegmentation, Segment, palette_color

MOST_SEGMENTS = 65_000


def read_truth(png: bytes, text: bytes | None, name: str, most: int) -> tuple[PanopticSegmentation, LabelSpace]:
    """png: ids as colours, R + 256·G + 65536·B. text: COCO panoptic JSON; without it segments have numbers for names.

    name: of the PNG, by which its annotation is found where the JSON has several. most: pixels of the PNG.
    Raises PansightError or `Refusal` for what is none of this.
    """
    import torch

    opened = open_label_png(png, "truth")
    if opened.height * opened.width > most:
        raise refusal(413, "truth", f"at most {most} pixels", f"{opened.height}×{opened.width}")
    ids = decode_ids(opened)
    present = [number for number in present_ids(ids).tolist() if number]
    if len(present) > MOST_SEGMENTS:
        raise PansightError(where="truth", expected=f"at most {MOST_SEGMENTS} segments", found=len(present))
    if text is None:
        labels = LabelSpace(
            Category(n, f"segment {number}", True, palette_color(n), number) for n, number in enumerate(present)
        )
        segments = tuple(Segment(number, n) for n, number in enumerate(present))
        return PanopticSegmentation(torch.from_numpy(ids), segments), labels
    labels, of_segment = _table(text, name)
    unknown = [number for number in present if number not in of_segment]
    if unknown:
        found = f"{unknown[0]}, which the JSON does not list"
        raise PansightError(where="truth", expected="segments of the JSON", found=found)
    segments = tuple(Segment(number, of_segment[number]) for number in present)
    return PanopticSegmentation(torch.from_numpy(ids), segments), labels


def _table(text: bytes, name: str) -> tuple[LabelSpace, dict[int, int]]:
    """The classes, and the category of each segment of the annotation of the PNG `name`."""
    where = "annotations"
    try:
        content = json.loads(text)
        labels = LabelSpace.from_json(content["categories"])
        rows: list[dict[str, Any]] = content["annotations"]
        found = rows if len(rows) == 1 else [row for row in rows if row["file_name"] == name]
        if len(found) != 1:
            raise PansightError(where=where, expected=f"one annotation of {name}", found=len(found))
        by_source = labels.by_source_id()
        return labels, {int(row["id"]): by_source[row["category_id"]].id for row in found[0]["segments_info"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PansightError(where=where, expected="COCO panoptic", reason=f"{type(error).__name__}: {error}") from error
