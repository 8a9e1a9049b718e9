"""Conversion between transformers' EomtForUniversalSegmentation and EomtDinov3ForUniversalSegmentation and our EoMT.

Both hold whole weights; only the official DINOv3 files hold differences (weights/official/eomt.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import GluMlp
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3
from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.types import LabelSpace
from pansight.weights.fitting import build_to_fit
from pansight.weights.huggingface.processor import settings_of
from pansight.weights.keys import BACKBONE, Rule, join_rows, rename, split_rows
from pansight.weights.official.eomt import BACKBONES, DINOV3_BLOCKS, PUBLISHED, join_qkv, published_name

MODEL_TYPES = ("eomt", "eomt_dinov3")

IGNORED = r"criterion\.empty_weight|embeddings\.(mask_token|position_ids)|rope_embeddings\..*"
HEADS: list[Rule] = [
    (r"query\.weight", "q.weight"),
    (r"class_predictor\.(weight|bias)", r"class_head.\1"),
    (r"mask_head\.fc([123])\.(weight|bias)", lambda m: f"mask_head.{2 * int(m[1]) - 2}.{m[2]}"),
    (r"upscale_block\.block\.(\d+)\.(conv[12]\.(?:weight|bias))", r"upscale.\1.\2"),
    (r"upscale_block\.block\.(\d+)\.layernorm2d\.(weight|bias)", r"upscale.\1.norm.\2"),
    (r"attn_mask_probs", "annealing.probs"),
    (r"embeddings\.cls_token", BACKBONE + "cls_token"),
    (r"embeddings\.register_tokens", BACKBONE + "reg_token"),
    (r"embeddings\.position_embeddings\.weight", BACKBONE + "pos_embed"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(weight|bias)", BACKBONE + r"patch_embed.proj.\1"),
    (r"layernorm\.(weight|bias)", BACKBONE + r"norm.\1"),
]
DINOV2_BLOCKS: list[Rule] = [
    (r"block\.(\d+)\.(norm[12]\.(?:weight|bias))", BACKBONE + r"blocks.\1.\2"),
    (r"block\.(\d+)\.attention\.out_proj\.(weight|bias)", BACKBONE + r"blocks.\1.attn.proj.\2"),
    (r"block\.(\d+)\.layer_scale([12])\.lambda1", BACKBONE + r"blocks.\1.ls\2.gamma"),
    (r"block\.(\d+)\.mlp\.(?:fc1|weights_in)\.(weight|bias)", BACKBONE + r"blocks.\1.mlp.fc1.\2"),
    (r"block\.(\d+)\.mlp\.(?:fc2|weights_out|down_proj)\.(weight|bias)", BACKBONE + r"blocks.\1.mlp.fc2.\2"),
    (re.escape(BACKBONE) + r".*", r"\g<0>"),  # joined already
]
"""``weights_in`` and ``weights_out`` are transformers 4, which packs the gate of giant's SwiGLU."""

LOSS = {
    "points": "train_num_points",
    "oversample": "oversample_ratio",
    "importance": "importance_sample_ratio",
    "class_weight": "class_weight",
    "binary_weight": "mask_weight",
    "dice_weight": "dice_weight",
    "no_object": "no_object_weight",
}
"""Our option → the key of config.json."""

DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "layer_norm_eps": 1e-6,
    "image_size": 640,
    "patch_size": 16,
    "mlp_ratio": 4,
    "intermediate_size": 4096,
    "drop_path_rate": 0.0,
    "num_upscale_blocks": 2,
    "attention_dropout": 0.0,
    "use_swiglu_ffn": False,
    "use_gated_mlp": False,
    "num_blocks": 4,
    "num_queries": 200,
    "num_register_tokens": 4,
    "query_bias": True,
    "key_bias": False,
    "value_bias": True,
    "proj_bias": True,
    "mlp_bias": True,
    "train_num_points": 12544,
    "oversample_ratio": 3.0,
    "importance_sample_ratio": 0.75,
    "class_weight": 2.0,
    "mask_weight": 5.0,
    "dice_weight": 5.0,
    "no_object_weight": 0.1,
    "windows": False,
}
"""What a key that config.json leaves out means (transformers writes all of them today, but did not always).

windows: the image processor's do_split_image, which `huggingface.load` puts here.
"""


def load(
    config: Mapping[str, Any], state: Mapping[str, Tensor], labels: LabelSpace, source: str
) -> tuple[Any, str, dict[str, Any]]:
    """→ (model in eval mode, name, options); the published builder where the folder holds its architecture.

    Raises PansightError for an architecture that timm's ViT lacks, a key too many or too few, a shape that differs.
    """
    rotary = config["model_type"] == "eomt_dinov3"
    full = DEFAULTS | dict(config)
    name, options = _described(full, rotary, source)
    return (
        build_to_fit(name, labels, options, renamed(state, rotary, source), source, f"{source}: config.json"),
        name,
        options,
    )


def renamed(state: Mapping[str, Tensor], rotary: bool, source: str) -> dict[str, Tensor]:
    """transformers' keys (versions 4 and 5) to ours, one to one. PansightError names a key of another layout."""
    short = {re.sub(r"^layers\.(\d+)\.", r"block.\1.", key): tensor for key, tensor in state.items() if tensor.numel()}
    joined = join_qkv(short, source)
    if any(".mlp.gate_proj." in key for key in joined):  # timm packs the two halves: gate, then value
        pattern = r"block\.(\d+)\.mlp\.(?P<part>gate|up)_proj\.(weight|bias)"
        joined = join_rows(joined, pattern, ("gate", "up"), BACKBONE + r"blocks.\1.mlp.fc1.\3", source)
    ours = rename(joined, [*HEADS, *(DINOV3_BLOCKS if rotary else DINOV2_BLOCKS)], IGNORED, source)
    if BACKBONE + "pos_embed" in ours:
        ours[BACKBONE + "pos_embed"] = ours[BACKBONE + "pos_embed"].unsqueeze(0)  # (h·w, D) → (1, h·w, D)
    return ours


def _described(config: Mapping[str, Any], rotary: bool, source: str) -> tuple[str, dict[str, Any]]:
    """(name, options) of the model that a config.json describes."""
    fixed: dict[str, Any] = {"hidden_act": "gelu"}
    if rotary:  # with gates transformers takes one activation for the ViT and the heads, which no weights have
        fixed |= {"key_bias": False, "proj_bias": True, "mlp_bias": True, "use_gated_mlp": False}
    for key, expected in fixed.items():
        if config[key] != expected:
            raise PansightError(where=f"{source}: config.json", expected=f"{key} {expected}", found=f"{config[key]!r}")
    size, patch = _side(config, "image_size", source), _side(config, "patch_size", source)
    family = "dinov3" if rotary else "dinov2"
    width, depth, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
    blocks, queries = config["num_blocks"], config["num_queries"]
    vit = _vit_options(config, rotary, source)
    eps = config["layer_norm_eps"]
    loss = {ours: config[theirs] for ours, theirs in LOSS.items()}
    standard = (
        _published_vit(width, rotary, config),
        eps == (1e-5 if rotary else 1e-6),
        patch == 16 and config["num_upscale_blocks"] == 2,
        loss == {ours: DEFAULTS[theirs] for ours, theirs in LOSS.items()},
    )
    if (family, width, depth, blocks, size) in PUBLISHED and heads == width // 64 and all(standard):
        return published_name(family, width, depth, blocks, size, queries, config["windows"])
    options: dict[str, Any] = {
        "backbone": BACKBONES[family, 1536 if config["use_swiglu_ffn"] and not rotary else 384],
        "size": size,
        "patch": patch,
        "queries": queries,
        "blocks": blocks,
        "upscales": config["num_upscale_blocks"],
        "vit_options": vit,
        "norm_eps": eps,
        **loss,
    }
    options |= {"windows": True} if config["windows"] else {}
    return "eomt", options


def _published_vit(width: int, rotary: bool, config: Mapping[str, Any]) -> bool:
    """Whether everything but width, depth and heads is as in the ViTs of DINOv2 (DINOv3, trained with its scaling)."""
    common = config["num_register_tokens"] == 4 and not any(
        config[key] for key in ("hidden_dropout_prob", "attention_dropout", "drop_path_rate")
    )
    if not rotary:
        return common and config["mlp_ratio"] == 4 and config["use_swiglu_ffn"] == (width == 1536)
    biases = config["query_bias"] and config["value_bias"]
    augmented = [config.get(f"pos_embed_{key}") for key in ("shift", "jitter", "rescale")] == [None, None, 2.0]
    return common and biases and augmented and config["intermediate_size"] == 4 * width and _theta(config) == 100


def _theta(config: Mapping[str, Any]) -> float:
    return float((config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta", 100.0)))


def _vit_options(config: Mapping[str, Any], rotary: bool, source: str) -> dict[str, Any]:
    """Arguments of timm's ViT; what timm's model of the same family has anyway is written down all the same."""
    width, hidden = config["hidden_size"], int(config["hidden_size"] * config["mlp_ratio"])
    options: dict[str, Any] = {
        "embed_dim": width,
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "num_reg_tokens" if rotary else "reg_tokens": config["num_register_tokens"],
    }
    dropout = {"pos_drop_rate": "hidden_dropout_prob", "attn_drop_rate": "attention_dropout"}
    options |= {
        ours: config[key] for ours, key in (dropout | {"drop_path_rate": "drop_path_rate"}).items() if config[key]
    }
    if rotary:
        if config["query_bias"] != config["value_bias"]:
            raise PansightError("expected query_bias and value_bias to be equal", where=f"{source}: config.json")
        options |= {"qkv_bias": config["query_bias"], "rope_temperature": _theta(config)}
        for ours in ("shift", "jitter", "rescale"):
            if config.get(f"pos_embed_{ours}") is not None:
                options[f"rope_{ours}_coords"] = config[f"pos_embed_{ours}"]
        hidden = config["intermediate_size"]
    elif config["use_swiglu_ffn"]:
        hidden = 2 * _swiglu(hidden)
    # timm takes a ratio and cuts the product: half a channel more is safe from rounding
    options["mlp_ratio"] = hidden / width if hidden % width == 0 else (hidden + 0.5) / width
    return options


def _swiglu(hidden: int) -> int:
    """Two thirds of the hidden channels, to a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _side(config: Mapping[str, Any], key: str, source: str) -> int:
    value = config[key]
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1:
        raise PansightError(where=f"{source}: config.json", expected=f"a square {key}", found=value)
    return int(sides[0])


def export(
    model: Any, name: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """→ (config.json without labels, tensors of transformers 5, preprocessor_config.json).

    Raises PansightError for a ViT that these two models of transformers cannot be.
    """
    rotary: bool = model.backbone.rotary
    state = {key: tensor.detach() for key, tensor in model.state_dict().items()}
    _check_vit(model, name)
    config = _config_rotary(model, state) if rotary else _config_learned(model, state)
    vit, settings = model.backbone.features, model.settings
    size = vit.patch_embed.img_size[0]
    config |= {
        "hidden_size": model.backbone.channels,
        "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": vit.blocks[0].attn.num_heads,
        "hidden_act": "gelu",
        "layer_norm_eps": float(vit.norm.eps),
        "image_size": size,
        "patch_size": model.backbone.patch,
        "num_upscale_blocks": len(model.upscale),
        "num_blocks": len(model.annealing.starts),
        "num_queries": model.q.num_embeddings,
        "num_register_tokens": model.backbone.prefix - 1,
        **{theirs: _number(getattr(settings, ours), ours) for ours, theirs in LOSS.items()},
    }
    processor = settings_of(model.input) | {
        "image_processor_type": "EomtImageProcessor",
        "do_pad": not model.window,
        "do_split_image": bool(model.window),
    }
    if not model.input.resize.height:  # transformers' models take the square of their positions alone
        longest = (model.input.resize.long or None) if model.window else size
        processor |= {"do_resize": True, "size": {"shortest_edge": size, "longest_edge": longest}}
    else:
        processor["do_pad"] = False
    return config, _exported(model, state, rotary), processor


def _number(value: float, ours: str) -> float:
    """The type that transformers insists on: a whole number of points, and floating point for all others."""
    return int(value) if ours == "points" else float(value)


def _check_vit(model: Any, name: str) -> None:
    """Raises PansightError where a ViT computes what its weights do not tell and transformers' ViT does not."""
    vit = model.backbone.features
    norms = [module for module in vit.modules() if "norm" in type(module).__name__.lower()]
    is_packed = isinstance(vit.blocks[0].mlp, GluMlp)
    wrong = {
        "attention without extras, as in DINOv2 and DINOv3": not model.backbone.usual,
        "one class token": vit.cls_token is None,
        "norms over channels of one epsilon": any(
            not isinstance(norm, nn.LayerNorm) or norm.eps != vit.norm.eps for norm in norms
        ),
        "the activation GELU": not is_packed and not all(_is_gelu(block.mlp.act) for block in vit.blocks),
        "the gate SiLU before its values": is_packed
        and any(not isinstance(block.mlp.act, nn.SiLU) or block.mlp.gate_last for block in vit.blocks),
    }
    expected = next((what for what, is_wrong in wrong.items() if is_wrong), None)
    if expected is not None:
        raise PansightError(where=name, expected=f"a ViT with {expected}, which transformers has", found="another")
    shares = rounded(model.annealing.probs) if model.masked else model.annealing.probs * 0
    if (shares.diff() < 0).any():  # transformers keeps a block's mask for all blocks after it
        found = f"{shares.tolist()}"
        raise PansightError(where=name, expected="blocks without masks before those with masks", found=found)


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation).__name__ == "GELU" and vars(activation).get("approximate", "none") == "none"


def rounded(probs: Tensor) -> Tensor:
    """Masked attention of each block as it is at prediction: 1 or 0."""
    return (probs > 0.5).to(probs)


def _config_learned(model: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys that EomtConfig alone has. Raises PansightError where the ViT is none of DINOv2's make."""
    width, hidden = model.backbone.channels, state[BACKBONE + "blocks.0.mlp.fc1.weight"].shape[0]
    packed = hidden != state[BACKBONE + "blocks.0.mlp.fc2.weight"].shape[1]
    grid = model.backbone.features.patch_embed.num_patches
    needed = [f"{BACKBONE}blocks.0.{part}" for part in ("ls1.gamma", "ls2.gamma", "attn.qkv.bias", "attn.proj.bias")]
    fits = hidden == 2 * _swiglu(4 * width) if packed else hidden % width == 0
    positions = state.get(BACKBONE + "pos_embed")
    if any(key not in state for key in needed) or positions is None or positions.shape[1] != grid or not fits:
        raise PansightError(
            where="export", expected="a ViT as DINOv2's with registers (…_reg4_dinov2)", found="another"
        )
    ratio = 4 if packed else hidden // width
    return {
        "model_type": "eomt",
        "architectures": ["EomtForUniversalSegmentation"],
        "mlp_ratio": ratio,
        "use_swiglu_ffn": packed,
        "layerscale_value": 1e-5,
    }


def _config_rotary(model: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys that EomtDinov3Config alone has. Raises PansightError where the ViT is none of DINOv3's make."""
    vit = model.backbone.features
    hidden = state[BACKBONE + "blocks.0.mlp.fc2.weight"].shape[1]
    fits = all(BACKBONE + key in state for key in ("blocks.0.gamma_1", "blocks.0.attn.qkv.weight", "cls_token"))
    fits = fits and state.get(BACKBONE + "blocks.0.mlp.fc1.bias", torch.empty(0)).shape[0] == hidden
    if not fits or BACKBONE + "pos_embed" in state or not _is_dinov3(vit):
        raise PansightError(where="export", expected="a ViT as DINOv3's (…_patch16_dinov3_qkvb)", found="another")
    bias = BACKBONE + "blocks.0.attn.q_bias" in state
    return {
        "model_type": "eomt_dinov3",
        "architectures": ["EomtDinov3ForUniversalSegmentation"],
        "intermediate_size": hidden,
        "use_gated_mlp": False,
        "query_bias": bias,
        "key_bias": False,
        "value_bias": bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(vit.rope.temperature)},
        "pos_embed_shift": _float(vit.rope.shift_coords),
        "pos_embed_jitter": _float(vit.rope.jitter_coords),
        "pos_embed_rescale": _float(vit.rope.rescale_coords),
        "layerscale_value": 1e-5,
    }


def _is_dinov3(vit: Any) -> bool:
    """Whether positions are rotated as in DINOv3: patch centres from −1 to 1, a quarter of a head an axis."""
    rope, head = vit.rope, vit.blocks[0].attn.qkv.weight.shape[1] // vit.blocks[0].attn.num_heads
    return (
        type(rope) is RotaryEmbeddingDinoV3
        and (rope.rotate_half, rope.normalize_coords, rope.grid_indexing) == (True, "separate", "ij")
        and (rope.grid_offset, rope.min_period, rope.max_period) == (0.0, None, None)
        and head % 4 == 0
        and len(torch.arange(0, 1, 4 / head)) == head // 4  # transformers' own count, which may be rounded up
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


BLOCK = re.escape(BACKBONE) + r"blocks\.(\d+)\."
BACK: list[Rule] = [
    (r"q\.weight", "query.weight"),
    (r"class_head\.(weight|bias)", r"class_predictor.\1"),
    (r"mask_head\.([024])\.(weight|bias)", lambda m: f"mask_head.fc{int(m[1]) // 2 + 1}.{m[2]}"),
    (r"upscale\.(\d+)\.(conv[12]\.(?:weight|bias))", r"upscale_block.block.\1.\2"),
    (r"upscale\.(\d+)\.norm\.(weight|bias)", r"upscale_block.block.\1.layernorm2d.\2"),
    (r"annealing\.probs", "attn_mask_probs"),
    (re.escape(BACKBONE) + r"cls_token", "embeddings.cls_token"),
    (re.escape(BACKBONE) + r"reg_token", "embeddings.register_tokens"),
    (re.escape(BACKBONE) + r"pos_embed", "embeddings.position_embeddings.weight"),
    (re.escape(BACKBONE) + r"norm\.(weight|bias)", r"layernorm.\1"),
    (BLOCK + r"(norm[12]\.(?:weight|bias))", r"layers.\1.\2"),
    (BLOCK + r"ls([12])\.gamma", r"layers.\1.layer_scale\2.lambda1"),
    (BLOCK + r"gamma_([12])", r"layers.\1.layer_scale\2.lambda1"),
    (BLOCK + r"attn\.([qv])_bias", r"layers.\1.attention.\2_proj.bias"),
    (r"layers\..*", r"\g<0>"),  # split already
]


def _exported(model: Any, state: Mapping[str, Tensor], rotary: bool) -> dict[str, Tensor]:
    qkv = BLOCK + r"attn\.qkv\.(weight|bias)"
    state = split_rows(state, qkv, "qkv", r"layers.\1.attention.{part}_proj.\2")
    fc1, fc2 = BLOCK + r"mlp\.fc1\.(weight|bias)", BLOCK + r"mlp\.fc2\.(weight|bias)"
    gated = state[BACKBONE + "blocks.0.mlp.fc1.weight"].shape[0] != state[BACKBONE + "blocks.0.mlp.fc2.weight"].shape[1]
    if gated:
        state = split_rows(state, fc1, ("gate", "up"), r"layers.\1.mlp.{part}_proj.\2")
    first, second = ("up_proj", "down_proj") if rotary else ("fc1", "down_proj" if gated else "fc2")  # gated: no fc1
    rules: list[Rule] = [
        (fc1, rf"layers.\1.mlp.{first}.\2"),
        (fc2, rf"layers.\1.mlp.{second}.\2"),
        (BLOCK + r"attn\.proj\.(weight|bias)", rf"layers.\1.attention.{'o' if rotary else 'out'}_proj.\2"),
        (
            re.escape(BACKBONE) + r"patch_embed\.proj\.(weight|bias)",
            rf"embeddings.patch_embeddings.{'' if rotary else 'projection.'}\1",
        ),
    ]
    result = rename(state, [*rules, *BACK], "", "export")
    if not rotary:
        result["embeddings.position_embeddings.weight"] = result["embeddings.position_embeddings.weight"][0]
    empty_weight = torch.ones(len(model.labels) + 1)
    empty_weight[-1] = model.settings.no_object
    result["criterion.empty_weight"] = empty_weight
    if not model.masked:  # transformers uses masked attention wherever these are above 0
        result["attn_mask_probs"] = torch.zeros_like(result["attn_mask_probs"])
    registers = torch.empty(1, 0, model.backbone.channels)
    result.setdefault("embeddings.register_tokens", registers)
    return result
