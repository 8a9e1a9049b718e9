"""torchvision's FCN, from torchvision itself: the same outputs and class maps, and every key in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import load_model
from pansight.weights.official.semantic.fcn_torchvision import load
from pansight.weights.official.semantic.vgg16 import load_encoder

pytestmark = pytest.mark.slow  # networks of full size


def reference(name: str, classes: int = 21, aux: bool = True) -> Any:
    torch.manual_seed(0)
    model: Any = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: not all of them the same
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.3, 0.7)
    return model.eval()


def normalised(image: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → torchvision's input."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (image / 255 - mean[:, None, None]) / std[:, None, None]


@pytest.mark.slow  # a network of full size
@pytest.mark.parametrize("depth", [50, 101])
def test_outputs_are_those_of_torchvision(depth: int, tmp_path: Path) -> None:
    theirs = reference(f"fcn_resnet{depth}")
    torch.save(theirs.state_dict(), tmp_path / "fcn.pth")
    ours, name, options = load_model(tmp_path / "fcn.pth")
    assert (name, options) == (f"fcn_r{depth}_tv", {})
    image = torch.randint(0, 256, (1, 3, 65, 97), dtype=torch.uint8)
    with torch.inference_mode():
        expected: Tensor = theirs(normalised(image))["out"]
        outputs = ours(image)
        (found,) = ours.decode(outputs, [(65, 97)])
        (scores,) = ours.class_scores(outputs, [(65, 97)])
        ours.train().eval()
        auxiliary = ours.aux_head(ours.backbone(ours.input(image))[-2])
    torch.testing.assert_close(scores, expected[0].softmax(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(found.semantic, expected[0].argmax(0))
    theirs_auxiliary = theirs.aux_classifier(theirs.backbone(normalised(image))["aux"])
    torch.testing.assert_close(auxiliary, theirs_auxiliary, rtol=1e-4, atol=1e-4)
    assert ours.labels[0].name == "background"
    assert (ours.labels[15].name, ours.labels[20].name) == ("person", "tvmonitor")


@pytest.mark.slow
def test_bijection() -> None:
    """Every tensor its own constant, so that a swap of two is seen."""
    state = reference("fcn_resnet50").state_dict()
    state = {key: torch.full_like(tensor, index) for index, (key, tensor) in enumerate(state.items())}
    ours = load(state, "fcn.pth")[0].state_dict()
    assert sorted(t.flatten()[0].item() for t in ours.values()) == list(range(len(state)))


@pytest.mark.slow
def test_other_classes_and_no_auxiliary_head() -> None:
    model, name, options = load(reference("fcn_resnet50", 5, aux=False).state_dict(), "fcn.pth")
    assert (name, options) == ("fcn_r50_tv", {"aux_weight": 0.0})
    assert model.labels.names == ("class_0", "class_1", "class_2", "class_3", "class_4")


def test_other_backbones_are_named() -> None:
    with torch.device("meta"):
        state = segmentation.fcn_resnet50(weights=None, weights_backbone=None).state_dict()
    state = {key.replace("layer4", "layer5"): torch.zeros(1) for key in state}
    with pytest.raises(PansightError, match=r"x\.pth: expected a ResNet-50 or ResNet-101, found stages of"):
        load(state, "x.pth")


def test_the_encoder_starts_from_a_classifier_file(tmp_path: Path) -> None:
    labels = LabelSpace.from_names(["a"], ["b"])
    fcn, segnet = build("fcn_vgg16", labels, width=2, hidden=4), build("segnet", labels, width=2)
    state: dict[str, Tensor] = {}
    index = 0
    for block in fcn.state_dict():
        if block.startswith("backbone.") and block.endswith("weight"):
            weight = fcn.state_dict()[block]
            state |= {
                f"features.{index}.weight": torch.randn_like(weight),
                f"features.{index}.bias": weight[:, 0, 0, 0],
            }
            index += 3 if len(state) // 2 in (2, 4, 7, 10) else 2  # a pooling follows the ReLU
    state |= {"classifier.0.weight": torch.randn(4, 16 * 49), "classifier.0.bias": torch.randn(4)}
    state |= {"classifier.3.weight": torch.randn(4, 4), "classifier.3.bias": torch.randn(4)}
    torch.save(state, tmp_path / "vgg16.pth")
    for model in (fcn, segnet):
        load_encoder(tmp_path / "vgg16.pth", model)
        assert torch.equal(model.state_dict()["backbone.4.2.0.weight"], state["features.28.weight"])
    assert torch.equal(fcn.state_dict()["fc6.weight"].flatten(1), state["classifier.0.weight"])
