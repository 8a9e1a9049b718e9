"""detectron2's files, generated in their published layout: every tensor is loaded, and into the right place."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import caffe2_resnet, detectron2, filled

from pansight.errors import PansightError
from pansight.models import build
from pansight.types import LabelSpace
from pansight.weights import load_model, read_tensors
from pansight.weights.official.detectron2 import load, load_backbone, renamed

pytestmark = pytest.mark.slow  # networks of full size


def save(path: Path, state: dict[str, Any]) -> Path:
    path.write_bytes(pickle.dumps({"model": state, "__author__": "Detectron2 Model Zoo"}))
    return path


def tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in state.items()}


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "depth", "count"),
    [
        ("faster_rcnn", 50, 41_699_936),
        ("mask_rcnn", 50, 44_343_216),
        ("panoptic_fpn", 50, 45_973_990),
        ("panoptic_fpn", 101, 64_913_894),
        ("mask_rcnn", 101, 44_343_216 + 64_913_894 - 45_973_990),
    ],
)
def test_official_layouts(tmp_path: Path, kind: str, depth: int, count: int) -> None:
    state = filled(detectron2(depth, kind=kind))
    if kind == "panoptic_fpn" and depth == 50:  # one real file of 180 MB is enough
        model, name, options = load_model(save(tmp_path / "model_final.pkl", state))
        (tmp_path / "model_final.pkl").unlink()
    else:
        model, name, options = load(tensors(state), "model_final.pkl")
    assert (name, options) == (f"{kind}_r{depth}_d2", {})
    assert parameters(model) == count  # what the official model has
    assert len(model.labels.things) == 80
    assert len(model.labels.stuff) == (53 if kind == "panoptic_fpn" else 0)
    assert model.labels[0].name == "person"
    assert model.labels[79].source_id == 90
    assert not model.training

    ours = model.state_dict()
    assert len(ours) == len(state)  # one to one
    assert len({tuple(t.flatten()[:1].tolist()) for t in ours.values()}) == len(state)
    places = {
        "backbone.bottom_up.stem.conv1.weight": "backbone.features.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.running_var": "backbone.features.bn1.running_var",
        "backbone.bottom_up.res2.0.shortcut.weight": "backbone.features.layer1.0.downsample.0.weight",
        "backbone.bottom_up.res2.0.shortcut.norm.bias": "backbone.features.layer1.0.downsample.1.bias",
        "backbone.bottom_up.res4.5.conv2.weight": "backbone.features.layer3.5.conv2.weight",
        "backbone.bottom_up.res5.2.conv3.norm.running_mean": "backbone.features.layer4.2.bn3.running_mean",
        "backbone.fpn_lateral2.weight": "fpn.lateral.0.weight",
        "backbone.fpn_output5.bias": "fpn.output.3.bias",
        "proposal_generator.rpn_head.objectness_logits.bias": "rcnn.rpn.objectness.bias",
        "proposal_generator.rpn_head.anchor_deltas.weight": "rcnn.rpn.deltas.weight",
        "roi_heads.box_head.fc2.weight": "rcnn.box_head.fc7.weight",
        "roi_heads.box_predictor.bbox_pred.bias": "rcnn.box_predictor.bbox_pred.bias",
    }
    if kind != "faster_rcnn":
        places["roi_heads.mask_head.mask_fcn3.weight"] = "rcnn.mask_head.conv.2.weight"
        places["roi_heads.mask_head.deconv.bias"] = "rcnn.mask_head.deconv.bias"
    if kind == "panoptic_fpn":
        places["sem_seg_head.p4.2.norm.weight"] = "semantic_head.levels.2.1.norm.weight"
        places["sem_seg_head.p5.4.weight"] = "semantic_head.levels.3.2.conv.weight"
        places["sem_seg_head.predictor.bias"] = "semantic_head.predictor.bias"
    for theirs, name in places.items():
        assert np.array_equal(ours[name].numpy(), state[theirs]), theirs


def test_conventions_of_the_model() -> None:
    """BGR pixels less the mean, stride in the first 1×1, frozen BatchNorm, background last."""
    model = build("mask_rcnn_r50_d2", LabelSpace.from_names(["a"]))
    assert model.input.bgr
    assert model.input.scale.flatten().tolist() == [1, 1, 1]
    assert model.input.mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])
    block = model.backbone.features.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert not model.rcnn.background_first
    assert not any("bn" in name for name, _ in model.backbone.named_parameters())


def test_pth_with_buffers_that_are_no_weights(tmp_path: Path) -> None:
    state = tensors(filled(detectron2(things=3, stuff=2)))
    state["pixel_mean"] = torch.tensor([103.53, 116.28, 123.675]).view(3, 1, 1)
    state["pixel_std"] = torch.ones(3, 1, 1)
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    path = tmp_path / "model_0000009.pth"
    torch.save({"model": state, "iteration": 9}, path)
    model, _, _ = load_model(path)
    path.unlink()
    assert model.labels.names == ("class_1", "class_2", "class_3", "stuff_1", "stuff_2")
    state["pixel_std"] = torch.tensor([57.375, 57.12, 58.395]).view(3, 1, 1)
    with pytest.raises(PansightError, match=r"rgb\.pth: expected an MSRA ResNet .* found pixel mean .*57\.375"):
        load(state, "rgb.pth")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.pop("backbone.fpn_lateral3.bias"), r"expected tensor fpn\.lateral\.1\.bias \[256\], found none"),
        (lambda s: s.update({"extra.weight": np.ones(2)}), r"unknown tensor extra\.weight \[2\]"),
        (
            lambda s: s.update({"roi_heads.box_predictor.bbox_pred.weight": np.ones((8, 1024), np.float32)}),
            r"rcnn\.box_predictor\.bbox_pred\.weight: expected shape \[12, 1024\], found \[8, 1024\]",
        ),
        (lambda s: s.pop("roi_heads.box_predictor.cls_score.weight"), r"expected tensor roi_heads.*found none"),
        (
            lambda s: [s.pop(k) for k in list(s) if "res4.5." in k],
            r"expected a ResNet-50 or ResNet-101, found stages of \[3, 4, 5, 3\] blocks",
        ),
    ],
)
def test_faults_are_named(damage: Any, message: str) -> None:
    state = filled(detectron2(things=3, kind="mask_rcnn"))
    damage(state)
    with pytest.raises(PansightError, match=message) as error:
        load(tensors(state), "bad.pkl")
    assert "\n" not in str(error.value)
    assert "bad.pkl" in str(error.value)


def test_renaming_never_merges_two_tensors() -> None:
    state = {"backbone.fpn_lateral2.bias": torch.zeros(1), "roi_heads.box_head.fc1.bias": torch.zeros(1)}
    assert set(renamed(state, "x")) == {"fpn.lateral.0.bias", "rcnn.box_head.fc6.bias"}


@pytest.mark.parametrize("folded", [False, True])
def test_imagenet_backbone(tmp_path: Path, folded: bool) -> None:
    """Caffe2 names, no model key; in some files the running statistics are folded into scale and bias."""
    state = filled(caffe2_resnet())
    if folded:
        state = {key: value for key, value in state.items() if not key.endswith(("_rm", "_riv"))}
    path = tmp_path / "R-50.pkl"
    path.write_bytes(pickle.dumps(state, protocol=2))
    model = build("panoptic_fpn_r50_d2", LabelSpace.from_names(["a"], ["b"]))
    load_backbone(path, model)
    ours = model.backbone.features.state_dict()
    assert np.array_equal(ours["layer1.0.downsample.0.weight"].numpy(), state["res2_0_branch1_w"])
    assert np.array_equal(ours["layer3.5.bn2.bias"].numpy(), state["res4_5_branch2b_bn_b"])
    assert np.array_equal(ours["bn1.weight"].numpy(), state["res_conv1_bn_s"])
    if folded:
        assert torch.equal(ours["layer4.2.bn3.running_var"], torch.ones(2048))
        assert torch.equal(ours["layer4.2.bn3.running_mean"], torch.zeros(2048))
    else:
        assert np.array_equal(ours["layer4.2.bn3.running_var"].numpy(), state["res5_2_branch2c_bn_riv"])
    with pytest.raises(PansightError, match="expected a whole model, found an ImageNet backbone"):
        load_model(path)
    with pytest.raises(PansightError, match="expected an ImageNet backbone"):
        load_backbone(save(tmp_path / "other.pkl", {"a": np.ones(1)}), model)
    assert "fc1000_w" in read_tensors(path)
