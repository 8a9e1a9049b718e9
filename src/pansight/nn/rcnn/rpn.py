"""The region proposal network. Ren et al., Faster R-CNN, NeurIPS 2015; on a pyramid: Lin et al., CVPR 2017, 4.1."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.nn.fpn import separable_conv
from pansight.ops.regions import boxes as box_ops
from pansight.ops.regions.losses import box_loss, objectness_loss
from pansight.ops.targets import InstanceTargets

CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


class Proposals(NamedTuple):
    """Boxes that may hold an object, of all images of a batch, grouped by image, by falling score within one."""

    boxes_xyxy: Tensor  # float32 (P, 4), network pixels
    image_index: Tensor  # int64 (P,)


class AnchorSample(NamedTuple):
    """N anchors of a batch to learn from, drawn at random; the P objects among them.

    A place is the number of the image times the anchors of an image, plus the number of the anchor.
    """

    place: Tensor  # int64 (N,)
    label: Tensor  # float32 (N,), 1 where there is an object
    positive: Tensor  # int64 (P,), places
    codes: Tensor  # float32 (P, 4): what the deltas should be


class RPNOutputs(NamedTuple):
    """Per level: logits (B, A, H, W) and deltas (B, 4 A, H, W), channel a · 4 + c."""

    logits: list[Tensor]
    deltas: list[Tensor]


def cell_anchors(size: float, ratios: Sequence[float], rounded: bool) -> Tensor:
    """Anchors around the origin: float32 (A, 4). ratio = height / width at the area size²; `rounded` to integers."""
    ratio = torch.tensor(ratios, dtype=torch.float32)
    height = size * ratio.sqrt()
    width = size * (1 / ratio.sqrt())
    anchors = torch.stack((-width, -height, width, height), dim=1) / 2
    return anchors.round() if rounded else anchors


class RPN(nn.Module):
    """Scores and refines anchors at every position of every level.

    anchor_sizes: one per level, or several for each, in pixels; ratios: height / width; rounded_anchors: to integers,
    as torchvision.
    strides: pixels between positions, one per level; None: torchvision's rule, ⌊padded size / map size⌋ in each axis.
    pre_nms: kept per level and image before suppression; post_nms: per image after it; both (training, inference).
    min_size: proposals with a smaller side are dropped. beta: of the smooth-L1 loss, 0 = L1.
    loss_per_budget: losses are divided by samples · images, whether or not as many could be drawn (detectron2);
    else by the number drawn (torchvision).
    channels: width of the 3×3 convolutions; None: in_channels.
    cells: float32 (levels, A, 4), anchors around the first place of each level, instead of those of sizes and ratios.
    low_quality_iou, limits_shrinking: see `match_boxes`, `decode_boxes`.
    separable: the convolutions in front are separable and activated, as in EfficientPS's paper.
    """

    def __init__(
        self,
        in_channels: int,
        anchor_sizes: Sequence[float | Sequence[float]] = (32, 64, 128, 256, 512),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        strides: Sequence[int] | None = (4, 8, 16, 32, 64),
        rounded_anchors: bool = False,
        conv_depth: int = 1,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_threshold: float = 0.7,
        min_size: float = 0.0,
        samples: int = 256,
        positive_fraction: float = 0.5,
        iou_range: tuple[float, float] = (0.3, 0.7),
        beta: float = 0.0,
        loss_per_budget: bool = True,
        base_stride: int = 4,
        channels: int | None = None,
        cells: Tensor | None = None,
        low_quality_iou: float = 0.0,
        limits_shrinking: bool = False,
        separable: bool = False,
    ):
        super().__init__()
        self.separable = separable
        self.strides = None if strides is None else tuple(strides)
        self.base_stride = base_stride
        self.pre_nms, self.post_nms, self.nms_threshold = pre_nms, post_nms, nms_threshold
        self.min_size, self.samples, self.positive_fraction = min_size, samples, positive_fraction
        self.iou_range, self.beta, self.loss_per_budget = iou_range, beta, loss_per_budget
        sizes = [[each] if isinstance(each, int | float) else list(each) for each in anchor_sizes]  # of each level
        if cells is None:
            cells = torch.stack([torch.cat([cell_anchors(size, ratios, rounded_anchors) for size in s]) for s in sizes])
        self.low_quality_iou, self.limits_shrinking = low_quality_iou, limits_shrinking
        self.anchors_per_place = cells.shape[1]
        widths = [in_channels] + [in_channels if channels is None else channels] * conv_depth
        self.conv = nn.ModuleList(
            separable_conv(a, b) if separable else nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)
        )
        self.objectness = nn.Conv2d(widths[-1], self.anchors_per_place, 1)
        self.deltas = nn.Conv2d(widths[-1], 4 * self.anchors_per_place, 1)
        self.register_buffer("cells", cells, persistent=False)  # (levels, A, 4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:  # those before a BatchNorm have none
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    cells: Tensor

    def forward(self, features: Sequence[Tensor]) -> RPNOutputs:
        """[(B, C, H_l, W_l)] of all levels → logits and deltas."""
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for x in features:
            for conv in self.conv:
                x = conv(x) if self.separable else F.relu(conv(x), inplace=True)
            logits.append(self.objectness(x))
            deltas.append(self.deltas(x))
        return RPNOutputs(logits, deltas)

    def level_strides(self, shapes: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """(down, right) in pixels for each level of the given (H, W)."""
        if self.strides is not None:
            return [(s, s) for s in self.strides]
        padded = [side * self.base_stride for side in shapes[0]]
        return [(padded[0] // height, padded[1] // width) for height, width in shapes]

    def anchors(self, level: int, index: Tensor, width: int, stride: tuple[int, int]) -> Tensor:
        """The anchors of the given places, int64 (…) in (y · width + x) · A + a, → float32 (…, 4)."""
        place = torch.div(index, self.anchors_per_place, rounding_mode="floor")
        row = torch.div(place, width, rounding_mode="floor")
        x, y = (place - row * width) * stride[1], row * stride[0]
        shift = torch.stack((x, y, x, y), dim=-1)  # a cell's corner, no half stride
        return shift + self.cells[level].float()[index % self.anchors_per_place]

    def propose(self, outputs: RPNOutputs, extents: Tensor, training: bool) -> Proposals:
        """The best boxes of each image after suppression within each level. extents int64 (B, 2) height, width.

        Not differentiable: proposals are constants to the second stage.
        """
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        strides = self.level_strides([logits.shape[2:] for logits in outputs.logits])
        count = extents.shape[0]
        image = torch.arange(count, device=extents.device)[:, None]  # (B, 1)
        for level, (logits, deltas) in enumerate(zip(outputs.logits, outputs.deltas, strict=True)):
            scores = logits.detach().permute(0, 2, 3, 1).reshape(count, -1).float()  # (B, H W A)
            code = deltas.detach().permute(0, 2, 3, 1).reshape(count, -1, 4)  # (B, H W A, 4)
            # only what survives this cut is decoded
            scores, index = box_ops.highest(scores, self.pre_nms[0 if training else 1])  # (B, k)
            anchors = self.anchors(level, index, logits.shape[3], strides[level])
            decoded = box_ops.decode_boxes(
                code[image, index], anchors, CODE_WEIGHTS, self.limits_shrinking
            )  # (B, k, 4)
            decoded = box_ops.clip_boxes(decoded, extents[:, None])
            group = (image * len(strides) + level).expand_as(index)
            parts.append((decoded.flatten(0, 1), scores.flatten(), group.flatten(), image.expand_as(index).flatten()))
        boxes, scores, group, image_index = (torch.cat(column) for column in zip(*parts, strict=True))
        usable = box_ops.usable_boxes(boxes, scores, self.min_size).nonzero().flatten()
        boxes, scores, group, image_index = (t[usable] for t in (boxes, scores, group, image_index))
        keep = box_ops.batched_nms(boxes, scores, group, self.nms_threshold)
        keep = keep[box_ops.first_of_each(image_index[keep], self.post_nms[0 if training else 1])]
        return Proposals(boxes[keep], image_index[keep])

    @torch.no_grad()
    def sample(self, outputs: RPNOutputs, targets: Sequence[InstanceTargets]) -> AnchorSample:
        """Anchors of each image, matched and drawn by torch's global generator. How many does not depend on chance."""
        strides = self.level_strides([x.shape[2:] for x in outputs.logits])
        anchors = torch.cat(
            [
                self.anchors(level, torch.arange(x[0].numel(), device=x.device), x.shape[3], strides[level])
                for level, x in enumerate(outputs.logits)
            ]
        )  # (N, 4)
        places: list[Tensor] = []
        labels: list[Tensor] = []
        positives: list[Tensor] = []
        codes: list[Tensor] = []
        for image, target in enumerate(targets):
            iou = box_ops.box_iou_matrix(target.boxes_xyxy, anchors)
            match = box_ops.match_boxes(iou, *self.iou_range, low_quality=True, low_quality_iou=self.low_quality_iou)
            positive, negative = box_ops.sample_matches(match, self.samples, self.positive_fraction)
            places.append(torch.cat((positive, negative)) + image * len(anchors))
            labels.append((torch.arange(len(places[-1]), device=positive.device) < len(positive)).float())
            positives.append(positive + image * len(anchors))
            codes.append(box_ops.encode_boxes(target.boxes_xyxy[match[positive]], anchors[positive], CODE_WEIGHTS))
        return AnchorSample(torch.cat(places), torch.cat(labels), torch.cat(positives), torch.cat(codes))

    def count(self, sample: AnchorSample, images: int) -> float:
        """What the losses of so many images are divided by: the anchors drawn, or how many should be."""
        return float(self.samples * images if self.loss_per_budget else len(sample.place))

    def loss(
        self, outputs: RPNOutputs, targets: Sequence[InstanceTargets], total: float | None = None
    ) -> dict[str, Tensor]:
        """rpn_objectness and rpn_box over a random sample of the anchors of each image.

        total: the sum of `count` over the parts of a step; None: these images are the whole of it.
        """
        count = len(targets)
        logits = torch.cat([x.permute(0, 2, 3, 1).reshape(count, -1) for x in outputs.logits], dim=1)  # (B, N)
        deltas = torch.cat([x.permute(0, 2, 3, 1).reshape(count, -1, 4) for x in outputs.deltas], dim=1)
        sample = self.sample(outputs, targets)
        denominator = max(1, self.count(sample, count) if total is None else total)
        chosen = deltas.view(-1, 4)[sample.positive]
        return {
            "rpn_objectness": objectness_loss(logits.view(-1)[sample.place], sample.label, denominator),
            "rpn_box": box_loss(chosen, sample.codes, self.beta) / denominator,
        }
