"""Mask R-CNN against torchvision's own, with the same weights: detections, masks and training targets."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import detection
from twins import SIDE, calibrate, load, photo, small_twins

from pansight.data.categories.coco import coco_91, coco_things
from pansight.models import build
from pansight.ops.regions.boxes import box_iou_matrix
from pansight.ops.regions.roi import make_pyramid
from pansight.ops.targets import instance_targets
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Segment

TINY = {"backbone": "resnet10t", "fpn_channels": 16, "box_features": 16, "mask_convs": 1, "mask_channels": 8}


def raw_masks(theirs: Any, image: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """torchvision's result at the size of the image, and its 28 × 28 probabilities before they are pasted."""
    caught: list[Tensor] = []
    hook = theirs.roi_heads.register_forward_hook(lambda _m, _i, output: caught.append(output[0][0]["masks"].clone()))
    (expected,) = theirs([image.float() / 255])
    hook.remove()
    return expected, caught[0][:, 0]


def assert_same(ours: Any, theirs: Any, image: Tensor, at_least: int) -> None:
    size = (image.shape[1], image.shape[2])
    with torch.inference_mode():
        expected, probabilities = raw_masks(theirs, image)
        outputs = ours(image[None])
        (found,) = ours.decode(outputs, [size])
    instances = found.instances
    assert len(instances) >= at_least
    torch.testing.assert_close(instances.boxes_xyxy, expected["boxes"], rtol=1e-5, atol=2e-3)
    torch.testing.assert_close(instances.scores, expected["scores"], rtol=0, atol=1e-4)
    assert torch.equal(instances.labels, expected["labels"] - 1)
    torch.testing.assert_close(outputs.detections.mask_logits.sigmoid(), probabilities, rtol=0, atol=1e-4)
    soft = expected["masks"][:, 0]
    assert torch.equal((soft > 0.5)[(soft - 0.5).abs() > 1e-3], instances.masks[(soft - 0.5).abs() > 1e-3])
    assert 0 < int(instances.masks.sum()) < instances.masks.numel()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(128, 160), (160, 96)])
def test_small_twins_find_the_same(size):
    theirs, ours = small_twins(masks=True)
    assert_same(ours, theirs, photo(*size, seed=1), at_least=50)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reference", "options"),
    [
        pytest.param("mask_rcnn_r50_tv", detection.maskrcnn_resnet50_fpn, {"bn_eps": 1e-5}, marks=pytest.mark.long),
        pytest.param("mask_rcnn_r50_tv_v2", detection.maskrcnn_resnet50_fpn_v2, {}, marks=pytest.mark.long),
    ],
)
def test_full_networks_find_the_same(name: str, reference: Any, options: dict[str, Any]):
    theirs = reference(weights=None, weights_backbone=None, min_size=192, max_size=256, box_detections_per_img=40)
    image = photo(192, 256, seed=1)
    calibrate(theirs, image)
    ours = build(name, coco_91(), **options)
    ours.rcnn.detections = 40
    load(ours, theirs)
    assert_same(ours, theirs, image, at_least=40)


def drawn_batch() -> Batch:
    """Two images, the second smaller; three rectangles with a corner cut off in each."""
    images = torch.zeros((2, 3, 128, SIDE), dtype=torch.uint8)
    valid = torch.zeros((2, 128, SIDE), dtype=torch.bool)
    truths: list[PanopticSegmentation] = []
    for k, (height, width) in enumerate([(128, SIDE), (96, SIDE)]):
        images[k, :, :height, :width] = photo(height, width, 10 + k)
        valid[k, :height, :width] = True
        ids = torch.zeros((height, width), dtype=torch.int32)
        for n in range(3):
            ids[10 + 8 * n : 70 + 5 * n, 50 * n + 3 : 50 * n + 45] = n + 1
            ids[10 + 8 * n : 30, 50 * n + 3 : 50 * n + 20] = 0
        truths.append(PanopticSegmentation(ids, tuple(Segment(n + 1, n) for n in range(3))))
    return Batch(images, valid, ((128, SIDE), (96, SIDE)), tuple(truths), (0, 1), (None, None))


def everything_drawn(ours: Any) -> None:
    """Budgets so large that every anchor and proposal is drawn: nothing is left to chance."""
    ours.rcnn.rpn.samples = ours.rcnn.samples = 10**6
    ours.rcnn.positive_fraction = 0.5


def test_losses_and_gradients_are_torchvisions():
    theirs, ours = small_twins(masks=True)
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 0.5
    everything_drawn(ours)
    batch = drawn_batch()
    wanted = [
        {
            "boxes": target.boxes_xyxy,
            "labels": target.things + 1,
            "masks": (target.mask_stack == target.mask_value[:, None, None]).to(torch.uint8),
        }
        for target in instance_targets(batch, ours.labels)
    ]
    images = [image[:, :h, :w].float() / 255 for image, (h, w) in zip(batch.images, batch.sizes)]
    theirs.train()
    theirs.backbone.eval()  # BatchNorm as it stands: torchvision normalises its padding otherwise
    ours.train()
    ours.backbone.eval()
    expected = theirs(images, wanted)
    found = ours.loss(batch)
    pairs = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "box_class": "loss_classifier",
        "box_regression": "loss_box_reg",
        "mask": "loss_mask",
    }
    for name, reference in pairs.items():
        assert float(expected[reference].detach()) > 1e-3, name
        torch.testing.assert_close(found[name], expected[reference], rtol=1e-4, atol=1e-5, msg=name)
    sum(expected.values()).backward()
    sum(found.values()).backward()
    for ours_name, theirs_parameter in (
        ("fpn.output.0.weight", theirs.backbone.fpn.layer_blocks[0][0].weight),
        ("rcnn.mask_head.deconv.weight", theirs.roi_heads.mask_predictor.conv5_mask.weight),
        ("rcnn.box_head.fc6.weight", theirs.roi_heads.box_head.fc6.weight),
        ("backbone.features.layer1.0.conv1.weight", theirs.backbone.body.layer1[0].conv1.weight),
    ):
        gradient = ours.get_parameter(ours_name).grad
        assert (gradient - theirs_parameter.grad).norm() < 1e-3 * theirs_parameter.grad.norm(), ours_name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "labels", "count"),
    [
        ("mask_rcnn_r50_tv", coco_91(), 44_401_393),
        ("mask_rcnn_r50_tv_v2", coco_91(), 46_359_409),
        ("mask_rcnn_r50_d2", coco_things(), 44_343_216),
    ],
)
def test_parameter_counts(name: str, labels: LabelSpace, count: int):
    ours = build(name, labels)
    assert sum(p.numel() for p in ours.parameters()) == count


def test_half_precision_changes_three_digits_and_no_more():
    """The fast settings, bfloat16 autocast and channels_last: heads, detections and losses beside float32's.

    Random masks are noise at the scale of their cells, so they are compared on the same boxes.
    """
    _, ours = small_twins(masks=True)
    image = photo(128, SIDE, seed=1)[None].contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exact = ours(image).detections
        pyramid = make_pyramid(ours.fpn(ours.backbone(ours.input(image)))[:4], (4, 8, 16, 32))
        ours.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            fast = ours(image).detections
            grids = ours.rcnn.mask_pooler(pyramid, exact.boxes_xyxy, exact.image_index)
            masks = ours.rcnn.mask_head(grids, exact.labels + 1)
    assert fast.boxes_xyxy.dtype == fast.scores.dtype == fast.mask_logits.dtype == torch.float32
    assert (masks - exact.mask_logits).norm() < 0.03 * exact.mask_logits.norm()
    same_class = exact.labels[:, None] == fast.labels
    iou, partner = (box_iou_matrix(exact.boxes_xyxy, fast.boxes_xyxy) * same_class).max(1)
    found_again = (iou > 0.8) & ((exact.scores - fast.scores[partner]).abs() < 0.05)
    assert int(found_again[:20].sum()) >= 14  # suppression turns small differences into other choices

    everything_drawn(ours)
    ours.train()
    batch = drawn_batch()
    exact_losses = ours.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        fast_losses = ours.loss(batch)
    for name, loss in exact_losses.items():
        assert fast_losses[name].dtype == torch.float32
        torch.testing.assert_close(fast_losses[name], loss, rtol=0.05, atol=0.01, msg=name)


def test_what_is_left_becomes_the_one_stuff_class():
    image = photo(128, 128, 0)[None]
    for stuff, expected in ((["background"], {1}), ([], set()), (["grass", "sky"], set())):
        torch.manual_seed(0)
        ours = build("mask_rcnn", LabelSpace.from_names(["cell"], stuff), **TINY).eval()
        with torch.inference_mode():
            (found,) = ours.decode(ours(image), [(100, 90)], score_threshold=2.0)
        assert {s.category for s in found.panoptic.segments} == expected
        assert bool((found.panoptic.ids != 0).all()) == bool(expected)


@pytest.mark.slow
def test_four_hundred_objects_at_the_size_of_a_large_file():
    ours = build("mask_rcnn", LabelSpace.from_names(["cell"], ["background"]), **TINY, detections=400).eval()
    ours.rcnn.score_threshold, ours.rcnn.nms_threshold = 0.0, 0.9
    with torch.inference_mode():
        outputs = ours(photo(256, 320, 0)[None])
        (found,) = ours.decode(outputs, [(1040, 1388)])
    assert found.instances.masks.shape == (400, 1040, 1388)
    assert found.instances.masks.dtype == torch.bool


@pytest.mark.parametrize("roi_op", ["align", "pool", "warp"])
def test_both_ways_to_pool_learn(roi_op: str):
    ours = build("mask_rcnn", LabelSpace.from_names(["a", "b", "c"]), **TINY, roi_op=roi_op).train()
    batch = drawn_batch()
    before = batch.images.clone()
    losses = ours.loss(batch)
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ours.parameters())
    assert torch.equal(batch.images, before)
