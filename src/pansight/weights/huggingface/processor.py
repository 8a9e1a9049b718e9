"""Between preprocessor_config.json (the resize rule and the pixel statistics) and our model, which carries both."""

from __future__ import annotations

from typing import Any

import torch

from pansight.errors import PansightError
from pansight.nn.normalize import Normalize
from pansight.ops.resize import ResizeRule

DISTORTED = {"maskformer": (384, 384), "mask2former": (384, 384)}
"""Sizes that the hub's files of a model_type give, but at which no published score was measured."""


def apply_processor(model: Any, processor: Any, model_type: str, source: str) -> None:
    """Mean, deviation and size rule of an image processor into `model`, in place; what it leaves open stays.

    A fixed height and width, which transformers distorts the photo to, becomes the largest size that fits into them
    and keeps the shape. Raises PansightError where a value is of another kind.
    """
    if not isinstance(processor, dict):
        raise PansightError(f"{source}: expected the settings of an image processor, found {processor!r:.80}")
    try:
        normalize = _normalize(processor)
        rule = _rule(processor, model.resize, DISTORTED.get(model_type))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        expected = "image_mean, image_std and size as an image processor has them"
        raise PansightError(f"{source}: expected {expected}, found {error}") from error
    own: Normalize = model.backbone.normalize
    if normalize is not None and (own.bgr or not _alike(normalize, own)):  # 0.485 × 255 is 123.675 but for a last bit
        model.backbone.normalize = normalize
    model.resize = rule


def _alike(one: Normalize, other: Normalize) -> bool:
    return torch.allclose(one.mean, other.mean, 1e-6, 1e-6) and torch.allclose(one.scale, other.scale, 1e-6, 0.0)


def _normalize(processor: dict[str, Any]) -> Normalize | None:
    """(x · factor − mean) / deviation, as one mean and one deviation of plain pixels. None: not said."""
    if "image_mean" not in processor or "image_std" not in processor:
        return None
    factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    mean, std = processor["image_mean"], processor["image_std"]
    mean, std = ([float(v) for v in (values if isinstance(values, list) else [values] * 3)] for values in (mean, std))
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    if len(mean) != 3 or len(std) != 3 or not all(v > 0 for v in std):
        raise ValueError(f"mean {mean}, deviation {std}")
    return Normalize([v / factor for v in mean], [v / factor for v in std])


def _rule(processor: dict[str, Any], rule: ResizeRule, distorted: tuple[int, int] | None) -> ResizeRule:
    if not processor.get("do_resize", True):
        return rule._replace(short=0, long=0)
    size = processor.get("size")
    if isinstance(size, int):  # before transformers 4.26
        size = {"shortest_edge": size, "longest_edge": processor.get("max_size")}
    if not isinstance(size, dict):
        return rule
    if size.get("height") and size.get("width"):
        if (size["height"], size["width"]) == distorted:
            return rule
        short, long = sorted((int(size["height"]), int(size["width"])))
    elif size.get("shortest_edge") and (size.get("longest_edge") or processor.get("max_size")):
        short, long = int(size["shortest_edge"]), int(size.get("longest_edge") or processor["max_size"])
    else:  # no upper limit: windows that slide over the photo, or nothing said
        return rule
    if not 1 <= short <= 2**16 or not 1 <= long <= 2**16:
        raise ValueError(f"size {size}")
    return rule._replace(short=short, long=long)
