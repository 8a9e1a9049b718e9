"""Write detectron2_panoptic_deeplab.npz: what detectron2's projects/Panoptic-DeepLab finds with the weights of `fixed`.

Networks and settings are its own configuration files, but for crops and padding (`CASES`). Its target generator and its
grouping are called by themselves, too. A checkout of detectron2 and its dependencies are needed, not its compiled
extension, as `make_detectron2.py` says:

    python tests/golden/make_panoptic_deeplab.py <checkout of detectron2>

None of detectron2's code is part of this repository; the numbers are.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fixed import SIZES, norm_and_samples, photo, spread
from fixed_panoptic_deeplab import CASES, CROWD, RULES, SIGMAS, THINGS, maps, truth, weights
from torch import Tensor

DEVIATIONS = {
    "sem_seg_head.predictor": 2.0,
    "ins_embed_head.center_predictor": 0.15,
    "ins_embed_head.offset_predictor": 4.0,
}
"""The deviation that the outputs of each predicting layer are scaled to, each channel's mean being moved to zero."""

SAMPLES = 600
"""Numbers kept of each map of an image."""


def network(checkout: Path, case: str) -> Any:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model
    from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config

    config = get_cfg()
    add_panoptic_deeplab_config(config)
    folder = checkout / "projects/Panoptic-DeepLab/configs"
    config.merge_from_file(str(folder / CASES[case].config), allow_unsafe=True)
    config.MODEL.DEVICE = "cpu"
    config.INPUT.CROP.SIZE = list(CASES[case].crop)
    config.MODEL.PANOPTIC_DEEPLAB.SIZE_DIVISIBILITY = CASES[case].divisor
    assert SIGMAS[case] == config.INPUT.GAUSSIAN_SIGMA
    return build_model(config), config


def photos(case: str) -> list[dict[str, Any]]:
    return [
        {"image": photo(index, case), "height": height, "width": width}
        for index, (height, width) in enumerate(CASES[case].output_sizes)
    ]


def annotated(case: str, config: Any) -> list[dict[str, Any]]:
    """The photos with what its data loader adds for training."""
    from detectron2.projects.panoptic_deeplab.target_generator import PanopticDeepLabTargetGenerator

    stuff, things = CASES[case].stuff, CASES[case].things
    first_thing, first_stuff = (stuff, 0) if case != "coco" else (0, things)  # Cityscapes has its stuff first
    generator = PanopticDeepLabTargetGenerator(
        ignore_label=255,
        thing_ids=range(first_thing, first_thing + things),
        sigma=config.INPUT.GAUSSIAN_SIGMA,
        ignore_stuff_in_offset=config.INPUT.IGNORE_STUFF_IN_OFFSET,
        small_instance_area=config.INPUT.SMALL_INSTANCE_AREA,
        small_instance_weight=config.INPUT.SMALL_INSTANCE_WEIGHT,
        ignore_crowd_in_semantic=config.INPUT.IGNORE_CROWD_IN_SEMANTIC,
    )
    rows: list[dict[str, Any]] = []
    for index, row in enumerate(photos(case)):
        ids, of_things, of_stuff = truth(index, things, stuff)
        segments = [{"id": number, "category_id": first_thing + place} for number, place in of_things]
        segments += [{"id": number, "category_id": first_stuff + place} for number, place in of_stuff]
        segments = [s | {"iscrowd": int(index == 0 and s["id"] == CROWD)} for s in segments]
        rows.append(row | generator(ids.numpy(), segments))
    return rows


def calibrate(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Set gain and bias of the predicting layers; → what was set."""
    found: dict[str, np.ndarray] = {}
    _, kept = caught(model, inputs)
    modules = dict(model.named_modules())
    for name, deviation in DEVIATIONS.items():
        layer, channels = modules[name], kept[name].movedim(1, -1).flatten(0, -2)  # (places, channels)
        gain = (deviation / channels.std(0).mean()).reshape(1)
        found[f"gain {name}"], found[f"bias {name}"] = gain.numpy(), ((layer.bias - channels.mean(0)) * gain).numpy()
    return found


def caught(model: Any, inputs: list[dict[str, Any]]) -> tuple[list[Any], dict[str, Tensor]]:
    """→ (results, outputs of the predicting layers)."""
    kept: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    hooks = [
        modules[name].register_forward_hook(lambda _m, _i, output, name=name: kept.update({name: output}))
        for name in DEVIATIONS
    ]
    results = model(inputs)
    for hook in hooks:
        hook.remove()
    return results, kept


def inference(model: Any, inputs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    results, kept = caught(model, inputs)
    golden = {name: np.stack([spread(x, SAMPLES) for x in maps]) for name, maps in kept.items()}
    for index, result in enumerate(results):
        values, places = result["panoptic_seg"][0].unique(return_inverse=True)
        golden[f"values {index}"], golden[f"map {index}"] = values.numpy(), places.numpy().astype(np.uint8)
        instances = result["instances"]
        golden[f"scores {index}"] = instances.scores.numpy()
        golden[f"classes {index}"] = instances.pred_classes.numpy().astype(np.uint8)
    return golden


def training(model: Any, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Losses of the two photos together and of the first alone, whose hardest pixels are those of its image."""
    model.train()
    for head in (model.sem_seg_head, model.ins_embed_head):
        head.decoder["res5"]["project_conv"].dropout = 0
    golden: dict[str, np.ndarray] = {}
    with torch.no_grad():
        for name, batch in (("both", rows), ("first", rows[:1])):
            golden |= {f"{key} {name}": np.array(value.item(), np.float32) for key, value in model(batch).items()}
    return golden


def gradients(model: Any, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Of the first photo, the statistics of the norms as they are.

    Those of a batch of one image would carry the rounding errors of all of its pixels to each of them.
    """
    for module in model.train().modules():
        if isinstance(module, torch.nn.SyncBatchNorm):
            module.eval()
    losses = model(rows[:1])
    sum(losses.values()).backward()
    trained = {name: p.grad for name, p in model.named_parameters()}
    golden = {f"{key} fixed": np.array(value.item(), np.float32) for key, value in losses.items()}
    return golden | {"trained": np.array(list(trained)), "gradients": norm_and_samples(trained.values())}


def targets(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = ("center", "offset", "sem_seg_weights", "center_weights", "offset_weights")
    return {f"{name} {index}": spread(row[name], SAMPLES) for index, row in enumerate(rows) for name in names}


def grouped() -> dict[str, np.ndarray]:
    """Its panoptic maps of given classes, heat and offsets: class · 1000 + number, -1 for void."""
    from detectron2.projects.panoptic_deeplab.post_processing import get_panoptic_segmentation

    golden: dict[str, np.ndarray] = {}
    for name, (threshold, window, count, area) in RULES.items():
        semantic, heat, offsets = maps(name)
        numbers = {"threshold": threshold, "nms_kernel": window, "top_k": count, "stuff_area": area}
        found, centres = get_panoptic_segmentation(
            semantic[None], heat[None], offsets, thing_ids=THINGS, label_divisor=1000, void_label=-1, **numbers
        )
        golden[f"rule {name}"] = found[0].numpy().astype(np.int16)
        golden[f"centres {name}"] = centres[0].numpy().astype(np.uint8)
    return golden


def main(checkout: Path) -> None:
    sys.path.insert(0, str(checkout))
    import detectron2

    extension = types.ModuleType("detectron2._C")  # imported by its evaluation, never called here
    sys.modules[extension.__name__] = detectron2._C = extension
    reader = types.ModuleType("panopticapi.utils")  # imported by its data loader, never called here
    reader.rgb2id = None
    sys.modules |= {"panopticapi": types.ModuleType("panopticapi"), reader.__name__: reader}
    golden: dict[str, np.ndarray] = grouped()
    for case in CASES:
        model, config = network(checkout, case)
        rows = [" ".join([name, *map(str, tensor.shape)]) for name, tensor in model.state_dict().items()]
        golden[f"{case} layout"] = np.array(rows)
        model.eval()
        with torch.no_grad():
            model.load_state_dict(weights(case, golden))
            golden |= {f"{case} {key}": value for key, value in calibrate(model, photos(case)).items()}
            model.load_state_dict(weights(case, golden))  # as the test will load them, to the last bit
            found = inference(model, photos(case))
        annotations = annotated(case, config)
        found |= targets(annotations) | training(model, annotations)
        model.load_state_dict(weights(case, golden))  # training changed the statistics
        found |= gradients(model, annotations)
        golden |= {f"{case} {key}": value for key, value in found.items()}
        for key, value in found.items():
            if key.startswith(("loss", "scores", "values")):
                print(case, key, value.tolist(), flush=True)
    path = Path(__file__).with_name("detectron2_panoptic_deeplab.npz")
    np.savez_compressed(path, **golden)
    print(f"{path.name}: {path.stat().st_size} bytes; photos of {SIZES}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
