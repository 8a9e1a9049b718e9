"""DETR. Carion, Massa, Synnaeve et al.: End-to-End Object Detection with Transformers, ECCV 2020.

A set of queries attends to the encoded image; each predicts one class (or "no object") and one box. With a mask head on
top, every query predicts a mask as well, for stuff too: panoptic segmentation. It is trained at once or in two steps.
In two steps, a detection model is trained on the boxes of all segments, its weights are loaded into the panoptic model
(which has the same keys), and then the mask head alone is trained.

COCO val2017 (official): box AP R50 42.0, DC5-R50 43.3, R101 43.5; panoptic PQ R50 43.4, DC5-R50 44.6, R101 45.1.
Differs from the official repository: masks are computed for chosen queries only. A 3×3 convolution of a sum is the sum
of convolutions, so what all queries share passes through the mask head once (`MaskHead.shared`). True boxes end at
pixel edges. See docs/systems/detr.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pansight.errors import PansightError
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.queries.mask_head import AttentionMap, MaskHead
from pansight.nn.queries.transformer import MLP, TransformerDecoder, TransformerEncoder
from pansight.ops.attention.positions import resize_valid, sine_positions
from pansight.ops.fusion.decode import TASKS, checked_task
from pansight.ops.fusion.queries import Canvas, fuse_detr, fuse_hf, keep_queries, semantic_map
from pansight.ops.queries.losses import box_losses, dice_loss, set_class_loss, sigmoid_focal_loss
from pansight.ops.queries.matching import Matches, box_cost, class_cost, hungarian
from pansight.ops.queries.targets import dense_masks, padded_labels, segment_targets
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import InstanceTargets, valid_extents
from pansight.types import Batch, Instances, LabelSpace, Prediction

CHUNK_ELEMENTS = 1 << 23
"""The largest number of elements of a tensor in the mask head; more queries are processed in several chunks."""


class DETROutputs(NamedTuple):
    class_logits: Tensor  # (B, Q, C + 1), no object last
    boxes_cxcywh: Tensor  # float32 (B, Q, 4), 0 … 1 of the unpadded image
    queries: Tensor  # (B, Q, D), the decoder's last layer
    memory: Tensor  # (B, h, w, D), the encoded image
    valid: Tensor  # bool (B, h, w), False on padding
    shared: tuple[Tensor, ...]  # the mask head's part that no query changes, see MaskHead.shared; () without one
    extents: Tensor  # int64 (B, 2): (height, width) of the unpadded part of each image
    canvas: Tensor  # int64 (B, 2): (height, width) with the padding


class LossWeights(NamedTuple):
    """Weights of the losses; class and boxes have the same in the matching. no_object: the weight of that class."""

    classes: float = 1.0
    box: float = 5.0
    giou: float = 2.0
    mask: float = 1.0
    dice: float = 1.0
    no_object: float = 0.1


class Transformer(nn.Module):
    def __init__(
        self, channels: int, heads: int, hidden: int, encoder_layers: int, decoder_layers: int, dropout: float
    ):
        super().__init__()
        self.encoder = TransformerEncoder(encoder_layers, channels, heads, hidden, dropout)
        self.decoder = TransformerDecoder(decoder_layers, channels, heads, hidden, dropout)


class DETR(nn.Module):
    """`mask_head` and `bbox_attention` are both there (panoptic) or both None (detection, of things alone).

    transformer, query_embed (Q, D), class_embed and bbox_embed, which all decoder layers share. auxiliary: every
    decoder layer learns, not the last alone. score_threshold: default of `decode`.
    """

    def __init__(
        self,
        backbone: Backbone,
        transformer: Transformer,
        query_embed: nn.Embedding,
        class_embed: nn.Module,
        labels: LabelSpace,
        resize: ResizeRule,
        auxiliary: bool = True,
        weights: LossWeights | None = None,
        score_threshold: float = 0.0,
        mask_head: MaskHead | None = None,
        bbox_attention: AttentionMap | None = None,
        stuff: bool = False,
    ):
        super().__init__()
        channels = query_embed.embedding_dim
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.channels[-1], channels, 1)
        self.transformer = transformer
        self.query_embed = query_embed
        self.class_embed = class_embed
        self.bbox_embed = MLP(channels, channels, channels, 4)
        self.mask_head = mask_head
        self.bbox_attention = bbox_attention
        self.stuff = stuff
        self.labels = labels
        self.resize = resize
        self.auxiliary = auxiliary
        self.weights = weights or LossWeights()
        self.score_threshold = score_threshold
        self.mask_threshold = 0.5
        self.overlap = 0.8

    def _encode(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """→ maps of the backbone; projected (B, D, h, w); memory, positions (B, N, D); valid (B, h, w)."""
        maps = self.backbone(images, valid)
        projected = self.input_proj(maps[-1])
        size = (projected.shape[2], projected.shape[3])
        if valid is None:
            small, mask = torch.ones((len(images), *size), dtype=torch.bool, device=images.device), None
        else:
            small = resize_valid(valid, size)
            mask = small.flatten(1)[:, None, None]  # (B, 1, 1, N)
        positions = sine_positions(small, projected.shape[1]).flatten(1, 2)
        memory = self.transformer.encoder(projected.flatten(2).transpose(1, 2), positions, mask)
        return maps, projected, memory, positions, small

    def _predict(
        self, images: Tensor, valid: Tensor | None, every: bool, frozen: bool = False
    ) -> tuple[Tensor, Tensor, DETROutputs]:
        """→ class logits (L, B, Q, C + 1), boxes (L, B, Q, 4) of `every` layer or the last; all else of the last.

        frozen: only what the mask head makes has a gradient.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            maps, projected, memory, positions, small = self._encode(images, valid)
            mask = None if valid is None else small.flatten(1)[:, None, None]  # (B, 1, 1, N)
            layers = self.transformer.decoder(self.query_embed.weight, memory, positions, mask, every)  # (L, B, Q, D)
            classes = self.class_embed(layers)
            boxes = self.bbox_embed(layers).float().sigmoid()
        shared = () if self.mask_head is None else self.mask_head.shared(projected, maps[-2::-1][:3])
        extents = valid_extents(images, valid)
        outputs = DETROutputs(
            classes[-1],
            boxes[-1],
            layers[-1],
            memory.unflatten(1, small.shape[1:]),  # (B, h, w, D)
            small,
            shared,
            extents,
            torch.tensor(images.shape[2:], device=images.device).expand_as(extents),
        )
        return classes, boxes, outputs

    def forward(self, images: Tensor, valid: Tensor | None = None) -> DETROutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding (which is masked)."""
        return self._predict(images, valid, every=False)[2]

    def mask_logits(self, outputs: DETROutputs, image: int, queries: Tensor | None = None) -> Tensor:
        """float32 (K, H / 4, W / 4) of the given queries (int64 (K,)) of one image; of all where none are given."""
        assert self.mask_head is not None  # asked of a panoptic model only
        assert self.bbox_attention is not None
        states = outputs.queries[image] if queries is None else outputs.queries[image, queries]
        shared = [part[image : image + 1] for part in outputs.shared]
        if not len(states):
            return states.new_zeros((0, *shared[-1].shape[2:]), dtype=torch.float32)
        chunk = max(1, CHUNK_ELEMENTS // max(1, shared[-1][0].numel()))
        half = shared[0].dtype != torch.float32 and self.mask_head.lay1.weight.dtype == torch.float32
        learning = torch.is_grad_enabled() and not states.is_inference()
        autocast = torch.autocast(states.device.type, dtype=shared[0].dtype if half else None, enabled=half)
        with torch.set_grad_enabled(learning), autocast:
            parts = [
                self.mask_head(shared, self.bbox_attention(some, outputs.memory[image], outputs.valid[image])).float()
                for some in states.split(chunk)
            ]
        return torch.cat(parts)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Classes and boxes of every layer; with a mask head, the masks of the last layer's matched queries.

        Detection learns things, panoptic segmentation every segment. Where a mask head, but no parameter of the
        detector is trained (the second step), the detector runs without gradient and only masks are reported.
        """
        targets = segment_targets(batch, self.labels, things_only=self.mask_head is None and not self.stuff)
        frozen = self.mask_head is not None and self._detector_is_frozen()
        classes, boxes, outputs = self._predict(batch.images, batch.valid, self.auxiliary and not frozen, frozen)
        labels, counts = padded_labels(targets)
        sides = outputs.extents.flip(1).repeat(1, 2)  # (B, 4) width, height, width, height
        wanted = [box_xyxy_to_cxcywh(t.boxes_xyxy / side) for t, side in zip(targets, sides, strict=True)]
        true_boxes = nn.utils.rnn.pad_sequence(wanted, batch_first=True)  # (B, N, 4)
        matches = self._match(classes, boxes, labels, true_boxes, counts)
        total = max(1, sum(counts))
        weights, losses = self.weights, dict[str, Tensor]()
        if not frozen:
            pairs = boxes[matches.layer, matches.image, matches.query]  # (M, 4)
            distance, overlap = box_losses(pairs, true_boxes[matches.image, matches.target])  # (M,) each
            losses["class"] = weights.classes * set_class_loss(classes, matches, labels, weights.no_object).sum()
            losses["box"] = weights.box * distance.sum() / total + 0.0 * boxes.sum()
            losses["giou"] = weights.giou * overlap.sum() / total
        if self.mask_head is not None:
            last = matches.layer == len(classes) - 1
            pairs = Matches(*(column[last] for column in matches))
            canvas = (batch.images.shape[2], batch.images.shape[3])
            focal, dice = self._mask_losses(outputs, pairs, targets, canvas)
            losses["mask"] = weights.mask * focal / total
            losses["dice"] = weights.dice * dice / total
        return losses

    def _detector_is_frozen(self) -> bool:
        heads = ("mask_head.", "bbox_attention.")
        return not any(p.requires_grad for name, p in self.named_parameters() if not name.startswith(heads))

    def _match(
        self, classes: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor, counts: Sequence[int]
    ) -> Matches:
        """Eq. 1 and 2, with masks left out: (L, B, Q, C + 1), (L, B, Q, 4), (B, N), (B, N, 4)."""
        with torch.no_grad():
            distance, overlap = box_cost(boxes, true_boxes)
            cost = self.weights.classes * class_cost(classes, labels)
            cost += self.weights.box * distance + self.weights.giou * overlap
        return hungarian(cost, counts)

    def _mask_losses(
        self, outputs: DETROutputs, matches: Matches, targets: Sequence[InstanceTargets], canvas: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """(focal loss, dice loss), each summed over the matched pairs of one layer."""
        focal = dice = torch.zeros((), device=matches.query.device)
        if not len(matches.query):  # every parameter needs a gradient, if only zero, since other processes wait for it
            first = torch.zeros(1, dtype=torch.int64, device=focal.device)
            focal = 0.0 * self.mask_logits(outputs, 0, first).sum()
        for image, target in enumerate(targets):
            chosen = matches.image == image
            queries, wanted = matches.query[chosen], matches.target[chosen]
            if not len(queries):
                continue
            masks = self.mask_logits(outputs, image, queries)  # (M, h, w)
            chunk = max(1, CHUNK_ELEMENTS // (canvas[0] * canvas[1]))
            for logits, index in zip(masks.split(chunk), wanted.split(chunk), strict=True):
                # full-size maps are checkpointed (computed again in the backward pass): each mask has about ten of them
                a, b = checkpoint(
                    pixel_losses, logits, target, index, canvas, use_reentrant=False, preserve_rng_state=False
                )
                focal, dice = focal + a, dice + b
        return focal, dice

    def decode(
        self,
        outputs: DETROutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap: float | None = None,
        task: str | None = None,
        hf_compat: bool = False,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own.

        task: "panoptic" (None), "instance", "semantic" or "all"; a detection model always gives boxes (None,
        "instance" or "all"). score_threshold: of the panoptic map, or of a detection model's boxes; an instance mask
        is where the probability is above mask_threshold. hf_compat: the panoptic map by transformers' rules, the only
        ones that use mask_threshold and overlap; they ignore padding.
        """
        boxes_only = self.mask_head is None
        task = checked_task(task, *(("instance", ("instance", "all")) if boxes_only else ("panoptic", TASKS)))
        score_threshold = self.score_threshold if score_threshold is None else score_threshold
        mask_threshold = self.mask_threshold if mask_threshold is None else mask_threshold
        overlap = self.overlap if overlap is None else overlap
        predictions: list[Prediction] = []
        places = zip(outputs.canvas.tolist(), outputs.extents.tolist(), sizes, strict=True)
        for image, (padded, extent, size) in enumerate(places):
            canvas = Canvas((padded[0], padded[1]), (extent[0], extent[1]), size)
            classes = outputs.class_logits[image].float()
            panoptic = semantic = instances = masks = None
            if boxes_only:
                instances, _ = self._boxes(outputs, image, size, score_threshold)
            elif task != "panoptic":
                masks = self.mask_logits(outputs, image)
            if task in ("panoptic", "all") and not boxes_only:
                kept = keep_queries(classes, score_threshold)
                of_kept = self.mask_logits(outputs, image, kept.queries) if masks is None else masks[kept.queries]
                if hf_compat:
                    panoptic = fuse_hf(of_kept, kept, size, self.labels, overlap, mask_threshold)
                else:
                    panoptic = fuse_detr(of_kept, kept, canvas, self.labels)
            if masks is not None and task != "instance":
                semantic = semantic_map(classes, masks, canvas)
            if masks is not None and task != "semantic":
                found, queries = self._boxes(outputs, image, size, 0.0)
                instances = replace(found, masks=binary_masks(masks[queries], canvas, mask_threshold))
            predictions.append(Prediction(panoptic, semantic, instances))
        return predictions

    def _boxes(
        self, outputs: DETROutputs, image: int, size: tuple[int, int], score_threshold: float
    ) -> tuple[Instances, Tensor]:
        """Each query as an instance of its most probable thing class, by falling score, and its index, int64 (N,)."""
        thing = torch.tensor([c.is_thing for c in self.labels], device=outputs.extents.device)
        probabilities = outputs.class_logits[image].float().softmax(1)[:, :-1]  # (Q, C)
        scores, best = probabilities.masked_fill(~thing, 0.0).max(1)  # (Q,)
        side = torch.tensor([size[1], size[0]] * 2, device=scores.device)
        boxes = box_cxcywh_to_xyxy(outputs.boxes_cxcywh[image]).clamp(0, 1) * side  # (Q, 4)
        queries = scores.argsort(descending=True, stable=True)
        usable = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores >= score_threshold) & thing[best]
        queries = queries[usable[queries]]
        return Instances(boxes[queries], best[queries], scores[queries]), queries


def pixel_losses(
    logits: Tensor, targets: InstanceTargets, index: Tensor, canvas: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(focal loss, dice loss), each summed over M masks: logits (M, h, w) on the padded canvas, index int64 (M,)."""
    logits = F.interpolate(logits.unsqueeze(1), canvas, mode="bilinear", align_corners=False).flatten(1)  # (M, H · W)
    wanted = dense_masks(targets, canvas, index).flatten(1)
    return sigmoid_focal_loss(logits, wanted).sum(), dice_loss(logits, wanted).sum()


def binary_masks(logits: Tensor, canvas: Canvas, threshold: float) -> Tensor:
    """DETR's PostProcessSegm: bilinear to the canvas, σ > threshold, cut, nearest to the file: bool (N, H, W)."""
    height, width = canvas.extent
    level = torch.tensor(threshold).logit().item()
    masks = torch.empty((len(logits), *canvas.size), dtype=torch.bool, device=logits.device)
    for mask, logit in zip(masks, logits, strict=True):
        full = F.interpolate(logit[None, None], canvas.padded, mode="bilinear", align_corners=False)
        inside = (full[:, :, :height, :width] > level).byte()
        mask.copy_(F.interpolate(inside, canvas.size)[0, 0])
    return masks


def detr(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    channels: int = 256,
    heads: int = 8,
    hidden: int = 2048,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    queries: int = 100,
    auxiliary: bool = True,
    class_hidden: Sequence[int] = (),
    frozen_bn: bool = True,
    freeze_stages: int = 0,
    dilate: bool = False,
    class_weight: float = 1.0,
    box_weight: float = 5.0,
    giou_weight: float = 2.0,
    no_object: float = 0.1,
    score_threshold: float = 0.0,
    stuff: bool = False,
) -> DETR:
    """DETR for boxes on any timm backbone. short, long: the resizing rule in pixels (short 0: keep the size).

    stuff: learn the boxes of stuff too, which decode leaves out: the first of two steps to panoptic segmentation.

    hidden: width of the feed-forward blocks. auxiliary: losses of the earlier decoder layers too. class_hidden: widths
    of hidden layers of the class head, none in the paper. dilate: stride 16 at the end of the backbone (DC5).
    Raises PansightError where channels are no multiple of 16 and of heads.
    """
    if channels % 16 or channels % heads:
        raise PansightError(f"channels: expected a multiple of 16 and of heads ({heads}), found {channels}")
    last = 16 if dilate else 32
    net = timm_backbone(backbone, pretrained, (4, 8, 16, last), frozen_bn, freeze_stages, output_stride=last)
    sizes = (channels, *class_hidden, len(labels) + 1)
    return DETR(
        net,
        Transformer(channels, heads, hidden, encoder_layers, decoder_layers, dropout),
        nn.Embedding(queries, channels),
        MLP(*sizes) if class_hidden else nn.Linear(channels, len(labels) + 1),
        labels,
        ResizeRule(short, long, divisor=1),  # padding is masked, so it needs no multiple of anything
        auxiliary,
        LossWeights(class_weight, box_weight, giou_weight, no_object=no_object),
        score_threshold,
        stuff=stuff,
    )


def detr_panoptic(
    labels: LabelSpace,
    backbone: str = "resnet50",
    pretrained: str = "none",
    short: int = 800,
    long: int = 1333,
    channels: int = 256,
    heads: int = 8,
    hidden: int = 2048,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    dropout: float = 0.1,
    queries: int = 100,
    auxiliary: bool = True,
    class_hidden: Sequence[int] = (),
    frozen_bn: bool = True,
    freeze_stages: int = 0,
    dilate: bool = False,
    class_weight: float = 1.0,
    box_weight: float = 5.0,
    giou_weight: float = 2.0,
    mask_weight: float = 1.0,
    dice_weight: float = 1.0,
    no_object: float = 0.1,
    score_threshold: float = 0.85,
) -> DETR:
    """DETR with a mask head: panoptic segmentation. Options as of `detr`; score_threshold: of the panoptic map."""
    net = detr(
        labels,
        backbone,
        pretrained,
        short,
        long,
        channels,
        heads,
        hidden,
        encoder_layers,
        decoder_layers,
        dropout,
        queries,
        auxiliary,
        class_hidden,
        frozen_bn,
        freeze_stages,
        dilate,
    )
    return DETR(
        net.backbone,
        net.transformer,
        net.query_embed,
        net.class_embed,
        labels,
        net.resize,
        auxiliary,
        LossWeights(class_weight, box_weight, giou_weight, mask_weight, dice_weight, no_object),
        score_threshold,
        MaskHead(channels, heads, net.backbone.channels[-2::-1][:3]),
        AttentionMap(channels, heads),
    )


R50, R101 = "resnet50.tv_in1k", "resnet101.tv_in1k"


def detr_r50(labels: LabelSpace, pretrained: str = "none", queries: int = 100, stuff: bool = False) -> DETR:
    """41,302,368 trained parameters for COCO's 91 ids, 222,400 frozen (the stem and the first stage)."""
    return detr(labels, R50, pretrained, queries=queries, freeze_stages=2, stuff=stuff)


def detr_r50_dc5(labels: LabelSpace, pretrained: str = "none", queries: int = 100, stuff: bool = False) -> DETR:
    """As many parameters as `detr_r50`; the last stage dilated, so that the map has four times the places."""
    return detr(labels, R50, pretrained, queries=queries, freeze_stages=2, dilate=True, stuff=stuff)


def detr_r101(labels: LabelSpace, pretrained: str = "none", queries: int = 100, stuff: bool = False) -> DETR:
    """60,242,272 trained parameters for COCO's 91 ids."""
    return detr(labels, R101, pretrained, queries=queries, freeze_stages=2, stuff=stuff)


def detr_panoptic_r50(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> DETR:
    """42,899,288 parameters for COCO panoptic's 250 ids, 1,333,657 of them for the masks, 222,400 frozen."""
    return detr_panoptic(labels, R50, pretrained, queries=queries, freeze_stages=2)


def detr_panoptic_r50_dc5(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> DETR:
    """As many parameters as `detr_panoptic_r50`; the last stage dilated."""
    return detr_panoptic(labels, R50, pretrained, queries=queries, freeze_stages=2, dilate=True)


def detr_panoptic_r101(labels: LabelSpace, pretrained: str = "none", queries: int = 100) -> DETR:
    """61,839,192 parameters for COCO panoptic's 250 ids."""
    return detr_panoptic(labels, R101, pretrained, queries=queries, freeze_stages=2)
