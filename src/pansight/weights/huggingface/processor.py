"""preprocessor_config.json: how large a photo becomes and what is subtracted, into a model's input and back.

The rule is that of the image processors of transformers 5, which resize uint8 tensors by torchvision ("antialias").
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

from pansight.errors import PansightError, shown
from pansight.nn.input import IMAGENET_MEAN, IMAGENET_STD, Input, PixelStatistics
from pansight.ops.resize import ResizeRule

UNLIMITED = 2**16
"""The long side where a file names a short one only; no photo of a usual shape comes near it."""

BILINEAR = 2  # Pillow's number

SIZE_FORMS = "height and width, shortest_edge (and longest_edge), or max_height and max_width"

USED = {
    "do_resize", "size", "max_size", "default_to_square", "resample", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_pad", "do_split_image", "size_divisor", "pad_size", "do_center_crop", "crop_size",
}  # fmt: skip
NOT_OF_PHOTOS = {
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "auto_map", "_max_size",
    "transformers_version", "model_input_names", "format", "do_convert_annotations", "ignore_index", "num_labels",
    "do_reduce_labels", "reduce_labels", "do_convert_rgb", "data_format", "input_data_format", "device",
    "return_tensors", "disable_grouping", "image_seq_length", "pad_and_return_pixel_mask", "return_segmentation_masks",
    "masks_path",
}  # fmt: skip
"""Settings of labels, of what is returned, and names: they change no pixel."""


def apply_processor(model: Any, processor: Any, model_type: str, source: str) -> None:
    """Mean, deviation and size rule of an image processor into `model.input`; what it leaves open stays.

    A setting that is not followed here is warned of. Raises PansightError where a value is of another kind, or a size
    is none that transformers' processors of this model take.
    """
    if not isinstance(processor, dict):
        raise PansightError(where=source, expected="the settings of an image processor", found=f"{processor!r:.80}")
    own: Input = model.input
    try:
        rule = _rule(processor, model, model_type).checked()
        loaded = Input(rule, _pixels(processor) or own.statistics(), own.black_padding)
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        expected = "image_mean, image_std and size as an image processor has them"
        raise PansightError(where=source, expected=expected, found=error) from error
    _warn_of_the_rest(processor, rule, model_type, source)
    if not own.bgr and _alike(loaded, own):  # 0.485 × 255 is 123.675 but for a last bit
        loaded.mean, loaded.scale = own.mean, own.scale
    model.input = loaded


def _alike(one: Input, other: Input) -> bool:
    return torch.allclose(one.mean, other.mean, 1e-6, 1e-6) and torch.allclose(one.scale, other.scale, 1e-6, 0.0)


def _pixels(processor: dict[str, Any]) -> PixelStatistics | None:
    """(x · factor − mean) / deviation, as one mean and one deviation of plain pixels. None: nothing is said of them.

    What is left out is ImageNet's, as in transformers.
    """
    if not {"image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor"} & set(processor):
        return None
    factor = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
    mean = processor.get("image_mean") or [v / 255 for v in IMAGENET_MEAN]
    std = processor.get("image_std") or [v / 255 for v in IMAGENET_STD]
    mean, std = ([float(v) for v in (values if isinstance(values, list) else [values] * 3)] for values in (mean, std))
    if not processor.get("do_normalize", True):
        mean, std = [0.0] * 3, [1.0] * 3
    numbers = [factor, *mean, *std]
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or factor <= 0 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"mean {mean}, deviation {std}")
    return PixelStatistics(tuple(v / factor for v in mean), tuple(v / factor for v in std))


def _rule(processor: dict[str, Any], model: Any, model_type: str) -> ResizeRule:
    own: ResizeRule = model.input.resize
    rule = own._replace(rounding="transformers", filter="antialias")
    if model_type == "maskformer":
        rule = rule._replace(divisor=1)  # it takes photos of any size, and transformers pads none
    if not processor.get("do_resize", True):
        return rule._replace(short=0, long=0, height=0, width=0)
    if model_type in ("maskformer", "mask2former"):
        rule = rule._replace(multiple=max(1, int(processor.get("size_divisor", 32))))
    is_split = bool(processor.get("do_split_image"))
    size = _size(processor, model_type)
    if size is None:
        return rule
    if not all(type(value) is int and value >= 1 for value in size.values()):
        raise ValueError(f"size {size}")
    if set(size) == {"height", "width"}:
        rule = rule._replace(height=int(size["height"]), width=int(size["width"]), stretched=True)
    elif set(size) == {"max_height", "max_width"}:
        rule = rule._replace(height=int(size["max_height"]), width=int(size["max_width"]), stretched=False)
    elif set(size) in ({"shortest_edge"}, {"shortest_edge", "longest_edge"}):
        # a photo of EoMT that is cut into windows has a limit of its own: so many windows
        limit = own.long if is_split and own.long else UNLIMITED
        rule = rule._replace(short=int(size["shortest_edge"]), long=int(size.get("longest_edge", limit)))
    else:
        raise ValueError(f"size {size}, not {SIZE_FORMS}")
    if model_type.startswith("eomt") and not is_split:
        rule = _padded(rule, model.backbone.patch, bool(processor.get("do_pad", False)))
    return rule


def _size(processor: dict[str, Any], model_type: str) -> dict[str, Any] | None:
    """The setting `size` as a table, whatever form it has; None where the file leaves it out."""
    size, max_size = processor.get("size"), processor.get("max_size")
    if size is None:
        return {"shortest_edge": 800, "longest_edge": max_size} if max_size and model_type != "detr" else None
    if isinstance(size, int):  # before transformers 4.26
        if processor.get("default_to_square") and model_type.startswith("eomt"):  # the others set it themselves
            return {"height": size, "width": size}
        max_size = max_size or (1333 if model_type == "detr" else None)
        return {"shortest_edge": size} | ({"longest_edge": max_size} if max_size else {})
    if isinstance(size, list):
        height, width = size
        return {"height": height, "width": width}
    if not isinstance(size, dict):
        raise ValueError(f"size {size!r:.80}, not {SIZE_FORMS}")
    size = {key: value for key, value in size.items() if value is not None}
    if set(size) == {"shortest_edge"} and max_size:
        size["longest_edge"] = max_size
    return size


def _padded(rule: ResizeRule, patch: int, to_square: bool) -> ResizeRule:
    """EoMT's processor pads every photo to the square that its size names (do_pad), or none."""
    if not to_square:
        return rule._replace(divisor=patch)
    if rule.height or rule.short != rule.long:
        raise ValueError("do_pad with a size that is no square of equal shortest_edge and longest_edge")
    return rule._replace(divisor=rule.short)


def _warn_of_the_rest(processor: dict[str, Any], rule: ResizeRule, model_type: str, source: str) -> None:
    found: list[str] = []
    if processor.get("resample", BILINEAR) not in (BILINEAR, None):
        found.append(f"resample {processor['resample']}: photos are resized bilinearly ({BILINEAR}) here")
    found += [f"{key}: has no effect here" for key in ("do_center_crop", "pad_size") if processor.get(key)]
    if model_type == "mask2former" and not rule.height and (rule.short == 0 or rule.multiple % rule.divisor):
        found.append(f"photos are padded to multiples of {rule.divisor} here, which transformers leaves as they are")
    unknown = sorted(str(key) for key in processor if key not in USED | NOT_OF_PHOTOS)
    if unknown:
        found.append(f"{', '.join(unknown):.200}: not known, without effect here")
    if found:
        warnings.warn(f"{shown(source)}: {shown('; '.join(found))}", UserWarning, stacklevel=2)


def size_divisor(rule: ResizeRule) -> int:
    """Photos are stretched to multiples of it by transformers, which pads none, where ours may be padded to them."""
    return rule.multiple if rule.multiple > 1 else rule.divisor


def settings_of(given: Input) -> dict[str, Any]:
    """The settings that all processors share, of a model's input. Sides may differ from ours by a pixel.

    Raises PansightError for pixels in the order BGR, which transformers does not know.
    """
    if given.bgr:
        raise PansightError(where="export", expected="a model of RGB pixels, which transformers has", found="BGR")
    rule, pixels = given.resize, given.statistics()
    if rule.filter == "plain":
        warnings.warn("export: transformers averages photos that shrink, which this model does not", stacklevel=2)
    names = ("height", "width") if rule.stretched else ("max_height", "max_width")
    by_axis = dict(zip(names, (rule.height, rule.width), strict=True))
    return {
        "do_resize": rule.short > 0 or rule.height > 0,
        "size": by_axis if rule.height else {"shortest_edge": rule.short or 800, "longest_edge": rule.long or 1333},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [round(v / 255, 6) for v in pixels.mean],
        "image_std": [round(v / 255, 6) for v in pixels.std],
    }
