"""The deformable convolution of a map by torch's own sampling: its gradients take a fraction of torchvision's time on a
CPU, whose kernel for them computes one number at a time."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def deform_conv_by_sampling(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    mask: Tensor | None = None,
) -> Tensor:
    """torchvision's ``deform_conv2d`` up to rounding, with one group.

    x float32 (B, C, H, W), offset (B, 2 K, h, w) as row and column of each of the K samples, weight (O, C, k, k) with
    k² = K, bias (O,), mask (B, K, h, w) → (B, O, h, w).
    """
    count, channels, height, width = x.shape
    kernel = weight.shape[-1]
    rows, columns = offset.shape[2:]
    moved = offset.view(count, kernel * kernel, 2, rows, columns)
    step = torch.arange(kernel, device=x.device) * dilation - padding  # (k,)
    first = [torch.arange(extent, device=x.device) * stride for extent in (rows, columns)]
    y = moved[:, :, 0] + step.repeat_interleave(kernel)[:, None, None] + first[0][:, None]  # (B, K, h, w) in pixels
    x_ = moved[:, :, 1] + step.repeat(kernel)[:, None, None] + first[1]
    grid = torch.stack(((2 * x_ + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)  # as grid_sample counts
    sampled = F.grid_sample(x, grid.flatten(1, 2), padding_mode="zeros", align_corners=False)  # (B, C, K h, w)
    sampled = sampled.view(count, channels, kernel * kernel, rows * columns)
    if mask is not None:
        sampled = sampled * mask.flatten(2)[:, None]
    result = weight.flatten(1) @ sampled.flatten(1, 2)  # (B, O, h w)
    if bias is not None:
        result = result + bias[:, None]
    return result.view(count, -1, rows, columns)
