"""Write <kind>.npz: what the published Panoptic FCN itself finds and loses with the weights of `fixed`.

Needed are a checkout of github.com/dvlab-research/PanopticFCN (commit f4141c3ac916, Apache-2.0) and what
`make_detectron2.py` needs. Networks and settings are those of its configuration files. detectron2's deformable
convolution has no code for the CPU; torchvision's, the same function, takes its place.

    export PYTHONPATH=$PYTHONPATH:tests/golden
    python tests/golden/panoptic_fcn/make_panoptic_fcn.py <detectron2's folder> <PanopticFCN's folder> [r50 star]

None of their code is part of this repository; the numbers are. Its inference is right for one image at a time, so each
photo is a batch of its own there; training has both in one batch.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from fixed import LARGE_SIZES, OUTPUT_SIZES, detectron2_weights, large_truth, norm_and_samples, photo, spread, twice
from torch import Tensor

CONFIGS = {"r50": "PanopticFCN-R50-3x.yaml", "star": "PanopticFCN-Star-R50-3x.yaml"}
LAYERS = {
    "position_head.position_head.position_head_head_1.offset_mask_conv": 1.0,
    "position_head.position_head.position_head_head_2.offset_mask_conv": 1.0,
    "position_head.position_head.position_head_head_3.offset_mask_conv": 1.0,
    "feature_encoder.encode_head.encode_head_head_1.offset_mask_conv": 1.0,
    "feature_encoder.encode_head.encode_head_head_2.offset_mask_conv": 1.0,
    "feature_encoder.encode_head.encode_head_head_3.offset_mask_conv": 1.0,
    "position_head.out_inst": 1.2,
    "position_head.out_sem": 2.0,
    "kernel_head.out_conv": 1.0,
    "thing_generator.embed_extractor": 0.0,
    "stuff_generator.embed_extractor": 0.0,
}
"""The deviation that the outputs of a layer are scaled to, each channel's mean being moved to zero; 0: see `calibrate`.

Of random weights alone all scores are equal or all differ by hundreds; neither says much about parity.
"""
MASK_DEVIATION = 3.0
KNOWN = 8
"""Thing classes that are found."""


def network(checkout: Path, kind: str) -> Any:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from panopticfcn import add_panopticfcn_config

    config = get_cfg()
    add_panopticfcn_config(config)
    config.merge_from_file(str(checkout / "configs" / CONFIGS[kind]))
    config.MODEL.DEVICE = "cpu"
    return build_model(config)


def photos(kind: str) -> list[dict[str, Any]]:
    """Its input: BGR."""
    return [
        {"image": twice(photo(index, kind)).flip(0), "height": height, "width": width}
        for index, (height, width) in enumerate(OUTPUT_SIZES)
    ]


def annotated(kind: str) -> list[dict[str, Any]]:
    """The same with what its data loader adds for training."""
    from detectron2.structures import BitMasks, Instances

    rows: list[dict[str, Any]] = []
    for index, row in enumerate(photos(kind)):
        ids, things, stuff = large_truth(index)
        instances = Instances(LARGE_SIZES[index])
        instances.gt_masks = BitMasks(torch.stack([ids == number for number, _ in things]))
        instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
        instances.gt_classes = torch.tensor([category for _, category in things])
        classes = torch.full(LARGE_SIZES[index], 255)
        for number, category in stuff:
            classes[ids == number] = 1 + category
        for number, _ in things:
            classes[ids == number] = 0
        rows.append(row | {"instances": instances, "sem_seg": classes})
    return rows


def calibrate(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Set gain and bias of the layers of LAYERS, from the first to the last; → what was set."""
    found: dict[str, np.ndarray] = {}
    modules = dict(model.named_modules())
    for name, deviation in LAYERS.items():
        if name not in modules:
            continue
        layer, outputs, features = modules[name], [], []
        hooks = [
            layer.register_forward_hook(lambda _m, _i, output, kept=outputs: kept.append(output.detach())),
            model.feature_encoder.register_forward_hook(lambda _m, _i, o, kept=features: kept.append(o.detach())),
        ]
        for row in inputs:
            model([row])
        for hook in hooks:
            hook.remove()
        channels = torch.cat([x.movedim(1, -1).flatten(0, -2) for x in outputs])  # (places, channels)
        centred = channels - channels.mean(0)
        pixels = torch.cat([x.flatten(2)[0] for x in features], dim=1)  # (D, places)
        gain = deviation / centred.std() if deviation else MASK_DEVIATION / (centred @ pixels).std()
        with torch.no_grad():
            layer.weight *= gain
            layer.bias.copy_((layer.bias - channels.mean(0)) * gain)
            if name.endswith("out_inst"):
                layer.bias -= 3.0
                layer.bias[KNOWN:] -= 6.0  # few classes, so that many kernels have a companion of their own
            elif name.startswith("thing_generator"):
                # what all kernels have in common makes them similar, some more than 0.9; it is the same at each pixel
                mean = pixels.mean(1)
                common = torch.linalg.eigh((pixels - mean[:, None]) @ (pixels - mean[:, None]).T)[1][:, 0]
                layer.bias += common * 3 * (centred * gain).norm(dim=1).mean()
                layer.bias -= mean * (mean @ layer.bias + 4) / mean.square().sum()  # most of an image is no object
        found[f"gain {name}"], found[f"bias {name}"] = gain.reshape(1).numpy(), layer.bias.detach().numpy().copy()
    return found


def inference(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    golden: dict[str, np.ndarray] = {}
    for index, row in enumerate(inputs):
        kept: dict[str, list[Any]] = {"positions": [], "kernels": [], "features": []}
        parts = (model.position_head, model.kernel_head, model.feature_encoder)
        hooks = [
            part.register_forward_hook(lambda _m, _i, output, rows=rows: rows.append(output))
            for part, rows in zip(parts, kept.values())
        ]
        (result,) = model([row])
        for hook in hooks:
            hook.remove()
        for level, ((things, stuff), kernels) in enumerate(zip(kept["positions"], kept["kernels"])):
            for what, x in (("things", things), ("stuff", stuff), ("kernels", kernels)):
                golden[f"{what} {index} {level}"] = spread(x, 150)
        golden[f"features {index}"] = spread(kept["features"][0], 500)
        instances = result["instances"]
        golden[f"scores {index}"] = instances.scores.numpy()
        golden[f"classes {index}"] = instances.pred_classes.numpy().astype(np.uint8)
        golden[f"boxes {index}"] = instances.pred_boxes.tensor.numpy()
        golden[f"areas {index}"] = instances.pred_masks.tensor.flatten(1).sum(1).numpy().astype(np.int32)
        ids, segments = result["panoptic_seg"]
        rows = [[s["id"], s["isthing"], s["category_id"]] for s in segments]
        golden[f"map {index}"] = ids.numpy().astype(np.uint8)
        golden[f"segments {index}"] = np.array(rows, dtype=np.uint8)
    return golden


def training(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    losses = model.train()(inputs)
    sum(losses.values()).backward()
    golden = {f"loss {name}": np.array(value.item(), dtype=np.float32) for name, value in losses.items()}
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return golden | {"trained": np.array(list(trained)), "gradients": norm_and_samples(trained.values())}


def on_the_cpu(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None, *geometry: int) -> Tensor:
    """detectron2's modulated deformable convolution with the arguments of its own."""
    stride, padding, dilation, _, _ = geometry
    return torchvision.ops.deform_conv2d(x, offset, weight, bias, stride, padding, dilation, mask)


def main(detectron: Path, checkout: Path, kinds: list[str]) -> None:
    sys.path[:0] = [str(detectron), str(checkout)]
    import detectron2

    extension = types.ModuleType("detectron2._C")  # imported by its layers, never called here
    sys.modules[extension.__name__] = detectron2._C = extension
    import detectron2.layers.deform_conv

    detectron2.layers.deform_conv.modulated_deform_conv = on_the_cpu
    for kind in kinds:
        model = network(checkout, kind).eval()
        rows = [" ".join([name, *map(str, tensor.shape)]) for name, tensor in model.state_dict().items()]
        golden = {"layout": np.array(rows)}
        salt = f"panoptic_fcn_{kind}"
        with torch.no_grad():
            model.load_state_dict(detectron2_weights(salt, golden))
            golden |= calibrate(model, photos(salt))
            model.load_state_dict(detectron2_weights(salt, golden))  # as the test will load them, to the last bit
            golden |= inference(model, photos(salt))
        golden |= training(model, annotated(salt))
        path = Path(__file__).with_name(f"{kind}.npz")
        np.savez_compressed(path, **golden)
        print(f"{path.name}: {path.stat().st_size} bytes")
        for key, value in golden.items():
            if key.startswith(("loss", "scores", "classes", "areas", "segments")):
                print(key, value.tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(CONFIGS))
