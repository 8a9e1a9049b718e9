"""UPSNet: published sizes, the eight terms, the two ways to a panoptic map."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, shapes_batch, small, thresholds, void_batch
from torch import Tensor, nn
from torchvision.ops import roi_align

from pansight.data.categories import label_space
from pansight.data.categories.coco import coco_panoptic
from pansight.models import build
from pansight.nn.backbones.pyramid import FrozenBatchNorm
from pansight.nn.deformable import DeformableConv
from pansight.nn.semantic.deformable_head import DeformableHead
from pansight.ops.targets import instance_targets
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Segment

TERMS = ["rpn_objectness", "rpn_box", "box_class", "box_regression", "mask"]
TERMS += ["semantic", "semantic_regions", "panoptic"]


def outline(name: str, table: str) -> Any:
    """A network of full size without memory for its weights."""
    labels = coco_panoptic() if table == "coco" else label_space("cityscapes_panoptic")
    with torch.device("meta"):
        return build(name, labels)


def parameters(model: nn.Module) -> int:
    """With scale and bias of the frozen BatchNorm, which are parameters in the official code."""
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm)]
    return sum(p.numel() for p in model.parameters()) + sum(n.weight.numel() + n.bias.numel() for n in norms)


@pytest.mark.parametrize(
    ("name", "table", "count"),
    [
        ("upsnet_r50_coco", "coco", 46_129_904),
        ("upsnet_r50_cityscapes", "cityscapes", 44_527_804),
        ("upsnet_r101_dcn_coco", "coco", 66_408_204),
    ],
)
def test_published_sizes(name: str, table: str, count: int) -> None:
    model = outline(name, table)
    assert parameters(model) == count
    heads = {"coco": (593_935, 14_310_805, 2_643_537, 1_204_667), "cityscapes": None}[table]
    if heads:
        of_parts = (model.rcnn.rpn, (model.rcnn.box_head, model.rcnn.box_predictor), model.rcnn.mask_head)
        counted = [sum(map(parameters, part)) if isinstance(part, tuple) else parameters(part) for part in of_parts]
        assert (*counted, parameters(model.semantic_head)) == heads
        assert parameters(model.fpn.gap) == 524_544


def test_the_deformable_backbone_has_offsets_in_its_last_three_stages() -> None:
    features = outline("upsnet_r101_dcn_coco", "coco").backbone.features
    found = {name.split(".")[0] for name, module in features.named_modules() if isinstance(module, DeformableConv)}
    assert found == {"layer2", "layer3", "layer4"}
    block = features.layer3[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), 1)  # as Caffe has it


def test_a_deformable_backbone_starts_as_the_plain_one() -> None:
    options: dict[str, Any] = {"backbone": "resnet26", "short": 0, "fpn_channels": 8, "box_features": 8}
    torch.manual_seed(0)
    plain = build("upsnet", LABELS, **options)
    torch.manual_seed(0)
    deformable = build("upsnet", LABELS, deformable=True, **options)
    pixels = torch.randn(1, 3, 64, 96)
    for a, b in zip(plain.backbone(pixels), deformable.backbone(pixels), strict=True):  # pyright: ignore
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_channels_of_the_semantic_branch_become_fewer_in_the_last_but_one() -> None:
    for depth, widths in ((3, [(256, 256), (256, 128), (128, 128)]), (2, [(256, 128), (128, 128)]), (1, [(256, 128)])):
        head = DeformableHead(256, (4, 8, 16, 32), 5, 128, depth)
        assert [(conv.weight.shape[1], conv.weight.shape[0]) for conv in head.convs] == widths  # pyright: ignore


def test_the_eight_terms() -> None:
    model = small("upsnet").train()
    losses = model.loss(shapes_batch())
    assert list(losses) == TERMS
    assert all(float(value.detach()) > 0 for value in losses.values())
    without = small("upsnet").train()
    without.weights = without.weights._replace(regions=0.0)
    assert list(without.loss(shapes_batch())) == [term for term in TERMS if term != "semantic_regions"]


def test_nothing_labelled_costs_nothing() -> None:
    losses = small("upsnet").train().loss(void_batch())
    assert all(float(losses[term].detach()) == 0 for term in ("semantic", "semantic_regions", "panoptic", "mask"))


def test_the_region_loss_is_the_cross_entropy_of_regions_of_the_stacked_maps() -> None:
    """As the official code has it: regions of what the 1×1 convolution reads, which is then applied to them."""
    model, batch = small("upsnet").train(), shapes_batch()
    head = model.semantic_head
    stacked: list[Tensor] = []
    head.predictor.register_forward_pre_hook(lambda module, given: stacked.append(given[0]))
    features, _ = model._features(batch.images, batch.valid)
    logits = head(features)
    targets = instance_targets(batch, LABELS)
    regions = roi_align(stacked[0], [each.boxes_xyxy for each in targets], 28, 0.25, 2, False)
    said = head.predictor(regions)  # (N, C, 28, 28)
    target = batch_classes(model, batch)
    wanted: list[Tensor] = []
    for image, each in enumerate(targets):
        for x1, y1, x2, y2 in each.boxes_xyxy.int().tolist():
            crop = target[image, y1:y2, x1:x2][None, None].float()
            wanted.append(F.interpolate(crop, (28, 28), mode="nearest-exact")[0].long())
    expected = F.cross_entropy(said, torch.cat(wanted), ignore_index=-1, reduction="sum")
    torch.testing.assert_close(model._region_loss(logits, target, targets), expected, rtol=1e-4, atol=1e-3)


def batch_classes(model: Any, batch: Batch) -> Tensor:
    """int64 (B, H, W), stuff first, read from the segments one by one."""
    order = [c.name for c in (*LABELS.stuff, *LABELS.things)]
    result = torch.full((len(batch.truths), *batch.images.shape[2:]), -1)
    for row, truth in zip(result, batch.truths, strict=True):
        for segment in truth.segments:
            row[: truth.size[0], : truth.size[1]][truth.ids == segment.id] = order.index(LABELS[segment.category].name)
    return result


def test_what_is_unknown_changes_from_step_to_step_and_not_with_the_batch() -> None:
    model, batch = small("upsnet").eval(), shapes_batch(4)
    features, _ = model._features(batch.images, batch.valid)
    logits = model.semantic_head(features)
    targets = instance_targets(batch, LABELS)

    def loss(progress: float) -> float:
        model.set_progress(progress)
        return float(model._panoptic_loss(features, logits, batch, targets).detach())

    assert loss(0.0) == loss(0.0)
    assert len({loss(step / 8) for step in range(8)}) > 1


def test_both_ways_to_a_panoptic_map() -> None:
    model, batch = small("upsnet").eval(), shapes_batch()
    sizes = [(96, 96), (50, 70)]
    with torch.no_grad():
        outputs = model(batch.images, batch.valid)
    by_head, by_rule = (model.decode(outputs, sizes, **thresholds(model), heuristic=way) for way in (False, True))
    for head, rule, size in zip(by_head, by_rule, sizes, strict=True):
        assert head.panoptic.size == rule.panoptic.size == head.semantic.shape == size
        assert torch.equal(head.semantic, rule.semantic)
        assert torch.equal(head.instances.boxes_xyxy, rule.instances.boxes_xyxy)


def test_objects_at_the_threshold_are_left_out() -> None:
    model, batch = small("upsnet").eval(), shapes_batch(1)
    with torch.no_grad():
        outputs = model(batch.images, batch.valid)
    best = float(outputs.objects.scores.max())
    things = {c.id for c in LABELS.things}
    for prediction in model.decode(outputs, [(96, 96)], score_threshold=best):
        assert not any(segment.category in things for segment in prediction.panoptic.segments)


@pytest.mark.parametrize(("things", "stuff"), [(["a"], []), (["a", "b"], []), (["a"], ["sky"])])
def test_label_spaces_without_stuff_and_with_one_class(things: list[str], stuff: list[str]) -> None:
    labels = LabelSpace.from_names(things, stuff)
    model, batch = small("upsnet", labels), shapes_batch(1)
    ids = batch.truths[0].ids
    truth = PanopticSegmentation((ids == int(ids.max())).int(), (Segment(1, 0),))
    batch = replace(batch, truths=(truth,))
    losses = model.train().loss(batch)
    assert all(bool(value.isfinite()) for value in losses.values())
    with torch.no_grad():
        outputs = model.eval()(batch.images, batch.valid)
    (prediction,) = model.decode(outputs, [(1, 1)], **thresholds(model))
    assert prediction.panoptic.size == (1, 1)
