"""What `first_hour.py` trains on and looks at, generated: nothing is downloaded and nothing is random."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic

CLASSES, PHOTOS = 65, 40
CITY = {"road": (7, False), "sky": (23, False), "car": (26, True)}
"""Classes of Cityscapes by their label ids, and whether they are things."""


def generate(place: Path) -> None:
    """small: 48 images of 64×64 as COCO panoptic. blobs: Penn-Fudan's layout. own: COCO instances that overlap, of 65
    classes. city: the layout of Cityscapes. photos_*: sub-folders, hidden files, a photo that is cut off.
    """
    place.mkdir(parents=True, exist_ok=True)
    export_coco_panoptic(Shapes(48, height=64, width=64), place / "small")
    _blobs(place / "blobs")
    _own(place / "own")
    _city(place / "city")
    _photos(place)


def _noisy(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    noise = rng.integers(-15, 15, (picture.height, picture.width, 3))
    return Image.fromarray(np.clip(np.asarray(picture).astype(int) + noise, 0, 255).astype(np.uint8))


def _blobs(folder: Path) -> None:
    """Two dark ellipses a photo, on 20 photos of several sizes, with instance PNGs."""
    rng = np.random.default_rng(0)
    for name in ("PNGImages", "PedMasks"):
        (folder / name).mkdir(parents=True)
    for k in range(20):
        w, h = (int(v) for v in rng.integers(260, 420, 2))
        picture, mask = Image.new("RGB", (w, h), (120, 130, 140)), Image.new("L", (w, h))
        for i in range(2):
            x, y, s = int(rng.integers(0, w - 120)), int(rng.integers(0, h - 170)), float(rng.uniform(0.6, 1.0))
            box = (x, y, x + int(70 * s), y + int(160 * s))
            ImageDraw.Draw(picture).ellipse(box, fill=tuple(int(v) for v in rng.integers(0, 90, 3)))
            ImageDraw.Draw(mask).ellipse(box, fill=i + 1)
        _noisy(picture, rng).save(folder / f"PNGImages/b{k:02d}.png")
        mask.save(folder / f"PedMasks/b{k:02d}_mask.png")


def _own(folder: Path) -> None:
    """Polygons as an annotation tool exports them: neighbours overlap, and a class is a colour."""
    rng = np.random.default_rng(1)
    for part, count in (("train", PHOTOS), ("val", PHOTOS // 4)):
        (folder / part).mkdir(parents=True)
        images, annotations = [], []
        for k in range(1, count + 1):
            picture = Image.new("RGB", (160, 120), (200, 205, 210))
            for _ in range(5):
                category = int(rng.integers(CLASSES))
                x, y, w, h = (int(v) for v in (rng.integers(0, 110), rng.integers(0, 70), *rng.integers(25, 50, 2)))
                corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
                color = (37 * category % 200, 91 * category % 200, 53 * category % 200)
                ImageDraw.Draw(picture).polygon(corners, fill=color)
                row = {"id": len(annotations) + 1, "image_id": k, "category_id": category + 1, "iscrowd": 0}
                flat = [float(v) for corner in corners for v in corner]
                annotations.append(row | {"segmentation": [flat], "bbox": [x, y, w, h], "area": w * h})
            _noisy(picture, rng).save(folder / part / f"{k:04d}.png")
            images.append({"id": k, "file_name": f"{k:04d}.png", "height": 120, "width": 160})
        categories = [{"id": c + 1, "name": f"class {c + 1}"} for c in range(CLASSES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


def _city(folder: Path) -> None:
    """A street below a sky with two cars, as Cityscapes' panoptic files and its folders for each city."""
    rng = np.random.default_rng(2)
    ids = {name: label for name, (label, _) in CITY.items()}
    for part, city, count in (("train", "aachen", 12), ("val", "munster", 4)):
        for kind in (f"leftImg8bit/{part}/{city}", f"gtFine/cityscapes_panoptic_{part}"):
            (folder / kind).mkdir(parents=True)
        images, annotations = [], []
        for k in range(count):
            name = f"{city}_{k:06d}_000019"
            picture, map_ = Image.new("RGB", (256, 128), (90, 140, 220)), np.full((128, 256), ids["sky"], np.int32)
            horizon = int(rng.integers(50, 70))
            ImageDraw.Draw(picture).rectangle((0, horizon, 256, 128), fill=(90, 90, 95))
            map_[horizon:] = ids["road"]
            for number in range(2):
                x, y = int(rng.integers(120 * number, 120 * number + 70)), int(rng.integers(horizon - 10, 90))
                ImageDraw.Draw(picture).rectangle((x, y, x + 40, y + 22), fill=(180, 30, 40 + 60 * number))
                map_[y : y + 23, x : x + 41] = 1000 * ids["car"] + number
            _noisy(picture, rng).save(folder / f"leftImg8bit/{part}/{city}/{name}_leftImg8bit.png")
            coded = np.stack([map_ % 256, map_ // 256 % 256, map_ // 65536], -1).astype(np.uint8)
            Image.fromarray(coded).save(folder / f"gtFine/cityscapes_panoptic_{part}/{name}_gtFine_panoptic.png")
            images.append({"id": name, "file_name": f"{name}_gtFine_leftImg8bit.png", "height": 128, "width": 256})
            segments = [{"id": int(i), "category_id": int(i if i < 1000 else i // 1000)} for i in np.unique(map_)]
            segments = [row | {"iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]} for row in segments]
            annotations.append(
                {"image_id": name, "file_name": f"{name}_gtFine_panoptic.png", "segments_info": segments}
            )
        categories = [{"id": i, "name": name, "isthing": int(thing)} for name, (i, thing) in CITY.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"gtFine/cityscapes_panoptic_{part}.json").write_text(json.dumps(content))


def _photos(place: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(3).integers(0, 255, (96, 96, 3)).astype(np.uint8))
    for name in ("photos_hidden", "photos_cut", "photos_nested/city"):
        (place / name).mkdir(parents=True)
        for k in range(3):
            photo.save(place / name / f"p{k}.jpg")
    (place / "photos_hidden/._p0.jpg").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    whole = (place / "photos_cut/p0.jpg").read_bytes()
    (place / "photos_cut/z.jpg").write_bytes(whole[: len(whole) // 2])
