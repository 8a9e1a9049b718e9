"""MaskFormer. Cheng, Schwing, Kirillov: Per-Pixel Classification is Not All You Need, NeurIPS 2021.

DETR's decoder turns 100 queries into a class (or "no object") and a mask each. A mask is the product of the query's
embedding with features at stride 4. These features come from a feature pyramid (pixel decoder "fpn"), in some models
with a transformer encoder before it ("encoder").

COCO panoptic val2017 PQ (official): R50 + 6 encoder layers 46.5, R101 47.6, Swin-T 47.7, S 49.7, B 51.8, L 52.7.
Differs from the official repository: nothing in the builders of its names. Masks are made in `decode`, of the queries
that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import choice_error
from pansight.models.contract import Entry, TrainingDefaults, every_class_and_no_object
from pansight.models.options import TRANSFORMER_OPTIONS, Option, choice, resizing, whole
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.input import Input
from pansight.nn.queries.deformable import ConvGroupNorm, whole_positions
from pansight.nn.queries.transformer import MLP, TransformerDecoder, TransformerEncoder
from pansight.ops.fusion.exported import QueryOutputs
from pansight.ops.fusion.queries import TASKS, QueryRules, canvases_of, decode_queries, query_class_scores
from pansight.ops.queries.dense import DenseSettings, dense_set_loss
from pansight.ops.queries.losses import set_counts
from pansight.ops.queries.masks import PixelEmbeddings
from pansight.ops.queries.targets import segment_targets
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import valid_extents
from pansight.types import Batch, LabelSpace, Prediction

MASKFORMER_RULES = QueryRules(cut=False)
PIXEL_DECODERS = ("fpn", "encoder")


class MaskFormerOutputs(NamedTuple):
    class_logits: Tensor  # (B, Q, C + 1), no object last
    mask_embeddings: Tensor  # (B, Q, D); times the pixel embeddings: mask logits
    pixel_embeddings: PixelEmbeddings  # (B, D, H / 4, W / 4)
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image
    canvas: Tensor  # int64 (2,): (H, W)


class FPNPixelDecoder(nn.Module):
    """Maps of a backbone, fine to coarse → the features that masks are made of, before their last convolution.

    Top-down by the nearest pixel: a 1×1 convolution of the backbone's map is added, then 3×3; GroupNorm after each.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256):
        super().__init__()
        *lateral, top = in_channels
        self.count = len(in_channels)
        for level, width in enumerate(lateral, start=1):  # 1 is the finest
            self.add_module(f"adapter_{level}", ConvGroupNorm(width, channels, 1))
            self.add_module(f"layer_{level}", ConvGroupNorm(channels, channels, 3))
        self.add_module(f"layer_{self.count}", ConvGroupNorm(top, channels, 3))
        self.mask_features = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_uniform_(self.mask_features.weight, a=1)
        nn.init.zeros_(self.mask_features.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """maps (B, C_i, h_i, w_i) → (features (B, D, h_1, w_1), the memory of the queries (B, C, h, w))."""
        return self.pyramid(maps), maps[-1]

    def embeddings(self, features: Tensor) -> PixelEmbeddings:
        """The last convolution of the features (B, D, h_1, w_1)."""
        assert self.mask_features.bias is not None
        return PixelEmbeddings(features, self.mask_features.weight, self.mask_features.bias)

    def pyramid(self, maps: Sequence[Tensor]) -> Tensor:
        y = F.relu(self.get_submodule(f"layer_{self.count}")(maps[-1]))
        for level in range(self.count - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{level}")(maps[level - 1])
            y = lateral + F.interpolate(y, size=lateral.shape[2:], mode="nearest")
            y = F.relu(self.get_submodule(f"layer_{level}")(y))
        return y


class EncoderPixelDecoder(FPNPixelDecoder):
    """The same after an encoder: the coarsest map passes `layers` encoder layers, to whose output queries attend."""

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
    ):
        super().__init__([*in_channels[:-1], channels], channels)
        self.input_proj = nn.Conv2d(in_channels[-1], channels, 1)
        self.encoder = TransformerEncoder(layers, channels, heads, hidden, dropout)
        nn.init.kaiming_uniform_(self.input_proj.weight, a=1)
        nn.init.zeros_(self.input_proj.bias)  # pyright: ignore[reportArgumentType]
        xavier(self.encoder)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        x = self.input_proj(maps[-1])  # (B, D, h, w)
        positions = whole_positions((x.shape[2], x.shape[3]), x.shape[1], x.device).flatten(1, 2)  # (1, h · w, D)
        tokens = self.encoder(x.flatten(2).transpose(1, 2), positions)  # (B, h · w, D)
        encoded = tokens.transpose(1, 2).unflatten(2, x.shape[2:])  # (B, D, h, w)
        return self.pyramid([*maps[:-1], encoded]), encoded


class Predictor(nn.Module):
    """Queries to classes and mask embeddings, by DETR's decoder; the heads are shared by all layers.

    in_channels: of the memory that queries attend to; None if it has `channels` already and needs no projection.
    """

    def __init__(
        self,
        in_channels: int | None,
        classes: int,
        queries: int = 100,
        channels: int = 256,
        heads: int = 8,
        layers: int = 6,
        hidden: int = 2048,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.decoder = TransformerDecoder(layers, channels, heads, hidden, dropout)
        self.query_embed = nn.Embedding(queries, channels)
        self.input_proj = nn.Identity() if in_channels is None else nn.Conv2d(in_channels, channels, 1)
        if isinstance(self.input_proj, nn.Conv2d):
            nn.init.kaiming_uniform_(self.input_proj.weight, a=1)
            nn.init.zeros_(self.input_proj.bias)  # pyright: ignore[reportArgumentType]
        self.class_embed = nn.Linear(channels, classes + 1)
        self.mask_embed = MLP(channels, channels, channels, channels)
        xavier(self.decoder)

    def forward(self, memory: Tensor, all_layers: bool) -> tuple[Tensor, Tensor]:
        """memory (B, C, h, w), padding looked at like the image → class logits (L, B, Q, C + 1), mask embeddings

        (L, B, Q, D) of every layer; unless `all_layers`, of the last alone (L = 1).
        """
        x = self.input_proj(memory)  # (B, D, h, w)
        positions = whole_positions((x.shape[2], x.shape[3]), x.shape[1], x.device).flatten(1, 2)
        hidden = self.decoder(self.query_embed.weight, x.flatten(2).transpose(1, 2), positions, all_layers=all_layers)
        return self.class_embed(hidden), self.mask_embed(hidden)


def xavier(module: nn.Module) -> None:
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


class MaskFormer(nn.Module):
    """`backbone`, `pixel_decoder` and `predictor`.

    settings: the weights of the loss. rules: thresholds of `decode`.
    """

    def __init__(
        self,
        backbone: Backbone,
        pixel_decoder: FPNPixelDecoder,
        predictor: Predictor,
        labels: LabelSpace,
        input: Input,
        settings: DenseSettings,
        rules: QueryRules = MASKFORMER_RULES,
    ):
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.labels = labels
        self.input = input
        self.settings = settings
        self.rules = rules

    def forward(self, images: Tensor, valid: Tensor | None = None) -> MaskFormerOutputs:
        """images uint8 (B, 3, H, W), any size; valid bool (B, H, W), False on padding.

        Padding is zero after normalisation and is not masked, as in the official repository.
        """
        features, memory = self.pixel_decoder(self.backbone(self.input(images, valid)))
        class_logits, embeddings = self.predictor(memory, all_layers=False)
        pixels = self.pixel_decoder.embeddings(features)
        canvas = torch.tensor(images.shape[2:], device=images.device)
        return MaskFormerOutputs(class_logits[0], embeddings[0], pixels, valid_extents(images, valid), canvas)

    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images, which may be a part of a step: see `set_counts`."""
        targets = segment_targets(batch, self.labels)
        return set_counts(targets, self.predictor.query_embed.num_embeddings, self.settings.no_object)

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Class, mask (focal) and dice losses, each summed over the layers of the decoder.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        features, memory = self.pixel_decoder(self.backbone(self.input(batch.images, batch.valid)))
        class_logits, embeddings = self.predictor(memory, all_layers=True)
        features = self.pixel_decoder.mask_features(features)
        targets = segment_targets(batch, self.labels)
        canvas = (batch.images.shape[2], batch.images.shape[3])
        return dense_set_loss(class_logits, embeddings, features, targets, canvas, self.settings, totals)

    def last_steps(self, outputs: MaskFormerOutputs) -> QueryOutputs:
        """The same with the masks of all queries, as an exported graph gives them."""
        masks = torch.stack([self.mask_logits(outputs, image) for image in range(len(outputs.class_logits))])
        return QueryOutputs(outputs.class_logits, outputs.extents, outputs.canvas, masks)

    def mask_logits(
        self, outputs: MaskFormerOutputs | QueryOutputs, image: int, queries: Tensor | None = None
    ) -> Tensor:
        """float32 (K, H / 4, W / 4) of the given queries (int64 (K,)) of one image; of all where none are given."""
        if isinstance(outputs, QueryOutputs):
            return outputs.masks(image, queries)
        embeddings = outputs.mask_embeddings[image]
        return outputs.pixel_embeddings.masks(image, embeddings if queries is None else embeddings[queries])

    def decode(
        self,
        outputs: MaskFormerOutputs | QueryOutputs,
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
            canvases_of(outputs.canvas.tolist(), outputs.extents, sizes),
            self.labels,
            self.rules.replaced(score_threshold, mask_threshold, overlap),
            task,
        )

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""

    def class_scores(self, outputs: MaskFormerOutputs | QueryOutputs, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """float32 (C, H, W) of each image at its original size: what the semantic task takes the highest of."""
        canvases = canvases_of(outputs.canvas.tolist(), outputs.extents, sizes)
        return query_class_scores(outputs.class_logits, partial(self.mask_logits, outputs), canvases)


def maskformer(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    divisor: int = 32,
    pixel_decoder: str = "fpn",
    queries: int = 100,
    channels: int = 256,
    heads: int = 8,
    layers: int = 6,
    hidden: int = 2048,
    encoder_layers: int = 6,
    dropout: float = 0.1,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
    no_object: float = 0.1,
    score_threshold: float = 0.8,
    drop_path: float | None = None,
    frozen_bn: bool = True,
    freeze_stages: int = 0,
) -> MaskFormer:
    """MaskFormer on any backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    pixel_decoder: "fpn", or "encoder" with `encoder_layers` below it. hidden: of the feed-forward blocks of decoder and
    encoder. The authors keep queries above score 0.8, on ADE20K 0.7, and pad photos to multiples of 32 (on COCO: 1).
    """
    net = timm_backbone(backbone, pretrained, frozen_bn=frozen_bn, freeze_stages=freeze_stages, drop_path=drop_path)
    if pixel_decoder not in PIXEL_DECODERS:
        raise choice_error("pixel_decoder", pixel_decoder, PIXEL_DECODERS)
    is_encoded = pixel_decoder == "encoder"
    pixels = (
        EncoderPixelDecoder(net.channels, channels, heads, encoder_layers, hidden, dropout)
        if is_encoded
        else FPNPixelDecoder(net.channels, channels)
    )
    in_channels = None if is_encoded else net.channels[-1]
    predictor = Predictor(in_channels, len(labels), queries, channels, heads, layers, hidden, dropout)
    settings = DenseSettings(class_weight, mask_weight, dice_weight, no_object)
    input = Input(ResizeRule(short, long, divisor), net.pixels)
    rules = MASKFORMER_RULES._replace(score=score_threshold)
    return MaskFormer(net, pixels, predictor, labels, input, settings, rules)


def maskformer_r50(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """45,012,038 parameters besides frozen BatchNorm's buffers, for COCO's 133 classes."""
    return maskformer(labels, "resnet50.tv_in1k", pretrained, divisor=1, pixel_decoder="encoder", queries=queries)


def maskformer_r101(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """63,951,942 parameters."""
    return maskformer(labels, "resnet101.tv_in1k", pretrained, divisor=1, pixel_decoder="encoder", queries=queries)


def maskformer_swin_tiny(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """41,752,640 parameters."""
    return maskformer(labels, "swin_tiny_patch4_window7_224.ms_in1k", pretrained, divisor=1, queries=queries)


def maskformer_swin_small(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """63,070,544 parameters."""
    return maskformer(labels, "swin_small_patch4_window7_224.ms_in1k", pretrained, divisor=1, queries=queries)


def maskformer_swin_base(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """101,825,022 parameters; windows of 12 pixels."""
    return maskformer(labels, "swin_base_patch4_window12_384.ms_in22k", pretrained, divisor=1, queries=queries)


def maskformer_swin_large(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> MaskFormer:
    """211,571,258 parameters."""
    return maskformer(labels, "swin_large_patch4_window12_384.ms_in22k", pretrained, divisor=1, queries=queries)


OPTIONS: dict[str, Option] = {
    **TRANSFORMER_OPTIONS,
    "divisor": resizing(whole("photos are padded to multiples of so many pixels", 1, 1024)),
    "pixel_decoder": choice("a feature pyramid, or one below which a transformer encodes the image", *PIXEL_DECODERS),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "queries": 12, "channels": 64, "heads": 4}
TINY |= {"hidden": 32, "layers": 2, "encoder_layers": 1}

SMALL: dict[str, Any] = {"channels": 64, "heads": 4, "layers": 3, "hidden": 256, "encoder_layers": 2}

GENERAL = Entry(
    maskformer,
    architecture="maskformer",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    tasks=TASKS,
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "queries"),
    training=TrainingDefaults(
        lr=1e-4, lr_of_few_images=5e-5, backbone_lr_factor=0.1, weight_decay=0.05, clip_norm=0.01
    ),
    class_rows={"predictor.class_embed": every_class_and_no_object},
    queries=("predictor.query_embed.weight",),
    licence="cc-by-nc-4.0",
    small=SMALL,
    tiny=TINY,
)
ENTRIES: dict[str, Entry] = {
    "maskformer": GENERAL,
    "maskformer_r50": GENERAL.published(maskformer_r50, "maskformer", "pretrained", "queries"),
    "maskformer_r101": GENERAL.published(maskformer_r101, "maskformer", "pretrained", "queries"),
    "maskformer_swin_tiny": GENERAL.published(maskformer_swin_tiny, "maskformer", "pretrained", "queries"),
    "maskformer_swin_small": GENERAL.published(maskformer_swin_small, "maskformer", "pretrained", "queries"),
    "maskformer_swin_base": GENERAL.published(maskformer_swin_base, "maskformer", "pretrained", "queries"),
    "maskformer_swin_large": GENERAL.published(maskformer_swin_large, "maskformer", "pretrained", "queries"),
}
