"""Huge images: the stitched result is that of the whole image, resumes after a kill, and bad inputs are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import rasterio
import tifffile
import zarr
from huge_scenes import COLOURS, LABELS, Oracle, classes_of, full_disk, scene, write_tiff

import pansight
from pansight.apps.cli import main
from pansight.apps.photos.huge import Tiling, predict_huge, result_lines, unfinished
from pansight.data.images import write_png
from pansight.errors import Interrupted, PansightError
from pansight.ops.fusion.components import connected_components
from pansight.types import PanopticSegmentation

SIZE = (230, 300)
TILING = Tiling(tile=96, overlap=32)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    return write_tiff(tmp_path_factory.mktemp("images") / "field.tif", scene(*SIZE))


def whole() -> PanopticSegmentation:
    """The map of the image seen at once."""
    return connected_components(classes_of(scene(*SIZE)), LABELS)


def read_map(path: Path) -> np.ndarray:
    return tifffile.imread(path)


def rows_of(path: Path) -> list[dict]:
    return pyarrow.parquet.read_table(path).to_pylist()


def assert_same_segments(found: np.ndarray, expected: PanopticSegmentation, rows: list[dict]) -> None:
    """The same pixels are together, under ids 1 … N, and the table says what each id is."""
    ids = expected.ids.numpy()
    pairs = np.unique(np.stack([found.ravel(), ids.ravel()]), axis=1).T
    assert len(pairs) == len(np.unique(found)) == len(np.unique(ids))
    category = {segment.id: LABELS[segment.category] for segment in expected.segments}
    table = {row["id"]: row for row in rows}
    assert sorted(table) == list(range(1, len(category) + 1))
    for new, old in pairs.tolist():
        if new == 0:
            continue
        row, (ys, xs) = table[new], np.nonzero(ids == old)
        assert (row["name"], row["isthing"]) == (category[old].name, category[old].is_thing)
        assert row["category_id"] == category[old].source_id
        assert row["area"] == len(ys)
        assert row["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
        assert row["score"] == 1.0


def test_the_stitched_map_is_that_of_the_whole_image(image, tmp_path) -> None:
    """Cells on seams and corners are one, a fibre through all tiles too, and each stuff class is one segment."""
    result = predict_huge(Oracle(), image, tmp_path / "map.tif", TILING)
    assert result.tiles == 4 * 5
    assert_same_segments(read_map(result.file), whole(), rows_of(result.table))
    with rasterio.open(image) as before, rasterio.open(result.file) as after:
        assert after.transform == before.transform
        assert after.crs == before.crs
        assert after.dtypes == ("uint32",)
        assert after.nodata == 0
        assert after.profile["tiled"]
        assert after.compression.name == "deflate"
    assert not list(tmp_path.glob("*.unfinished"))
    assert result.classes["fibre"] == 1
    lines = result_lines(result)
    assert "map.tif: 300×230, 20 tiles" in lines
    assert "1 fibre" in lines


def test_zarr_says_the_same(image, tmp_path) -> None:
    result = pansight.predict_huge(Oracle(), image, tmp_path / "map.zarr", pansight.Tiling(96, 32))
    array = zarr.open(str(result.file), mode="r")
    assert array.chunks == (512, 512)
    assert array.attrs["transform"] == [0.5, 0, 400000, 0, -0.5, 5800000]
    assert_same_segments(array[:], whole(), rows_of(result.table))


def test_a_folder_gets_a_file_named_as_the_image(image, tmp_path) -> None:
    result = predict_huge(Oracle(), image, tmp_path / "out", TILING)
    assert result.file == tmp_path / "out" / "field.tif"
    assert result.table == tmp_path / "out" / "field.parquet"


@pytest.mark.parametrize("kind", ["semantic", "averaged"])
def test_semantic_maps_hold_category_ids(kind: str, image, tmp_path, monkeypatch) -> None:
    """By averaged class scores; and by the halves of the strips, for a model that has none."""
    if kind == "semantic":
        monkeypatch.setattr("pansight.apps.photos.huge.asked.ClassScorer", int)
    result = predict_huge(Oracle("semantic"), image, tmp_path / "map.tif", TILING)
    classes = classes_of(scene(*SIZE)).numpy()
    found = read_map(result.file)
    assert found.dtype == np.uint8
    assert np.array_equal(found, np.array([c.source_id for c in LABELS])[classes])
    rows = rows_of(result.table)
    assert sum(row["area"] for row in rows) == classes.size
    assert sorted(row["id"] for row in rows) == [1, 2, 3, 4]
    assert all(row["score"] is None for row in rows)


def test_class_scores_are_averaged_where_tiles_overlap(tmp_path) -> None:
    """Two tiles of 64 share 32 columns, in which the left one is the surer."""

    class Torn(Oracle):
        def class_scores(self, images):
            (scores,) = super().class_scores(images)
            scores[:] = 0
            side = int(images[0][0, 0, 0])  # 200 in the left tile, 40 in the right one
            scores[0 if side == 200 else 1] = 0.9 if side == 200 else 0.6
            return [scores]

    photo = np.zeros((64, 96, 3), np.uint8)
    photo[:, :32], photo[:, 32:] = COLOURS[0], COLOURS[1]
    write_png(tmp_path / "two.png", photo)
    result = predict_huge(Torn("semantic"), tmp_path / "two.png", tmp_path / "map.tif", Tiling(64, 32))
    assert read_map(result.file)[5].tolist() == [1] * 64 + [2] * 32


def test_objects_as_coco_results(image, tmp_path) -> None:
    from pycocotools import mask as coco

    result = predict_huge(Oracle("instances"), image, tmp_path / "found.json", TILING)
    assert result.table is None
    content = json.loads(result.file.read_text())
    assert content["images"] == [{"id": 1, "file_name": "field.tif", "height": SIZE[0], "width": SIZE[1]}]
    expected = whole()
    things = [segment for segment in expected.segments if LABELS[segment.category].is_thing]
    assert len(content["annotations"]) == len(things) == sum(result.classes.values())
    ids = expected.ids.numpy()
    masks = {coco.encode(np.asfortranarray(ids == s.id, np.uint8))["counts"].decode(): s for s in things}
    for row in content["annotations"]:
        segment = masks.pop(row["segmentation"]["counts"])
        assert row["category_id"] == LABELS[segment.category].source_id
        assert row["area"] == (ids == segment.id).sum()
        assert row["bbox"] == coco.toBbox(row["segmentation"]).tolist()
    assert not masks


def test_objects_as_polygons_on_the_map(image, tmp_path) -> None:
    result = predict_huge(Oracle("instances"), image, tmp_path / "found.geojson", TILING)
    content = json.loads(result.file.read_text())
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    drawn = np.zeros(SIZE, np.int32)
    with rasterio.open(image) as file:
        from rasterio.features import rasterize

        shapes = [(feature["geometry"], feature["id"]) for feature in content["features"]]
        drawn = rasterize(shapes, SIZE, transform=file.transform, dtype="int32")
    ids = whole().ids.numpy()
    is_thing = np.isin(ids, [s.id for s in whole().segments if LABELS[s.category].is_thing])
    assert np.array_equal(drawn > 0, is_thing)
    assert len(np.unique(np.stack([drawn[is_thing], ids[is_thing]]), axis=1).T) == len(shapes)


def test_pixels_without_a_value_are_void_and_empty_tiles_are_not_predicted(tmp_path) -> None:
    photo = scene(*SIZE)
    photo[:, 150:] = 255
    image = write_tiff(tmp_path / "half.tif", photo, nodata=255)
    oracle = Oracle()
    result = predict_huge(oracle, image, tmp_path / "map.tif", TILING)
    found = read_map(result.file)
    assert (found[:, 150:] == 0).all()
    assert (found[:, :150] > 0).all()
    assert oracle.calls == 4 * 3  # two columns of tiles see nothing


# --- resuming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["panoptic", "semantic", "instances"])
def test_a_killed_prediction_goes_on_to_the_same_result(kind: str, image, tmp_path) -> None:
    name = "found.json" if kind == "instances" else "map.tif"
    straight = predict_huge(Oracle(kind), image, tmp_path / "straight" / name, TILING)
    with pytest.raises(ZeroDivisionError):
        predict_huge(Oracle(kind, 13, ZeroDivisionError()), image, tmp_path / name, TILING)
    assert not (tmp_path / name).exists()
    with pytest.raises(PansightError, match="found one; add --resume to go on with it, --overwrite to begin anew"):
        predict_huge(Oracle(kind), image, tmp_path / name, TILING)
    again = Oracle(kind)
    resumed = predict_huge(again, image, tmp_path / name, TILING, resume=True)
    assert again.calls == 10  # of 20 tiles two rows of five were done
    assert resumed.file.read_bytes() == straight.file.read_bytes()
    assert resumed.classes == straight.classes
    if resumed.table:
        assert rows_of(resumed.table) == rows_of(straight.table)
    once_more = predict_huge(again, image, tmp_path / name, TILING, resume=True)
    assert once_more.was_finished
    assert again.calls == 11  # the least tile alone, which tells what the model gives
    assert "finished before" in result_lines(once_more)


def test_resuming_with_other_settings_is_refused(image, tmp_path) -> None:
    with pytest.raises(ZeroDivisionError):
        predict_huge(Oracle("panoptic", 13, ZeroDivisionError()), image, tmp_path / "map.tif", TILING)
    with pytest.raises(PansightError, match="expected overlap 32, as before, found 16; begin anew with --overwrite"):
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING._replace(overlap=16), resume=True)
    result = predict_huge(Oracle(), image, tmp_path / "map.tif", TILING._replace(overlap=16), overwrite=True)
    assert_same_segments(read_map(result.file), whole(), rows_of(result.table))


def test_ctrl_c_keeps_what_is_done_and_says_so(image, tmp_path) -> None:
    import signal

    class Interrupting(Oracle):
        def predict(self, image, proposals=None, **options):
            if self.calls == 6:
                signal.raise_signal(signal.SIGINT)
            return super().predict(image, proposals, **options)

    with pytest.raises(
        Interrupted, match="interrupted after 1 of 4 rows of tiles, which are kept; go on with --resume"
    ):
        predict_huge(Interrupting(), image, tmp_path / "map.tif", TILING)
    result = predict_huge(Oracle(), image, tmp_path / "map.tif", TILING, resume=True)
    assert_same_segments(read_map(result.file), whole(), rows_of(result.table))


@pytest.mark.parametrize("writer", ["unfinished.np.savez_compressed", "write_map"])
def test_a_full_disk_is_one_line_and_the_work_is_kept(writer: str, image, tmp_path, monkeypatch) -> None:
    calls: list[int] = []
    real = unfinished.np.savez_compressed

    def full(*args, **options):
        calls.append(1)
        if writer != "write_map" and len(calls) < 3:
            return real(*args, **options)
        raise full_disk()

    monkeypatch.setattr(f"pansight.apps.photos.huge.{writer}", full)
    with pytest.raises(
        PansightError, match=r"cannot be written: No space left on device; .*go on with --resume"
    ) as told:
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING)
    assert told.value.code == "cannot_write"
    assert [path.name for path in tmp_path.iterdir()] == ["map.tif.unfinished"]
    monkeypatch.undo()
    again = Oracle()
    result = predict_huge(again, image, tmp_path / "map.tif", TILING, resume=True)
    assert again.calls == (0 if writer == "write_map" else 10)
    assert_same_segments(read_map(result.file), whole(), rows_of(result.table))


def test_a_folder_of_the_users_own_is_left_alone(image, tmp_path) -> None:
    mine = tmp_path / "map.tif.unfinished" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(
        PansightError, match=r"expected a folder of an unfinished prediction, or none, found mine\.txt in it"
    ):
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING, overwrite=True)
    assert mine.read_text() == "mine"


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 16}, "--tile: expected at least 32 pixels for unet, found 16"),
        ({"overlap": 60}, "--overlap: expected 0 … 48 pixels, half of a tile, found 60"),
        ({"seam_iou": 0.0}, "--seam-iou: expected above 0, at most 1, found 0"),
        ({"scales": (0.0,)}, "--scales: expected factors of 0.1 … 10, found 0"),
        ({"bands": (1, 2, 4)}, "--bands: expected one or three bands, each 1 … 3, found 1, 2, 4"),
        ({"stretch": "98,2"}, "--stretch: expected two percentiles such as 2,98, or two values such as 0:3000"),
    ],
)
def test_impossible_settings(changes: dict, message: str, image, tmp_path) -> None:
    with pytest.raises(PansightError, match=message):
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING._replace(**changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("panoptic", "map.json", r"a name that ends in \.tif or \.tiff or \.zarr for a panoptic map, found \.json"),
        ("instances", "map.tif", r"\.json or \.geojson for objects, which may overlap, found \.tif"),
    ],
)
def test_a_name_of_another_kind(kind: str, name: str, message: str, image, tmp_path) -> None:
    with pytest.raises(PansightError, match=message):
        predict_huge(Oracle(kind), image, tmp_path / name, TILING)


def test_what_stands_there_is_not_replaced_unasked(image, tmp_path) -> None:
    (tmp_path / "map.tif").write_text("mine")
    with pytest.raises(PansightError, match=r"map\.tif: expected no prediction yet, found one; add --overwrite"):
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING)
    assert (tmp_path / "map.tif").read_text() == "mine"
    (tmp_path / "other.parquet").write_text("mine")
    with pytest.raises(PansightError, match=r"other\.parquet: expected no prediction yet, found one"):
        predict_huge(Oracle(), image, tmp_path / "other.tif", TILING)
    with pytest.raises(PansightError, match="another file than the image itself"):
        predict_huge(Oracle(), image, image, TILING, overwrite=True)
    assert predict_huge(Oracle(), image, tmp_path / "map.tif", TILING, overwrite=True).classes["fibre"] == 1


def test_pretended_kinds_of_packages_that_are_missing(image, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pansight.apps.photos.huge.asked.find_spec", lambda name: None)
    message = r"expected pyarrow to be installed, found none; install the extra pansight\[huge\]"
    with pytest.raises(PansightError, match=message):
        predict_huge(Oracle(), image, tmp_path / "map.tif", TILING)


# --- the command, with real models -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "unet"
    Oracle().save(folder)
    return folder


def test_the_command(weights, image, tmp_path, capsys) -> None:
    out = tmp_path / "map.tif"
    words = ["predict", str(weights), str(image), "--tile", "192", "--overlap", "32", "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert f"{out}: 300×230, 4 tiles, " in said
    assert f"table      {tmp_path / 'map.parquet'}" in said
    assert main(words) == 2
    assert "expected no prediction yet, found one; add --overwrite to replace it" in capsys.readouterr().err
    plain = read_map(out)
    assert main([*words, "--flip", "--scales", "0.5,1", "--overwrite"]) == 0
    averaged = read_map(out)
    assert averaged.shape == plain.shape
    assert (averaged != plain).any()


def test_bands_and_stretch_of_the_command(weights, tmp_path, capsys) -> None:
    image = write_tiff(tmp_path / "bands.tif", np.arange(64 * 64 * 4, dtype=np.uint16).reshape(64, 64, 4))
    words = ["predict", str(weights), str(image), "--tile", "64", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "found 4 of uint16; name three of them, red first: --bands 4,3,2 --stretch 2,98" in capsys.readouterr().err
    assert main([*words, "--bands", "4,3,2", "--stretch", "0:3000", "--task", "panoptic"]) == 0
    said = capsys.readouterr().out
    assert "stretched  bands 4,3,2 from 0 … 3000, 0 … 3000, 0 … 3000 to 0 … 255" in said
    assert read_map(tmp_path / "out" / "bands.tif").dtype == np.uint32


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--overlap", "32"], "--overlap: expected --tile, the side of the tiles, such as 1024, found none"),
        (["--resume"], "--resume: expected --tile"),
        (["--tile", "64", "--bands", "red"], "--bands: expected numbers such as 4,3,2, found red"),
        (["--tile", "64", "--out", "a.tif", "b.png"], "--out: expected a folder for several images, found a.tif"),
        (["--tile", "64", "--every", "2"], "--every: expected photos that are predicted whole, found --tile"),
        (["--tile", "64", "--no-names"], "--no-names: expected photos that are predicted whole, found --tile"),
        (["--tile", "8"], "--tile: expected at least 32 pixels for unet, found 8"),
    ],
)
def test_flags_that_do_not_go_together(words: list[str], message: str, weights, image, tmp_path, capsys) -> None:
    assert main(["predict", str(weights), str(image), *words]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_image_that_is_missing_is_told_before_the_model_is_loaded(tmp_path, capsys) -> None:
    assert main(["predict", str(tmp_path / "no model"), str(tmp_path / "none.tif"), "--tile", "64"]) == 2
    assert "none.tif: expected an image, found no such file" in capsys.readouterr().err
