"""Rules that hold in every reader alike: encodings of JSON, paths and suffixes of photos, parts, options, archives."""

from __future__ import annotations

import json
import shutil
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn import grey, palette, photo, refused
from trees import ade20k_full_tree, ade20k_tree, cityscapes_tree, rgb, vistas_tree, voc_tree, write, write_json

from pansight.apps.cli import main
from pansight.data.convert import READERS, convert
from pansight.data.convert.summary import Summary
from pansight.data.options import known_options

OUTLINE = [2, 0, 6, 0, 6, 3, 2, 3]
IDS = np.zeros((6, 8), np.int32)
IDS[:3, 2:6] = 1
NAMES = [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}]


def _coco(root: Path, annotations: list[dict[str, Any]], name: str, categories: list[dict[str, Any]]) -> Path:
    photo(root / "train/a.jpg")
    row = {"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}
    content = {"images": [row], "annotations": annotations, "categories": categories}
    write_json(root / f"annotations/{name}_train.json", content)
    return root


def coco_instances(root: Path) -> Path:
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [OUTLINE], "iscrowd": 0}
    return _coco(root, [row], "instances", [{"id": 1, "name": "car"}])


def coco_detection_panoptic(root: Path) -> Path:
    counts = [12, 3, 3, 3, 3, 3, 3, 3, 15]
    row = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [6, 8], "counts": counts}, "iscrowd": 0}
    return _coco(root, [row], "panoptic", NAMES)


def coco_panoptic(root: Path) -> Path:
    write(root / "annotations/panoptic_train/a.png", rgb(IDS))
    segments = [{"id": 1, "category_id": 1, "iscrowd": 0}]
    return _coco(root, [{"image_id": 1, "file_name": "a.png", "segments_info": segments}], "panoptic", NAMES)


def yolo_seg(root: Path) -> Path:
    photo(root / "images/train/a.jpg")
    label = root / "labels/train/a.txt"
    label.parent.mkdir(parents=True)
    label.write_text("0 0.25 0 0.75 0 0.75 0.5 0.25 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [car]\n")
    return root


def labelme(root: Path) -> Path:
    photo(root / "a.jpg")
    points = np.reshape(OUTLINE, (-1, 2)).tolist()
    shapes = [{"label": "car", "points": points, "shape_type": "polygon", "group_id": None}]
    write_json(root / "a.json", {"shapes": shapes, "imagePath": "a.jpg", "imageHeight": 6, "imageWidth": 8})
    return root


def cvat(root: Path) -> Path:
    photo(root / "images/a.jpg")
    polygon = '<polygon label="car" points="2,0;6,0;6,3;2,3" z_order="0"/>'
    image = f'<image id="0" name="a.jpg" width="8" height="6">{polygon}</image>'
    (root / "annotations.xml").write_text(f"<annotations><version>1.1</version>{image}</annotations>")
    return root


def label_studio(root: Path) -> Path:
    photo(root / "images/a.jpg")
    points = [[25, 0], [75, 0], [75, 50], [25, 50]]
    result = {"type": "polygonlabels", "value": {"points": points, "polygonlabels": ["car"]}}
    write_json(root / "p.json", [{"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"result": [result]}]}])
    return root


def instance_png(root: Path) -> Path:
    photo(root / "images/a.jpg")
    grey(root / "instances/a.png", IDS)
    return root


def semantic_png(root: Path) -> Path:
    photo(root / "images/a.jpg")
    grey(root / "labels/a.png", IDS)
    write_json(root / "classes.json", ["none", "car"])
    return root


def id_maps(root: Path) -> Path:
    photo(root / "a.jpg")
    grey(root / "a.png", IDS)
    write_json(root / "a.json", {"segments_info": [{"id": 1, "label_id": 1}]})
    write_json(root / "config.json", {"id2label": {"1": "car"}})
    return root


def webdataset(root: Path) -> Path:
    convert(coco_panoptic(root.with_name("before")), root, target="webdataset")
    return root


MAKERS: dict[str, Callable[[Path], Path]] = {
    "cityscapes": lambda root: cityscapes_tree(root, ("polygons",)),
    "ade20k": ade20k_tree,
    "ade20k_full": ade20k_full_tree,
    "vistas": vistas_tree,
    "voc": voc_tree,
    **{
        make.__name__: make
        for make in (coco_instances, coco_detection_panoptic, coco_panoptic, yolo_seg, labelme, cvat, label_studio)
    },
    **{make.__name__: make for make in (instance_png, semantic_png, id_maps, webdataset)},
}


OUTLINED = ("yolo_seg", "labelme", "cvat", "label_studio")
"""Readers of outlines, which have no masks."""


def converted(root: Path, to: Path, name: str, **more: Any) -> Summary:
    return convert(root, to, name, things=None if name in ("cityscapes", "ade20k", "voc") else ["all"], **more)


@pytest.fixture(params=sorted(READERS))
def name(request) -> str:
    return request.param


@pytest.fixture
def source(name, tmp_path) -> Path:
    return MAKERS[name](tmp_path / "in")


def test_every_reader_has_a_maker():
    assert set(MAKERS) == set(READERS)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_and_text_of_windows_editors_are_read(name, source, tmp_path, encoding):
    first = converted(source, tmp_path / "a", name)
    for file in source.rglob("*"):
        if file.suffix in (".json", ".txt", ".yaml", ".xml"):
            file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    second = converted(source, tmp_path / "b", "auto" if name not in ("semantic_png", "instance_png") else name)
    assert (first.images, first.segments, first.void) == (second.images, second.segments, second.void)
    assert second.format == name


def test_photos_whose_suffix_has_other_letters_are_found(name, source, tmp_path):
    first = converted(source, tmp_path / "a", name)
    photos = list(source.rglob("*.jpg"))
    for file in photos:
        file.rename(file.with_suffix(".JPG"))
    assert photos or name in ("cityscapes", "webdataset")  # photos are PNGs of a given name, or lie in shards
    second = converted(source, tmp_path / "b", name)
    assert (first.images, first.segments, first.void) == (second.images, second.segments, second.void)


def test_masks_whose_suffix_has_other_letters_are_found(name, source, tmp_path):
    first = converted(source, tmp_path / "a", name)
    masks = [file for file in source.rglob("*.png") if "leftImg8bit" not in file.name]
    for file in masks:
        file.rename(file.with_suffix(".PNG"))
    assert masks or name in ("cityscapes", "webdataset", "coco_instances", "coco_detection_panoptic", *OUTLINED)
    second = converted(source, tmp_path / "b", name)
    assert (first.images, first.segments, first.void) == (second.images, second.segments, second.void)


def test_an_option_is_never_taken_for_a_parameter_of_another_function(name, source, tmp_path, capsys):
    known = set(known_options(READERS[name].open, hidden=("things",)))
    for option in {"source", "to", "format", "target", "split", "things", "fill", "images", "root", "progress"} - known:
        arguments = ["convert", str(source), "--to", str(tmp_path / "out"), "--from", name, f"--option.{option}", "x"]
        assert main(arguments) == 2
        line = capsys.readouterr().err
        known_ones = "known: " if known else "it has none"
        assert line.startswith(f"pansight: unknown option of {name} '{option}'; {known_ones}")
        assert all(other in line for other in known)
    for option in known:
        if option != "thing":  # the name of a class may be any
            arguments = ["convert", str(source), "--to", str(tmp_path / "out"), f"--option.{option}", "no such"]
            assert main([*arguments, "--from", name, "--things", "all"]) == 2, option
            line = capsys.readouterr().err
            assert line.startswith("pansight: ")
            assert line.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mark", ["/", "\\"])
def test_an_archive_with_a_readme_beside_the_folder(name, source, tmp_path, mark):
    first = converted(source, tmp_path / "a", name)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr("README.txt", "about")
        archive.writestr(f"__MACOSX{mark}._in", "x")
        for file in sorted(source.rglob("*")):
            if file.is_file():
                archive.write(file, "my export" + mark + str(file.relative_to(source)).replace("/", mark))
    second = converted(tmp_path / "in.zip", tmp_path / "b", name)
    assert (first.images, first.segments, first.void) == (second.images, second.segments, second.void)


LISTED = {
    "coco_instances": ("annotations/instances_train.json", '"a.jpg"'),
    "coco_detection_panoptic": ("annotations/panoptic_train.json", '"a.jpg"'),
    "coco_panoptic": ("annotations/panoptic_train.json", '"a.jpg"'),
    "labelme": ("a.json", '"a.jpg"'),
    "cvat": ("annotations.xml", '"a.jpg"'),
    "label_studio": ("p.json", '"a.jpg"'),
}
"""Reader that finds photos by the names in a file → that file, the name in it."""


@pytest.mark.parametrize("stated", ["C:\\me\\x\\a.jpg", "../x/a.jpg", "/home/me/a.jpg", "x/A.JPG", "file:///x/a%2Ejpg"])
@pytest.mark.parametrize("name", sorted(LISTED))
def test_one_rule_for_paths(tmp_path, name, stated):
    source = MAKERS[name](tmp_path / "in")
    file, written = LISTED[name]
    text = (source / file).read_text(encoding="utf-8")
    (source / file).write_text(text.replace(written, json.dumps(stated) if file.endswith("json") else f'"{stated}"'))
    summary = converted(source, tmp_path / "out", name)
    assert sum(summary.images.values()) == 1
    assert [path.name for path in (tmp_path / "out").rglob("*.jpg")] == ["a.jpg"]
    assert name == "label_studio" or any(stated in note.replace("\\\\", "\\") for note in summary.notes)
    shutil.rmtree(source / "x", ignore_errors=True)
    secret = photo(tmp_path / "secret.jpg")
    (source / file).write_text(text.replace(written, '"../secret.jpg"'))
    if name != "labelme":  # which then takes the photo that is called as the JSON
        refused("secret|image", lambda: converted(source, tmp_path / "no", name))
    assert secret.is_file()


JSONS = ("coco_instances", "coco_detection_panoptic", "coco_panoptic", "labelme", "label_studio", "id_maps")


@pytest.mark.parametrize("name", JSONS)
@pytest.mark.parametrize(
    ("extra", "message"),
    [('"x": NaN, ', "found NaN as 'x' at line 1"), ('"x": nul, ', "expected JSON, found Expecting value at line 1")],
)
def test_numbers_that_json_lacks_are_named_with_their_place(tmp_path, name, extra, message):
    source = MAKERS[name](tmp_path / "in")
    file = next(file for file in sorted(source.rglob("*.json")) if file.name != "config.json")
    text = file.read_text(encoding="utf-8")
    at = text.index("{") + 1
    file.write_text(text[:at] + extra + text[at:], encoding="utf-8")
    assert file.name in refused(message, lambda: converted(source, tmp_path / "out", name))


@pytest.mark.parametrize(
    ("name", "crowd"), [(n, c) for n in ("coco_instances", "coco_detection_panoptic", "coco_panoptic") for c in "01x"]
)
def test_a_crowd_is_what_its_flag_says(tmp_path, name, crowd):
    source = MAKERS[name](tmp_path / "in")
    file = next(source.rglob("*_train.json"))
    file.write_text(file.read_text().replace('"iscrowd": 0', f'"iscrowd": "{crowd}"'))
    if crowd == "x":
        refused("expected iscrowd 0 or 1, found 'x'", lambda: converted(source, tmp_path / "out", name))
    else:
        assert converted(source, tmp_path / "out", name).crowds == int(crowd)


@pytest.mark.parametrize("name", ["coco_instances", "coco_detection_panoptic", "coco_panoptic"])
def test_objects_that_are_all_crowds_are_told(tmp_path, name):
    source = MAKERS[name](tmp_path / "in")
    file = next(source.rglob("*_train.json"))
    assert not [note for note in converted(source, tmp_path / "objects", name).notes if "crowd" in note]
    file.write_text(file.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))
    notes = converted(source, tmp_path / "crowds", name).notes
    assert "every object is a crowd (1): no object is left to learn" in notes


def test_a_class_of_crowds_beside_another_is_told(tmp_path):
    rows = [{"image_id": 1, "category_id": n, "segmentation": [OUTLINE], "iscrowd": n - 1, "id": n} for n in (1, 2)]
    rows[1]["segmentation"] = [[0, 4, 2, 4, 2, 6, 0, 6]]
    source = _coco(tmp_path / "in", rows, "instances", [{"id": 1, "name": "car"}, {"id": 2, "name": "people"}])
    notes = converted(source, tmp_path / "out", "coco_instances").notes
    assert "classes of which every object is a crowd, which no model learns: people" in notes


EMPTY = {
    "labelme": lambda text: text.replace("polygon", "point"),
    "label_studio": lambda text: text.replace("polygonlabels", "choices"),
    "cvat": lambda text: text.replace("<polygon", "<points"),
}
"""Readers whose classes are those of the regions → the same file without any region."""


@pytest.mark.parametrize("name", sorted(EMPTY))
def test_a_set_without_any_class_is_refused(tmp_path, name):
    source = MAKERS[name](tmp_path / "in")
    file = next(file for file in sorted(source.rglob("*")) if file.suffix in (".json", ".xml"))
    file.write_text(EMPTY[name](file.read_text()))
    refused("expected at least one class, found none in 1 images", lambda: converted(source, tmp_path / "out", name))
    assert converted(source, tmp_path / "out", name, fill="ground").segments == {"ground": 1}


PARTED = {"labelme": "{part}", "id_maps": "{part}", "instance_png": "{part}", "semantic_png": "{part}"}
PARTED |= {"coco_instances": "{part}", "yolo_seg": "{part}"}


@pytest.mark.parametrize("name", sorted(PARTED))
@pytest.mark.parametrize(("first", "second"), [("Train", "Valid"), ("my_training", "my_dev"), ("train2017", "VAL2017")])
def test_folders_of_parts_may_be_called_in_many_ways(tmp_path, name, first, second):
    for part in (first, second):
        place = tmp_path / "in" / part
        MAKERS[name](place)
        if name == "yolo_seg":
            shutil.move(place / "images/train/a.jpg", place / "images/a.jpg")
            shutil.move(place / "labels/train/a.txt", place / "labels/a.txt")
            (place / "data.yaml").unlink()
            (tmp_path / "in/classes.txt").write_text("car\n")
        if name == "coco_instances":
            shutil.move(place / "annotations/instances_train.json", place / "_annotations.coco.json")
            shutil.move(place / "train/a.jpg", place / "a.jpg")
            shutil.rmtree(place / "train")
    summary = converted(tmp_path / "in", tmp_path / "out", name)
    assert summary.images == {"train": 1, "val": 1}
    assert converted(tmp_path / "in", tmp_path / "val", name, split="val").images == {"val": 1}


@pytest.mark.parametrize("colors", [[0, 0, 0, 9, 9, 9], [255, 255, 255, 0, 0, 0]])
@pytest.mark.parametrize("name", ["instance_png", "semantic_png", "id_maps"])
def test_palettes_are_numbers_and_transparency_is_passed_over(tmp_path, name, colors):
    first = converted(MAKERS[name](tmp_path / "grey"), tmp_path / "a", name)
    source = MAKERS[name](tmp_path / "palette")
    png = next(source.rglob("*.png"))
    palette(png, IDS, colors)
    second = converted(source, tmp_path / "b", name)
    assert (first.segments, first.void) == (second.segments, second.void)


@pytest.mark.parametrize("name", ["coco_instances", "coco_detection_panoptic", "cvat", "label_studio"])
def test_annotations_in_a_sub_folder_are_found(tmp_path, name):
    source = MAKERS[name](tmp_path / "in")
    first = converted(source, tmp_path / "a", name)
    (file,) = (file for file in source.rglob("*") if file.suffix in (".json", ".xml"))
    (source / "export").mkdir()
    file.rename(source / "export" / file.name)
    second = converted(source, tmp_path / "b", "auto")
    assert (second.format, second.images, second.segments) == (name, first.images, first.segments)


@pytest.mark.parametrize("name", ["instance_png", "semantic_png", "coco_instances", "labelme", "cvat", "label_studio"])
def test_accents_in_either_unicode_form_are_one_name(tmp_path, name):
    source = MAKERS[name](tmp_path / "in")
    for file in [file for file in source.rglob("a.*") if file.suffix != ".json"]:
        form = "NFD" if file.suffix == ".jpg" else "NFC"
        file.rename(file.with_name(unicodedata.normalize(form, f"ü{file.suffix}")))
    for file in (file for file in source.rglob("*") if file.suffix in (".json", ".xml")):
        text = file.read_text(encoding="utf-8").replace('"a.jpg"', f'"{unicodedata.normalize("NFC", "ü.jpg")}"')
        file.write_text(text, encoding="utf-8")
    assert sum(converted(source, tmp_path / "out", name).images.values()) == 1


def test_many_images_at_a_time_give_the_same_files(name, source, tmp_path):
    """Byte for byte, the receipt as well, but for the place that it names."""
    trees = []
    for place, jobs in (("one", 1), ("two", 2), ("all", 0)):
        converted(source, tmp_path / place, name, jobs=jobs)
        files = {p.relative_to(tmp_path / place): p for p in (tmp_path / place).rglob("*") if p.is_file()}
        trees.append(
            {key: file.read_bytes().replace(str(tmp_path / place).encode(), b"") for key, file in sorted(files.items())}
        )
    assert trees[0] == trees[1] == trees[2]
    assert Path("convert.json") in trees[0]
