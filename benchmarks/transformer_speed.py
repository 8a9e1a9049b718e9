"""Mask transformers: ours beside transformers', same weights, same picture, in turns → results/transformer_speed.json.

Batch 1, from uint8 pixels to the panoptic map by transformers' rules (ours: `decode_like_transformers`, the same map),
with 20 kept queries; and the network alone, which on our side leaves the masks of the kept queries to the decoding. The
pictures are drawn, the weights random but for the last layer of each head, which is solved for (hf_models.teach).

Settings: float32 is each library as it comes; fast is bfloat16 autocast with channels_last weights. `--compile PART`
has torch compile children of our models for it, e.g. backbone (7 % faster for DETR, after a minute or more). The result
in float32 is checked to be the same before anything is timed. Peak memory is that of a process of its own per
contender, which imports nothing of the other. On an accelerator, where there is one, memory is what torch allocated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import hf_models
from common import PAIRS, alternate, merge_rows, peak_resident_mib

CONTENDERS = ("transformers", "ours")
SETTINGS = ("float32", "fast")
JOBS = {
    "detr": ((640, 640), (800, 1088)),
    "mask2former_r50": ((640, 640),),
    "mask2former_swin_tiny": ((640, 640),),
    "eomt": ((640, 640),),
    "maskformer": ((640, 640),),
}


class Runs(NamedTuple):
    """What is timed: the network alone, and pixels to the map. `result` gives class logits (Q, C + 1) and the map."""

    network: Callable[[], Any]
    whole: Callable[[], Any]
    result: Callable[[], tuple[Tensor, Tensor, list[int]]]


def precision(setting: str, device: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16) if setting == "fast" else contextlib.nullcontext()


def theirs(name: str, setting: str, folder: Path, image: Tensor, device: str) -> Runs:
    notes = hf_models.read_notes(folder)
    model = hf_models.load(name, folder).to(device)
    maker = hf_models.processor(name, image.shape[1])
    size = (image.shape[1], image.shape[2])
    image = image[None].to(device)

    @torch.inference_mode()
    def network() -> Any:
        pixels = hf_models.normalised(image)
        if setting == "fast":
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        with precision(setting, device):
            return model(pixel_values=pixels)

    @torch.inference_mode()
    def decode(output: Any) -> dict[str, Any]:
        if setting == "fast":  # its rules know float32 only
            output = type(output)(**{k: v.float() for k, v in output.items() if k in hf_models.LOGITS})
        return hf_models.panoptic_map(name, maker, output, [size], notes["threshold"], notes["stuff"])[0]

    def result() -> tuple[Tensor, Tensor, list[int]]:
        output = network()
        found = decode(output)
        categories = [segment["label_id"] for segment in found["segments_info"]]
        return hf_models.class_logits(output)[0], found["segmentation"].long(), categories

    if setting == "fast":
        model.to(memory_format=torch.channels_last)
    return Runs(network, lambda: decode(network()), result)


def ours(name: str, setting: str, folder: Path, image: Tensor, device: str, compiled: Sequence[str] = ()) -> Runs:
    from pansight.models import MODELS
    from pansight.weights import load_model
    from pansight.weights.huggingface.decode import decode_like_transformers

    notes = hf_models.read_notes(folder)
    model, entry, _ = load_model(folder)
    model, architecture = model.to(device), MODELS[entry].architecture
    size = (image.shape[1], image.shape[2])
    image = image[None].to(device)
    if setting == "fast":
        model.to(memory_format=torch.channels_last)
        for part in compiled:
            model.get_submodule(part).compile(dynamic=False)

    @torch.inference_mode()
    def network() -> Any:
        with precision(setting, device):
            return model(image)

    @torch.inference_mode()
    def decode(outputs: Any) -> Any:
        with precision(setting, device):
            return decode_like_transformers(architecture, model, outputs, [size], notes["threshold"])[0]

    def result() -> tuple[Tensor, Tensor, list[int]]:
        outputs = network()
        found = decode(outputs)
        logits = outputs.class_logits[-1] if outputs.class_logits.ndim == 4 else outputs.class_logits  # last layer
        return logits[0], found.ids.long(), [segment.category for segment in found.segments]

    return Runs(network, lambda: decode(network()), result)


SIDES: dict[str, Callable[..., Runs]] = {"transformers": theirs, "ours": ours}


def kept_queries(logits: Tensor, threshold: float) -> int:
    """How many of (Q, C + 1) name a class with more than this probability."""
    scores, best = logits.float().softmax(-1).max(-1)
    return int(((best < logits.shape[-1] - 1) & (scores > threshold)).sum())


def check(name: str, runs: dict[str, Runs], threshold: float) -> dict[str, float]:
    """float32: the same logits to 1e-3 of their range and the same map; fast: the share of other pixels is recorded.

    Raises AssertionError where that is not so.
    """
    logits, ids, categories = runs["transformers float32"].result()
    our_logits, our_ids, our_categories = runs["ours float32"].result()
    assert our_logits.shape == logits.shape
    difference = float((our_logits - logits).abs().max() / logits.abs().max())
    assert difference < 1e-3, f"{name}: class logits differ by {difference}"
    other = different_pixels(ids, our_ids)
    assert other <= 1e-4 * ids.numel(), f"{name}: {other} of {ids.numel()} pixels belong to another segment"
    assert sorted(set(categories)) == sorted(set(our_categories)), f"{name}: other classes"
    fast = runs["ours fast"].result()
    return {
        "logits_difference": difference,
        "segments": len(our_categories),
        "kept": kept_queries(logits, threshold),
        "kept_fast": kept_queries(fast[0], threshold),
        "other_pixels_float32": other / ids.numel(),
        "other_pixels_fast": different_pixels(ids, fast[1]) / ids.numel(),
    }


def different_pixels(ids: Tensor, other_ids: Tensor) -> int:
    """Pixels left over when every segment of one map is paired with the segment of the other that it shares most with.

    ids and other_ids int64 (H, W); what number a segment has does not matter.
    """
    pairs, counts = torch.stack([ids.flatten(), other_ids.flatten()]).unique(dim=1, return_counts=True)
    agreed: dict[int, int] = {}
    partners: set[int] = set()
    for k in counts.argsort(descending=True).tolist():
        one, two = pairs[:, k].tolist()
        if one not in agreed and two not in partners:
            agreed[one] = int(counts[k])
            partners.add(two)
    return ids.numel() - sum(agreed.values())


def peak_mib(name: str, size: Sequence[int], contender: str, setting: str, folder: Path, device: str) -> float:
    """Peak memory of a process that does this job three times and nothing else."""
    job = [name, f"{size[0]}x{size[1]}", contender, setting, str(folder)]
    command = [sys.executable, __file__, "--device", device, "--memory", *job]
    return float(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))


def measure_memory(name: str, size: str, contender: str, setting: str, folder: str, device: str) -> None:
    height, width = (int(v) for v in size.split("x"))
    image = torch.load(Path(folder) / "image.pt", weights_only=True)
    assert image.shape[1:] == (height, width)
    runs = SIDES[contender](name, setting, Path(folder), image, device)
    for _ in range(3):
        runs.whole()
    print(json.dumps(peak_of_this_process(device)))


def peak_of_this_process(device: str) -> float:
    """MiB: resident on the CPU, allocated by torch on an accelerator."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_mib()


def synchronised(run: Callable[[], Any], device: str) -> Callable[[], Any]:
    if device == "cpu":
        return run

    def whole() -> None:
        run()
        torch.cuda.synchronize()

    return whole


def rows_of(
    name: str, size: tuple[int, int], repeats: int, device: str, memory: bool, compiled: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """compiled: children of our model that torch compiles in the fast setting; memory is measured without."""
    height, width = size
    pairs = [(c, s) for s in SETTINGS for c in CONTENDERS]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        drawn = hf_models.scene(height, width, hf_models.KEPT - 1, seed=1)
        hf_models.save(name, drawn, folder)
        torch.save(drawn.image, folder / "image.pt")
        runs = {f"{c} {s}": SIDES[c](name, s, folder, drawn.image, device) for c, s in pairs}
        if compiled:
            runs["ours fast"] = ours(name, "fast", folder, drawn.image, device, compiled)
        facts = check(name, runs, hf_models.read_notes(folder)["threshold"])
        jobs = {f"{key} {what}": synchronised(getattr(r, what), device) for key, r in runs.items() for what in WHATS}
        ms = {key: 1000 * seconds for key, seconds in alternate(jobs, repeats).items()}
        runs.clear()
        jobs.clear()
        mib = {f"{c} {s}": peak_mib(name, size, c, s, folder, device) if memory else None for c, s in pairs}
    rows = []
    for our_setting, their_setting in PAIRS:
        us, them = f"ours {our_setting}", f"transformers {their_setting}"
        row = {
            "what": f"{hf_models.SYSTEMS[name].title}, {height}×{width}",
            "settings": f"{our_setting} / {their_setting}",
            "transformers_ms": ms[f"{them} whole"],
            "ours_ms": ms[f"{us} whole"],
            "time_ratio": ms[f"{us} whole"] / ms[f"{them} whole"],
            "transformers_network_ms": ms[f"{them} network"],
            "ours_network_ms": ms[f"{us} network"],
            "network_ratio": ms[f"{us} network"] / ms[f"{them} network"],
            "transformers_mib": mib[them],
            "ours_mib": mib[us],
            "memory_ratio": mib[us] / mib[them] if memory else None,
            **facts,
        }
        rows.append(row)
        print({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return rows


WHATS = ("whole", "network")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--sizes", nargs="+", help="HxW, instead of those in JOBS; saves nothing")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", nargs="+", default=[], help="children of our models, e.g. backbone")
    parser.add_argument("--no-memory", action="store_true", help="time only; saves nothing")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        measure_memory(*args.memory, args.device)
        return
    for name in args.systems:
        chosen = [tuple(int(v) for v in size.split("x")) for size in args.sizes or ()]
        for size in chosen or JOBS[name]:
            rows = rows_of(name, size, args.repeats, args.device, not args.no_memory, args.compile)
            if not (chosen or args.no_memory):
                suffix = "" if args.device == "cpu" else "_gpu"
                what = "batch 1, from pixels to the panoptic map by transformers' rules, 20 kept queries"
                merge_rows(f"transformer_speed{suffix}", {"what": what, "threads": args.threads}, rows)


if __name__ == "__main__":
    main()
