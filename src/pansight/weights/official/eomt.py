"""Loading official EoMT checkpoints (tue-mps/eomt, MIT): ``pytorch_model.bin`` and Lightning's ``.ckpt``.

DINOv2 files name the backbone's tensors as timm does. DINOv3 files name them as transformers does, and hold the
*differences* to DINOv3's own weights. Those have another licence and are gated, so they are taken from the local
Hugging Face cache, where timm puts them, and added; nothing is downloaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor

from pansight.data.categories import category_table
from pansight.data.categories.coco import coco_panoptic, coco_things
from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, rows
from pansight.weights.unpickle import read_tensors

PUBLISHED = {
    ("dinov2", 384, 12, 3, 640): "eomt_small_640",
    ("dinov2", 768, 12, 3, 640): "eomt_base_640",
    ("dinov2", 1024, 24, 4, 640): "eomt_large_640",
    ("dinov2", 1024, 24, 4, 1280): "eomt_large_1280",
    ("dinov2", 1536, 40, 5, 640): "eomt_giant_640",
    ("dinov2", 1536, 40, 5, 1280): "eomt_giant_1280",
    ("dinov3", 384, 12, 3, 640): "eomt_dinov3_small_640",
    ("dinov3", 768, 12, 3, 640): "eomt_dinov3_base_640",
    ("dinov3", 1024, 24, 4, 640): "eomt_dinov3_large_640",
    ("dinov3", 1024, 24, 4, 1280): "eomt_dinov3_large_1280",
}
"""(family, width, depth, blocks with queries, size) → the name of the model."""

BACKBONES = {
    ("dinov2", 384): "vit_small_patch14_reg4_dinov2",
    ("dinov2", 768): "vit_base_patch14_reg4_dinov2",
    ("dinov2", 1024): "vit_large_patch14_reg4_dinov2",
    ("dinov2", 1536): "vit_giant_patch14_reg4_dinov2",
    ("dinov3", 384): "vit_small_patch16_dinov3_qkvb",
    ("dinov3", 768): "vit_base_patch16_dinov3_qkvb",
    ("dinov3", 1024): "vit_large_patch16_dinov3_qkvb",
}
"""(family, width) → timm's name."""

SEMANTIC = "semantic_eomt"
"""In the names of the published models of that task (ade20k_semantic_eomt_large_512 …); nothing in the file tells."""

ENCODER = "network.encoder.backbone."
IGNORED = r"network\.encoder\.pixel_(mean|std)|criterion\.empty_weight|.*\.(mask_token|rope_embeddings\..*)|.*inv_freq"
DINOV3_BLOCKS: list[Rule] = [
    (r"block\.(\d+)\.(norm[12]\.(?:weight|bias))", BACKBONE + r"blocks.\1.\2"),
    (r"block\.(\d+)\.attention\.([qv])_proj\.bias", BACKBONE + r"blocks.\1.attn.\2_bias"),
    (r"block\.(\d+)\.attention\.o_proj\.(weight|bias)", BACKBONE + r"blocks.\1.attn.proj.\2"),
    (r"block\.(\d+)\.layer_scale([12])\.lambda1", BACKBONE + r"blocks.\1.gamma_\2"),
    (r"block\.(\d+)\.mlp\.up_proj\.(weight|bias)", BACKBONE + r"blocks.\1.mlp.fc1.\2"),
    (r"block\.(\d+)\.mlp\.down_proj\.(weight|bias)", BACKBONE + r"blocks.\1.mlp.fc2.\2"),
    (re.escape(BACKBONE) + r".*", r"\g<0>"),  # joined already
]
"""transformers' DINOv3 blocks, under the name ``block.N``, to timm's; after `join_qkv`."""

RULES: list[Rule] = [
    (r"network\.q\.weight", "q.weight"),
    (r"network\.(class_head|mask_head\.[024])\.(weight|bias)", r"\1.\2"),
    (r"network\.(upscale\.\d+\.(?:conv1|conv2|norm)\.(?:weight|bias))", r"\1"),
    (r"network\.attn_mask_probs", "annealing.probs"),
]
DINOV2: list[Rule] = [(re.escape(ENCODER) + r"(.*)", BACKBONE + r"\1")]
DINOV3: list[Rule] = [
    (re.escape(ENCODER) + r"patch_embed\.cls_token", BACKBONE + "cls_token"),
    (re.escape(ENCODER) + r"patch_embed\.register_tokens", BACKBONE + "reg_token"),
    (re.escape(ENCODER) + r"patch_embed\.patch_embeddings\.(weight|bias)", BACKBONE + r"patch_embed.proj.\1"),
    (re.escape(ENCODER) + r"norm\.(weight|bias)", BACKBONE + r"norm.\1"),
    *DINOV3_BLOCKS,
]


def recognises(state: Mapping[str, Tensor]) -> bool:
    return any(_plain(key).startswith(ENCODER) for key in state) and any(_plain(k) == "network.q.weight" for k in state)


def renamed(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Official keys to ours, one to one (differences stay differences). PansightError names a key of another layout."""
    plain = {_plain(key): tensor for key, tensor in state.items()}
    if not _is_dinov3(plain):
        return rename(plain, [*RULES, *DINOV2], IGNORED, source)
    # the block's number alone is kept, so that transformers' folders need no second table
    blocks = re.compile(re.escape(ENCODER) + r"blocks\.(\d+)\.(.*)")
    short = {blocks.sub(r"block.\1.\2", key): tensor for key, tensor in plain.items()}
    return rename(join_qkv(short, source), [*RULES, *DINOV3], IGNORED, source)


def load(state: Mapping[str, Tensor], source: str) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options). 133, 80, 150 and 19 classes get the names of COCO, ADE20K, Cityscapes.

    A file with SEMANTIC in its path becomes a model that predicts in windows.
    The published figures are those without masks, whatever annealing the file records: it is taken as over.
    Raises PansightError for another backbone, a key too many or too few, a shape that does not fit, and DINOv3
    differences where DINOv3's own weights are not at hand.
    """
    ours = renamed(state, source)
    family = "dinov3" if _is_dinov3({_plain(key): tensor for key, tensor in state.items()}) else "dinov2"
    queries, width = rows(ours, "q.weight", source), ours["q.weight"].shape[1]
    depth = 1 + max((int(m[1]) for m in map(_block_number, ours) if m), default=-1)
    if (family, width) not in BACKBONES:
        raise PansightError(where=source, expected="a ViT S, B, L or g of DINOv2 or DINOv3", found=f"{width} channels")
    published = next(key for key in PUBLISHED if key[:2] == (family, width))
    probs = ours.setdefault("annealing.probs", torch.zeros(published[3]))
    size = _size_of(ours, source)
    windows = SEMANTIC in Path(source).absolute().as_posix()
    labels = _labels_of(ours, source)
    name, options = published_name(family, width, depth, len(probs), size, queries, windows)
    if family == "dinov3":
        ours = _add_base(ours, BACKBONES[family, width], source)
    model = build_to_fit(name, labels, options, ours, source)
    model.annealing.probs.zero_()
    model.annealing.remember()
    return model, name, options


def published_name(
    family: str, width: int, depth: int, blocks: int, size: int, queries: int, windows: bool
) -> tuple[str, dict[str, Any]]:
    """(name, options) of a model on a backbone of BACKBONES: a published builder where there is one for this shape.

    windows: a model of the semantic task, which predicts a photo in square windows.
    """
    name = None if windows else PUBLISHED.get((family, width, depth, blocks, size))
    options: dict[str, Any] = {} if queries == 200 else {"queries": queries}
    if name is None:
        name = "eomt"
        options |= {"backbone": BACKBONES[family, width], "size": size, "blocks": blocks}
        options |= {"windows": True} if windows else {}
    return name, options


def join_qkv(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """``block.N.attention.{q,k,v}_proj.weight`` as one; so are their biases where the keys have one too."""
    pattern = r"block\.(\d+)\.attention\.(?P<part>[qkv])_proj\.(weight{})"
    both = "|bias" if any(key.endswith("attention.k_proj.bias") for key in state) else ""
    return join_rows(state, pattern.format(both), "qkv", BACKBONE + r"blocks.\1.attn.qkv.\3", source)


def _plain(key: str) -> str:
    """Remove the prefix that torch.compile adds to the names of modules."""
    return key.replace("_orig_mod.", "")


def _is_dinov3(state: Mapping[str, Tensor]) -> bool:
    return f"{ENCODER}patch_embed.cls_token" in state


def _block_number(key: str) -> re.Match[str] | None:
    return re.match(re.escape(BACKBONE) + r"blocks\.(\d+)\.", key)


def _size_of(state: Mapping[str, Tensor], source: str) -> int:
    """The side of the square that a model was trained on: by its positions; where it has none, by the file's name."""
    rows(state, BACKBONE + "patch_embed.proj.weight", source)
    patch = state[BACKBONE + "patch_embed.proj.weight"].shape[-1]
    positions = state.get(BACKBONE + "pos_embed")
    if positions is None:
        match = re.search(r"_(512|640|1024|1280)(?!\d)", str(Path(source).absolute()))
        return int(match[1]) if match else 640
    side = math.isqrt(positions.shape[1])
    if side**2 != positions.shape[1]:
        raise PansightError(where=source, expected="positions on a square grid", found=positions.shape[1])
    return side * patch


def _labels_of(state: Mapping[str, Tensor], source: str) -> LabelSpace:
    classes = rows(state, "class_head.weight", source) - 1
    if classes in (133, 80):
        return coco_panoptic() if classes == 133 else coco_things()
    tables = {150: "ade20k_panoptic", 19: "cityscapes_panoptic"}
    if classes in tables:
        return LabelSpace.from_json(category_table(tables[classes]))  # in the table's order: ADE's ids, trainIds
    return LabelSpace.from_names([f"class_{i}" for i in range(1, classes + 1)])


def _add_base(state: Mapping[str, Tensor], backbone: str, source: str) -> dict[str, Tensor]:
    """`state` with DINOv3's own weights added to those of the backbone."""
    config: Any = timm.get_pretrained_cfg(backbone)
    repositories = (config.hf_hub_id, config.hf_hub_id.replace("_qkvb", ""))  # the second leaves out zero biases
    files = ("model.safetensors", "pytorch_model.bin")
    found = [huggingface_hub.try_to_load_from_cache(r, name) for r in repositories for name in files]
    path = next((p for p in found if isinstance(p, str)), None)
    if path is None:
        raise PansightError(
            (
                "holds differences to DINOv3's weights (dinov3-license, gated), which are not in the local "
                f"Hugging Face cache: accept the licence, then `hf download {config.hf_hub_id}`"
            ),
            where=source,
        )
    base = {BACKBONE + key: tensor for key, tensor in read_tensors(path).items()}
    result = dict(state)
    for key in (k for k in state if k.startswith(BACKBONE)):
        if key in base and base[key].shape == state[key].shape:
            result[key] = base[key].to(state[key].dtype) + state[key]
        elif not key.endswith(("q_bias", "v_bias")):
            shape = list(base[key].shape) if key in base else "no such tensor"
            raise PansightError(where=f"{path}: {key}", expected=f"shape {list(state[key].shape)}", found=shape)
    return result
