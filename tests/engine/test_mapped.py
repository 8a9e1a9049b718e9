"""A model measured on data of other classes: the same figures as from files with the same class map."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pansight.data.formats.coco_panoptic import write_coco_panoptic
from pansight.metrics import AveragePrecision, PanopticQuality, SemanticIoU
from pansight.metrics.files.class_map import read_class_map
from pansight.metrics.files.pairs import PanopticPairs
from pansight.metrics.files.panoptic_json import PanopticFile
from pansight.metrics.files.score import Figures, score
from pansight.metrics.mapped import map_prediction, map_truth
from pansight.types import IGNORE, Instances, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment

PREDICTED = LabelSpace.from_names(["car", "truck", "boat"], ["grass", "soil", "sky"])
TRUE = LabelSpace.from_names(["vehicle", "person"], ["sky", "ground"])
MAP = 'car = "vehicle"\ntruck = "vehicle"\ngrass = "ground"\nsoil = "ground"\n'  # boat: void; person: unreached


def segmentation(rng: np.random.Generator, labels: LabelSpace) -> PanopticSegmentation:
    """Blocks of 3 × 3 pixels with a class each; of stuff, one segment a class."""
    blocks = rng.integers(0, len(labels) + 1, (4, 5))
    ids, segments, stuff = np.zeros((12, 15), np.int32), [], {}
    for (y, x), category in np.ndenumerate(blocks):
        if category == len(labels):
            continue  # void
        number = len(segments) + 1
        if not labels[category].is_thing:
            number = stuff.setdefault(category, number)
        if number == len(segments) + 1:
            segments.append(Segment(number, int(category)))
        ids[3 * y : 3 * y + 3, 3 * x : 3 * x + 3] = number
    return PanopticSegmentation(torch.from_numpy(ids), tuple(segments))


@pytest.fixture
def class_map(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(MAP)
    return read_class_map(path, PREDICTED, TRUE)


def test_figures_equal_those_from_files(tmp_path, class_map):
    rng = np.random.default_rng(0)
    pairs = [(segmentation(rng, TRUE), segmentation(rng, PREDICTED)) for _ in range(30)]
    quality, semantic = PanopticQuality(TRUE), SemanticIoU(TRUE)
    for number, (truth, found) in enumerate(pairs):
        sample = Sample(torch.zeros(3, 12, 15, dtype=torch.uint8), truth, number, truth.size)
        mapped = map_prediction(Prediction(panoptic=found), class_map, TRUE), map_truth(sample, class_map)
        quality.update(*mapped)
        semantic.update(*mapped)
        assert truth.ids.equal(pairs[number][0].ids)  # inputs stay as they are
    for side, labels, k in (("gt", TRUE, 0), ("pred", PREDICTED, 1)):
        items = [(n, f"{n}.jpg", pair[k]) for n, pair in enumerate(pairs)]
        write_coco_panoptic(tmp_path / f"{side}.json", items, labels)
    truth, found = PanopticFile(tmp_path / "gt.json"), PanopticFile(tmp_path / "pred.json")
    files = PanopticPairs(truth, tmp_path / "gt", found, tmp_path / "pred", class_map)
    record = score(files, Figures()).record()
    ours = quality.compute()
    assert ours["All"]["n"] == 3  # vehicle, sky, ground: person has no counterpart
    assert {key: record[key] for key in ours} == ours
    assert record["semantic"] == semantic.compute()


def test_class_maps_and_objects_move_too(class_map):
    semantic = torch.tensor([[0, 1, 2, 3, 4, 5, IGNORE]])
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1], [2, 0, 3, 1]])
    objects = Instances(boxes, torch.tensor([1, 2, 0]), torch.tensor([0.9, 0.8, 0.7]))
    mapped = map_prediction(Prediction(None, semantic, objects), class_map, TRUE)
    assert mapped.semantic is not None
    assert mapped.semantic.tolist() == [[0, 0, IGNORE, 3, 3, 2, IGNORE]]
    assert mapped.instances is not None
    assert mapped.instances.labels.tolist() == [0, 0]  # the boat is gone
    assert mapped.instances.scores.tolist() == pytest.approx([0.9, 0.7])


def test_objects_of_the_truth_without_a_counterpart_are_no_misses(class_map):
    ids = torch.tensor([[1, 2]], dtype=torch.int32)
    truth = PanopticSegmentation(ids, (Segment(1, 0), Segment(2, 1)))
    boxes = torch.tensor([[0.0, 0, 1, 1], [1, 0, 2, 1]])
    objects = Instances(boxes, torch.tensor([0, 1]), torch.ones(2), torch.tensor([[[True, False]], [[False, True]]]))
    sample = map_truth(Sample(torch.zeros(3, 1, 2, dtype=torch.uint8), truth, 1, (1, 2), objects), class_map)
    assert [s.id for s in sample.truth.segments] == [1]
    assert sample.truth.ids.tolist() == [[1, 0]]
    found = Instances(boxes[:1], torch.tensor([0]), torch.ones(1), torch.tensor([[[True, False]]]))
    metric = AveragePrecision(TRUE)
    metric.update(map_prediction(Prediction(instances=found), class_map, TRUE), sample)
    assert metric.compute()["box"]["ap"] == pytest.approx(1.0)
