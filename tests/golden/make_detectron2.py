"""Write detectron2_<kind>.npz: what detectron2 itself finds, loses and derives with the weights of `fixed`.

Networks and settings are detectron2's own configuration files, unchanged. A checkout of it is needed (commit
02b5c4e295e9, github.com/facebookresearch/detectron2), not its compiled extension: nothing here calls that. Its
dependencies (fvcore, iopath, omegaconf, yacs, pycocotools, cloudpickle, hydra-core, black, termcolor, tabulate,
portalocker, antlr4-python3-runtime 4.9.3) may lie in any folder of PYTHONPATH:

    python tests/golden/make_detectron2.py <checkout of detectron2> [panoptic_fpn mask_rcnn faster_rcnn]

None of detectron2's code is part of this repository; the numbers are.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixed import KINDS, OUTPUT_SIZES, SIZES, detectron2_weights, in_order, norm_and_samples, photo, spread, truth
from torch import Tensor

CONFIGS = {
    "panoptic_fpn": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "mask_rcnn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "faster_rcnn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
}
DEVIATIONS = {
    "proposal_generator.rpn_head.objectness_logits": 2.0,
    "proposal_generator.rpn_head.anchor_deltas": 0.3,
    "roi_heads.box_predictor.cls_score": 2.4,
    "roi_heads.box_predictor.bbox_pred": 1.0,
    "roi_heads.mask_head.predictor": 2.0,
    "sem_seg_head.predictor": 2.0,
}
"""The deviation that the outputs of each predicting layer are scaled to, each channel's mean being moved to zero.

Of random weights alone all scores are equal or all differ by hundreds; neither says much about parity.
"""


def network(checkout: Path, kind: str) -> Any:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    config = get_cfg()
    config.merge_from_file(str(checkout / "configs" / CONFIGS[kind]))
    config.MODEL.DEVICE = "cpu"
    return build_model(config)


def photos(kind: str) -> list[dict[str, Any]]:
    """Its input: BGR."""
    return [
        {"image": photo(index, kind).flip(0), "height": height, "width": width}
        for index, (height, width) in enumerate(OUTPUT_SIZES)
    ]


def annotated(kind: str) -> list[dict[str, Any]]:
    """The same with what its data loader adds for training."""
    from detectron2.structures import BitMasks, Instances

    rows: list[dict[str, Any]] = []
    for index, row in enumerate(photos(kind)):
        ids, things, stuff = truth(index)
        instances = Instances(SIZES[index])
        instances.gt_masks = BitMasks(torch.stack([ids == number for number, _ in things]))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.tensor([category for _, category in things])
        if kind == "faster_rcnn":
            instances.remove("gt_masks")
        classes = torch.full(SIZES[index], 255)
        for number, category in stuff:
            classes[ids == number] = 1 + category
        for number, _ in things:
            classes[ids == number] = 0
        rows.append(row | {"instances": instances, "sem_seg": classes})
    return rows


def calibrate(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Set gain and bias of the predicting layers, from the first to the last; → what was set."""
    found: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    for name, deviation in DEVIATIONS.items():
        if name not in modules:
            continue
        layer, outputs = modules[name], []
        hook = layer.register_forward_hook(lambda _m, _i, output, kept=outputs: kept.append(output.detach()))
        model(inputs)
        hook.remove()
        channels = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in outputs])  # (places, channels)
        gain = (deviation / channels.std(0).mean()).reshape(1)
        with torch.no_grad():
            layer.weight *= gain
            layer.bias.copy_((layer.bias - channels.mean(0)) * gain)
            if name.endswith("cls_score"):
                layer.bias[-1] += 9  # most regions are background
            elif name.endswith("mask_head.predictor"):
                layer.bias -= 2  # and most of a box is not its object
        found[f"gain {name}"], found[f"bias {name}"] = gain.numpy(), layer.bias.detach().numpy().copy()
    return found


def caught(model: Any, inputs: list[dict[str, Any]]) -> tuple[list[Any], dict[str, Any]]:
    """→ (results, copies of the outputs of the parts)."""
    kept: dict[str, Any] = {}

    def keep_boxes(_module: Any, _inputs: Any, output: Any) -> None:
        names = ("proposal_boxes", "objectness_logits") if "proposals" not in kept else ("pred_boxes", "scores")
        names = (*names, "pred_classes", "pred_masks")
        rows = [{n: getattr(x.get(n), "tensor", x.get(n)).clone() for n in names if x.has(n)} for x in output[0]]
        kept["detections" if "proposals" in kept else "proposals"] = rows  # post-processing changes boxes in place

    hooks = [
        model.proposal_generator.rpn_head.register_forward_hook(lambda _m, _i, o: kept.update(rpn=o)),
        model.proposal_generator.register_forward_hook(keep_boxes),
        model.roi_heads.register_forward_hook(keep_boxes),
    ]
    modules = dict(model.named_modules())
    if "sem_seg_head" in modules:
        hooks.append(modules["sem_seg_head"].predictor.register_forward_hook(lambda _m, _i, o: kept.update(semantic=o)))
    results = model(inputs)
    for hook in hooks:
        hook.remove()
    return results, kept


def inference(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    results, kept = caught(model, inputs)
    golden = {f"logits {level}": spread(x, 150) for level, x in enumerate(kept["rpn"][0])}
    golden |= {f"deltas {level}": spread(x, 150) for level, x in enumerate(kept["rpn"][1])}
    if "semantic" in kept:
        golden["semantic"] = spread(kept["semantic"], 1000)
    for index, (result, proposed, found) in enumerate(zip(results, kept["proposals"], kept["detections"])):
        golden[f"proposal count {index}"] = np.array(len(proposed["proposal_boxes"]))
        golden[f"proposals {index}"] = proposed["proposal_boxes"][:200].numpy()
        instances = result["instances"]
        assert len(instances) == len(found["scores"])  # none became empty, so the rows belong together
        golden[f"boxes {index}"] = found["pred_boxes"].numpy()
        golden[f"scores {index}"] = found["scores"].numpy()
        golden[f"classes {index}"] = found["pred_classes"].numpy().astype(np.uint8)
        golden[f"scaled boxes {index}"] = instances.pred_boxes.tensor.numpy()
        if "pred_masks" in found:
            golden[f"masks {index}"] = np.stack([spread(m, 16) for m in found["pred_masks"]])
            golden[f"areas {index}"] = instances.pred_masks.flatten(1).sum(1).numpy().astype(np.int32)
        if "panoptic_seg" in result:
            golden |= merged(index, *result["panoptic_seg"])
    return golden


def merged(index: int, ids: Tensor, segments: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The panoptic map, and of each segment: id, is a thing, class (1 … for stuff)."""
    rows = [[s["id"], s["isthing"], s["category_id"]] for s in segments]
    return {f"map {index}": ids.numpy().astype(np.uint8), f"segments {index}": np.array(rows, dtype=np.uint8)}


def training(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    from detectron2.utils.events import EventStorage

    torch.randperm = in_order
    with EventStorage():
        losses = model.train()(inputs)
    sum(losses.values()).backward()
    golden = {f"loss {name}": np.array(value.item(), dtype=np.float32) for name, value in losses.items()}
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return golden | {"trained": np.array(list(trained)), "gradients": norm_and_samples(trained.values())}


def main(checkout: Path, kinds: list[str]) -> None:
    sys.path.insert(0, str(checkout))
    import detectron2

    extension = types.ModuleType("detectron2._C")  # imported by its evaluation, never called here
    sys.modules[extension.__name__] = detectron2._C = extension
    for kind in kinds:
        model = network(checkout, kind).eval()
        rows = [" ".join([name, *map(str, tensor.shape)]) for name, tensor in model.state_dict().items()]
        golden = {"layout": np.array(rows)}
        with torch.no_grad():
            model.load_state_dict(detectron2_weights(kind, golden))
            golden |= calibrate(model, photos(kind))
            model.load_state_dict(detectron2_weights(kind, golden))  # as the test will load them, to the last bit
            golden |= inference(model, photos(kind))
        golden |= training(model, annotated(kind))
        path = Path(__file__).with_name(f"detectron2_{kind}.npz")
        np.savez_compressed(path, **golden)
        print(f"{path.name}: {path.stat().st_size} bytes")
        for key, value in golden.items():
            if key.startswith(("loss", "scores", "segments", "proposal count")):
                print(key, value.tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(KINDS))
