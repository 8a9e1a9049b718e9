"""What golden numbers of Panoptic-DeepLab are made from, beyond `fixed`: settings, truths, and maps to be grouped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from fixed import OBJECTS, OUTPUT_SIZES, SIZES, STUFF_ROWS, uniform, weight
from torch import Tensor


class Case(NamedTuple):
    """crop: of training, a sixteenth of which is the window of pooling. divisor: of padded sides; 0: as they are."""

    config: str
    crop: tuple[int, int]
    divisor: int
    canvas: tuple[int, int]
    output_sizes: tuple[tuple[int, int], ...]
    stuff: int
    things: int


CITYSCAPES = "Cityscapes-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_90k_bs32_crop_512_1024"
COCO = "COCO-PanopticSegmentation/panoptic_deeplab_R_52_os16_mg124_poly_200k_bs64_crop_640_640_coco_dsconv.yaml"
CASES = {
    "plain": Case(f"{CITYSCAPES}.yaml", (192, 256), 0, SIZES[0], SIZES, 11, 8),  # one window covers the map
    "separable": Case(f"{CITYSCAPES}_dsconv.yaml", (96, 128), 0, SIZES[0], SIZES, 11, 8),  # 7 × 9 windows
    "coco": Case(COCO, (128, 128), 256, (256, 256), OUTPUT_SIZES, 53, 80),
}
"""detectron2's own settings at smaller sizes. Its maps need sides that the windows divide, so its own are too large."""

CROWD = 5
"""The object of the first photo that is a crowd; numbers from 1."""

SIGMAS = {"plain": 10, "separable": 10, "coco": 8}


def weights(case: str, golden: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """A whole state dict of a case; `golden` has its layout, and gain and bias of the layers that predict."""
    state: dict[str, Tensor] = {}
    for row in golden[f"{case} layout"].tolist():
        name, *sides = row.split()
        shape = [int(side) for side in sides]
        counter = name.endswith("num_batches_tracked")
        state[name] = torch.zeros((), dtype=torch.int64) if counter else weight(name, shape, case)
        if name.endswith("depthwise.weight"):  # of smooth maps, filters whose numbers sum to zero leave nothing
            state[name] += 1 / state[name][0].numel()
    for entry, value in golden.items():
        if entry.startswith((f"{case} gain ", f"{case} bias ")):
            what, layer = entry.removeprefix(f"{case} ").split(" ")
            if what == "gain":
                state[f"{layer}.weight"] *= torch.from_numpy(value)
            else:
                state[f"{layer}.bias"] = torch.from_numpy(value)
    return state


def truth(index: int, things: int, stuff: int) -> tuple[Tensor, list[tuple[int, int]], list[tuple[int, int]]]:
    """→ (ids int32 (H, W), (id, place among the things) of objects, (id, place among the stuff)); 0 is void."""
    ids = torch.zeros(SIZES[index], dtype=torch.int32)
    of_stuff, of_things = list[tuple[int, int]](), list[tuple[int, int]]()
    for number, (top, bottom, category) in enumerate(STUFF_ROWS, start=100):
        ids[top:bottom] = number
        of_stuff.append((number, category % stuff))
    for number, (top, left, bottom, right, category) in enumerate(OBJECTS[index], start=1):
        ids[top:bottom, left:right] = number
        ids[top : top + 12, left : left + 17] = 0  # a corner is missing: the centre is not that of a box
        of_things.append((number, category % things))
    return ids, of_things, of_stuff


class Maps(NamedTuple):
    """What is grouped: classes int64 (H, W), heat float32 (H, W), offsets float32 (2, H, W), y first."""

    semantic: Tensor
    heat: Tensor
    offsets_yx: Tensor


CLASSES, THINGS = 6, (3, 4, 5)
"""Classes of the maps below, and those of them that are things."""

RULES = {  # name: threshold, window, centres, least area of stuff
    "usual": (0.1, 7, 200, 40),
    "many": (0.1, 3, 40, 0),
    "equal": (0.1, 15, 1000, 10),
    "dropped": (0.1, 15, 200, 10),
    "wide": (0.1, 41, 200, 2048),
    "none": (0.1, 7, 200, 10),
    "things": (0.1, 7, 200, 0),
    "stuff": (0.1, 7, 200, 600),
}


def maps(name: str, height: int = 72, width: int = 104) -> Maps:
    """Random ones; of `equal` and `dropped` heat and offsets have few different values, so that many tie."""
    count = height * width
    regions = uniform(f"{name} regions", 8 * 12).reshape(8, 12).repeat(9, 0).repeat(9, 1)[:height, :width]
    noise = uniform(f"{name} noise", count).reshape(height, width)
    shares = (regions + 0.3 * noise + 2.3) / 4.6  # 0 … 1
    semantic = torch.from_numpy((shares * CLASSES).astype(np.int64)).clamp(0, CLASSES - 1)
    heat = torch.from_numpy(uniform(f"{name} heat", count).reshape(height, width))
    heat = {"none": 0.01}.get(name, 0.1) * heat
    offsets = torch.from_numpy(uniform(f"{name} offsets", 2 * count).reshape(2, height, width)) * 6
    if name in ("equal", "dropped"):
        heat, offsets = (heat * 30).round() / 30, offsets.round()
    if name in ("things", "stuff"):
        semantic = semantic % 3 + (3 if name == "things" else 0)
    return Maps(semantic, heat, offsets)
