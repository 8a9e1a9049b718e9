"""timm's backbones as feature pyramids: strides, channels, frozen layers, normalisation."""

import pytest
import torch
from torch import nn

from pansight.errors import PansightError
from pansight.nn.backbones.pyramid import FrozenBatchNorm, timm_backbone
from pansight.nn.backbones.vit import vit_backbone


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256, 512)),
        ("tf_efficientnet_lite0", (24, 40, 112, 320)),
        ("convnext_atto", (40, 80, 160, 320)),
    ],
)
def test_any_timm_name_gives_a_pyramid(name, channels):
    backbone = timm_backbone(name).eval()
    maps = backbone(torch.zeros((1, 3, 64, 96)))
    assert backbone.channels == channels
    assert [tuple(m.shape) for m in maps] == [(1, c, 64 // s, 96 // s) for c, s in zip(channels, (4, 8, 16, 32))]


def test_channels_last_families_are_turned():
    backbone = timm_backbone("swin_tiny_patch4_window7_224").eval()
    maps = backbone(torch.zeros((1, 3, 224, 224)))
    assert [m.shape[1] for m in maps] == list(backbone.channels)


def test_frozen_batch_norm_has_no_parameters_and_never_changes():
    torch.manual_seed(0)
    plain, frozen = timm_backbone("resnet18"), timm_backbone("resnet18", frozen_bn=True)
    frozen.load_state_dict(plain.state_dict(), strict=False)  # only num_batches_tracked is left over
    frozen.train()
    x = torch.randn(1, 3, 64, 64)
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain.eval()(x), frozen(x)))
    assert all(torch.equal(before[k], v) for k, v in frozen.state_dict().items())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in frozen.modules())
    assert not [p for m in frozen.modules() if isinstance(m, FrozenBatchNorm) for p in m.parameters()]


def test_frozen_batch_norm_keeps_the_activation_of_timms_fused_layers():
    x = torch.randn(1, 3, 64, 64)
    plain = timm_backbone("tf_efficientnet_lite0", "packaged").eval()
    frozen = timm_backbone("tf_efficientnet_lite0", "packaged", frozen_bn=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(plain(x), frozen(x)))


def test_freeze_stages():
    frozen = {n for n, p in timm_backbone("resnet50", freeze_stages=2).named_parameters() if not p.requires_grad}
    assert {n.split(".")[1] for n in frozen} == {"conv1", "bn1", "layer1"}
    assert all(p.requires_grad for p in timm_backbone("resnet18").parameters())
    flattened = {
        n for n, p in timm_backbone("convnext_atto", freeze_stages=1).named_parameters() if not p.requires_grad
    }
    assert {n.split(".")[1] for n in flattened} == {"stem_0", "stem_1", "stages_0"}


def test_stride_in_the_first_1x1():
    block = timm_backbone("resnet50", stride_in_1x1=True).get_submodule("features.layer2.0")
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_packaged_weights_see_what_imagenet_taught():
    """The packaged features differ from random ones, load under timm's names and expect their own normalisation."""
    backbone = timm_backbone("tf_efficientnet_lite0", "packaged")
    assert float(backbone.state_dict()["features.bn1.running_var"].std()) > 0
    assert backbone.pixels.mean == pytest.approx([0.498 * 255] * 3)


def test_packaged_weights_classify_a_real_photo(data_root):
    """The whole classifier, under the same renaming: its best classes on a COCO photo are ImageNet's right ones."""
    import timm

    from pansight.data.images import read_image
    from pansight.nn.backbones.pyramid import packaged_state_dict

    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(packaged_state_dict(set(net.state_dict())))
    image = read_image(data_root / "coco_panoptic_sample/input_images/000000439180.jpg")
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 - 0.498) / 0.502
    pixels = torch.nn.functional.interpolate(pixels, size=(224, 224), mode="bilinear", antialias=True)
    probability = net(pixels).softmax(1)[0]
    assert probability.max().item() > 0.2  # random weights give 0.001


def test_errors_are_one_line_and_name_the_way_on(monkeypatch):
    with pytest.raises(PansightError, match=r"unknown backbone 'resnot18'.*resnet18"):
        timm_backbone("resnot18")
    with pytest.raises(PansightError, match=r"packaged.*tf_efficientnet_lite0"):
        timm_backbone("resnet18", "packaged")
    with pytest.raises(PansightError, match="expected feature maps at strides"):
        timm_backbone("vit_tiny_patch16_224")
    import timm

    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    told = r"cannot be downloaded \(no route to host\).*pretrained='packaged'"
    with pytest.raises(PansightError, match=told) as caught:
        timm_backbone("resnet18", "timm")
    assert caught.value.code == "offline_weights"
    with pytest.raises(PansightError, match=r"timm's weights cannot be had \(no route to host\)") as caught:
        vit_backbone("vit_tiny_patch16_224", "timm")
    assert caught.value.code == "offline_weights"
