"""Training mask transformers: ours beside transformers', same weights, in turns → results/transformer_training.json.

A step on two drawn images of 256×256 with ten segments each, AdamW (fused, as both libraries' own loops have it). The
losses are those published, on every decoder layer. Frozen on both sides: BatchNorm, and in DETR stem and first stage of
the ResNet. Dropout as published; drop path is left out on both sides.

Settings: float32 is each library as it comes; fast is bfloat16 autocast with channels_last weights. Peak memory is that
of a process of its own per contender, which imports nothing of the other.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import hf_models
from common import PAIRS, alternate, merge_rows
from transformer_speed import CONTENDERS, SETTINGS, peak_of_this_process, precision, synchronised

SYSTEMS = ("mask2former_swin_tiny", "detr", "eomt", "maskformer")
SIDE, IMAGES, SEGMENTS = 256, 2, 10
LOSS_TOLERANCE = {"detr": 1e-3, "mask2former_swin_tiny": 0.1, "eomt": 0.1}
"""Of the sum of the loss terms, without dropout; two of them sample points at random."""


def scenes() -> list[hf_models.Scene]:
    """Drawings in which every segment is to be seen."""
    found, seed = [], 0
    while len(found) < IMAGES:
        drawn = hf_models.scene(SIDE, SIDE, SEGMENTS - 1, seed)
        found += [drawn] if len(drawn.segments) == SEGMENTS else []
        seed += 1
    return found


def save(name: str, folder: Path) -> None:
    model = hf_models.build(name, SIDE)
    if name == "eomt":
        model.attn_mask_probs.fill_(1.0)  # every query looks through its mask, as at the start of training
    model.save_pretrained(folder)
    hf_models.processor(name, SIDE).save_pretrained(folder)


def theirs(name: str, folder: Path, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    drawings = scenes()
    images = torch.stack([drawn.image for drawn in drawings]).to(device)
    targets = [hf_models.target(drawn.ids, drawn.segments) for drawn in drawings]
    targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
    model = hf_models.load(name, folder, **hf_models.TRAINING.get(name, {})).to(device)
    freeze(name, model)
    return train_mode(model), lambda: hf_models.loss(name, model, images, targets)


def ours(name: str, folder: Path, device: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    from pansight.types import Batch, PanopticSegmentation
    from pansight.weights import load_model

    drawings = scenes()
    images = torch.stack([drawn.image.permute(1, 2, 0) for drawn in drawings]).permute(0, 3, 1, 2).to(device)
    valid = torch.ones((IMAGES, SIDE, SIDE), dtype=torch.bool, device=device)
    truths = tuple(PanopticSegmentation(drawn.ids, drawn.segments) for drawn in drawings)
    sizes, nothing = ((SIDE, SIDE),) * IMAGES, (None,) * IMAGES
    batch = Batch(images, valid, sizes, truths, tuple(range(IMAGES)), nothing)
    model = load_model(folder)[0].to(device)
    if name == "detr":
        model.backbone.features.conv1.requires_grad_(False)
        model.backbone.features.layer1.requires_grad_(False)
    return model.train(), lambda: torch.stack(list(model.loss(batch).values())).sum()


def freeze(name: str, model: Any) -> None:
    """What is frozen in the published recipes: BatchNorm, and in DETR the stem and the first stage.

    And the last norm of transformers' Swin, which nothing reads.
    """
    for layer_name, layer in model.named_modules():
        frozen = isinstance(layer, nn.BatchNorm2d) or layer_name.endswith("encoder.swin.layernorm")
        frozen |= name == "detr" and layer_name.endswith(("backbone.model.conv1", "backbone.model.layer1"))
        if frozen:
            layer.requires_grad_(False)


def train_mode(model: nn.Module) -> nn.Module:
    """As it says, but for BatchNorm, whose statistics stay."""
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return model


SIDES = {"transformers": theirs, "ours": ours}


def step(name: str, contender: str, setting: str, folder: Path, device: str) -> Callable[[], float]:
    model, loss = SIDES[contender](name, folder, device)
    if setting == "fast":
        model.to(memory_format=torch.channels_last)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # so small a rate that the network, thus the work of a step, stays the same
    optimizer = torch.optim.AdamW(parameters, lr=1e-8, fused=True)

    def run() -> float:
        torch.manual_seed(1)
        optimizer.zero_grad(set_to_none=True)
        with precision(setting, device):
            total = loss()
        total.backward()
        optimizer.step()
        return float(total.detach())

    return run


def check(name: str, folder: Path, device: str) -> dict[str, Any]:
    """As many trained parameters on both sides and the same loss without dropout; AssertionError where it is not so."""
    facts: dict[str, Any] = {}
    for contender in CONTENDERS:
        model, loss = SIDES[contender](name, folder, device)
        without_dropout(model)
        torch.manual_seed(0)
        with torch.no_grad():
            facts[f"{contender}_loss"] = float(loss())
        facts[f"{contender}_parameters"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert facts["ours_parameters"] == facts["transformers_parameters"], facts
    if name in LOSS_TOLERANCE:
        difference = abs(facts["ours_loss"] / facts["transformers_loss"] - 1)
        assert difference < LOSS_TOLERANCE[name], facts
    return facts


def without_dropout(model: nn.Module) -> None:
    """transformers' layers keep the probability as a number called dropout, torch's as one called p."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(vars(layer).get("dropout"), float):
            layer.dropout = 0.0


def peak_mib(name: str, contender: str, setting: str, folder: Path, device: str) -> float:
    """Peak memory of a process that does three steps and nothing else."""
    command = [sys.executable, __file__, "--device", device, "--memory", name, contender, setting, str(folder)]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def measure_memory(name: str, contender: str, setting: str, folder: str, device: str) -> None:
    run = step(name, contender, setting, Path(folder), device)
    for _ in range(3):
        run()
    print(json.dumps(peak_of_this_process(device)))


def rows_of(name: str, repeats: int, device: str, memory: bool) -> list[dict[str, Any]]:
    pairs = [(c, s) for s in SETTINGS for c in CONTENDERS]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        save(name, folder)
        facts = check(name, folder, device)
        runs = {f"{c} {s}": synchronised(step(name, c, s, folder, device), device) for c, s in pairs}
        ms = {key: 1000 * seconds for key, seconds in alternate(runs, repeats, warmup=2).items()}
        runs.clear()
        mib = {f"{c} {s}": peak_mib(name, c, s, folder, device) if memory else None for c, s in pairs}
    rows = []
    for our_setting, their_setting in PAIRS:
        us, them = f"ours {our_setting}", f"transformers {their_setting}"
        row = {
            "what": hf_models.SYSTEMS[name].title,
            "settings": f"{our_setting} / {their_setting}",
            "transformers_ms": ms[them],
            "ours_ms": ms[us],
            "time_ratio": ms[us] / ms[them],
            "transformers_mib": mib[them],
            "ours_mib": mib[us],
            "memory_ratio": mib[us] / mib[them] if memory else None,
            **facts,
        }
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-memory", action="store_true", help="time only; saves nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        measure_memory(*args.memory, args.device)
        return
    for name in args.systems:
        rows = rows_of(name, args.repeats, args.device, not args.no_memory)
        if not args.no_memory:
            suffix = "" if args.device == "cpu" else "_gpu"
            what = "training step, 2 × 256×256, 10 segments each, AdamW"
            merge_rows(f"transformer_training{suffix}", {"what": what, "threads": args.threads}, rows)


if __name__ == "__main__":
    main()
