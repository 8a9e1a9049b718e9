"""EoMT. Kerssies, Cavagnero, Hermans, Norouzi, Averta, Leibe, Dubbelman, de Geus: Your ViT is Secretly an Image
Segmentation Model, CVPR 2025.

A plain vision transformer: the queries enter its last blocks as additional tokens, and two small upscaling blocks turn
its patches into features at stride 4. In training, masked attention in these blocks lets each query attend only to the
patches of the mask that it predicts so far. Annealing (nn/queries/annealing.py) removes this step by step, so that a
finished model needs no masks. See docs/systems/eomt.md.

COCO val2017 PQ (tue-mps/eomt): DINOv2 S-640 46.7, B-640 51.6, L-640 56.0, L-1280 58.3, g-640 57.0; DINOv3 S-640 47.2,
B-640 53.1, L-640 56.8, L-1280 58.9.
Differs from tue-mps/eomt: canvases of other sizes than `size` run too (positions are resampled, as timm does);
evaluation uses masked attention in blocks whose annealing has not passed one half (the repository draws queries at
random in its validation, and switches masks off for the scores above; a finished run has none left in either case).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, RateGroups, TrainingDefaults, every_class_and_no_object
from pansight.models.options import (
    QUERY_OPTIONS,
    VIT_OPTIONS,
    Option,
    flag,
    loss_weight,
    number,
    resizing,
    share,
    whole,
)
from pansight.nn.backbones.vit import PlainViT, vit_backbone
from pansight.nn.input import Input
from pansight.nn.queries.annealing import MaskAnnealing
from pansight.ops.fusion.exported import QueryOutputs
from pansight.ops.fusion.queries import TASKS, QueryRules, canvases_of, checked_task, decode_queries, query_class_scores
from pansight.ops.fusion.windows import Window, cut_windows, scores_from_windows
from pansight.ops.queries.losses import PointSettings, point_set_loss, set_counts
from pansight.ops.queries.masks import features_at, masks_at
from pansight.ops.queries.targets import segment_targets
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import valid_extents
from pansight.types import Batch, LabelSpace, Prediction

LONGEST = 8
"""The number of windows in the longest photo. A longer one is scaled down to it, and its windows have a dark edge."""


class EoMTOutputs(NamedTuple):
    """L predictions: 1 in evaluation; in training one before each of the last blocks and one after all.

    B is the number of images, or of `windows` if the model predicts in windows.
    """

    class_logits: Tensor  # (L, B, Q, C + 1), no-object last
    mask_embeddings: Tensor  # (L, B, Q, D)
    features: tuple[Tensor, ...]  # L maps (B, D, H / stride, W / stride); their products are the mask logits
    extents: Tensor  # int64 (images, 2): (height, width) of the unpadded part of each image
    windows: tuple[Window, ...] = ()  # the window that each prediction belongs to; () if it is the whole image


class ScaleBlock(nn.Module):
    """Twice the size: transposed 2×2 convolution, GELU, depthwise 3×3 convolution, norm over the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, h, w) → (B, D, 2h, 2w), channels last in memory, so that the norm reads rows."""
        x = self.conv2(F.gelu(self.conv1(x)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EoMT(nn.Module):
    """A ViT whose last `len(annealing.probs)` blocks carry the queries.

    upscales: blocks that double the patch grid: 2 for 16 px patches give masks at stride 4. masked: whether training
    uses masked attention (and the losses of predictions between blocks); without it, `annealing` has no effect.
    `rules`: thresholds of `decode`.
    """

    def __init__(
        self,
        backbone: PlainViT,
        annealing: MaskAnnealing,
        labels: LabelSpace,
        input: Input,
        queries: int = 200,
        upscales: int = 2,
        settings: PointSettings | None = None,
        masked: bool = True,
        window: int = 0,
    ):
        super().__init__()
        channels = backbone.channels
        self.backbone = backbone
        self.q = nn.Embedding(queries, channels)
        self.class_head = nn.Linear(channels, len(labels) + 1)
        linears = [nn.Linear(channels, channels) for _ in range(3)]
        self.mask_head = nn.Sequential(linears[0], nn.GELU(), linears[1], nn.GELU(), linears[2])
        self.upscale = nn.Sequential(*(ScaleBlock(channels) for _ in range(upscales)))
        self.annealing = annealing
        self.labels = labels
        self.input = input
        self.settings = PointSettings() if settings is None else settings
        self.masked = masked
        self.window = window
        self.stride = backbone.patch // 2**upscales
        self.rules = QueryRules()
        depth, last = len(backbone.features.blocks), len(annealing.starts)
        if not 0 < last <= depth:
            raise PansightError(where="eomt", expected=f"1 … {depth} blocks with queries", found=last)
        self.first = depth - last
        if backbone.rotary:  # queries have no position in the image: the rotation skips them, as the class token
            for block in backbone.features.blocks[self.first :]:
                block.attn.num_prefix_tokens = queries + backbone.prefix

    def forward(self, images: Tensor, valid: Tensor | None = None) -> EoMTOutputs:
        """images uint8 (B, 3, H, W); valid bool (B, H, W), False on padding. Sides are padded to multiples of a patch.

        In training mode: all L predictions, masks as annealed (draws from torch's global generator).
        """
        if self.window and not self.training:
            extents = valid_extents(images, valid)
            cuts, windows = cut_windows(images, [(h, w) for h, w in extents.tolist()], self.window)
            return self._run(cuts, None, all_layers=False)._replace(extents=extents, windows=tuple(windows))
        return self._run(images, valid, all_layers=self.training and self.masked)

    def _run(self, images: Tensor, valid: Tensor | None, all_layers: bool) -> EoMTOutputs:
        extents = valid_extents(images, valid)
        bottom, right = (-side % self.backbone.patch for side in images.shape[2:])
        if bottom or right:
            images = F.pad(images, (0, right, 0, bottom))
            valid = None if valid is None else F.pad(valid, (0, right, 0, bottom))
        tokens, rotations, grid = self.backbone.tokens(self.input(images, valid))
        shares = self.annealing.shares() if self.masked else [0.0] * len(self.annealing.starts)
        predictions: list[tuple[Tensor, Tensor, Tensor]] = []
        for index in range(len(self.backbone.features.blocks)):
            mask = None
            if index == self.first:
                queries = self.q.weight.expand(tokens.shape[0], -1, -1)  # (B, Q, D)
                tokens = torch.cat((queries, tokens), dim=1)  # (B, Q + P + h·w, D)
            if index >= self.first:
                share = shares[index - self.first]
                if all_layers:
                    predictions.append(self._predict(tokens, grid))
                    if share > 0:
                        mask = self._attention_mask(*predictions[-1][1:], grid, share)
                elif share > 0.5:
                    mask = self._attention_mask(*self._masks(self.backbone.features.norm(tokens), grid), grid, 1.0)
            tokens = self.backbone.block(index, tokens, rotations, mask)
        predictions.append(self._predict(tokens, grid))
        class_logits, embeddings, features = zip(*predictions, strict=True)
        return EoMTOutputs(torch.stack(class_logits), torch.stack(embeddings), features, extents)

    def _predict(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, Q + P + h·w, D) → class logits (B, Q, C + 1), and what `_masks` returns."""
        normed = self.backbone.features.norm(tokens)
        return self.class_head(normed[:, : self.q.num_embeddings]), *self._masks(normed, grid)

    def _masks(self, normed: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Normed tokens → mask embeddings (B, Q, D), features (B, D, H / stride, W / stride)."""
        patches = normed[:, self.q.num_embeddings + self.backbone.prefix :]  # (B, h·w, D)
        features = patches.unflatten(1, grid).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return self.mask_head(normed[:, : self.q.num_embeddings]), self.upscale(features)

    @torch.no_grad()
    def _attention_mask(self, embeddings: Tensor, features: Tensor, grid: tuple[int, int], share: float) -> Tensor:
        """bool (B, 1, N, N), True where a token may attend: a query to the patches at which its mask is positive.

        Queries see each other and the prefix always, all else sees everything. `share` of the queries, drawn at random,
        keep to their masks.
        """
        inside = masks_at(embeddings, features_at(features, grid), grid).flatten(2) > 0  # (B, Q, h·w)
        if share < 1:
            inside |= torch.rand(inside.shape[:2], device=inside.device).unsqueeze(2) > share
        batch, queries, patches = inside.shape
        skipped = queries + self.backbone.prefix
        mask = inside.new_ones((batch, 1, skipped + patches, skipped + patches))
        mask[:, 0, :queries, skipped:] = inside
        return mask

    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images, which may be a part of a step: see `set_counts`."""
        return set_counts(segment_targets(batch, self.labels), self.q.num_embeddings, self.settings.no_object)

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Mask2Former's set loss (point-sampled) of all L predictions: "class", "mask", "dice", weighted.

        totals: the sum of `counts` over the parts of the step; None: `batch` is the whole of it.
        """
        outputs = self._run(batch.images, batch.valid, all_layers=self.masked)
        targets = segment_targets(batch, self.labels)
        return point_set_loss(
            outputs.class_logits,
            outputs.mask_embeddings,
            outputs.features,
            targets,
            self._canvas(outputs),
            self.settings,
            totals=totals,
        )

    def last_steps(self, outputs: EoMTOutputs) -> QueryOutputs:
        """The last prediction with the masks of all queries, as an exported graph gives them; not of windows."""
        classes = outputs.class_logits[-1]
        masks = torch.stack([self.mask_logits(outputs, image) for image in range(len(classes))])
        canvas = torch.tensor(self._canvas(outputs), device=masks.device)
        return QueryOutputs(classes, outputs.extents, canvas, masks)

    def mask_logits(
        self, outputs: EoMTOutputs | QueryOutputs, image: int, queries: Tensor | None = None, layer: int = -1
    ) -> Tensor:
        """float32 (K, H / stride, W / stride) of the given queries (int64 (K,)) of an image, of all by default."""
        if isinstance(outputs, QueryOutputs):
            return outputs.masks(image, queries)
        embeddings = outputs.mask_embeddings[layer, image]  # (Q, D)
        if queries is not None:
            embeddings = embeddings[queries]
        features = outputs.features[layer][image]  # (D, h, w)
        return (embeddings.float() @ features.flatten(1).float()).unflatten(1, features.shape[1:])

    def _canvas(self, outputs: EoMTOutputs | QueryOutputs) -> tuple[int, int]:
        if isinstance(outputs, QueryOutputs):
            height, width = outputs.canvas.tolist()
            return height, width
        height, width = outputs.features[-1].shape[2:]
        return height * self.stride, width * self.stride

    def decode(
        self,
        outputs: EoMTOutputs | QueryOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap: float | None = None,
        task: str | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own.

        task: "panoptic" (default), "instance", "semantic" or "all"; of windows "semantic" alone, PansightError for the
        others.
        """
        if isinstance(outputs, EoMTOutputs) and outputs.windows:
            checked_task(task, "semantic", ("semantic",))
            return [Prediction(semantic=scores.max(0).indices) for scores in self.class_scores(outputs, sizes)]
        return decode_queries(
            self._last_classes(outputs),
            partial(self.mask_logits, outputs),
            canvases_of(self._canvas(outputs), outputs.extents, sizes),
            self.labels,
            self.rules.replaced(score_threshold, mask_threshold, overlap),
            task,
        )

    def class_scores(self, outputs: EoMTOutputs | QueryOutputs, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """float32 (C, H, W) of each image at its original size: what the semantic task takes the highest of."""
        if isinstance(outputs, EoMTOutputs) and outputs.windows:
            return [self._scores_from_windows(outputs, image, size) for image, size in enumerate(sizes)]
        canvases = canvases_of(self._canvas(outputs), outputs.extents, sizes)
        return query_class_scores(self._last_classes(outputs), partial(self.mask_logits, outputs), canvases)

    @staticmethod
    def _last_classes(outputs: EoMTOutputs | QueryOutputs) -> Tensor:
        """(B, Q, C + 1)"""
        return outputs.class_logits if isinstance(outputs, QueryOutputs) else outputs.class_logits[-1]

    def _scores_from_windows(self, outputs: EoMTOutputs, image: int, size: tuple[int, int]) -> Tensor:
        """float32 (C, H, W) of an image that was looked at in windows."""
        mine = [number for number, window in enumerate(outputs.windows) if window.image == image]
        height, width = outputs.extents[image].tolist()
        return scores_from_windows(
            outputs.class_logits[-1, mine],
            lambda index: self.mask_logits(outputs, mine[index]),
            [outputs.windows[number] for number in mine],
            self.window,
            (height, width),
            size,
        )

    def set_progress(self, share: float) -> None:
        """The masks that training looks through are annealed."""
        self.annealing.set_progress(share)


def eomt(
    labels: LabelSpace,
    backbone: str = "vit_small_patch14_reg4_dinov2",
    pretrained: str = "none",
    size: int = 640,
    patch: int = 16,
    square: bool = True,
    windows: bool = False,
    queries: int = 200,
    blocks: int = 3,
    upscales: int | None = None,
    vit_options: dict[str, Any] | None = None,
    norm_eps: float | None = None,
    masked: bool = True,
    anneal_starts: Sequence[float] | None = None,
    anneal_ends: Sequence[float] | None = None,
    anneal_power: float = 0.9,
    points: int = 12544,
    oversample: float = 3.0,
    importance: float = 0.75,
    class_weight: float = 2.0,
    binary_weight: float = 5.0,
    dice_weight: float = 5.0,
    no_object: float = 0.1,
) -> EoMT:
    """EoMT on a ViT of timm, `vit_options` being timm's own arguments for it.

    square: photos are scaled to a long side of `size` px and padded to the square; without, they keep their size.
    windows: for semantic segmentation: photos are scaled to a short side of `size` px (to a long one of 8 · `size` at
    most), and predicted in squares along the long side. Training takes them, or crops of them, as they come.
    blocks: how many of the last blocks carry the queries. upscales: default is what gives masks at stride 4.
    anneal_starts, anneal_ends: shares of the run for each of these blocks; default is the published schedule.
    """
    vit = vit_backbone(backbone, pretrained, size, patch, vit_options, norm_eps)
    if upscales is None:
        upscales = max(1, int(math.log2(patch)) - 2)
    if patch % 2**upscales:
        raise PansightError(where="eomt", expected=f"patches that halve {upscales} times", found=f"{patch} px")
    annealing = MaskAnnealing(*schedule(blocks, anneal_starts, anneal_ends), power=anneal_power)
    settings = PointSettings(points, oversample, importance, class_weight, binary_weight, dice_weight, no_object)
    rule = ResizeRule(size, size, size, "eomt") if square else ResizeRule(0, 0, patch, "eomt")
    if windows:
        rule = ResizeRule(size, LONGEST * size, patch, "eomt")
    input = Input(rule, vit.pixels, black_padding=True)
    return EoMT(vit, annealing, labels, input, queries, upscales, settings, masked, size if windows else 0)


def schedule(
    blocks: int, starts: Sequence[float] | None = None, ends: Sequence[float] | None = None
) -> tuple[Sequence[float], Sequence[float]]:
    """(starts, ends) of the annealing of each block, shares of the run.

    The published ones (3, 4 and 5 blocks): starts evenly from 1/6 to 2/3, the first block first, each 1/6 long.
    """
    if starts is None:
        starts = [1 / 6 + 0.5 * i / max(blocks - 1, 1) for i in range(blocks)]
    if ends is None:
        ends = [start + 1 / 6 for start in starts]
    if len(starts) != blocks or len(ends) != blocks:
        raise PansightError(
            where="eomt", expected=f"{blocks} starts and ends of annealing", found=f"{len(starts)}, {len(ends)}"
        )
    return starts, ends


def eomt_small_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv2 ViT-S, 12 blocks of 384 channels, queries in the last 3: 23,975,942 parameters for COCO's 133 classes."""
    return eomt(labels, "vit_small_patch14_reg4_dinov2", pretrained, 640, queries=queries, blocks=3)


def eomt_base_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv2 ViT-B, 12 blocks of 768 channels, queries in the last 3: 93,663,110 parameters."""
    return eomt(labels, "vit_base_patch14_reg4_dinov2", pretrained, 640, queries=queries, blocks=3)


def eomt_large_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv2 ViT-L, 24 blocks of 1,024 channels, queries in the last 4: 316,695,686 parameters."""
    return eomt(labels, "vit_large_patch14_reg4_dinov2", pretrained, 640, queries=queries, blocks=4)


def eomt_large_1280(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """As eomt_large_640 with positions on a grid of 80 × 80: 321,610,886 parameters."""
    return eomt(labels, "vit_large_patch14_reg4_dinov2", pretrained, 1280, queries=queries, blocks=4)


def eomt_giant_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv2 ViT-g, 40 blocks of 1,536 channels, queries in the last 5: 1,163,622,022 parameters."""
    return eomt(labels, "vit_giant_patch14_reg4_dinov2", pretrained, 640, queries=queries, blocks=5)


def eomt_giant_1280(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """As eomt_giant_640 with positions on a grid of 80 × 80."""
    return eomt(labels, "vit_giant_patch14_reg4_dinov2", pretrained, 1280, queries=queries, blocks=5)


DINOV3_TRAINING: dict[str, Any] = {"rope_rescale_coords": 2.0}
"""In training, DINOv3's coordinates are scaled by a factor drawn from 1/2 … 2 at every step."""


def eomt_dinov3_small_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv3 ViT-S (weights: dinov3-license, gated): rotary positions instead of learned ones."""
    name = "vit_small_patch16_dinov3_qkvb"
    return eomt(labels, name, pretrained, 640, queries=queries, blocks=3, vit_options=DINOV3_TRAINING)


def eomt_dinov3_base_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv3 ViT-B (weights: dinov3-license, gated)."""
    name = "vit_base_patch16_dinov3_qkvb"
    return eomt(labels, name, pretrained, 640, queries=queries, blocks=3, vit_options=DINOV3_TRAINING)


def eomt_dinov3_large_640(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """DINOv3 ViT-L (weights: dinov3-license, gated)."""
    name = "vit_large_patch16_dinov3_qkvb"
    return eomt(labels, name, pretrained, 640, queries=queries, blocks=4, vit_options=DINOV3_TRAINING)


def eomt_dinov3_large_1280(labels: LabelSpace, queries: int = 200, pretrained: str = "none") -> EoMT:
    """As eomt_dinov3_large_640 at 1,280 px."""
    name = "vit_large_patch16_dinov3_qkvb"
    return eomt(labels, name, pretrained, 1280, queries=queries, blocks=4, vit_options=DINOV3_TRAINING)


OPTIONS: dict[str, Option] = {
    **VIT_OPTIONS,
    **QUERY_OPTIONS,
    "size": resizing(whole("side of the square that photos are scaled to, in pixels", 1, 2**14, "patch")),
    "patch": resizing(whole("side of a patch, in pixels", 1, 1024)),
    "square": resizing(flag("photos are scaled and padded to the square; else they keep their size")),
    "windows": resizing(flag("photos are predicted in squares along their long side (semantic segmentation)")),
    "blocks": whole("last blocks of the ViT, which carry the queries", 1, 200),
    "upscales": whole("blocks that double the patch grid; left out: masks at stride 4", 1, 10, optional=True),
    "masked": flag("training uses masked attention, which is annealed"),
    "anneal_starts": Option("share of the run at which annealing of each block starts", "numbers", 0, 1, optional=True),
    "anneal_ends": Option("share of the run at which it ends, by block", "numbers", 0, 1, optional=True),
    "anneal_power": number("power of the polynomial by which masks are annealed", 0.001, 100),
    "points": whole("points at which two masks are compared", 1, 1_000_000),
    "oversample": number("how many times as many points are drawn first", 1, 100),
    "importance": share("of the points, which are the least certain of those drawn"),
    "binary_weight": loss_weight("the mask"),
}

TINY_VIT: dict[str, Any] = {"depth": 3, "embed_dim": 32, "num_heads": 4}
TINY: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "vit_options": TINY_VIT, "size": 64, "square": False}
TINY |= {"queries": 12, "blocks": 2, "points": 128}

SMALL: dict[str, Any] = {"points": 2048}

GENERAL = Entry(
    eomt,
    architecture="eomt",
    produces=("panoptic", "semantic", "instances"),
    options=OPTIONS,
    tasks=TASKS,
    backbone="vit",
    adapts=("pretrained", "size", "queries"),
    training=TrainingDefaults(lr=1e-4, layer_decay=0.8, weight_decay=0.05, clip_norm=0.01),
    rates=RateGroups(block=r"backbone\.features\.blocks\.(\d+)\.", above_blocks=("backbone.features.norm.",)),
    class_rows={"class_head": every_class_and_no_object},
    queries=("q.weight",),
    positions=("backbone.features.pos_embed",),
    licence="mit",
    small=SMALL,
    tiny=TINY,
)
DINOV3 = replace(GENERAL, licence="dinov3")
ENTRIES: dict[str, Entry] = {
    "eomt": GENERAL,
    "eomt_small_640": GENERAL.published(eomt_small_640, "eomt", "pretrained", "queries"),
    "eomt_base_640": GENERAL.published(eomt_base_640, "eomt", "pretrained", "queries"),
    "eomt_large_640": GENERAL.published(eomt_large_640, "eomt", "pretrained", "queries"),
    "eomt_large_1280": GENERAL.published(eomt_large_1280, "eomt", "pretrained", "queries"),
    "eomt_giant_640": GENERAL.published(eomt_giant_640, "eomt", "pretrained", "queries"),
    "eomt_giant_1280": GENERAL.published(eomt_giant_1280, "eomt", "pretrained", "queries"),
    "eomt_dinov3_small_640": DINOV3.published(eomt_dinov3_small_640, "eomt", "pretrained", "queries"),
    "eomt_dinov3_base_640": DINOV3.published(eomt_dinov3_base_640, "eomt", "pretrained", "queries"),
    "eomt_dinov3_large_640": DINOV3.published(eomt_dinov3_large_640, "eomt", "pretrained", "queries"),
    "eomt_dinov3_large_1280": DINOV3.published(eomt_dinov3_large_1280, "eomt", "pretrained", "queries"),
}
