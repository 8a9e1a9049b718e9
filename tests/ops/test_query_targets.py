"""The truth as a set of segments: which ones, and their masks at points, against full masks and grid_sample."""

import pytest
import torch
import torch.nn.functional as F

from pansight.ops.fast.points import samples_by_gathering
from pansight.ops.queries.targets import dense_masks, padded_categories, sample_masks, segment_targets
from pansight.types import Batch, Instances, LabelSpace, PanopticSegmentation, Segment

pytestmark = pytest.mark.usefixtures("both_ways")

LABELS = LabelSpace.from_names(["car", "cat"], ["sky", "road"])

IDS = torch.tensor(
    [
        [7, 7, 7, 7, 7],
        [7, 300, 300, 0, 7],
        [2, 300, 300, 9, 9],
        [2, 2, 2, 2, 2],
    ],
    dtype=torch.int32,
)
SEGMENTS = (
    Segment(300, 1),
    Segment(7, 2),
    Segment(2, 3),
    Segment(9, 0, is_crowd=True),
    Segment(5, 0),  # without a pixel
)


def batch_of(truth, instances=None):
    images = torch.zeros((1, 3, 8, 8), dtype=torch.uint8)
    valid = torch.ones((1, 8, 8), dtype=torch.bool)
    return Batch(images, valid, (truth.size,), (truth,), ("a",), (instances,))


def overlapping():
    masks = torch.zeros((3, 4, 5), dtype=torch.bool)
    masks[0, 1:3, 1:3] = True
    masks[1, 2:4, 2:5] = True  # overlaps the first
    masks[2, 0, 0] = True  # a crowd
    boxes = torch.tensor([[1.0, 1, 3, 3], [2, 2, 5, 4], [0, 0, 1, 1]])
    crowd = torch.tensor([False, False, True])
    return Instances(boxes, torch.tensor([1, 0, 0]), torch.ones(3), masks, crowd)


def test_every_segment_but_crowds_and_empty_ones():
    (found,) = segment_targets(batch_of(PanopticSegmentation(IDS, SEGMENTS)), LABELS)
    assert found.categories.tolist() == [1, 2, 3]
    assert found.boxes_xyxy.tolist() == [[1, 1, 3, 3], [0, 0, 5, 2], [0, 2, 5, 4]]
    assert found.mask_stack.shape == (1, 4, 5)  # never one map per segment
    assert torch.equal(dense_masks(found, (4, 5)), torch.stack([n == IDS for n in (300, 7, 2)]).float())


def test_things_only():
    (found,) = segment_targets(batch_of(PanopticSegmentation(IDS, SEGMENTS)), LABELS, things_only=True)
    assert found.categories.tolist() == [1]
    assert found.boxes_xyxy.tolist() == [[1, 1, 3, 3]]


@pytest.mark.parametrize("many", [False, True])
def test_overlapping_things_and_the_stuff_of_the_map(many):
    ids, segments = IDS.clone(), SEGMENTS
    if many:  # more stuff segments than a byte can number
        ids = F.pad(ids, (0, 300))
        ids[0, 5:] = torch.arange(1000, 1300, dtype=torch.int32)
        segments = (*segments, *(Segment(n, 2) for n in range(1000, 1300)))
    instances = overlapping()
    instances = Instances(
        instances.boxes_xyxy,
        instances.labels,
        instances.scores,
        F.pad(instances.masks, (0, 300 * many)),
        instances.is_crowd,
    )
    (found,) = segment_targets(batch_of(PanopticSegmentation(ids, segments), instances), LABELS)
    assert found.categories[:4].tolist() == [1, 0, 2, 3]  # the car and the cat of the map are not taken twice
    assert found.boxes_xyxy[:4].tolist() == [[1, 1, 3, 3], [2, 2, 5, 4], [0, 0, 5, 2], [0, 2, 5, 4]]
    assert found.mask_stack.shape[0] == 3
    expected = torch.stack([instances.masks[0], instances.masks[1], ids == 7, ids == 2]).float()
    assert torch.equal(dense_masks(found, ids.shape)[:4], expected)
    assert len(found.categories) == 4 + 300 * many
    if many:
        assert torch.equal(dense_masks(found, ids.shape)[-1], (ids == 1299).float())
    (things,) = segment_targets(batch_of(PanopticSegmentation(ids, segments), instances), LABELS, things_only=True)
    assert things.categories.tolist() == [1, 0]


def test_padded_categories():
    one = segment_targets(batch_of(PanopticSegmentation(IDS, SEGMENTS)), LABELS)[0]
    none = segment_targets(batch_of(PanopticSegmentation(torch.zeros_like(IDS), ())), LABELS)[0]
    labels, counts = padded_categories([none, one])
    assert labels.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert counts == [0, 3]
    labels, counts = padded_categories([none, none])
    assert labels.shape == (2, 0)
    assert labels.dtype == torch.int64
    assert counts == [0, 0]


@pytest.mark.parametrize("instances", [None, overlapping()], ids=["disjoint", "overlapping"])
@pytest.mark.parametrize("size", [(4, 5), (7, 9)])
def test_samples_equal_grid_sample_of_full_masks(instances, size):
    (found,) = segment_targets(batch_of(PanopticSegmentation(IDS, SEGMENTS), instances), LABELS)
    dense = dense_masks(found, size)
    assert dense.shape == (len(found.categories), *size)
    draw = torch.Generator().manual_seed(0)
    own = torch.rand((len(dense), 300, 2), generator=draw) * 1.2 - 0.1  # some lie outside the canvas
    expected = F.grid_sample(dense[:, None], 2 * own[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(sample_masks(found, own, size), expected, atol=2e-6, rtol=0)
    shared = own[:1].expand(len(dense), -1, -1)
    expected = F.grid_sample(dense[:, None], 2 * shared[:, :, None] - 1, align_corners=False)[:, 0, :, 0]
    torch.testing.assert_close(sample_masks(found, own[0], size), expected, atol=2e-6, rtol=0)
    assert expected.max() == 1
    on_accelerators = samples_by_gathering(found.mask_stack, found.mask_index, found.mask_value, own, size)
    torch.testing.assert_close(sample_masks(found, own, size), on_accelerators, atol=2e-6, rtol=0)
    on_accelerators = samples_by_gathering(found.mask_stack, found.mask_index, found.mask_value, own[0], size)
    torch.testing.assert_close(sample_masks(found, own[0], size), on_accelerators, atol=2e-6, rtol=0)
    index = torch.tensor([2, 0, 2])
    assert torch.equal(sample_masks(found, own[index], size, index), sample_masks(found, own, size)[index])
    assert torch.equal(dense_masks(found, size, index), dense[index])


def test_pixel_centres_and_borders_exactly():
    (found,) = segment_targets(batch_of(PanopticSegmentation(IDS, SEGMENTS)), LABELS)
    centre = torch.tensor([[1.5 / 8, 1.5 / 8], [0, 0], [0.5 / 8, 1.5 / 8], [1 / 8, 1.5 / 8]])  # x, y
    assert sample_masks(found, centre, (8, 8)).tolist() == [[1, 0, 0, 0.5], [0, 0.25, 1, 0.5], [0, 0, 0, 0]]


def test_no_target():
    (found,) = segment_targets(batch_of(PanopticSegmentation(torch.zeros_like(IDS), ())), LABELS)
    assert sample_masks(found, torch.rand(9, 2), (8, 8)).shape == (0, 9)
    assert sample_masks(found, torch.rand(0, 9, 2), (8, 8)).shape == (0, 9)
    assert dense_masks(found, (8, 8)).shape == (0, 8, 8)
