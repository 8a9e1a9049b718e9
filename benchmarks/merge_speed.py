"""From the parts of a panoptic map to the map: the rules of the convolutional systems → results/merge_speed.json.

    python benchmarks/merge_speed.py [--repeats 9] [--dry]

A photo of 1024×2048 pixels with 100 objects, 8 classes of things and 11 of stuff. Three rules, each beside its plain
form, which holds a map of the size of the photo for each object:

heuristic: the masks of the objects, painted by falling score, and stuff in what they leave: detectron2's rule, whose
plain form is written anew here from its description. head: UPSNet's panoptic head with its unknown class. adaptive: the
fusion of EfficientPS, of which the plain form has the contest of the pixels alone. The maps of the first two are
asserted to be the same (but for pixels whose two best values differ by rounding). Times are medians of one thread's
time on the processor, run in turns; memory is the most that a process of its own needed beyond what it had before.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from centre_speed import LABELS, SIZE
from common import alternate, peak_resident_mib, save
from pansight.ops.fusion.adaptive import AdaptiveRule, adaptive_fusion, fused_logits
from pansight.ops.fusion.adaptive import Objects as FusedObjects
from pansight.ops.fusion.contest import Canvas
from pansight.ops.fusion.instances import merge_by_label_map
from pansight.ops.fusion.panoptic_head import Objects, Winners, crops_of, plain_winners, winners_in_boxes
from pansight.ops.regions.masks import paste_sampled

OBJECTS = 100
RULES = ("heuristic", "head", "adaptive")
STUFF = [category.id for category in LABELS.stuff]
SCORE, OVERLAP, LEAST_STUFF = 0.5, 0.5, 4096


def boxes_and_masks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(boxes (100, 4), mask logits (100, 28, 28) of blobs, scores, thing classes) with overlaps, as detectors have."""
    draw = torch.Generator().manual_seed(0)
    height, width = SIZE
    sides = 40 + 260 * torch.rand(OBJECTS, 2, generator=draw)
    corner = torch.rand(OBJECTS, 2, generator=draw) * (torch.tensor([width, height]) - sides)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    masks = 6 * (0.9 - (x**2 + y**2)) + torch.randn(OBJECTS, 28, 28, generator=draw)
    scores = torch.rand(OBJECTS, generator=draw).mul(0.4).add(0.6).sort(descending=True).values
    things = torch.randint(len(LABELS.things), (OBJECTS,), generator=draw)
    return torch.cat((corner, corner + sides), 1), masks, scores, things


def semantic_logits(height: int, width: int) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    return 3 * torch.nn.functional.interpolate(
        torch.randn((1, len(LABELS), 12, 24), generator=draw), (height, width), mode="bilinear"
    ).squeeze(0)


def plain_heuristic(masks: Tensor, scores: Tensor, categories: Tensor, semantic: Tensor) -> tuple[Tensor, list[int]]:
    """detectron2's merge by its description: each object is compared with the whole map → (ids, class of each id)."""
    ids, found = torch.zeros(semantic.shape, dtype=torch.int32), list[int]()
    for index in scores.argsort(descending=True).tolist():
        if scores[index] < SCORE:
            break
        mask = masks[index]
        area = int(mask.sum())
        if area == 0:
            continue
        taken = (ids > 0) & mask
        covered = int(taken.sum())
        if covered / area > OVERLAP:
            continue
        if covered:
            mask = mask & (ids == 0)
        found.append(int(categories[index]))
        ids[mask] = len(found)
    for category in semantic.unique().tolist():
        if category in STUFF:
            free = (semantic == category) & (ids == 0)
            if int(free.sum()) >= LEAST_STUFF:
                found.append(category)
                ids[free] = len(found)
    return ids, found


def plain_adaptive(logits: Tensor, objects: FusedObjects, masks: Tensor) -> Tensor:
    """The winners of EfficientPS's contest with a map of the photo for each object, masks given: int64 (H, W)."""
    maps = [logits[STUFF].max(0).values]
    for mask, category, box in zip(masks, objects.categories.tolist(), objects.boxes_xyxy.tolist(), strict=True):
        inside = torch.zeros_like(mask)
        left, top, right, bottom = (round(side) for side in box)
        inside[top:bottom, left:right] = logits[category, top:bottom, left:right]
        maps.append(fused_logits(mask, inside))
    return torch.stack(maps).max(0).indices


def contenders(rule: str) -> dict[str, Callable[[], Any]]:
    """Both forms of a rule, from what a network gives."""
    boxes, mask_logits, scores, things = boxes_and_masks()
    categories = torch.tensor([category.id for category in LABELS.things])[things]
    if rule == "heuristic":
        masks = paste_sampled(mask_logits.sigmoid(), boxes, SIZE)
        semantic = semantic_logits(*SIZE).max(0).indices
        return {
            "plain": lambda: plain_heuristic(masks, scores, categories, semantic),
            "ours": lambda: merge_by_label_map(
                masks, scores, categories, semantic, LABELS, SCORE, OVERLAP, LEAST_STUFF
            ),
        }
    if rule == "head":
        logits = semantic_logits(SIZE[0] // 4, SIZE[1] // 4)
        found, canvas = Objects(crops_of(boxes, SIZE), things, mask_logits), Canvas(SIZE, SIZE, SIZE)
        return {
            "plain": lambda: plain_winners(logits, len(STUFF), canvas, found),
            "ours": lambda: winners_in_boxes(logits, len(STUFF), canvas, found),
        }
    logits = semantic_logits(*SIZE)
    semantic = logits.max(0).indices
    objects = FusedObjects(boxes.round(), mask_logits, scores, categories)

    def enlarged() -> Tensor:
        whole = torch.zeros((OBJECTS, *SIZE))
        for row, (mask, box) in enumerate(zip(mask_logits, objects.boxes_xyxy.int().tolist(), strict=True)):
            left, top, right, bottom = box
            whole[row, top:bottom, left:right] = torch.nn.functional.interpolate(
                mask[None, None], (bottom - top, right - left), mode="bilinear"
            )[0, 0]
        return whole

    return {
        "plain": lambda: plain_adaptive(logits, objects, enlarged()),
        "ours": lambda: adaptive_fusion(logits, semantic, objects, LABELS, AdaptiveRule()),
    }


def assert_same(rule: str, plain: Any, ours: Any) -> None:
    if rule == "heuristic":
        assert torch.equal(plain[0], ours.ids)
        assert plain[1] == [segment.category for segment in ours.segments]
    elif rule == "head":
        assert isinstance(plain, Winners)
        assert (plain.code == ours.code).float().mean() > 0.9999


def needed_mib(rule: str, name: str) -> float:
    words = [sys.executable, __file__, "--memory", rule, name]
    return float(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="write no file")
    parser.add_argument("--memory", nargs=2, metavar=("RULE", "FORM"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        run = contenders(options.memory[0])[options.memory[1]]
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
        before = peak_resident_mib()
        with torch.inference_mode():
            run()
        print(peak_resident_mib() - before)
        return
    rows: list[dict[str, Any]] = []
    for rule in RULES:
        with torch.inference_mode():
            forms = contenders(rule)
            assert_same(rule, forms["plain"](), forms["ours"]())
            seconds = alternate(forms, options.repeats, clock=time.process_time)
        memory = {name: round(needed_mib(rule, name), 1) for name in forms}
        milliseconds = {name: round(1000 * value, 1) for name, value in seconds.items()}
        ratio = seconds["ours"] / seconds["plain"]
        rows.append({"rule": rule, "milliseconds": milliseconds, "ratio": ratio, "mib": memory})
        print(rows[-1], flush=True)
    if not options.dry:
        save("merge_speed", {"threads": 1, "objects": OBJECTS, "size": SIZE, "rows": rows})


if __name__ == "__main__":
    main()
