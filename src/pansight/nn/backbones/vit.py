"""Plain vision transformers of timm, run block by block, so that a model can insert its own tokens between them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pansight.errors import PansightError, choice_error
from pansight.nn.backbones.hub import bounded_downloads
from pansight.nn.backbones.pyramid import timm_pixels
from pansight.nn.backbones.vit_options import check_vit_options
from pansight.nn.checkpointing import recomputed
from pansight.nn.input import PixelStatistics
from pansight.ops.fast import use_plain
from pansight.ops.fast.attention import attend_in_slices


class PlainViT(nn.Module):
    """A ViT of timm, run block by block: `features`, with keys as in ``backbone.features.blocks.0.attn.qkv.weight``.

    Both families are known: learned positions (DINOv2 …) and rotary ones (DINOv3 …).
    """

    features: Any  # VisionTransformer or Eva, which share what is used here; it has the switch of checkpointing

    def __init__(self, features: VisionTransformer | Eva, pixels: PixelStatistics):
        super().__init__()
        self.features = features
        self.pixels = pixels
        self.rotary = isinstance(features, Eva)
        self.patch: int = self.features.patch_embed.patch_size[0]
        self.prefix: int = self.features.num_prefix_tokens
        self.channels: int = self.features.embed_dim
        self.strides = (self.patch,)
        self.usual = all(  # attention without the extras that timm has for other ViTs
            type(block.attn) in (Attention, EvaAttention)
            and block.attn.qkv is not None
            and block.attn.gate is None
            and all(isinstance(m, nn.Identity) for m in (block.attn.q_norm, block.attn.k_norm, block.attn.norm))
            for block in self.features.blocks
        )

    def tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """float (B, 3, H, W), normalised, of whole patches → (tokens (B, P + h·w, D), rotations or None, (h, w)).

        P prefix tokens (class, registers) come first.
        """
        patches = self.features.patch_embed(pixels)  # (B, h, w, D)
        placed = self.features._pos_embed(patches)
        tokens, rotations = placed if self.rotary else (placed, None)
        return self.features.norm_pre(tokens), rotations, (patches.shape[1], patches.shape[2])

    def block(self, index: int, tokens: Tensor, rotations: Tensor | None, mask: Tensor | None) -> Tensor:
        """tokens (B, N, D); mask bool (B, 1, N, N), True where a token may look, or None → (B, N, D)."""
        block = self.features.blocks[index]
        if mask is None and self.usual and self._slices_pay(tokens):
            return self._block_in_slices(block, tokens, rotations)
        recomputes = self.training and self.features.grad_checkpointing
        if self.rotary:
            return recomputed(block, recomputes, tokens, rope=rotations, attn_mask=mask)
        return recomputed(block, recomputes, tokens, attn_mask=mask)

    def _slices_pay(self, tokens: Tensor) -> bool:
        """In bfloat16 on a CPU: see `attend_in_slices`."""
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else tokens.dtype
        inference = not self.training and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return inference and tokens.device.type == "cpu" and half == torch.bfloat16 and not use_plain()

    def _block_in_slices(self, block: Any, tokens: Tensor, rotations: Tensor | None) -> Tensor:
        """What timm's block computes, but for the attention's kernel."""
        attn, bias = block.attn, block.attn.qkv.bias
        if self.rotary and attn.q_bias is not None:
            bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        qkv = F.linear(block.norm1(tokens), attn.qkv.weight, bias).unflatten(2, (3, attn.num_heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        if rotations is not None:
            for part in (query, key):
                placed = part[:, :, attn.num_prefix_tokens :]
                placed.copy_(apply_rot_embed_cat(placed, rotations, half=attn.rotate_half))
        out = attn.proj(attend_in_slices(query, key, value).transpose(1, 2).flatten(2))  # (B, N, D)
        if not self.rotary:
            tokens = tokens + block.ls1(out)
            return tokens + block.ls2(block.mlp(block.norm2(tokens)))
        tokens = tokens + (out if block.gamma_1 is None else block.gamma_1 * out)
        out = block.mlp(block.norm2(tokens))
        return tokens + (out if block.gamma_2 is None else block.gamma_2 * out)


def vit_backbone(
    name: str,
    pretrained: str = "none",
    size: int = 640,
    patch: int = 16,
    options: dict[str, Any] | None = None,
    norm_eps: float | None = None,
) -> PlainViT:
    """The timm ViT `name` for `patch` px patches and positions on the grid of a `size` px square.

    pretrained: "none" or "timm" (downloaded; patch kernel and positions are resampled). options: further arguments of
    timm's model (`vit_options.KEYS`), such as {"depth": 4, "embed_dim": 64}. norm_eps: another epsilon for all norms.
    Raises PansightError for a name that is unknown or no plain ViT, an unknown option, or weights that cannot be had.
    """
    if pretrained not in ("none", "timm"):
        raise choice_error("pretrained", pretrained, ("none", "timm"))
    if not timm.is_model(name.split(".")[0]):
        some = "vit_small_patch14_reg4_dinov2, vit_small_patch16_dinov3_qkvb"
        raise PansightError(f"unknown backbone {name!r}", hint=f"expected a ViT of timm, such as {some}")
    if size % patch:
        raise PansightError(where=f"backbone {name}", expected=f"a size that {patch} px patches divide", found=size)
    try:
        check_vit_options(options)
    except PansightError as error:
        raise error.at(f"backbone {name}") from error
    given: dict[str, Any] = {"img_size": size, "patch_size": patch, "num_classes": 0, "global_pool": ""}
    given |= {"dynamic_img_size": True} | (options or {})
    try:
        with bounded_downloads() if pretrained == "timm" else nullcontext():
            net: Any = timm.create_model(name, pretrained=pretrained == "timm", **given)
    except TypeError as error:
        raise PansightError(
            f"expected a ViT that takes {', '.join(given)}", where=f"backbone {name}", reason=error
        ) from error
    except Exception as error:
        if pretrained == "none":
            raise
        # the hub client raises many types; the user needs one line and what to do about it
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise PansightError(
            f"timm's weights cannot be had ({reason})",
            where=f"backbone {name}",
            hint="use pretrained='none'",
            code="offline_weights",
        ) from error
    if not isinstance(net, VisionTransformer | Eva) or not isinstance(net.norm, nn.LayerNorm):
        found = type(net).__name__
        raise PansightError(where=f"backbone {name}", expected="a plain ViT with a norm after its blocks", found=found)
    if norm_eps is not None:
        for module in net.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
    return PlainViT(net, timm_pixels(name))
