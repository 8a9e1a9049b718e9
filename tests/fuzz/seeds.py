"""What is mutated: small sound inputs for `evaluate`, `check` and `convert`, and the commands that read them.

The trees are those that the tests of readers draw; each is built once and kept as bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import damages
import numpy as np
import test_coco
import test_cvat
import test_id_maps
import test_label_studio
import test_labelme
import test_pngs
import test_yolo
import trees
from drawn import grey, palette, photo, values_of
from PIL import Image

from pansight.apps.cli import main
from pansight.data.convert import READERS, TARGETS, convert
from pansight.data.dataset import ids_tensor
from pansight.data.formats.coco_panoptic import write_coco_panoptic
from pansight.types import LabelSpace, PanopticSegmentation, Segment

TO = ("--to", "out", "--overwrite")


class Seed(NamedTuple):
    """A sound input. The commands run beside the folder ``in``, which holds `files`, and write to ``out`` only."""

    name: str  # command, then what it reads
    files: dict[str, bytes]  # by path below in/
    commands: tuple[tuple[str, ...], ...]
    folder: str  # the argument that may be a ZIP instead; "" where none may


def all_seeds() -> list[Seed]:
    """Seeds of evaluate and check, and for convert one or more of each reader and one of each target."""
    place = Path(tempfile.mkdtemp(prefix="pansight-seeds-"))
    try:
        return [*_evaluate(place / "evaluate"), *_check(place / "check"), *_convert(place / "convert"), *_back(place)]
    finally:
        shutil.rmtree(place)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- evaluate --------------------------------------------------------------------------------------------------------

TRUTH = LabelSpace.from_names(["car", "dog"], ["sky", "road"])
OTHER = LabelSpace.from_names(["dog", "van"], ["sky", "tree"])

EVALUATE = ("evaluate", "--gt", "in/gt.json", "--gt-dir", "in/gt", "--pred", "in/pred.json", "--pred-dir", "in/pred")
EVALUATE += ("--threads", "1")
MAPPED = (*EVALUATE[:6], "in/other.json", *EVALUATE[7:], "--map", "in/map.toml")
PAGES = ("--table", "out/t.parquet", "--report", "out/r.html", "--images", "in/photos")


def _evaluate(place: Path) -> Iterator[Seed]:
    ids = np.zeros((2, 6, 8), np.int32)
    ids[:, :3], ids[:, 3:], ids[:, 2:5, 1:4], ids[:, 1:4, 5:7], ids[0, 5, 7] = 70_000, 5, 300, 9, 0
    found = np.roll(ids, 1, 2)
    segments = Segment(70_000, 2), Segment(5, 3), Segment(300, 0), Segment(9, 1)
    scored = tuple(Segment(s.id, s.category, 0.25 + s.category / 8) for s in segments)
    crowd = (*segments[:3], Segment(9, 1, is_crowd=True))
    for name, maps, rows, labels in (
        ("gt", ids, (segments, crowd), TRUTH),
        ("pred", found, (scored, scored), TRUTH),
        ("other", found, (segments, segments), OTHER),
    ):
        items = [(n, f"{n}.jpg", PanopticSegmentation(ids_tensor(maps[n]), rows[n])) for n in range(2)]
        write_coco_panoptic(place / "in" / f"{name}.json", items, labels)
    shutil.rmtree(place / "in" / "other")
    for n in range(2):
        photo(place / "in/photos" / f"{n}.jpg")
    (place / "in/map.toml").write_text('"van" = "dog"\n"tree" = ""\n# by hand\n"dog" = "car"\n')
    files = files_of(place / "in")
    record = ("--json", "out/record.json")
    commands = [(*EVALUATE, *record), (*MAPPED, *record), (*EVALUATE, *PAGES), (*EVALUATE, "--boundary", "--no-errors")]
    commands += [(*EVALUATE, "--strict-compat", "--miou", "semseg"), (*MAPPED[:-1], "names", *PAGES)]
    commands.append((*EVALUATE, "--shard", "1/2", "--partial", "out/p.json"))
    for command in commands:
        yield Seed("evaluate", files, (command,), "in/pred")
    parts: dict[str, bytes] = {}
    for n in (1, 2):
        arguments = [word.replace("in/", f"{place}/in/") for word in EVALUATE]
        assert main([*arguments, "--shard", f"{n}/2", "--partial", str(place / f"p{n}.json")]) == 0
        parts[f"p{n}.json"] = (place / f"p{n}.json").read_bytes()
    yield Seed("evaluate merge", parts, (("evaluate", "--merge", "in/p1.json", "in/p2.json", *record),), "")


# --- check -----------------------------------------------------------------------------------------------------------


def _check(place: Path) -> Iterator[Seed]:
    panoptic = files_of(damages.make(place / "a"))
    plain, fixed = ("check", "in", "--json", "out/check.json"), ("check", "in", "--fix", "out", "--things", "person")
    yield Seed("check panoptic", panoptic, (plain, ("check", "in", "--limit", "0"), ("check", "in")), "in")
    yield Seed("check --fix", panoptic, (("check", "in", "--fix", "out"), fixed, (*fixed[:4], "--link")), "in")
    yield Seed("check instances", files_of(_coco(place / "b")), (plain,), "in")
    yield Seed(
        "check detection",
        files_of(_detection(place / "c")),
        (plain, ("check", "in/annotations/panoptic_train.json")),
        "in",
    )


def _coco(place: Path) -> Path:
    """Every spelling of a mask, and stuff under them."""
    square, mask = test_coco.SQUARE, test_coco.SQUARE_MASK
    rows = [
        test_coco.annotation([square], 1, area=6, bbox=[1, 1, 3, 2]),
        test_coco.annotation({"size": [6, 8], "counts": test_coco.PACKED}, 2, score=0.5),
        test_coco.annotation({"size": [6, 8], "counts": [7, 2, 4, 2, 4, 2, 27]}, 3, 2, iscrowd=1),
        test_coco.annotation(test_coco._rle(np.roll(mask, 3)), 4, 2),
    ]
    test_coco.instances(place, rows)
    (place / "stuff/train").mkdir(parents=True)
    Image.fromarray(np.full((6, 8), 148, np.uint8)).save(place / "stuff/train/a.png")
    return place


def _detection(place: Path) -> Path:
    masks = test_coco.SQUARE_MASK, np.roll(test_coco.SQUARE_MASK, 3)
    boxes = [1, 1, 3, 2], [4, 1, 3, 2]
    rows = [
        test_coco.annotation(test_coco._rle(mask), n, n, area=6, bbox=box, iscrowd=0)
        for n, (mask, box) in enumerate(zip(masks, boxes), 1)
    ]
    categories = [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]
    return test_coco.instances(place, rows, "annotations/panoptic_train.json", categories=categories)


# --- convert ---------------------------------------------------------------------------------------------------------


def _convert(place: Path) -> Iterator[Seed]:
    for n, (name, build, *options) in enumerate(_sources()):
        build(place / str(n))
        things = () if {"--things", "none"} & set(options) else ("--things", "all")
        arguments = ("convert", "in", *TO, *things, *options)
        commands = (arguments, (*arguments, "--from", name), (*arguments, "--overlap", "score", "--fill", "left over"))
        yield Seed(f"convert {name}", files_of(place / str(n)), commands, "in")


def _sources() -> Iterator[tuple[Any, ...]]:
    """(reader, builder, options …)."""
    yield "cityscapes", trees.cityscapes_tree
    yield "cityscapes", lambda root: trees.cityscapes_tree(root, ("polygons",), panoptic=True)
    yield "ade20k", lambda root: trees.ade20k_tree(root, panoptic=True)
    yield "ade20k_full", trees.ade20k_full_tree
    yield "vistas", lambda root: trees.vistas_tree(root, ("1.2",), flat=True)
    yield "vistas", lambda root: trees.vistas_tree(root, ("2.0",), panoptic=True)
    yield "voc", trees.voc_tree
    yield "coco_instances", _coco
    yield "coco_instances", _coco, "--option.stuff", "stuff", "--things", "car"
    yield "coco_detection_panoptic", _detection
    yield "coco_panoptic", damages.make
    yield "yolo_seg", test_yolo.tree
    yield "yolo_seg", _yolo_list, "--images", "hardlink"
    yield "labelme", _labelme
    yield "cvat", _cvat
    yield "label_studio", _label_studio
    yield "instance_png", test_pngs.nuclei, "--images", "symlink"
    yield "instance_png", _penn_fudan
    yield "semantic_png", test_pngs.street
    yield "webdataset", _shards
    for layout in ("in the JSON", "an array", "16 bits", "a table by file"):
        yield "id_maps", lambda root, layout=layout: test_id_maps.tree(root, **test_id_maps.LAYOUTS[layout])


def _shards(root: Path) -> Path:
    convert(damages.make(root.with_name("before")), root, target="webdataset")
    return root


def _yolo_list(root: Path) -> Path:
    """Its images are listed in a file, as CVAT writes it."""
    test_yolo.tree(root, train="train.txt")
    (root / "train.txt").write_text("data/images/train/a.jpg\n")
    return root


def _labelme(root: Path) -> Path:
    mask = test_labelme.encoded([[1, 0, 1], [0, 1, 0]])
    shapes = [
        test_labelme.shape("car", test_labelme.SQUARE, group=1),
        test_labelme.shape("sign", [[8, 6], [6, 4]], "rectangle"),
        test_labelme.shape("ball", [[2, 4.5], [2, 5.9]], "circle"),
        test_labelme.shape("car", [[5, 3], [7, 4]], "mask", mask=mask),
    ]
    test_labelme.tree(root, *shapes)
    inside = test_labelme.encoded(np.zeros((6, 8)), "RGB")
    test_labelme.annotation(root / "b.json", shapes[:2], "lost.png", imageData=inside)
    return root


def _cvat(root: Path) -> Path:
    shapes = (
        test_cvat.SQUARE,
        '<box label="road" occluded="1" xtl="6.0" ytl="4.0" xbr="8.0" ybr="6.0" rotation="30" z_order="1"></box>',
        '<mask label="car" rle="0, 1, 1, 1, 1, 1, 1" left="5" top="3" width="3" height="2" group_id="2"/>',
        '<ellipse label="road" cx="2.0" cy="4.5" rx="1.4" ry="1.4"/><points label="nose" points="1,1"/>',
    )
    return test_cvat.tree(root, *shapes)


def _label_studio(root: Path) -> Path:
    results = (
        test_label_studio.square(),
        test_label_studio.result("rectanglelabels", "sign", x=75, y=66.6667, width=25, height=33.3333, rotation=10),
        test_label_studio.result(
            "brushlabels", "car", format="rle", rle=test_label_studio.brush(test_label_studio.MASK)
        ),
        test_label_studio.result("ellipselabels", "ball", x=25, y=75, radiusX=17.5, radiusY=23.3333, rotation=0),
    )
    return test_label_studio.tree(root, test_label_studio.task(*results))


def _penn_fudan(root: Path) -> Path:
    photo(root / "PNGImages/FudanPed00001.png")
    colors = [0, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9]
    palette(root / "PedMasks/FudanPed00001_mask.png", values_of(test_pngs.OBJECTS), colors)
    grey(root / "Annotation/x.png", [[1]])
    return root


def _back(place: Path) -> Iterator[Seed]:
    """Cityscapes' classes, which every target can write."""
    tree = trees.cityscapes_tree(place / "city", ("instanceIds",))
    assert main(["convert", str(tree), "--to", str(place / "back")]) == 0
    files = files_of(place / "back")
    for target in TARGETS:
        for read in ("", "coco_panoptic"):
            more = ("--from", read, "--split", "val") if read else ()
            yield Seed(f"convert --as {target}", files, (("convert", "in", *TO, "--as", target, *more),), "in")


def readers_of(seeds: list[Seed]) -> set[str]:
    """The readers that have a seed."""
    return {word for seed in seeds for word in seed.name.split()[1:] if word in READERS}
