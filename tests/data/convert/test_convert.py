"""The driver: parts, classes, images, archives; whole or not at all."""

from __future__ import annotations

import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pansight.apps.cli import main
from pansight.apps.converting import ask_things
from pansight.data import open_dataset
from pansight.data.convert import POLICIES, READERS, TARGETS, convert, detect
from pansight.data.convert.driver import IMAGE_MODES, RECEIPT
from pansight.data.convert.labels import decide_things, join_classes
from pansight.data.convert.source import ListSource, SourceCategory
from pansight.errors import PansightError


def coco(
    folder: Path, part: str = "train", objects=(("car", 0, 0, 4, 3), ("dog", 2, 1, 5, 5)), images=1, **more
) -> Path:
    """COCO instances: 6×8 images with boxes (class, x1, y1, x2, y2)."""
    names = list(dict.fromkeys(name for name, *_ in objects))
    (folder / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    rows, annotations = [], []
    for n in range(images):
        Image.new("RGB", (8, 6), (n, 0, 0)).save(folder / part / f"{n}.jpg", **more)
        rows.append({"id": n, "file_name": f"{n}.jpg", "height": 6, "width": 8})
        for name, x1, y1, x2, y2 in objects:
            outline = [x1, y1, x2, y1, x2, y2, x1, y2]
            row = {"id": len(annotations), "image_id": n, "category_id": names.index(name) + 1}
            annotations.append(row | {"segmentation": [outline]})
    content = {"images": rows, "annotations": annotations}
    content["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_folder_becomes_coco_panoptic(tmp_path):
    source = coco(tmp_path / "in", images=3)
    before = files_of(source)
    steps: list[tuple[float, str]] = []
    summary = convert(source, tmp_path / "out", progress=lambda share, text: steps.append((share, text)))
    assert files_of(source) == before
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["annotations", RECEIPT, "train"]
    assert not list(tmp_path.glob(".out*"))
    assert steps == [(1 / 3, "train 1/3"), (2 / 3, "train 2/3"), (1.0, "train 3/3")]
    assert [(row.rule, row.winner, row.loser, row.pixels) for row in summary.overlaps] == [
        ("smaller-on-top", "dog", "car", 3 * 4)  # of two boxes of 12 pixels the later one
    ]
    assert (summary.images, summary.segments) == ({"train": 3}, {"car": 3, "dog": 3})
    assert (summary.pixels, summary.void, summary.filled, summary.vanished) == (144, 3 * (48 - 20), 0, ())
    dataset = open_dataset(tmp_path / "out")
    assert len(dataset) == 3
    ids = dataset[0].truth.ids.numpy()
    assert (ids == 1).sum() == 8
    assert (ids == 2).sum() == 12
    for name in ("0.jpg", "2.jpg"):
        assert (tmp_path / "out" / "train" / name).read_bytes() == before[f"train/{name}"]
    receipt = json.loads((tmp_path / "out" / RECEIPT).read_text())
    assert receipt["overlaps"] == [{"rule": "smaller-on-top", "winner": "dog", "loser": "car", "pixels": 12}]


def test_photos_of_one_name_but_for_folder_and_suffix_keep_masks_of_their_own(tmp_path):
    """The PNG of a photo is called like the photo, so that three photos here would have one PNG."""
    source, names = coco(tmp_path / "in", images=3), ("a_b.jpg", "a/b.jpg", "a_b.jpeg")
    file = source / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    (source / "train" / "a").mkdir()
    for n, (row, name) in enumerate(zip(content["images"], names)):
        (source / "train" / row["file_name"]).rename(source / "train" / name)
        row["file_name"] = name
        content["annotations"][2 * n]["segmentation"] = [[n, 0, 8, 0, 8, 6, n, 6]]  # a mask of 8 − n columns
    content["annotations"] = content["annotations"][::2]
    file.write_text(json.dumps(content))
    convert(source, tmp_path / "out")
    written = json.loads((tmp_path / "out" / "annotations" / "panoptic_train.json").read_text())
    assert len({row["file_name"].lower() for row in written["annotations"]}) == 3
    dataset = open_dataset(tmp_path / "out")
    areas = {dataset.file_name(n): int((dataset[n].truth.ids > 0).sum()) for n in range(3)}
    assert areas == {name: 6 * (8 - n) for n, name in enumerate(names)}
    assert main(["check", str(tmp_path / "out")]) == 0


def test_the_written_json_counts_from_the_map(tmp_path):
    convert(coco(tmp_path / "in"), tmp_path / "out", fill="ground")
    content = json.loads((tmp_path / "out" / "annotations" / "panoptic_train.json").read_text())
    assert [(row["id"], row["name"], row["isthing"]) for row in content["categories"]] == [
        (1, "car", 1),
        (2, "dog", 1),
        (3, "ground", 0),
    ]
    assert content["annotations"][0]["segments_info"] == [
        {"id": 1, "category_id": 1, "area": 8, "bbox": [0, 0, 4, 3], "iscrowd": 0},
        {"id": 2, "category_id": 2, "area": 12, "bbox": [2, 1, 3, 4], "iscrowd": 0},
        {"id": 3, "category_id": 3, "area": 28, "bbox": [0, 0, 8, 6], "iscrowd": 0},
    ]


def test_the_summary_is_readable(tmp_path, capsys):
    objects = (("car", 0, 0, 4, 3), ("dog", 2, 1, 5, 5), ("car", 3, 2, 4, 3), ("cat", 9, 9, 12, 12))
    source = coco(tmp_path / "in", objects=objects, images=2)
    assert (
        main(["convert", str(source), "--to", str(tmp_path / "out"), "--overlap", "larger-on-top", "--fill", "ground"])
        == 1  # what covers no pixel was left out
    )
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{source} (coco_instances) → {tmp_path / 'out'} (coco_panoptic)"
    lines = [line.strip() for line in out.splitlines()[1:]]
    assert lines == [
        "images    train 2",
        "segments  6: 4 things, 2 stuff",
        "things    car, dog, cat",
        "stuff     ground",
        "void      0.0 % of the pixels",
        "filled    58.3 % of the pixels",
        "overlap   larger-on-top: 10 pixels (dog over car 8, car over car 2)",
        "in 2 of 2 images",
        "vanished  4 segments: 2 covered by others, 2 without a pixel",
        "car in train/0.jpg (1 pixels)",
        "cat in train/0.jpg (0 pixels)",
        "car in train/1.jpg (1 pixels)",
        "cat in train/1.jpg (0 pixels)",
        "note      COCO instances lists objects: its classes are things, but for COCO's own stuff (--things decides)",
    ]


def test_overwriting_needs_the_word_and_a_receipt(tmp_path):
    source, out = coco(tmp_path / "in"), tmp_path / "out"
    out.mkdir()  # an empty folder is no loss
    convert(source, out)
    first = files_of(out)
    with pytest.raises(PansightError, match=r"out: expected no such folder yet, found one; nothing was written"):
        convert(source, out)
    assert files_of(out) == first
    convert(source, out, overwrite=True, fill="ground")
    assert files_of(out).keys() == first.keys()
    assert files_of(out) != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(PansightError, match="expected to replace only what convert wrote"):
        convert(source, tmp_path / "mine", overwrite=True)
    for place in (source, tmp_path, source / "annotations" / ".."):
        with pytest.raises(PansightError, match="expected a folder apart from the source"):
            convert(source, place, overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_failure_leaves_nothing_and_what_was_there(tmp_path):
    good, bad, out = coco(tmp_path / "good"), coco(tmp_path / "bad", images=2), tmp_path / "out"
    (bad / "train" / "1.jpg").write_bytes(b"no image")
    with pytest.raises(PansightError, match=r"1\.jpg: expected an image"):
        convert(bad, out, strict=True)
    assert not out.exists()
    convert(good, out)
    first = files_of(out)
    with pytest.raises(PansightError):
        convert(bad, out, overwrite=True, strict=True)
    with pytest.raises(KeyboardInterrupt):
        convert(good, out, overwrite=True, progress=_interrupt)
    assert files_of(out) == first
    assert not list(tmp_path.glob(".out*"))


def _interrupt(share: float, text: str) -> None:
    raise KeyboardInterrupt


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    source = coco(tmp_path / "in")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PansightError, match=r"out: cannot be written: No space left on device"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_are_copied_linked_or_left_out(tmp_path):
    source = coco(tmp_path / "in")
    for mode in IMAGE_MODES:
        convert(source, tmp_path / mode, images=mode)
    image = source / "train" / "0.jpg"
    assert (tmp_path / "copy" / "train" / "0.jpg").stat().st_ino != image.stat().st_ino
    assert (tmp_path / "hardlink" / "train" / "0.jpg").stat().st_ino == image.stat().st_ino
    assert (tmp_path / "symlink" / "train" / "0.jpg").readlink() == image.resolve()
    assert not (tmp_path / "none" / "train").exists()
    image.unlink()
    with pytest.raises(PansightError, match=r"0\.jpg: expected an image file, found no such file .*--images none"):
        convert(source, tmp_path / "again")
    convert(source, tmp_path / "again", images="none")
    with pytest.raises(PansightError, match="unknown image mode 'move'; known: copy, hardlink, none, symlink"):
        convert(source, tmp_path / "more", images="move")


def test_an_image_of_another_size_is_refused(tmp_path):
    source = coco(tmp_path / "in")
    Image.new("RGB", (6, 8)).save(source / "train" / "0.jpg")
    with pytest.raises(PansightError, match=r"0\.jpg: expected an image of 6×8 \(its annotation\), found 8×6"):
        convert(source, tmp_path / "out")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("size", "orientation", "told"),
    [
        ((6, 8), 6, "1 fit as turned"),  # stored 8×6, shown 6×8 (height × width)
        ((8, 6), 6, "1 fit to the stored pixels"),
        ((8, 6), 3, "1 fit both ways, and are read as turned"),
    ],
)
def test_exif_turns_are_kept_and_told(tmp_path, size, orientation, told):
    """The file stays as it is, so that the reader decides as before: turned where the annotation fits that."""
    source = coco(tmp_path / "in")
    Image.new("RGB", size).save(source / "train" / "0.jpg", exif=exif(orientation))
    summary = convert(source, tmp_path / "out")
    assert summary.notes[-1] == f"1 images have an EXIF turn; their annotations: {told}"
    sample = open_dataset(tmp_path / "out")[0]
    assert tuple(sample.image.shape[1:]) == tuple(sample.truth.ids.shape) == (6, 8)


def test_all_parts_share_one_label_space(tmp_path):
    source = coco(tmp_path / "in", "train", (("car", 0, 0, 2, 2),))
    coco(source, "val", (("dog", 0, 0, 2, 2), ("car", 4, 4, 6, 6)))  # dog has id 1 here, car 2
    summary = convert(source, tmp_path / "out")
    assert summary.images == {"train": 1, "val": 1}
    for split, expected in (("train", ["car"]), ("val", ["dog", "car"])):
        dataset = open_dataset(tmp_path / "out", split=split)
        assert [(c.name, c.source_id) for c in dataset.labels] == [("car", 1), ("dog", 2)]
        assert [dataset.labels[s.category].name for s in dataset[0].truth.segments] == expected


def test_names_of_parts_stay_inside(tmp_path):
    for name, folder in (("..", "part"), ("a b", "a_b"), ("...c", "c")):
        source = coco(tmp_path / f"in_{folder}")
        annotations = source / "annotations"
        (annotations / "instances_train.json").rename(annotations / f"instances_{name}.json")
        summary = convert(source, tmp_path / "out" / folder, images="none")
        assert summary.images == {folder: 1}
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["a_b", "c", "part"]


def source_of(*categories: SourceCategory) -> ListSource:
    return ListSource(categories, [])


def test_classes_are_joined_by_name():
    first = source_of(SourceCategory("a", 5, True), SourceCategory("b", 7))
    second = source_of(SourceCategory("c", 5), SourceCategory("b", 1, False, (1, 2, 3)), SourceCategory("a", 9))
    joined = join_classes([first, second], "void stuff")
    assert joined.categories == (
        SourceCategory("a", 5, True),
        SourceCategory("b", 7, False, (1, 2, 3)),
        SourceCategory("c", 8),
        SourceCategory("void stuff", 9, False),
    )
    assert joined.of_source == ((0, 1), (2, 1, 0))
    assert joined.fill == 3
    third = source_of(SourceCategory("a", 1, False))
    for sources in ([first, third], [first, third, first]):
        assert join_classes(sources, None).categories[0] == SourceCategory("a", 5, None)  # they disagree


def test_things_are_named_asked_for_or_refused():
    joined = join_classes(
        [source_of(SourceCategory("door, double", 1), SourceCategory("cat", 2), SourceCategory("x", 3, True))], None
    )

    def things(given=None, ask=None) -> list[str]:
        return [c.name for c in decide_things(joined, given, ask).labels.things]

    assert things(["door, double", "cat"]) == ["door, double", "cat"]  # over what the source says of x
    assert things(["cat,x"]) == ["cat", "x"]
    assert things(["all"]) == ["door, double", "cat", "x"]
    assert things(["none"]) == []
    asked: list[list[str]] = []
    assert things(ask=lambda names: asked.append(list(names)) or ["cat"]) == ["cat", "x"]
    assert asked == [["door, double", "cat"]]
    with pytest.raises(PansightError, match=r"found no answer for door, double, cat; name the things: --things A,B"):
        things()
    with pytest.raises(PansightError, match=r"unknown class 'dog'; known: cat, door, double, x"):
        things(["dog"])


@pytest.mark.parametrize(
    ("things", "expected"),
    [("all", (True, True)), ("none", (False, False)), ("b", (False, True)), ("a,b", (True, True))],
)
def test_one_text_is_a_list_of_things_too(things, expected):
    """`convert(…, things="all")` from Python means what --things all means."""
    joined = join_classes([source_of(SourceCategory("a", 1), SourceCategory("b", 2))], None)
    assert tuple(category.is_thing for category in decide_things(joined, things, None).labels) == expected


def test_fill_is_stuff(tmp_path):
    source = coco(tmp_path / "in")
    with pytest.raises(PansightError, match="fill: expected a stuff class, found the thing class 'dog'"):
        convert(source, tmp_path / "out", fill="dog")
    summary = convert(source, tmp_path / "out", fill="dog", things=["car"])
    assert (summary.segments, summary.void, summary.filled) == ({"car": 1, "dog": 1}, 0, 28)


def test_the_question_on_the_terminal(monkeypatch, capsys):
    class Answers:
        def __init__(self, line: str):
            self.line = line

        def readline(self) -> str:
            return self.line

    monkeypatch.setattr("sys.stdin", Answers("cat, dog\n"))
    assert list(ask_things(["cat", "dog", "sky"])) == ["cat, dog"]
    assert "Which of these classes are things" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Answers("all\n"))
    assert list(ask_things(["cat", "sky"])) == ["cat", "sky"]
    monkeypatch.setattr("sys.stdin", Answers("none\n"))
    assert list(ask_things(["cat", "sky"])) == ["none"]
    monkeypatch.setattr("sys.stdin", Answers(""))
    with pytest.raises(PansightError, match="found no answer"):
        ask_things(["cat"])


def test_an_archive_is_a_source(tmp_path):
    source = coco(tmp_path / "in", images=2)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in files_of(source).items():
            archive.writestr(f"export/{name}", data)
    summary = convert(tmp_path / "in.zip", tmp_path / "out")
    assert (summary.source, summary.images) == (str(tmp_path / "in.zip"), {"train": 2})
    assert len(open_dataset(tmp_path / "out")) == 2
    with pytest.raises(PansightError, match=r"in\.zip: expected a folder to link images to, found an archive"):
        convert(tmp_path / "in.zip", tmp_path / "links", images="symlink")
    with zipfile.ZipFile(tmp_path / "in.zip", "a") as archive:
        archive.writestr("export/annotations/instances_val.json", '{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(PansightError, match=r"in\.zip/export/annotations/instances_val\.json: expected categories"):
        convert(tmp_path / "in.zip", tmp_path / "more")


def test_wrong_words_are_answered_with_the_right_ones(tmp_path, capsys):
    source = coco(tmp_path / "in")
    for words, message in (
        (["--from", "coco"], "unknown source format 'coco'; known: ade20k, "),
        (["--as", "coco"], "unknown target format 'coco'; known: cityscapes, coco_instances, "),
        (["--overlap", "best"], "unknown overlap policy 'best'; known: error, "),
        (["--option.stuf", "x"], "unknown option of coco_instances 'stuf'; known: boxes, images, json, stuff"),
        (["--things", "cow"], "unknown class 'cow'; known: car, dog"),
        (["--split", "test"], "expected"),
    ):
        assert main(["convert", str(source), "--to", str(tmp_path / "out"), *words]) == 2
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(PansightError, match="empty: expected annotations in a known format, recognised none"):
        detect(tmp_path / "empty")
    with pytest.raises(PansightError, match="nowhere: expected a folder or file, found none"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_are_words_on_the_command_line(tmp_path, capsys):
    """Two squares that touch at a corner: one thing where corners join, two where they do not."""
    values = np.kron([[1, 0], [0, 1]], np.ones((2, 2), np.uint8)).astype(np.uint8)
    for folder, pixels in (("images", np.zeros((4, 4, 3), np.uint8)), ("labels", values)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "in" / folder / "a.png")
    words = ["convert", str(tmp_path / "in"), "--overwrite", "--to", str(tmp_path / "out"), "--things", "class_1"]
    for corner, segments in (("8", 2), ("4", 3)):
        assert main([*words, "--option.connectivity", corner]) == 0
        out = capsys.readouterr().out
        assert f"  segments  {segments}: {segments - 1} things, 1 stuff" in out
        assert f"things are connected components of their class ({corner}-connected)" in out
    assert main([*words, "--option.connectivity", "x"]) == 2
    assert "option connectivity: expected a whole number, found 'x'" in capsys.readouterr().err


def test_the_help_names_every_format_and_policy(capsys):
    assert main(["convert", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in (*READERS, *TARGETS, *POLICIES, *IMAGE_MODES):
        assert name in text


def test_names_of_images_stay_inside(tmp_path):
    source = coco(tmp_path / "in")
    file = source / "annotations" / "instances_train.json"
    for name in ("../secret.jpg", "/etc/passwd", "a/../../b.jpg", "C:\\x.jpg"):
        content = json.loads(file.read_text())
        content["images"][0]["file_name"] = name
        file.write_text(json.dumps(content))
        with pytest.raises(PansightError, match="inside the data folder"):
            convert(source, tmp_path / "out")


def test_damaged_input_gives_one_line_or_a_result(tmp_path):
    """Bytes changed at random in JSON, PNG and JPEG: never a traceback, never a file outside."""
    draw = random.Random(0)
    source = coco(tmp_path / "in", images=2)
    convert(source, tmp_path / "panoptic")
    for folder in (source, tmp_path / "panoptic"):
        files = [f for f in folder.rglob("*") if f.is_file() and f.name != RECEIPT]
        for n in range(60):
            file = draw.choice(files)
            whole = file.read_bytes()
            data = bytearray(whole)
            for _ in range(draw.randint(1, 6)):
                data[draw.randrange(len(data))] = draw.randrange(256)
            file.write_bytes(data if n % 4 else data[: draw.randrange(len(data))])
            out = tmp_path / "out" / str(n)
            try:
                convert(folder, out)
            except PansightError as error:
                assert "\n" not in str(error)  # noqa: PT017
            file.write_bytes(whole)
    assert {f.name for f in tmp_path.iterdir()} <= {"in", "panoptic", "out"}


def test_memory_does_not_grow_with_the_images(tmp_path):
    import tracemalloc

    peaks = []
    for images in (20, 80):
        source = coco(tmp_path / f"in{images}", images=images)
        tracemalloc.start()
        convert(source, tmp_path / f"out{images}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 60 * 3000  # rows of the source's own JSON


def test_coco_tiny_passes_check(data_root, tmp_path, capsys):
    part = json.loads((data_root / "coco_tiny" / "annotations" / "instances_val2017.json").read_text())
    few = part["images"][:6]
    ids = {row["id"] for row in few}
    source = tmp_path / "in"
    (source / "annotations").mkdir(parents=True)
    (source / "val2017").symlink_to(data_root / "coco_tiny" / "val2017")
    content = part | {"images": few, "annotations": [a for a in part["annotations"] if a["image_id"] in ids]}
    (source / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    summary = convert(source, tmp_path / "out", images="symlink", fill="background")
    assert summary.void == 0
    assert sum(summary.segments.values()) - 6 + len(summary.vanished) == len(content["annotations"])
    old = open_dataset(source, "coco_instances", split="val", background="stuff")
    new = open_dataset(tmp_path / "out")
    for n in range(6):
        a, b = old[n].truth, new[n].truth
        names = [{s.id: (d.labels[s.category].name, s.is_crowd) for s in t.segments} for d, t in ((old, a), (new, b))]
        pairs = set(zip(a.ids.flatten().tolist(), b.ids.flatten().tolist()))
        assert len(pairs) == len(a.segments) == len(b.segments)
        assert all(names[0][x] == names[1][y] for x, y in pairs)
    assert main(["check", str(tmp_path / "out")]) == 0
    assert "ready to use" in capsys.readouterr().out


def test_no_format_is_without_detection(tmp_path):
    assert not any(reader.detect(tmp_path) for reader in READERS.values())
    (tmp_path / "empty.json").write_bytes(b"")
    (tmp_path / "odd.json").write_bytes(b"\xff{[")
    os.symlink("nowhere", tmp_path / "link")
    for name in ("", "empty.json", "odd.json", "link"):
        for reader in READERS.values():
            assert reader.detect(tmp_path / name) is False
            assert reader.splits(tmp_path / name) == ()
