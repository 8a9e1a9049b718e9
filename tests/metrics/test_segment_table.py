"""The per-segment table: exact rows of a drawn case, the Parquet file whole or not at all, flat memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing import DOG, IS_THING, LABELS, SKY, match_drawing, match_maps, random_maps

from pansight.errors import PansightError
from pansight.metrics.panoptic import segment_table
from pansight.metrics.panoptic.errors import ERRORS, classify_errors
from pansight.metrics.panoptic.segment_table import COLUMNS, SegmentTableWriter, segment_columns

parquet = pytest.importorskip("pyarrow.parquet")


def rows_of(image, image_id: str | int = 7) -> list[tuple]:
    columns = segment_columns(image_id, image, classify_errors(image, IS_THING), LABELS)
    assert tuple(columns) == COLUMNS
    return list(zip(*columns.values(), strict=True))


def test_rows_of_a_drawn_case():
    """a found by A; b missed; s is seen as a dog by D; P lies on void; C is a phantom on the crowd c."""
    image = match_drawing("aaaabb..sscc", "AAA...PPDDCC", crowds="c", s=SKY, D=DOG, C=DOG, P=DOG)
    a, b, c, s = map(ord, "abcs")
    found, phantom, dog, ignored = map(ord, "ACDP")
    scores = dict(zip("ACDP", image.prediction.scores.tolist()))
    assert rows_of(image) == [
        ("7", "truth", a, found, "cat", "cat", 0.75, 4, 3, "small", "found", scores["A"]),
        ("7", "truth", b, None, "cat", None, None, 2, None, "small", "missed", None),
        ("7", "truth", c, None, "cat", None, None, 2, None, "small", "crowd", None),
        ("7", "truth", s, dog, "sky", "dog", 1.0, 2, 2, "small", "thing_stuff_swap", scores["D"]),
        ("7", "prediction", None, phantom, None, "dog", None, None, 2, "small", "phantom", scores["C"]),
        ("7", "prediction", s, dog, "sky", "dog", 1.0, 2, 2, "small", "thing_stuff_swap", scores["D"]),
        ("7", "prediction", None, ignored, None, "dog", None, None, 2, "small", "ignored", scores["P"]),
    ]


@pytest.mark.parametrize(("area", "size"), [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large")])
def test_sizes_are_those_of_coco(area, size):
    truth = np.zeros((1, 9300), np.int32)
    truth[0, :area] = 1
    image = match_maps(truth, np.zeros_like(truth), {1: 0}, {})
    assert rows_of(image)[0][COLUMNS.index("size")] == size


def test_empty_sides():
    assert rows_of(match_drawing("....", "....")) == []
    assert [row[1] for row in rows_of(match_drawing("aa..", "...."))] == ["truth"]
    assert [row[1] for row in rows_of(match_drawing("....", "aa.."))] == ["prediction"]


def test_rows_count_what_the_metric_counts():
    rng = np.random.default_rng(0)
    for _ in range(50):
        image = match_maps(*random_maps(rng))
        rows = rows_of(image)
        side, error = COLUMNS.index("side"), COLUMNS.index("error")
        truth = [row[error] for row in rows if row[side] == "truth"]
        prediction = [row[error] for row in rows if row[side] == "prediction"]
        assert truth.count("found") == int((image.match >= 0).sum())
        assert len(truth) - truth.count("found") - truth.count("crowd") == int(image.missed.sum())
        assert len(prediction) - prediction.count("ignored") == int((image.state == 0).sum())
        assert {*truth, *prediction} <= set(ERRORS)


def test_the_file_holds_the_rows_in_groups(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(segment_table, "_ROWS_PER_GROUP", 10)
    rng = np.random.default_rng(1)
    images = [match_maps(*random_maps(rng)) for _ in range(12)]
    path = tmp_path / "new" / "segments.parquet"
    with SegmentTableWriter(path, LABELS) as writer:
        for number, image in enumerate(images):
            writer.add(number, image, classify_errors(image, IS_THING))
        assert not path.exists()
    table = parquet.read_table(path)
    expected = [row for number, image in enumerate(images) for row in rows_of(image, number)]
    assert [tuple(row[name] for name in COLUMNS) for row in table.to_pylist()] == expected
    assert parquet.read_metadata(path).num_row_groups > 3
    types = {field.name: str(field.type) for field in table.schema}
    assert types["truth_id"] == types["predicted_area"] == "int64"
    assert types["iou"] == types["score"] == "double"
    assert types["image"] == types["error"] == "string"
    assert [p.name for p in path.parent.iterdir()] == ["segments.parquet"]


def test_a_table_without_rows_is_a_table(tmp_path: Path):
    with SegmentTableWriter(tmp_path / "t.parquet", LABELS):
        pass
    assert parquet.read_table(tmp_path / "t.parquet").column_names == list(COLUMNS)


def test_nothing_is_left_of_a_failure(tmp_path: Path):
    image = match_drawing("aa", "aa")

    def interrupted() -> None:
        with SegmentTableWriter(tmp_path / "t.parquet", LABELS) as writer:
            writer.add(1, image, classify_errors(image, IS_THING))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_stays(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.write_text("mine")
    with pytest.raises(PansightError, match=r"t\.parquet: expected no such file yet"), SegmentTableWriter(path, LABELS):
        pass
    assert path.read_text() == "mine"
    with SegmentTableWriter(path, LABELS, overwrite=True):
        pass
    assert parquet.read_table(path).num_rows == 0


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.mkdir()
    with (
        pytest.raises(PansightError, match=r"t\.parquet: cannot be written"),
        SegmentTableWriter(path, LABELS, overwrite=True),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(PansightError) as error, SegmentTableWriter(tmp_path / "t.parquet", LABELS):
        pass
    assert str(error.value).endswith("expected pyarrow to write Parquet, found none; install the extra pansight[table]")
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
import numpy as np
import psutil
from pansight.metrics.panoptic import boundary, dagger, errors, segment_table
from pansight.metrics.panoptic.matching import SegmentTable, match_tables
from pansight.ops.maps.overlap import Overlaps
from pansight.types import LabelSpace
assert "torch" not in sys.modules and "pyarrow" not in sys.modules
ids = np.arange(1, 41)
table = SegmentTable(ids, ids % 2, ids < 0, ids / 41)
image = match_tables(table, table, Overlaps(ids, ids, ids * 100))
labels = LabelSpace.from_names(["a", "b"])
found = errors.classify_errors(image, np.array([True, True]))
def memory():
    return psutil.Process().memory_info().rss / 2**20
with segment_table.SegmentTableWriter(sys.argv[1], labels) as writer:
    for number in range(3000):
        writer.add(number, image, found)
        if number == 1000:
            early = memory()
    print(memory() - early, memory())
"""


def test_memory_is_flat_and_torch_stays_out(tmp_path: Path):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "t.parquet")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    growth, last = map(float, result.stdout.split())
    assert growth < 8  # MiB in 2,000 images of 40 segments
    assert last < 150
