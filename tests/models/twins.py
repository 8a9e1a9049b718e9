"""torchvision's detectors beside ours, with the same random weights, made to find something."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from pansight.models.instances.faster_rcnn import FasterRCNN
from pansight.models.instances.mask_rcnn import MaskRCNN
from pansight.nn.backbones.pyramid import timm_backbone
from pansight.nn.fpn import FPN
from pansight.nn.input import IMAGENET_RGB, Input
from pansight.nn.rcnn.two_stage import torchvision_rcnn
from pansight.ops.resize import ResizeRule
from pansight.types import LabelSpace
from pansight.weights.official.torchvision import renamed

SIDE = 160
"""Longest side of the small twins' images: neither resizes them."""


def photo(height: int, width: int, seed: int) -> Tensor:
    """uint8 (3, H, W): smooth blobs, so that neighbouring features differ little, as in photos."""
    coarse = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(seed)) * 255
    return nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


def calibrate(theirs: Any, image: Tensor) -> None:
    """Statistics of the image itself in every BatchNorm, then predictions of usual spread, layer after layer.

    Random weights alone give maps of hundreds and scores of all but equal size: neither says much about parity.
    """
    norms = [m for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    theirs.backbone.train()
    with torch.no_grad():
        theirs.backbone(image[None].float() / 128 - 1)
    for norm in norms:
        norm.momentum = 0.1
    theirs.eval()
    heads = theirs.roi_heads
    spreads = [(block[0], 1.0) for block in theirs.backbone.fpn.layer_blocks if len(block) == 1]
    spreads += [(theirs.rpn.head.cls_logits, 2.0), (theirs.rpn.head.bbox_pred, 0.3)]
    spreads += [(heads.box_predictor.cls_score, 3.0), (heads.box_predictor.bbox_pred, 1.0)]
    if heads.mask_predictor is not None:
        spreads.append((heads.mask_predictor.mask_fcn_logits, 2.0))
    for layer, spread in spreads:
        _set_spread(theirs, layer, image, spread)


def _set_spread(theirs: nn.Module, layer: Any, image: Tensor, spread: float) -> None:
    """Scale the weight of `layer` so that its outputs' standard deviation is `spread` on this image."""
    outputs: list[Tensor] = []
    hook = layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.flatten()))
    with torch.no_grad():
        theirs([image.float() / 255])
        layer.weight *= spread / torch.cat(outputs).std()
    hook.remove()


def small_twins(masks: bool, things: int = 3, detections: int = 50) -> tuple[Any, Any]:
    """(torchvision's, ours): ResNet-18, 32 channels everywhere."""
    body = resnet18(weights=None)
    layers = {f"layer{i + 1}": str(i) for i in range(4)}
    backbone = BackboneWithFPN(body, layers, [64, 128, 256, 512], 32)
    sizes = tuple((s,) for s in (32, 64, 128, 256, 512))
    common: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        "box_head": TwoMLPHead(32 * 49, 64),
        "box_predictor": FastRCNNPredictor(64, things + 1),
        "min_size": 1,
        "max_size": SIDE,
        "box_detections_per_img": detections,
    }
    if masks:
        mask_parts = {
            "mask_head": MaskRCNNHeads(32, (32, 32), 1),
            "mask_predictor": MaskRCNNPredictor(32, 32, things + 1),
        }
        theirs: Any = TorchvisionMaskRCNN(backbone, **common, **mask_parts)
    else:
        theirs = TorchvisionFasterRCNN(backbone, **common)
    theirs.transform.min_size = (SIDE,)
    calibrate(theirs, photo(128, SIDE, 0))
    labels = LabelSpace.from_names(f"thing {i}" for i in range(things))
    net = timm_backbone("resnet18", pixels=IMAGENET_RGB)
    rcnn = torchvision_rcnn(things, 32, masks, False, 64, 2, 32, detections=detections)
    parts = (net, FPN(net.channels, 32), rcnn, labels, Input(ResizeRule(0, 0), net.pixels))
    ours: Any = MaskRCNN(*parts, integer_paste=True) if masks else FasterRCNN(*parts)
    load(ours, theirs)
    return theirs, ours


def load(ours: nn.Module, theirs: nn.Module) -> None:
    state = {k: v for k, v in renamed(theirs.state_dict(), "twin").items() if not k.endswith("num_batches_tracked")}
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    ours.eval()
