"""EfficientPS: the sizes of the released network, its parts written a second time, its loss and its switches."""

from __future__ import annotations

from importlib import import_module
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
import torch.nn.functional as F
from contract import LABELS, SMALL, assert_legal, mixed_batch, random_sample, shapes_batch, small, thresholds
from torch import Tensor, nn

from pansight.data.loader import collate
from pansight.errors import PansightError
from pansight.models import build
from pansight.models.panoptic.efficientps import released_rcnn
from pansight.nn.backbones.efficientnet import plain_efficientnet
from pansight.nn.fpn import TwoWayFPN, activated_conv, separable_conv
from pansight.nn.rcnn.roi_heads import MaskHead
from pansight.nn.rcnn.rpn import RPN
from pansight.nn.semantic.criterion import LOSSES
from pansight.nn.semantic.efficientps_head import DensePredictionCell, EfficientPSHead
from pansight.ops.fast import plain
from pansight.ops.fusion.adaptive import AdaptiveRule, Objects, adaptive_fusion
from pansight.ops.regions.boxes import BELOW, box_iou_matrix, decode_boxes, match_boxes
from pansight.ops.regions.roi import pyramid_levels
from pansight.ops.semantic.losses import hard_pixels
from pansight.ops.targets import semantic_targets
from pansight.types import LabelSpace

CITYSCAPES = LabelSpace.from_names([f"thing {n}" for n in range(8)], [f"stuff {n}" for n in range(11)])
PARTS = {
    "backbone": 23_148_912,
    "fpn": 3_557_376,
    "semantic_head": 1_206_547,
    "rcnn.rpn": 593_935,
    "rcnn.mask_head": 540_169,
}
BOX_HEAD = 13_941_805


def parameters(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def released() -> Any:
    with torch.device("meta"):
        return build("efficientps_cityscapes", CITYSCAPES)


def shaken(module: nn.Module) -> Any:
    """In evaluation, with statistics, scales and shifts that are not those of the start."""
    torch.manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
    return module.eval()


def test_sizes_of_the_released_network(released: Any) -> None:
    assert {name: parameters(released.get_submodule(name)) for name in PARTS} == PARTS
    assert parameters(released.rcnn.box_head) + parameters(released.rcnn.box_predictor) == BOX_HEAD
    assert parameters(released) == sum(PARTS.values()) + BOX_HEAD == 42_988_744


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"separable_fpn": True}, 40_902_856), ({"separable_fpn": True, "separable_rpn": True}, 40_381_640)],
)
def test_sizes_with_the_separable_convolutions_of_the_paper(options: dict[str, bool], expected: int) -> None:
    with torch.device("meta"):
        assert parameters(build("efficientps_cityscapes", CITYSCAPES, **options)) == expected


def test_the_backbone_is_b5_without_squeeze_and_excitation(released: Any) -> None:
    ours = {name: tuple(t.shape) for name, t in released.backbone.features.network.state_dict().items()}
    with torch.device("meta"):
        theirs = timm.create_model("tf_efficientnet_b5", num_classes=0).state_dict()
    assert ours == {name: tuple(t.shape) for name, t in theirs.items() if ".se." not in name}
    assert released.backbone.channels == (40, 64, 176, 2048)
    norms = [m for m in released.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}
    stages = released.backbone.features.network.blocks
    assert [len(stage) for stage in stages] == [3, 5, 5, 7, 7, 9, 3]
    activations = [m for m in released.backbone.modules() if isinstance(m, nn.LeakyReLU)]
    assert {a.negative_slope for a in activations} == {0.01}
    inverted = sum(len(stage) for stage in stages[1:])
    assert len(activations) == 1 + 2 * len(stages[0]) + 2 * inverted + 1
    assert all(
        isinstance(block.bn2.act, nn.LeakyReLU) and block.has_skip == bool(k) for k, block in enumerate(stages[0])
    )


def test_maps_of_the_backbone() -> None:
    backbone = shaken(plain_efficientnet(0.25, 0.3))
    network = backbone.features.network
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        found = backbone(x)
        stem = network.bn1(network.conv_stem(x))
        maps = [stem]
        for stage in network.blocks:
            maps.append(stage(maps[-1]))
        expected = [maps[2], maps[3], maps[5], network.bn2(network.conv_head(maps[7]))]
    assert [tuple(m.shape[2:]) for m in found] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [m.shape[1] for m in found] == list(backbone.channels)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_an_activated_convolution_by_its_formula() -> None:
    conv = shaken(activated_conv(3, 5, 3, (2, 1)))
    x = torch.randn(2, 3, 7, 9)
    weight, norm = conv[0].weight, conv[1]
    y = F.conv2d(F.pad(x, (1, 1, 2, 2)), weight, dilation=(2, 1))
    shape = (1, 5, 1, 1)
    y = (y - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + 1e-5).sqrt()
    y = norm.weight.view(shape) * y + norm.bias.view(shape)
    torch.testing.assert_close(conv(x), torch.where(y > 0, y, 0.01 * y), rtol=1e-4, atol=1e-5)


def test_a_separable_convolution() -> None:
    conv = separable_conv(4, 6)
    assert [tuple(p.shape) for p in conv.parameters()] == [(4, 1, 3, 3), (4,), (4,), (6, 4, 1, 1), (6,), (6,)]


def test_the_two_way_pyramid() -> None:
    """Each level has the sum of all coarser maps of one set and of all finer ones of the other."""
    fpn = shaken(TwoWayFPN([3, 4, 5], 6))
    maps = [torch.randn(1, c, 16 >> level, 8 >> level) for level, c in enumerate((3, 4, 5))]
    top, bottom = ([layer(x) for layer, x in zip(layers, maps)] for layers in (fpn.top, fpn.bottom))
    for level, found in enumerate(fpn(maps)):
        total = torch.zeros_like(top[level])
        for other in range(3):
            if other >= level:  # each pixel is repeated
                times = 2 ** (other - level)
                total += top[other].repeat_interleave(times, 2).repeat_interleave(times, 3)
            if other <= level:  # each second pixel is left out
                step = 2 ** (level - other)
                total += bottom[other][:, :, ::step, ::step]
        torch.testing.assert_close(found, fpn.output[level](total))


def test_the_dense_prediction_cell() -> None:
    cell = shaken(DensePredictionCell(4, 3))
    assert [conv[0][0].dilation for conv in cell.convs] == [(1, 6), (1, 1), (6, 21), (18, 15), (6, 3)]
    assert all(conv[0][0].padding == conv[0][0].dilation for conv in cell.convs)
    x = torch.randn(1, 4, 9, 11)
    a = cell.convs[0](x)
    d = cell.convs[3](a)
    every = torch.cat([a, cell.convs[1](a), cell.convs[2](a), d, cell.convs[4](d)], 1)
    torch.testing.assert_close(cell(x), cell.project(every))


def test_the_semantic_head() -> None:
    """Coarse to fine, each step enlarged once; what goes into the classifier is uncorrected."""
    head = shaken(EfficientPSHead(4, 7, 3))
    p4, p8, p16, p32 = (torch.randn(1, 4, 64 // s, 96 // s) for s in (4, 8, 16, 32))

    def enlarged(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)

    f32, f16 = head.context[0](p32), head.context[1](p16)
    f8 = head.outlines[0](p8) + enlarged(head.correction[0](f16 + enlarged(f32, 2)), 2)
    f4 = head.outlines[1](p4) + enlarged(head.correction[1](f8), 2)
    every = torch.cat([f4, enlarged(f8, 2), enlarged(f16, 4), enlarged(f32, 8)], 1)
    torch.testing.assert_close(head([p4, p8, p16, p32]), head.predictor(every))


def test_separable_heads_have_no_further_activation() -> None:
    """A leaky ReLU lets negative values through; the plain convolutions of other systems keep their ReLU."""
    torch.manual_seed(0)
    rpn, x = shaken(RPN(4, (8,), separable=True)), torch.randn(1, 4, 5, 6)
    inside = rpn.conv[0](x)
    assert (inside < 0).any()
    torch.testing.assert_close(rpn([x]).logits[0], rpn.objectness(inside))
    plain_rpn = RPN(4, (8,))
    torch.testing.assert_close(plain_rpn([x]).logits[0], plain_rpn.objectness(plain_rpn.conv[0](x).relu()))
    head, x = shaken(MaskHead(4, 3, 2, 5, separable=True)), torch.randn(6, 4, 7, 7)
    classes = torch.arange(6) % 3
    expected = head.predictor(head.deconv(head.conv[1](head.conv[0](x))).relu())[torch.arange(6), classes]
    for active in (False, True):
        with plain(active), torch.inference_mode():
            torch.testing.assert_close(head(x, classes), expected, rtol=1e-4, atol=1e-5)
    assert head(x[:0], classes[:0]).shape == (0, 14, 14)


def test_hard_pixels_are_rounded_up_where_asked() -> None:
    losses = torch.tensor([3.0, 2, 1, 0.5, 0.4, 0, 0])  # a quarter of 7 are 1.75
    assert hard_pixels(losses, 0.25).item() == 3
    assert hard_pixels(losses, 0.25, rounded_up=True).item() == 2.5
    assert hard_pixels(losses[:4], 0.25, rounded_up=True).item() == 3
    assert hard_pixels(losses, 0.001, rounded_up=True).item() == 3


def test_the_semantic_loss_is_the_mean_of_the_hardest_quarter_of_each_image() -> None:
    model, batch = small("efficientps").eval(), mixed_batch()
    with torch.inference_mode():
        logits = model(batch.images, batch.valid).semantic_logits
    target = semantic_targets(batch, range(len(LABELS)))
    logits = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    expected = torch.zeros(())
    for z, y, truth in zip(logits, target, batch.truths, strict=True):
        height, width = truth.size
        losses = F.cross_entropy(
            z[None, :, :height, :width], y[None, :height, :width], ignore_index=-1, reduction="none"
        )
        ranked = losses.flatten().sort(descending=True).values
        expected += ranked[: -(-height * width // 4)].mean() / len(batch.truths)
    torch.manual_seed(0)
    torch.testing.assert_close(model.loss(batch)["semantic"].detach(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_other_losses(loss: str) -> None:
    model = build("efficientps", LABELS, **SMALL["efficientps"] | {"loss": loss}).train()
    assert sum(model.loss(mixed_batch()).values(), torch.zeros(())).isfinite()


def test_class_weights_are_one_for_each_class() -> None:
    with pytest.raises(PansightError, match=f"one weight for each of {len(LABELS)} classes"):
        build("efficientps", LABELS, **SMALL["efficientps"] | {"class_weights": [1.0, 2.0]})


def test_numbers_of_the_fusion_may_be_given_to_decode() -> None:
    model, batch = small("efficientps").eval(), shapes_batch()
    with torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        found, own = (model.decode(outputs, batch.sizes, **given) for given in (thresholds(model), {}))
        without = model.decode(outputs, batch.sizes, **thresholds(model) | {"mask_factor": 0.0})
    things = [[s for s in p.panoptic.segments if LABELS[s.category].is_thing] for p in found]
    assert any(things)
    assert all(s.score > 0.5 for p in own for s in p.panoptic.segments)
    assert any(not torch.equal(a.panoptic.ids, b.panoptic.ids) for a, b in zip(found, without))
    assert all(torch.equal(a.semantic, b.semantic) for a, b in zip(found, own))


def test_the_packaged_backbone_is_the_default() -> None:
    model: Any = build("efficientps", LABELS, pretrained="packaged")
    assert model.backbone.channels == (24, 40, 112, 320)


@pytest.mark.parametrize("separable", [True, False])
def test_an_image_of_one_pixel(separable: bool) -> None:
    """With BatchNorms that see a single value, in every place that can have them."""
    options = {"separable_fpn": separable, "separable_rpn": separable}
    model = build("efficientps", LABELS, **SMALL["efficientps"] | options)
    batch = collate([random_sample(1, 1, 0)])
    assert sum(model.train().loss(batch).values(), torch.zeros(())).isfinite()
    with torch.inference_mode():
        outputs = model.eval()(batch.images, batch.valid)
        (prediction,) = model.decode(outputs, [(3, 2)], **thresholds(model))
    assert_legal(prediction, (3, 2), LABELS)


def test_anchors_of_the_released_network() -> None:
    """By hand for a stride of 4: sides 45.25 × 22.63, 32 × 32 and 22.63 × 45.25 around (1.5, 1.5), corners rounded."""
    rcnn = released_rcnn(3)
    expected = [[-21, -9, 24, 12], [-14, -14, 17, 17], [-9, -21, 12, 24]]  # last pixels
    assert (rcnn.rpn.cells[0] - torch.tensor([0, 0, 1, 1])).tolist() == expected
    assert rcnn.rpn.cells.shape == (4, 3, 4)
    for stride, cells in zip((4, 8, 16, 32), rcnn.rpn.cells, strict=True):
        ratio = torch.tensor([0.5, 1.0, 2.0])
        height, width = 8 * stride * ratio.sqrt(), 8 * stride / ratio.sqrt()
        centre = 0.5 * (stride - 1)
        low, high = ([centre + sign * 0.5 * (side - 1) for side in (width, height)] for sign in (-1, 1))
        assert torch.equal(cells, torch.stack([*(x.round() for x in low), *(x.round() + 1 for x in high)], 1))


def test_edges_of_pixels_are_boxes_of_whole_pixels() -> None:
    """Codes, overlaps and levels of the convention with "+ 1" are those of edges."""
    torch.manual_seed(0)
    low = 300 * torch.rand(50, 2)
    last = torch.cat([low, low + 400 * torch.rand(50, 2)], 1)  # the far corner is the last pixel
    edges = last + torch.tensor([0, 0, 1, 1])
    code = 0.3 * torch.randn(50, 4)
    sides = last[:, 2:] - last[:, :2] + 1
    centre = 0.5 * (last[:, :2] + last[:, 2:]) + sides * code[:, :2]
    moved = sides * code[:, 2:].exp()
    expected = torch.cat([centre - 0.5 * moved + 0.5, centre + 0.5 * moved - 0.5], 1)
    found = decode_boxes(code, edges, (1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(found - torch.tensor([0, 0, 1, 1]), expected, rtol=1e-4, atol=1e-3)
    corner, far = torch.maximum(last[:25, :2], last[25:, :2]), torch.minimum(last[:25, 2:], last[25:, 2:])
    overlap = (far - corner + 1).clamp(min=0).prod(1)
    union = sides[:25].prod(1) + sides[25:].prod(1) - overlap
    torch.testing.assert_close(box_iou_matrix(edges[:25], edges[25:]).diagonal(), overlap / union)
    pool = released_rcnn(3).box_pooler
    rule = pool.eps_after_log, pool.eps_in_ratio, pool.canonical_size
    levels = (sides.prod(1).sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3)
    assert pyramid_levels(edges, 4, *rule).tolist() == levels.tolist()
    assert len(set(levels.tolist())) > 2


def test_an_anchor_that_no_other_exceeds_is_an_object_from_a_least_overlap_on() -> None:
    iou = torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.1, 0.4]])
    assert match_boxes(iou, 0.3, 0.7, low_quality=True).tolist() == [0, BELOW, 1]
    assert match_boxes(iou, 0.3, 0.7, low_quality=True, low_quality_iou=0.3).tolist() == [BELOW, BELOW, 1]
    assert released_rcnn(3).rpn.low_quality_iou == 0.3


def test_the_fusion_gets_boxes_in_pixels_of_the_file() -> None:
    """As edges, or with the last pixel as the far corner, as in the released code."""
    model, batch = small("efficientps").eval(), collate([random_sample(61, 90, 0), random_sample(96, 96, 1)])
    given: list[Tensor] = []

    def note(logits: Tensor, semantic: Tensor, objects: Objects, *rest: Any) -> Any:
        given.append(objects.boxes_xyxy)
        return adaptive_fusion(logits, semantic, objects, *rest)

    module = import_module("pansight.models.panoptic.efficientps")
    with patch.object(module, "adaptive_fusion", note), torch.inference_mode():
        outputs = model(batch.images, batch.valid)
        model.decode(outputs, [(122, 45), (96, 96)])
        model.corners_of_pixels = True
        model.decode(outputs, [(122, 45), (96, 96)])
    found = outputs.detections
    boxes = found.boxes_xyxy[found.image_index == 0] * torch.tensor([0.5, 2, 0.5, 2])
    torch.testing.assert_close(given[0], boxes)
    torch.testing.assert_close(given[2], boxes - torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(given[1], found.boxes_xyxy[found.image_index == 1])
    assert len(boxes) > 0


def test_rules_of_both_builders(released: Any) -> None:
    """The factor on mask logits, and objects that win outside their boxes, are the released code's alone."""
    assert released.rule == AdaptiveRule(0.5, 0.5, 2048, mask_factor=4.0, bounded=False)
    assert small("efficientps").rule == AdaptiveRule(0.5, 0.5, 2048, mask_factor=1.0, bounded=True)
    assert (released.corners_of_pixels, small("efficientps").corners_of_pixels) == (True, False)
    assert not released.input.bgr
