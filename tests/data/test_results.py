"""What a model found, as files: semantic maps in the data set's own ids, COCO results that pycocotools reads, parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pansight.data.formats.results import ResultsWriter, category_ids
from pansight.errors import PansightError
from pansight.ops.maps.regions import class_regions, object_regions
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Prediction, Segment

LABELS = LabelSpace(
    c._replace(source_id=number) for c, number in zip(LabelSpace.from_names(["cat", "dog"], ["sky"]), (7, 9, 300))
)
SEMANTIC = torch.tensor([[0, 1, IGNORE], [2, 2, 2]])
MASKS = torch.tensor([[[1, 1, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]], dtype=torch.bool)
OBJECTS = Instances(
    torch.tensor([[0.0, 0, 2, 2], [2, 0, 3, 2]]), torch.tensor([1, 0]), torch.tensor([0.875, 0.25]), MASKS
)
PANOPTIC = PanopticSegmentation(torch.tensor([[1, 1, 0], [2, 2, 2]], dtype=torch.int32), (Segment(1, 0), Segment(2, 2)))


def write(folder, *predictions, listing=False):
    with ResultsWriter(folder, LABELS, listing) as writer:
        for number, prediction in enumerate(predictions):
            writer.add(number, f"sub/{number}.jpg", prediction)


def load(path):
    return json.loads(path.read_text())


def test_semantic_maps_in_ids_of_the_data_set():
    found = category_ids(SEMANTIC, LABELS)
    assert (found.dtype, found.tolist()) == (np.uint16, [[7, 9, 65535], [300, 300, 300]])
    small = category_ids(torch.tensor([[0, IGNORE]]), LabelSpace([LABELS[0]]))
    assert (small.dtype, small.tolist()) == (np.uint8, [[7, 255]])
    with pytest.raises(PansightError, match="expected category ids of 0 … 65534, found 70000"):
        category_ids(torch.tensor([[0]]), LabelSpace([LABELS[0]._replace(source_id=70_000)]))


@pytest.mark.parametrize("count", [255, 300, 1000])
def test_class_255_is_a_class_like_any_other(count):
    labels = LabelSpace.from_names([f"thing {k}" for k in range(count - 1)], ["sky"])
    semantic = torch.tensor([[0, 254, min(255, count - 1)], [count - 1, IGNORE, 0]])
    found = category_ids(semantic, labels)
    void = 255 if count < 255 else 65535
    assert found.tolist() == [[1, 255, min(256, count)], [count, void, 1]]
    regions = class_regions(semantic)
    assert [s.category for s in regions.segments] == sorted({0, 254, min(255, count - 1), count - 1})
    assert (regions.ids == 0).tolist() == (semantic == IGNORE).tolist()


def test_a_semantic_map_and_its_listing(tmp_path):
    write(tmp_path, Prediction(semantic=SEMANTIC))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["semantic", "semantic.json"]
    content = load(tmp_path / "semantic.json")
    row = {"id": 0, "file_name": "sub/0.jpg", "semantic": "sub_0.png", "height": 2, "width": 3}
    assert (content["images"], content["void"]) == ([row], 65535)
    assert [c["id"] for c in content["categories"]] == [7, 9, 300]
    assert np.asarray(Image.open(tmp_path / "semantic" / "sub_0.png")).tolist() == [[7, 9, 65535], [300, 300, 300]]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with numpy 2
def test_objects_are_coco_results_that_pycocotools_reads(tmp_path):
    write(tmp_path, Prediction(instances=OBJECTS), Prediction(instances=OBJECTS))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": k, "height": 2, "width": 3} for k in (0, 1)],
        "categories": [{"id": c.source_id, "name": c.name} for c in LABELS],
        "annotations": [],
    }
    truth.createIndex()
    loaded = truth.loadRes(str(tmp_path / "instances.json"))
    rows = loaded.loadAnns(loaded.getAnnIds(imgIds=[1]))
    assert [(r["category_id"], r["score"], r["bbox"]) for r in rows] == [
        (9, 0.875, [0, 0, 2, 2]),
        (7, 0.25, [2, 0, 1, 2]),
    ]
    for row, mask in zip(rows, MASKS, strict=True):
        assert np.array_equal(coco_mask.decode(row["segmentation"]).astype(bool), mask.numpy())


def test_boxes_have_no_masks_and_photos_are_listed(tmp_path):
    boxes = Instances(OBJECTS.boxes_xyxy, OBJECTS.labels, OBJECTS.scores)
    write(
        tmp_path,
        Prediction(instances=boxes),
        Prediction(instances=Instances(*(t[:0] for t in boxes_of(boxes)))),
        listing=True,
    )
    content = load(tmp_path / "instances.json")
    assert [row["file_name"] for row in content["images"]] == ["sub/0.jpg", "sub/1.jpg"]
    assert [set(row) for row in content["annotations"]] == [{"image_id", "category_id", "score", "bbox"}] * 2
    write(tmp_path, Prediction(instances=Instances(*(t[:0] for t in boxes_of(boxes)))))
    assert load(tmp_path / "instances.json") == []


def boxes_of(instances):
    return instances.boxes_xyxy, instances.labels, instances.scores


def test_one_kind_replaces_another_and_a_failure_leaves_the_old(tmp_path):
    write(tmp_path, Prediction(panoptic=PANOPTIC, semantic=SEMANTIC, instances=OBJECTS))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictions", "predictions.json"]
    write(tmp_path, Prediction(semantic=SEMANTIC, instances=OBJECTS))
    names = ["instances.json", "semantic", "semantic.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    before = (tmp_path / "instances.json").read_bytes()
    other = Prediction(instances=Instances(OBJECTS.boxes_xyxy, OBJECTS.labels + 7, OBJECTS.scores))
    with pytest.raises(IndexError):
        write(tmp_path, Prediction(instances=OBJECTS), other)
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert (tmp_path / "instances.json").read_bytes() == before


def test_parts_of_several_processes_are_joined(tmp_path):
    predictions = [Prediction(panoptic=PANOPTIC), Prediction(semantic=SEMANTIC, instances=OBJECTS)]
    for kind, prediction in enumerate(predictions):
        folder, whole = tmp_path / f"{kind}", tmp_path / f"whole{kind}"
        for part in range(2):
            with ResultsWriter(folder / f"part{part}", LABELS) as writer:
                writer.add(part, "same/name.jpg", prediction)
        with ResultsWriter(folder, LABELS) as writer:
            writer.join([folder / "part0", folder / "part1"])
        with ResultsWriter(whole, LABELS) as writer:
            for part in range(2):
                writer.add(part, "same/name.jpg", prediction)
        files = sorted(p.relative_to(whole) for p in whole.rglob("*"))
        assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == files
        assert len([f for f in files if f.suffix == ".png"]) == 2
        for file in files:
            assert (whole / file).is_dir() or (whole / file).read_bytes() == (folder / file).read_bytes(), file


def test_objects_as_regions():
    """The smaller on top; what is hidden altogether, or under the score, has no row; boxes are filled."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 3, 3], [1, 1, 3, 3], [0, 0, 9, 1]])
    found = Instances(boxes, torch.tensor([0, 1, 1, 0]), torch.tensor([0.9, 0.8, 0.7, 0.1]))
    regions = object_regions(found, (4, 5), 0.5)
    assert [(s.category, round(s.score, 1)) for s in regions.segments] == [(0, 0.9), (1, 0.7)]
    first, top = (s.id for s in regions.segments)
    expected = torch.zeros((4, 5), dtype=torch.int32)
    expected[:, :4], expected[1:3, 1:3] = first, top
    assert torch.equal(regions.ids, expected)
    masked = object_regions(OBJECTS, (2, 3), 0.0)
    assert torch.equal(masked.ids > 0, MASKS.any(0))
    crowd = Instances(boxes[:1], torch.tensor([0]), torch.ones(1), None, torch.tensor([True]))
    assert object_regions(crowd, (4, 5), 0).segments[0].is_crowd
