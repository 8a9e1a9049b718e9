"""`pansight combine` on files: the published rule word by word, every kind of file, figures, and what is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hotcoco import mask as rle
from numpy.typing import NDArray

from pansight.apps.cli import main
from pansight.apps.scoring.combining import Inputs, Merge, combine_files
from pansight.data.images import read_rgb_ids, write_png
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb
from pansight.ops.maps.rle import code_text

CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 3, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 92, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 95, "name": "road", "isthing": 0, "color": [128, 64, 128]},
    {"id": 100, "name": "tree", "isthing": 0, "color": [107, 142, 35]},
]
THINGS, STUFF = (1, 3), (92, 95, 100)
SIZE = 40, 60
Mask = NDArray[np.bool_]


def packed(mask: Mask) -> dict[str, Any]:
    return {"size": list(mask.shape), "counts": code_text(rle.encode(mask)["counts"])}


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = SIZE) -> Mask:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def objects_of(seed: int, count: int = 12) -> list[tuple[int, float, Mask]]:
    """(category, score, mask), of which many overlap and some have equal scores."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, float, Mask]] = []
    for _ in range(count):
        top, left, height, width = rng.integers([0, 0, 0, 1], [25, 45, 20, 30]).tolist()
        score = float(rng.choice([0.3, 0.5, 0.6, 0.8, 0.9]))
        found.append((int(rng.choice(THINGS)), score, box(top, left, height, width)))
    return found


def stuff_of(seed: int) -> list[tuple[int, Mask]]:
    """(category, mask), which overlap; with a thing, which the rule leaves out."""
    rng = np.random.default_rng(seed + 100)
    order = rng.permutation([*STUFF, 1]).tolist()
    return [(c, box(int(rng.integers(0, 20)), int(rng.integers(0, 30)), 18, 40)) for c in order]


# --- the rule --------------------------------------------------------------------------------------------------------


def reference(
    objects: list[tuple[int, float, Mask]],
    stuff: list[tuple[int, Mask]],
    score_threshold: float,
    max_overlap: float,
    min_stuff_area: int,
) -> list[tuple[int, bytes]]:
    """combine_semantic_and_instance_predictions.py of panopticapi, pixel by pixel → (category, pixels) of each segment.

    1. Drop instances with a score below the threshold; sort by falling score, ties in the order of the input.
    2. Drop semantic records of things.
    3. Of each instance: its area; pass over 0. The intersection with the union of all accepted masks; skip where its
       share of the area is larger than the limit. Paint it where nothing is painted yet.
    4. Of each semantic record in the order of the input: its free pixels; skip where they are fewer than the limit.
    """
    painted = np.zeros(SIZE, int)
    used = np.zeros(SIZE, bool)
    segments: list[tuple[int, int]] = []
    confident = [row for row in objects if not row[1] < score_threshold]
    confident.sort(key=lambda row: row[1], reverse=True)  # stable
    for category, _, mask in confident:
        area = int(mask.sum())
        if area == 0:
            continue
        intersection = int((mask & used).sum())
        if intersection / area > max_overlap:
            continue
        used |= mask
        segments.append((len(segments) + 1, category))
        painted[mask & (painted == 0)] = len(segments)
    for category, mask in stuff:
        if category in THINGS:
            continue
        free = (painted == 0) & mask
        if free.sum() < min_stuff_area or not free.any():
            continue
        segments.append((len(segments) + 1, category))
        painted[free] = len(segments)
    return sorted((category, (painted == number).tobytes()) for number, category in segments)


def written(out: Path, index: int = 0) -> list[tuple[int, bytes]]:
    """(category, pixels) of each segment of an image that was written."""
    content = json.loads((out / "predictions.json").read_text())
    row = content["annotations"][index]
    ids = read_rgb_ids(out / "predictions" / row["file_name"])
    return sorted((s["category_id"], (ids == s["id"]).tobytes()) for s in row["segments_info"])


def write_results(folder: Path, images: dict[int, int]) -> dict[str, Path]:
    """The files of panopticapi's script for images (id → seed): results of objects and of stuff, images, categories."""
    objects = [
        {"image_id": i, "category_id": c, "score": s, "segmentation": packed(m)}
        for i, seed in images.items()
        for c, s, m in objects_of(seed)
    ]
    stuff = [
        {"image_id": i, "category_id": c, "segmentation": packed(m)}
        for i, seed in images.items()
        for c, m in stuff_of(seed)
    ]
    rows = [{"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in images]
    content = {"instances": objects, "semantic": stuff, "data": {"images": rows}, "categories": CATEGORIES}
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in content.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return {name: folder / f"{name}.json" for name in content}


@pytest.mark.parametrize(
    "merge", [Merge(min_stuff_area=0), Merge("panopticapi", 0.6, 0.2, 150), Merge("panopticapi", 0, 0.95, 1)]
)
def test_the_rule_of_panopticapi(tmp_path: Path, merge: Merge) -> None:
    images = {7: 0, 9: 1, 139: 2, 285: 3}
    files = write_results(tmp_path, images)
    found = combine_files(Inputs(**files), tmp_path / "out", merge)
    assert (found.images, found.left_out) == (4, [])
    for index, seed in enumerate(images.values()):
        expected = reference(objects_of(seed), stuff_of(seed), *merge[1:])
        assert written(tmp_path / "out", index) == expected
        assert len(expected) > 2


def test_the_rules_differ_in_ids_and_in_the_order_of_stuff(tmp_path: Path) -> None:
    """detectron2 counts ids from 1 and paints classes in the order of the table; panopticapi's ids are colours."""
    files = write_results(tmp_path, {1: 5})
    for rule in ("panopticapi", "detectron2"):
        combine_files(Inputs(**files), tmp_path / rule, Merge(rule, min_stuff_area=1))
    a, b = (
        json.loads((tmp_path / r / "predictions.json").read_text())["annotations"][0]["segments_info"]
        for r in ("panopticapi", "detectron2")
    )
    assert [s["id"] for s in b] == list(range(1, len(b) + 1))
    color = {c["id"]: c["color"] for c in CATEGORIES}
    stuff = next(s for s in a if s["category_id"] in STUFF)
    assert [stuff["id"] % 256, stuff["id"] // 256 % 256, stuff["id"] // 65536] == color[stuff["category_id"]]
    categories = [s["category_id"] for s in b if s["category_id"] in STUFF]
    assert categories == sorted(categories)


def test_limits_are_kept_as_published(tmp_path: Path) -> None:
    """A score equal to the threshold, an overlap of exactly half and an area of exactly the limit all stay."""
    objects = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": packed(box(0, 0, 10, 10))},
        {"image_id": 1, "category_id": 1, "score": 0.8, "segmentation": packed(box(0, 0, 10, 10))},  # 1 > 0.5
        {"image_id": 1, "category_id": 3, "score": 0.5, "segmentation": packed(box(0, 5, 10, 10))},  # half
        {"image_id": 1, "category_id": 3, "score": 0.49, "segmentation": packed(box(30, 0, 5, 5))},
    ]
    stuff = [
        {"image_id": 1, "category_id": 92, "segmentation": packed(box(0, 0, 10, 25))},  # 100 of 250 are left
        {"image_id": 1, "category_id": 95, "segmentation": packed(box(20, 0, 11, 9))},  # 99
    ]
    for name, rows in (("instances", objects), ("semantic", stuff)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    (tmp_path / "categories.json").write_text(json.dumps(CATEGORIES))
    inputs = Inputs(tmp_path / "instances.json", tmp_path / "semantic.json", categories=tmp_path / "categories.json")
    combine_files(inputs, tmp_path / "out", Merge(min_stuff_area=100))
    expected = [(1, box(0, 0, 10, 10)), (3, box(0, 10, 10, 5)), (92, box(0, 15, 10, 10))]
    assert written(tmp_path / "out") == sorted((c, m.tobytes()) for c, m in expected)


# --- files of every kind ---------------------------------------------------------------------------------------------

OBJECTS = [(1, 0.9, box(5, 5, 10, 10)), (3, 0.8, box(20, 30, 10, 20))]
MAP = np.full(SIZE, 92)
MAP[20:] = 95
EXPECTED = sorted(
    [(c, m.tobytes()) for c, _, m in OBJECTS]
    + [(v, ((v == MAP) & ~OBJECTS[0][2] & ~OBJECTS[1][2]).tobytes()) for v in (92, 95)]
)
NAMES = ["a.jpg", "street/b.jpg"]


def rows_of(images: list[int | str], polygons: bool = False) -> list[dict[str, Any]]:
    outlines = [[[5, 5, 15, 5, 15, 15, 5, 15]], [[30, 20, 50, 20, 50, 30, 30, 30]]]
    return [
        {"image_id": i, "category_id": c, "score": s, "segmentation": outlines[n] if polygons else packed(m)}
        for i in images
        for n, (c, s, m) in enumerate(OBJECTS)
    ]


def listing(ids: list[int], names: list[str] = NAMES, **more: Any) -> dict[str, Any]:
    images = [{"id": i, "file_name": n, "height": SIZE[0], "width": SIZE[1]} for i, n in zip(ids, names)]
    return {"images": images, "categories": CATEGORIES, **more}


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def pngs(folder: Path, names: list[str], values: NDArray[Any] = MAP) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_png(folder / name, values.astype(np.uint8))
    return folder


def of_predict(folder: Path) -> dict[str, Any]:
    """Both folders as `pansight predict` writes them, of two runs that number the photos in another order."""
    write(folder / "a" / "instances.json", listing([1, 2], annotations=rows_of([1, 2])))
    images = [
        {"id": i, "file_name": n, "semantic": n.replace("/", "_").replace("jpg", "png")} for i, n in zip((2, 1), NAMES)
    ]
    write(folder / "b" / "semantic.json", {"images": images, "categories": CATEGORIES, "void": 255})
    pngs(folder / "b" / "semantic", ["a.png", "street_b.png"])
    return {"instances": folder / "a", "semantic": folder / "b"}


def bare_and_names(folder: Path) -> dict[str, Any]:
    """Results and PNGs called by numbers, classes from a JSON."""
    write(folder / "r.json", rows_of([139, 285], polygons=True))
    pngs(folder / "maps", ["000000000139.png", "000000000285.png"])
    categories = write(folder / "c.json", {"categories": CATEGORIES})
    return {"instances": folder / "r.json", "semantic": folder / "maps", "categories": categories}


def with_class_table(folder: Path) -> dict[str, Any]:
    """PNGs that count classes from 0, with the table of a training tool beside them; names of images are their ids."""
    write(folder / "r.json", {**listing([1, 2], ["a.jpg", "b.jpg"]), "annotations": rows_of([1, 2])})
    pngs(folder / "maps", ["a.png", "b.png"], np.where(MAP == 92, 1, 2))
    (folder / "maps" / "classes.txt").write_text("person\nsky\nroad\n")
    return {"instances": folder / "r.json", "semantic": folder / "maps"}


def as_a_truth_lists(folder: Path) -> dict[str, Any]:
    """A JSON with images and classes; results and flat PNGs by its ids and names."""
    data = write(folder / "images.json", listing([4, 5]))
    write(folder / "r.json", rows_of([4, 5, 6]))
    pngs(folder / "maps", ["a.png", "street_b.png"])
    return {"instances": folder / "r.json", "semantic": folder / "maps", "data": data}


def stuff_results(folder: Path) -> dict[str, Any]:
    write(folder / "r.json", rows_of(["a", "b"]))
    rows = [
        {"image_id": i, "category_id": v, "segmentation": packed(m)} for i in "ab" for v in (92, 95) for m in halves(v)
    ]
    write(folder / "s.json", {"annotations": rows, "categories": CATEGORIES})
    return {"instances": folder / "r.json", "semantic": folder / "s.json"}


def halves(value: int) -> list[Mask]:
    """Two rows of one class are one mask."""
    left = box(0, 0, SIZE[0], 30)
    return [(value == MAP) & left, (value == MAP) & ~left]


@pytest.mark.parametrize("make", [of_predict, bare_and_names, with_class_table, as_a_truth_lists, stuff_results])
@pytest.mark.parametrize("rule", ["panopticapi", "detectron2"])
def test_files_of_every_kind(tmp_path: Path, make: Callable[[Path], dict[str, Any]], rule: str) -> None:
    found = combine_files(Inputs(**make(tmp_path)), tmp_path / "out", Merge(rule, min_stuff_area=20))
    assert found.images == 2
    assert found.left_out == []
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    name = {c["id"]: c["name"] for c in content["categories"]}
    original = {c["id"]: c["name"] for c in CATEGORIES}
    expected = sorted((original[c], pixels) for c, pixels in EXPECTED)
    for index in range(2):
        assert sorted((name[c], pixels) for c, pixels in written(tmp_path / "out", index)) == expected


# --- figures ---------------------------------------------------------------------------------------------------------


def truth(folder: Path, ids: list[int], names: list[str]) -> Path:
    """The combination itself, with a person more that nobody finds."""
    id_map = np.where(MAP == 92, 92, 95).astype(np.int32)
    segments = [{"id": 92, "category_id": 92}, {"id": 95, "category_id": 95}]
    for number, (category, mask) in enumerate([*((c, m) for c, _, m in OBJECTS), (1, box(32, 2, 6, 6))], 1):
        id_map[mask] = number
        segments.append({"id": number, "category_id": category})
    rows = [{**s, "area": int((id_map == s["id"]).sum()), "iscrowd": 0, "bbox": [0, 0, 1, 1]} for s in segments]
    annotations: list[dict[str, Any]] = []
    for image_id in ids:
        (folder / "gt").mkdir(exist_ok=True)
        write_png(folder / "gt" / f"{image_id}.png", ids_to_rgb(id_map))
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": rows})
    return write(folder / "gt.json", listing(ids, names, annotations=annotations))


def run(*words: Any, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


def test_both_machine_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt = truth(tmp_path, [4, 5], NAMES)
    write(tmp_path / "r.json", rows_of([4, 5]))
    pngs(tmp_path / "maps", ["a.png", "street_b.png"])
    out = tmp_path / "out"
    words = ("combine", "--instances", tmp_path / "r.json", "--semantic", tmp_path / "maps", "--gt", gt, "--out", out)
    run(*words, "--min-stuff-area", 10)
    said = capsys.readouterr().out
    record = json.loads((out / "evaluation.json").read_text())
    separate, panoptic = record["machine"]["separate"], record["machine"]["panoptic"]
    recall = 2 / 3  # two of three persons of both images are missed: recall is a half of persons
    person = 1 / (1 + 0.5)
    assert panoptic["pq_things"] == pytest.approx((person + 1) / 2)
    assert separate["pq_things"] == panoptic["pq_things"]
    missed, upper = 36, int((MAP == 92).sum()) - 100
    road = int((MAP == 95).sum()) - 200 - missed
    assert panoptic["pq_stuff"] == pytest.approx((1 + road / (road + missed)) / 2)
    # alone, stuff lies under the objects too
    assert separate["pq_stuff"] == pytest.approx((upper / (upper + 100) + road / (road + 200 + missed)) / 2)
    assert separate["iou_stuff"] == pytest.approx(separate["pq_stuff"])
    assert separate["miou"] == pytest.approx(separate["iou_stuff"] * 2 / 4)  # no thing is in the maps
    assert separate["ap"] == pytest.approx((record["instances"]["per_class"]["1"]["mask"] + 1) / 2)
    assert 0.4 < record["instances"]["per_class"]["1"]["mask"] < recall
    assert record["All"]["pq"] == panoptic["pq"]
    lines = said.splitlines()
    (row,) = [line for line in lines if line.startswith("machine-separate")]
    assert f"{100 * separate['ap']:.1f}" in row
    (row,) = [line for line in lines if line.startswith("machine-panoptic")]
    assert f"{100 * panoptic['pq']:.1f}" in row
    run("evaluate", "--gt", gt, "--pred", out / "predictions.json", "--json", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["All"] == record["All"]
    run("compare", out, out, "--out", tmp_path / "page.html")
    run(*words, code=2)
    assert "add --overwrite" in capsys.readouterr().err
    run(*words, "--overwrite", "--min-stuff-area", 10)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain(tmp_path: Path) -> dict[str, Any]:
    """Results and PNGs of three images, by numbers."""
    write(tmp_path / "r.json", rows_of([1, 2, 3]))
    pngs(tmp_path / "maps", ["1.png", "2.png", "3.png"])
    write(tmp_path / "c.json", CATEGORIES)
    return {"instances": tmp_path / "r.json", "semantic": tmp_path / "maps", "categories": tmp_path / "c.json"}


def smaller_map(files: dict[str, Any]) -> None:
    pngs(files["semantic"], ["2.png"], MAP[:20])


def no_map(files: dict[str, Any]) -> None:
    (files["semantic"] / "2.png").unlink()


def broken_map(files: dict[str, Any]) -> None:
    data = (files["semantic"] / "2.png").read_bytes()
    (files["semantic"] / "2.png").write_bytes(data[: len(data) // 2])


def broken_mask(files: dict[str, Any]) -> None:
    rows = rows_of([1, 2, 3])
    rows[2]["segmentation"]["counts"] = "]]"
    write(files["instances"], rows)


def unknown_object(files: dict[str, Any]) -> None:
    write(files["instances"], [*rows_of([1, 2, 3]), rows_of([1])[0] | {"category_id": 77}])


def object_of_stuff(files: dict[str, Any]) -> None:
    write(files["instances"], [*rows_of([1, 2, 3]), rows_of([1])[0] | {"category_id": 92}])


def unknown_pixel(files: dict[str, Any]) -> None:
    values = MAP.copy()
    values[0, :5] = 44
    pngs(files["semantic"], ["2.png"], values)


@pytest.mark.parametrize(
    ("spoil", "images", "message"),
    [
        (smaller_map, 2, r"image 2: category_id 1: expected a mask of size \[20, 60\], found \[40, 60\]"),
        (broken_map, 2, r"2\.png: expected a whole PNG"),
        (broken_mask, 2, r"image 2: category_id 1: expected"),
        (unknown_object, 3, r"r\.json: expected things that are listed, found category_id 77, of 1 objects"),
        (object_of_stuff, 3, r"found category_id 92, which is the stuff sky, of 1 objects"),
        (unknown_pixel, 3, r"maps: expected numbers of listed classes, found 44 in 1 images"),
        (no_map, 2, r"r\.json: expected the images of .*maps, found 1 more: 2"),
    ],
)
def test_what_cannot_be_combined_is_left_out_and_told(
    plain: dict[str, Any],
    spoil: Callable[[dict[str, Any]], None],
    images: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(plain)
    words = [word for name, path in plain.items() for word in (f"--{name}", path)]
    run("combine", *words, "--out", tmp_path / "out", "--min-stuff-area", 10, code=1)
    captured = capsys.readouterr()
    (line,) = [line for line in captured.out.splitlines() if line.startswith("left out")]
    assert re.search(message, line)
    assert f"{images} images combined" in captured.out
    assert len(json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]) == images
    assert len(json.loads((tmp_path / "out" / "combine.json").read_text())["left_out"]) == 1
    run("combine", *words, "--out", tmp_path / "strict", "--strict", "--min-stuff-area", 10, code=2)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "strict" / "predictions.json").exists()


def test_an_image_without_objects_gets_stuff_alone(plain: dict[str, Any], tmp_path: Path) -> None:
    """Nothing in a bare list tells it from a missing one, so it is noted."""
    write(plain["instances"], rows_of([1, 3]))
    found = combine_files(Inputs(**plain), tmp_path / "out", Merge(min_stuff_area=10))
    assert (found.images, found.left_out) == (3, [])
    assert any("1 of 3 images have no object in" in note for note in found.notes)
    assert [c for c, _ in written(tmp_path / "out", 1)] == [92, 95]


def test_a_threshold_that_takes_all_stuff_is_told(plain: dict[str, Any], tmp_path: Path) -> None:
    found = combine_files(Inputs(**plain), tmp_path / "out")
    assert "no image keeps any stuff: none of it has 4096 pixels (--min-stuff-area)" in found.notes


def test_an_image_that_a_listing_lacks_is_left_out(tmp_path: Path) -> None:
    files = of_predict(tmp_path)
    content = json.loads((tmp_path / "a" / "instances.json").read_text())
    content["images"] = content["images"][:1]
    write(tmp_path / "a" / "instances.json", content)
    found = combine_files(Inputs(**files), tmp_path / "out")
    assert found.images == 1
    assert "expected a prediction of image street/b.jpg, found none" in str(found.left_out[0])


def test_figures_are_of_the_images_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt = truth(tmp_path, [4, 5], NAMES)
    write(tmp_path / "r.json", rows_of([4, 5]))
    pngs(tmp_path / "maps", ["a.png"])
    words = ("combine", "--instances", tmp_path / "r.json", "--semantic", tmp_path / "maps", "--gt", gt)
    run(*words, "--out", tmp_path / "out", code=1)
    said = capsys.readouterr().out
    assert "the figures are those of 1 of the 2 images" in said
    assert "expected a prediction of image street/b.jpg, found none" in said


@pytest.mark.parametrize(
    ("changes", "content", "message"),
    [
        ({"instances": "x.json"}, None, r"x\.json: expected COCO results with masks.*found no such file"),
        ({"instances": "x.json"}, {"a": 1}, r"x\.json: expected COCO results with masks.*found no list of annotations"),
        ({"instances": "x.json"}, [{"image_id": 1}], r"x\.json: expected COCO results .*missing required field"),
        ({"instances": "x.json"}, [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 1}], "boxes alone"),
        (
            {"instances": "x.json"},
            rows_of([8, 9]),
            r"r?x\.json: expected images of both, such as 1\.png, 2\.png, 3\.png, found 8, 9$",
        ),
        (
            {"semantic": "x"},
            None,
            r"x: expected a folder of PNGs, semantic\.json, or COCO-stuff results, found no such",
        ),
        ({"semantic": "."}, None, r"empty: expected a folder of PNGs, .* found no PNG in it"),
        (
            {"categories": "x.json"},
            [{"id": 1, "name": "a"}],
            r"categories with id, name and isthing, found a without it",
        ),
        (
            {"categories": "x.json"},
            {"images": []},
            r"expected categories with id, name and isthing, found no categories",
        ),
        ({"data": "x.json"}, {"images": [{"id": 1}, {"id": 1}]}, r"expected each image id once, found 1 twice"),
    ],
)
def test_files_that_are_none_are_a_line(
    plain: dict[str, Any], changes: dict[str, str], content: Any, message: str, tmp_path: Path
) -> None:
    if content is not None:
        write(tmp_path / "x.json", content)
    if changes == {"semantic": "."}:
        (tmp_path / "empty").mkdir()
        changes = {"semantic": "empty"}
    files = {**plain, **{name: tmp_path / path for name, path in changes.items()}}
    with pytest.raises(PansightError, match=message) as caught:
        combine_files(Inputs(**files), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_numbers_alone_ask_for_their_names(plain: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(PansightError, match=r"r\.json: expected a file that names its classes.*--categories FILE"):
        combine_files(Inputs(plain["instances"], plain["semantic"]), tmp_path / "out")


def test_a_thing_here_and_stuff_there_is_a_line(tmp_path: Path) -> None:
    files = of_predict(tmp_path)
    content = json.loads((tmp_path / "b" / "semantic.json").read_text())
    content["categories"][1]["isthing"] = 0
    write(tmp_path / "b" / "semantic.json", content)
    with pytest.raises(
        PansightError, match=r"class 'car': expected a thing in both or stuff in both, found a thing of"
    ):
        combine_files(Inputs(**files), tmp_path / "out")
    with pytest.raises(PansightError, match=r"semantic\.json: class 'car': expected a thing, found stuff"):
        combine_files(Inputs(**files, categories=write(tmp_path / "c.json", CATEGORIES)), tmp_path / "out")


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        (Merge("panoptic"), "unknown rule 'panoptic'; known: detectron2, panopticapi"),
        (Merge(score_threshold=1.5), "--score-threshold: expected 0 … 1, found 1.5"),
        (Merge(max_overlap=-1), "--max-overlap: expected 0 … 1, found -1"),
        (Merge(min_stuff_area=-1), "--min-stuff-area: expected 0 or more pixels, found -1"),
    ],
)
def test_thresholds_out_of_range(plain: dict[str, Any], merge: Merge, message: str, tmp_path: Path) -> None:
    with pytest.raises(PansightError, match=message):
        combine_files(Inputs(**plain), tmp_path / "out", merge)
