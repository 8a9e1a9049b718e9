"""Regions from files: how they are read, found by image, and moved with the image by every augmentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pansight.config import AugmentConfig
from pansight.data.formats.predictions.proposals import Proposals, WithProposals
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate, train_stream
from pansight.data.transforms import Resize, crop_sample
from pansight.data.transforms.copy_paste import paste_objects
from pansight.engine.assemble import make_transform
from pansight.engine.train import split
from pansight.errors import PansightError
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import boxes_of_ids
from pansight.types import Instances, PanopticSegmentation, Sample, Segment


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def row(image: int | str, box: list[float], score: float | None = None) -> dict[str, Any]:
    return {"image_id": image, "bbox": box, "category_id": 1} | ({} if score is None else {"score": score})


def test_boxes_become_shares_of_the_image_the_best_first(tmp_path: Path) -> None:
    """Of a photo of 40 × 20 pixels (width × height); what lies outside is cut off, and what is empty left out."""
    rows = [
        row(7, [10, 5, 20, 10], 0.2),
        row(7, [-10, 0, 20, 40], 0.9),
        row(7, [50, 0, 5, 5], 0.8),
        row(8, [0, 0, 1, 1]),
    ]
    rows.append(row(7, [3, 3, 0, 4], 0.7))
    proposals = Proposals([write(tmp_path / "p.json", rows)])
    found = proposals.boxes(7, "a.png", (20, 40))
    assert found is not None
    assert found.tolist() == [[0, 0, 0.25, 1], [0.25, 0.25, 0.75, 0.75]]
    assert found.dtype == torch.float32
    assert proposals.boxes(9, "b.png", (20, 40)) is None


@pytest.mark.parametrize(
    ("image", "image_id", "file_name"),
    [
        (7, 7, "street/x.jpg"),
        (7, "7", "x.jpg"),
        ("7", 7, "x.jpg"),
        ("x.jpg", 3, "x.jpg"),
        ("x.png", 3, "x.jpg"),  # the name without its suffix
        ("x", "street/x.jpg", "street/x.jpg"),
        ("street/x.jpg", "street/x.jpg", "street/x.jpg"),
        (139, "any", "000000000139.jpg"),  # COCO's files are called by their numbers
    ],
)
def test_images_are_found_by_id_or_name(tmp_path: Path, image: Any, image_id: Any, file_name: str) -> None:
    proposals = Proposals([write(tmp_path / "p.json", [row(image, [0, 0, 4, 4])])])
    assert proposals.has(image_id, file_name)
    assert not proposals.has("other", "another.jpg")


def test_names_that_a_file_lists_go_before_its_numbers(tmp_path: Path) -> None:
    """What `pansight predict` writes numbers the photos anew."""
    content = {"images": [{"id": 1, "file_name": "b.jpg"}], "annotations": [row(1, [0, 0, 4, 4])], "categories": []}
    proposals = Proposals([write(tmp_path / "p.json", content)])
    assert proposals.has(5, "b.jpg")
    assert not proposals.has(1, "a.jpg")


def test_several_files_are_joined(tmp_path: Path) -> None:
    one = write(tmp_path / "train.json", [row("a", [0, 0, 4, 4], 0.5)])
    two = write(tmp_path / "val.json", [row("b", [0, 0, 4, 4]), row("a", [0, 0, 8, 8], 0.9)])
    found = Proposals([one, two]).boxes("a", "a.png", (16, 16))
    assert found is not None
    assert found.tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.25]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "p.json: expected proposals: COCO results with boxes, found no row"),
        ({"images": []}, "p.json"),
        ([{"image_id": 1}], "row 0 .image 1.: expected bbox: x, y, width, height, found None"),
        ([row(1, [0, 0, 4])], "row 0 .image 1.: expected bbox"),
        ([row(1, [0, 0, 4, 4]), row(2, [0, 0, -4, 4])], "row 1 .image 2.: expected bbox"),
        ([{"image_id": 1, "bbox": "all"}], "p.json"),
        ("text", "p.json"),
    ],
)
def test_other_files_are_refused_in_a_line(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PansightError, match=message) as caught:
        Proposals([write(tmp_path / "p.json", content)])
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PansightError, match=r"nowhere.json: expected proposals.*no such file"):
        Proposals([tmp_path / "nowhere.json"])


def of_truth(dataset: Shapes, index: int) -> list[dict[str, Any]]:
    """The boxes of all segments of an image, as rows."""
    sample = dataset[index]
    boxes = boxes_of_ids(sample.truth.ids, torch.tensor([s.id for s in sample.truth.segments]))
    return [row(sample.image_id, [x1, y1, x2 - x1, y2 - y1], 0.5) for x1, y1, x2, y2 in boxes.tolist()]


def given(tmp_path: Path, count: int = 6) -> WithProposals:
    dataset = Shapes(count, 96, 96, seed=1)
    rows = [each for index in range(count) for each in of_truth(dataset, index)]
    return WithProposals(dataset, Proposals([write(tmp_path / "p.json", rows)]))


def test_a_data_set_with_proposals(tmp_path: Path) -> None:
    dataset = given(tmp_path)
    assert len(dataset) == 6
    assert dataset.lacking == 0
    sample = dataset[2]
    assert sample.proposals is not None
    ids = torch.tensor([s.id for s in sample.truth.segments])
    torch.testing.assert_close(sample.proposals * 96, boxes_of_ids(sample.truth.ids, ids))
    other = Proposals([write(tmp_path / "q.json", [row(dataset.image_id(3), [0, 0, 9, 9])])])
    few = WithProposals(dataset.dataset, other)
    assert few.lacking == 5
    none = few[0].proposals
    assert none is not None
    assert none.shape == (0, 4)
    with pytest.raises(PansightError, match=r"expected proposals for the images of the data, .*found none"):
        WithProposals(dataset.dataset, Proposals([write(tmp_path / "r.json", [row("elsewhere", [0, 0, 9, 9])])]))


AUGMENTATIONS = {
    "flips": AugmentConfig(hflip=1.0, vflip=1.0, crop=0),
    "quarter turns": AugmentConfig(rot90=True, crop=0),
    "crops": AugmentConfig(crop=64, hflip=0.5),
    "scales": AugmentConfig(crop=80, scale=(0.5, 2.0)),
    "jitter": AugmentConfig(crop=96, fit=True, scale=(0.3, 1.7)),
    "rotation": AugmentConfig(rotate=(-90, -90), hflip=0.0, crop=0),
    "all": AugmentConfig(crop=64, scale=(0.7, 1.5), hflip=0.5, vflip=0.5, rot90=True, photometric=0.5),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_regions_move_with_the_objects(name: str, tmp_path: Path) -> None:
    """The box of a whole segment, moved as a region, is the box of the moved segment, to a pixel; of a cut one it is
    the visible part of the box, so it holds the segment.
    """
    dataset, seen = given(tmp_path), 0
    transform, _ = make_transform(AUGMENTATIONS[name], ResizeRule(0, 0))
    for index in range(len(dataset)):
        for seed in range(4):
            before = dataset[index]
            assert before.proposals is not None
            kept = before.proposals.clone()
            after = transform(before, np.random.default_rng(seed))
            assert torch.equal(before.proposals, kept)
            assert after.proposals is not None
            height, width = after.truth.size
            found = after.proposals * torch.tensor([width, height] * 2)
            assert bool((found >= 0).all())
            for box in boxes_of_ids(after.truth.ids, torch.tensor([s.id for s in after.truth.segments])):
                holds = (found[:, :2] <= box[:2] + 1.5).all(1) & (found[:, 2:] >= box[2:] - 1.5).all(1)
                assert bool(holds.any()), (index, seed, box, found)
                whole = bool((box[:2] > 0).all() and box[2] < width and box[3] < height)
                if whole:
                    assert (found - box).abs().amax(1).min() <= 1.5, (index, seed, box, found)
                    seen += 1
    assert seen >= 4


def test_an_elastic_bending_keeps_regions_around_their_objects(tmp_path: Path) -> None:
    dataset = given(tmp_path)
    transform, _ = make_transform(AugmentConfig(elastic=1.0, hflip=0.0, crop=0), ResizeRule(0, 0))
    for index in range(len(dataset)):
        after = transform(dataset[index], np.random.default_rng(index))
        assert after.proposals is not None
        found = after.proposals * 96
        for box in boxes_of_ids(after.truth.ids, torch.tensor([s.id for s in after.truth.segments])):
            assert ((found[:, :2] <= box[:2] + 2).all(1) & (found[:, 2:] >= box[2:] - 2).all(1)).any()


def sample_of(height: int, width: int, proposals: list[list[float]]) -> Sample:
    ids = torch.ones(height, width, dtype=torch.int32)
    truth = PanopticSegmentation(ids, (Segment(1, 0),))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    return Sample(image, truth, "a", (height, width), proposals=torch.tensor(proposals).reshape(-1, 4))


def test_a_crop_by_hand() -> None:
    """Of an image of 40 × 20 the right half: a region in the left one vanishes, one in the middle is cut."""
    sample = sample_of(20, 40, [[0.0, 0, 0.4, 1], [0.25, 0.5, 0.75, 1], [0, 0, 1, 1]])
    found = crop_sample(sample, 0, 20, 20, 20).proposals
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0, 0.5, 0.5, 1], [0, 0, 1, 1]]))


def test_resizing_keeps_shares() -> None:
    sample = sample_of(33, 47, [[0.2, 0.1, 0.7, 0.9]])
    for target in (20, 70):
        found = Resize(ResizeRule(target, 200))(sample, np.random.default_rng(0)).proposals
        assert found is not None
        torch.testing.assert_close(found, sample.proposals, rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_tiny_images_and_no_regions(size: tuple[int, int]) -> None:
    transform, _ = make_transform(AugmentConfig(hflip=1.0, crop=0), ResizeRule(0, 0))
    for proposals in ([], [[0.0, 0, 1, 1]]):
        found = transform(sample_of(*size, proposals), np.random.default_rng(0)).proposals
        assert found is not None
        torch.testing.assert_close(found, torch.tensor(proposals).reshape(-1, 4))


def test_pasted_objects_bring_their_regions() -> None:
    """Moved by four columns: shares of the larger image."""
    sample, other = sample_of(10, 20, [[0.0, 0, 0.5, 0.5]]), sample_of(10, 10, [[0.0, 0, 0.5, 1]])
    masks = torch.zeros(1, 10, 10, dtype=torch.bool)
    masks[:, :5, :5] = True
    objects = Instances(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0]), torch.ones(1), masks)
    labels = Shapes().labels
    found = paste_objects(sample, other, objects, (0, 4), labels).proposals
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0, 0, 0.5, 0.5], [0.2, 0, 0.45, 1]]))
    assert paste_objects(replace(sample, proposals=None), other, objects, (0, 4), labels).proposals is None


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_carry_them(workers: int, tmp_path: Path) -> None:
    dataset = given(tmp_path)
    transform, divisor = make_transform(AugmentConfig(crop=0), ResizeRule(0, 0))
    (batch,) = train_stream(dataset, transform, 3, divisor, 1, 0, workers=workers)
    assert len(batch.proposals) == 3
    assert all(each is not None and each.shape[1] == 4 and len(each) for each in batch.proposals)
    pieces = list(split(batch, 3))
    assert [piece.proposals for piece in pieces] == [(each,) for each in batch.proposals]
    without = collate([Shapes(1, 32, 32)[0]])
    assert without.proposals == (None,)
    assert next(split(without, 1)).proposals == (None,)
