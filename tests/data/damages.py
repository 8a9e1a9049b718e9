"""A small, sound COCO panoptic set, and one way after the other to damage it."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from pansight.data.images import write_png
from pansight.ops.idmap import areas, boxes_xyxy, ids_to_rgb, rgb_to_ids

PERSON, DOG, SKY, GRASS = 1, 3, 7, 8
CATEGORIES = [
    {"id": PERSON, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": DOG, "name": "dog", "isthing": 1, "color": [0, 0, 142]},
    {"id": SKY, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": GRASS, "name": "grass", "isthing": 0, "color": [70, 200, 80]},
]
HEIGHT, WIDTH = 6, 8
TRAIN, VAL = "annotations/panoptic_train.json", "annotations/panoptic_val.json"


class Expected(NamedTuple):
    """What `check` must say of a damage."""

    code: str
    file: str
    image_id: str | int | None = None
    segment: int | str | None = None


def make(root: Path) -> Path:
    """Four images for training and two for validation; each shows two objects, a sky and some void."""
    rng = np.random.default_rng(5)
    for part, numbers in (("train", (1, 2, 3, 4)), ("val", (5, 6))):
        content: dict[str, Any] = {"info": {"year": 2026}, "images": [], "annotations": [], "categories": CATEGORIES}
        for n in numbers:
            name, ids = f"scene_{n}", np.zeros((HEIGHT, WIDTH), np.int32)
            ids[:2], ids[3:5, 1:4], ids[3:6, 5:7] = 70_000 + n, 300 + n, 20 + n
            write_png(root / part / f"{name}.png", rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
            write_png(root / f"annotations/panoptic_{part}" / f"{name}.png", ids_to_rgb(ids))
            image = {"id": n, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH, "license": 3}
            classes = {70_000 + n: SKY, 300 + n: PERSON, 20 + n: DOG}
            content["images"].append(image)
            content["annotations"].append(
                {"image_id": n, "file_name": f"{name}.png", "segments_info": rows(ids, classes)}
            )
        (root / f"annotations/panoptic_{part}.json").write_text(json.dumps(content))
    return root


def rows(ids: np.ndarray, classes: dict[int, int]) -> list[dict[str, Any]]:
    pixels, boxes = areas(ids), boxes_xyxy(ids)
    result: list[dict[str, Any]] = []
    for number, category in classes.items():
        x1, y1, x2, y2 = boxes[number]
        box = [x1, y1, x2 - x1, y2 - y1]
        result.append(
            {"id": number, "category_id": category, "area": pixels[number], "bbox": box, "iscrowd": 0, "note": "n"}
        )
    return result


def edit(root: Path, change: Callable[[dict[str, Any]], object], file: str = TRAIN) -> None:
    content = json.loads((root / file).read_text())
    change(content)
    (root / file).write_text(json.dumps(content))


def segment(root: Path, n: int, which: int, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit one segment of image n: 0 the sky, 1 the person, 2 the dog."""
    edit(root, lambda c: change(c["annotations"][n - 1]["segments_info"][which]))


def annotation(root: Path, n: int, change: Callable[[dict[str, Any]], object]) -> None:
    edit(root, lambda c: change(c["annotations"][n - 1]))


def png(n: int) -> str:
    return f"annotations/panoptic_train/scene_{n}.png"


def photo(n: int) -> str:
    return f"train/scene_{n}.png"


def read_ids(root: Path, n: int) -> np.ndarray:
    with Image.open(root / png(n)) as image:  # closed at once where an earlier damage cut it short
        return rgb_to_ids(np.array(image))


def bomb(path: Path) -> None:
    """A PNG of some bytes that promises 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


# --- segments --------------------------------------------------------------------------------------------------------


def declared_without_pixels(root: Path, n: int) -> Expected:
    row = {"id": 77, "category_id": DOG, "area": 4, "bbox": [0, 0, 2, 2], "iscrowd": 0}
    annotation(root, n, lambda a: a["segments_info"].append(row))
    return Expected("no-pixels", TRAIN, n, 77)


def undeclared(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a["segments_info"].pop(1))
    return Expected("undeclared-id", png(n), n, 300 + n)


def stale_area(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(area=s["area"] + 1))
    return Expected("area", TRAIN, n, 300 + n)


def no_area(root: Path, n: int) -> Expected:
    segment(root, n, 2, lambda s: s.pop("area"))
    return Expected("area", TRAIN, n, 20 + n)


def area_as_text(root: Path, n: int) -> Expected:
    segment(root, n, 2, lambda s: s.update(area=str(s["area"])))
    return Expected("area", TRAIN, n, 20 + n)


def nan_area(root: Path, n: int) -> Expected:
    segment(root, n, 2, lambda s: s.update(area=float("nan")))
    return Expected("not-a-number", TRAIN)


def stale_box(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(bbox=[1, 3, 4, 5]))  # corners instead of width and height
    return Expected("box", TRAIN, n, 300 + n)


def endless_box(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(bbox=[10**30, float("inf"), "x", None]))
    return Expected("box", TRAIN, n, 300 + n)


def split_stuff(root: Path, n: int) -> Expected:
    ids = read_ids(root, n)
    ids[1, 3:] = 9_000
    write_png(root / png(n), ids_to_rgb(ids))
    classes = {70_000 + n: SKY, 9_000: SKY, 300 + n: PERSON, 20 + n: DOG}
    annotation(root, n, lambda a: a.update(segments_info=rows(ids, classes)))
    return Expected("stuff-split", TRAIN, n, 9_000)


def unknown_category(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(category_id=99))
    return Expected("unknown-category", TRAIN, n, 300 + n)


def category_as_list(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(category_id=[{}]))
    return Expected("unknown-category", TRAIN, n, 300 + n)


def large_id(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(id=2**24))
    return Expected("segment-id", TRAIN, n, "segments_info[1]")


def zero_id(root: Path, n: int) -> Expected:
    segment(root, n, 0, lambda s: s.update(id=0))
    return Expected("segment-id", TRAIN, n, "segments_info[0]")


def id_as_text(root: Path, n: int) -> Expected:
    segment(root, n, 0, lambda s: s.update(id=str(s["id"])))
    return Expected("segment-id", TRAIN, n, "segments_info[0]")


def id_with_point(root: Path, n: int) -> Expected:
    segment(root, n, 0, lambda s: s.update(id=float(s["id"])))
    return Expected("segment-id", TRAIN, n, "segments_info[0]")


def segment_twice(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a["segments_info"].append(dict(a["segments_info"][1])))
    return Expected("duplicate-segment", TRAIN, n, 300 + n)


def segment_of_two_classes(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a["segments_info"].append({**a["segments_info"][1], "category_id": DOG}))
    return Expected("duplicate-segment", TRAIN, n, 300 + n)


def odd_crowd(root: Path, n: int) -> Expected:
    segment(root, n, 1, lambda s: s.update(iscrowd="maybe"))
    return Expected("crowd-flag", TRAIN, n, 300 + n)


def segment_no_object(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a["segments_info"].insert(0, 5))
    return Expected("structure", TRAIN, n, "segments_info[0]")


# --- images and annotations ------------------------------------------------------------------------------------------


def image_missing(root: Path, n: int) -> Expected:
    (root / photo(n)).unlink()
    return Expected("missing-image", photo(n), n)


def image_truncated(root: Path, n: int) -> Expected:
    (root / photo(n)).write_bytes((root / photo(n)).read_bytes()[:-25])
    return Expected("unreadable-image", photo(n), n)


def image_is_text(root: Path, n: int) -> Expected:
    (root / photo(n)).write_text("a page, not a picture")
    return Expected("unreadable-image", photo(n), n)


def image_bomb(root: Path, n: int) -> Expected:
    bomb(root / photo(n))
    return Expected("unreadable-image", photo(n), n)


def image_outside(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].update(file_name="../../secret.png"))
    return Expected("path", TRAIN, n)


def image_name_of_half_a_character(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].update(file_name="\ud800.png"))
    return Expected("path", TRAIN, n)


def image_without_name(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].pop("file_name"))
    return Expected("structure", TRAIN, n)


def image_name_too_long(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].update(file_name="x" * 4000 + ".png"))
    return Expected("missing-image", f"train/{'x' * 4000}.png"[:197] + "...", n)


def png_missing(root: Path, n: int) -> Expected:
    (root / png(n)).unlink()
    return Expected("missing-png", png(n), n)


def png_truncated(root: Path, n: int) -> Expected:
    (root / png(n)).write_bytes((root / png(n)).read_bytes()[:-25])
    return Expected("unreadable-png", png(n), n)


def png_bomb(root: Path, n: int) -> Expected:
    bomb(root / png(n))
    return Expected("unreadable-png", png(n), n)


def png_outside(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a.update(file_name="/etc/passwd"))
    return Expected("path", TRAIN, n)


def png_as_palette(root: Path, n: int) -> Expected:
    with Image.open(root / png(n)) as image:
        few = image.quantize(8)
    few.save(root / png(n))
    return Expected("png-mode", png(n), n)


def png_as_grey(root: Path, n: int) -> Expected:
    """16 bits hold the person's id and the dog's, not the sky's."""
    ids = read_ids(root, n)
    ids[ids > 65_535] = 400
    write_png(root / png(n), ids.astype(np.uint16))
    annotation(root, n, lambda a: a["segments_info"][0].update(id=400))
    return Expected("png-mode", png(n), n)


def png_of_classes(root: Path, n: int) -> Expected:
    write_png(root / png(n), (read_ids(root, n) > 0).astype(np.uint8))
    return Expected("png-mode", png(n), n)


def png_is_jpeg(root: Path, n: int) -> Expected:
    with Image.open(root / png(n)) as image:
        whole = image.copy()
    whole.save(root / png(n), "jpeg")
    return Expected("png-mode", png(n), n)


def sizes_differ(root: Path, n: int) -> Expected:
    write_png(root / photo(n), np.full((HEIGHT + 1, WIDTH, 3), n, np.uint8))
    return Expected("size-mismatch", photo(n), n)


def stated_size(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].update(height=WIDTH, width=HEIGHT))
    return Expected("stated-size", TRAIN, n)


def no_stated_size(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].pop("height"))
    return Expected("stated-size", TRAIN, n)


def image_id_twice(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"].append({**c["images"][n - 1], "file_name": "other.png"}))
    return Expected("duplicate-image-id", TRAIN, n)


def annotation_missing(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a.update(image_id=4321))
    return Expected("missing-annotation", TRAIN, n)


def annotation_of_nothing(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["annotations"].append({**c["annotations"][n - 1], "image_id": [n]}))
    return Expected("unknown-image", TRAIN, None, None)


def two_annotations(root: Path, n: int) -> Expected:
    extra = {"image_id": n, "file_name": "other.png", "segments_info": []}
    edit(root, lambda c: c["annotations"].append(extra))
    return Expected("several-annotations", TRAIN, n)


def an_annotation_a_segment(root: Path, n: int) -> Expected:
    """As tools do that think in instances: the rows of one PNG in several annotations."""

    def change(content: dict[str, Any]) -> None:
        own = content["annotations"][n - 1]
        content["annotations"].append({**own, "segments_info": own["segments_info"][1:]})
        own["segments_info"] = own["segments_info"][:1]

    edit(root, change)
    return Expected("several-annotations", TRAIN, n)


def no_segments_info(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a.update(segments_info={"id": 4}))
    return Expected("structure", TRAIN, n)


def png_without_name(root: Path, n: int) -> Expected:
    annotation(root, n, lambda a: a.update(file_name=7))
    return Expected("structure", TRAIN, n)


def image_row_is_text(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"].append("scene_9.png"))
    return Expected("structure", TRAIN)


def image_id_is_null(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"].append({**c["images"][n - 1], "id": None}))
    return Expected("structure", TRAIN)


def image_id_with_point(root: Path, n: int) -> Expected:
    edit(root, lambda c: c["images"][n - 1].update(id=float(n)))
    return Expected("structure", TRAIN, None, f"images[{n - 1}]")


def leaked(root: Path, n: int) -> Expected:
    (root / photo(n)).write_bytes((root / "val/scene_6.png").read_bytes())
    return Expected("leak", photo(n), n)


ON_IMAGES = (
    *(declared_without_pixels, undeclared, stale_area, no_area, area_as_text, nan_area, stale_box, endless_box),
    *(split_stuff, unknown_category, category_as_list, large_id, zero_id, id_as_text, id_with_point, segment_twice),
    *(segment_of_two_classes, odd_crowd, segment_no_object, image_missing, image_truncated, image_is_text, image_bomb),
    *(image_outside, image_name_of_half_a_character, image_without_name, image_name_too_long, png_missing),
    *(png_truncated, png_bomb, png_outside, png_as_palette, png_as_grey, png_of_classes, png_is_jpeg, sizes_differ),
    *(stated_size, no_stated_size, image_id_twice, annotation_missing, annotation_of_nothing, two_annotations),
    *(an_annotation_a_segment, no_segments_info, png_without_name, image_row_is_text, image_id_is_null),
    *(image_id_with_point, leaked),
)
"""(root, number of a training image) → what must be found. Each is repaired, or the image is left out."""


# --- categories ------------------------------------------------------------------------------------------------------


def category_color(root: Path) -> Expected:
    edit(root, lambda c: c["categories"][0].update(color=[1, 2]))
    return Expected("structure", TRAIN, None, f"category {PERSON}")


def category_name_twice(root: Path) -> Expected:
    edit(root, lambda c: c["categories"][1].update(name="person"))
    return Expected("duplicate-name", TRAIN, None, f"category {DOG}")


def category_without_name(root: Path) -> Expected:
    edit(root, lambda c: c["categories"][3].pop("name"))
    return Expected("structure", TRAIN, None, f"category {GRASS}")


def category_id_as_text(root: Path) -> Expected:
    edit(root, lambda c: c["categories"][3].update(id="8"))
    return Expected("structure", TRAIN, None, "category 8")


def category_is_number(root: Path) -> Expected:
    edit(root, lambda c: c["categories"].append(12))
    return Expected("structure", TRAIN, None, "categories[4]")


ON_CATEGORIES = (category_color, category_name_twice, category_without_name, category_id_as_text, category_is_number)
"""root → what must be found; all are repaired."""
