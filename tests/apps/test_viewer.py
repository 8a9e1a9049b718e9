"""The viewer's files: exact rows and maps, one page or a page and a folder, whole or not at all, in flat memory."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from viewer_images import LABELS, drawn, write_page

from pansight.apps.pages import viewer
from pansight.apps.pages.figures import ERROR_STYLES, confusion_matrix, error_rows
from pansight.apps.pages.viewer import ViewerWriter, image_content, image_row, label_map
from pansight.errors import PansightError
from pansight.metrics.panoptic.errors import ERRORS


def decoded(side: dict, size: tuple[int, int]) -> np.ndarray:
    """A side's map as its page reads it: (h, w)."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(side["map"])), f"<u{side['bits'] // 8}").reshape(size)
    return np.bitwise_xor.accumulate(raw, axis=0)


@pytest.mark.parametrize(("count", "bits"), [(3, 8), (255, 8), (256, 16), (70_000, 32)])
def test_label_maps_hold_the_place_of_each_id(count, bits):
    rng = np.random.default_rng(0)
    numbers = (rng.permutation(count) + 1).tolist()
    ids = rng.integers(0, count + 1, (20, 30)).astype(np.int32)
    side = label_map(ids, numbers, (20, 30))
    assert side["bits"] == bits
    place = {0: 0} | {number: k for k, number in enumerate(numbers, 1)}
    assert (decoded(side, (20, 30)) == np.vectorize(place.get)(ids)).all()


def test_a_smaller_map_takes_the_pixel_in_the_middle():
    ids = np.repeat(np.arange(1, 5, dtype=np.int32), 3)[None].repeat(6, 0)  # (6, 12), columns 111222333444
    assert decoded(label_map(ids, [1, 2, 3, 4], (2, 4)), (2, 4)).tolist() == [[1, 2, 3, 4]] * 2


def test_rows_are_those_of_the_match_and_its_errors():
    image = drawn()
    content = image_content(image)
    assert content["size"] == (20, 40)
    assert content["photo"].startswith("data:image/jpeg;base64,")
    name = ERRORS.index
    # id, class, area, x, y, width, height, error, partner, IoU, score, crowd
    assert content["truth"]["rows"] == [
        [7, 0, 100, 0, 0, 10, 10, name("found"), 0, 0.8, 1.0, 0],
        [300, 0, 100, 20, 0, 10, 10, name("missed"), -1, 0.0, 1.0, 0],
        [9, 1, 80, 0, 12, 20, 4, name("wrong_class"), 1, 1.0, 1.0, 0],
    ]
    assert content["prediction"]["rows"] == [
        [1, 0, 80, 0, 0, 10, 8, name("found"), 0, 0.8, 0.9, 0],
        [2, 2, 80, 0, 12, 20, 4, name("wrong_class"), 2, 1.0, 0.5, 0],
        [3, 0, 4, 36, 16, 2, 2, name("ignored"), -1, 0.0, 0.25, 0],
    ]
    found, missed, wrong, ignored = (name(n) for n in ("found", "missed", "wrong_class", "ignored"))
    pairs = sorted([(0, found, 2), (0, missed, 1), (0, ignored, 1), (1, wrong, 1), (2, wrong, 1)])
    assert image_row(image) == ["a", 0.25, 40, 20, [value for pair in pairs for value in pair]]


def test_large_photos_are_made_smaller_and_tiny_segments_stay_in_the_table():
    ids = np.zeros((700, 1400), np.int32)
    ids[100, 101] = 5
    content = image_content(drawn(truth_ids=ids, truth=[(5, 0)], photo=np.zeros((700, 1400, 3), np.uint8)))
    assert content["size"] == (320, 640)
    assert content["truth"]["rows"][0][:7] == [5, 0, 1, 101, 100, 1, 1]
    assert not decoded(content["truth"], (320, 640)).any()


def test_another_size_of_photo_or_prediction_is_named():
    with pytest.raises(PansightError, match=r"image a: photo: expected 20 × 40 as the truth, found 20 × 41"):
        image_content(drawn(photo=np.zeros((20, 41, 3), np.uint8)))
    with pytest.raises(PansightError, match=r"image a: prediction: expected 20 × 40"):
        image_content(drawn()._replace(prediction_ids=np.zeros((20, 39), np.int32)))


def test_a_score_that_is_no_number_is_named():
    with pytest.raises(PansightError, match="image a: prediction: segment 2: expected a finite score, found nan"):
        image_content(drawn(prediction=[(1, 0, 0.9), (2, 2, float("nan")), (3, 0, 0.25)]))


def test_few_images_stand_inside_the_page(tmp_path):
    page = write_page(tmp_path / "out.html", [drawn(f"image {k}") for k in range(3)])
    html = page.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]
    assert len(re.findall(r'<script type="application/json" id="image-\d">', html)) == 3
    assert not re.search(r'https?://|@import|url\((?!#)|<link|src="(?!data:)', html)
    assert "needs no network and no other file" in html


@pytest.mark.parametrize(("name", "limit"), [("INLINE_IMAGES", 2), ("INLINE_BYTES", 3000)])
def test_many_images_go_to_a_folder(tmp_path, monkeypatch, name, limit):
    monkeypatch.setattr(viewer, name, limit)
    html = write_page(tmp_path / "out.html", [drawn(f"image {k}") for k in range(3)]).read_text(encoding="utf-8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.html", "out_files"]
    assert sorted(p.name for p in (tmp_path / "out_files").iterdir()) == ["0.js", "1.js", "2.js"]
    assert 'id="image-0"' not in html
    assert "keep it beside the page" in html


def half_a_page(path: Path) -> None:
    with ViewerWriter(path, LABELS, "title") as writer:
        writer.add(drawn())
        raise ZeroDivisionError


def test_nothing_is_left_where_writing_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        half_a_page(tmp_path / "out.html")
    with ViewerWriter(tmp_path / "out.html", LABELS, "title") as writer:
        writer.add(drawn())  # and never finished
    assert not list(tmp_path.iterdir())


def test_the_old_page_and_folder_stay_where_the_new_cannot_be_placed(tmp_path, monkeypatch):
    monkeypatch.setattr(viewer, "INLINE_IMAGES", 0)
    page = write_page(tmp_path / "out.html", [drawn("old")])
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    rename = Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    with pytest.raises(PansightError, match=r"out\.html: cannot be written: No space left"):
        write_page(page, [drawn("new"), drawn("newer")], overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_nothing_is_overwritten_without_being_asked(tmp_path, monkeypatch):
    page = write_page(tmp_path / "out.html", [drawn()])
    before = page.read_bytes()
    with pytest.raises(PansightError, match=r"out\.html: expected no such file"):
        write_page(page, [drawn()])
    assert page.read_bytes() == before
    monkeypatch.setattr(viewer, "INLINE_IMAGES", 1)
    write_page(page, [drawn(), drawn("b")], overwrite=True)
    assert len(list((tmp_path / "out_files").iterdir())) == 2
    page.unlink()
    with pytest.raises(PansightError, match="out_files: expected no such"):
        write_page(page, [drawn()])
    write_page(page, [drawn()], overwrite=True)  # small again: the old folder goes
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]


def test_a_folder_that_is_not_the_viewers_is_never_replaced(tmp_path):
    (tmp_path / "out_files").mkdir()
    (tmp_path / "out_files" / "thesis.txt").write_text("mine")
    with pytest.raises(PansightError, match=r"expected a viewer's folder to replace, found thesis\.txt"):
        write_page(tmp_path / "out.html", [drawn()], overwrite=True)
    assert (tmp_path / "out_files" / "thesis.txt").read_text() == "mine"
    with pytest.raises(PansightError, match="expected a file to write the page to, found a folder"):
        write_page(tmp_path / "out_files", [drawn()], overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(PansightError, match="cannot be written"):
        write_page(tmp_path / "file" / "out.html", [drawn()])


def test_memory_does_not_grow_with_the_images(tmp_path):
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (200, 400, 3), np.uint8)  # 100 KB as a JPEG
    ids = np.kron(drawn().truth_ids, np.ones((10, 10), np.int32))
    image = drawn(photo=photo, truth_ids=ids)
    peaks = []
    for count in (5, 60):
        with ViewerWriter(tmp_path / f"{count}.html", LABELS, "title") as writer:
            writer.add(image)
            tracemalloc.start()
            for _ in range(count):
                writer.add(image)
            writer.finish({})
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    size = (tmp_path / "60.html").stat().st_size - (tmp_path / "5.html").stat().st_size
    assert size > 3_500_000
    assert peaks[1] - peaks[0] < 300_000


def test_the_viewer_is_torch_free():
    code = "import sys, pansight.apps.pages.viewer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_from_files_cannot_leave_their_place(tmp_path):
    html = write_page(tmp_path / "out.html", [drawn("</script><b>\u2028'\"")]).read_text(encoding="utf-8")
    assert "</script><b>" not in html
    assert "\u2028" not in html
    assert "<img src=x" not in html  # a class of LABELS


def test_every_error_has_a_style_that_colour_blind_eyes_tell_apart():
    assert set(ERROR_STYLES) == {*ERRORS, "outline"}
    # Viénot, Brettel and Mollon 1999: linear RGB → what protanopes and deuteranopes see
    seen_by = {
        "normal": np.eye(3),
        "protan": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
        "deutan": np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]),
    }
    names = [n for n in ERRORS if n not in ("ignored", "crowd")]
    colors = (np.array([ERROR_STYLES[n][2] for n in names]) / 255) ** 2.2
    for kind, matrix in seen_by.items():
        seen = 255 * np.clip(colors @ matrix.T, 0, 1) ** (1 / 2.2)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 999 * np.eye(len(names))
        a, b = np.unravel_index(distance.argmin(), distance.shape)
        assert distance[a, b] > 34, (kind, names[a], names[b], distance[a, b])


def test_error_bars_and_confusion_as_recorded():
    row = {"truth": 1, "prediction": 2, "pq_gain_things": 0.0, "pq_gain_stuff": 0.0}
    errors = {
        "found": row | {"pq_gain": 0.0},
        "missed": row | {"pq_gain": 0.05},
        "outline": row | {"pq_gain": 0.0},
        "split": row | {"pq_gain": 0.1},
        "duplicate": {"truth": 0, "prediction": 0, "pq_gain": 0.0},
    }
    shown = [(r["key"], r["truth"], r["prediction"], r["pq_gain"], r["width"]) for r in error_rows(errors)]
    assert shown == [("split", 1, 2, 0.1, 100.0), ("missed", 1, 2, 0.05, 50.0)]
    record = {"confusion": [[1, 1, 3], [1, 2, 1], [2, 1, 2], [2, None, 4], [None, 3, 5]]}
    matrix = confusion_matrix(record, LABELS)
    assert matrix is not None
    assert matrix["names"] == [LABELS[0].name, LABELS[1].name]
    assert [[n for n, _ in cells] for _, cells in matrix["rows"]] == [[3, 1, 0], [2, 0, 4], [0, 0, 0]]
    assert matrix["rows"][0][1][1][1] == 0.25
    assert [n for *_, n in matrix["pairs"]] == [2, 1]
    assert matrix["hidden"] == 1
    assert confusion_matrix({}, LABELS) is None


def test_an_empty_evaluation_is_a_page_too(tmp_path):
    assert "0 images" in Path(write_page(tmp_path / "out.html", [])).read_text(encoding="utf-8")
