"""`pansight predict` on videos: every frame is predicted and drawn, rate and size stay, and damage is a line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pansight import models
from pansight.apps import photos
from pansight.apps.cli import main
from pansight.apps.photos import video
from pansight.apps.photos.video import Video, VideoWriter, in_natural_order
from pansight.data.images import read_rgb_ids, write_png
from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import save_model

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy

LABELS = LabelSpace.from_names(["circle", "square"], ["background"])
COUNT, RATE = 12, 12.5


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    save_model(tmp_path / "toy", build("toy", LABELS), "toy", {})
    return tmp_path / "toy"


def frame(number: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """A grey picture that grows lighter, with a red square that moves to the right; RGB (H, W, 3)."""
    picture = np.full((*size, 3), 40 + 10 * number, np.uint8)
    picture[10:30, 2 + 3 * number : 18 + 3 * number] = (220, 30, 30)
    return picture


def write_video(path: Path, code: str = "MJPG", count: int = COUNT, rate: float = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with video.quiet():  # FFmpeg asks once, when it is first used, what it may say
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), rate, (64, 48))
    for number in range(count):
        writer.write(frame(number)[..., ::-1].copy())  # OpenCV writes BGR
    writer.release()
    return path


def frames_of(path: Path) -> tuple[list[NDArray[np.uint8]], float]:
    with Video(path) as opened:
        return [picture for _, picture in opened.frames()], opened.rate


def run(*words: object, code: int = 0) -> None:
    assert main([str(word) for word in words]) == code


@pytest.mark.parametrize(("code", "suffix"), [("MJPG", "avi"), ("mp4v", "mp4"), ("mp4v", "mov"), ("MJPG", "mkv")])
def test_a_video_is_predicted_frame_by_frame(
    predictor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], code: str, suffix: str
) -> None:
    source, out = write_video(tmp_path / f"drive.{suffix}", code), tmp_path / "out"
    run("predict", predictor, source, "--out", out)
    drawn, rate = frames_of(out / "overlays" / "drive.mp4")
    assert (len(drawn), rate) == (COUNT, pytest.approx(RATE, abs=0.01))
    assert {picture.shape for picture in drawn} == {(48, 64, 3)}
    content = json.loads((out / "predictions.json").read_text())
    assert [row["file_name"] for row in content["images"]] == [f"drive/frame_{n:06d}.png" for n in range(1, COUNT + 1)]
    for row in content["annotations"]:
        assert read_rgb_ids(out / "predictions" / row["file_name"]).shape == (48, 64)
    said = capsys.readouterr()
    assert f"drive.{suffix}" in said.out
    assert f"({COUNT} frames)" in said.out
    assert f"{COUNT} images" in said.out
    assert said.err == ""


def test_frames_are_those_of_the_photo(predictor: Path, tmp_path: Path) -> None:
    """In RGB, in order: each frame is predicted as its picture would be."""
    found, _ = frames_of(write_video(tmp_path / "a.avi"))
    for number, picture in enumerate(found):
        assert np.abs(picture.astype(int) - frame(number)).mean() < 6
        assert picture[20, 10 + 3 * number, 0] > 150 > picture[20, 10 + 3 * number, 2]


def test_every_so_many_th_frame(predictor: Path, tmp_path: Path) -> None:
    """The overlay video runs as long as its source."""
    out = tmp_path / "out"
    run("predict", predictor, write_video(tmp_path / "a.avi"), "--every", 5, "--out", out)
    names = [row["file_name"] for row in json.loads((out / "predictions.json").read_text())["images"]]
    assert names == ["a/frame_000001.png", "a/frame_000006.png", "a/frame_000011.png"]
    drawn, rate = frames_of(out / "overlays" / "a.mp4")
    assert (len(drawn), rate) == (3, pytest.approx(RATE / 5, abs=0.01))


def test_a_folder_of_frames_is_a_video(predictor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the numbers in their names; odd sizes are kept but for a repeated row and column."""
    folder, out = tmp_path / "shots", tmp_path / "out"
    for number in (1, 2, 10, 11):
        write_png(folder / f"shot{number}.png", frame(number, (47, 65)))
    write_png(folder / "shot12.png", frame(1))
    (folder / "shot13.png").write_bytes(b"no picture")
    run("predict", predictor, folder, "--fps", 5, "--opacity", 0, "--no-names", "--out", out, code=1)
    drawn, rate = frames_of(out / "overlays" / "shots.mp4")
    assert (len(drawn), rate) == (4, 5)
    assert drawn[0].shape == (48, 66, 3)
    lightness = [int(np.median(picture)) for picture in drawn]
    assert lightness == sorted(lightness)
    names = [row["file_name"] for row in json.loads((out / "predictions.json").read_text())["images"]]
    assert names == ["shot1.png", "shot2.png", "shot10.png", "shot11.png"]
    said = capsys.readouterr().out
    assert "shot12.png: expected frames of 47×65, as the first, found 48×64" in said
    assert "not read   " in said
    assert "shots.mp4 is 66×48 pixels large, since its codec needs even sides" in said


def test_photos_and_videos_together(predictor: Path, tmp_path: Path) -> None:
    write_png(tmp_path / "in" / "a.png", frame(0))
    source = write_video(tmp_path / "in" / "a.avi", count=2)
    out = tmp_path / "out"
    run("predict", predictor, tmp_path / "in" / "a.png", source, "--out", out)
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a.mp4", "a.png"]
    content = json.loads((out / "predictions.json").read_text())
    assert [row["id"] for row in content["images"]] == [1, 2, 3]


def test_videos_in_folders_are_counted(predictor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hours of them may lie beside photos."""
    write_video(tmp_path / "in" / "a.avi", count=2)
    run("predict", predictor, tmp_path / "in", "--out", tmp_path / "out", code=2)
    assert "found none (1 .avi (a video is predicted where it is given by its name))" in capsys.readouterr().err


def test_things_keep_the_colour_of_their_class() -> None:
    """Nothing follows an object from frame to frame, so colours of their own would jump."""
    import torch

    from pansight.data.dataset import image_tensor
    from pansight.drawing.prediction import draw_prediction
    from pansight.types import Instances, PanopticSegmentation, Prediction, Segment

    ids = torch.zeros((40, 60), dtype=torch.int32)
    ids[5:20, 5:20], ids[5:20, 30:50] = 1, 2
    panoptic = PanopticSegmentation(ids, (Segment(1, 0), Segment(2, 0)))
    masks = torch.stack([ids == 1, ids == 2])
    boxes = torch.tensor([[5.0, 5, 20, 20], [30, 5, 50, 20]])
    objects = Instances(boxes, torch.tensor([0, 0]), torch.tensor([0.9, 0.8]), masks)
    photo = image_tensor(np.zeros((40, 60, 3), np.uint8))
    for prediction in (Prediction(panoptic), Prediction(instances=objects)):
        one_each = draw_prediction(photo, prediction, LABELS, names=False)
        by_class = draw_prediction(photo, prediction, LABELS, names=False, by_class=True)
        assert not torch.equal(one_each[:, 12, 12], one_each[:, 12, 40])
        assert torch.equal(by_class[:, 12, 12], by_class[:, 12, 40])


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(predictor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it is, no more frames are there than the stages of the pipeline hold."""
    import gc
    import weakref

    alive: list[int] = []
    seen: list[weakref.ref[NDArray[np.uint8]]] = []
    plain = Video.frames

    def watched(self: Video, every: int = 1):
        for number, picture in plain(self, every):
            gc.collect()
            alive.append(sum(each() is not None for each in seen))
            seen.append(weakref.ref(picture))
            yield number, picture

    monkeypatch.setattr(Video, "frames", watched)
    photos.predict(predictor, [write_video(tmp_path / "a.avi", count=20)], tmp_path / "out")
    assert len(alive) == 20
    assert max(alive) <= 10


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "cut.mp4", "list.avi"])
def test_a_video_that_is_none_is_a_line(
    predictor: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    whole = write_video(tmp_path / "whole.mp4", "mp4v").read_bytes()
    playlist = f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{tmp_path / 'whole.mp4'}\n#EXT-X-ENDLIST\n"
    content = {
        "empty.mp4": b"",
        "text.mp4": b"no video",
        "cut.mp4": whole[: len(whole) // 2],
        "list.avi": playlist.encode(),
    }
    (tmp_path / name).write_bytes(content[name])
    run("predict", predictor, tmp_path / name, "--out", tmp_path / "out", code=2)
    said = capfd.readouterr()
    assert f"{name}: expected a video, found" in said.err
    assert len(said.err.splitlines()) == 1
    assert not (tmp_path / "out" / "overlays").exists()
    run("predict", predictor, tmp_path / name, tmp_path / "whole.mp4", "--out", tmp_path / "out", code=1)
    assert f"{name}: expected a video" in capfd.readouterr().out
    assert (tmp_path / "out" / "overlays" / "whole.mp4").is_file()


def test_a_video_that_breaks_off_is_told(predictor: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What can be decoded is predicted."""
    data = write_video(tmp_path / "a.avi").read_bytes()
    (tmp_path / "a.avi").write_bytes(data[: len(data) * 6 // 10])
    run("predict", predictor, tmp_path / "a.avi", "--out", tmp_path / "out", code=1)
    said = capfd.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("not read")]
    assert f"a.avi: expected {COUNT} frames, found " in line
    assert "the others cannot be decoded" in line
    assert said.err == ""
    drawn, _ = frames_of(tmp_path / "out" / "overlays" / "a.mp4")
    assert 1 <= len(drawn) < COUNT


def test_a_broken_frame_is_told(predictor: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(write_video(tmp_path / "a.avi").read_bytes())
    starts = [n for n in range(len(data) - 3) if data[n : n + 3] == b"\xff\xd8\xff"]
    assert len(starts) == COUNT
    data[starts[5] : starts[6] - 16] = bytes(starts[6] - 16 - starts[5])
    (tmp_path / "a.avi").write_bytes(data)
    run("predict", predictor, tmp_path / "a.avi", "--out", tmp_path / "out", code=1)
    said = capfd.readouterr()
    (line,) = [line for line in said.out.splitlines() if line.startswith("not read")]
    assert f"a.avi: expected {COUNT} frames, found {COUNT - 1}: the others cannot be decoded" in line
    assert said.err == ""
    assert len(frames_of(tmp_path / "out" / "overlays" / "a.mp4")[0]) == COUNT - 1


@pytest.mark.parametrize(
    ("flag", "value", "message"), [("--every", 0, "expected 1 or more"), ("--fps", 0, "up to 1000")]
)
def test_numbers_out_of_range(
    predictor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: int, message: str
) -> None:
    run("predict", predictor, write_video(tmp_path / "a.avi"), flag, value, "--out", tmp_path / "out", code=2)
    assert f"{flag}: " in (said := capsys.readouterr().err)
    assert message in said


def test_frames_too_large_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(PansightError, match=r"a\.avi: expected frames of 1 … .* found 48×64"):
        Video(write_video(tmp_path / "a.avi"))


def test_a_place_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match=r"x\.mp4: cannot be written: no video of 48×64"):
        VideoWriter(tmp_path / "nowhere" / "x.mp4", 25, (48, 64))


def test_natural_order() -> None:
    assert sorted(["f10", "f2", "a/f1", "F1"], key=in_natural_order) == ["a/f1", "F1", "f2", "f10"]
