"""Every option of every model that transformers has, set off its default: the same logits there, or one line before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import pansight
from pansight.errors import PansightError
from pansight.models import MODELS, build, builder_options
from pansight.types import LabelSpace
from pansight.weights import save_model
from pansight.weights.huggingface import SYSTEMS
from pansight.weights.huggingface.export import prepare, write_prepared

pytestmark = pytest.mark.slow

LABELS = LabelSpace.from_names(["bolt", "nut"], ["floor"])
SIDE = 64
SWIN = "swin_c16_d1-1-2-1_h1-2-4-8_w4"
VIT: dict[str, Any] = {"depth": 4, "embed_dim": 32, "num_heads": 2}
VIT3: dict[str, Any] = {"depth": 4, "embed_dim": 32, "num_heads": 2}
DINOV2, DINOV3 = "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3_qkvb"

SMALL: dict[str, dict[str, Any]] = {
    "detr": {"backbone": "resnet10t", "channels": 64, "heads": 8, "hidden": 32, "queries": 5},
    "maskformer": {"backbone": SWIN, "channels": 32, "heads": 2, "hidden": 32, "layers": 2, "queries": 5},
    "eomt": {"backbone": DINOV2, "size": SIDE, "queries": 5, "blocks": 2, "vit_options": VIT, "points": 64},
}
SMALL["detr"] |= {"encoder_layers": 1, "decoder_layers": 2, "short": SIDE, "long": SIDE}
SMALL["detr_panoptic"] = SMALL["detr"]
SMALL["maskformer"] |= {"short": SIDE, "long": SIDE}
SMALL["mask2former"] = SMALL["maskformer"] | {"encoder_layers": 1, "encoder_hidden": 32, "loss_points": 64}

LOSSES = {"class_weight": [2, 0.5], "mask_weight": [3, 0.5], "dice_weight": [3, 0.5], "no_object": [1, 0.3]}
COMMON: dict[str, list[Any]] = {
    "pretrained": [],  # what the weights are does not matter here
    "short": [0, 48],
    "long": [96],
    "hidden": [48],
    "queries": [1, 7],
    "dropout": [0, 0.5],
    "frozen_bn": [False],
    "freeze_stages": [1],
    "drop_path": [0.0, 0.2],
    "encoder_layers": [2],
    **LOSSES,
}
SAME: dict[str, dict[str, list[Any]]] = {
    "detr": COMMON
    | {
        "backbone": ["resnet18", "resnet26d", "resnet10t.c3_in1k"],
        "channels": [32, 96],
        "heads": [4],
        "decoder_layers": [1],
        "auxiliary": [False],
        "dilate": [True],
        "box_weight": [2, 2.5],
        "giou_weight": [1, 1.5],
        "score_threshold": [0.5],
        "stuff": [True],
        "class_hidden": [],
        "class_relu": [False],  # without hidden layers there is none
    },
    "maskformer": COMMON
    | {
        "backbone": ["resnet18", "resnet50.tv_in1k", "swin_c8_d2-1-1-1_h1-1-1-1_w7"],
        "channels": [64, 96],
        "heads": [4],
        "layers": [1],
        "divisor": [1, 64],
        "score_threshold": [0.5],
        "pixel_decoder": [],
    },
    "mask2former": COMMON
    | {
        "backbone": ["resnet18", "swin_c8_d2-1-1-1_h1-1-1-1_w7"],
        "channels": [64, 128],
        "heads": [4],
        "layers": [1],
        "encoder_hidden": [48],
        "sampling_points": [],
        "loss_points": [32],
    },
    "eomt": LOSSES
    | {
        "pretrained": [],
        "backbone": [DINOV3, "vit_base_patch14_reg4_dinov2", "deit3_small_patch16_224"],
        "size": [96, 64],
        "patch": [8, 32],
        "square": [False],
        "windows": [True],
        "queries": [1, 7],
        "blocks": [1, 4],
        "upscales": [1, 3],
        "vit_options": [
            VIT | {"num_heads": 4},
            VIT | {"reg_tokens": 0},
            VIT | {"reg_tokens": 2},
            VIT | {"mlp_ratio": 2.0},
            VIT | {"drop_path_rate": 0.2, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1},
        ],
        "norm_eps": [1e-5],
        "masked": [False],
        "anneal_starts": [[0.1, 0.2]],
        "anneal_ends": [[0.9, 0.95]],
        "anneal_power": [2, 0.5],
        "points": [32],
        "oversample": [2, 2.5],
        "importance": [1, 0.5],
        "binary_weight": [3, 0.5],
    },
}
SAME["detr_panoptic"] = {key: value for key, value in SAME["detr"].items() if key != "stuff"} | {
    "channels": [32, 128],
    "heads": [16],
}
SAME["eomt"].pop("mask_weight")
SAME["mask2former"].pop("dropout")
for general in ("detr", "detr_panoptic"):
    SAME[general].pop("drop_path")
SAME["detr"] = {key: value for key, value in SAME["detr"].items() if key not in ("mask_weight", "dice_weight")}

REFUSED: dict[str, dict[str, list[Any]]] = {
    "detr": {
        "class_hidden": [[16]],
        # BatchNorm with an activation inside, of another epsilon; constants that are no weights; maps of another kind
        "backbone": ["efficientnet_lite0", "tf_efficientnet_lite0", "resnetblur18", "convnext_atto", SWIN],
    },
    "maskformer": {
        "channels": [48, 128],  # 128 is the width of the backbone's last map
        "pixel_decoder": ["encoder"],
        "backbone": ["resnet10t", "resnet26d", "convnext_atto", "swin_c8_d1-1-1-1-1_h1-1-1-1-1_w7"],
    },
    "mask2former": {
        "channels": [48],
        "sampling_points": [2],
        "backbone": ["resnet10t", "convnext_atto"],
    },
    "eomt": {
        "backbone": ["vit_tiny_patch16_224", "vit_base_patch16_clip_quickgelu_224"],
        "vit_options": [
            VIT | {"act_layer": "relu"},
            VIT | {"act_layer": "gelu_tanh"},
            VIT | {"qk_norm": True},
            VIT | {"pre_norm": True},
            VIT | {"proj_bias": False},
            VIT | {"qkv_bias": False},
            VIT | {"class_token": False},
            VIT | {"no_embed_class": False},
            VIT | {"mlp_ratio": 2.5},
            VIT | {"scale_attn_norm": True},
        ],
    },
}
REFUSED["detr_panoptic"] = REFUSED["detr"] | {"channels": [48, 96], "heads": [4]}
REFUSED_DINOV3: list[dict[str, Any]] = [
    VIT3 | {"rope_rotate_half": False},
    VIT3 | {"rope_grid_offset": 0.25},
    VIT3 | {"embed_dim": 36},  # heads of 18 channels, which four do not divide
    VIT3 | {"use_abs_pos_emb": True},
]
SAME_DINOV3: list[dict[str, Any]] = [
    VIT3 | {"rope_temperature": 50},
    VIT3 | {"rope_rescale_coords": 2, "rope_shift_coords": 1, "rope_jitter_coords": 2},
    VIT3 | {"num_reg_tokens": 2},
    VIT3 | {"qkv_bias": False},
    VIT3 | {"mlp_ratio": 2.5},
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def there() -> Any:
    """transformers, without a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        yield transformers


def made(name: str, options: dict[str, Any]) -> Any:
    """A model of random weights everywhere, in eval mode, so that nothing that is lost goes unnoticed."""
    model: Any = build(name, LABELS, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
    return model


def check_same(name: str, options: dict[str, Any], there: Any, folder: Path) -> None:
    model = made(name, options)
    prepared = prepare(model, name, options, "test")
    folder.mkdir()
    architecture = write_prepared(folder, prepared, "", None)
    theirs, report = getattr(there, architecture).from_pretrained(folder, output_loading_info=True)
    assert {key: value for key, value in report.items() if value} == {}
    side = options.get("size", SIDE)
    images = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        ours = model._run(images, None, all_layers=False) if model.input.resize.rounding == "eomt" else model(images)
        found = theirs.eval()(pixel_values=model.input(images))
    logits = found.logits if "logits" in found else found.class_queries_logits
    mine = ours.class_logits[-1] if ours.class_logits.ndim == 4 else ours.class_logits
    assert (mine - logits).abs().max() <= 1e-4
    if architecture == "DetrForObjectDetection":
        assert (ours.boxes_cxcywh - found.pred_boxes).abs().max() <= 1e-4
        return
    masks = found.pred_masks if "pred_masks" in found else found.masks_queries_logits
    expected = model.mask_logits(ours, 0)
    assert masks[0].shape == expected.shape
    assert (masks[0] - expected).abs().max() <= 1e-3 * max(1.0, float(expected.abs().max()))


TRAINING = {*LOSSES, "dropout", "freeze_stages", "drop_path", "box_weight", "giou_weight", "binary_weight", "points"}
TRAINING |= {"anneal_starts", "anneal_ends", "anneal_power", "oversample", "importance", "loss_points", "auxiliary"}
TRAINING |= {"score_threshold", "stuff", "short", "long"}
"""Options that no logit depends on: they are tried together, since what could fail is what transformers takes."""


def cases_of_same() -> list[Any]:
    """(name, options) for each value of each option."""
    result: list[Any] = []
    for name, options in SAME.items():
        for option, values in options.items():
            if option not in TRAINING:
                result += [pytest.param(name, {option: v}, id=f"{name} {option} {v}"[:90]) for v in values]
        for which in (0, -1):
            together = {option: options[option][which] for option in options if option in TRAINING}
            result.append(pytest.param(name, together, id=f"{name} training {which}"))
    return result


def cases(table: dict[str, dict[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(name, option, value, id=f"{name} {option} {value}"[:90])
        for name, options in table.items()
        for option, values in options.items()
        for value in values
    ]


def test_every_option_is_tried() -> None:
    names = [name for name, entry in MODELS.items() if entry.architecture in SYSTEMS and not entry.variant_of]
    assert set(SAME) == set(names)
    for name in names:
        options = set(builder_options(name))
        assert set(SAME[name]) == options
        tried = {option for option in options if SAME[name][option] or REFUSED[name].get(option)}
        assert options - tried == {"pretrained"}


@pytest.mark.parametrize(("name", "options"), cases_of_same())
def test_same_logits(name: str, options: dict[str, Any], there: Any, tmp_path: Path) -> None:
    check_same(name, SMALL[name] | options, there, tmp_path / "model")


@pytest.mark.parametrize("vit_options", SAME_DINOV3, ids=str)
def test_same_logits_of_rotary_positions(vit_options: dict[str, Any], there: Any, tmp_path: Path) -> None:
    check_same("eomt", SMALL["eomt"] | {"backbone": DINOV3, "vit_options": vit_options}, there, tmp_path / "model")


@pytest.mark.parametrize(("probs", "fits"), [((0.0, 0.3), True), ((0.2, 0.8), True), ((0.8, 0.2), False)])
def test_half_annealed_masks(probs: tuple[float, ...], fits: bool, there: Any, tmp_path: Path) -> None:
    """transformers draws which queries keep to their masks, also at prediction, and keeps a mask for later blocks."""
    model = made("eomt", SMALL["eomt"])
    model.annealing.probs.copy_(torch.tensor(probs))
    if not fits:
        with pytest.raises(PansightError, match="expected blocks without masks before those with masks"):
            prepare(model, "eomt", SMALL["eomt"], "test")
        return
    tensors = prepare(model, "eomt", SMALL["eomt"], "test").tensors
    assert tensors["attn_mask_probs"].tolist() == [float(p > 0.5) for p in probs]


@pytest.mark.parametrize(("name", "option", "value"), cases(REFUSED))
def test_refused_before_anything_is_written(name: str, option: str, value: Any) -> None:
    check_refused(name, SMALL[name] | {option: value})


@pytest.mark.parametrize("vit_options", REFUSED_DINOV3, ids=str)
def test_refused_rotary_positions(vit_options: dict[str, Any]) -> None:
    check_refused("eomt", SMALL["eomt"] | {"backbone": DINOV3, "vit_options": vit_options})


def check_refused(name: str, options: dict[str, Any]) -> None:
    model = build(name, LABELS, **options).eval()
    with pytest.raises(PansightError, match=r"^runs/x: ") as error:
        prepare(model, name, options, "runs/x")
    assert "\n" not in str(error.value)


def test_the_command_leaves_no_trace_of_what_it_refuses(tmp_path: Path) -> None:
    options = SMALL["mask2former"] | {"sampling_points": 2}
    save_model(tmp_path / "ours", build("mask2former", LABELS, **options), "mask2former", options)
    with pytest.raises(PansightError, match="expected sampling_points 4, which transformers has, found 2"):
        pansight.export(str(tmp_path / "ours"), out=str(tmp_path / "deep" / "hf"))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
