"""Predictions of one label space against a truth of another, beside copies that were mapped by hand."""

from __future__ import annotations

import numpy as np
import pytest
from panoptic_tree import CATEGORIES, Drawn, drawn, random_images, write_side

from pansight.data.images import write_png
from pansight.errors import PansightError
from pansight.files import write_json
from pansight.metrics.files.class_map import map_overlaps, map_table, read_class_map, read_names
from pansight.metrics.files.pairs import PanopticPairs
from pansight.metrics.files.panoptic_json import UNMAPPED, PanopticFile
from pansight.metrics.files.score import Figures, score
from pansight.metrics.panoptic.matching import SegmentTable
from pansight.ops.idmap import ids_to_rgb
from pansight.ops.maps.overlap import Overlaps
from pansight.types import LabelSpace

TRUTH = LabelSpace.from_names(["vehicle", "person"], ["road", "sky"])
FOUND = LabelSpace.from_names(["car", "van", "person", "kite"], ["road", "asphalt", "cloud"])


def mapped(tmp_path, text: str | None, prediction=FOUND, truth=TRUTH):
    if text is None:
        return read_class_map("names", prediction, truth)
    path = tmp_path / "map.toml"
    path.write_text(text, encoding="utf-8")
    return read_class_map(path, prediction, truth)


def names_of(index: np.ndarray) -> list[str | None]:
    return [None if k == UNMAPPED else TRUTH.names[k] for k in index.tolist()]


def test_by_name(tmp_path):
    found = mapped(tmp_path, None)
    assert names_of(found.prediction) == [None, None, "person", None, "road", None, None]
    assert names_of(found.truth) == [None, "person", "road", None]
    assert found.unmapped(FOUND, TRUTH) == (["car", "van", "kite", "asphalt", "cloud"], ["vehicle", "sky"])


def test_by_a_toml_file(tmp_path):
    text = 'car = "vehicle"\nvan = "vehicle"\nasphalt = "road"\ncloud = "sky"\nroad = ""'
    found = mapped(tmp_path, text)
    assert names_of(found.prediction) == ["vehicle", "vehicle", "person", None, None, "road", "sky"]
    assert names_of(found.truth) == list(TRUTH.names)
    assert found.unmapped(FOUND, TRUTH) == (["kite", "road"], [])


def test_a_thing_may_become_stuff(tmp_path):
    assert names_of(mapped(tmp_path, 'kite = "sky"').prediction)[3] == "sky"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('lorry = "vehicle"', "unknown predicted class in .*map.toml 'lorry'; known: asphalt, car, cloud"),
        ('car = "vehicles"', "unknown class of the truth in .*map.toml 'vehicles'; known: person, road, sky, vehicle"),
        ('asphalt = "person"', "expected a thing for 'person', found stuff 'asphalt'; map it to void: 'asphalt' = ''"),
        ("car = 5", "expected a class of the truth for 'car', found 5"),
        ('[car]\nto = "vehicle"', "expected a class of the truth for 'car', found {'to': 'vehicle'}"),
        ('car = ["vehicle"]', "expected a class of the truth for 'car', found"),
        ("car =", "expected TOML, found"),
        ('car = "person"\ncar = "vehicle"', "expected TOML, found"),
        ("a = " + "[" * 5000, "expected TOML, found"),
        ("a = 1" + "0" * 5000, "expected TOML, found"),
        ('person = ""\nroad = ""', "expected classes of the truth, found none among car, van, person, kite, road …"),
    ],
)
def test_faults_in_one_line(tmp_path, text, words):
    with pytest.raises(PansightError, match=words) as caught:
        mapped(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_unreadable_maps(tmp_path):
    with pytest.raises(PansightError, match=r"expected a class map \(TOML\) or the word names"):
        read_class_map(tmp_path / "none.toml", FOUND, TRUTH)
    with pytest.raises(PansightError, match="cannot be read: Is a directory"):
        read_class_map(tmp_path, FOUND, TRUTH)
    (tmp_path / "map.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PansightError, match="expected TOML, found"):
        read_class_map(tmp_path / "map.toml", FOUND, TRUTH)


def test_tables_and_overlaps():
    """Stuff joins its first segment with the highest score; what has no counterpart becomes void."""
    table = SegmentTable(
        np.array([5, 6, 7, 8, 9]), np.array([0, 4, 5, 3, 5]), np.zeros(5, bool), np.array([0.1, 0.2, 0.9, 0.4, 0.3])
    )
    index = np.array([0, 0, 1, UNMAPPED, 2, 2, 3])
    result, to = map_table(table, index, np.array([False, False, True, True]))
    assert result.ids.tolist() == [5, 6]
    assert result.categories.tolist() == [0, 2]
    assert result.scores.tolist() == [0.1, 0.9]
    assert to == {7: 6, 8: 0, 9: 6}
    assert table.scores.tolist() == [0.1, 0.2, 0.9, 0.4, 0.3]
    overlaps = Overlaps(*(np.array(c, np.int64) for c in ((0, 1, 1, 1, 2), (5, 6, 7, 8, 9), (1, 2, 3, 4, 5))))
    found = map_overlaps(overlaps, {2: 1}, to)
    assert [c.tolist() for c in found] == [[0, 1, 1], [5, 0, 6], [1, 4, 10]]


@pytest.mark.parametrize("truth_order", [slice(None), slice(None, None, -1)])
def test_equal_classes_by_name_change_no_figure(tmp_path, truth_order):
    """Stuff that was predicted in pieces stays in pieces, as it is scored without a map."""
    rng = np.random.default_rng(4)
    labels = LabelSpace.from_names(["car"], ["road", "sky"])
    rows = [{"id": c.source_id, "name": c.name, "isthing": int(c.is_thing)} for c in labels]
    folders = {}
    for side, categories in (("gt", rows[truth_order]), ("pred", rows)):
        annotations, folders[side] = [], tmp_path / side
        folders[side].mkdir()
        for image in range(4):
            ids = np.kron(rng.integers(0, 7, (4, 5)), np.ones((3, 3), int)).astype(np.int32)
            write_png(folders[side] / f"{image}.png", ids_to_rgb(ids))
            numbers = [n for n in np.unique(ids).tolist() if n]
            segments = [{"id": n, "category_id": rows[n % 3]["id"], "score": 1 - n / 10} for n in numbers]
            annotations.append({"image_id": image, "file_name": f"{image}.png", "segments_info": segments})
        write_json(tmp_path / f"{side}.json", {"annotations": annotations, "categories": categories})
    truth = PanopticFile(tmp_path / "gt.json")
    plain = PanopticPairs(truth, folders["gt"], PanopticFile(tmp_path / "pred.json", truth.labels), folders["pred"])
    prediction = PanopticFile(tmp_path / "pred.json")
    by_name = read_class_map("names", prediction.labels, truth.labels)
    mapped_pairs = PanopticPairs(truth, folders["gt"], prediction, folders["pred"], by_name)
    records = [score(pairs, Figures(boundary=True)).record() for pairs in (plain, mapped_pairs)]
    assert records[0] == records[1]
    assert records[0]["All"]["n"] == 3


# --- beside copies that were mapped by hand --------------------------------------------------------------------------

FOUND_THINGS = ("person", "rider", "car", "van", "truck", "bus", "train", "bicycle", "motorcycle", "dog", "kite")
FOUND_STUFF = ("road", "asphalt", "sidewalk", "building", "wall", "cloud", "sky", "terrain")
NINETEEN = [
    {"id": 50 + k, "name": name, "isthing": int(name in FOUND_THINGS)}
    for k, name in enumerate(FOUND_THINGS + FOUND_STUFF)
]
TRUE_THINGS = ("person", "vehicle", "cycle", "horse")
EIGHT = [
    {"id": 1 + k, "name": name, "isthing": int(name in TRUE_THINGS)}
    for k, name in enumerate((*TRUE_THINGS, "road", "construction", "sky", "grass"))
]
MAP = {
    "rider": "person", "car": "vehicle", "van": "vehicle", "truck": "vehicle", "bus": "vehicle", "train": "vehicle",
    "bicycle": "cycle", "motorcycle": "cycle", "dog": "", "kite": "sky", "asphalt": "road", "building": "construction",
    "wall": "construction", "cloud": "sky",
}  # fmt: skip
"""By name: person, road, sky. Void: dog, sidewalk, terrain; and horse and grass of the truth."""


def by_hand(images: list[Drawn], rows: list[dict], targets: list[dict], names: dict[str, str]) -> list[Drawn]:
    """Segments of the target classes; stuff painted as one segment; the rest erased."""
    name_of = {row["id"]: row["name"] for row in rows}
    target_of = {row["name"]: row for row in targets}
    result = []
    for image in images:
        ids, segments, stuff = image.ids.copy(), [], {}
        for row in image.segments:
            name = name_of[row["category_id"]]
            target = target_of.get(names.get(name, name))
            inside = image.ids == row["id"]
            if target is None:
                ids[inside] = 0
            elif target["isthing"]:
                segments.append(row | {"category_id": target["id"]})
            else:
                leader = stuff.setdefault(target["id"], row["id"])
                ids[inside] = leader
                if leader == row["id"]:
                    segments.append(row | {"category_id": target["id"]})
        result.append(Drawn(ids, segments, image.image_id))
    return result


def test_nineteen_classes_against_eight(tmp_path):
    rng = np.random.default_rng(0)
    images = random_images(rng, 40)
    for side, rows in zip(images, (EIGHT, NINETEEN)):
        for image in side:
            for row in image.segments:
                row["category_id"] = rows[int(rng.integers(0, len(rows)))]["id"]
    for truth, found in zip(*images):  # so that many segments match
        wanted = {row["id"]: row["category_id"] for row in truth.segments}
        source = {0: [0, 1], 1: [2, 3, 4, 5, 6], 2: [7, 8], 3: [9], 4: [11, 12], 5: [14, 15], 6: [10, 16, 17], 7: [18]}
        for row in found.segments:
            if rng.random() < 0.8 and row["id"] in wanted:
                row["category_id"] = 50 + int(rng.choice(source[wanted[row["id"]] - 1]))
    gt, pred = write_side(tmp_path / "gt.json", images[0], EIGHT), write_side(tmp_path / "p.json", images[1], NINETEEN)
    (tmp_path / "map.toml").write_text("\n".join(f'{a} = "{b}"' for a, b in MAP.items()), encoding="utf-8")
    truth, prediction = PanopticFile(gt), PanopticFile(pred)
    mapping = read_class_map(tmp_path / "map.toml", prediction.labels, truth.labels)
    assert mapping.unmapped(prediction.labels, truth.labels) == (["dog", "sidewalk", "terrain"], ["horse", "grass"])
    figures = Figures(boundary=True, instances=True)
    pairs = PanopticPairs(truth, gt.with_suffix(""), prediction, pred.with_suffix(""), mapping)
    record = score(pairs, figures, threads=2).record()

    kept = {"horse": "", "grass": ""}
    hand = write_side(tmp_path / "hand_gt.json", by_hand_truth(images[0], kept), EIGHT)
    hand_pred = write_side(tmp_path / "hand.json", by_hand(images[1], NINETEEN, EIGHT, MAP), EIGHT)
    truth = PanopticFile(hand)
    pairs = PanopticPairs(truth, hand.with_suffix(""), PanopticFile(hand_pred, truth.labels), hand_pred.with_suffix(""))
    assert record == score(pairs, figures).record()
    assert record["All"]["n"] == 6
    assert record["All"]["pq"] > 0.3


def by_hand_truth(images: list[Drawn], void: dict[str, str]) -> list[Drawn]:
    """The truth as it is but for the classes that become void."""
    gone = {row["id"] for row in EIGHT if row["name"] in void}
    result = []
    for image in images:
        ids = image.ids.copy()
        for row in image.segments:
            if row["category_id"] in gone:
                ids[ids == row["id"]] = 0
        result.append(Drawn(ids, [row for row in image.segments if row["category_id"] not in gone], image.image_id))
    return result


def test_the_same_label_space_by_name_changes_nothing(tmp_path):
    """But for stuff in several segments, which become one."""
    images = random_images(np.random.default_rng(1), 15)
    for image in images[1]:
        seen: set[int] = set()
        image.segments[:] = [
            row | {"category_id": 17} if row["category_id"] in seen or seen.add(row["category_id"]) else row
            for row in image.segments
        ]
    gt, pred = write_side(tmp_path / "gt.json", images[0]), write_side(tmp_path / "p.json", images[1], CATEGORIES[::-1])
    truth = PanopticFile(gt)
    folders = gt.with_suffix(""), pred.with_suffix("")
    plain = score(PanopticPairs(truth, folders[0], PanopticFile(pred, truth.labels), folders[1]), Figures()).record()
    prediction = PanopticFile(pred)
    mapping = read_class_map("names", prediction.labels, truth.labels)
    assert score(PanopticPairs(truth, folders[0], prediction, folders[1], mapping), Figures()).record() == plain


def test_ids_that_no_table_has_are_no_void(tmp_path):
    """Mapping must not hide what is an error without it."""
    for side in (0, 1):
        maps = [[[1, 1], [2, 2]], [[1, 1], [2, 2]]]
        maps[side][0][0] = 9
        gt = write_side(tmp_path / "gt.json", [drawn(maps[0], {1: 17, 2: 18})])
        pred = write_side(tmp_path / "p.json", [drawn(maps[1], {1: 17, 2: 18})])
        truth, prediction = PanopticFile(gt), PanopticFile(pred)
        mapping = read_class_map("names", prediction.labels, truth.labels)
        pairs = PanopticPairs(truth, gt.with_suffix(""), prediction, pred.with_suffix(""), mapping)
        with pytest.raises(PansightError, match="expected only ids of its segment table, found 9 in the map"):
            score(pairs, Figures())


def test_not_with_strict_compatibility(tmp_path):
    gt = write_side(tmp_path / "gt.json", [drawn([[1]], {1: 17})])
    truth = PanopticFile(gt)
    mapping = read_class_map("names", truth.labels, truth.labels)
    with pytest.raises(PansightError, match="strict compatibility: expected no class map"):
        PanopticPairs(truth, gt.with_suffix(""), truth, gt.with_suffix(""), mapping, strict=True)


def test_a_byte_order_mark_is_passed_over(tmp_path):
    """Editors of Windows write one."""
    (tmp_path / "map.toml").write_text("car = 'vehicle'\n", encoding="utf-8-sig")
    assert read_names(tmp_path / "map.toml") == {"car": "vehicle"}
