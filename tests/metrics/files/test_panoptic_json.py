"""The JSON of COCO panoptic files: what is read, and every kind of fault in one line."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from panoptic_tree import CATEGORIES

from pansight.errors import PansightError
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.types import LabelSpace

LABELS = LabelSpace.from_json(CATEGORIES)

SOUND = {
    "annotations": [
        {
            "image_id": 9,
            "file_name": "b.png",
            "segments_info": [
                {"id": 70_000, "category_id": 187, "area": 5, "iscrowd": 0, "bbox": [0, 0, 1, 1]},
                {"id": 3, "category_id": 17, "area": 2.5, "iscrowd": 1, "score": 0.25},
            ],
        },
        {"image_id": "eight", "file_name": "a.png", "segments_info": []},
        {"image_id": 7, "file_name": "c.png", "segments_info": [{"id": 1, "category_id": 18}]},
    ],
    "categories": CATEGORIES,
}


def read(tmp_path, content, labels=None) -> PanopticFile:
    path = tmp_path / "p.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return PanopticFile(path, labels)


def test_what_is_read(tmp_path):
    file = read(tmp_path, SOUND)
    assert file.labels == LABELS
    assert (len(file), file.image_ids, file.file_names) == (3, [9, "eight", 7], ["b.png", "a.png", "c.png"])
    assert [file.index(i) for i in (9, "eight", 7)] == [0, 1, 2]
    first = file.table(0)
    assert [each.tolist() for each in first] == [[70_000, 3], [2, 0], [False, True], [1.0, 0.25]]
    assert [each.dtype for each in first] == [np.int64, np.int64, bool, np.float64]
    assert [len(each) for each in file.table(1)] == [0, 0, 0, 0]
    assert [each.tolist() for each in file.table(2)] == [[1], [1], [False], [1.0]]
    assert [file.stated_areas(k).tolist() for k in range(3)] == [[5.0, 2.5], [], [-1.0]]
    assert file.has_scores


def test_without_a_score_and_with_the_labels_of_another_file(tmp_path):
    content = {"annotations": SOUND["annotations"][1:]}
    file = read(tmp_path, content, LABELS)
    assert not file.has_scores
    assert file.table(1).categories.tolist() == [1]
    assert read(tmp_path, SOUND, LabelSpace(LABELS)).table(0).categories.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("value", "crowd"), [(0, False), (1, True), (True, True), (False, False), (1.0, True), (None, False)]
)
def test_spellings_of_iscrowd(tmp_path, value, crowd):
    content = changed(lambda c: c["annotations"][2]["segments_info"][0].update(iscrowd=value))
    assert read(tmp_path, content).table(2).crowd.tolist() == [crowd]


def test_null_where_nothing_is_known(tmp_path):
    row = {"id": 1, "category_id": 18, "area": None, "iscrowd": None, "score": None}
    content = changed(lambda c: c["annotations"][2].update(segments_info=[row]))
    file = read(tmp_path, content)
    assert file.table(2).scores.tolist() == [1.0]
    assert file.stated_areas(2).tolist() == [-1.0]


def test_a_byte_order_mark(tmp_path):
    assert len(read(tmp_path, b"\xef\xbb\xbf" + json.dumps(SOUND).encode())) == 3


def test_no_image_at_all(tmp_path):
    file = read(tmp_path, {"annotations": [], "categories": CATEGORIES})
    assert len(file) == 0
    assert not file.has_scores


def test_many_classes(tmp_path):
    categories = [{"id": 3 * k, "name": str(k), "isthing": k % 2} for k in range(2_000)]
    rows = [{"id": 5, "category_id": 3 * 1_999}]
    content = {"annotations": [{"image_id": 1, "file_name": "x", "segments_info": rows}], "categories": categories}
    assert read(tmp_path, content).table(0).categories.tolist() == [1_999]
    content["categories"] = categories * 3
    with pytest.raises(PansightError, match="expected at most 5000 categories, found 6000"):
        read(tmp_path, content)


def changed(change) -> dict:
    content = copy.deepcopy(SOUND)
    change(content)
    return content


def segment(**values):
    return changed(lambda c: c["annotations"][0]["segments_info"][1].update(values))


def without(key: str, *path):
    def drop(content):
        for step in path:
            content = content[step]
        del content[key]

    return changed(drop)


def annotation(**values):
    return changed(lambda c: c["annotations"][0].update(values))


FAULTS = {
    "empty file": ("", "COCO panoptic"),
    "no JSON": ("{", "COCO panoptic"),
    "text": ("hello", "COCO panoptic"),
    "no UTF-8": (b'{"annotations": "\xff"}', "COCO panoptic"),
    "UTF-16": ('{"annotations": []}'.encode("utf-16"), "categories"),
    "a list": ([], "expected `object`, found `array`"),
    "a PNG": (b"\x89PNG\r\n\x1a\n", "COCO panoptic"),
    "COCO instances": (changed(lambda c: c.update(annotations=[{"image_id": 1, "id": 1}])), "file_name"),
    "nested": ('{"annotations": ' + "[" * 100_000, "COCO panoptic"),
    "nested apart": ('{"info": ' + "[" * 100_000 + "]" * 100_000 + "}", "COCO panoptic"),
    "NaN": (json.dumps(segment(score=1)).replace('"score": 1', '"score": NaN'), "COCO panoptic"),
    "1e999": (json.dumps(segment(score=1)).replace('"score": 1', '"score": 1e999'), "COCO panoptic"),
    "no annotations": (without("annotations"), "annotations"),
    "no image_id": (without("image_id", "annotations", 0), "image_id"),
    "no file_name": (without("file_name", "annotations", 0), "file_name"),
    "no segments_info": (without("segments_info", "annotations", 0), "segments_info"),
    "no id": (without("id", "annotations", 0, "segments_info", 1), "`$.annotations[0].segments_info[1]`"),
    "no category_id": (without("category_id", "annotations", 0, "segments_info", 1), "category_id"),
    "annotations null": (changed(lambda c: c.update(annotations=None)), "annotations"),
    "an annotation that is a list": (changed(lambda c: c["annotations"].append([])), "annotations[3]"),
    "image_id null": (annotation(image_id=None), "image_id"),
    "image_id a fraction": (annotation(image_id=1.5), "image_id"),
    "image_id true": (annotation(image_id=True), "image_id"),
    "file_name a number": (annotation(file_name=5), "file_name"),
    "segments a dict": (annotation(segments_info={}), "segments_info"),
    "id 0": (segment(id=0), "segments_info[1].id"),
    "id negative": (segment(id=-1), "segments_info[1].id"),
    "id 2**24": (segment(id=2**24), "16777215"),
    "id huge": (segment(id=10**400), "COCO panoptic"),
    "id text": (segment(id="7"), "segments_info[1].id"),
    "id a fraction": (segment(id=7.5), "segments_info[1].id"),
    "id true": (segment(id=True), "segments_info[1].id"),
    "category huge": (segment(category_id=10**30), "segments_info[1].category_id"),
    "category text": (segment(category_id="cat"), "segments_info[1].category_id"),
    "area text": (segment(area="5"), "segments_info[1].area"),
    "area negative": (segment(area=-5), "segments_info[1].area"),
    "area huge": (segment(area=1e300), "segments_info[1].area"),
    "score text": (segment(score="high"), "segments_info[1].score"),
    "iscrowd text": (segment(iscrowd="no"), "expected iscrowd 0 or 1"),
    "unknown category": (
        segment(category_id=5),
        "image 9: expected a listed category, found category_id 5 of segment 3",
    ),
    "id twice": (segment(id=70_000), "image 9: expected each segment id once, found 70000 twice"),
    "image twice": (annotation(image_id="eight"), "expected one annotation per image, found image_id 'eight' twice"),
    "no categories": (without("categories"), "expected categories, found none"),
    "categories empty": (changed(lambda c: c.update(categories=[])), "expected categories, found none"),
    "categories a dict": (changed(lambda c: c.update(categories={})), "categories"),
    "a category null": (changed(lambda c: c["categories"].append(None)), "categories[4]"),
    "no isthing": (without("isthing", "categories", 1), "isthing"),
    "category id text": (changed(lambda c: c["categories"][1].update(id="x")), "expected categories"),
    "category id null": (changed(lambda c: c["categories"][1].update(id=None)), "expected categories"),
    "category id list": (changed(lambda c: c["categories"][1].update(id=[1])), "expected categories"),
    "category id twice": (changed(lambda c: c["categories"][1].update(id=17)), "source_id once, found 17"),
    "name twice": (changed(lambda c: c["categories"][1].update(name="cat")), "name once, found 'cat'"),
    "color short": (changed(lambda c: c["categories"][1].update(color=[1])), "expected categories"),
    "color a number": (changed(lambda c: c["categories"][1].update(color=5)), "expected categories"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_line_for_every_fault(tmp_path, fault):
    content, words = FAULTS[fault]
    with pytest.raises(PansightError) as caught:
        read(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'p.json'}: ")
    assert "\n" not in message
    assert "expected" in message.lower()
    assert words in message
    assert len(message) < 400


def test_long_values_do_not_flood_the_line(tmp_path):
    for content in (segment(id="x" * 10**6), changed(lambda c: c["categories"].insert(0, {"name": "x" * 10**6}))):
        with pytest.raises(PansightError) as caught:
            read(tmp_path, content)
        assert len(str(caught.value)) < 1000


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PansightError, match=r"none\.json: no such file; expected the JSON of COCO panoptic"):
        PanopticFile(tmp_path / "none.json")
    with pytest.raises(PansightError, match="cannot be read: Is a directory"):
        PanopticFile(tmp_path)


def test_an_image_that_is_not_there(tmp_path):
    file = read(tmp_path, SOUND)
    with pytest.raises(PansightError, match="annotation for every image of the truth, found none for 8"):
        file.index(8)
    with pytest.raises(PansightError, match="found none for '9'"):
        file.index("9")


def test_the_other_order_of_ids(tmp_path):
    """The fault is told for the image that has it, whatever stands before it."""
    content = changed(lambda c: c["annotations"][2]["segments_info"].append({"id": 2, "category_id": 6}))
    with pytest.raises(PansightError, match="image 7: expected a listed category, found category_id 6 of segment 2"):
        read(tmp_path, content)
