"""Mask R-CNN R50: ours beside torchvision's, same weights, same inputs, in turns → results/rcnn_speed.json.

Inference: one 640×640 image, 100 detections, from uint8 or float pixels to masks at image size (and, on our side, the
panoptic map). Training: a step on two 256×256 images of 10 objects each, AdamW. Both networks have frozen BatchNorm
and the first two stages frozen, as torchvision fine-tunes.

Settings: float32 is each library as it comes; fast is bfloat16 autocast with channels_last weights and inputs, and
(training) the fused AdamW, for both. Peak memory is that of a process of its own per contender.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from common import PAIRS, alternate, peak_resident_mib, save
from pansight.data.categories.coco import coco_91
from pansight.models import build
from pansight.ops.targets import boxes_of_ids
from pansight.types import Batch, PanopticSegmentation, Segment
from pansight.weights.official.torchvision import renamed

CONTENDERS = ("torchvision", "ours")
SETTINGS = ("float32", "fast")
SIDES = {"inference": 640, "training": 256}
OBJECTS = 10


def photo(side: int, seed: int) -> Tensor:
    """uint8 (3, side, side), smooth, in HWC memory as the loader gives it."""
    coarse = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(seed)) * 255
    image = nn.functional.interpolate(coarse, size=side, mode="bicubic")[0].clamp(0, 255).to(torch.uint8)
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def truth(side: int, seed: int) -> PanopticSegmentation:
    """Ten ellipses of 20 to 90 pixels, later ones on top; each keeps at least some pixels."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    ids = torch.zeros((side, side), dtype=torch.int32)
    for k in range(OBJECTS):
        radius = 10 + torch.rand(2, generator=generator) * 35
        center = radius + torch.rand(2, generator=generator) * (side - 2 * radius)
        inside = ((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 <= 1
        ids[inside] = k + 1
    seen = set(ids.unique().tolist()) - {0}
    return PanopticSegmentation(ids, tuple(Segment(k, 7 * k) for k in sorted(seen)))


def torchvision_model(side: int) -> Any:
    """Random weights, scaled layer by layer so that scores spread: 100 detections, as from a trained network."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = TorchvisionMaskRCNN(backbone, 91, min_size=side, max_size=side).eval()
    body, heads = model.backbone.body, model.roi_heads
    layers = [(block.conv3, 0.3) for stage in (body.layer1, body.layer2, body.layer3, body.layer4) for block in stage]
    layers += [(block[0], 1.0) for block in model.backbone.fpn.layer_blocks]
    layers += [(model.rpn.head.cls_logits, 2.0), (model.rpn.head.bbox_pred, 0.3)]
    layers += [(heads.box_predictor.cls_score, 3.0), (heads.box_predictor.bbox_pred, 1.0)]
    layers += [(heads.mask_predictor.mask_fcn_logits, 2.0)]
    image = photo(side, 0)
    wanted = dict(layers)

    def rescale(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        """The forward pass goes on with what the rescaled layer would have given."""
        if layer not in wanted:  # the RPN's layers run once per level; the first one decides
            return output
        factor = wanted.pop(layer) / output.std()
        layer.weight.mul_(factor)
        bias = 0 if layer.bias is None else layer.bias.view(1, -1, *[1] * (output.ndim - 2))
        return (output - bias) * factor + bias

    hooks = [layer.register_forward_hook(rescale) for layer, _ in layers]
    with torch.no_grad():
        model([image.float() / 255])
    for hook in hooks:
        hook.remove()
    assert not wanted
    return model


def contender_model(contender: str, what: str, weights: Path) -> Any:
    """The network with the weights of WEIGHTS/WHAT.pt, the only thing that the contenders share."""
    state = torch.load(weights / f"{what}.pt", mmap=True, weights_only=True)
    if contender == "ours":
        return our_model(state)
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model: Any = TorchvisionMaskRCNN(backbone, 91, min_size=SIDES[what], max_size=SIDES[what])
    model.load_state_dict(state)
    return model


def our_model(state: dict[str, Tensor]) -> Any:
    model = build("mask_rcnn_r50_tv", coco_91(), bn_eps=1e-5)
    missing, unexpected = model.load_state_dict(renamed(state, "torchvision"), strict=False)
    assert not missing
    assert not unexpected
    return model


def precision(setting: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if setting == "fast" else contextlib.nullcontext()


def inference(contender: str, setting: str, weights: Path) -> Callable[[], Any]:
    side = SIDES["inference"]
    image = photo(side, 1)
    model = contender_model(contender, "inference", weights).eval()
    if setting == "fast":
        model.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> int:
        with precision(setting):
            if contender == "torchvision":
                return len(model([image.float() / 255])[0]["scores"])
            (found,) = model.decode(model(image[None]), [(side, side)])
            return len(found.instances)

    assert run() == 100
    return run


def training(contender: str, setting: str, weights: Path) -> Callable[[], Any]:
    side = SIDES["training"]
    images = torch.stack([photo(side, k).permute(1, 2, 0) for k in range(2)]).permute(0, 3, 1, 2)
    truths = tuple(truth(side, k) for k in range(2))
    model = contender_model(contender, "training", weights).train()
    if setting == "fast":
        model.to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # so small a rate that the network, thus the work of a step, stays the same
    optimizer = torch.optim.AdamW(parameters, lr=1e-8, fused=setting == "fast")
    valid = torch.ones((2, side, side), dtype=torch.bool)
    batch = Batch(images, valid, ((side, side),) * 2, truths, (0, 1), (None, None))
    targets = [torchvision_target(t) for t in truths]

    def run() -> None:
        torch.manual_seed(1)
        optimizer.zero_grad(set_to_none=True)
        with precision(setting):
            if contender == "torchvision":
                losses = model([image.float() / 255 for image in images], targets)
            else:
                losses = model.loss(batch)
        sum(losses.values()).backward()
        optimizer.step()

    return run


def torchvision_target(truth: PanopticSegmentation) -> dict[str, Tensor]:
    ids = torch.tensor([s.id for s in truth.segments], dtype=torch.int32)
    labels = torch.tensor([s.category + 1 for s in truth.segments])
    masks = (truth.ids == ids[:, None, None]).to(torch.uint8)
    return {"boxes": boxes_of_ids(truth.ids, ids), "labels": labels, "masks": masks}


JOBS = {"inference": inference, "training": training}


def peak_mib(what: str, contender: str, setting: str, weights: Path) -> float:
    """Peak resident memory of a process that does this job three times and nothing else."""
    command = [sys.executable, __file__, "--memory", what, contender, setting, str(weights)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_memory(what: str, contender: str, setting: str, weights: str) -> None:
    run = JOBS[what](contender, setting, Path(weights))
    for _ in range(3):
        run()
    print(json.dumps(peak_resident_mib()))


def rows_of(what: str, repeats: int) -> list[dict[str, Any]]:
    pairs = [(c, s) for s in SETTINGS for c in CONTENDERS]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)
        torch.save(torchvision_model(SIDES[what]).state_dict(), weights / f"{what}.pt")
        runs = {f"{c} {s}": JOBS[what](c, s, weights) for c, s in pairs}
        ms = {name: 1000 * seconds for name, seconds in alternate(runs, repeats, warmup=2).items()}
        runs.clear()
        mib = {f"{c} {s}": peak_mib(what, c, s, weights) for c, s in pairs}
    rows: list[dict[str, Any]] = []
    for our_setting, their_setting in PAIRS:
        ours, theirs = f"ours {our_setting}", f"torchvision {their_setting}"
        rows.append(
            {
                "what": what,
                "settings": f"{our_setting} / {their_setting}",
                "torchvision_ms": ms[theirs],
                "ours_ms": ms[ours],
                "time_ratio": ms[ours] / ms[theirs],
                "torchvision_mib": mib[theirs],
                "ours_mib": mib[ours],
                "memory_ratio": mib[ours] / mib[theirs],
            }
        )
        print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=JOBS, help="print the rows of one job, save nothing")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        measure_memory(*args.memory)
        return
    jobs = [args.only] if args.only else list(JOBS)
    rows = [row for what in jobs for row in rows_of(what, args.repeats)]
    if not args.only:
        what = "Mask R-CNN R50: 640x640 batch 1; training step 2 x 256x256, 10 objects each, AdamW"
        save("rcnn_speed", {"what": what, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
