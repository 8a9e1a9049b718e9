"""From raw outputs to a panoptic map: ours beside transformers' image processors, the maps being the same.

    python benchmarks/fusion_speed.py [--repeats 9] [--threads 2] [--dry]

Each image has 100 queries; 20 or 50 pass the threshold. Masks are smooth, with sharp borders, as a trained
network's are: a kept query has a centre and owns the pixels nearer to it than to another (bent by noise), the others
are negative. The official rules (`fuse_detr`, `fuse_masks`), which transformers does not have, are timed beside.
"""

from __future__ import annotations

import argparse
import os
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

from common import alternate, save
from pansight.ops.fusion.queries import Canvas, fuse_detr, fuse_hf, fuse_masks, keep_queries
from pansight.types import LabelSpace

LABELS = LabelSpace.from_names([f"thing {n}" for n in range(80)], [f"stuff {n}" for n in range(53)])
QUERIES, THRESHOLD = 100, 0.5
CASES = {  # name: queries kept, size of the file, size of the masks (a quarter of the network's input)
    "20 kept, 480x640": (20, (480, 640), (200, 268)),
    "20 kept, 1024x2048": (20, (1024, 2048), (256, 512)),
    "50 kept, 1024x2048": (50, (1024, 2048), (256, 512)),
}


def outputs(kept: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """(class logits (1, 100, 134), mask logits (1, 100, h, w)): `kept` queries of score ≥ 0.6, spread over all."""
    draw = torch.Generator().manual_seed(seed)
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / height, indexing="ij")
    bend = F.interpolate(torch.randn((1, 2, 9, 17), generator=draw), size=size, mode="bicubic")[0] * 0.04
    y, x = y + bend[0], x + bend[1]
    centers = torch.rand((kept, 2), generator=draw) * torch.tensor([1.0, width / height])
    distance = ((y - centers[:, 0, None, None]) ** 2 + (x - centers[:, 1, None, None]) ** 2).sqrt()  # (K, h, w)
    nearest = distance.topk(2, dim=0, largest=False).values
    others = torch.where(distance == nearest[0], nearest[1], nearest[0])
    masks = torch.full((QUERIES, height, width), -6.0)
    chosen = torch.randperm(QUERIES, generator=draw)[:kept].sort().values
    masks[chosen] = ((others - distance) * 60).clamp(-12, 12)
    masks += 0.3 * F.interpolate(torch.randn((1, QUERIES, 20, 40), generator=draw), size=size, mode="bilinear")[0]
    classes = torch.zeros((QUERIES, len(LABELS) + 1))
    classes[:, -1] = 8.0
    classes[chosen, -1] = 0.0
    classes[chosen, torch.randint(len(LABELS), (kept,), generator=draw)] = 5.5 + 4 * torch.rand(kept, generator=draw)
    return classes[None], masks[None].contiguous()


def contenders(kept: int, size: tuple[int, int], shape: tuple[int, int]) -> dict[str, Any]:
    from transformers import DetrImageProcessor, Mask2FormerImageProcessor

    classes, masks = outputs(kept, shape)
    raw = SimpleNamespace(logits=classes, pred_masks=masks, class_queries_logits=classes, masks_queries_logits=masks)
    stuff = {category.id for category in LABELS.stuff}
    detr, mask2former = DetrImageProcessor(), Mask2FormerImageProcessor()
    canvas = Canvas((4 * shape[0], 4 * shape[1]), (4 * shape[0], 4 * shape[1]), size)

    def theirs(processor: Any) -> Tensor:
        result = processor.post_process_panoptic_segmentation(
            raw, threshold=THRESHOLD, label_ids_to_fuse=stuff, target_sizes=[size]
        )
        return result[0]["segmentation"]

    def ours(rule: Any, *arguments: Any, **options: Any) -> Tensor:
        queries = keep_queries(classes[0], THRESHOLD)
        assert len(queries.queries) == kept
        return rule(masks[0, queries.queries], queries, *arguments, LABELS, **options).ids

    runs = {
        "transformers Mask2Former": lambda: theirs(mask2former),
        "fuse_hf as Mask2Former": lambda: ours(fuse_hf, size, logits_size=(384, 384)),
        "transformers DETR": lambda: theirs(detr),
        "fuse_hf as DETR": lambda: ours(fuse_hf, size),
        "fuse_masks (Mask2Former's own rule)": lambda: ours(fuse_masks, canvas),
        "fuse_masks (MaskFormer's own rule)": lambda: ours(fuse_masks, canvas, cut=False),
        "fuse_detr (DETR's own rule)": lambda: ours(fuse_detr, canvas),
    }
    for name in ("Mask2Former", "DETR"):
        assert torch.equal(runs[f"transformers {name}"](), runs[f"fuse_hf as {name}"]()), name
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="write no file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {"threads": options.threads, "queries": QUERIES, "cases": {}}
    for case, setting in CASES.items():
        seconds = alternate(contenders(*setting), options.repeats)
        ratio = {
            name: seconds[f"fuse_hf as {name}"] / seconds[f"transformers {name}"] for name in ("Mask2Former", "DETR")
        }
        record["cases"][case] = {"milliseconds": {k: round(1000 * v, 2) for k, v in seconds.items()}, "ratio": ratio}
        print(case)
        for name, value in seconds.items():
            print(f"  {name:40s} {1000 * value:8.1f} ms")
        print("  " + ", ".join(f"{name}: {value:.3f} of transformers" for name, value in ratio.items()))
    if not options.dry:
        save("fusion_speed", record)


if __name__ == "__main__":
    main()
