"""Swin Transformer as a backbone for any image size. Liu et al., ICCV 2021; as in MaskFormer and Mask2Former.

Differs from timm's: the map is first padded to a multiple of the window and then shifted, windows keep their size on
small maps, and each stage has a norm of its own (``norm0`` … ``norm3``). timm shifts first, so the two agree only if
every map is a multiple of the window. Maps are (B, H, W, C); parameters carry the official names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from pansight.nn.checkpointing import Recomputed
from pansight.nn.layers import FastLinear
from pansight.ops.fast.memory import checkpointed

DROP_PATH = 0.3
"""Of MaskFormer and Mask2Former, all sizes: the rate of the last block; the first has 0, the others lie between."""

BLOCKED = -100.0
"""What is added to the logit of a key that is no neighbour, in every published Swin."""


class SwinSize(NamedTuple):
    channels: int  # of the first stage; each further one has twice as many
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int


SWINS: dict[str, SwinSize] = {
    "swin_tiny_patch4_window7_224": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small_patch4_window7_224": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base_patch4_window7_224": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 7),
    "swin_base_patch4_window12_384": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large_patch4_window7_224": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 7),
    "swin_large_patch4_window12_384": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}
"""timm's names. Any other size has a name that says it: see `swin_name`."""

_LIST = r"\d{1,3}(?:-\d{1,3}){0,7}"  # a name in a file cannot ask for millions of layers
_SPELLED = re.compile(rf"swin_c(\d{{1,4}})_d({_LIST})_h({_LIST})_w(\d{{1,3}})")


def swin_name(size: SwinSize) -> str:
    """timm's name where there is one, else a spelled one such as ``swin_c16_d1-1-2-1_h1-2-4-8_w4``."""
    known = next((name for name, published in SWINS.items() if published == size), None)
    depths, heads = ("-".join(map(str, numbers)) for numbers in (size.depths, size.heads))
    return known or f"swin_c{size.channels}_d{depths}_h{heads}_w{size.window}"


def swin_size(name: str) -> SwinSize | None:
    """The inverse of `swin_name`, also with timm's tag (``….ms_in22k``); None for a name of another network."""
    if match := _SPELLED.fullmatch(name):
        depths, heads = (tuple(map(int, match[group].split("-"))) for group in (2, 3))
        return SwinSize(int(match[1]), depths, heads, int(match[4])) if len(depths) == len(heads) else None
    return SWINS.get(name.split(".")[0])


class WindowAttention(nn.Module):
    def __init__(self, channels: int, heads: int, window: int):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = FastLinear(channels, 3 * channels)
        self.proj = FastLinear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor | None) -> Tensor:
        """x (B · W, N, C), the N = window² tokens of W windows an image; places int64 (N, N) as of `relative_places`;

        mask (W, 1, N, N), added to the logits, or None.
        """
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B · W, heads, N, C / heads)
        bias = self.relative_position_bias_table[places].permute(2, 0, 1)[None]  # (1, heads, N, N)
        if mask is not None:
            bias = (bias + mask).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)  # (B · W, heads, N, N)
        out = F.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=bias.to(qkv.dtype))
        return self.proj(out.transpose(1, 2).flatten(2))  # (B · W, N, C)


class MLP(nn.Module):
    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.fc1 = FastLinear(channels, hidden)
        self.fc2 = FastLinear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        return checkpointed(self._second, self.fc1(x))

    def _second(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(x))


class Block(Recomputed):
    """x += attention within windows, which odd blocks shift by half a window; x += feed-forward; norms come first."""

    def __init__(self, channels: int, heads: int, window: int, is_shifted: bool, drop_path: float):
        super().__init__()
        self.window = window
        self.shift = window // 2 if is_shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, 4 * channels)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """x (B, H, W, C); mask of `shift_mask`, which only shifted blocks need."""
        height, width = x.shape[1:3]
        windows = F.pad(self.norm1(x), (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded = windows.shape[1:3]
        if self.shift:
            windows = windows.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(to_windows(windows, self.window), places, mask if self.shift else None)
        out = from_windows(windows, self.window, padded)  # (B, H', W', C)
        if self.shift:
            out = out.roll((self.shift, self.shift), (1, 2))
        x = x + self.drop_path(out[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """(B, H, W, C) → (B, ⌈H/2⌉, ⌈W/2⌉, 2C): the four pixels of a square as one."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = FastLinear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        squares = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(squares, dim=3)))


class Stage(nn.Module):
    def __init__(self, channels: int, heads: int, window: int, drop_paths: Sequence[float], is_last: bool):
        super().__init__()
        self.window = window
        self.blocks = nn.ModuleList(
            Block(channels, heads, window, index % 2 == 1, rate) for index, rate in enumerate(drop_paths)
        )
        self.downsample = nn.Identity() if is_last else PatchMerging(channels)

    def forward(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, H, W, C) → (the stage's map of that shape, what the next stage takes)."""
        mask = shift_mask(x.shape[1], x.shape[2], self.window, x.device)
        for block in self.blocks:
            x = block(x, places, mask)
        return x, self.downsample(x)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, 4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, ⌈H/4⌉, ⌈W/4⌉, C)."""
        pixels = F.pad(pixels, (0, -pixels.shape[3] % 4, 0, -pixels.shape[2] % 4))
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class Swin(nn.Module):
    """float (B, 3, H, W), any size → one normed map (B, C · 2^i, ⌈H/s⌉, ⌈W/s⌉) per stage wanted, s = 4 · 2^i.

    outputs: the stages whose map is wanted, rising from 0; the others have no norm. drop_path: of the last block.
    """

    def __init__(self, size: SwinSize, drop_path: float = DROP_PATH, outputs: Sequence[int] = (0, 1, 2, 3)):
        super().__init__()
        self.window = size.window
        self.patch_embed = PatchEmbed(size.channels)
        total = sum(size.depths)
        rates = [drop_path * index / max(total - 1, 1) for index in range(total)]
        self.layers = nn.ModuleList()
        for index in range(outputs[-1] + 1):  # what comes after the last map wanted is left out
            first, channels = sum(size.depths[:index]), size.channels << index
            rates_here = rates[first : first + size.depths[index]]
            self.layers.append(Stage(channels, size.heads[index], size.window, rates_here, index == outputs[-1]))
        self.norms = [f"norm{index}" if index in outputs else None for index in range(len(self.layers))]
        for index in outputs:
            self.add_module(f"norm{index}", nn.LayerNorm(size.channels << index))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = self.patch_embed(pixels)
        places = relative_places(self.window, x.device)
        maps: list[Tensor] = []
        for stage, norm in zip(self.layers, self.norms, strict=True):
            wide, x = stage(x, places)
            if norm is not None:
                maps.append(self.get_submodule(norm)(wide).permute(0, 3, 1, 2))  # (B, C, H, W)
        return maps


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, H, W, C), multiples of the window → (B · windows, window², C), windows in reading order."""
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, rows, window, columns, window, C)
    return x.transpose(2, 3).flatten(0, 2).flatten(1, 2)


def from_windows(windows: Tensor, window: int, size: Sequence[int]) -> Tensor:
    """The inverse of `to_windows`: (B · windows, window², C) → (B, *size, C)."""
    rows, columns = size[0] // window, size[1] // window
    x = windows.unflatten(1, (window, window)).unflatten(0, (-1, rows, columns))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_places(window: int, device: torch.device) -> Tensor:
    """int64 (N, N), N = window²: the row of the bias table for the way from token j to token i of a window."""
    steps = torch.arange(window, device=device)
    way = steps[:, None] - steps + window - 1  # (window, window), 0 … 2 window − 2
    places = way[:, None, :, None] * (2 * window - 1) + way[None, :, None, :]  # (y_i, x_i, y_j, x_j)
    return places.reshape(window * window, window * window)


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """float32 (windows, 1, N, N): 0 where two tokens of a shifted window were neighbours before, else BLOCKED.

    height, width: of the map before padding. The shift moves the first half window behind the last pixels; it is a
    region of its own there.
    """
    regions: list[Tensor] = []
    for side in (height, width):
        padded = math.ceil(side / window) * window
        position = torch.arange(padded, device=device)
        regions.append((position >= padded - window).int() + (position >= padded - window // 2).int())
    region = 3 * regions[0][:, None] + regions[1]  # (H', W')
    tokens = to_windows(region[None, :, :, None], window)[:, :, 0]  # (windows, N)
    is_apart = tokens[:, None, :] != tokens[:, :, None]  # (windows, N, N)
    return torch.zeros(is_apart.shape, device=device).masked_fill_(is_apart, BLOCKED).unsqueeze(1)


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of timm's Swin under the names of this one: merging moves to the stage before, the rest stays.

    timm's classifier and its last norm have no place here; the norms of this one are none of timm's.
    """
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"layers\.(\d+)\.(downsample\..+)", key):
            result[f"layers.{int(match[1]) - 1}.{match[2]}"] = tensor
        elif not key.startswith(("norm.", "head.")):
            result[key] = tensor
    return result
