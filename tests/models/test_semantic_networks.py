"""PSPNet, DeepLabV3 and V3+: their sizes, their dilations, and the parts that are particular to each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from contract import LABELS, SMALL, mixed_batch, shapes_batch, small
from torch import nn
from torchvision.models import resnet50

from pansight.errors import PansightError
from pansight.models import build
from pansight.nn.backbones.pyramid import timm_backbone
from pansight.nn.semantic.blocks import ASPP, ImagePooling, PyramidPooling, dilate, dilated_strides
from pansight.nn.semantic.criterion import LOSSES
from pansight.types import LabelSpace

NETWORKS = ["pspnet", "deeplabv3", "deeplabv3plus"]


def labels(classes: int) -> LabelSpace:
    return LabelSpace.from_names([], [f"class {k}" for k in range(classes)])


@pytest.mark.parametrize(
    ("name", "classes", "parameters", "auxiliary"),
    [
        ("pspnet_r50_semseg", 150, 46_782_550, 2_398_358),
        ("pspnet_r50_semseg", 19, 46_715_347, 2_364_691),
        ("pspnet_r101_semseg", 150, 65_774_678, 2_398_358),
        ("deeplabv3_r50_tv", 21, 39_638_869, 2_365_205),
        ("deeplabv3_r101_tv", 21, 58_630_997, 2_365_205),
        ("deeplabv3_mobilenet_v3_large_tv", 21, 11_025_477, 3_851),
        ("deeplabv3_r103_d2", 19, 58_163_667, 0),
        ("deeplabv3plus_r103_d2", 19, 59_467_315, 0),
    ],
)
def test_published_sizes(name: str, classes: int, parameters: int, auxiliary: int) -> None:
    with torch.device("meta"):
        model: Any = build(name, labels(classes))
    beside = [p.numel() for key, p in model.named_parameters() if key.startswith("aux_head.")]
    assert sum(beside) == auxiliary
    assert sum(p.numel() for p in model.parameters()) == parameters + auxiliary


def test_dilating_is_torchvisions() -> None:
    """The first block of a dilated stage keeps the dilation of the stage before."""
    ours = timm_backbone("resnet50", strides=dilated_strides(8), output_stride=8)
    with torch.device("meta"):
        theirs = resnet50(replace_stride_with_dilation=[False, True, True])
    assert ours.strides == (4, 8, 8, 8)
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for left, right in zip(getattr(ours.features, stage), getattr(theirs, stage), strict=True):
            for convolution in ("conv1", "conv2", "conv3"):
                a, b = getattr(left, convolution), getattr(right, convolution)
                assert (a.stride, a.dilation, a.padding) == (b.stride, b.dilation, b.padding)


def test_semsegs_dilations_hold_for_every_block() -> None:
    with torch.device("meta"):
        features = build("pspnet_r50_semseg", labels(19)).backbone.features  # pyright: ignore
    assert [block.conv2.dilation for block in features.layer3] == [(2, 2)] * 6
    assert [block.conv2.dilation for block in features.layer4] == [(4, 4)] * 3
    assert [block.conv2.stride for block in features.layer4] == [(1, 1)] * 3


def test_multi_grid() -> None:
    model: Any = build("deeplabv3", LABELS, backbone="resnet50", output_stride=8, multi_grid=[1, 2, 4])
    assert [block.conv2.dilation for block in model.backbone.features.layer4] == [(4, 4), (8, 8), (16, 16)]
    rates = [branch[0].dilation for branch in list(model.aspp.branches)[1:4]]
    assert rates == [(12, 12), (24, 24), (36, 36)]
    with pytest.raises(PansightError, match="multi_grid: expected a ResNet with 2 blocks in layer4, found 3 blocks"):
        build("deeplabv3", LABELS, backbone="resnet50", multi_grid=[1, 2])
    with pytest.raises(PansightError, match="expected a ResNet with 3 blocks in layer4, found no layer4"):
        dilate(timm_backbone("mobilenetv3_small_050"), "layer4", (1, 2, 4))


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_strides(name: str, stride: int) -> None:
    model = build(name, LABELS, **SMALL[name] | {"output_stride": stride})
    with torch.inference_mode():
        outputs = model.eval()(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))
    expected = 4 if name == "deeplabv3plus" else stride
    assert outputs.logits.shape == (1, len(LABELS), 64 // expected, 96 // expected)
    with pytest.raises(PansightError, match=f"output_stride of model {name}.*8, 16 or 32.*24"):
        build(name, LABELS, output_stride=24)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "convnext_atto", "tf_efficientnet_lite0"])
def test_other_backbones(name: str, backbone: str) -> None:
    model = build(name, LABELS, **SMALL[name] | {"backbone": backbone, "output_stride": 16})
    batch = shapes_batch(1, 64)
    assert sum(model.train().loss(batch).values(), torch.zeros(())).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("loss", [*LOSSES, "cross_entropy+dice"])
def test_every_loss_trains(name: str, loss: str) -> None:
    model = build(name, LABELS, **SMALL[name] | {"loss": loss}).train()
    losses = model.loss(mixed_batch())
    assert set(losses) == {"semantic", "auxiliary"}
    sum(losses.values(), torch.zeros(())).backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]  # pyright: ignore
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_class_weights_are_one_for_each_class() -> None:
    with pytest.raises(PansightError, match=f"one weight for each of {len(LABELS)} classes.*found 2"):
        build("pspnet", LABELS, **SMALL["pspnet"] | {"class_weights": [1.0, 2.0]})
    weights = [0.0] * (len(LABELS) - 1) + [1.0]
    model = build("pspnet", LABELS, **SMALL["pspnet"] | {"class_weights": weights})
    assert model.counts(shapes_batch())["weights"] < model.counts(shapes_batch())["pixels"]


def test_panoptic_fpn_has_the_same_losses() -> None:
    """Its default is the mean cross-entropy."""
    values: dict[str, float] = {}
    for loss in ("cross_entropy", *LOSSES[1:]):
        torch.manual_seed(0)
        model = build("panoptic_fpn", LABELS, **SMALL["panoptic_fpn"] | {"loss": loss}).train()
        torch.manual_seed(1)
        values[loss] = model.loss(shapes_batch())["semantic"].item()
    assert len(set(values.values())) == len(LOSSES)
    weights = [1.0] * (1 + len(LABELS.stuff))
    torch.manual_seed(0)
    model = build("panoptic_fpn", LABELS, **SMALL["panoptic_fpn"] | {"class_weights": weights}).train()
    torch.manual_seed(1)
    assert model.loss(shapes_batch())["semantic"].item() == pytest.approx(values["cross_entropy"])
    with pytest.raises(PansightError, match=f"one weight for each of {len(weights)} classes"):
        build("panoptic_fpn", LABELS, **SMALL["panoptic_fpn"] | {"class_weights": [1.0] * 9})


def test_pyramid_pooling_by_hand() -> None:
    ppm = PyramidPooling(8, (1, 2), bare_mean=True).eval()
    assert ppm.outputs == 16
    x = torch.randn(2, 8, 5, 7)
    found = ppm(x)
    assert torch.equal(found[:, :8], x)
    mean = ppm.branches[0](x.mean((2, 3), keepdim=True)).expand(2, 4, 5, 7)
    torch.testing.assert_close(found[:, 8:12], mean)
    cells = ppm.branches[1](F.adaptive_avg_pool2d(x, 2))
    corners = found[:, 12:, [0, 0, -1, -1], [0, -1, 0, -1]]  # corners are aligned
    torch.testing.assert_close(corners, cells.flatten(2))


def test_image_pooling_over_windows() -> None:
    """A window larger than the map is the map."""
    pooling = ImagePooling(4, 6, norm=False, window=(3, 9))
    x = torch.randn(1, 4, 5, 7)
    found = pooling(x)
    assert found.shape == (1, 6, 5, 7)
    rows = torch.stack([x[:, :, top : top + 3].mean((2, 3)) for top in range(3)], 2)[..., None]  # (1, 4, 3, 1)
    expected = F.interpolate(pooling.layers(rows), (5, 7), mode="bilinear")
    torch.testing.assert_close(found, expected)
    x = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(pooling(x)[0, :, 0, 0], pooling.layers(x.mean((2, 3), keepdim=True))[0, :, 0, 0])


def test_aspp_keeps_the_size_of_any_map() -> None:
    aspp = ASPP(4, 6, (2, 40), ImagePooling(4, 6), 0.5, separable=True).train()
    for size in ((1, 1), (3, 9)):
        assert aspp(torch.randn(1, 4, *size)).shape == (1, 6, *size)
    assert sum(isinstance(layer, nn.Conv2d) and layer.groups == 4 for layer in aspp.modules()) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_no_auxiliary_head_without_a_weight(name: str) -> None:
    model = build(name, LABELS, **SMALL[name] | {"aux_weight": 0.0}).train()
    assert not any(key.startswith("aux_head") for key in model.state_dict())  # pyright: ignore
    assert set(model.loss(shapes_batch(1))) == {"semantic"}
    assert small(name).eval()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).aux_logits is None


@pytest.mark.parametrize("backbone", ["vgg16", "hrnet_w18_small", "densenet121", "swin_tiny_patch4_window7_224"])
def test_what_cannot_be_dilated_is_named(backbone: str) -> None:
    with pytest.raises(PansightError, match=f"backbone {backbone}: expected a network that can be dilated to stride 8"):
        build("pspnet", LABELS, backbone=backbone)


def test_pyramid_pooling_of_few_channels_or_no_grid() -> None:
    x = torch.randn(1, 3, 4, 4)
    assert PyramidPooling(3, ()).eval()(x).shape == (1, 3, 4, 4)
    assert PyramidPooling(3, (1, 2, 3, 6)).eval()(x).shape == (1, 7, 4, 4)
