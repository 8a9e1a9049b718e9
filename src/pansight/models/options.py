"""What the options of the models mean, and which values they may have.

One table for each system says it. It drives the check that comes before anything is built, and what
``pansight models NAME`` prints. Options that two or more systems share stand here, the others in their model's file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

from pansight.errors import PansightError, choice_error
from pansight.files import listed
from pansight.nn.backbones.names import check_backbone_name, check_vit_name
from pansight.nn.backbones.vit_options import KEYS, check_vit_options
from pansight.nn.semantic.blocks import check_output_stride
from pansight.nn.semantic.criterion import LOSSES, loss_terms
from pansight.ops.semantic.class_weights import WORDS

Kind = Literal["whole number", "number", "true or false", "text", "table", "whole numbers", "numbers"]
LONGEST_LIST = 512


@dataclass(frozen=True)
class Option:
    """An option: its meaning in one line, and the values it may have."""

    meaning: str
    kind: Kind
    low: float = -math.inf
    high: float = math.inf
    """The least and the largest value; of a list, of each of its values; of a text, nothing."""
    choices: tuple[str, ...] = ()
    """The texts that it may be; (): any."""
    optional: bool = False
    """None is a value too: the model then chooses by its other options."""
    multiple_of: tuple[int | str, ...] = ()
    """Numbers, or other options, that must divide it."""
    length: int | None = None
    """How many values a list must have."""
    longest: int = LONGEST_LIST
    """How many values a list may have."""
    words: tuple[str, ...] = ()
    """What may stand for the list where a model is trained: rules by which its numbers are counted from the data."""
    increasing: bool = False
    """Each value of a list must be larger than the one before."""
    resizes: bool = False
    """It decides which size photos are resized to."""
    further: Callable[[Any], object] | None = None
    """Raises PansightError for a value of the right kind that cannot be meant."""
    keys: Mapping[str, str] = field(default_factory=dict[str, str])
    """What a table may hold: key → what it means, and which values it may have."""

    @property
    def is_list(self) -> bool:
        return self.kind in ("whole numbers", "numbers")

    def expected(self) -> str:
        """The values in words: ``a whole number, 1 … 100``."""
        if self.choices:
            return " or ".join(self.choices)
        words = f"{self.length or 'a list of'} {self.kind}" if self.is_list else self.kind
        text = words if self.is_list or self.kind == "true or false" else f"a {words}"
        if self.low > -math.inf or self.high < math.inf:
            text += f", {self.low:.10g} … {self.high:.10g}"
        if self.multiple_of:
            text += f", a multiple of {' and '.join(map(str, self.multiple_of))}"
        text += ", increasing" if self.increasing else ""
        return " or ".join([text, *self.words])

    def settled(self, value: Any, where: str) -> Any:
        """The value that the builder takes: `value`, or the numbers of a list in any spelling.

        Raises PansightError, headed by `where`, for a value of another kind or out of range.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, str) and value in self.words:
            return value
        if self.is_list and _is_spelled(value):
            value = [_number_of(part) for part in listed(value)]
        if not self._fits(value):
            if self.choices and isinstance(value, str):
                raise choice_error(f"{where}:", f"{value:.80}", self.choices)
            raise PansightError(where=where, expected=self.expected(), found=in_short(value))
        if self.further is not None:
            try:
                self.further(value)
            except PansightError as error:
                raise error.at(where) from error
        return value

    def _fits(self, value: Any) -> bool:
        match self.kind:
            case "true or false":
                return isinstance(value, bool)
            case "text":
                return isinstance(value, str) and (not self.choices or value in self.choices)
            case "table":
                return isinstance(value, Mapping)
            case "whole number" | "number":
                return self._is_number(value)
            case "whole numbers" | "numbers":
                if not isinstance(value, list | tuple) or len(value) > self.longest:
                    return False
                if self.length is not None and len(value) != self.length:
                    return False
                if not all(self._is_number(one) for one in value):
                    return False
                return not self.increasing or all(a < b for a, b in pairwise(value))

    def _is_number(self, value: Any) -> bool:
        kinds = int if self.kind.startswith("whole") else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high


def _is_spelled(value: Any) -> bool:
    """Whether a list is written as a text, as several texts, or as its only number."""
    if isinstance(value, list | tuple):
        return any(isinstance(one, str) for one in value)
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _number_of(part: Any) -> Any:
    """A part of a list that was written as a text; itself where it is no number."""
    for kind in (int, float) if isinstance(part, str) else ():
        with suppress(ValueError):
            return kind(part)
    return part


def in_short(value: Any) -> str:
    """A value for a message, whatever its size."""
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python refuses to write numbers of more than 4,300 digits
        return "a number of thousands of digits"


def whole(meaning: str, low: int, high: int, *multiple_of: int | str, optional: bool = False) -> Option:
    return Option(meaning, "whole number", low, high, multiple_of=multiple_of, optional=optional)


def number(meaning: str, low: float, high: float, optional: bool = False) -> Option:
    return Option(meaning, "number", low, high, optional=optional)


def share(meaning: str) -> Option:
    return Option(meaning, "number", 0, 1)


def flag(meaning: str) -> Option:
    return Option(meaning, "true or false")


def choice(meaning: str, *choices: str) -> Option:
    return Option(meaning, "text", choices=choices)


def loss_weight(what: str) -> Option:
    return number(f"weight of {what} in the loss", 0, 10_000)


def resizing(option: Option) -> Option:
    """The same option, which decides the size of photos."""
    return replace(option, resizes=True)


def drop_rate(meaning: str, optional: bool = False) -> Option:
    return number(meaning, 0, 0.99, optional)


Options = Mapping[str, Option]

SIZE_OPTIONS: Options = {
    "short": resizing(whole("short side that photos are resized to, in pixels; 0 keeps their size", 0, 2**14)),
    "long": resizing(whole("limit of the long side, in pixels, which goes before `short`", 0, 2**15)),
}
PYRAMID_OPTIONS: Options = {
    "backbone": Option("any timm network with feature maps of several sizes", "text", further=check_backbone_name),
    "pretrained": choice("weights of the backbone: random, timm's, or those of a package", "none", "timm", "packaged"),
    "frozen_bn": flag("BatchNorm of the backbone keeps its statistics and is not trained"),
    "freeze_stages": whole("stages of the backbone that are not trained, the stem being the first", 0, 5),
    "bn_eps": number("epsilon of the backbone's BatchNorm", 0, 1),
}
SEMANTIC_OPTIONS: Options = {
    **SIZE_OPTIONS,
    "loss": Option(f"what a map of classes is trained by: a sum of {', '.join(LOSSES)}", "text", further=loss_terms),
    "class_weights": Option(
        "weight of each class in the loss, or the rule by which training counts them; empty: all are equal",
        "numbers",
        0,
        1_000_000,
        longest=10_000,
        words=WORDS,
    ),
    "border_weight": number("weight of the background between two things in the loss, as in U-Net", 0, 10_000),
    "border_sigma": number("how far from things that weight reaches, in pixels", 0.1, 1000),
    "aux_weight": loss_weight("the auxiliary head"),
    "output_stride": Option(
        "stride of the last maps: 8 or 16 dilate the stages beyond, 32 none",
        "whole number",
        8,
        32,
        further=check_output_stride,
    ),
}
VIT_OPTIONS: Options = {
    "backbone": Option("any plain vision transformer of timm", "text", further=check_vit_name),
    "pretrained": choice("weights of the backbone: random, or timm's", "none", "timm"),
    "vit_options": Option(
        "timm's own arguments for its ViT, as below",
        "table",
        optional=True,
        further=check_vit_options,
        keys={key: f"{each.meaning}; {each.expected}" for key, each in KEYS.items()},
    ),
    "norm_eps": number("epsilon of all norms of the ViT; left out: timm's", 1e-12, 1, optional=True),
}
RCNN_OPTIONS: Options = {
    **SIZE_OPTIONS,
    **PYRAMID_OPTIONS,
    "fpn_channels": whole("width of the feature pyramid", 1, 4096),
    "anchor_sizes": Option(
        "side of the anchors at each of the five levels, in pixels", "numbers", 1, 2**14, length=5, increasing=True
    ),
    "proposals": whole("regions that the first stage keeps of an image", 1, 20_000),
    "roi_samples": whole("regions of an image to learn from", 1, 20_000),
    "detections": whole("objects that are kept of an image", 1, 20_000),
    "score_threshold": share("objects at or below this score are dropped"),
    "nms_threshold": share("of two objects of a class that overlap by more than this IoU the better one is kept"),
    "box_features": whole("width of the layers that classify a region", 1, 16_384),
    "mask_convs": whole("convolutions of the mask head", 1, 16),
    "mask_channels": whole("width of the mask head", 1, 4096),
    "roi_op": choice("how the features of a region are read", "align", "pool", "warp"),
}
RCNN_OPTIONS_D2: Options = {
    **RCNN_OPTIONS,
    "backbone": choice("a ResNet with the stride in the first 1×1 convolution", "resnet50", "resnet101", "resnet152"),
}
QUERY_OPTIONS: Options = {
    "queries": whole("learned queries: at most so many segments are found in an image", 1, 10_000),
    "class_weight": loss_weight("the class"),
    "mask_weight": loss_weight("the mask"),
    "dice_weight": loss_weight("the dice loss of masks"),
    "no_object": number("weight of the class 'no object'", 1e-6, 100),
}
TRANSFORMER_OPTIONS: Options = {
    **SIZE_OPTIONS,
    **PYRAMID_OPTIONS,
    **QUERY_OPTIONS,
    "channels": whole("width of the transformer", 4, 4096, 4, "heads"),
    "heads": whole("heads of the attention", 1, 128),
    "hidden": whole("width of its feed-forward layers", 1, 65_536),
    "layers": whole("layers of the decoder", 1, 64),
    "encoder_layers": whole("layers of the encoder", 1, 64),
    "decoder_layers": whole("layers of the decoder", 1, 64),
    "dropout": drop_rate("dropout in the transformer"),
    "drop_path": drop_rate("stochastic depth of the backbone's last block; left out: the backbone's", optional=True),
    "score_threshold": share("segments below this score are dropped"),
}
DECODE_OPTIONS: Options = {
    "score_threshold": share("segments below this score are dropped"),
    "mask_threshold": share("a pixel belongs to a mask if its probability is above this"),
    "overlap": share("a segment must keep at least this share of its own mask"),
    "max_overlap": share("objects are dropped if more than this share of them is covered by better ones"),
    "min_stuff_area": whole("stuff of fewer pixels is dropped", 0, 2**40),
    "heuristic": flag("objects and stuff are merged by a fixed rule instead of the panoptic head"),
    "mask_factor": number("what the logits of masks are multiplied by before those of their class are added", 0, 1000),
    "thing_threshold": share("centres of things at or below this score are dropped"),
    "stuff_threshold": share("regions of stuff at or below this score are dropped"),
    "centre_window": whole("a centre is the largest value of the square of so many places around it", 1, 1023),
    "centres": whole("centres of things that are looked at, at most", 1, 100_000),
    "grouping": choice(
        "what becomes of things without a centre, and of stuff of the least area", "detectron2", "deeplab2"
    ),
    "min_score": share("objects below this score, which counts the certainty of the mask, are dropped"),
    "similarity": number("kernels whose cosine is at least this are fused; 1: none", -1, 1),
    "class_aware": flag("only kernels of one class are fused"),
    "matrix_nms": flag("scores fall by the overlap with better objects of the class: Matrix NMS"),
    "components": flag("objects are made of the semantic map: the connected components of things"),
    "min_area": whole("such an object of fewer pixels is dropped", 0, 2**40),
    "certainty": share("pixels whose likeliest class is less likely than this have no class"),
    "task": choice("which parts of a prediction are made", "panoptic", "instance", "semantic", "all"),
}
"""What may be given to decode, by ``--evaluate.decode.NAME``."""


def check_together(values: Mapping[str, Any], options: Options, name: str) -> None:
    """Raises PansightError where one of `values`, which are complete, makes another one impossible."""
    for key, option in options.items():
        value = values.get(key)
        for divisor in option.multiple_of:
            by = values.get(divisor) if isinstance(divisor, str) else divisor
            if value is not None and isinstance(by, int) and value % by:
                told = f"{divisor} ({by})" if isinstance(divisor, str) else f"{by}"
                raise PansightError(where=f"{key} of model {name}", expected=f"a multiple of {told}", found=value)
    if values.get("short") and values.get("long") == 0:
        raise PansightError(where=f"long of model {name}", expected="at least 1 where short is above 0", found=0)
