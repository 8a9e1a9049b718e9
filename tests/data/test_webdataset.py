"""Tar shards: written from any annotations, read as every other data set, from a disk and from a store."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_usable import DAMAGES, MAKERS, SIZE, expect_two_of_three, mask_of, photo_of

import pansight
from pansight.apps.cli import main
from pansight.data import detect_format, find_splits, open_dataset
from pansight.data.convert import convert
from pansight.data.convert.targets import webdataset as target
from pansight.data.dataset import Dataset
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.data.formats.webdataset import WebDataset
from pansight.data.formats.webdataset.index import INDEX
from pansight.data.left_out import left_out_of, usable
from pansight.errors import PansightError


def packed(tree: Path, to: Path, without: tuple[str, ...] = ()) -> Path:
    """The files of a COCO panoptic tree as one shard without an index, byte for byte and unchecked, by names."""
    content = json.loads((tree / "annotations/panoptic_train.json").read_text())
    (to / "train").mkdir(parents=True)
    (to / "categories.json").write_text(json.dumps(content["categories"]))
    with tarfile.open(to / "train/some.tar", "w") as tar:
        for image, annotation in zip(content["images"], content["annotations"]):
            stem = Path(image["file_name"]).stem
            table = {**annotation, "file_name": image["file_name"]}
            files = {f"{stem}.json": json.dumps(table).encode()}
            for name, file in ((image["file_name"], tree / "train" / image["file_name"]),):
                files |= {name: file.read_bytes()} if file.is_file() else {}
            png = tree / "annotations/panoptic_train" / annotation["file_name"]
            files |= {f"{stem}.panoptic.png": png.read_bytes()} if png.is_file() else {}
            for name, data in files.items():
                if name not in without:
                    member = tarfile.TarInfo(f"./{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return to


@pytest.fixture
def tree(tmp_path) -> Path:
    return MAKERS["coco_panoptic"](tmp_path / "in")


def same_samples(one: Dataset, two: Dataset) -> None:
    assert one.labels == two.labels
    assert len(one) == len(two) > 0
    for n in range(len(one)):
        a, b = one[n], two[n]
        assert (one.image_id(n), one.file_name(n)) == (two.image_id(n), two.file_name(n))
        assert (a.image_id, a.size, a.truth.segments) == (b.image_id, b.size, b.truth.segments)
        assert bool((a.image == b.image).all())
        assert bool((a.truth.ids == b.truth.ids).all())


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_every_format_becomes_shards_of_the_same_samples(name, tmp_path):
    export_coco_panoptic(open_dataset(MAKERS[name](tmp_path / "in"), name), tmp_path / "coco")
    pansight.convert(tmp_path / "coco", tmp_path / "shards", target="webdataset")
    assert detect_format(tmp_path / "shards") == "webdataset"
    assert find_splits(tmp_path / "shards") == find_splits(tmp_path / "coco")
    same_samples(open_dataset(tmp_path / "coco"), open_dataset(tmp_path / "shards"))
    pansight.convert(tmp_path / "shards", tmp_path / "back")
    same_samples(open_dataset(tmp_path / "coco"), open_dataset(tmp_path / "back"))
    for photo in (tmp_path / "coco/train").iterdir():
        assert photo.read_bytes() == (tmp_path / "back/train" / photo.name).read_bytes()


def test_several_shards_and_no_index(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "SHARD_BYTES", 1)
    convert(tree, tmp_path / "shards", target="webdataset")
    folder = tmp_path / "shards/train"
    assert sorted(p.name for p in folder.iterdir()) == [INDEX, *(f"shard-{n:06d}.tar" for n in range(3))]
    assert sorted(p.name for p in (tmp_path / "shards").iterdir()) == ["categories.json", "convert.json", "train"]
    for shard in folder.glob("*.tar"):  # any tool reads them
        with tarfile.open(shard) as tar:
            endings = [name.partition(".")[2] for name in tar.getnames()]
            assert endings == ["jpg", "panoptic.png", "json"]
    whole = open_dataset(tree)
    same_samples(whole, open_dataset(tmp_path / "shards"))
    same_samples(whole, open_dataset(folder))
    (folder / INDEX).unlink()
    same_samples(whole, open_dataset(folder))
    assert len(open_dataset(folder / "shard-000001.tar")) == 1
    same_samples(whole, open_dataset(packed(tree, tmp_path / "foreign")))


def test_workers_read_them(tree, tmp_path):
    from pansight.data.loader import run_workers

    convert(tree, tmp_path / "shards", target="webdataset")
    data = open_dataset(tmp_path / "shards")
    batches = pansight.data.loader.EvaluationBatches(data, lambda images: (), [[0], [1], [2]])
    found = [samples[0] for _, samples in run_workers(batches.__getitem__, range(3), 2)]
    assert [s.image_id for s in found] == [data.image_id(n) for n in range(3)]
    assert all(bool((s.image == data[n].image).all()) for n, s in enumerate(found))


@pytest.fixture
def store(tree, tmp_path) -> Iterator[str]:
    """The address of shards in memory, to which nothing of the disk is known."""
    convert(tree, tmp_path / "shards", target="webdataset")
    memory = fsspec.filesystem("memory")
    for file in (tmp_path / "shards").rglob("*"):
        if file.is_file():
            memory.pipe_file(f"/bucket/{file.relative_to(tmp_path / 'shards').as_posix()}", file.read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_a_store(store, tree):
    whole = open_dataset(tree)
    assert find_splits(store) == ("train",)
    same_samples(whole, open_dataset(store))
    same_samples(whole, usable(open_dataset(f"{store}/train")))
    fsspec.filesystem("memory").rm(f"/bucket/train/{INDEX}")
    same_samples(whole, open_dataset(store))
    with pytest.raises(PansightError, match=r"memory://bucket/nothing: expected shards \(\*.tar\), found none"):
        open_dataset("memory://bucket/nothing")
    with pytest.raises(PansightError, match="nosuch://bucket: cannot be read: Protocol not known"):
        open_dataset("nosuch://bucket")


@pytest.mark.slow
def test_training_evaluation_and_prediction_from_shards(tmp_path, tree):
    """From shards a run ends with the weights and the figures that it has from files."""
    import torch

    convert(tree, tmp_path / "shards", target="webdataset")
    runs = []
    for source in (tree, tmp_path / "shards"):
        out = tmp_path / f"run_{source.name}"
        words = ["train", "--model", "unet", "--data", str(source), "--out", str(out), "--train.steps", "2"]
        words += ["--train.batch-size", "1", "--model.backbone", "resnet10t", "--model.pretrained", "none"]
        words += ["--data.workers", "0", "--train.trackers", "", "--train.precision", "fp32"]
        assert main(words) == 0
        assert main(["evaluate", str(out), "--data", str(source), "--out", str(out / "again")]) == 0
        record = json.loads((out / "again/evaluation.json").read_text())
        runs.append((pansight.load(out).model.state_dict(), record["semantic"]))
    assert all(torch.equal(value, runs[1][0][key]) for key, value in runs[0][0].items())
    assert runs[0][1] == runs[1][1]


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("of", [photo_of, mask_of])
def test_photos_and_masks_that_cannot_be_used(of: Callable[[Path, str], Path], damage, tree, tmp_path, capsys):
    DAMAGES[damage](of(tree, "b"))
    source = packed(tree, tmp_path / "shards")
    expect_two_of_three("webdataset", source)
    as_it_is = of == photo_of and damage == "cut off"  # such a photo is copied, and told
    assert main(["convert", str(source), "--to", str(tmp_path / "out")]) == int(not as_it_is)
    said = capsys.readouterr().out
    assert " b." in said or "/b." in said
    assert len(usable(open_dataset(tmp_path / "out"))) == 2
    assert main(["convert", str(source), "--to", str(tmp_path / "strict"), "--strict"]) == (0 if as_it_is else 2)


@pytest.mark.parametrize("name", ["b.jpg", "b.panoptic.png", "b.json"])
def test_a_sample_that_lacks_a_member(name, tree, tmp_path):
    rest = usable(open_dataset(packed(tree, tmp_path / "shards", without=(name,))))
    assert len(rest) == 2
    (error,) = left_out_of(rest)
    assert error.code == "missing_file"
    assert "some.tar/" in str(error)


def test_a_table_that_is_damaged(tree, tmp_path):
    source = packed(tree, tmp_path / "shards")
    file = source / "train/some.tar"
    file.write_bytes(file.read_bytes().replace(b'"image_id": 2', b'"image_id": x'))
    rest = usable(open_dataset(source))
    assert len(rest) == 2
    assert "b.json: expected JSON" in str(left_out_of(rest)[0])
    file.write_bytes(file.read_bytes().replace(b'"category_id": 1', b'"category_id": 9'))
    with pytest.raises(PansightError, match="expected a listed category, found category_id 9"):
        usable(open_dataset(source))


def test_hidden_files_and_other_files_are_no_data(tree, tmp_path):
    source = packed(tree, tmp_path / "shards")
    (source / "train/._some.tar").write_bytes(b"\0\5\x16\7")
    (source / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (source / "train/notes.txt").write_bytes(b"about")
    assert len(open_dataset(source)) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {0: "../other.tar"}, "line 2: expected a shard of the folder"),
        (lambda row: row | {2: "../b.jpg"}, "line 2: expected a file name inside the data folder"),
        (lambda row: row | {3: [0, 10**9]}, "line 2: expected a sample within its shard, found 1000000000 bytes"),
        (lambda row: row | {3: [-1, 5]}, "line 2: expected a sample within its shard"),
        (lambda row: row | {1: 1}, "expected each image id once, found one twice"),
        (lambda row: {0: row[0]}, r"line 2: expected \[shard, id, file name"),
    ],
)
def test_an_index_that_is_damaged(change, message, tree, tmp_path):
    convert(tree, tmp_path / "shards", target="webdataset")
    file = tmp_path / "shards/train" / INDEX
    lines = file.read_text().splitlines()
    changed = change(dict(enumerate(json.loads(lines[1]))))
    lines[1] = json.dumps(list(changed.values()))
    file.write_text("\n".join(lines))
    with pytest.raises(PansightError, match=message):
        open_dataset(tmp_path / "shards")


def test_shards_that_are_none(tree, tmp_path):
    source = packed(tree, tmp_path / "shards")
    file = source / "train/some.tar"
    whole = file.read_bytes()
    for damaged in (b"no tar at all" * 100, whole[:700], b"\x1f\x8b" + whole[2:]):
        file.write_bytes(damaged)
        with pytest.raises(PansightError, match=r"some\.tar|train: expected"):
            usable(open_dataset(source), strict=True)
    file.write_bytes(whole)
    (source / "categories.json").write_text("[]")
    with pytest.raises(PansightError, match=r"categories.json: expected categories, found none"):
        open_dataset(source)
    (source / "categories.json").unlink()
    with pytest.raises(PansightError, match=r"categories\.json beside the shards"):
        open_dataset(source, "webdataset")


def test_photos_must_be_in_the_shards(tree, tmp_path):
    with pytest.raises(PansightError, match="expected photos in the shards, found --images none"):
        convert(tree, tmp_path / "shards", target="webdataset", images="none")
    assert not (tmp_path / "shards").exists()


def test_check_and_split_read_shards(tree, tmp_path):
    convert(tree, tmp_path / "shards", target="webdataset")
    report = pansight.check(tmp_path / "shards")
    assert report.images == 3
    assert report.findings.number("error") == 0
    assert pansight.split(tmp_path / "shards", tmp_path / "out", val=0.34).images == (2, 1)
    assert np.asarray(open_dataset(tmp_path / "out", split="val")[0].image).shape == (3, *SIZE)


def test_what_is_kept_of_an_image_is_its_place(tree, tmp_path):
    """Tables of segments stay in the shard: opening reads none of them where there is an index."""
    convert(tree, tmp_path / "shards", target="webdataset")
    moved = shutil.copytree(tmp_path / "shards", tmp_path / "moved")
    (shard,) = moved.glob("train/*.tar")
    data = shard.read_bytes()
    shard.write_bytes(data.replace(b'"segments_info"', b'"segments_kept"'))
    data = open_dataset(moved)
    assert isinstance(data, WebDataset)
    assert len(data) == 3
    assert data.file_name(1) == "b.jpg"
    with pytest.raises(PansightError, match="a list segments_info"):
        _ = data[1]
