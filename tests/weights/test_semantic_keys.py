"""Semantic networks of other libraries: their state dicts load tensor by tensor, and where they run, outputs agree."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18, segmentation

from pansight.data.loader import pad_images
from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import _load_official, _recognised, load_model

pytestmark = pytest.mark.slow  # networks of full size

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
PHOTO = np.random.default_rng(5).integers(0, 256, (3, 45, 67), np.uint8)


def labels(classes: int) -> LabelSpace:
    return LabelSpace.from_names([], [f"class {k}" for k in range(classes)])


def shaken(model: nn.Module) -> Any:
    """Random statistics and affine terms, so that a norm in the wrong place is seen."""
    generator = torch.Generator().manual_seed(3)
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


def save(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


def images() -> tuple[Tensor, Tensor, Tensor]:
    """The photo as ours take it (images, valid), and normalised."""
    photo = torch.from_numpy(PHOTO)
    padded, valid = pad_images([photo], 1)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return padded, valid, ((photo.float() - mean[:, None, None]) / std[:, None, None])[None]


@pytest.mark.parametrize("aux", [True, False])
def test_deeplabv3_of_torchvision_gives_its_outputs(tmp_path: Path, aux: bool) -> None:
    torch.manual_seed(0)
    theirs = shaken(segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux))
    model, name, options = load_model(save(tmp_path / "deeplab.pth", theirs.state_dict()))
    assert name == "deeplabv3_r50_tv"
    assert options == ({} if aux else {"aux_weight": 0.0})
    assert model.labels.names[:2] == ("background", "aeroplane")
    padded, valid, normalised = images()
    with torch.inference_mode():
        outputs, expected = model(padded, valid), theirs(normalised)
        (logits,) = model._of_images(outputs)
        torch.testing.assert_close(logits, expected["out"], rtol=1e-4, atol=1e-4)
        (found,) = model.decode(outputs, [(45, 67)])
        assert torch.equal(found.semantic, expected["out"][0].argmax(0))
        if aux:
            model.train()
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d | nn.Dropout):
                    module.eval()
            auxiliary = nn.functional.interpolate(model(padded, valid).aux_logits, (45, 67), mode="bilinear")
            torch.testing.assert_close(auxiliary, expected["aux"], rtol=1e-4, atol=1e-4)


def test_deeplabv3_of_torchvision_has_its_keys() -> None:
    with torch.device("meta"):
        theirs = segmentation.deeplabv3_resnet101(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
        ours: Any = build("deeplabv3_r101_tv", labels(21))
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 60_996_202


@pytest.mark.parametrize("aux", [True, False])
def test_mobilenet_of_torchvision_is_loaded(tmp_path: Path, aux: bool) -> None:
    make: Any = segmentation.deeplabv3_mobilenet_v3_large
    theirs = shaken(make(weights=None, weights_backbone=None, num_classes=21, aux_loss=aux))
    model, name, options = load_model(save(tmp_path / "mobile.pth", theirs.state_dict()))
    assert name == "deeplabv3_mobilenet_v3_large_tv"
    assert options == ({} if aux else {"aux_weight": 0.0})
    assert sum(p.numel() for p in model.parameters()) == (11_029_328 if aux else 11_025_477)
    padded, valid, normalised = images()
    with torch.inference_mode():
        outputs, expected = model(padded, valid), theirs(normalised)
        (logits,) = model._of_images(outputs)
        torch.testing.assert_close(logits, expected["out"], rtol=1e-4, atol=1e-4)
        (found,) = model.decode(outputs, [(45, 67)])
        assert torch.equal(found.semantic, expected["out"][0].argmax(0))
        if aux:
            before = model.backbone(model.input(padded, valid))[-2]
            auxiliary = nn.functional.interpolate(model.aux_head(before), (45, 67), mode="bilinear")
            torch.testing.assert_close(auxiliary, expected["aux"], rtol=1e-4, atol=1e-4)


def test_other_backbones_of_torchvision_are_named(tmp_path: Path) -> None:
    theirs = segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    small = {key: value for key, value in theirs.state_dict().items() if not key.startswith("backbone.16.")}
    with pytest.raises(PansightError, match=r"expected a ResNet-50 or ResNet-101, found stages of \[0, 0, 0, 0\]"):
        load_model(save(tmp_path / "mobile.pth", small))


def bottlenecks(depth: int, stages: list[str], names: tuple[str, str, str, str]) -> dict[str, tuple[int, ...]]:
    """Shapes of the four stages of a ResNet behind a stem of 128 channels.

    names: how a convolution, the norm behind it, the convolution beside a block and the norm behind that are called.
    """
    convolution, norm, beside, beside_norm = names
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 128
    for stage, blocks, width in zip(stages, STAGES[depth], (64, 128, 256, 512), strict=True):
        for block in range(blocks):
            at = f"{stage}.{block}."
            sizes = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            for number, size in enumerate(sizes, 1):
                shapes[at + convolution.format(number)] = size
                shapes |= norms(at + norm.format(number), size[0])
            if block == 0:
                shapes[at + beside] = (4 * width, inputs, 1, 1)
                shapes |= norms(at + beside_norm, 4 * width)
            inputs = 4 * width
    return shapes


def norms(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{part}": () if part.startswith("num") else (channels,) for part in NORM}


def loaded(state: dict[str, Tensor]) -> tuple[Any, str, dict[str, Any]]:
    """As from a file, which could not hold tensors that repeat one number."""
    found = _recognised(state, "file.pth")
    assert found is not None
    return _load_official(*found, "file.pth")


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every tensor its own constant, without the memory of its values, so that a swap of two is seen."""
    state: dict[str, Tensor] = {}
    for index, (key, shape) in enumerate(shapes.items()):
        value = torch.tensor(index) if key.endswith("tracked") else torch.tensor(float(index))
        state[key] = value.expand(shape)
    return state


def values(tensors: dict[str, Tensor]) -> list[float]:
    """The constants, each of which must fill its tensor."""
    found: list[float] = []
    for key, tensor in tensors.items():
        assert tensor.min() == tensor.max(), key
        found.append(tensor.flatten()[0].item())
    return sorted(found)


def semseg(depth: int, classes: int, aux: bool = True) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for place, size in ((0, (64, 3, 3, 3)), (3, (64, 64, 3, 3)), (6, (128, 64, 3, 3))):
        shapes |= {f"layer0.{place}.weight": size, **norms(f"layer0.{place + 1}", size[0])}
    names = ("conv{}.weight", "bn{}", "downsample.0.weight", "downsample.1")
    shapes |= bottlenecks(depth, [f"layer{stage}" for stage in range(1, 5)], names)
    for branch in range(4):
        shapes |= {f"ppm.features.{branch}.1.weight": (512, 2048, 1, 1), **norms(f"ppm.features.{branch}.2", 512)}
    for head, width, inputs in (("cls", 512, 4096), ("aux", 256, 1024)):
        if head == "cls" or aux:
            shapes |= {f"{head}.0.weight": (width, inputs, 3, 3), **norms(f"{head}.1", width)}
            shapes |= {f"{head}.4.weight": (classes, width, 1, 1), f"{head}.4.bias": (classes,)}
    return {f"module.{key}": shape for key, shape in shapes.items()}


@pytest.mark.parametrize(("depth", "classes", "aux"), [(50, 150, True), (101, 19, False)])
def test_pspnet_of_semseg(depth: int, classes: int, aux: bool) -> None:
    state = filled(semseg(depth, classes, aux))
    model, name, options = loaded(state)
    assert name == f"pspnet_r{depth}_semseg"
    assert options == ({} if aux else {"long": 2048, "aux_weight": 0.0})
    ours = model.state_dict()
    assert values(ours) == values(state)
    assert ours["backbone.features.conv1.3.weight"].unique() == state["module.layer0.3.weight"].unique()
    assert ours["backbone.features.bn1.bias"].unique() == state["module.layer0.7.bias"].unique()
    assert ours["ppm.branches.2.1.bias"].unique() == state["module.ppm.features.2.2.bias"].unique()
    assert ours["head.2.bias"].unique() == state["module.cls.4.bias"].unique()
    assert model.labels.names[0] == ("wall" if classes == 150 else "road")
    assert max(model.input.resize.target(300, 400)) == (512 if classes == 150 else 2048)


def detectron2(plus: bool, classes: int = 19) -> dict[str, tuple[int, ...]]:
    names = ("conv{}.weight", "conv{}.norm", "shortcut.weight", "shortcut.norm")
    shapes = bottlenecks(101, [f"backbone.res{stage}" for stage in range(2, 6)], names)
    for number, size in enumerate([(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3)], 1):
        shapes |= {f"backbone.stem.conv{number}.weight": size, **norms(f"backbone.stem.conv{number}.norm", size[0])}
    head = "sem_seg_head."
    aspp = head + ("decoder.res5.project_conv." if plus else "aspp.")
    for branch in range(4):
        kernel = 3 if branch else 1
        shapes |= {f"{aspp}convs.{branch}.weight": (256, 2048, kernel, kernel)}
        shapes |= norms(f"{aspp}convs.{branch}.norm", 256)
    shapes |= {f"{aspp}convs.4.1.weight": (256, 2048, 1, 1), f"{aspp}convs.4.1.bias": (256,)}
    shapes |= {f"{aspp}project.weight": (256, 1280, 1, 1), **norms(f"{aspp}project.norm", 256)}
    if plus:
        low = head + "decoder.res2."
        shapes |= {f"{low}project_conv.weight": (48, 256, 1, 1), **norms(f"{low}project_conv.norm", 48)}
        for number, inputs in enumerate((304, 256)):
            at = f"{low}fuse_conv.{number}"
            shapes |= {f"{at}.weight": (256, inputs, 3, 3), **norms(f"{at}.norm", 256)}
    shapes |= {f"{head}predictor.weight": (classes, 256, 1, 1), f"{head}predictor.bias": (classes,)}
    return {key: shape for key, shape in shapes.items() if not key.endswith("tracked")}


@pytest.mark.parametrize("plus", [False, True])
def test_deeplab_of_detectron2(plus: bool) -> None:
    state = filled(detectron2(plus))
    pixels = {"pixel_mean": torch.tensor([123.675, 116.28, 103.53]), "pixel_std": torch.tensor([58.395, 57.12, 57.375])}
    model, name, _ = loaded(state | pixels)
    assert name == ("deeplabv3plus_r103_d2" if plus else "deeplabv3_r103_d2")
    ours = {key: tensor for key, tensor in model.state_dict().items() if not key.endswith("tracked")}
    assert values(ours) == values(state)
    aspp = "sem_seg_head." + ("decoder.res5.project_conv." if plus else "aspp.")
    assert ours["aspp.branches.2.1.bias"].unique() == state[aspp + "convs.2.norm.bias"].unique()
    assert ours["aspp.branches.4.layers.0.bias"].unique() == state[aspp + "convs.4.1.bias"].unique()
    assert ours["backbone.features.bn1.weight"].unique() == state["backbone.stem.conv3.norm.weight"].unique()
    assert ours["classifier.bias"].unique() == state["sem_seg_head.predictor.bias"].unique()
    if plus:
        assert (
            ours["decoder.after.1.0.weight"].unique() == state["sem_seg_head.decoder.res2.fuse_conv.1.weight"].unique()
        )
    assert model.labels.names[-1] == "bicycle"
    dilations = [block.conv2.dilation for block in model.backbone.features.layer4]
    assert dilations == [(2, 2), (4, 4), (8, 8)]


def test_other_pixel_statistics_are_refused() -> None:
    state = filled(detectron2(False)) | {"pixel_mean": torch.tensor([103.53, 116.28, 123.675])}
    with pytest.raises(PansightError, match=r"expected pixel_mean \[123.675.*RGB.*found \[103.53"):
        loaded(state)


@pytest.mark.parametrize("state", [semseg(50, 150), detectron2(False), detectron2(True)], ids=["semseg", "v3", "v3+"])
@pytest.mark.parametrize("fault", ["missing", "left over", "shape"])
def test_what_does_not_fit_is_named(state: dict[str, tuple[int, ...]], fault: str) -> None:
    shapes = dict(state)
    key = next(key for key in shapes if key.endswith(("cls.1.bias", "convs.1.norm.bias")))
    if fault == "missing":
        del shapes[key]
    else:
        shapes[key + "_too" if fault == "left over" else key] = (7,)
    told = {"missing": "expected tensor .*bias", "left over": "bias_too", "shape": r"found \[7\]"}[fault]
    with pytest.raises(PansightError, match=told):
        loaded(filled(shapes))


SMP = json.loads((Path(__file__).parents[1] / "golden" / "smp" / "resnet18_3_classes.json").read_text())
"""Of PSPNet and DeepLabV3Plus on resnet18 for 3 classes: the number of parameters, how many of them nothing reads, and
the shapes of what is not in the encoder, which is torchvision's ResNet. Version 0.6.0."""


@pytest.mark.parametrize("name", SMP)
def test_smp_has_its_keys_and_counts(name: str) -> None:
    with torch.device("meta"):
        encoder = resnet18().state_dict()
        ours: Any = build(name, labels(3), backbone="resnet18")
    assert sum(p.numel() for p in ours.parameters()) == SMP[name]["parameters"] - SMP[name]["unused"]
    shapes = {f"encoder.{key}": tuple(t.shape) for key, t in encoder.items() if not key.startswith("fc.")}
    state = filled(shapes | {key: tuple(shape) for key, shape in SMP[name]["shapes"].items()})
    model, found, options = loaded(state)
    assert found == name
    assert options == {"backbone": "resnet18", "width": 512 if name == "pspnet_smp" else 256}
    read = {key: t for key, t in state.items() if name != "pspnet_smp" or not re.match(r"encoder\.layer[34]", key)}
    assert values(model.state_dict()) == values(read)


@pytest.mark.parametrize("name", SMP)
def test_other_encoders_of_smp_are_named(name: str) -> None:
    state = filled({key: tuple(shape) for key, shape in SMP[name]["shapes"].items()})
    state |= {"encoder._conv_stem.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(PansightError, match=r"expected the encoder resnet18, .*found stages of"):
        loaded(state)


@pytest.mark.parametrize("name", SMP)
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
def test_smp_gives_its_outputs(tmp_path: Path, name: str, backbone: str) -> None:
    """Where it is installed; nothing of ours needs it."""
    smp: Any = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    kind = smp.PSPNet if name == "pspnet_smp" else smp.DeepLabV3Plus
    theirs = shaken(kind(backbone, encoder_weights=None, classes=3))
    model, found, options = load_model(save(tmp_path / "smp.pth", theirs.state_dict()))
    assert (found, options["backbone"]) == (name, backbone)
    photo = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 3, 64, 96), np.uint8))
    with torch.inference_mode():
        outputs = model(photo)
        expected = theirs(model.input(photo))
        (logits,) = model._of_images(outputs)
        (found,) = model.decode(outputs, [(64, 96)])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.semantic, expected[0].argmax(0))
