"""Photos out of shards, stores and lists, and their prediction in parts, by Ray Data on many processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from pansight.apps.cli import main
from pansight.apps.photos.finding import find_photos
from pansight.apps.photos.many import Cluster, predict_many, shares
from pansight.apps.photos.many.part import parts_of, predict_part
from pansight.data.images import write_picture
from pansight.engine.predict import load
from pansight.errors import PansightError
from pansight.models import build, entry
from pansight.types import LabelSpace
from pansight.weights.native import write_model

COUNT = 7
PANOPTIC = {"task": "panoptic"}
WORDS = ["--task", "panoptic"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A network of chance, whose classes are cut into segments."""
    import torch

    torch.manual_seed(0)
    options = entry("unet").tiny
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, build("unet", LabelSpace.from_names(["car"], ["sky", "road"]), **options), "unet", options)
    return str(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(COUNT):
        write_picture(folder / "in" / f"{n}.png", rng.integers(0, 256, (32, 40, 3), np.uint8))
    with tarfile.open(folder / "some.tar", "w") as tar:
        for file in sorted((folder / "in").iterdir()):
            tar.add(file, file.name)
        data = b"no photo"
        for name in ("0.json", "0.panoptic.png"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pyarrow.table({"id": list(range(COUNT)), "path": [f"in/{n}.png" for n in range(COUNT)]})
    pyarrow.parquet.write_table(table, folder / "list.parquet")
    return folder


@pytest.fixture
def store(photos) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for file in (photos / "in").iterdir():
        memory.pipe_file(f"/bucket/in/{file.name}", file.read_bytes())
    memory.pipe_file("/bucket/some.tar", (photos / "some.tar").read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def predictions(folder: Path) -> dict[str, tuple[list, bytes]]:
    """File name → (segments, PNG), of a folder that a prediction wrote."""
    found = {}
    for file in sorted(folder.rglob("predictions.json")):
        content = json.loads(file.read_text())
        for image, annotation in zip(content["images"], content["annotations"], strict=True):
            assert image["id"] == annotation["image_id"]
            png = (file.parent / "predictions" / annotation["file_name"]).read_bytes()
            found[image["file_name"]] = image["id"], annotation["segments_info"], png
    return found


def test_every_collection_holds_the_same_photos(photos, store):
    expected = [file.read_bytes() for file in sorted((photos / "in").iterdir())]
    for place in (photos / "some.tar", photos / "list.parquet", f"{store}/in", f"{store}/some.tar"):
        found = find_photos([place], pieces=True).photos
        assert [photo.piece.read() for photo in found] == expected, place
        assert [photo.name.rpartition("/")[2] for photo in found] == [f"{n}.png" for n in range(COUNT)]
    (one,) = find_photos([f"{store}/in/3.png"], pieces=True).photos
    assert one.piece.read() == expected[3]
    twice = find_photos([photos / "some.tar", photos / "in"], pieces=True).photos
    assert len({photo.name for photo in twice}) == len(twice) == 2 * COUNT


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("memory://bucket/nothing", "expected at least one image"),
        ("nosuch://x/y", "cannot be read: Protocol not known"),
        ("missing.tar", "no such file"),
        ("missing.parquet", "no such file"),
    ],
)
def test_collections_that_are_none(place, message, store):
    with pytest.raises(PansightError, match=message):
        find_photos([place], pieces=True)


def test_a_list_without_paths(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(PansightError, match="expected a column of paths, found id"):
        find_photos([tmp_path / "a.parquet"], pieces=True)
    (tmp_path / "b.parquet").write_bytes(b"none")
    with pytest.raises(PansightError, match="expected a Parquet list of paths"):
        find_photos([tmp_path / "b.parquet"], pieces=True)


def test_predict_reads_them_as_it_reads_files(weights, photos, store, tmp_path):
    assert main(["predict", weights, *WORDS, str(photos / "in"), "--out", str(tmp_path / "files")]) == 0
    expected = predictions(tmp_path / "files")
    assert len(expected) == COUNT
    assert sum(len(segments) for _, segments, _ in expected.values()) > 0
    for number, place in enumerate((photos / "some.tar", f"{store}/in")):
        assert main(["predict", weights, *WORDS, str(place), "--out", str(tmp_path / f"{number}")]) == 0
        assert predictions(tmp_path / f"{number}") == expected


def test_a_part_is_what_predict_writes_and_its_tables(weights, photos, store, tmp_path):
    assert main(["predict", weights, *WORDS, str(photos / "in"), "--out", str(tmp_path / "files")]) == 0
    found = find_photos([f"{store}/in"], pieces=True).photos
    done = [predict_part(part, load(weights), PANOPTIC, 1, tmp_path / "parts") for part in parts_of(found, 3)]
    assert [(each.images, each.failed) for each in done] == [(3, 0), (3, 0), (1, 0)]
    expected = predictions(tmp_path / "files")
    assert predictions(tmp_path / "parts") == expected
    rows = pyarrow.parquet.read_table(sorted((tmp_path / "parts").rglob("segments.parquet"))).to_pylist()
    assert sorted((row["image_id"], row["id"], row["area"]) for row in rows) == sorted(
        (image, segment["id"], segment["area"]) for image, segments, _ in expected.values() for segment in segments
    )
    assert {row["name"] for row in rows} <= {"car", "sky", "road"}
    rows = pyarrow.parquet.read_table(sorted((tmp_path / "parts").rglob("images.parquet"))).to_pylist()
    assert [row["id"] for row in rows] == list(range(1, COUNT + 1))
    assert {(row["height"], row["width"], row["error"]) for row in rows} == {(32, 40, None)}


def test_how_the_cores_are_shared_out():
    assert shares({"CPU": 8.0}, 2, 0, 100) == ({"num_cpus": 4}, 2)
    assert shares({"CPU": 8.0}, 2, 1, 100) == ({"num_cpus": 1}, 8)
    assert shares({"CPU": 8.0}, 1, 2, 3) == ({"num_cpus": 2}, 3)
    assert shares({"CPU": 8.0, "GPU": 2.0}, 1, 0, 9) == ({"num_gpus": 1, "num_cpus": 1}, 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--part-size", "5"], "--part-size: expected --engine ray, found none"),
        (["--engine", "ray", "--fps", "5"], "--fps: expected a prediction in this process, found --engine ray"),
        (["--engine", "ray", "--tile", "512"], "--tile: expected a prediction in this process, found --engine ray"),
    ],
)
def test_flags_that_say_nothing(arguments, line, capsys):
    assert main(["predict", "weights", "photos", *arguments]) == 2
    assert line in capsys.readouterr().err


# --- with Ray itself -------------------------------------------------------------------------------------------------


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    return pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # of Ray and what it loads
def test_ray_gives_what_one_machine_gives_and_does_lost_work_again(ray, weights, photos, tmp_path, capsys):
    """A process of Ray is killed while it works; a damaged photo is told; a finished job computes nothing anew."""
    import psutil

    (tmp_path / "in").mkdir()
    for file in (photos / "in").iterdir():  # so large that a part takes longer than it takes to kill a process
        Image.open(file).resize((2400, 1800)).save(tmp_path / "in" / file.name)
    assert main(["predict", weights, *WORDS, str(tmp_path / "in"), "--out", str(tmp_path / "here")]) == 0
    (tmp_path / "in" / "z.png").write_bytes(b"no photo")
    out, killed = tmp_path / "ray", list[int]()

    def kill() -> None:
        end, workers = time.monotonic() + 300, list[int]()
        while time.monotonic() < end:
            if not workers:
                for process in psutil.Process().children(recursive=True):
                    with contextlib.suppress(psutil.Error):  # it has ended since
                        workers += [process.pid] if " ".join(process.cmdline()).startswith("ray::MapWorker") else []
            elif any(out.glob("part-*")):
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])
                return
            time.sleep(0.005)

    killer = threading.Thread(target=kill)
    killer.start()
    found = predict_many(
        weights, [tmp_path / "in"], out, decode_options=PANOPTIC, cluster=Cluster(part_size=1, worker_cores=1)
    )
    killer.join()
    assert len(killed) == 1
    assert (found.images, found.parts, found.before, len(found.failed)) == (COUNT, COUNT + 1, 0, 1)
    assert "z.png" in found.failed[0]
    assert predictions(out) == predictions(tmp_path / "here")
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    words = ["predict", weights, str(tmp_path / "in"), "--out", str(out), *WORDS, "--engine", "ray", "--part-size", "1"]
    assert main(words) == 1  # a photo could not be read
    assert f"kept       {COUNT + 1} parts of an earlier call" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.png")} == times
    assert main([*words[:-1], "2"]) == 2
    assert "expected the same job, found one with other part_size" in capsys.readouterr().err
