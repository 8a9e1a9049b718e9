"""Accuracy after a short training: our mask transformers beside transformers', from the same weights and batches.

Results go to results/accuracy.json.

Small configurations made by transformers and loaded by both sides, so every seed starts at the same point: DETR,
MaskFormer and Mask2Former on the packaged EfficientNet-Lite0, EoMT (a small ViT) from random weights. The loop is the
same (AdamW, cosine, the same images in the same order); losses, matching and masked attention are each side's own. Both
decode by transformers' rules, ours with `decode_like_transformers`: the official ones differ from them by more than one
training from another. Queries above the same score are kept, whatever share of their masks they win: where several
half-learnt ones say the background, each takes the others' share, and the usual 0.8 makes it a matter of luck whether
any stays.
`PanopticQuality` of pansight measures both on the same images.

Data: 8 generated shapes images of 96×96, memorised; 96×96 crops of nuclei (dsb2018), whose background is a stuff
class; and for DETR, which learns nothing from those in so few steps, the middles of 8 nuclei images, memorised. All are
measured on images never seen and on 8 of those learnt from. Of DETR, the weights that the mask head starts with are
scaled as ours are (`ATTENTION_GAIN`), for both sides: as transformers draws them, masks learn nothing so soon. Results
are written after every training, in place of those with the same data, system, side, seed and steps.
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
from pansight.data.dataset import Dataset
from pansight.data.formats.shapes import Shapes
from pansight.data.loader import collate, train_stream
from pansight.data.transforms import Compose, HorizontalFlip, RandomCrop, Rot90, crop_sample
from pansight.metrics import PanopticQuality
from pansight.models import build as build_model
from pansight.nn.backbones.pyramid import PACKAGED, packaged_state_dict
from pansight.nn.input import Input
from pansight.nn.queries.annealing import MaskAnnealing
from pansight.nn.queries.mask_head import ADAPTER_GAIN, ATTENTION_GAIN
from pansight.types import Batch, LabelSpace, PanopticSegmentation, Prediction, Sample, Segment
from pansight.weights import huggingface, load_model
from pansight.weights.huggingface import read_state
from pansight.weights.huggingface.decode import decode_like_transformers
from pansight.weights.keys import load_strictly
from transformer_training import freeze, train_mode

CONTENDERS = ("transformers", "ours")
THRESHOLD, OVERLAP = 0.5, 0.0
WARM_UP = 20
CLIP_NORM = 10.0
BACKBONE = "model.pixel_level_module.encoder._backbone."  # transformers' MaskFormer and Mask2Former
DETR_BACKBONE = "detr.model.backbone"
HEADS: dict[str, dict[str, Any]] = {
    "detr": {
        "channels": 128,
        "heads": 8,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "hidden": 256,
        "dropout": 0.0,
        "pretrained": "packaged",
    },
    "maskformer": {"channels": 128, "heads": 4, "layers": 3, "hidden": 256, "dropout": 0.0},
    "mask2former": {
        "channels": 128,
        "heads": 4,
        "layers": 3,
        "hidden": 256,
        "encoder_layers": 2,
        "encoder_hidden": 256,
        "loss_points": 2048,
    },
}
"""Options of our builders that say what `small_detr`, `small_maskformer` and `small_mask2former` say."""


class Task(NamedTuple):
    """side: pixels of the square images. queries: more than any image has segments.

    measured(split): what is measured, of "train" LEARNT images that were learnt from.
    """

    train: Callable[[], Dataset]
    measured: Callable[[str], list[Sample]]
    transform: Any
    side: int
    queries: int
    batch_size: int
    steps: dict[str, int]  # of each system that learns from it, by what a step costs


LEARNT = 8


def whole(dataset: Dataset, split: str = "val") -> list[Sample]:
    """Every sample, or the first of a training split."""
    return [dataset[index] for index in range(LEARNT if split == "train" else len(dataset))]


class Samples(NamedTuple):
    """Samples in memory as a data set; each comes out as it is."""

    samples: list[Sample]
    labels: LabelSpace

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def image_id(self, index: int) -> str | int:
        return self.samples[index].image_id

    def file_name(self, index: int) -> str:
        return f"{self.samples[index].image_id}.png"


def nuclei(split: str) -> Dataset:
    return open_dataset(DATA / "dsb2018", split=split, thing="nucleus")


def central_crops(split: str, side: int) -> list[Sample]:
    """The middle of each nuclei image, as an image of its own."""
    crops: list[Sample] = []
    for sample in whole(nuclei(split), split):
        height, width = sample.truth.size
        crop = crop_sample(sample, (height - side) // 2, (width - side) // 2, side, side)
        crops.append(Sample(crop.image, crop.truth, crop.image_id, (side, side)))
    return crops


TASKS = {
    "shapes": Task(
        train=lambda: Shapes(LEARNT, 96, 96),
        measured=lambda split: whole(Shapes(LEARNT if split == "train" else 100, 96, 96, split=split), split),
        transform=None,
        side=96,
        queries=12,
        batch_size=8,
        steps={"detr": 360, "maskformer": 250, "mask2former": 150, "eomt": 200},
    ),
    "nuclei by heart": Task(
        train=lambda: Samples(central_crops("train", 96), nuclei("train").labels),
        measured=lambda split: central_crops(split, 96),
        transform=None,
        side=96,
        queries=60,
        batch_size=8,
        steps={"detr": 360},
    ),
    "nuclei": Task(
        train=lambda: nuclei("train"),
        measured=lambda split: central_crops(split, 96),
        transform=Compose([RandomCrop(96, 96), HorizontalFlip(), Rot90()]),
        side=96,
        queries=60,
        batch_size=4,
        steps={"maskformer": 600, "mask2former": 200, "eomt": 300},
    ),
}


# --- small configurations ---------------------------------------------------------------------------------------------


def efficientnet() -> Any:
    from transformers import TimmBackboneConfig

    return TimmBackboneConfig(backbone=PACKAGED, out_indices=(1, 2, 3, 4), use_pretrained_backbone=False)


def small_detr(names: Sequence[str], task: Task) -> Any:
    return hf_models.detr_r50(
        names,
        task.side,
        backbone_config=efficientnet(),
        num_queries=task.queries,
        d_model=128,
        encoder_layers=1,
        decoder_layers=2,
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
    config = MaskFormerConfig(**hf_models.named(names), backbone_config=efficientnet(), decoder_config=decoder, **sizes)
    return MaskFormerForInstanceSegmentation(config)


def small_mask2former(names: Sequence[str], task: Task) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    config = Mask2FormerConfig(
        **hf_models.named(names),
        backbone_config=efficientnet(),
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
    "detr": (small_detr, 1e-3),
    "maskformer": (small_maskformer, 3e-4),
    "mask2former": (small_mask2former, 1e-3),
    "eomt": (small_eomt, 1e-3),
}
"""transformers' model of a task, and the peak learning rate for both sides."""


def start(system: str, task: Task, labels: LabelSpace, seed: int, contender: str, device: str) -> nn.Module:
    """The model of one side, with the weights of both."""
    from transformers.backbone_utils import load_backbone

    torch.manual_seed(seed)
    model = SYSTEMS[system][0](labels.names, task)
    if system == "detr":
        make_attention_seen(model)
        encoder = model.get_submodule(DETR_BACKBONE)
        # as timm has it: transformers' frozen BatchNorm would drop the activation that timm keeps in it
        encoder.model = load_backbone(model.config)._backbone
    if system in HEADS:
        backbone = encoder.model if system == "detr" else model.get_submodule(BACKBONE[:-1])
        backbone.load_state_dict(packaged_state_dict(set(backbone.state_dict())))
    if contender == "transformers":
        return model.to(device)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        model.save_pretrained(folder)
        if system in HEADS:
            return with_heads(system, read_state(folder), task, labels).to(device)
        hf_models.processor(system, task.side).save_pretrained(folder)
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"pansight": {"labels": labels.to_json()}}))
        return load_model(folder)[0].to(device)


def with_heads(system: str, state: dict[str, Tensor], task: Task, labels: LabelSpace) -> nn.Module:
    """Our model of transformers' tensors; a file of this backbone is none that `load_model` reads."""
    name = "detr_panoptic" if system == "detr" else system
    model = build_model(name, labels, backbone=PACKAGED, short=0, long=0, queries=task.queries, **HEADS[system])
    model.input = Input(model.input.resize)  # ImageNet's, as on the other side
    if system == "detr":
        parts = {f"backbone.{key}": tensor for key, tensor in model.backbone.state_dict().items()}
        rest = {key: tensor for key, tensor in state.items() if ".backbone." not in key}
        load_strictly(model, parts | huggingface.system(system).renamed(rest, system), system)
        return model
    parts = {
        f"backbone.features.{key.removeprefix(BACKBONE)}": tensor
        for key, tensor in state.items()
        if key.startswith(BACKBONE) and not key.endswith("num_batches_tracked")
    }
    rest = {key: tensor for key, tensor in state.items() if not key.startswith(BACKBONE)}
    load_strictly(model, parts | huggingface.system(system).renamed(rest, system), system)
    return model


@torch.no_grad()
def make_attention_seen(model: Any) -> None:
    """The mask head starts as ours does; d_model: the attention maps are the channels after these."""
    head = model.mask_head
    head.conv1.conv.weight[:, model.config.d_model :] *= ATTENTION_GAIN
    for stage in head.fpn_stages:
        stage.fpn_adapter.weight *= ADAPTER_GAIN


# --- the two sides ----------------------------------------------------------------------------------------------------


class Side(NamedTuple):
    """loss(batch) is stepped on; predict(images uint8 (B, 3, H, W)) gives the maps; anneal(share of the run)."""

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    predict: Callable[[Tensor], list[PanopticSegmentation]]
    anneal: Callable[[float], None]


ANNEALED = ((1 / 6, 5 / 12, 2 / 3), (1 / 3, 7 / 12, 5 / 6))
"""Starts and ends of EoMT's mask annealing in 3 blocks, as shares of the run; transformers leaves them to the user."""


def ours(system: str, model: Any, labels: LabelSpace, device: str) -> Side:
    if system == "eomt":
        model.annealing.starts, model.annealing.ends = ANNEALED

    def predict(images: Tensor) -> list[PanopticSegmentation]:
        sizes = [(images.shape[2], images.shape[3])] * len(images)
        return decode_like_transformers(system, model, model(images), sizes, THRESHOLD, overlap=OVERLAP)

    return Side(model, lambda batch: torch.stack(list(model.loss(batch).values())).sum(), predict, model.set_progress)


def theirs(system: str, model: Any, labels: LabelSpace, device: str) -> Side:
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
        found = hf_models.panoptic_map(system, maker, output, sizes, THRESHOLD, stuff, OVERLAP)
        return [segmentation_of(one["segmentation"], one["segments_info"]) for one in found]

    schedule = MaskAnnealing(*ANNEALED) if system == "eomt" else None

    def anneal(progress: float) -> None:
        if schedule is not None:
            schedule.set_progress(progress)
            model.attn_mask_probs.copy_(schedule.probs)

    return Side(model, loss, predict, anneal)


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
    """Seconds of the loop. All of the backbone is trained but BatchNorm, which is frozen on both sides."""
    side.model.requires_grad_(True)
    freeze("all", side.model)
    parameters = [p for p in side.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=1e-4, fused=True)
    train_mode(side.model)
    begin = time.perf_counter()
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
    return time.perf_counter() - begin


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
    dataset = task.train()
    labels = dataset.labels
    batches = train_stream(dataset, task.transform, task.batch_size, 32, steps, seed)
    model = start(system, task, labels, seed, contender, device)
    side = SIDES[contender](system, model, labels, device)
    torch.manual_seed(seed)
    seconds = train(side, batches, steps, rate, device)
    figures = measure(side, task.measured("val"), labels, device)
    learnt = measure(side, task.measured("train"), labels, device)
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
        "pq_learnt": 100 * learnt["All"]["pq"],
        "parameters": sum(p.numel() for p in side.model.parameters() if p.requires_grad),
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
    what = "PQ after a short training, both sides from the same weights"
    for data in args.data:
        for seed in args.seeds:
            for system in (name for name in args.systems if name in TASKS[data].steps):
                for contender in args.contenders:
                    row = run(data, system, contender, seed, args.steps or TASKS[data].steps[system], args.device)
                    print({k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
                    if not args.dry:
                        key = ("data", "system", "contender", "seed", "steps")
                        suffix = "" if args.device == "cpu" else "_gpu"
                        merge_rows(f"accuracy{suffix}", {"what": what, "threads": args.threads}, [row], key)


if __name__ == "__main__":
    main()
