"""The set losses, each against transformers or torch, and with nothing to learn from."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pansight.ops.queries.losses import (
    PointSettings,
    binary_loss,
    box_losses,
    dice_loss,
    point_set_loss,
    set_class_loss,
    set_counts,
    sigmoid_focal_loss,
    uniform,
)
from pansight.ops.queries.matching import Matches
from pansight.ops.queries.targets import dense_masks, segment_targets
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Segment

pytestmark = pytest.mark.usefixtures("both_ways")

LABELS = LabelSpace.from_names(["car", "cat"], ["sky"])
SETTINGS = PointSettings(points=50)


def test_set_class_loss_is_the_weighted_mean_of_torch():
    logits = torch.randn((2, 2, 4, 3), generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, 0], [0, 0]])
    pairs = [(0, 0, 3, 0), (0, 0, 1, 1), (1, 0, 0, 0), (1, 1, 2, 0)]  # layer, image, query, target
    found = set_class_loss(logits, Matches(*torch.tensor(pairs).T), labels, no_object=0.1)
    wanted = torch.tensor([[[2, 0, 2, 1], [2, 2, 2, 2]], [[1, 2, 2, 2], [2, 2, 0, 2]]])
    for layer in range(2):
        weight = torch.tensor([1.0, 1.0, 0.1])
        expected = F.cross_entropy(logits[layer].transpose(1, 2), wanted[layer], weight)
        torch.testing.assert_close(found[layer], expected)


def test_the_counts_of_a_set_follow_from_the_truth():
    """Three images with 2, 5 and no segments for four queries, of which an image matches at most four."""
    one = segment_targets(truth_of(2), LABELS)[0]
    many, none = (segment_targets(truth_of(n), LABELS)[0] for n in (5, 0))
    counts = set_counts([one, many, none], queries=4, no_object=0.1)
    assert counts == pytest.approx({"segments": 7, "query_weight": (2 + 4) + 0.1 * (2 + 0 + 4)})


def truth_of(segments: int) -> Batch:
    """So many cars of one pixel each."""
    ids = torch.arange(1, 9, dtype=torch.int32).view(2, 4) * (torch.arange(8).view(2, 4) < segments)
    truth = PanopticSegmentation(ids.int(), tuple(Segment(n + 1, 0) for n in range(segments)))
    images = torch.zeros((1, 3, 2, 4), dtype=torch.uint8)
    return Batch(images, torch.ones((1, 2, 4), dtype=torch.bool), ((2, 4),), (truth,), (0,), (None,))


def test_box_losses():
    import torchvision

    boxes = torch.rand((5, 2, 4), generator=torch.Generator().manual_seed(0))
    distance, overlap = box_losses(boxes[:, 0], boxes[:, 1])
    torch.testing.assert_close(distance, F.l1_loss(boxes[:, 0], boxes[:, 1], reduction="none").sum(1))
    corners = torchvision.ops.box_convert(boxes, "cxcywh", "xyxy")
    expected = torchvision.ops.generalized_box_iou_loss(corners[:, 0], corners[:, 1])
    torch.testing.assert_close(overlap, expected)


def test_mask_losses_equal_the_references():
    import torchvision
    from transformers.models.mask2former import modeling_mask2former as mask2former

    draw = torch.Generator().manual_seed(0)
    logits, targets = torch.randn((6, 80), generator=draw) * 4, torch.rand((6, 80), generator=draw)
    torch.testing.assert_close(
        binary_loss(logits, targets).sum(), mask2former.sigmoid_cross_entropy_loss(logits, targets, 1)
    )
    torch.testing.assert_close(dice_loss(logits, targets).sum(), mask2former.dice_loss(logits, targets, 1))
    targets = targets.round()
    expected = torchvision.ops.sigmoid_focal_loss(logits, targets, 0.25, 2.0).mean(1)
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets), expected)
    half = sigmoid_focal_loss(logits.bfloat16(), targets)
    assert half.dtype == torch.float32


def test_no_pairs():
    nothing = torch.zeros((0, 9), requires_grad=True)
    for loss in (binary_loss, dice_loss, sigmoid_focal_loss):
        assert loss(nothing, torch.zeros(0, 9)).shape == (0,)
    distance, overlap = box_losses(torch.zeros(0, 4), torch.zeros(0, 4))
    assert distance.shape == overlap.shape == (0,)


def example(objects=(3, 2), layers=3, one_map=True):
    """Random outputs of 7 queries on a 32 × 40 canvas, and images of other sizes on it, objects being squares."""
    draw = torch.Generator().manual_seed(1)
    truths = []
    for count, size in zip(objects, ((30, 40), (32, 25)), strict=True):
        ids = torch.zeros(size, dtype=torch.int32)
        for n in range(count):
            ids[6 * n : 6 * n + 9, 5 * n : 5 * n + 11] = n + 1
        truths.append(PanopticSegmentation(ids, tuple(Segment(n + 1, n % 3) for n in range(count))))
    images, valid = torch.zeros((2, 3, 32, 40), dtype=torch.uint8), torch.ones((2, 32, 40), dtype=torch.bool)
    batch = Batch(images, valid, ((30, 40), (32, 25)), tuple(truths), ("a", "b"), (None, None))
    classes = torch.randn((layers, 2, 7, 4), generator=draw).requires_grad_()
    embeddings = torch.randn((layers, 2, 7, 6), generator=draw).requires_grad_()
    maps = [torch.randn((2, 6, 8, 10), generator=draw).requires_grad_() for _ in range(layers)]
    return classes, embeddings, maps[:1] * layers if one_map else maps, segment_targets(batch, LABELS)


def losses_of_transformers(monkeypatch, classes, masks, targets, drawn, canvas):
    """Mask2FormerLoss, whose random points are ours: the layers in its own order, the last one first."""
    from transformers.models.mask2former import modeling_mask2former as mask2former

    layers = len(classes)
    queue = []
    for layer in (layers - 1, *range(layers - 1)):
        queue += [drawn[0][image : image + 1] for image in range(len(targets))]
        queue += drawn[1 + 2 * layer : 3 + 2 * layer]
    shapes = []

    def replay(*shape, device=None):
        shapes.append(shape)
        return queue.pop(0)

    monkeypatch.setattr(mask2former.torch, "rand", replay)
    config = SimpleNamespace(
        num_labels=3,
        no_object_weight=0.1,
        train_num_points=50,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        class_weight=2.0,
        dice_weight=5.0,
        mask_weight=5.0,
    )
    criterion = mask2former.Mask2FormerLoss(config, {})
    auxiliary = [
        {"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(masks[:-1], classes[:-1], strict=True)
    ]
    labels, dense = [t.categories for t in targets], [dense_masks(t, canvas) for t in targets]
    found = criterion(masks[-1], classes[-1], dense, labels, auxiliary)
    assert not queue
    weights = {"class": ("loss_cross_entropy", 2.0), "mask": ("loss_mask", 5.0), "dice": ("loss_dice", 5.0)}
    return {
        name: weight * sum(value for key, value in found.items() if key.startswith(start))
        for name, (start, weight) in weights.items()
    }


@pytest.mark.parametrize("one_map", [True, False])
def test_point_loss_and_gradients_equal_transformers(monkeypatch, one_map):
    classes, embeddings, features, targets = example(one_map=one_map)
    drawn, generator = [], torch.Generator().manual_seed(2)

    def draw(*shape, device):
        drawn.append(torch.rand(shape, generator=generator))
        return drawn[-1]

    found = point_set_loss(classes, embeddings, features, targets, (32, 40), SETTINGS, draw)
    shapes = [tuple(d.shape) for d in drawn]
    assert shapes == [(2, 50, 2)] + 3 * [(5, 150, 2), (5, 13, 2)]
    ours = torch.autograd.grad(sum(found.values()), [classes, embeddings, features[0]])
    masks = torch.stack([torch.einsum("bqd,bdhw->bqhw", e, f) for e, f in zip(embeddings, features, strict=True)])
    expected = losses_of_transformers(monkeypatch, classes, masks, targets, drawn, (32, 40))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-5)
    theirs = torch.autograd.grad(sum(expected.values()), [classes, embeddings, features[0]])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_point_loss_without_objects_reaches_every_input():
    classes, embeddings, features, targets = example(objects=(0, 0), one_map=False)
    found = point_set_loss(classes, embeddings, features, targets, (32, 40), SETTINGS)
    assert found["mask"] == found["dice"] == 0
    assert found["class"] > 0
    sum(found.values()).backward()
    for tensor in (classes, embeddings, *features):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_point_loss_with_an_image_without_objects():
    classes, embeddings, features, targets = example(objects=(0, 2))
    found = point_set_loss(classes, embeddings, features, targets, (32, 40), SETTINGS)
    sum(found.values()).backward()
    assert embeddings.grad[:, 0].abs().sum() == 0
    assert embeddings.grad[:, 1].abs().sum() > 0
    assert features[0].grad[1].abs().sum() > 0


def test_point_loss_is_float32_under_autocast():
    classes, embeddings, features, targets = example()
    torch.manual_seed(0)
    full = point_set_loss(classes, embeddings, features, targets, (32, 40), SETTINGS)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        found = point_set_loss(classes, embeddings, features, targets, (32, 40), SETTINGS)
    assert all(torch.equal(found[name], full[name]) for name in full)
    low = [f.detach().bfloat16() for f in features[:1]] * 3
    found = point_set_loss(classes, embeddings.detach().bfloat16(), low, targets, (32, 40), SETTINGS)
    assert all(value.dtype == torch.float32 and value.isfinite() for value in found.values())


def test_a_perfect_prediction_costs_little():
    """Embeddings that pick the map of their own object, whose features are ± 20 on and off it."""
    _, _, _, targets = example(layers=1)
    masks = [dense_masks(t, (32, 40)) for t in targets]
    features = torch.stack([F.pad(m, (0, 0, 0, 0, 0, 3 - len(m))) for m in masks]) * 40 - 20  # (2, 3, 32, 40)
    embeddings = torch.eye(3).flip(0).expand(1, 2, 3, 3)  # the queries are not in the order of the targets
    classes = torch.full((1, 2, 3, 4), -20.0)
    classes[0, 0, [2, 1, 0], targets[0].categories] = 20
    classes[0, 1, [2, 1], targets[1].categories] = 20
    classes[0, 1, 0, 3] = 20
    found = point_set_loss(classes, embeddings, [features], targets, (32, 40), PointSettings(points=2000))
    assert found["class"] < 1e-6
    assert found["dice"] < 0.7  # points near edges, where a target is between 0 and 1
    wrong = point_set_loss(classes, embeddings, [-features], targets, (32, 40), PointSettings(points=2000))
    assert wrong["dice"] > 2
    assert wrong["mask"] > 10 * found["mask"]


def test_uniform_numbers_follow_torchs_seed() -> None:
    device = torch.device("cpu")
    torch.manual_seed(5)
    first, second = uniform(100, 300, 2, device=device), uniform(100, 300, 2, device=device)
    torch.manual_seed(5)
    assert torch.equal(uniform(100, 300, 2, device=device), first)
    assert not torch.equal(first, second)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < 1e-3
    assert 1 - 1e-3 < first.max() < 1
    assert abs(float(first.mean()) - 0.5) < 0.01
    assert abs(float(first.var()) - 1 / 12) < 0.01
