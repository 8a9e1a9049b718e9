"""Mask2Former. Cheng, Misra, Schwing, Kirillov, Girdhar: Masked-attention Mask Transformer, CVPR 2022.

A pixel decoder with deformable attention computes features at three levels. Nine decoder layers attend to the levels in
turn; every query attends only to the pixels of the mask that it predicted in the layer before. A query predicts a class
(or "no object") and a mask.

COCO panoptic val2017 PQ (official): R50 51.9, R101 52.6, Swin-T 53.2, S 54.6, B 55.1 (ImageNet-21K: 56.4), L 57.8.
Differs from the official repository: nothing in the builders of its names. Masks of full size are made in `decode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.models.contract import Entry, TrainingDefaults, every_class_and_no_object
from pansight.models.options import TRANSFORMER_OPTIONS, Option, whole
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.checkpointing import Recomputed
from pansight.nn.input import Input
from pansight.nn.layers import FastLinear
from pansight.nn.queries.deformable import DeformPixelDecoder
from pansight.nn.queries.transformer import MLP, Attention
from pansight.ops.fusion.exported import QueryOutputs
from pansight.ops.fusion.queries import TASKS, QueryRules, canvases_of, decode_queries, query_class_scores
from pansight.ops.queries.losses import PointSettings, point_set_loss, set_counts, uniform
from pansight.ops.queries.masks import features_at, masks_at
from pansight.ops.queries.targets import segment_targets
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import valid_extents
from pansight.types import Batch, LabelSpace, Prediction


class Mask2FormerOutputs(NamedTuple):
    class_logits: Tensor  # (B, Q, C + 1), no object last
    mask_embeddings: Tensor  # (B, Q, D); times the features: mask logits
    features: Tensor  # (B, D, H / 4, W / 4)
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image


class CrossAttentionLayer(Recomputed):
    """Cross-attention of the queries to one level, limited by `mask`, then a norm."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.multihead_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor, memory: Tensor, placed_memory: Tensor, mask: Tensor) -> Tensor:
        """x (B, Q, D), positions (Q, D), memory (B, N, D), mask bool (B, 1, Q, N), True where a query may attend."""
        return self.norm(x + self.multihead_attn(x + positions, placed_memory, memory, mask))


class SelfAttentionLayer(Recomputed):
    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.self_attn = Attention(channels, heads)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        placed = x + positions
        return self.norm(x + self.self_attn(placed, placed, x))


class FFNLayer(Recomputed):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.linear1 = FastLinear(channels, hidden)
        self.linear2 = FastLinear(hidden, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


class MaskedDecoder(nn.Module):
    """`layers` times: masked cross-attention to one of three levels in turn, self-attention, feed-forward.

    There is a prediction before the first layer and after each, by the same norm, class head and mask head.
    """

    def __init__(self, classes: int, queries: int, channels: int, heads: int, layers: int, hidden: int, levels: int):
        super().__init__()
        self.query_feat = nn.Embedding(queries, channels)
        self.query_embed = nn.Embedding(queries, channels)
        self.level_embed = nn.Embedding(levels, channels)
        count = range(layers)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(channels, heads) for _ in count)
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(channels, heads) for _ in count)
        self.transformer_ffn_layers = nn.ModuleList(FFNLayer(channels, hidden) for _ in count)
        for parameter in self.parameters():
            if parameter.ndim > 1 and parameter.shape[0] > max(queries, levels):
                nn.init.xavier_uniform_(parameter)
        self.decoder_norm = nn.LayerNorm(channels)
        self.class_embed = FastLinear(channels, classes + 1)
        self.mask_embed = MLP(channels, channels, channels, channels)

    def forward(
        self,
        levels: Sequence[Tensor],
        positions: Sequence[Tensor],
        shapes: Sequence[tuple[int, int]],
        features: Tensor,
        all_layers: bool,
    ) -> tuple[Tensor, Tensor]:
        """levels (B, N_l, D), positions (1, N_l, D), shapes (h, w) with N_l = h · w, features (B, D, H / 4, W / 4).

        → class logits (L, B, Q, C + 1), mask embeddings (L, B, Q, D) of every prediction; of the last alone
        unless `all_layers`.
        """
        memory = [x + e for x, e in zip(levels, self.level_embed.weight, strict=True)]
        placed = [x + p for x, p in zip(memory, positions, strict=True)]
        small = [features_at(features, shape) for shape in shapes]
        query_positions = self.query_embed.weight  # (Q, D)
        x = self.query_feat.weight.expand(features.shape[0], -1, -1)  # (B, Q, D)
        normed, embeddings = [self.decoder_norm(x)], [self.mask_embed(self.decoder_norm(x))]
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for index, (cross_attention, self_attention, feed_forward) in enumerate(layers):
            level = index % len(levels)
            mask = may_look(masks_at(embeddings[-1], small[level], shapes[level]).flatten(2))
            x = cross_attention(x, query_positions, memory[level], placed[level], mask)
            x = feed_forward(self_attention(x, query_positions))
            normed.append(self.decoder_norm(x))
            embeddings.append(self.mask_embed(normed[-1]))
        kept = slice(None) if all_layers else slice(-1, None)
        return self.class_embed(torch.stack(normed[kept])), torch.stack(embeddings[kept])


def may_look(mask_logits: Tensor) -> Tensor:
    """Where the mask of a query is positive, or everywhere if it is nowhere: bool (B, 1, Q, N), the same for all heads.

    mask_logits (B, Q, N).
    """
    positive = mask_logits >= 0
    return (positive | ~positive.any(2, keepdim=True)).unsqueeze(1)


class Mask2Former(nn.Module):
    """`backbone`, `pixel_decoder` and `predictor` (the masked decoder).

    settings: points and weights of the loss. rules: thresholds of `decode`.
    """

    def __init__(
        self,
        backbone: Backbone,
        pixel_decoder: DeformPixelDecoder,
        predictor: MaskedDecoder,
        labels: LabelSpace,
        input: Input,
        settings: PointSettings,
        rules: QueryRules = QueryRules(),  # noqa: B008 (immutable)
    ):
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.labels = labels
        self.input = input
        self.settings = settings
        self.rules = rules

    def _predict(self, images: Tensor, valid: Tensor | None, all_layers: bool) -> tuple[Tensor, Tensor, Tensor]:
        levels, positions, shapes, features = self.pixel_decoder(self.backbone(self.input(images, valid)))
        return (*self.predictor(levels, positions, shapes, features, all_layers), features)

    def forward(self, images: Tensor, valid: Tensor | None = None) -> Mask2FormerOutputs:
        """images uint8 (B, 3, H, W), H and W multiples of 32; valid bool (B, H, W), False on padding.

        Padding is zero after normalisation and is not masked, as in the official repository.
        """
        class_logits, embeddings, features = self._predict(images, valid, all_layers=False)
        return Mask2FormerOutputs(class_logits[0], embeddings[0], features, valid_extents(images, valid))

    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images, which may be a part of a step: see `set_counts`."""
        targets = segment_targets(batch, self.labels)
        return set_counts(targets, self.predictor.query_feat.num_embeddings, self.settings.no_object)

    def loss(
        self, batch: Batch, totals: Mapping[str, float] | None = None, draw: Callable[..., Tensor] = uniform
    ) -> dict[str, Tensor]:
        """Class, mask and dice losses, each summed over all predictions of the decoder. draw: see `point_set_loss`.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        class_logits, embeddings, features = self._predict(batch.images, batch.valid, all_layers=True)
        canvas = (batch.images.shape[2], batch.images.shape[3])
        targets = segment_targets(batch, self.labels)
        maps = [features] * len(embeddings)
        return point_set_loss(class_logits, embeddings, maps, targets, canvas, self.settings, draw, totals=totals)

    def last_steps(self, outputs: Mask2FormerOutputs) -> QueryOutputs:
        """The same with the masks of all queries, as an exported graph gives them."""
        masks = torch.stack([self.mask_logits(outputs, image) for image in range(len(outputs.class_logits))])
        canvas = torch.tensor(self._canvas(outputs), device=masks.device)
        return QueryOutputs(outputs.class_logits, outputs.extents, canvas, masks)

    def mask_logits(
        self, outputs: Mask2FormerOutputs | QueryOutputs, image: int, queries: Tensor | None = None
    ) -> Tensor:
        """float32 (K, H / 4, W / 4) of the given queries (int64 (K,)) of one image; of all where none are given."""
        if isinstance(outputs, QueryOutputs):
            return outputs.masks(image, queries)
        embeddings = outputs.mask_embeddings[image]
        embeddings = embeddings if queries is None else embeddings[queries]
        return torch.einsum("qd,dhw->qhw", embeddings.float(), outputs.features[image].float())

    def decode(
        self,
        outputs: Mask2FormerOutputs | QueryOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap: float | None = None,
        task: str | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own.

        task: "panoptic" (None), "instance", "semantic" or "all".
        """
        return decode_queries(
            outputs.class_logits,
            partial(self.mask_logits, outputs),
            canvases_of(self._canvas(outputs), outputs.extents, sizes),
            self.labels,
            self.rules.replaced(score_threshold, mask_threshold, overlap),
            task,
        )

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""

    def class_scores(
        self, outputs: Mask2FormerOutputs | QueryOutputs, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """float32 (C, H, W) of each image at its original size: what the semantic task takes the highest of."""
        canvases = canvases_of(self._canvas(outputs), outputs.extents, sizes)
        return query_class_scores(outputs.class_logits, partial(self.mask_logits, outputs), canvases)

    def _canvas(self, outputs: Mask2FormerOutputs | QueryOutputs) -> Sequence[int]:
        if isinstance(outputs, QueryOutputs):
            return outputs.canvas.tolist()
        return [side * self.backbone.strides[0] for side in outputs.features.shape[2:]]


def mask2former(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    queries: int = 100,
    channels: int = 256,
    heads: int = 8,
    layers: int = 9,
    hidden: int = 2048,
    encoder_layers: int = 6,
    encoder_hidden: int = 1024,
    sampling_points: int = 4,
    loss_points: int = 12544,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
    no_object: float = 0.1,
    drop_path: float | None = None,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> Mask2Former:
    """Mask2Former on any backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    hidden, encoder_hidden: widths of the feed-forward blocks of decoder and pixel decoder. sampling_points: places that
    a token reads, per level and head. loss_points: points that a mask is compared at.
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages, drop_path=drop_path)
    pixel_decoder = DeformPixelDecoder(net.channels, channels, heads, encoder_layers, encoder_hidden, sampling_points)
    predictor = MaskedDecoder(len(labels), queries, channels, heads, layers, hidden, len(net.channels) - 1)
    settings = PointSettings(
        points=loss_points,
        class_weight=class_weight,
        binary_weight=mask_weight,
        dice_weight=dice_weight,
        no_object=no_object,
    )
    input = Input(ResizeRule(short, long), net.pixels)
    return Mask2Former(net, pixel_decoder, predictor, labels, input, settings)


def mask2former_r50(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> Mask2Former:
    """43,983,878 parameters besides frozen BatchNorm's buffers, for COCO's 133 classes."""
    return mask2former(labels, "resnet50.tv_in1k", pretrained, queries=queries)


def mask2former_r101(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> Mask2Former:
    """62,923,782 parameters."""
    return mask2former(labels, "resnet101.tv_in1k", pretrained, queries=queries)


def mask2former_swin_tiny(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> Mask2Former:
    """47,435,264 parameters."""
    return mask2former(labels, "swin_tiny_patch4_window7_224.ms_in1k", pretrained, queries=queries)


def mask2former_swin_small(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> Mask2Former:
    """68,753,168 parameters."""
    return mask2former(labels, "swin_small_patch4_window7_224.ms_in1k", pretrained, queries=queries)


def mask2former_swin_base(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> Mask2Former:
    """106,917,822 parameters; windows of 12 pixels."""
    return mask2former(labels, "swin_base_patch4_window12_384.ms_in22k", pretrained, queries=queries)


def mask2former_swin_large(labels: LabelSpace, pretrained: str = "none", queries: int = 200) -> Mask2Former:
    """215,535,610 parameters with the 200 queries of the published panoptic and instance models."""
    return mask2former(labels, "swin_large_patch4_window12_384.ms_in22k", pretrained, queries=queries)


OPTIONS: dict[str, Option] = {
    **TRANSFORMER_OPTIONS,
    "encoder_hidden": whole("width of the feed-forward layers of the pixel decoder", 1, 65_536),
    "sampling_points": whole("places that a token reads in each level and head of the pixel decoder", 1, 64),
    "loss_points": whole("points at which two masks are compared", 1, 1_000_000),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "queries": 12, "channels": 64, "heads": 4}
TINY |= {"hidden": 32, "layers": 3, "encoder_layers": 1, "encoder_hidden": 32, "loss_points": 128}

SMALL: dict[str, Any] = {"channels": 64, "heads": 4, "layers": 3, "hidden": 256, "encoder_layers": 2}
SMALL |= {"encoder_hidden": 256, "loss_points": 2048}

GENERAL = Entry(
    mask2former,
    architecture="mask2former",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    tasks=TASKS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "queries"),
    training=TrainingDefaults(
        lr=1e-4, lr_of_few_images=5e-5, backbone_lr_factor=0.1, weight_decay=0.05, clip_norm=0.01
    ),
    class_rows={"predictor.class_embed": every_class_and_no_object},
    queries=("predictor.query_embed.weight", "predictor.query_feat.weight"),
    licence="cc-by-nc-4.0",
    small=SMALL,
    tiny=TINY,
)
ENTRIES: dict[str, Entry] = {
    "mask2former": GENERAL,
    "mask2former_r50": GENERAL.published(mask2former_r50, "mask2former", "pretrained", "queries"),
    "mask2former_r101": GENERAL.published(mask2former_r101, "mask2former", "pretrained", "queries"),
    "mask2former_swin_tiny": GENERAL.published(mask2former_swin_tiny, "mask2former", "pretrained", "queries"),
    "mask2former_swin_small": GENERAL.published(mask2former_swin_small, "mask2former", "pretrained", "queries"),
    "mask2former_swin_base": GENERAL.published(mask2former_swin_base, "mask2former", "pretrained", "queries"),
    "mask2former_swin_large": GENERAL.published(mask2former_swin_large, "mask2former", "pretrained", "queries"),
}
