"""Images of a truth beside those of a prediction: who meets whom, what is read, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from panoptic_tree import Drawn, drawn, random_images, write_side

from pansight.errors import PansightError
from pansight.metrics.files.class_map import read_class_map
from pansight.metrics.files.pairs import Pair, PanopticPairs
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.files.score import Figures, score
from pansight.ops.maps.label_png import PairCounter

CAT_AND_SKY = drawn([[5, 5, 5], [5, 9, 9]], {5: 17, 9: 187})


def pairs_of(folder, truth: list[Drawn], prediction: list[Drawn], names: bool = False, strict=False) -> PanopticPairs:
    gt, pred = write_side(folder / "gt.json", truth), write_side(folder / "pred.json", prediction)
    return opened(gt, pred, names, strict)


def opened(gt, pred, names: bool = False, strict: bool = False) -> PanopticPairs:
    truth = PanopticFile(gt)
    prediction = PanopticFile(pred, None if names else truth.labels)
    mapping = read_class_map("names", prediction.labels, truth.labels) if names else None
    return PanopticPairs(truth, gt.with_suffix(""), prediction, pred.with_suffix(""), mapping, strict)


def read(pairs: PanopticPairs, index: int = 0, maps: bool = False) -> Pair:
    return pairs.read(index, PairCounter(), maps)


def test_partners_are_found_by_image_id(tmp_path):
    truth = [CAT_AND_SKY._replace(image_id=i) for i in (3, "a", 1)]
    prediction = [CAT_AND_SKY._replace(image_id=i) for i in ("more", 1, "a", 2, 3)]
    pairs = pairs_of(tmp_path, truth, prediction)
    assert len(pairs) == 3
    for index, image in enumerate(truth):
        pair = read(pairs, index)
        assert (pair.image_id, pair.file_name, pair.size) == (image.image_id, f"{image.image_id}.png", (2, 3))
        assert pair.match.iou.tolist() == [1.0, 1.0]
        assert pair.truth_ids is None is pair.prediction_ids
        assert pair.stale_areas == 0


def test_predictions_of_other_images_need_no_file(tmp_path):
    pairs = pairs_of(tmp_path, [CAT_AND_SKY], [CAT_AND_SKY, CAT_AND_SKY._replace(image_id="gone")])
    (tmp_path / "pred" / "gone.png").unlink()
    assert score(pairs, Figures()).record()["All"]["pq"] == 1.0


def test_a_missing_prediction_is_told_before_anything_is_read(tmp_path):
    gt = write_side(tmp_path / "gt.json", [CAT_AND_SKY, CAT_AND_SKY._replace(image_id=2)])
    pred = write_side(tmp_path / "pred.json", [CAT_AND_SKY])
    with pytest.raises(PansightError, match=r"pred\.json: expected an annotation for every image .*, found none for 2"):
        opened(gt, pred)


def test_maps_on_demand_in_the_ids_of_the_tables(tmp_path):
    """With a class map they hold what was scored: void where a class has no counterpart."""
    prediction = drawn([[5, 6, 6], [5, 9, 8]], {5: 17, 6: 187, 9: 187, 8: 193})
    pairs = pairs_of(tmp_path, [CAT_AND_SKY], [prediction])
    pair = read(pairs, maps=True)
    assert pair.truth_ids is not None
    assert pair.prediction_ids is not None
    assert pair.truth_ids.tolist() == CAT_AND_SKY.ids.tolist()
    assert pair.prediction_ids.tolist() == prediction.ids.tolist()

    pred = write_side(tmp_path / "pred.json", [prediction], [{"id": 17, "name": "cat", "isthing": 1},
        {"id": 187, "name": "sky", "isthing": 0}, {"id": 193, "name": "meadow", "isthing": 0}])  # fmt: skip
    pair = read(opened(tmp_path / "gt.json", pred, names=True), maps=True)
    assert pair.prediction_ids is not None
    assert pair.prediction_ids.tolist() == [[5, 6, 6], [5, 9, 0]]
    assert pair.match.prediction.ids.tolist() == [5, 6, 9]
    assert pair.match.prediction_area.tolist() == [2, 2, 1]


@pytest.mark.parametrize("names", [False, True])
def test_stale_areas_are_counted_and_change_nothing(tmp_path, names):
    truth = drawn([[5, 5, 5], [5, 9, 9], [4, 4, 4]], {5: 17, 9: 187, 4: 18})
    right = read(pairs_of(tmp_path, [truth], [truth], names))
    for row, area in zip(truth.segments, (1000, 2.5, None)):
        row["area"] = area
    pair = read(pairs_of(tmp_path, [truth], [truth], names))
    assert (right.stale_areas, pair.stale_areas) == (0, 2)  # none stated is none wrong
    assert pair.match.iou.tolist() == right.match.iou.tolist() == [1.0] * 3


def test_strict_compatibility_trusts_the_areas(tmp_path):
    truth = drawn([[5, 5, 5, 5]], {5: 17})
    prediction = drawn([[5, 5, 5, 0]], {5: 17})
    truth.segments[0]["area"] = 3.5
    pairs = pairs_of(tmp_path, [truth], [prediction], strict=True)
    assert read(pairs).match.iou.tolist() == [3 / 3.5]
    assert read(pairs).stale_areas == 0
    truth.segments[0]["area"] = 6
    assert read(pairs_of(tmp_path, [truth], [prediction], strict=True)).match.missed.tolist() == [True]
    del truth.segments[0]["area"]
    with pytest.raises(PansightError, match=r"image 1 .*: truth: segment 5: expected an area in the JSON, found none"):
        read(pairs_of(tmp_path, [truth], [prediction], strict=True))
    truth.segments[0]["area"] = 0
    with pytest.raises(PansightError, match=r"image 1 .*: truth: segment 5: expected an area near its 4 pixels, found"):
        read(pairs_of(tmp_path, [truth], [prediction], strict=True))


def test_strict_compatibility_with_ids_that_only_the_png_has(tmp_path):
    """All other figures, which panopticapi does not have, take them for void."""
    truth = drawn([[5, 5, 5, 7, 7, 7, 7]], {5: 17})
    prediction = drawn([[5, 5, 5, 5, 6, 6, 6]], {5: 17, 6: 18})
    with pytest.raises(PansightError, match="truth: expected only ids of its segment table, found 7 in the map"):
        read(pairs_of(tmp_path, [truth], [prediction]))
    pairs = pairs_of(tmp_path, [truth], [prediction], strict=True)
    pair = read(pairs, maps=True)
    assert pair.truth_ids is not None
    assert pair.truth_ids.tolist() == [[5, 5, 5, 0, 0, 0, 0]]
    record = score(pairs, Figures(boundary=True, instances=True)).record()
    assert record["per_class"]["17"]["iou"] == 3 / 4  # 7 is no void
    assert (record["per_class"]["18"]["fp"], record["semantic"]["miou"]) == (1, 1.0)
    assert record["instances"]["mask"]["ap"] is not None


# --- files -----------------------------------------------------------------------------------------------------------


def test_sizes_that_differ(tmp_path):
    other = drawn([[5, 5], [5, 9], [5, 5]], {5: 17, 9: 187})
    with pytest.raises(PansightError, match=r"pred/1\.png: expected the size 2×3 of .*gt/1\.png, found 3×2"):
        read(pairs_of(tmp_path, [CAT_AND_SKY], [other]))


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ({5: 17}, "expected only ids of its segment table, found 9 in the map"),
        ({5: 17, 9: 187, 4: 18}, "segment 4: expected at least one pixel, found none"),
    ],
)
def test_tables_that_do_not_fit_the_map_name_image_and_files(tmp_path, segments, words):
    with pytest.raises(PansightError, match=rf"^image 1 \(.*gt/1\.png, .*pred/1\.png\): prediction: {words}"):
        read(pairs_of(tmp_path, [CAT_AND_SKY], [drawn(CAT_AND_SKY.ids, segments)]))


def test_a_truth_segment_without_a_pixel_is_missed(tmp_path):
    truth = drawn(CAT_AND_SKY.ids, {5: 17, 9: 187, 4: 18})
    assert read(pairs_of(tmp_path, [truth], [CAT_AND_SKY])).match.missed.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "name",
    ["../gt/1.png", "/etc/passwd", "a/../../gt/1.png", "..\\gt\\1.png", "C:1.png", "", "..", ".", "1.png\0", "a/b.png"],
)
@pytest.mark.parametrize("side", ["gt", "pred"])
def test_hostile_file_names(tmp_path, name, side):
    pairs_of(tmp_path, [CAT_AND_SKY], [CAT_AND_SKY])
    path = tmp_path / f"{side}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["annotations"][0]["file_name"] = name
    path.write_text(json.dumps(content), encoding="utf-8")
    words = r"expected a file name|expected the PNG of image 1|cannot be read"
    with pytest.raises(PansightError, match=words) as caught:
        read(opened(tmp_path / "gt.json", tmp_path / "pred.json"))
    assert "\n" not in str(caught.value)


def test_pngs_in_folders_below(tmp_path):
    pairs_of(tmp_path, [CAT_AND_SKY], [CAT_AND_SKY])
    for side in ("gt", "pred"):
        (tmp_path / side / "a").mkdir()
        (tmp_path / side / "1.png").rename(tmp_path / side / "a" / "1.png")
        path = tmp_path / f"{side}.json"
        path.write_text(path.read_text(encoding="utf-8").replace("1.png", "a/1.png"), encoding="utf-8")
    assert read(opened(tmp_path / "gt.json", tmp_path / "pred.json")).match.iou.tolist() == [1.0, 1.0]


def test_missing_and_damaged_pngs(tmp_path):
    pairs = pairs_of(tmp_path, [CAT_AND_SKY], [CAT_AND_SKY])
    png = tmp_path / "pred" / "1.png"
    data = png.read_bytes()
    for content, words in ((data[:40], "truncated"), (b"", "an empty file"), (b"\xff\xd8\xff", "a JPEG")):
        png.write_bytes(content)
        with pytest.raises(PansightError, match=rf"pred/1\.png: .*{words}"):
            read(pairs)
    png.unlink()
    with pytest.raises(PansightError, match=r"pred/1\.png: expected the PNG of image 1, found no such file"):
        read(pairs)
    png.mkdir()
    with pytest.raises(PansightError, match=r"pred/1\.png: cannot be read: Is a directory"):
        read(pairs)


def test_files_stay_as_they_are(tmp_path):
    images = random_images(np.random.default_rng(0), 4)
    pairs = pairs_of(tmp_path, *images)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*.*")}
    score(pairs, Figures(boundary=True, instances=True), threads=2)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*.*")} == before
