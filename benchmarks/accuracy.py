"""Mask transformers after a short budget: ours beside transformers', same start, same batches → results/accuracy.json.

Small configurations with random weights, made by transformers and loaded by both sides, so every seed starts at the
same point. The loop is the same (AdamW, cosine, the same images in the same order); losses, matching, masked attention
and decoding are each side's own. Ours decodes by the official rules, transformers by its own ones; both keep queries
above the same score, and `PanopticQuality` of pansight measures both on the same images.

Data: generated shapes of 64×64, and 96×96 crops of nuclei (dsb2018), whose background is a stuff class. Results are
written after every training, in place of those with the same data, system, side, seed and number of steps.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import hf_models
from common import DATA, merge_rows
from pansight.data import open_dataset
from pansight.data.dataset import Dataset, Subset
from pansight.data.loader import collate, train_stream
from pansight.data.shapes import Shapes
from pansight.data.transforms import Compose, HorizontalFlip, RandomCrop, Rot90, crop_sample
from pansight.metrics import PanopticQuality
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment
from pansight.weights import load_model

CONTENDERS = ("transformers", "ours")
THRESHOLD = 0.5
WARM_UP = 20
CLIP_NORM = 1.0


class Task(NamedTuple):
    """side: pixels of the square images. queries: more than any image has segments."""

    train: Callable[[], Dataset]
    val: Callable[[], list[Sample]]
    transform: Any
    side: int
    queries: int
    batch_size: int
    steps: int


def whole(dataset: Dataset) -> list[Sample]:
    return [dataset[index] for index in range(len(dataset))]


def nuclei(split: str) -> Dataset:
    return open_dataset(DATA / "dsb2018", split=split, thing="nucleus")


def central_crops(dataset: Dataset, side: int) -> list[Sample]:
    """The middle of each image, as an image of its own."""
    crops: list[Sample] = []
    for sample in whole(dataset):
        height, width = sample.truth.size
        crop = crop_sample(sample, (height - side) // 2, (width - side) // 2, side, side)
        crops.append(Sample(crop.image, crop.truth, crop.image_id, (side, side)))
    return crops


TASKS = {
    "shapes": Task(
        train=lambda: Shapes(8000, 64, 64),
        val=lambda: whole(Shapes(100, 64, 64, split="val")),
        transform=None,
        side=64,
        queries=20,
        batch_size=8,
        steps=600,
    ),
    "nuclei": Task(
        train=lambda: nuclei("train"),
        val=lambda: central_crops(nuclei("val"), 96),
        transform=Compose([RandomCrop(96, 96), HorizontalFlip(), Rot90()]),
        side=96,
        queries=60,
        batch_size=4,
        steps=400,
    ),
}


# --- small configurations ---------------------------------------------------------------------------------------------


def small_swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        embed_dim=48,
        depths=(2, 2, 2, 2),
        num_heads=(2, 4, 8, 16),
        window_size=4,
        drop_path_rate=0.0,
        out_features=hf_models.STAGES,
    )


def small_detr(names: Sequence[str], task: Task) -> Any:
    return hf_models.detr_r50(
        names,
        task.side,
        backbone="resnet18",
        num_queries=task.queries,
        d_model=128,
        encoder_layers=2,
        decoder_layers=3,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        dropout=0.0,
    )


def small_maskformer(names: Sequence[str], task: Task) -> Any:
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    decoder = DetrConfig(
        d_model=128,
        decoder_layers=3,
        decoder_ffn_dim=256,
        decoder_attention_heads=4,
        num_queries=task.queries,
        dropout=0.0,
    )
    sizes = {"fpn_feature_size": 128, "mask_feature_size": 128, "use_auxiliary_loss": True}
    config = MaskFormerConfig(**hf_models.named(names), backbone_config=small_swin(), decoder_config=decoder, **sizes)
    return MaskFormerForInstanceSegmentation(config)


def small_mask2former(names: Sequence[str], task: Task) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        **hf_models.named(names),
        backbone_config=small_swin(),
        feature_size=128,
        mask_feature_size=128,
        hidden_dim=128,
        encoder_feedforward_dim=256,
        dim_feedforward=256,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        num_queries=task.queries,
        train_num_points=2048,
    )
    return Mask2FormerForUniversalSegmentation(config)


def small_eomt(names: Sequence[str], task: Task) -> Any:
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        **hf_models.named(names),
        hidden_size=144,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_blocks=3,
        num_queries=task.queries,
        image_size=task.side,
        patch_size=8,
        num_upscale_blocks=1,
        train_num_points=2048,
    )
    return EomtForUniversalSegmentation(config)


SYSTEMS: dict[str, tuple[Callable[[Sequence[str], Task], Any], float]] = {
    "detr": (small_detr, 5e-4),
    "maskformer": (small_maskformer, 1e-3),
    "mask2former": (small_mask2former, 1e-3),
    "eomt": (small_eomt, 1e-3),
}
"""transformers' model of a task, and the peak learning rate for both sides."""


def save_start(system: str, task: Task, labels: LabelSpace, seed: int, images: Tensor, folder: Path) -> None:
    """The random weights that both sides begin with. images uint8 (B, 3, H, W): what BatchNorm is set by."""
    torch.manual_seed(seed)
    model = SYSTEMS[system][0](labels.names, task)
    if system == "detr":
        calibrate(model, images)
    model.save_pretrained(folder)
    hf_models.processor(system, task.side).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pansight": {"labels": labels.to_json()}}))


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor) -> None:
    """Frozen BatchNorm layers, which would do nothing to random features, get the statistics of some images."""

    def measure(layer: Any, inputs: tuple[Tensor, ...]) -> None:
        layer.weight.fill_(1.0)  # timm starts some at zero
        layer.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        layer.running_var.copy_(inputs[0].var((0, 2, 3)))

    layers = [layer for layer in model.modules() if type(layer).__name__ == "DetrFrozenBatchNorm2d"]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    model.eval()(hf_models.normalised(images))
    for hook in hooks:
        hook.remove()


# --- the two sides ----------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """loss(batch) is stepped on; predict(images uint8 (B, 3, H, W)) gives the maps; anneal(share of the run)."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    predict: Callable[[Tensor], list[PanopticSegmentation]]
    anneal: Callable[[float], None]


def ours(system: str, folder: Path, labels: LabelSpace, device: str) -> Side:
    model = load_model(folder)[0].to(device)

    def predict(images: Tensor) -> list[PanopticSegmentation]:
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        found = model.decode(model(images), sizes, score_threshold=THRESHOLD)
        return [prediction.panoptic for prediction in found]

    anneal = model.annealing.set_progress if system == "eomt" else lambda progress: None
    return Side(model, lambda batch: torch.stack(list(model.loss(batch).values())).sum(), predict, anneal)


def theirs(system: str, folder: Path, labels: LabelSpace, device: str) -> Side:
    model = hf_models.load(system, folder).to(device)
    stuff = [category.id for category in labels.stuff]
    maker: Any = None

    def loss(batch: Batch) -> Tensor:
        targets = [hf_models.target(truth.ids, truth.segments) for truth in batch.truths]
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        return hf_models.loss(system, model, batch.images, targets)

    def predict(images: Tensor) -> list[PanopticSegmentation]:
        nonlocal maker
        maker = maker or hf_models.processor(system, images.shape[2])
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        extra = {"output_hidden_states": True} if system == "maskformer" else {}
        output = model(pixel_values=hf_models.normalised(images), **extra)
        found = hf_models.panoptic_map(system, maker, output, sizes, THRESHOLD, stuff)
        return [segmentation_of(one["segmentation"], one["segments_info"]) for one in found]

    probabilities = annealing(folder) if system == "eomt" else None

    def anneal(progress: float) -> None:
        if probabilities is not None:
            model.attn_mask_probs.copy_(probabilities(progress))

    return Side(model, loss, predict, anneal)


def annealing(folder: Path) -> Callable[[float], Tensor]:
    """The schedule of ours, for transformers, which leaves it to the user."""
    schedule = load_model(folder)[0].annealing

    def probabilities(progress: float) -> Tensor:
        schedule.set_progress(progress)
        return schedule.probs

    return probabilities


def segmentation_of(ids: Tensor, rows: Sequence[dict[str, Any]]) -> PanopticSegmentation:
    """Their map and table as ours: void is 0, ids from 1, one row an id (fused segments come several times)."""
    categories = {row["id"]: row["label_id"] for row in rows}
    result = torch.zeros(ids.shape, dtype=torch.int32)
    segments: list[Segment] = []
    for number, category in categories.items():
        mask = (ids == number).cpu()
        if mask.any():  # one that another segment of the same id was written over
            segments.append(Segment(len(segments) + 1, category))
            result[mask] = len(segments)
    return PanopticSegmentation(result, tuple(segments))


SIDES = {"transformers": theirs, "ours": ours}


# --- training and measuring -------------------------------------------------------------------------------------------


def train(side: Side, batches: Iterator[Batch], steps: int, rate: float, device: str) -> float:
    """Seconds of the loop. The backbone is trained as a whole, on both sides."""
    side.model.requires_grad_(True)
    parameters = list(side.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True)
    side.model.train()
    start = time.perf_counter()
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        side.anneal(step / steps)
        total = side.loss(on_device(batch, device))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        if (step + 1) % 50 == 0:
            print(f"  step {step + 1}: loss {float(total.detach()):.2f}", flush=True)
    side.anneal(1.0)
    return time.perf_counter() - start


def on_device(batch: Batch, device: str) -> Batch:
    images, valid = batch.images.to(device), batch.valid.to(device)
    return Batch(images, valid, batch.sizes, batch.truths, batch.image_ids, batch.instances)


@torch.inference_mode()
def measure(side: Side, samples: Sequence[Sample], labels: LabelSpace, device: str) -> dict[str, Any]:
    metric = PanopticQuality(labels)
    side.model.eval()
    for first in range(0, len(samples), 8):
        part = samples[first : first + 8]
        images = collate(part).images.to(device)
        for found, sample in zip(side.predict(images), part, strict=True):
            metric.update(Prediction(PanopticSegmentation(found.ids.cpu(), found.segments)), sample)
    return metric.compute()


def run(data: str, system: str, contender: str, seed: int, steps: int, device: str) -> dict[str, Any]:
    task, rate = TASKS[data], SYSTEMS[system][1]
    dataset, samples = task.train(), task.val()
    labels = dataset.labels
    batches = train_stream(dataset, task.transform, task.batch_size, 32, steps, seed)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        first = collate(whole(Subset(Shapes(8, task.side, task.side), range(8)))).images
        save_start(system, task, labels, seed, first, folder)
        side = SIDES[contender](system, folder, labels, device)
    torch.manual_seed(seed)
    seconds = train(side, batches, steps, rate, device)
    figures = measure(side, samples, labels, device)
    return {
        "data": data,
        "system": system,
        "contender": contender,
        "seed": seed,
        "steps": steps,
        "pq": 100 * figures["All"]["pq"],
        "sq": 100 * figures["All"]["sq"],
        "rq": 100 * figures["All"]["rq"],
        "pq_things": 100 * figures["Things"]["pq"],
        "pq_stuff": 100 * figures["Stuff"]["pq"],
        "parameters": sum(p.numel() for p in side.model.parameters()),
        "training_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of those of the task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    what = "PQ after a short training from random weights, both sides from the same"
    for data in args.data:
        for seed in args.seeds:
            for system in args.systems:
                for contender in args.contenders:
                    row = run(data, system, contender, seed, args.steps or TASKS[data].steps, args.device)
                    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                    if not args.dry:
                        key = ("data", "system", "contender", "seed", "steps")
                        suffix = "" if args.device == "cpu" else "_gpu"
                        merge_rows(f"accuracy{suffix}", {"what": what, "threads": args.threads}, [row], key)


if __name__ == "__main__":
    main()
