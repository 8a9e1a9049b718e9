"""State dicts in the layouts of official torchvision and detectron2 checkpoints, with random values."""

from __future__ import annotations

import numpy as np

Shapes = dict[str, tuple[int, ...]]

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def detectron2_resnet(depth: int) -> Shapes:
    """``backbone.bottom_up.*``: stem, res2 … res5, FrozenBatchNorm as four vectors."""
    shapes: Shapes = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (out,)

    conv("backbone.bottom_up.stem.conv1", 64, 3, 7)
    into = 64
    for stage, blocks in enumerate(BLOCKS[depth]):
        width, out = 64 * 2**stage, 256 * 2**stage
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage + 2}.{block}"
            if block == 0:
                conv(f"{name}.shortcut", out, into, 1)
            conv(f"{name}.conv1", width, into, 1)
            conv(f"{name}.conv2", width, width, 3)
            conv(f"{name}.conv3", out, width, 1)
            into = out
    return shapes


def detectron2(depth: int = 50, things: int = 80, stuff: int = 53, kind: str = "panoptic_fpn") -> Shapes:
    """kind: faster_rcnn, mask_rcnn or panoptic_fpn."""
    shapes = detectron2_resnet(depth)
    for level in range(2, 6):
        shapes[f"backbone.fpn_lateral{level}.weight"] = (256, 64 * 2**level, 1, 1)
        shapes[f"backbone.fpn_output{level}.weight"] = (256, 256, 3, 3)
        for part in ("lateral", "output"):
            shapes[f"backbone.fpn_{part}{level}.bias"] = (256,)
    layers: Shapes = {
        "proposal_generator.rpn_head.conv": (256, 256, 3, 3),
        "proposal_generator.rpn_head.objectness_logits": (3, 256, 1, 1),
        "proposal_generator.rpn_head.anchor_deltas": (12, 256, 1, 1),
        "roi_heads.box_head.fc1": (1024, 12544),
        "roi_heads.box_head.fc2": (1024, 1024),
        "roi_heads.box_predictor.cls_score": (things + 1, 1024),
        "roi_heads.box_predictor.bbox_pred": (4 * things, 1024),
    }
    if kind != "faster_rcnn":
        layers |= {f"roi_heads.mask_head.mask_fcn{i}": (256, 256, 3, 3) for i in range(1, 5)}
        layers |= {"roi_heads.mask_head.deconv": (256, 256, 2, 2), "roi_heads.mask_head.predictor": (things, 256, 1, 1)}
    if kind == "panoptic_fpn":
        layers["sem_seg_head.predictor"] = (stuff + 1, 128, 1, 1)
        for level, places in {"p2": (0,), "p3": (0,), "p4": (0, 2), "p5": (0, 2, 4)}.items():
            for place in places:
                name = f"sem_seg_head.{level}.{place}"
                shapes[f"{name}.weight"] = (128, 256 if place == 0 else 128, 3, 3)
                shapes[f"{name}.norm.weight"] = shapes[f"{name}.norm.bias"] = (128,)
    for name, shape in layers.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[1 if "deconv" in name else 0],)
    return shapes


def caffe2_resnet(depth: int = 50) -> Shapes:
    """ImageNet's ``R-50.pkl``: Caffe2 names with momentum and classifier, which nobody needs."""
    units = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    parts = {"weight": "s", "bias": "b", "running_mean": "rm", "running_var": "riv"}
    shapes: Shapes = {"fc1000_w": (1000, 2048), "fc1000_b": (1000,), "conv1_w_momentum": (64, 3, 7, 7)}
    for key, shape in detectron2_resnet(depth).items():
        names = key.removeprefix("backbone.bottom_up.").split(".")
        if names[0] == "stem":
            new = "conv1_w" if "norm" not in names else f"res_conv1_bn_{parts[names[-1]]}"
        else:
            stage, block, unit = names[:3]
            end = f"_bn_{parts[names[-1]]}" if "norm" in names else "_w"
            new = f"{stage}_{block}_{units[unit]}{end}"
        shapes[new] = shape
    return shapes


def filled(shapes: Shapes) -> dict[str, np.ndarray]:
    """Every tensor constant, no two with the same value: where one lands is then seen by its value alone."""
    return {key: np.full(shape, 1 + index / 1024, np.float32) for index, (key, shape) in enumerate(shapes.items())}
