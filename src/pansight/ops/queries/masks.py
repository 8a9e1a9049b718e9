"""Mask logits of queries: products of their embeddings with a vector at each pixel.

Cheng et al., MaskFormer, NeurIPS 2021, section 3.2; Mask2Former, CVPR 2022, section 3.2.1 (masks at other sizes).
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pansight.ops.fast import use_plain
from pansight.ops.fast.convolutions import masks_by_kernels


class PixelEmbeddings(NamedTuple):
    """MaskFormer's per-pixel embeddings: ``conv2d(features, weight, bias, padding=1)``, (B, D, h, w).

    The convolution is left to `masks`, where it is known which queries are asked for.
    """

    features: Tensor  # (B, C, h, w)
    weight: Tensor  # (D, C, 3, 3)
    bias: Tensor  # (D,)

    def masks(self, image: int, embeddings: Tensor) -> Tensor:
        """Mask logits of K queries of one image: mask embeddings (K, D) → float32 (K, h, w)."""
        features, embeddings = self.features[image].float(), embeddings.float()  # (C, h, w), (K, D)
        weight, bias = self.weight.float(), self.bias.float()
        learning = torch.is_grad_enabled() and not features.is_inference()
        # no lower precision: this is little work, and all masks hang on it
        with torch.set_grad_enabled(learning), torch.autocast(features.device.type, enabled=False):
            if not use_plain():
                return masks_by_kernels(features, embeddings, weight, bias)
            pixels = F.conv2d(features[None], weight, bias, padding=1)[0]  # (D, h, w)
            return torch.einsum("kd,dhw->khw", embeddings, pixels)


def features_at(features: Tensor, size: tuple[int, int]) -> Tensor:
    """What `masks_at` makes masks of `size` (h, w) of, without gradient: (B, D, H, W) → (B, D, h, w).

    Plain: the features as they are, for the masks to be resized.
    """
    if use_plain():
        return features.detach()
    return F.interpolate(features.detach(), size, mode="bilinear", align_corners=False)


def masks_at(embeddings: Tensor, features: Tensor, size: tuple[int, int]) -> Tensor:
    """Mask logits at `size` (h, w), without gradient: embeddings (B, Q, D), features of `features_at` → (B, Q, h, w).

    The product and the bilinear resize are linear, so that features resized once serve the queries of all layers.
    """
    masks = (embeddings.detach() @ features.flatten(2)).unflatten(2, features.shape[2:])
    if masks.shape[2:] == size:
        return masks
    return F.interpolate(masks, size, mode="bilinear", align_corners=False)
