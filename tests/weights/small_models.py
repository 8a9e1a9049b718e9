"""A small model of every system that transformers has: builder → (the class there, options)."""

from __future__ import annotations

from typing import Any

DETR: dict[str, Any] = {
    "backbone": "resnet18",
    "short": 64,
    "long": 64,
    "channels": 64,
    "heads": 8,
    "hidden": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "queries": 5,
}
SMALL: dict[str, Any] = {
    "backbone": "resnet18",
    "short": 64,
    "long": 64,
    "channels": 32,
    "heads": 2,
    "hidden": 32,
    "layers": 2,
    "queries": 5,
}
VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "eomt": (
        "EomtForUniversalSegmentation",
        {"backbone": "vit_small_patch14_reg4_dinov2", "size": 64, "queries": 5, "blocks": 2, "vit_options": VIT},
    ),
    "maskformer": ("MaskFormerForInstanceSegmentation", SMALL),
    "mask2former": (
        "Mask2FormerForUniversalSegmentation",
        {**SMALL, "encoder_layers": 1, "encoder_hidden": 32, "loss_points": 64},
    ),
    "detr": ("DetrForObjectDetection", DETR),
    "detr_panoptic": ("DetrForSegmentation", DETR),
}
