"""Many images at a time give the files of one at a time, byte for byte, and its errors."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pansight.apps.cli import main
from pansight.data.check import check
from pansight.data.check.split import split
from pansight.data.convert import TARGETS, convert
from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.ops.idmap import ids_to_rgb
from pansight.parallel import in_forks, in_order

JOBS = 3
COUNT = 13


def coco(root: Path, count: int = COUNT) -> Path:
    """Images of different sizes, each with two objects and a background."""
    rng = np.random.default_rng(0)
    categories = [{"id": n, "name": name, "isthing": n < 3} for n, name in ((1, "car"), (2, "person"), (3, "sky"))]
    images, annotations = [], []
    (root / "train").mkdir(parents=True)
    for n in range(count):
        ids = np.full((40 + n, 60), 3, np.int32)
        ids[5:20, 5 : 20 + n], ids[25:36, 30:50] = 1, 2
        Image.fromarray(rng.integers(0, 256, (*ids.shape, 3), np.uint8)).save(root / f"train/{n}.jpg")
        write_png(root / f"annotations/panoptic_train/{n}.png", ids_to_rgb(ids))
        boxes = {1: [5, 5, 15 + n, 15], 2: [30, 25, 20, 11], 3: [0, 0, 60, 40 + n]}
        areas = {k: int((ids == k).sum()) for k in boxes}
        rows = [{"id": k, "category_id": k, "area": areas[k], "bbox": boxes[k], "iscrowd": 0} for k in boxes]
        images.append({"id": n, "file_name": f"{n}.jpg", "height": 40 + n, "width": 60})
        annotations.append({"image_id": n, "file_name": f"{n}.png", "segments_info": rows})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations/panoptic_train.json").write_text(json.dumps(content))
    return root


def files_of(folder: Path) -> dict[str, bytes]:
    """The receipt says where the folder lies: that is left out."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data.replace(folder.name.encode(), b"") for name, data in files.items()}


@pytest.fixture
def source(tmp_path) -> Path:
    return coco(tmp_path / "in")


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_is_the_same(source, tmp_path, target):
    options = {"target": target, "images": "copy"}
    one = convert(source, tmp_path / "outA", jobs=1, **options)
    many = convert(source, tmp_path / "outB", jobs=JOBS, **options)
    assert one._replace(to="") == many._replace(to="")
    assert files_of(tmp_path / "outA") == files_of(tmp_path / "outB")
    assert sum(one.images.values()) == COUNT


@pytest.mark.parametrize("damage", [[4], [2, 9, 11]])
def test_what_is_left_out_is_the_same(source, tmp_path, damage):
    for n in damage:
        (source / f"train/{n}.jpg").unlink()
    (source / "annotations/panoptic_train/5.png").write_bytes(b"no PNG")
    one = convert(source, tmp_path / "outA", jobs=1)
    many = convert(source, tmp_path / "outB", jobs=JOBS)
    assert many.skipped == one.skipped
    assert len(one.skipped) == len(damage) + 1
    assert files_of(tmp_path / "outA") == files_of(tmp_path / "outB")
    errors = []
    for jobs in (1, JOBS):
        with pytest.raises(PansightError) as caught:
            convert(source, tmp_path / "no", jobs=jobs, strict=True)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert f"{damage[0]}.jpg" in errors[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "outA", "outB"]


def test_interrupted_conversion_leaves_nothing(source, tmp_path):
    def stop(share: float, text: str) -> None:
        if share > 0.4:
            raise KeyboardInterrupt

    before = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", jobs=JOBS, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert set(threading.enumerate()) <= before


def test_check_and_split_are_the_same(source, tmp_path):
    Image.new("RGB", (60, 49)).save(source / "train/7.jpg")
    (source / "train/9.jpg").write_bytes((source / "train/9.jpg").read_bytes()[:-400])
    assert check(source, jobs=1).to_json() == check(source, jobs=JOBS).to_json()
    for jobs in (1, JOBS):
        split(source, tmp_path / f"split{jobs}", val=0.3, jobs=jobs)
    one, many = files_of(tmp_path / "split1"), files_of(tmp_path / f"split{JOBS}")
    assert one == many
    assert len(one) == 2 * COUNT + 3


def test_number_of_jobs_on_the_command_line(source, tmp_path, capsys):
    places = {"convert": ["--to", str(tmp_path / "a")], "check": [], "split": ["--out", str(tmp_path / "b")]}
    for command, more in places.items():
        assert main([command, str(source), "--jobs=-1", *more]) == 2
        assert "jobs: expected 0 (all cores) or a number of images at a time, found -1" in capsys.readouterr().err
        assert main([command, str(source), "--jobs", "2", *more]) == 0
    assert (tmp_path / "a/convert.json").is_file()
    assert (tmp_path / "b/split.json").is_file()


def test_results_come_in_order_whatever_is_ready_first():
    last = threading.Event()
    done: list[int] = []

    def work(n: int) -> int:
        if n == 0:
            assert last.wait(60)  # the first result is ready after those behind it
        done.append(n)
        if n == 3:
            last.set()
        return n * n

    assert list(in_order(work, range(9), 2)) == [n * n for n in range(9)]
    assert done.index(0) > done.index(3)


def test_an_error_comes_in_its_turn_and_ends_the_work():
    begun: list[int] = []

    def work(n: int) -> int:
        begun.append(n)
        if n == 2:
            raise PansightError("bad", where=n)
        return n

    results = in_order(work, range(1000), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(PansightError, match="bad"):
        next(results)
    assert len(begun) < 10


def summed(numbers) -> tuple[int, list[int]]:
    return os.getpid(), list(numbers)


@pytest.mark.parametrize(("count", "processes"), [(0, 2), (1, 3), (200, 3)])
def test_forks_share_all_numbers(count, processes):
    done = []
    results = in_forks(summed, count, processes, done.append)
    assert len({pid for pid, _ in results} - {os.getpid()}) == processes
    assert sorted(number for _, numbers in results for number in numbers) == list(range(count))
    assert sorted(done) == list(range(count))


def test_the_first_error_of_forks_is_raised_and_the_others_end():
    def fails(numbers) -> None:
        for number in numbers:
            if number in (5, 7):
                raise PansightError(where=f"image {number}", expected="an image", found="none", code="missing_file")

    for processes in (1, 2, 4):
        with pytest.raises(PansightError, match=r"^image 5: expected an image, found none$") as caught:
            in_forks(fails, 1000, processes)
        assert caught.value.code == "missing_file"


def test_a_fork_that_is_killed_is_told():
    def dies(numbers) -> None:
        for _ in numbers:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(PansightError, match=r"expected its result, found its end \(killed, or out of memory\)"):
        in_forks(dies, 3, 2)
