"""DETR. Carion, Massa, Synnaeve et al.: End-to-End Object Detection with Transformers, ECCV 2020.

A set of queries attends to the encoded image; each predicts one class (or "no object") and one box. With a mask head on
top, every query predicts a mask as well, for stuff too: panoptic segmentation. It is trained at once or in two steps.
In two steps, a detection model is trained on the boxes of all segments, its weights are loaded into the panoptic model
(which has the same keys), and then the mask head alone is trained.

COCO val2017 (official): box AP R50 42.0, DC5-R50 43.3, R101 43.5; panoptic PQ R50 43.4, DC5-R50 44.6, R101 45.1.
Differs from the official repository: masks are made of chosen queries only; true boxes end at pixel edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.models.contract import Entry, TrainingDefaults, every_class_and_no_object
from pansight.models.options import TRANSFORMER_OPTIONS, Option, flag, loss_weight, whole
from pansight.nn.backbones.pyramid import Backbone, timm_backbone
from pansight.nn.input import Input
from pansight.nn.queries.mask_head import AttentionMap, MaskHead
from pansight.nn.queries.transformer import MLP, TransformerDecoder, TransformerEncoder
from pansight.ops.attention.positions import resize_valid, sine_positions
from pansight.ops.fast.memory import checkpointed
from pansight.ops.fusion.exported import QueryOutputs
from pansight.ops.fusion.queries import TASKS, Canvas, binary_masks, checked_task, fuse_detr, keep_queries, semantic_map
from pansight.ops.queries.losses import box_losses, pixel_losses, set_class_loss, set_counts
from pansight.ops.queries.matching import Matches, box_cost, class_cost, hungarian
from pansight.ops.queries.targets import SegmentTargets, padded_categories, segment_targets
from pansight.ops.regions.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from pansight.ops.resize import ResizeRule
from pansight.ops.targets import valid_extents
from pansight.types import Batch, Instances, LabelSpace, Prediction

CHUNK_ELEMENTS = 1 << 23
"""How many pixels of full size the loss looks at together; more masks come in turns."""


class DETROutputs(NamedTuple):
    class_logits: Tensor  # (B, Q, C + 1), no object last
    boxes_cxcywh: Tensor  # float32 (B, Q, 4), 0 … 1 of the unpadded image
    queries: Tensor  # (B, Q, D), the decoder's last layer
    memory: Tensor  # (B, h, w, D), the encoded image
    valid: Tensor  # bool (B, h, w), False on padding
    projected: Tensor  # (B, D, h, w), the image before the encoder
    adapted: tuple[Tensor, ...]  # the backbone's maps for the mask head, see MaskHead.adapted; () without one
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
        input: Input,
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
        self.input = input
        self.auxiliary = auxiliary
        self.weights = weights or LossWeights()
        self.score_threshold = score_threshold
        self.mask_threshold = 0.5

    def _encode(self, images: Tensor, valid: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """→ maps of the backbone; projected (B, D, h, w); memory, positions (B, N, D); valid (B, h, w)."""
        maps = self.backbone(self.input(images, valid))
        projected = self.input_proj(maps[-1])
        size = (projected.shape[2], projected.shape[3])
        if valid is None:
            small, mask = torch.ones((images.shape[0], *size), dtype=torch.bool, device=images.device), None
        else:
            small = resize_valid(valid, size)
            mask = small.flatten(1)[:, None, None]  # (B, 1, 1, N)
        positions = sine_positions(small, projected.shape[1]).flatten(1, 2)
        memory = self.transformer.encoder(projected.flatten(2).transpose(1, 2), positions, mask)
        return maps, projected, memory, positions, small

    def _predict(
        self, images: Tensor, valid: Tensor | None, all_layers: bool, frozen: bool = False
    ) -> tuple[Tensor, Tensor, DETROutputs]:
        """→ class logits (L, B, Q, C + 1), boxes (L, B, Q, 4) of `all_layers` or the last; all else of the last.

        frozen: only what the mask head makes has a gradient.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            maps, projected, memory, positions, small = self._encode(images, valid)
            mask = None if valid is None else small.flatten(1)[:, None, None]  # (B, 1, 1, N)
            queries = self.query_embed.weight  # (Q, D)
            layers = self.transformer.decoder(queries, memory, positions, mask, all_layers)  # (L, B, Q, D)
            classes = self.class_embed(layers)
            boxes = self.bbox_embed(layers).float().sigmoid()
        adapted = () if self.mask_head is None else self.mask_head.adapted(maps[-2::-1][:3])
        extents = valid_extents(images, valid)
        outputs = DETROutputs(
            classes[-1],
            boxes[-1],
            layers[-1],
            memory.unflatten(1, small.shape[1:]),  # (B, h, w, D)
            small,
            projected,
            adapted,
            extents,
            torch.tensor(images.shape[2:], device=images.device).expand_as(extents),
        )
        return classes, boxes, outputs

    def forward(self, images: Tensor, valid: Tensor | None = None) -> DETROutputs:
        """images uint8 (B, 3, H, W) of any size, valid bool (B, H, W), False on padding (which no query looks at)."""
        return self._predict(images, valid, all_layers=False)[2]

    def last_steps(self, outputs: DETROutputs) -> QueryOutputs:
        """The same with the masks of all queries where there is a mask head, as an exported graph gives them."""
        masks = None
        if self.mask_head is not None:
            masks = torch.stack([self.mask_logits(outputs, image) for image in range(len(outputs.class_logits))])
        return QueryOutputs(outputs.class_logits, outputs.extents, outputs.canvas[0], masks, outputs.boxes_cxcywh)

    def mask_logits(self, outputs: DETROutputs | QueryOutputs, image: int, queries: Tensor | None = None) -> Tensor:
        """float32 (K, H / 4, W / 4) of the given queries (int64 (K,)) of one image; of all where none are given."""
        if isinstance(outputs, QueryOutputs):
            return outputs.masks(image, queries)
        assert self.mask_head is not None  # asked of a panoptic model only
        assert self.bbox_attention is not None
        states = outputs.queries[image] if queries is None else outputs.queries[image, queries]
        projected, *adapted = (part[image : image + 1] for part in (outputs.projected, *outputs.adapted))
        if not len(states):
            return states.new_zeros((0, *adapted[-1].shape[2:]), dtype=torch.float32)
        half = projected.dtype != torch.float32 and self.mask_head.lay1.weight.dtype == torch.float32
        learning = torch.is_grad_enabled() and not states.is_inference()
        autocast = torch.autocast(states.device.type, dtype=projected.dtype if half else None, enabled=half)
        with torch.set_grad_enabled(learning), autocast:
            attention = self.bbox_attention(states, outputs.memory[image], outputs.valid[image])
            return self.mask_head(projected, adapted, attention).float()

    def _targets(self, batch: Batch) -> list[SegmentTargets]:
        """Detection learns things, panoptic segmentation every segment."""
        return segment_targets(batch, self.labels, things_only=self.mask_head is None and not self.stuff)

    def counts(self, batch: Batch) -> dict[str, float]:
        """What `loss` divides by, for these images, which may be a part of a step: see `set_counts`."""
        return set_counts(self._targets(batch), self.query_embed.num_embeddings, self.weights.no_object)

    def loss(self, batch: Batch, totals: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Classes and boxes of every layer; with a mask head, the masks of the last layer's matched queries.

        Where a mask head, but no parameter of the detector is trained (the second step), the detector runs without
        gradient and only masks are reported. totals: the sum of `counts` over the parts of the step; None: `batch` is
        the whole of it.
        """
        targets = self._targets(batch)
        frozen = self.mask_head is not None and self._detector_is_frozen()
        classes, boxes, outputs = self._predict(batch.images, batch.valid, self.auxiliary and not frozen, frozen)
        labels, counts = padded_categories(targets)
        sides = outputs.extents.flip(1).repeat(1, 2)  # (B, 4) width, height, width, height
        wanted = [box_xyxy_to_cxcywh(t.boxes_xyxy / side) for t, side in zip(targets, sides, strict=True)]
        true_boxes = nn.utils.rnn.pad_sequence(wanted, batch_first=True)  # (B, N, 4)
        matches = self._match(classes, boxes, labels, true_boxes, counts)
        segments = max(1, sum(counts) if totals is None else totals["segments"])
        weights, losses = self.weights, dict[str, Tensor]()
        if not frozen:
            pairs = boxes[matches.layer, matches.image, matches.query]  # (M, 4)
            distance, overlap = box_losses(pairs, true_boxes[matches.image, matches.target])  # (M,) each
            weight = None if totals is None else totals["query_weight"]
            per_layer = set_class_loss(classes, matches, labels, weights.no_object, weight)
            losses["class"] = weights.classes * per_layer.sum()
            losses["box"] = weights.box * distance.sum() / segments + 0.0 * boxes.sum()
            losses["giou"] = weights.giou * overlap.sum() / segments
        if self.mask_head is not None:
            last = matches.layer == len(classes) - 1
            pairs = Matches(*(column[last] for column in matches))
            canvas = (batch.images.shape[2], batch.images.shape[3])
            focal, dice = self._mask_losses(outputs, pairs, targets, canvas)
            losses["mask"] = weights.mask * focal / segments
            losses["dice"] = weights.dice * dice / segments
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
        self, outputs: DETROutputs, matches: Matches, targets: Sequence[SegmentTargets], canvas: tuple[int, int]
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
                # full-size maps are computed again in the backward pass: there are about ten of them for each mask
                a, b = checkpointed(pixel_losses, logits, target, index, canvas)
                focal, dice = focal + a, dice + b
        return focal, dice

    def decode(
        self,
        outputs: DETROutputs | QueryOutputs,
        sizes: Sequence[tuple[int, int]],
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        task: str | None = None,
    ) -> list[Prediction]:
        """Predictions at the original `sizes` (H, W). Thresholds left out are the model's own.

        task: "panoptic" (None), "instance", "semantic" or "all"; a detection model always gives boxes (None,
        "instance" or "all"). score_threshold: of the panoptic map, or of a detection model's boxes; an instance mask
        is where the probability is above mask_threshold.
        """
        boxes_only = self.mask_head is None
        task = checked_task(task, *(("instance", ("instance", "all")) if boxes_only else ("panoptic", TASKS)))
        score_threshold = self.score_threshold if score_threshold is None else score_threshold
        mask_threshold = self.mask_threshold if mask_threshold is None else mask_threshold
        predictions: list[Prediction] = []
        places = zip(outputs.canvas.expand_as(outputs.extents).tolist(), outputs.extents.tolist(), sizes, strict=True)
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
                panoptic = fuse_detr(of_kept, kept, canvas, self.labels)
            if masks is not None and task != "instance":
                semantic = semantic_map(classes, masks, canvas)
            if masks is not None and task != "semantic":
                found, queries = self._boxes(outputs, image, size, 0.0)
                instances = replace(found, masks=binary_masks(masks[queries], canvas, mask_threshold))
            predictions.append(Prediction(panoptic, semantic, instances))
        return predictions

    def _boxes(
        self, outputs: DETROutputs | QueryOutputs, image: int, size: tuple[int, int], score_threshold: float
    ) -> tuple[Instances, Tensor]:
        """Each query as an instance of its most probable thing class, by falling score, and its index, int64 (N,)."""
        thing = torch.tensor([c.is_thing for c in self.labels], device=outputs.extents.device)
        probabilities = outputs.class_logits[image].float().softmax(1)[:, :-1]  # (Q, C)
        scores, best = probabilities.masked_fill(~thing, 0.0).max(1)  # (Q,)
        side = torch.tensor([size[1], size[0]] * 2, device=scores.device)
        assert outputs.boxes_cxcywh is not None
        boxes = box_cxcywh_to_xyxy(outputs.boxes_cxcywh[image]).clamp(0, 1) * side  # (Q, 4)
        queries = scores.argsort(descending=True, stable=True)
        usable = (boxes[:, 2:] > boxes[:, :2]).all(1) & (scores >= score_threshold) & thing[best]
        queries = queries[usable[queries]]
        return Instances(boxes[queries], best[queries], scores[queries]), queries

    def set_progress(self, share: float) -> None:
        """Nothing changes as training progresses."""


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
    class_relu: bool = True,
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
    of hidden layers of the class head, none in the paper. class_relu: ReLU between them. dilate: stride 16 at the
    end of the backbone (DC5).
    Raises PansightError where channels are no multiple of 16 and of heads.
    """
    if channels % 16 or channels % heads:
        raise PansightError(where="channels", expected=f"a multiple of 16 and of heads ({heads})", found=channels)
    last = 16 if dilate else 32
    net = timm_backbone(backbone, pretrained, (4, 8, 16, last), frozen_bn, freeze_stages, output_stride=last)
    sizes = (channels, *class_hidden, len(labels) + 1)
    return DETR(
        net,
        Transformer(channels, heads, hidden, encoder_layers, decoder_layers, dropout),
        nn.Embedding(queries, channels),
        MLP(*sizes, relu=class_relu) if class_hidden else nn.Linear(channels, len(labels) + 1),
        labels,
        # padding is masked, so it needs no multiple of anything
        Input(ResizeRule(short, long, divisor=1, rounding="detr"), net.pixels),
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
    class_relu: bool = True,
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
    size = channels, heads, hidden, encoder_layers, decoder_layers, dropout, queries
    parts = auxiliary, class_hidden, class_relu, frozen_bn, freeze_stages, dilate
    net = detr(labels, backbone, pretrained, short, long, *size, *parts)
    return DETR(
        net.backbone,
        net.transformer,
        net.query_embed,
        net.class_embed,
        labels,
        net.input,
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


OPTIONS: dict[str, Option] = {
    **TRANSFORMER_OPTIONS,
    "channels": whole("width of the transformer", 16, 4096, 16, "heads"),
    "auxiliary": flag("the earlier decoder layers have losses too"),
    "class_hidden": Option("widths of hidden layers of the class head; none in the paper", "whole numbers", 1, 65_536),
    "class_relu": flag("ReLU between the hidden layers of the class head"),
    "dilate": flag("the backbone's last stage is dilated to stride 16 (DC5)"),
    "box_weight": loss_weight("the L1 distance of boxes"),
    "giou_weight": loss_weight("the overlap (GIoU) of boxes"),
    "stuff": flag("learn boxes of stuff too: the first of two steps to panoptic segmentation"),
}

TINY: dict[str, Any] = {"backbone": "resnet10t", "short": 0, "long": 0, "queries": 12, "channels": 64, "heads": 4}
TINY |= {"hidden": 32, "encoder_layers": 1, "decoder_layers": 2}

BOXES = Entry(
    detr,
    architecture="detr",
    produces=("instances",),
    options=OPTIONS,
    tasks=("instance", "all"),
    backbone="pyramid",
    adapts=("pretrained", "frozen_bn", "short", "queries"),
    training=TrainingDefaults(lr=1e-4, backbone_lr_factor=0.1, clip_norm=0.1),
    class_rows={"class_embed": every_class_and_no_object},
    queries=("query_embed.weight",),
    licence="apache-2.0",
    stuff="stuff",
    small={"channels": 128, "hidden": 256, "encoder_layers": 2, "decoder_layers": 3},
    tiny=TINY,
)
PANOPTIC = replace(BOXES, build=detr_panoptic, produces=("panoptic", "semantic", "instances"), tasks=TASKS, stuff="")
ENTRIES: dict[str, Entry] = {
    "detr": BOXES,
    "detr_r50": BOXES.published(detr_r50, "detr", "pretrained", "queries"),
    "detr_r50_dc5": BOXES.published(detr_r50_dc5, "detr", "pretrained", "queries"),
    "detr_r101": BOXES.published(detr_r101, "detr", "pretrained", "queries"),
    "detr_panoptic": PANOPTIC,
    "detr_panoptic_r50": PANOPTIC.published(detr_panoptic_r50, "detr_panoptic", "pretrained", "queries"),
    "detr_panoptic_r50_dc5": PANOPTIC.published(detr_panoptic_r50_dc5, "detr_panoptic", "pretrained", "queries"),
    "detr_panoptic_r101": PANOPTIC.published(detr_panoptic_r101, "detr_panoptic", "pretrained", "queries"),
}
