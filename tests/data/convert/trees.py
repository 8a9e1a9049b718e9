"""Small trees of files with the names, folders, bit depths and colour types of the official data sets.

Every builder returns the root of its tree; what it contains is written out in the constants, so that tests can say
what each pixel must become. `panoptic=True` adds the panoptic files as the makers' own scripts write them, mistakes
included. Images are single-coloured: only their names and sizes matter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pansight.data.categories import category_table

# --- Cityscapes ------------------------------------------------------------------------------------------------------

CITY_IMAGES = {"train": "aachen_000000_000019", "val": "frankfurt_000001_007973"}
"""Part → id of its only image, 6×8."""

CITY_VALUES = np.array(
    [
        [23, 23, 23, 23, 23, 23, 23, 23],  # sky
        [11, 11, 11, 26000, 26000, 26001, 26001, 11],  # building, two cars
        [24000, 25000, 33000, 26000, 26000, 26001, 26001, 26],  # person, rider, bicycle; cars that are a group
        [24000, 25000, 33000, 33, 33, 30000, 29000, 26],  # bicycles as a group; trailer and caravan: not evaluated
        [7, 7, 7, 7, 7, 7, 18, 17],  # road; a group of poles is a label that is not evaluated, a pole is
        [1, 1, 1, 1, 0, 0, 7, 7],  # ego vehicle, unlabelled
    ],
    np.uint16,
)
"""instanceIds of both images."""

CITY_PANOPTIC = np.array(
    [
        [23, 23, 23, 23, 23, 23, 23, 23],
        [11, 11, 11, 26000, 26000, 26001, 26001, 11],
        [24000, 25000, 33000, 26000, 26000, 26001, 26001, 26],
        [24000, 25000, 33000, 33, 33, 0, 0, 26],
        [7, 7, 7, 7, 7, 7, 0, 17],
        [0, 0, 0, 0, 0, 0, 7, 7],
    ],
    np.int32,
)
"""What createPanopticImgs makes of it; the ids of segments are those of the labels and objects."""

CITY_CROWDS = {26, 33}

CITY_OBJECTS: list[tuple[str, list[list[int]]]] = [
    ("sky", [[0, 0], [7, 0], [7, 3], [0, 3]]),  # what follows is painted over it
    ("building", [[0, 1], [7, 1], [7, 3], [0, 3]]),
    ("car", [[3, 1], [4, 1], [4, 2], [3, 2]]),
    ("car", [[5, 1], [6, 1], [6, 2], [5, 2]]),
    ("person", [[0, 2], [0, 3], [0, 3]]),
    ("rider", [[1, 2], [1, 3], [1, 3]]),
    ("bicycle", [[2, 2], [2, 3], [2, 3]]),
    ("cargroup", [[7, 2], [7, 3], [7, 3]]),
    ("bicyclegroup", [[3, 3], [4, 3], [4, 3]]),
    ("trailer", [[5, 3], [5, 3], [5, 3]]),
    ("caravan", [[6, 3], [6, 3], [6, 3]]),
    ("road", [[0, 4], [7, 4], [7, 5], [0, 5]]),
    ("polegroup", [[6, 4], [6, 4], [6, 4]]),
    ("pole", [[7, 4], [7, 4], [7, 4]]),
    ("ego vehicle", [[0, 5], [3, 5], [3, 5]]),
    ("unlabeled", [[4, 5], [5, 5], [5, 5]]),
    ("license plate", [[3, 1], [3, 1], [3, 1]]),  # never painted
]
"""The polygons that give CITY_VALUES when painted in this order; one more in the file is marked as deleted."""


def cityscapes_tree(
    root: Path,
    kinds: tuple[str, ...] = ("instanceIds", "labelIds", "polygons"),
    panoptic: bool = False,
    images: bool = True,
    folder: str = "gtFine",
) -> Path:
    for part, image_id in CITY_IMAGES.items():
        city = image_id.split("_")[0]
        place = root / folder / part / city
        if "instanceIds" in kinds:
            write(place / f"{image_id}_{folder}_instanceIds.png", CITY_VALUES)
        if "labelIds" in kinds:
            labels = np.where(CITY_VALUES < 1000, CITY_VALUES, CITY_VALUES // 1000)
            write(place / f"{image_id}_{folder}_labelIds.png", labels.astype(np.uint8))
        if "polygons" in kinds:
            objects: list[dict[str, Any]] = [{"label": name, "polygon": points} for name, points in CITY_OBJECTS]
            gone = {"label": "truck", "polygon": [[0, 0], [7, 0], [7, 5], [0, 5]], "deleted": 1}
            content = {"imgHeight": 6, "imgWidth": 8, "objects": [*objects, gone]}
            write_json(place / f"{image_id}_{folder}_polygons.json", content)
        if images:
            write(root / "leftImg8bit" / part / city / f"{image_id}_leftImg8bit.png", photo(6, 8))
        if panoptic:
            cityscapes_panoptic(root, part, image_id)
    return root


def cityscapes_panoptic(root: Path, part: str, image_id: str, train_ids: bool = False) -> None:
    """The rules of createPanopticImgs, written down a second time; also its wrong image names."""
    labels = {row["id"]: row for row in category_table("cityscapes_all_labels")}
    number = "trainId" if train_ids else "id"
    ids, rows = np.zeros_like(CITY_PANOPTIC), []
    for value in np.unique(CITY_VALUES).tolist():
        label = labels[value // 1000 if value >= 1000 else value]
        if label["ignoreInEval"]:
            continue
        ids[value == CITY_VALUES] = value
        crowd = int(label["hasInstances"] and value < 1000)
        rows.append({"id": value, "category_id": label[number], "iscrowd": crowd, **measure(value == CITY_VALUES)})
    name = f"cityscapes_panoptic_{part}{'_trainId' if train_ids else ''}"
    write(root / "gtFine" / name / f"{image_id}_gtFine_panoptic.png", rgb(ids))
    image = {"id": image_id, "width": 8, "height": 6, "file_name": f"{image_id}_gtFine_leftImg8bit.png"}
    categories = [
        {"id": row[number], **{key: row[key] for key in ("name", "color", "supercategory")}, "isthing": row["isthing"]}
        for row in labels.values()
        if not row["ignoreInEval"]
    ]
    annotation = {"image_id": image_id, "file_name": f"{image_id}_gtFine_panoptic.png", "segments_info": rows}
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    write_json(root / "gtFine" / f"{name}.json", content)


# --- ADE20K ----------------------------------------------------------------------------------------------------------

ADE_IMAGES = {"training": "ADE_train_00000001", "validation": "ADE_val_00000001"}

ADE_CLASSES = np.array([[1, 1, 3, 3], [1, 13, 13, 3], [2, 13, 13, 0], [2, 0, 13, 8]], np.uint8)
"""annotations/: wall, building, sky, three persons (13) and a bed (8) that has no instance."""

ADE_INSTANCES = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [2, 1, 2, 0], [2, 0, 0, 0]], np.uint8)
"""Green channel of annotations_instance/; person 2 covers both pixels of the building."""

ADE_PERSON_INSTANCE = 13
ADE_IDS = np.array([[1, 1, 3, 3], [1, 13001, 13002, 3], [13002, 13001, 13002, 0], [13002, 0, 0, 0]], np.int32)


def ade20k_tree(root: Path, panoptic: bool = False, instances: bool = True) -> Path:
    """ADEChallengeData2016 itself."""
    person = next(row for row in category_table("ade20k_panoptic") if row["annotationId"] == 13)
    (root).mkdir(parents=True, exist_ok=True)
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n", encoding="utf-8")
    for part, image_id in ADE_IMAGES.items():
        write(root / "annotations" / part / f"{image_id}.png", ADE_CLASSES)
        write_jpeg(root / "images" / part / f"{image_id}.jpg", 4, 4)
        if instances:
            red = np.where(ADE_INSTANCES > 0, person["instanceId"], 0).astype(np.uint8)
            coded = np.dstack([red, ADE_INSTANCES, np.zeros_like(red)])
            write(root / "annotations_instance" / part / f"{image_id}.png", coded)
        if panoptic:
            ade20k_panoptic(root, {"training": "train", "validation": "val"}[part], image_id)
    return root


def ade20k_panoptic(root: Path, part: str, image_id: str) -> None:
    """As MaskFormer's script: stuff is measured before things cover it, so the building is listed without a pixel."""
    rows = [
        {"id": number, "category_id": number - 1, "iscrowd": 0, **measure(number == ADE_CLASSES)}
        for number in (1, 2, 3)
    ]
    for number in (13001, 13002):
        rows.append({"id": number, "category_id": 12, "iscrowd": 0, **measure(number == ADE_IDS)})
    write(root / f"ade20k_panoptic_{part}" / f"{image_id}.png", rgb(ADE_IDS))
    categories = [
        {"id": row["id"], "name": row["name"], "isthing": row["isthing"], "color": row["color"]}
        for row in category_table("ade20k_panoptic")
    ]
    content = {
        "images": [{"id": image_id, "file_name": f"{image_id}.jpg", "width": 4, "height": 4}],
        "annotations": [{"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": rows}],
        "categories": categories,
    }
    write_json(root / f"ade20k_panoptic_{part}.json", content)


ADE_FULL_CLASSES = np.array([[2420, 2420, 2420], [401, 401, 1831], [401, 0, 1831]], np.int32)
"""sky, cars, person."""

ADE_FULL_BLUE = np.array([[64, 64, 64], [128, 191, 255], [128, 0, 255]], np.int32)
"""Objects: two cars."""

ADE_FULL_NAMES = {401: "car, auto, automobile", 1831: "person, individual", 2420: "sky"}


def ade20k_full_tree(root: Path, encoding: str = "utf-8") -> Path:
    """ADE20K_2021_17_01; a part of an object, and a pickle that nobody may open."""
    (root).mkdir(parents=True, exist_ok=True)
    (root / "index_ade20k.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    for part, prefix in (("training", "train"), ("validation", "val")):
        place = root / "images" / "ADE" / part / "urban" / "street"
        name = f"ADE_{prefix}_00016869"
        red, green = ADE_FULL_CLASSES // 256 * 10, ADE_FULL_CLASSES % 256
        write(place / f"{name}_seg.png", np.dstack([red, green, ADE_FULL_BLUE]).astype(np.uint8))
        write(place / f"{name}_parts_1.png", np.zeros((3, 3, 3), np.uint8))
        write_jpeg(place / f"{name}.jpg", 3, 3)
        write(place / name / f"instance_000_{name}.png", np.zeros((3, 3), np.uint8))
        objects: list[dict[str, Any]] = [ade_object(n, number, 0) for n, number in enumerate((2420, 401, 401, 1831))]
        part_of = {**ade_object(4, 1439, 1), "name": "license plate"}
        annotation = {
            "filename": f"{name}.jpg",
            "imsize": [3, 3, 3],
            "object": [*objects, part_of],
            "scene": ["Orléans"],
        }
        text = json.dumps({"annotation": annotation}, ensure_ascii=False)
        (place / f"{name}.json").write_bytes(text.encode(encoding))
    return root


def ade_object(index: int, number: int, level: int) -> dict[str, Any]:
    name = ADE_FULL_NAMES.get(number, "")
    parts = {"hasparts": [], "ispartof": [], "part_level": level}
    extra = {"attributes": [], "crop": "0", "polygon": {"x": [0, 1, 1], "y": [0, 0, 1]}}
    return {"id": index, "name": name, "name_ndx": number, "raw_name": name, "parts": parts, **extra}


# --- Mapillary Vistas ------------------------------------------------------------------------------------------------

VISTAS_IMAGES = {"training": "M2kh294N9c72sICO990Uew", "validation": "_1Gn_xkw7sa_i9GU4mkxxQ"}

VISTAS_LABELS = {"1.2": {"bird": 0, "curb": 2, "void": 65}, "2.0": {"bird": 0, "curb": 4, "void": 123}}
"""Numbers of three labels in the full sets."""


def vistas_values(version: str) -> NDArray[np.uint16]:
    """Two birds, the first of them number 0; a curb; unlabelled pixels."""
    bird, curb, void = (256 * n for n in VISTAS_LABELS[version].values())
    return np.array([[bird, bird, bird + 1], [curb, curb, void], [curb, bird + 1, void]], np.uint16)


def vistas_tree(
    root: Path,
    versions: tuple[str, ...] = ("1.2", "2.0"),
    flat: bool = False,
    panoptic: bool = False,
    config: bool = True,
) -> Path:
    """The zip of v2.0, which holds both versions; flat=True: that of v1.2."""
    for part, image_id in VISTAS_IMAGES.items():
        write_jpeg(root / part / "images" / f"{image_id}.jpg", 3, 3)
        for version in versions:
            place = root / part if flat else root / part / f"v{version}"
            values = vistas_values(version)
            write(place / "instances" / f"{image_id}.png", values)
            write_palette(place / "labels" / f"{image_id}.png", (values >> 8).astype(np.uint8), [(0, 0, 0)])
            if panoptic:
                vistas_panoptic(place / "panoptic", version, image_id)
    for version in versions if config else ():
        name = "config.json" if flat else f"config_v{version}.json"
        write_json(root / name, {"version": version, "mapping": "public", "labels": vistas_config(version)})
    return root


def vistas_config(version: str) -> list[dict[str, Any]]:
    """The labels of the full set; birds are things, all else is stuff, and the last label is not evaluated."""
    table = category_table("vistas_v1_2_panoptic" if version == "1.2" else "vistas_v2_0_labels")
    rows: list[dict[str, Any]] = []
    for row in table:
        name = row["supercategory"] if version == "1.2" else row["name"]
        rows.append({"name": name, "readable": row["name"], "instances": "bird" in name, "color": row["color"]})
    if version == "1.2":
        rows.append({"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "color": [0, 0, 0]})
    return [{**row, "evaluate": row["name"] != "void--unlabeled"} for row in rows]


def vistas_panoptic(folder: Path, version: str, image_id: str) -> None:
    """Categories are numbered from 1; the second bird is marked as a crowd."""
    labels, values = vistas_config(version), vistas_values(version)
    ids, rows = np.zeros(values.shape, np.int32), []
    for value in np.unique(values).tolist():
        if labels[value >> 8]["evaluate"]:
            ids[values == value] = 1000 + value
            crowd = int(value == 1)
            row = {"id": 1000 + value, "category_id": (value >> 8) + 1, "iscrowd": crowd}
            rows.append({**row, **measure(values == value)})
    write(folder / f"{image_id}.png", rgb(ids))
    categories = [
        {
            "id": n,
            "name": row["readable"],
            "supercategory": row["name"],
            "isthing": int(row["instances"]),
            "color": row["color"],
        }
        for n, row in enumerate(labels, 1)
        if row["evaluate"]
    ]
    content = {
        "images": [{"id": image_id, "file_name": f"{image_id}.jpg", "width": 3, "height": 3}],
        "annotations": [{"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": rows}],
        "categories": categories,
    }
    write_json(folder / ("panoptic_2018.json" if version == "1.2" else "panoptic_2020.json"), content)


# --- Pascal VOC ------------------------------------------------------------------------------------------------------

VOC_IMAGES = {"train": "2007_000032", "val": "2007_000033"}

VOC_CLASSES = np.array([[0, 255, 255, 255], [255, 15, 1, 255], [255, 15, 1, 1], [0, 255, 255, 1]], np.uint8)
"""A person (15) between two aeroplanes (1), all within borders; the second aeroplane has one pixel."""

VOC_OBJECTS = np.array([[0, 255, 255, 255], [255, 1, 2, 255], [255, 1, 2, 2], [0, 255, 255, 3]], np.uint8)


def voc_tree(root: Path, devkit: bool = True) -> Path:
    """VOCdevkit/VOC2012; devkit=False: the VOC2012 folder itself."""
    place = root / "VOC2012" if devkit else root
    colors = voc_palette()
    for name in VOC_IMAGES.values():
        write_palette(place / "SegmentationClass" / f"{name}.png", VOC_CLASSES, colors)
        write_palette(place / "SegmentationObject" / f"{name}.png", VOC_OBJECTS, colors)
    for name in (*VOC_IMAGES.values(), "2007_000027"):  # most photos have boxes only
        write_jpeg(place / "JPEGImages" / f"{name}.jpg", 4, 4)
    lists = place / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, name in VOC_IMAGES.items():
        (lists / f"{part}.txt").write_text(f"{name}\n", encoding="utf-8")
    (lists / "trainval.txt").write_text("".join(f"{n}\n" for n in VOC_IMAGES.values()), encoding="utf-8")
    return root


def voc_palette() -> list[tuple[int, int, int]]:
    """256 colours by the set's rule: the bits of the number, three by three, are the highest bits of R, G, B."""
    colors: list[tuple[int, int, int]] = []
    for number in range(256):
        channels = [sum((number >> (3 * bit + c) & 1) << (7 - bit) for bit in range(8)) for c in range(3)]
        colors.append((channels[0], channels[1], channels[2]))
    return colors


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, pixels: NDArray[Any]) -> None:
    """A grey or RGB PNG of the array's own depth."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def write_palette(path: Path, indices: NDArray[np.uint8], colors: list[tuple[int, int, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([value for color in (colors * 256)[:256] for value in color])
    image.save(path, format="PNG")


def write_jpeg(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(height, width)).save(path, format="JPEG")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), (40, 90, 160), np.uint8)


def rgb(ids: NDArray[np.int32]) -> NDArray[np.uint8]:
    return np.dstack([ids % 256, ids // 256 % 256, ids // 65536]).astype(np.uint8)


def measure(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """area and bbox [x, y, w, h] of a mask with pixels."""
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    return {
        "area": int(mask.sum()),
        "bbox": [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1],
    }
