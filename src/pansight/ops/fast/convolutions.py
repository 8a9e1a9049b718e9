"""Convolutions that are done in another order than they are written, which linearity allows."""

# torch leaves some of its return types open
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.ops.fast import use_plain


def deconv_mask(x: Tensor, deconv: nn.ConvTranspose2d, predictor: nn.Conv2d, classes: Tensor) -> Tensor:
    """``predictor(relu(deconv(x)))[n, classes[n]]`` of each n: (N, C, S, S), int64 (N,) → float32 (N, 2 S, 2 S).

    deconv: 2×2, stride 2, so that nothing overlaps: a 1×1 convolution to four times the channels. The predictor (1×1)
    meets its output where it lies, pixel by pixel, and gives the mask of the class asked for alone.
    """
    count, size = x.shape[0], x.shape[2]
    weight = deconv.weight  # (C, D, 2, 2)
    channels = weight.shape[1]
    spread = weight.permute(2, 3, 1, 0).reshape(4 * channels, -1, 1, 1)
    assert deconv.bias is not None
    assert predictor.bias is not None
    x = F.relu(F.conv2d(x, spread, deconv.bias.repeat(4)), inplace=True)  # (N, 4 D, S, S)
    x = x.permute(0, 2, 3, 1).reshape(count, 4 * size * size, channels)  # (N, S · S · 2 · 2, D); N may be 0
    row = predictor.weight.flatten(1)[classes]  # (N, D)
    logits = torch.bmm(x, row.unsqueeze(2).to(x.dtype)).float()  # (N, S · S · 2 · 2, 1)
    logits = logits.squeeze(2) + predictor.bias.float()[classes][:, None]
    return logits.view(count, size, size, 2, 2).transpose(2, 3).reshape(count, 2 * size, 2 * size)


def masks_by_kernels(features: Tensor, embeddings: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Mask logits of K queries, ``embeddings @ conv2d(features, weight, bias, padding=1)``.

    The 3×3 convolution is multiplied with the embeddings first, so that it gives K maps, not D. features (C, h, w),
    embeddings (K, D), weight (D, C, 3, 3), bias (D,), all float32 → (K, h, w).
    """
    if not len(embeddings):
        return features.new_zeros((0, *features.shape[1:]))
    kernels = torch.einsum("kd,dcyx->kcyx", embeddings, weight)
    return F.conv2d(features[None], kernels, embeddings @ bias, padding=1)[0]


WIDE = 10
"""Dilation from which a convolution of each channel by itself goes through contiguous memory."""


def dilated_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int], groups: int = 1) -> Tensor:
    """A convolution of stride 1 that keeps the size; the plain twin is ``F.conv2d``.

    x (B, C, h, w), weight (D, C / groups, k, k), k odd, dilation down and right in places → (B, D, h, w).

    On a CPU oneDNN is slow at wide dilations in two cases. Of 2048 channels in bfloat16, a dilation of 36 takes ten
    times as long as one of 2; nine products of matrices, one for each place of the kernel, take as long as the latter.
    And in channels_last memory a convolution of each channel by itself takes up to fifty times as long as in contiguous
    memory.
    """
    padding = tuple(step * (side // 2) for step, side in zip(dilation, weight.shape[2:], strict=True))
    if x.device.type == "cpu" and not use_plain() and not torch.compiler.is_compiling():
        if groups == x.shape[1] and max(dilation) >= WIDE:
            x, weight = x.contiguous(), weight.flatten().view(weight.shape)  # the strides of a weight decide as well
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if groups == 1 and half == torch.bfloat16 and x.shape[1] >= 1024 and max(dilation) > 2:
            return _by_places(x.to(half), weight.to(half), bias, dilation)
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=groups)


def _by_places(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: tuple[int, int]) -> Tensor:
    """`dilated_conv`, summed in float32 over the places of the kernel, in the memory of channels_last."""
    batch, _, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1)  # (B, h, w, C)
    out = pixels.new_zeros((batch, height, width, weight.shape[0]), dtype=torch.float32)
    for i in range(weight.shape[2]):
        for j in range(weight.shape[3]):
            down, right = (i - weight.shape[2] // 2) * dilation[0], (j - weight.shape[3] // 2) * dilation[1]
            top, bottom = max(0, -down), min(height, height - down)  # rows whose neighbour `down` lies on the map
            left, end = max(0, -right), min(width, width - right)
            if top < bottom and left < end:
                product = pixels[:, top + down : bottom + down] @ weight[:, :, i, j].t()  # (B, bottom - top, w, D)
                out[:, top:bottom, left:end] += product[:, :, left + right : end + right]
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype).permute(0, 3, 1, 2)


def upsample_conv(x: Tensor, weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A 3×3 convolution, padding 1, of `x` enlarged to `size` by nearest pixels.

    x (K, C, h, w), weight (C', C, 3, 3) → (K, C', *size).

    For twice the size (or one less: odd sides), a pixel's 3×3 neighbours are copies of 2×2 pixels of `x`: a transposed
    convolution of stride 2 with the weights of equal pixels added up does the same with 4 products in place of 9.
    """
    if x.shape[2:] == size:
        return F.conv2d(x, weight, padding=1)
    if any(large not in (2 * small, 2 * small - 1) for large, small in zip(size, x.shape[2:], strict=True)):
        return F.conv2d(F.interpolate(x, size), weight, padding=1)
    y = F.conv_transpose2d(x, _doubled(weight).transpose(0, 1), stride=2, padding=1)  # (K, C', 2 h, 2 w)
    if y.shape[2:] == size:
        return y
    # what lies beyond an odd side must count as zero, not as the copy of the last pixel: once more for that side
    y = y[:, :, : size[0], : size[1]]
    if size[0] % 2:
        last = x[:, :, -2:]  # the last two rows of the enlarged map, or its only one
        rows = F.interpolate(last, (last.shape[2], size[1]))
        y[:, :, -1:] = F.conv2d(rows, weight[:, :, 2 - rows.shape[2] : 2], padding=(0, 1))
    if size[1] % 2:
        last = x[:, :, :, -2:]
        columns = F.interpolate(last, (size[0], last.shape[3]))
        y[:, :, :, -1:] = F.conv2d(columns, weight[:, :, :, 2 - columns.shape[3] : 2], padding=(1, 0))
    return y


def _doubled(weight: Tensor) -> Tensor:
    """(C', C, 3, 3) → (C', C, 4, 4) of the transposed convolution in `upsample_conv`, one axis after the other."""
    for axis in (2, 3):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack((last, middle + last, first + middle, first), axis)
    return weight
