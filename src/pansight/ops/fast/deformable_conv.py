"""The deformable convolution on a CPU, where torchvision's kernel computes one number at a time.

With gradients by torch's own sampling, which takes a fraction of that time for them; without by sums of the four
neighbours of each sample, all channels at once: half the time, and no memory for all samples of a map.
"""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PLACES_AT_ONCE = 4096


def deform_conv_by_sums(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    dilation: int,
    mask: Tensor | None = None,
) -> Tensor:
    """torchvision's ``deform_conv2d`` up to rounding, with one group and without gradients; shapes as below."""
    count, channels, height, width = x.shape
    outputs, _, kernel, _ = weight.shape
    rows, columns = offset.shape[2:]
    places, samples = count * rows * columns, kernel * kernel
    moved = offset.view(count, samples, 2, rows, columns).permute(0, 3, 4, 1, 2)  # (B, h, w, K, 2)
    step = torch.arange(kernel, device=x.device) * dilation - padding  # (k,)
    first = [torch.arange(extent, device=x.device) * stride for extent in (rows, columns)]
    y = moved[..., 0] + step.repeat_interleave(kernel) + first[0][:, None, None]  # (B, h, w, K) in pixels
    x_ = moved[..., 1] + step.repeat(kernel) + first[1][:, None]
    scale = None if mask is None else mask.view(count, samples, rows, columns).permute(0, 2, 3, 1)
    image = torch.arange(count, device=x.device, dtype=torch.int32)[:, None, None, None] * (height * width)
    index = torch.empty((count, rows, columns, samples, 4), dtype=torch.int32, device=x.device)
    shares = torch.empty(index.shape, device=x.device)
    for n, (row, down) in enumerate(_neighbours(y, height)):
        down = down if scale is None else down * scale
        for m, (column, across) in enumerate(_neighbours(x_, width)):
            torch.add(image + row * width, column, out=index[..., 2 * n + m])
            torch.mul(down, across, out=shares[..., 2 * n + m])
    index, shares = index.view(places, samples * 4), shares.view(places, samples * 4)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)  # (B H W, C)
    factors = weight.permute(2, 3, 1, 0).reshape(-1, outputs)  # (K C, O)
    result = torch.empty((places, outputs), device=x.device)
    for start in range(0, places, PLACES_AT_ONCE):
        some = slice(start, start + PLACES_AT_ONCE)
        bags, parts = index[some].view(-1, 4), shares[some].view(-1, 4)
        sampled = F.embedding_bag(bags, table, per_sample_weights=parts, mode="sum")  # (places K, C)
        torch.mm(sampled.view(-1, samples * channels), factors, out=result[some])
    if bias is not None:
        result += bias
    return result.view(count, rows, columns, outputs).permute(0, 3, 1, 2).contiguous()


def _neighbours(position: Tensor, extent: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after a position along one axis, int32, and the share of each, 0 outside of the map."""
    before = position.floor()
    after_share = position - before
    pixel = before.clamp(-2, extent).int()
    return [
        (each.clamp(0, extent - 1), share * ((each >= 0) & (each < extent)))
        for each, share in ((pixel, 1 - after_share), (pixel + 1, after_share))
    ]


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
