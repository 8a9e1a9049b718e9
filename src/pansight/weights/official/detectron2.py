"""Loading detectron2's Faster R-CNN, Mask R-CNN and Panoptic FPN (R50, R101), and the MSRA ImageNet ResNets.

Source: detectron2 (Apache-2.0), its model zoo (CC BY-SA 3.0). Layout: ``RULES`` below. All of them are MSRA ResNets:
stride in the first 1×1 convolution, BGR input less the mean, deviation 1; the background is the last class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pansight.data.categories.coco import coco_panoptic, coco_things
from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, load_strictly, rename, resnet_depth, rows
from pansight.weights.unpickle import read_tensors

CAFFE_MEAN_BGR = (103.53, 116.28, 123.675)
IGNORED = (
    r"pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d|.*num_batches_tracked"
    r"|roi_heads\.mask_head\.predictor\.loss_weight"
)
NORM = r"(weight|bias|running_mean|running_var)"


def _block(match: re.Match[str]) -> str:
    """``res2.0.conv1`` → layer1.0.conv1; ``.conv1.norm`` → bn1; ``shortcut`` → downsample.0; its norm → .1"""
    stage, block, unit, part = int(match[1]) - 1, match[2], match[3], match[4]
    norm = part.startswith("norm.")
    part = part.removeprefix("norm.")
    if unit == "shortcut":
        return f"{BACKBONE}layer{stage}.{block}.downsample.{int(norm)}.{part}"
    return f"{BACKBONE}layer{stage}.{block}.{'bn' if norm else 'conv'}{unit[-1]}.{part}"


def resnet_rules(prefix: str) -> list[Rule]:
    """The ResNet of every repository that is built on detectron2; prefix: what its keys begin with."""
    prefix = re.escape(prefix)
    return [
        (prefix + r"stem\.conv1\.weight", BACKBONE + "conv1.weight"),
        (prefix + rf"stem\.conv1\.norm\.{NORM}", BACKBONE + r"bn1.\1"),
        (prefix + rf"res([2-5])\.(\d+)\.(shortcut|conv[123])\.(weight|norm\.{NORM})", _block),
    ]


RULES: list[Rule] = [
    *resnet_rules("backbone.bottom_up."),
    (r"backbone\.fpn_lateral([2-5])\.(weight|bias)", lambda m: f"fpn.lateral.{int(m[1]) - 2}.{m[2]}"),
    (r"backbone\.fpn_output([2-5])\.(weight|bias)", lambda m: f"fpn.output.{int(m[1]) - 2}.{m[2]}"),
    (r"proposal_generator\.rpn_head\.conv\.(weight|bias)", r"rcnn.rpn.conv.0.\1"),
    (r"proposal_generator\.rpn_head\.objectness_logits\.(weight|bias)", r"rcnn.rpn.objectness.\1"),
    (r"proposal_generator\.rpn_head\.anchor_deltas\.(weight|bias)", r"rcnn.rpn.deltas.\1"),
    (r"roi_heads\.box_head\.fc([12])\.(weight|bias)", lambda m: f"rcnn.box_head.fc{int(m[1]) + 5}.{m[2]}"),
    (r"roi_heads\.box_predictor\.(cls_score|bbox_pred)\.(weight|bias)", r"rcnn.box_predictor.\1.\2"),
    (
        r"roi_heads\.mask_head\.mask_fcn([1-4])\.(weight|bias)",
        lambda m: f"rcnn.mask_head.conv.{int(m[1]) - 1}.{m[2]}",
    ),
    (r"roi_heads\.mask_head\.(deconv|predictor)\.(weight|bias)", r"rcnn.mask_head.\1.\2"),
    (
        r"sem_seg_head\.p([2-5])\.([024])\.(weight)",  # odd places are upsampling, without parameters
        lambda m: f"semantic_head.levels.{int(m[1]) - 2}.{int(m[2]) // 2}.conv.{m[3]}",
    ),
    (
        r"sem_seg_head\.p([2-5])\.([024])\.norm\.(weight|bias)",
        lambda m: f"semantic_head.levels.{int(m[1]) - 2}.{int(m[2]) // 2}.norm.{m[3]}",
    ),
    (r"sem_seg_head\.predictor\.(weight|bias)", r"semantic_head.predictor.\1"),
]

CAFFE2_NORM = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
CAFFE2_UNITS = {"branch1": "downsample.0", "branch2a": "conv1", "branch2b": "conv2", "branch2c": "conv3"}
CAFFE2_NORMS = {"branch1": "downsample.1", "branch2a": "bn1", "branch2b": "bn2", "branch2c": "bn3"}
CAFFE2_SUFFIX = r"_bn[_.](s|b|rm|riv|running[._]mean|running[._]var)"


def _caffe2_norm(suffix: str) -> str:
    return CAFFE2_NORM.get(suffix) or suffix.replace(".", "_")


CAFFE2: list[Rule] = [
    (r"conv1_w", BACKBONE + "conv1.weight"),
    (r"res_conv1" + CAFFE2_SUFFIX, lambda m: f"{BACKBONE}bn1.{_caffe2_norm(m[1])}"),
    (
        r"res([2-5])_(\d+)_(branch1|branch2[abc])_w",
        lambda m: f"{BACKBONE}layer{int(m[1]) - 1}.{m[2]}.{CAFFE2_UNITS[m[3]]}.weight",
    ),
    (
        r"res([2-5])_(\d+)_(branch1|branch2[abc])" + CAFFE2_SUFFIX,
        lambda m: f"{BACKBONE}layer{int(m[1]) - 1}.{m[2]}.{CAFFE2_NORMS[m[3]]}.{_caffe2_norm(m[4])}",
    ),
]
CAFFE2_IGNORED = r".*_momentum|(fc1000|pred)_[wb]|conv1_b|weight_order|lr"


def recognises(state: Mapping[str, Tensor]) -> bool:
    is_ours = any(key.startswith("backbone.bottom_up.") for key in state)
    is_panoptic_fcn = any(key.startswith("position_head.") for key in state)  # built on detectron2, too
    return (is_ours and not is_panoptic_fcn) or is_caffe2_backbone(state)


def is_caffe2_backbone(state: Mapping[str, Tensor]) -> bool:
    return "conv1_w" in state and "res2_0_branch2a_w" in state


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """detectron2's keys to ours, one to one. Raises PansightError naming a key of another layout."""
    return rename(state, RULES, IGNORED, source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). COCO's class counts get COCO's names; others ``class_1``, ``stuff_1`` …

    Raises PansightError for another backbone or other pixel statistics, a key too many or too few, or a shape that
    does not fit.
    """
    if is_caffe2_backbone(state):
        raise PansightError(where=source, expected="a whole model", found="an ImageNet backbone (Caffe2 names)")
    _check_pixels(state, source)
    depth = resnet_depth(state, "backbone.bottom_up.", ("res2", "res3", "res4", "res5"), source)
    things = rows(state, "roi_heads.box_predictor.cls_score.weight", source) - 1
    is_panoptic = "sem_seg_head.predictor.weight" in state
    if is_panoptic:
        kind, stuff = "panoptic_fpn", rows(state, "sem_seg_head.predictor.weight", source) - 1
        labels = coco_panoptic() if (things, stuff) == (80, 53) else _unnamed(things, stuff)
    else:
        kind = "mask_rcnn" if "roi_heads.mask_head.predictor.weight" in state else "faster_rcnn"
        labels = coco_things() if things == 80 else _unnamed(things, 0)
    name, options = f"{kind}_r{depth}_d2", {}
    return build_to_fit(name, labels, options, renamed(state, source), source), name, options


def load_backbone(path: str | Path, model: Any) -> None:
    """An ImageNet MSRA file with Caffe2 names (``R-50.pkl``) into the backbone of a ``…_d2`` model, in place.

    Raises PansightError where the file holds something else or a network of another depth.
    """
    state = read_tensors(path)
    if not is_caffe2_backbone(state):
        raise PansightError(
            where=path, expected="an ImageNet backbone with Caffe2 names (conv1_w …)", found="another layout"
        )
    ours = rename(state, CAFFE2, CAFFE2_IGNORED, str(path))
    ours = {key.removeprefix("backbone."): value for key, value in ours.items()}
    for key in model.backbone.state_dict():
        # statistics were folded into scale and bias in some of these files: mean 0 and variance 1 remain
        prefix, _, part = key.rpartition(".")
        if part in ("running_mean", "running_var") and f"{prefix}.weight" in ours:
            fill = torch.zeros_like if part == "running_mean" else torch.ones_like
            ours.setdefault(key, fill(ours[f"{prefix}.weight"]))
    load_strictly(model.backbone, ours, str(path))


def _check_pixels(state: Mapping[str, Tensor], source: str) -> None:
    """Where the file says what it expects of pixels, it must be what the ``…_d2`` builders give."""
    mean, std = state.get("pixel_mean"), state.get("pixel_std")
    found = [None if t is None else [round(v, 3) for v in t.flatten().tolist()] for t in (mean, std)]
    expected = [None if mean is None else list(CAFFE_MEAN_BGR), None if std is None else [1.0, 1.0, 1.0]]
    if found != expected:
        says = f"pixel mean {found[0]} and deviation {found[1]}"
        raise PansightError(where=source, expected=f"an MSRA ResNet (BGR mean {list(CAFFE_MEAN_BGR)})", found=says)


def _unnamed(things: int, stuff: int) -> LabelSpace:
    names = [f"class_{i}" for i in range(1, things + 1)]
    return LabelSpace.from_names(names, [f"stuff_{i}" for i in range(1, stuff + 1)])
