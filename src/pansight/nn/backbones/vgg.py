"""The thirteen convolutions of VGG16, which FCN and SegNet are built on, and ImageNet weights for them.

Simonyan, Zisserman: Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015, configuration D.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from pansight.errors import PansightError
from pansight.nn.backbones.pyramid import timm_network
from pansight.nn.norms import BatchNorm2d

CONVOLUTIONS = (2, 2, 3, 3, 3)
"""Of each of the five blocks; a pooling that halves the map follows each block."""
WIDTH, HIDDEN = 64, 4096
"""Channels of the first block, and of the two fully connected layers, of the published network."""


def vgg16_channels(width: int = WIDTH) -> tuple[int, ...]:
    """Channels of each of the five blocks."""
    return (width, 2 * width, 4 * width, 8 * width, 8 * width)


def conv_relu(inputs: int, outputs: int, batch_norm: bool, padding: int = 1) -> nn.Sequential:
    """3×3 convolution (with bias), BatchNorm where `batch_norm`, ReLU. Starts as He et al. (ICCV 2015) say."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=padding)
    nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    nn.init.zeros_(convolution.bias)  # pyright: ignore[reportArgumentType]
    norm = [BatchNorm2d(outputs)] if batch_norm else []
    return nn.Sequential(convolution, *norm, nn.ReLU())


def vgg16_blocks(width: int = WIDTH, batch_norm: bool = False, border: int = 1) -> nn.ModuleList:
    """The five blocks, without the poolings, which belong to the network that they are used in.

    ``blocks[b][k]`` is the convolution that Caffe calls ``conv{b + 1}_{k + 1}``, with what follows it. border: rows and
    columns of zeros that the first convolution puts around the image.
    """
    blocks = nn.ModuleList()
    inputs = 3
    for count, channels in zip(CONVOLUTIONS, vgg16_channels(width), strict=True):
        layers: list[nn.Module] = []
        for _ in range(count):
            layers.append(conv_relu(inputs, channels, batch_norm, 1 if len(blocks) or layers else border))
            inputs = channels
        blocks.append(nn.Sequential(*layers))
    return blocks


def timm_vgg16(batch_norm: bool, width: int, hidden: int = HIDDEN) -> dict[str, Tensor]:
    """timm's ImageNet weights of VGG16, under timm's names. They are downloaded.

    width, hidden: of the network that they are for. Raises PansightError where that is not the published one, or the
    weights cannot be had.
    """
    if (width, hidden) != (WIDTH, HIDDEN):
        expected = f"width {WIDTH} and hidden {HIDDEN} with pretrained='timm'" if hidden != HIDDEN else f"width {WIDTH}"
        found = f"width {width}" + (f" and hidden {hidden}" if hidden != HIDDEN else "")
        raise PansightError(where="pretrained", expected=expected, found=found, hint="or pretrained='none'")
    name = "vgg16_bn" if batch_norm else "vgg16"
    return dict(timm_network(name, {}, "use pretrained='none'").state_dict())


def load_vgg16(blocks: nn.ModuleList, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the convolutions of a VGG16 classifier of timm or torchvision into `blocks`, in place.

    With BatchNorm its layers are copied too, where the classifier has them. Raises PansightError for any other
    network, and for one with BatchNorm where `blocks` have none.
    """
    own = blocks.state_dict()
    has_norm, wants_norm = "features.1.weight" in state, any(key.endswith("running_mean") for key in own)
    if has_norm and not wants_norm:
        raise PansightError(where=source, expected="a VGG16 without BatchNorm", found="one with BatchNorm")
    found: dict[str, Tensor] = {}
    for ours, theirs in _layer_names(has_norm):
        for key in (key for key in own if key.startswith(f"{ours}.")):
            name = f"{theirs}.{key.rpartition('.')[2]}"
            if name in state or not name.endswith("num_batches_tracked"):
                found[key] = _fitting(state, name, own[key], source)
    blocks.load_state_dict(found, strict=False)


def load_fully_connected(fc6: nn.Conv2d, fc7: nn.Conv2d, state: Mapping[str, Tensor], source: str) -> None:
    """Copy the two hidden layers of a VGG16 classifier into convolutions, in place: 7×7 and 1×1.

    timm keeps them as convolutions (``pre_logits``), torchvision as linear layers (``classifier``), whose weights are
    reshaped. Raises PansightError where they are missing or of another size.
    """
    names = (
        ("pre_logits.fc1", "pre_logits.fc2") if "pre_logits.fc1.weight" in state else ("classifier.0", "classifier.3")
    )
    for layer, name in zip((fc6, fc7), names, strict=True):
        found = {key: _fitting(state, f"{name}.{key}", own, source) for key, own in layer.state_dict().items()}
        layer.load_state_dict(found)


def _layer_names(has_norm: bool) -> list[tuple[str, str]]:
    """(ours, theirs) of each layer with weights; ReLU and poolings have numbers of their own in ``features``."""
    names: list[tuple[str, str]] = []
    index = 0
    for block, count in enumerate(CONVOLUTIONS):
        for place in range(count):
            names.append((f"{block}.{place}.0", f"features.{index}"))
            if has_norm:
                names.append((f"{block}.{place}.1", f"features.{index + 1}"))
            index += 3 if has_norm else 2
        index += 1
    return names


def _fitting(state: Mapping[str, Tensor], name: str, own: Tensor, source: str) -> Tensor:
    """The tensor of that name in the shape of `own`, which has the same numbers in the same order."""
    if name not in state:
        raise PansightError(where=source, expected=f"a VGG16, with {name}", found="none by that name")
    if state[name].numel() != own.numel() or state[name].shape[0:1] != own.shape[0:1]:
        found = list(state[name].shape)
        raise PansightError(where=f"{source}: {name}", expected=f"the numbers of {list(own.shape)}", found=found)
    return state[name].reshape(own.shape)
