"""Mask transformers of Hugging Face's transformers, which the benchmarks run beside ours.

transformers is imported inside the functions: a process that measures our memory does not carry it, nor theirs ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pansight.types import Segment

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STAGES = ["stage1", "stage2", "stage3", "stage4"]
MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
NOTES = "benchmark.json"  # beside the weights: the threshold, and which classes are stuff
KEPT = 20
LOGITS = ("logits", "pred_masks", "class_queries_logits", "masks_queries_logits")


class System(NamedTuple):
    """A published configuration. `make(names, side)` gives the transformers model with random weights."""

    title: str
    labels: str  # "coco_panoptic" or "coco_ids" (all 250 raw ids, as DETR's files have them)
    make: Callable[[Sequence[str], int], Any]


def named(names: Sequence[str]) -> dict[str, Any]:
    """The entries of a configuration that name its classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def detr_r50(names: Sequence[str], side: int, **changes: Any) -> Any:
    """As facebook/detr-resnet-50-panoptic; losses on every decoder layer, as published. timm's ResNet, random."""
    from transformers import DetrConfig, DetrForSegmentation

    # transformers means to freeze stem and first stage as published, but misses them for timm's networks
    return DetrForSegmentation(DetrConfig(**named(names), auxiliary_loss=True, **changes))


def resnet50() -> Any:
    from transformers import ResNetConfig

    return ResNetConfig(out_features=STAGES)


def swin_tiny() -> Any:
    from transformers import SwinConfig

    return SwinConfig(out_features=STAGES, drop_path_rate=0.0)


def mask2former_r50(names: Sequence[str], side: int) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**named(names), backbone_config=resnet50()))


def mask2former_swin_tiny(names: Sequence[str], side: int) -> Any:
    """As facebook/mask2former-swin-tiny-coco-panoptic, without its drop path."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation

    return Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**named(names), backbone_config=swin_tiny()))


def maskformer_r50(names: Sequence[str], side: int) -> Any:
    """With the FPN pixel decoder, the only one that transformers has."""
    from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation

    config = MaskFormerConfig(**named(names), backbone_config=resnet50(), decoder_config=DetrConfig())
    return MaskFormerForInstanceSegmentation(config)


def eomt_small(names: Sequence[str], side: int) -> Any:
    """As tue-mps/coco_panoptic_eomt_small_640: ViT-S, 200 queries in the last 3 blocks."""
    from transformers import EomtConfig, EomtForUniversalSegmentation

    config = EomtConfig(
        **named(names),
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        num_blocks=3,
        num_queries=200,
        image_size=side,
        layerscale_value=0.1,
    )
    model = EomtForUniversalSegmentation(config)
    model.attn_mask_probs.zero_()  # as after training: inference does not look through the masks
    return model


SYSTEMS = {
    "detr": System("DETR-panoptic R50", "coco_ids", detr_r50),
    "mask2former_r50": System("Mask2Former R50", "coco_panoptic", mask2former_r50),
    "mask2former_swin_tiny": System("Mask2Former Swin-T", "coco_panoptic", mask2former_swin_tiny),
    "eomt": System("EoMT ViT-S", "coco_panoptic", eomt_small),
    "maskformer": System("MaskFormer R50", "coco_panoptic", maskformer_r50),
}


def class_names(system: System) -> tuple[str, ...]:
    from pansight.data.categories.coco import coco_ids, coco_panoptic

    return (coco_ids(250) if system.labels == "coco_ids" else coco_panoptic()).names


# --- random weights that behave as trained ones -----------------------------------------------------------------------


class Scene(NamedTuple):
    """A drawing. image uint8 (3, H, W) in HWC memory; ids int32 (H, W); segments: the last is what is not covered."""

    image: Tensor
    ids: Tensor
    segments: tuple[Segment, ...]


def scene(height: int, width: int, objects: int, seed: int) -> Scene:
    """`objects` ellipses over a background, each of a colour that changes slowly."""
    from pansight.types import Segment

    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    size = torch.tensor([height, width])
    ids = torch.full((height, width), objects + 1, dtype=torch.int32)
    for number in range(1, objects + 1):
        radius = size * (0.04 + 0.12 * torch.rand(2, generator=generator))
        center = radius + torch.rand(2, generator=generator) * (size - 2 * radius)
        ids[((y - center[0]) / radius[0]) ** 2 + ((x - center[1]) / radius[1]) ** 2 <= 1] = number
    colors = torch.rand((objects + 2, 3), generator=generator) * 205
    slow = torch.rand((1, 3, 6, 6), generator=generator) * 50
    image = colors[ids.long()] + nn.functional.interpolate(slow, size=(height, width), mode="bicubic")[0].permute(
        1, 2, 0
    )
    present = set(ids.unique().tolist())
    segments = tuple(Segment(number, 7 * number % 80) for number in range(1, objects + 1) if number in present)
    return Scene(image.clamp(0, 255).to(torch.uint8).permute(2, 0, 1), ids, (*segments, Segment(objects + 1, 84)))


def build(name: str, side: int) -> Any:
    """The model with random weights, its BatchNorm layers as in a fresh network (transformers draws their scales)."""
    torch.manual_seed(0)
    system = SYSTEMS[name]
    model = system.make(class_names(system), side).eval()
    for module in model.modules():
        if type(module).__name__ in ("BatchNorm2d", "BatchNormAct2d", "DetrFrozenBatchNorm2d"):
            nn.init.ones_(module.weight)
    return model


def layer_named(model: nn.Module, *ends: str) -> Any:
    """The one layer whose name has one of these ends, or None."""
    found = [layer for name, layer in model.named_modules() if name.endswith(ends)]
    assert len(found) <= 1, ends
    return found[0] if found else None


@torch.no_grad()
def teach(name: str, model: Any, drawn: Scene) -> None:
    """Solve for the last layer of each head, so that 20 queries find the 20 segments of a scene, the others nothing.

    Scores are 0.99 for them. DETR's masks, which no linear layer makes of its queries, only get to differ by query.
    Mask2Former's heads also steer its attention, so they are solved for several times.
    """
    heads = {
        "class": layer_named(model, "class_labels_classifier", "class_predictor"),
        "mask": layer_named(model, "mask_head.fc3", "mask_embedder.2.0"),
        "pixels": layer_named(model, "mask_projection", "upscale_block.block.1.layernorm2d"),
    }
    seen: dict[str, Tensor] = {}

    def remember(what: str) -> Callable[..., None]:
        return lambda _layer, inputs, output: seen.update({what: output if what == "pixels" else inputs[0]})

    hooks = [layer.register_forward_hook(remember(what)) for what, layer in heads.items() if layer is not None]
    grow(model, drawn.image)
    if name == "detr":
        sharpen(model, drawn.image)
    for _ in range(3 if name.startswith("mask2former") else 1):
        model(normalised(drawn.image)[None])
        if heads["mask"] is not None:
            solve_masks(heads["mask"], seen["mask"], seen["pixels"], drawn)
    model(normalised(drawn.image)[None])
    queries = seen["class"].reshape(-1, seen["class"].shape[-1])  # (Q, D)
    logits = torch.zeros((len(queries), heads["class"].out_features))
    logits[:, -1] = 10.0
    for k, segment in enumerate(drawn.segments):
        logits[k] = 0.0
        logits[k, segment.category] = 8.4 - 0.06 * k
    for ridge in (1e-2, 1e-3, 1e-4, 1e-5):  # the smallest weights that do: bfloat16 suffers from large ones
        solve(heads["class"], queries, logits, ridge)
        scores = heads["class"](queries).softmax(-1)[:, :-1].amax(-1)
        if scores[:KEPT].min() > 0.8 and scores[KEPT:].max() < 0.1:
            break
    for hook in hooks:
        hook.remove()


def grow(model: Any, image: Tensor) -> None:
    """Residual branches of convolutional networks get a fifth of a deviation, queries stay apart in the decoder."""
    wanted: set[nn.Module] = set()
    for name, layer in model.named_modules():
        if name.endswith((".bn3", ".layer.2.normalization")):
            wanted.add(layer)
        elif name.endswith(("query_position_embeddings", "queries_embedder")):
            layer.weight.normal_()
        elif name.endswith("encoder_attn.q_proj"):  # DETR's decoder: else all queries look at the same
            layer.weight.mul_(8)
        elif is_decoder_output(name) or (name.endswith("position_embeddings") and isinstance(layer, nn.Embedding)):
            layer.weight.mul_(0.1)

    def rescale(layer: Any, _inputs: Any, output: Tensor) -> Tensor:
        factor = 0.2 / output.std()
        layer.weight.mul_(factor)
        layer.bias.mul_(factor)
        return output * factor

    hooks = [layer.register_forward_hook(rescale) for layer in wanted]
    model(normalised(image)[None])
    for hook in hooks:
        hook.remove()


def sharpen(model: Any, image: Tensor) -> None:
    """DETR's attention maps get peaks, and its masks follow them: logits ± 4 around zero for every query."""
    head = model.mask_head
    model.bbox_attention.q_proj.weight.mul_(40)
    channels = model.config.d_model  # after them come the attention maps, whose values are small
    head.conv1.conv.weight[:, channels:].mul_(200)
    masks = model(normalised(image)[None]).pred_masks
    size = 4 / (masks - masks.mean()).std()
    head.output_conv.weight.mul_(size)
    head.output_conv.bias.sub_(masks.mean()).mul_(size)


def is_decoder_output(name: str) -> bool:
    """Whether a layer of Mask2Former's decoder is one whose output is added to the queries."""
    last = name.endswith(("attn.out_proj", ".fc2")) and not name.endswith(".mlp.fc2")
    return ".decoder.layers." in name and last


def solve_masks(layer: Any, queries: Tensor, pixels: Tensor, drawn: Scene) -> None:
    """Query k's mask becomes segment k. queries (1, Q, D) or (Q, 1, D): the layer's input; pixels (1, D, h, w)."""
    queries = queries.reshape(-1, queries.shape[-1])  # (Q, D)
    size = pixels.shape[-2:]
    ids = nn.functional.interpolate(drawn.ids[None, None].float(), size=size, mode="nearest")[0, 0]  # (h, w)
    wanted = torch.stack([(ids == segment.id).flatten() for segment in drawn.segments]).float() * 10 - 5  # (K, h · w)
    features = pixels[0].flatten(1).double()  # (D, h · w)
    gram = features @ features.T
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    embeddings = torch.linalg.solve(gram, features @ wanted.T.double()).T.float()  # (K, D)
    index = torch.arange(len(queries)) % len(embeddings)
    solve(layer, queries, embeddings[index])


def solve(layer: Any, inputs: Tensor, outputs: Tensor, ridge: float = 1e-4) -> None:
    """Weights and bias of a linear layer that maps inputs (N, D) to outputs (N, O), as nearly as small weights can."""
    center = inputs.mean(0)
    inputs, mean = (inputs - center).double(), outputs.mean(0)
    gram = inputs @ inputs.T  # (N, N)
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    weight = (inputs.T @ torch.linalg.solve(gram, (outputs - mean).double())).T.float()  # (O, D)
    layer.weight.copy_(weight)
    layer.bias.copy_(mean - weight @ center)


def class_logits(output: Any) -> Tensor:
    """(B, Q, C + 1), by either of transformers' names."""
    return output.logits if "logits" in output else output.class_queries_logits


def mask_logits(output: Any) -> Tensor:
    """(B, Q, h, w), by either of transformers' names."""
    return output.pred_masks if "pred_masks" in output else output.masks_queries_logits


@torch.no_grad()
def threshold_of(model: Any, image: Tensor) -> float:
    """Half-way between the 20th best score of the queries that say something and the next, if any."""
    probabilities = class_logits(model(normalised(image)[None]))[0].softmax(-1)  # (Q, C + 1)
    scores, categories = probabilities.max(-1)
    scores = scores[categories < probabilities.shape[1] - 1].sort(descending=True).values
    assert len(scores) >= KEPT
    return float(scores[KEPT - 1] / 2 if len(scores) == KEPT else scores[KEPT - 1 : KEPT + 1].mean())


def save(name: str, drawn: Scene, folder: Path) -> None:
    """The model that both sides load, with the threshold that keeps 20 queries on the scene, into `folder`."""
    model = build(name, drawn.image.shape[1])
    teach(name, model, drawn)
    model.save_pretrained(folder)
    processor(name, drawn.image.shape[1]).save_pretrained(folder)
    stuff = [segment.category for segment in drawn.segments[-1:]]
    write_notes(folder, threshold=threshold_of(model, drawn.image), stuff=stuff)


def write_notes(folder: Path, **notes: Any) -> None:
    path = folder / NOTES
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | notes))


def read_notes(folder: Path) -> dict[str, Any]:
    return json.loads((folder / NOTES).read_text())


# --- their way from pixels to a map and to a loss ---------------------------------------------------------------------


TRAINING = {"maskformer": {"use_auxiliary_loss": True}}
"""Settings of the training alone: transformers' MaskFormer does not predict with losses on every layer."""


def load(name: str, folder: Path, **changes: Any) -> Any:
    """changes: settings other than those of the folder's config.json."""
    import transformers

    kinds = {
        "detr": "DetrForSegmentation",
        "maskformer": "MaskFormerForInstanceSegmentation",
        "eomt": "EomtForUniversalSegmentation",
    }
    kind = kinds.get(name, "Mask2FormerForUniversalSegmentation")
    transformers.utils.logging.disable_progress_bar()
    return getattr(transformers, kind).from_pretrained(folder, **changes).eval()


def processor(name: str, side: int) -> Any:
    """The image processor whose post-processing makes the panoptic map; its own sizes only matter for EoMT's."""
    import transformers

    kinds = {"detr": "DetrImageProcessor", "maskformer": "MaskFormerImageProcessor", "eomt": "EomtImageProcessor"}
    size = {"size": {"shortest_edge": side, "longest_edge": side}} if name == "eomt" else {}
    return getattr(transformers, kinds.get(name, "Mask2FormerImageProcessor"))(**size)


def normalised(image: Tensor) -> Tensor:
    """uint8 (…, 3, H, W) → float, by ImageNet's mean and deviation; no resizing."""
    return (image.float() - MEAN.to(image.device)) / STD.to(image.device)


def panoptic_map(
    name: str,
    maker: Any,
    output: Any,
    sizes: list[tuple[int, int]],
    threshold: float,
    stuff: list[int],
    overlap: float = 0.8,
) -> list[dict[str, Any]]:
    rules: dict[str, Any] = {"threshold": threshold, "overlap_mask_area_threshold": overlap}
    rules |= {"stuff_classes": stuff} if name == "eomt" else {"label_ids_to_fuse": set(stuff)}
    return maker.post_process_panoptic_segmentation(output, target_sizes=sizes, **rules)


def loss(name: str, model: Any, images: Tensor, targets: Sequence[dict[str, Tensor]]) -> Tensor:
    """The weighted sum of their loss terms. images uint8 (B, 3, H, W); targets as of `target`, one an image."""
    pixels = normalised(images)
    if name == "detr":
        return model(pixel_values=pixels, labels=list(targets)).loss
    masks, classes = [t["masks"] for t in targets], [t["class_labels"] for t in targets]
    extra = {"output_hidden_states": True} if name == "maskformer" else {}  # without, losses on every layer fail
    return model(pixel_values=pixels, mask_labels=masks, class_labels=classes, **extra).loss


def target(ids: Tensor, segments: Sequence[Any]) -> dict[str, Tensor]:
    """A dense mask, a class and a box (centre and size, 0 … 1) for each segment of an id map (H, W)."""
    height, width = ids.shape
    masks = ids == torch.tensor([s.id for s in segments], dtype=ids.dtype)[:, None, None]  # (N, H, W)
    boxes = torch.zeros((len(segments), 4))
    for n, mask in enumerate(masks):
        y, x = mask.nonzero(as_tuple=True)
        x1, y1, x2, y2 = (float(v) for v in (x.min(), y.min(), x.max() + 1, y.max() + 1))
        boxes[n] = torch.tensor([(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height])
    return {"masks": masks.float(), "class_labels": torch.tensor([s.category for s in segments]), "boxes": boxes}
