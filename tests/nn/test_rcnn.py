"""The two stages of the detector: proposals, sampling, losses, against torchvision and by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from pansight.errors import PansightError
from pansight.nn.rcnn.roi_heads import MASK_CHUNK, MaskHead, TwoLinear
from pansight.nn.rcnn.rpn import RPN, cell_anchors
from pansight.nn.rcnn.two_stage import RCNN, detectron2_rcnn, torchvision_rcnn
from pansight.ops.fast.linear import fc_over_grid
from pansight.ops.fusion.instances import Detections, detections_to_instances
from pansight.ops.targets import InstanceTargets
from pansight.types import LabelSpace

CHANNELS = 16


def pyramid(count: int = 2, height: int = 96, width: int = 128, requires_grad: bool = False) -> list[torch.Tensor]:
    sizes = [(height // s, width // s) for s in (4, 8, 16, 32)]
    sizes.append((-(-height // 64), -(-width // 64)))
    return [torch.randn(count, CHANNELS, *s).requires_grad_(requires_grad) for s in sizes]


def extents(count: int = 2, height: int = 96, width: int = 128) -> torch.Tensor:
    return torch.tensor([[height, width]] * count)


def small(masks: bool = True, **options) -> RCNN:
    options = {"box_features": 24, "mask_convs": 1, "mask_channels": 8, "roi_samples": 32, "proposals": 60} | options
    return detectron2_rcnn(3, CHANNELS, masks, (16, 32, 64, 96, 128), **options)


def targets(objects: int) -> InstanceTargets:
    """Squares of 20 pixels side by side."""
    ids = torch.zeros(96, 128, dtype=torch.int32)
    boxes = torch.zeros(objects, 4)
    for k in range(objects):
        ids[10:30, 5 + 25 * k : 25 + 25 * k] = k + 1
        boxes[k] = torch.tensor([5 + 25 * k, 10, 25 + 25 * k, 30])
    index = torch.zeros(objects, dtype=torch.int64)
    values = torch.arange(1, objects + 1, dtype=torch.int32)
    return InstanceTargets(boxes, torch.arange(objects) % 3, ids[None], index, values)


# region proposals


def test_anchors_are_exact_or_rounded():
    exact = cell_anchors(32, (0.5, 1.0, 2.0), rounded=False)
    side = exact[:, 2:] - exact[:, :2]
    torch.testing.assert_close(side[:, 1] / side[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(side.prod(1), torch.full((3,), 32.0**2))
    assert (
        cell_anchors(32, (0.5, 1.0, 2.0), rounded=True).tolist() == AnchorGenerator(((32,),)).cell_anchors[0].tolist()
    )


@pytest.mark.parametrize("size", [(96, 128), (800, 1088)])  # the latter has strides of 61 on its last level
def test_anchor_grid_is_torchvisions(size):
    generator = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    shapes = [(size[0] // s, size[1] // s) for s in (4, 8, 16, 32)]
    shapes.append((-(-size[0] // 64), -(-size[1] // 64)))
    maps = [torch.zeros(1, 1, *s) for s in shapes]
    (expected,) = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)
    rpn = RPN(4, strides=None, rounded_anchors=True)
    strides = rpn.level_strides(shapes)
    found = [rpn.anchors(k, torch.arange(3 * h * w), w, strides[k]) for k, (h, w) in enumerate(shapes)]
    assert torch.equal(torch.cat(found), expected)
    assert RPN(4).level_strides(shapes)[4] == (64, 64)  # detectron2's are fixed


def test_proposals_are_torchvisions():
    torch.manual_seed(3)
    head = RPNHead(CHANNELS, 3)
    nn.init.normal_(head.cls_logits.weight, std=0.5)
    nn.init.normal_(head.bbox_pred.weight, std=0.1)
    generator = AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    top = {"training": 300, "testing": 200}, {"training": 150, "testing": 100}
    theirs = RegionProposalNetwork(generator, head, 0.7, 0.3, 256, 0.5, *top, 0.7).eval()
    kept = {"pre_nms": (300, 200), "post_nms": (150, 100)}
    ours = RPN(CHANNELS, strides=None, rounded_anchors=True, min_size=1e-3, **kept)
    ours.conv[0].load_state_dict(head.conv[0][0].state_dict())
    ours.objectness.load_state_dict(head.cls_logits.state_dict())
    ours.deltas.load_state_dict(head.bbox_pred.state_dict())
    maps = pyramid()
    sizes = [(96, 128), (70, 100)]
    with torch.no_grad():
        expected, _ = theirs(ImageList(torch.zeros(2, 3, 96, 128), sizes), dict(enumerate(maps)))
        found = ours.propose(ours(maps), torch.tensor(sizes), training=False)
    assert [len(e) for e in expected] == found.image_index.bincount().tolist()
    torch.testing.assert_close(found.boxes_xyxy, torch.cat(expected), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        more = ours.propose(ours(maps), torch.tensor(sizes), training=True)
    assert more.image_index.bincount().tolist() == [150, 150]


def test_rpn_losses_by_denominator():
    """detectron2 divides by the budget even where fewer anchors exist, torchvision by the number drawn."""
    maps = [m[:1, :, :2, :2] for m in pyramid(1)]  # 60 anchors for a budget of 256
    outputs = RPN(CHANNELS)(maps)
    torch.manual_seed(0)
    by_budget = RPN(CHANNELS, loss_per_budget=True).loss(outputs, [targets(1)])
    torch.manual_seed(0)
    by_number = RPN(CHANNELS, loss_per_budget=False).loss(outputs, [targets(1)])
    ratio = float(by_number["rpn_objectness"].detach() / by_budget["rpn_objectness"].detach())
    assert ratio == pytest.approx(256 / 60, rel=1e-4)  # every anchor is either positive or negative here


# heads


@pytest.mark.parametrize("count", [3, 400])  # few: the plain product; many: the turned one or the convolution
@pytest.mark.parametrize("half", [False, True])
def test_full_connection_over_a_grid_is_the_plain_layer(count: int, half: bool):
    layer = nn.Linear(8 * 49, 32)
    nn.init.normal_(layer.bias)
    x = torch.randn(count, 8, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    plain = x.detach().contiguous().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found = fc_over_grid(x.to(torch.bfloat16) if half else x, layer)
        expected = layer(plain.flatten(1))
    tolerance = 0.05 if half else 1e-4
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    gradients = []
    for result, source in ((found, x), (expected, plain)):
        layer.zero_grad()
        result.float().square().sum().backward()
        gradients.append((source.grad, layer.weight.grad))
    for a, b in zip(*gradients):
        assert (a - b).norm() < (0.02 if half else 1e-4) * b.norm()


def test_mask_head_is_the_plain_sequence():
    head = MaskHead(8, 5, convs=2, channels=12)
    nn.init.normal_(head.predictor.weight)
    nn.init.normal_(head.deconv.bias)
    nn.init.normal_(head.predictor.bias)
    x, classes = torch.randn(6, 8, 14, 14), torch.tensor([0, 4, 2, 2, 1, 3])
    y = x
    for conv in head.conv:
        y = F.relu(conv(y))
    expected = head.predictor(F.relu(head.deconv(y)))[torch.arange(6), classes]
    torch.testing.assert_close(head(x, classes), expected, rtol=1e-4, atol=1e-5)


def test_box_head_shapes():
    assert TwoLinear(8, 7, 20)(torch.randn(3, 8, 7, 7)).shape == (3, 20)


# both stages


def test_detections_are_sorted_limited_and_inside():
    rcnn = small(score_threshold=0.2, detections=7).eval()
    with torch.inference_mode():
        found = rcnn(pyramid(), torch.tensor([[96, 128], [50, 60]]))
    assert found.image_index.tolist() == [0] * 7 + [1] * 7
    for image, limit in enumerate((128, 60)):
        scores = found.scores[found.image_index == image]
        assert scores.tolist() == sorted(scores.tolist(), reverse=True)
        assert bool((scores > 0.2).all())
        assert float(found.boxes_xyxy[found.image_index == image].max()) <= limit
    assert found.mask_logits.shape == (14, 28, 28)
    assert found.labels.max() < 3


def test_masks_do_not_depend_on_how_many_are_made_at_a_time(monkeypatch):
    rcnn = small(score_threshold=0.1, detections=20).eval()
    maps = pyramid()
    assert MASK_CHUNK > 40
    with torch.inference_mode():
        at_once = rcnn(maps, extents())
        monkeypatch.setattr("pansight.nn.rcnn.two_stage.MASK_CHUNK", 7)
        in_parts = rcnn(maps, extents())
    assert len(at_once.scores) == 40
    torch.testing.assert_close(in_parts.mask_logits, at_once.mask_logits, rtol=1e-4, atol=1e-6)


def test_nothing_found():
    with torch.inference_mode():
        found = small(score_threshold=1.0).eval()(pyramid(), extents())
    assert [tuple(t.shape) for t in found] == [(0, 4), (0,), (0,), (0, 28, 28), (0,)]
    instances = detections_to_instances(found, extents(), [(10, 20), (3, 4)], LabelSpace.from_names("abc"))
    assert [i.masks.shape for i in instances] == [(0, 10, 20), (0, 3, 4)]


def test_not_a_number_is_never_detected():
    maps = pyramid()
    maps[0][0, :, 3:9] = math.nan
    rcnn = small(score_threshold=0.1).eval()
    with torch.inference_mode():
        found = rcnn(maps, extents())
    assert found.scores.isfinite().all()
    assert found.boxes_xyxy.isfinite().all()
    broken = [torch.full_like(m, math.nan) for m in maps]
    with torch.inference_mode():
        assert len(rcnn(broken, extents()).scores) == 0


LOSSES = {"rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"}


@pytest.mark.parametrize("objects", [(2, 3), (0, 3), (0, 0)])
@pytest.mark.parametrize("roi_op", ["align", "pool", "warp"])
def test_losses_are_finite_and_reach_every_parameter(objects, roi_op):
    rcnn = small(roi_op=roi_op).train()
    losses = rcnn.loss(pyramid(requires_grad=True), extents(), [targets(n) for n in objects])
    assert set(losses) == LOSSES
    assert all(v.isfinite() and v.ndim == 0 for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in rcnn.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
    if objects == (0, 0):
        assert float(losses["mask"].detach()) == float(losses["box_regression"].detach()) == 0


def torchvision_small(v2: bool) -> RCNN:
    return torchvision_rcnn(3, CHANNELS, v2=v2, box_features=24, mask_convs=1, mask_channels=8)


def without_proposals() -> RCNN:
    """Learns from the true boxes alone: nothing in an image without objects."""
    rcnn = small()
    rcnn.rpn.min_size = 1e9
    return rcnn


@pytest.mark.parametrize(
    "make", [small, lambda: torchvision_small(False), lambda: torchvision_small(True), without_proposals]
)
@pytest.mark.parametrize("objects", [(4, 0, 1), (0, 0, 2), (0, 0, 0)])
def test_losses_of_parts_add_up_to_those_of_the_whole(make, objects, monkeypatch):
    """torchvision divides by the anchors that it drew: here fewer than the budget, and not as many in each image."""
    monkeypatch.setattr("pansight.ops.regions.boxes._some_of", lambda index, count: index[:count])
    torch.manual_seed(0)
    rcnn = make().eval()  # V2 has BatchNorm, of which parts never make a whole
    maps, truth = [m[:, :, :4, :4] for m in pyramid(3)], [targets(n) for n in objects]
    parts = [([m[part] for m in maps], extents(3)[part], truth[part]) for part in (slice(0, 1), slice(1, 3))]
    counts = [rcnn.counts(*part) for part in parts]
    totals = {name: counts[0][name] + counts[1][name] for name in counts[0]}
    assert totals == rcnn.counts(maps, extents(3), truth)
    assert make is not without_proposals or totals["regions"] == totals["objects"] == sum(objects)
    budget = rcnn.rpn.loss_per_budget
    assert budget or objects == (0, 0, 0) or 2 * counts[0]["anchors"] != counts[1]["anchors"]
    assert (totals["anchors"] == 3 * 256) == budget
    found: list[dict[str, torch.Tensor]] = []
    for pieces, total in (([(maps, extents(3), truth)], None), (parts, totals)):
        rcnn.zero_grad()
        losses = [rcnn.loss(*piece, total) for piece in pieces]
        sum(value for each in losses for value in each.values()).backward()
        terms = {name: sum(each[name] for each in losses).detach() for name in LOSSES}
        found.append(terms | {name: p.grad for name, p in rcnn.named_parameters()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_without_a_mask_head():
    rcnn = small(masks=False)
    assert set(rcnn.loss(pyramid(), extents(), [targets(1), targets(0)])) == LOSSES - {"mask"}
    with torch.inference_mode():
        found = rcnn.eval()(pyramid(), extents())
    assert found.mask_logits.shape == (len(found.scores), 0, 0)
    instances = detections_to_instances(found, extents(), [(96, 128)] * 2, LabelSpace.from_names("abc"))
    assert instances[0].masks is None


def test_sampling_takes_the_truth_along_and_keeps_the_share():
    rcnn = small(roi_samples=16)
    proposals = rcnn.rpn.propose(rcnn.rpn(pyramid()), extents(), training=True)
    regions = rcnn.sample_regions(proposals, [targets(3), targets(0)])
    assert regions.image_index.bincount().tolist() == [16, 16]
    assert bool((regions.things[regions.image_index == 1] == -1).all())
    assert 3 <= len(regions.objects) <= 4  # a quarter of 16 at most; the three true boxes match themselves
    assert bool((regions.things[regions.objects] >= 0).all())
    assert int((regions.things >= 0).sum()) == len(regions.objects)
    exact = (regions.codes.abs() < 1e-6).all(1)
    assert exact.any()  # a true box is its own proposal
    assert regions.match[exact].tolist() == regions.things[regions.objects][exact].tolist()


def test_background_first_and_last_say_the_same():
    """The same network in both conventions: rows moved, same detections."""
    last = small(score_threshold=0.1).eval()
    first = torchvision_rcnn(3, CHANNELS, box_features=24, mask_convs=1, mask_channels=8, score_threshold=0.1).eval()
    assert first.box_predictor.cls_score.weight.shape == (4, 24)
    assert first.box_predictor.bbox_pred.weight.shape == (16, 24)
    assert last.box_predictor.bbox_pred.weight.shape == (12, 24)
    assert first.mask_head.predictor.weight.shape[0] == 4
    assert last.mask_head.predictor.weight.shape[0] == 3
    first.rpn, first.box_pooler, first.mask_pooler = last.rpn, last.box_pooler, last.mask_pooler
    first.min_size, first.box_head = 0.0, last.box_head
    first.mask_head.conv, first.mask_head.deconv = last.mask_head.conv, last.mask_head.deconv
    with torch.no_grad():
        first.box_predictor.cls_score.weight.copy_(last.box_predictor.cls_score.weight.roll(1, 0))
        first.box_predictor.bbox_pred.weight[4:] = last.box_predictor.bbox_pred.weight
        first.mask_head.predictor.weight[1:] = last.mask_head.predictor.weight
    maps = pyramid()
    with torch.inference_mode():
        a, b = last(maps, extents()), first(maps, extents())
    assert len(a.scores) > 20
    for left, right in zip(a, b):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_to_the_size_of_the_file():
    found = Detections(
        torch.tensor([[10.0, 20, 30, 40], [0, 0, 128, 96], [5.0, 5, 5.001, 5.001]]),
        torch.tensor([1, 0, 0]),
        torch.tensor([0.9, 0.8, 0.7]),
        torch.full((3, 28, 28), 20.0),
        torch.tensor([0, 1, 1]),
    )
    labels = LabelSpace.from_names(["a", "b"], ["s"])
    one, two = detections_to_instances(found, extents(), [(192, 384), (48, 64)], labels)
    assert one.boxes_xyxy.tolist() == [[30, 40, 90, 80]]  # width × 3, height × 2
    assert one.masks[0, 40:80, 30:90].all()
    assert one.labels.tolist() == [1]
    assert two.masks[0].all()
    assert two.boxes_xyxy[0].tolist() == [0, 0, 64, 48]


def test_unknown_roi_op():
    with pytest.raises(PansightError, match="unknown roi_op 'mean'; known: align, pool, warp"):
        small(roi_op="mean")
