"""torchvision's state dicts, from torchvision itself: a bijection of keys, values in place, and as many parameters."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops.misc import FrozenBatchNorm2d

from pansight.errors import PansightError
from pansight.weights import load_model
from pansight.weights.official.torchvision import load

pytestmark = pytest.mark.slow  # networks of full size

REFERENCES: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "faster_rcnn_r50_tv": (detection.fasterrcnn_resnet50_fpn, 41_755_286),
    "mask_rcnn_r50_tv": (detection.maskrcnn_resnet50_fpn, 44_401_393),
    "faster_rcnn_r50_tv_v2": (detection.fasterrcnn_resnet50_fpn_v2, 43_712_278),
    "mask_rcnn_r50_tv_v2": (detection.maskrcnn_resnet50_fpn_v2, 46_359_409),
}


def reference(name: str, classes: int = 91) -> nn.Module:
    return REFERENCES[name][0](weights=None, weights_backbone=None, num_classes=classes)


def frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the downloaded V1 files are: FrozenBatchNorm2d counts no batches."""
    return {k: v for k, v in state.items() if not (k.startswith("backbone.body") and k.endswith("num_batches_tracked"))}


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names in the downloaded V1 files."""

    def old(key: str) -> str:
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        return re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key)

    return {old(key): tensor for key, tensor in state.items()}


def test_frozen_is_what_torchvision_saves() -> None:
    assert "num_batches_tracked" not in FrozenBatchNorm2d(1).state_dict()


@pytest.mark.parametrize("name", REFERENCES)
def test_bijection_and_counts(name: str) -> None:
    v1 = not name.endswith("_v2")
    theirs = reference(name)
    state = frozen(theirs.state_dict()) if v1 else dict(theirs.state_dict())
    # every tensor its own constant, so that a swap of two is seen
    state = {key: torch.full_like(tensor, index) for index, (key, tensor) in enumerate(state.items())}
    model, found, options = load(state, "tv.pth")
    assert found == name
    assert options == ({"bn_eps": 0.0} if v1 else {})
    ours = model.state_dict()
    assert len(ours) == len(state)
    values = sorted(t.flatten()[0].item() for t in ours.values())
    assert values == list(range(len(state)))
    assert sum(p.numel() for p in model.parameters()) == REFERENCES[name][1]
    assert len(model.labels) == 90
    assert model.labels[0].name == "person"
    assert model.labels[11].name == "unused_12"
    assert model.labels[89].name == "toothbrush"
    assert sum(c.name.startswith("unused_") for c in model.labels) == 10
    assert all(c.source_id == c.id + 1 for c in model.labels)


@pytest.mark.parametrize("name", ["faster_rcnn_r50_tv", "mask_rcnn_r50_tv"])
def test_old_names_give_the_same_model(name: str) -> None:
    state = frozen(reference(name, 4).state_dict())
    assert set(old_names(state)) != set(state)
    new, old = load(state, "new.pth")[0], load(old_names(state), "old.pth")[0]
    assert new.labels.names == ("class_1", "class_2", "class_3")
    for key, tensor in new.state_dict().items():
        assert torch.equal(tensor, old.state_dict()[key]), key


def test_live_batch_norm_keeps_its_epsilon(tmp_path: Path) -> None:
    """A V1 model trained from nothing has BatchNorm2d with epsilon 1e-5, and a counter of batches to tell."""
    state = reference("faster_rcnn_r50_tv", 3).state_dict()
    torch.save(state, tmp_path / "a.pth")
    model, _, options = load_model(tmp_path / "a.pth")
    assert options == {"bn_eps": 1e-5}
    assert model.backbone.features.bn1.eps == 1e-5
    assert load(frozen(state), "b.pth")[0].backbone.features.bn1.eps == 0.0


def test_other_backbones_are_named() -> None:
    mobile: Any = detection.fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=3)
    with pytest.raises(PansightError, match=r"mobile\.pth: expected a ResNet-50, found stages of \[0, 0, 0, 0\]"):
        load(mobile.state_dict(), "mobile.pth")
