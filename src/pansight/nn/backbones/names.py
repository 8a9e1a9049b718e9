"""Which names of backbones there are, found out without building one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import timm

from pansight.errors import PansightError
from pansight.nn.backbones.swin import swin_size

LONGEST = 100


def check_backbone_name(name: str) -> None:
    """Raises PansightError, with the nearest names, for a name that is neither timm's nor a Swin of `swin_name`."""
    if swin_size(name) is None:
        _require(name, timm.list_models())


def check_vit_name(name: str) -> None:
    """The same for plain vision transformers, whose names begin with vit or eva."""
    some = ", ".join(("vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"))
    _require(name, timm.list_models(["vit_*", "eva*"]), f"expected a ViT of timm, such as {some}")


def _require(name: str, names: Sequence[str], hint: str = "") -> None:
    if len(name) <= LONGEST and timm.is_model(name.split(".")[0]):
        return
    close = ", ".join(difflib.get_close_matches(name[:LONGEST], names, 6, 0.4))
    told = f"timm has {len(names)}, the nearest: {close}" if close else f"timm has {len(names)} others"
    raise PansightError(
        f"unknown backbone {name[:LONGEST]!r}", hint=f"{hint}; {told}" if hint else told, code="unknown_choice"
    )
