"""UPSNet and EfficientPS beside the nearest living network of the same backbone → results/panoptic_rcnn_speed.json.

    python benchmarks/panoptic_rcnn_speed.py [--repeats 5] [--threads 2] [--dry]

No living library has either. The nearest is torchvision's Mask R-CNN on the same backbone (R50; EfficientNet-Lite0 from
timm) behind its own feature pyramid: it finds the same kind of objects, 100 of them here, and does less, as it knows no
stuff, no map of classes and no panoptic map. One image of 640×640, from pixels to objects, and on our side to the
panoptic map besides. Weights are random, scaled layer by layer so that scores spread. float32 is each as it comes, ours
as `pansight predict` runs it (BatchNorm folded, channels_last); fast is bfloat16 autocast with channels_last weights.
Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from common import PAIRS, alternate, peak_resident_mib, ratio_row, save
from pansight.engine.infer import Inference, prepare
from pansight.models import build
from pansight.nn.backbones.folding import folded
from pansight.types import LabelSpace

SIDE, FOUND = 640, 100
LABELS = LabelSpace.from_names([f"thing {n}" for n in range(80)], [f"stuff {n}" for n in range(53)])
CASES = {"UPSNet R50": ("upsnet", "resnet50"), "EfficientPS Lite0": ("efficientps", "tf_efficientnet_lite0")}
CONTENDERS = ("torchvision", "ours")
SETTINGS = ("float32", "fast")


def photo() -> Tensor:
    """uint8 (3, SIDE, SIDE), smooth."""
    coarse = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(0)) * 255
    return nn.functional.interpolate(coarse, size=SIDE, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)


class TimmPyramid(nn.Module):
    """torchvision's feature pyramid over the maps of a timm network."""

    def __init__(self, name: str):
        super().__init__()
        self.body: Any = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), pretrained=False)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), 256)
        self.out_channels = 256

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(dict(zip("0123", self.body(images), strict=True)))


def torchvision_model(backbone: str) -> tuple[Any, list[tuple[Any, float]]]:
    """(the network, layers and the deviation that their outputs get)."""
    model: Any
    if backbone == "resnet50":
        body: Any = resnet_fpn_backbone(backbone_name=backbone, weights=None, trainable_layers=3)
        model = TorchvisionMaskRCNN(body, 81, min_size=SIDE, max_size=SIDE)
    else:
        sizes = ((32,), (64,), (128,), (256,))  # EfficientPS has four levels
        model = TorchvisionMaskRCNN(
            TimmPyramid(backbone),
            81,
            min_size=SIDE,
            max_size=SIDE,
            rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 4),
            box_roi_pool=MultiScaleRoIAlign(list("0123"), output_size=7, sampling_ratio=2),
            mask_roi_pool=MultiScaleRoIAlign(list("0123"), output_size=14, sampling_ratio=2),
        )
    rpn, heads = model.rpn.head, model.roi_heads
    layers = [(block[0], 1.0) for block in model.backbone.fpn.layer_blocks]
    layers += [(rpn.cls_logits, 2.0), (rpn.bbox_pred, 0.3), (heads.box_predictor.cls_score, 3.0)]
    layers += [(heads.box_predictor.bbox_pred, 1.0), (heads.mask_predictor.mask_fcn_logits, 2.0)]
    return model.eval(), layers


def our_model(name: str, backbone: str) -> tuple[Any, list[tuple[Any, float]]]:
    """The same of ours, whose semantic logits are spread, too."""
    model: Any = build(name, LABELS, backbone=backbone, short=0)
    rcnn = model.rcnn
    layers = [(first_layer(output), 1.0) for output in model.fpn.output]
    layers += [(rcnn.rpn.objectness, 2.0), (rcnn.rpn.deltas, 0.3), (rcnn.box_predictor.cls_score, 3.0)]
    layers += [(rcnn.box_predictor.bbox_pred, 1.0), (model.semantic_head.predictor, 2.0)]
    return model.eval(), layers  # masks are what random weights give: all classes of a mask are never computed here


def first_layer(module: nn.Module) -> Any:
    return next(each for each in module.modules() if isinstance(each, nn.Conv2d))


def spread(layers: Sequence[tuple[Any, float]], run: Callable[[], Any]) -> None:
    """Scale the weights so that each layer's outputs have the given deviation on what `run` looks at."""
    wanted = dict(layers)

    def rescale(layer: Any, _inputs: Any, output: Tensor) -> Tensor | None:
        if layer not in wanted:  # layers that run once for each level: the first time decides
            return None
        factor = wanted.pop(layer) / output.std()
        layer.weight.mul_(factor)
        bias = 0 if layer.bias is None else layer.bias.view(1, -1, *[1] * (output.ndim - 2))
        return (output - bias) * factor + bias  # the forward pass goes on with what the scaled layer would have given

    hooks = [layer.register_forward_hook(rescale) for layer, _ in layers]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    assert not wanted, f"layers that never ran: {wanted}"


def contender(who: str, case: str, setting: str) -> Callable[[], int]:
    """What is timed; it returns the number of objects."""
    name, backbone = CASES[case]
    model: Any
    torch.manual_seed(0)
    model, layers = torchvision_model(backbone) if who == "torchvision" else our_model(name, backbone)
    image = photo()

    def detect() -> int:
        if who == "torchvision":
            return len(model([image.float() / 255])[0]["scores"])
        (found,) = model.decode(model(image[None]), [(SIDE, SIDE)])
        assert found.panoptic is not None
        return len(found.instances)

    spread(layers, detect)
    if who == "ours":  # as `pansight predict` runs it: channels_last in any setting, BatchNorm folded
        model = folded(prepare(model, Inference(torch.device("cpu"))))
    if setting == "fast":
        model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> int:
        with torch.autocast("cpu", torch.bfloat16) if setting == "fast" else contextlib.nullcontext():
            return detect()

    assert run() == FOUND, f"{who}, {case}: {run()} objects instead of {FOUND}"
    return run


def peak_mib(who: str, case: str, setting: str) -> float:
    """Peak resident memory of a process that does this job three times and nothing else."""
    command = [sys.executable, __file__, "--memory", who, case, setting]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def rows_of(case: str, repeats: int) -> list[dict[str, Any]]:
    jobs = [(who, setting) for setting in SETTINGS for who in CONTENDERS]
    seconds = alternate({job: contender(job[0], case, job[1]) for job in jobs}, repeats)
    mib = {job: peak_mib(job[0], case, job[1]) for job in jobs}
    rows: list[dict[str, Any]] = []
    for pair in PAIRS:
        ours, theirs = ("ours", pair[0]), ("torchvision", pair[1])
        times, memory = (seconds[ours], seconds[theirs]), (mib[ours], mib[theirs])
        rows.append(ratio_row(case, "torchvision's Mask R-CNN", pair, times, memory))
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print only, write no file")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        run = contender(*args.memory)
        for _ in range(3):
            run()
        print(peak_resident_mib())
        return
    rows = [row for case in CASES for row in rows_of(case, args.repeats)]
    if not args.dry:
        save("panoptic_rcnn_speed", {"side": SIDE, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
