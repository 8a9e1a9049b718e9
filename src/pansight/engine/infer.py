"""Inference, in one place: photos are resized, mirrored, padded, batched, predicted, decoded and brought to the CPU.

Evaluation, `predict` and all that come after them call `infer` (or, where samples are loaded by workers, `views_of` in
these and `predict_views` here). EoMT looks through the windows of its paper by itself.

Mirrored and resized views are averaged as published for semantic segmentation (Chen et al., "Encoder-Decoder with
Atrous Separable Convolution for Semantic Image Segmentation", ECCV 2018, section 4; Mask2Former's test-time
augmentation): the class scores of all views are brought to the size of the file, mirrored ones turned back, and their
mean decides. Where a model can make the raw outputs of several views one (`JoinsViews`), its panoptic maps and objects
follow from what all views show.

Each view may be looked at through windows (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, and the code of
PSPNet): squares of the size that the network was trained on, which overlap; where they do, their scores are averaged.
Panoptic maps and objects of windows are stitched instead, as those of the tiles of a large image (`ops.tiling`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pansight.config import EvaluateConfig
from pansight.data.loader import View, Views, pad_images
from pansight.data.transforms import resize_image
from pansight.engine import distributed
from pansight.errors import PansightError, choice_error
from pansight.models.options import DECODE_OPTIONS
from pansight.nn.input import Input
from pansight.ops.fusion.components import decided
from pansight.ops.resize import ResizeRule
from pansight.ops.semantic.windows import window_places
from pansight.ops.targets import valid_extents
from pansight.ops.tiling.stitchers import Grid
from pansight.ops.tiling.stitching import tile_spans
from pansight.ops.tiling.whole import predicted_in_tiles, resized_prediction
from pansight.types import Prediction


@runtime_checkable
class ClassScorer(Protocol):
    """A model that says how likely each class is at each pixel."""

    def class_scores(self, outputs: Any, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Float (C, H, W) of each image, C classes of the label space, at the given sizes; means make sense of them."""
        ...


@runtime_checkable
class JoinsViews(Protocol):
    """A model of panoptic maps or objects that can look at a photo several times."""

    def join_views(self, views: Sequence[Any], mirrored: Sequence[bool]) -> Any:
        """The raw outputs of several views of the same photos as one, as of the first view, which is not mirrored."""
        ...


@runtime_checkable
class SeveralInputs(Protocol):
    """A model of several networks that do not all look at a photo in the same way."""

    def further_inputs(self) -> Sequence[Input]:
        """Beside `input`: the photo is given to `forward` once more for each of these, as (images, valid)."""
        ...


@runtime_checkable
class GivenProposals(Protocol):
    """A detector that may be given regions that may hold an object: `forward` takes those of each photo, as
    ``Sample.proposals`` has them, behind the images and their valid pixels.
    """

    @property
    def needs_proposals(self) -> bool:
        """Whether it finds none by itself."""
        ...


COARSEST = 32
"""Pixels of the coarsest cell of most networks."""

OF_MAPS = ("components", "min_area", "certainty")
"""Options of decode that say what is made of the likeliest class of each pixel."""

Regions = Sequence[Tensor | None]
"""Of each photo what ``Sample.proposals`` has; (): of none."""


@dataclass(frozen=True)
class Inference:
    """How photos are predicted."""

    device: torch.device
    precision: str = "fp32"
    """fp32, bf16 or fp16 (autocast)."""
    batch_size: int = 1
    """Photos at once; they are padded to the largest."""
    channels_last: bool = True
    flip: bool = False
    """Look at the mirrored photo too."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on the size that the model asks for, each looked at."""
    window: int = 0
    """Side of the square windows that a resized photo is looked at through, in pixels, 0: none."""
    window_stride: float = 2 / 3
    """From one window to the next, as a share of its side."""
    decode_options: Mapping[str, Any] = field(default_factory=dict)
    """Of the model's decode: thresholds, the task."""

    @classmethod
    def of(cls, config: EvaluateConfig, device: torch.device, precision: str) -> Inference:
        """As the settings of an evaluation say, in a precision that is no longer open."""
        return cls(
            device,
            precision,
            config.batch_size,
            config.channels_last,
            config.flip,
            config.scales,
            config.window,
            config.window_stride,
            config.decode,
        )

    @property
    def averages(self) -> bool:
        """Whether there is more than the one view that a model asks for."""
        return self.flip or tuple(self.scales) != (1.0,) or self.window > 0


def prepare(model: Any, settings: Inference) -> Any:
    """`model` itself, in eval mode, on the device and in the memory format of the settings, which it is checked for.

    Raises PansightError for options that its decode does not know, and where views cannot be averaged.
    """
    check_decode_options(model, type(model).__name__, settings.decode_options)
    able = _joins_views(model, settings) or _stitches(model, settings)
    if settings.averages and not able and not _gives_semantic(model, settings.decode_options):
        task = settings.decode_options.get("task", "left out")
        raise PansightError(
            (
                "expected a model of semantic maps, or task = semantic, whose class scores can be averaged; else "
                "windows alone, or one that joins views and no windows; "
                f"found {type(model).__name__} with task {task}"
            ),
            where="flip, scales, window",
        )
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    return model.to(settings.device, memory_format=layout).eval()


def infer(
    model: Any, images: Iterable[Tensor], settings: Inference, proposals: Iterable[Tensor | None] = ()
) -> Iterator[Prediction]:
    """The prediction of each photo, uint8 (3, H, W) RGB, at its size and on the CPU; `model` as `prepare` leaves it.

    proposals: the regions of each photo, for a model that is given them; left out: of none.
    """
    photos, make, regions = iter(images), views_maker(model, settings), iter(proposals)
    while chunk := list(islice(photos, settings.batch_size)):
        sizes = [(image.shape[1], image.shape[2]) for image in chunk]
        yield from predict_views(model, make(chunk), sizes, settings, list(islice(regions, len(chunk))))


def views_maker(model: Any, settings: Inference) -> partial[Views]:
    """`views_of` for this model, without the model: what the workers of `data.loader.evaluation_loader` call."""
    rule = model.input.resize
    further = tuple(each.resize for each in model.further_inputs()) if isinstance(model, SeveralInputs) else ()
    return partial(views_of, rule=rule, scales=settings.scales, flip=settings.flip, further=further)


def views_of(
    images: Sequence[Tensor],
    rule: ResizeRule,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    further: Sequence[ResizeRule] = (),
) -> Views:
    """Photos, uint8 (3, H, W) each, as a network takes them: by its rule times each scale, with `flip` mirrored too.

    further: the rules of the other networks of a model (`SeveralInputs`), which no scale or mirror goes with; their
    views follow those of the first.
    """
    views: list[View] = []
    for scale in scales:
        resized: list[Tensor] = []
        for image in images:
            height, width = (max(1, round(scale * side)) for side in rule.target(image.shape[1], image.shape[2]))
            resized.append(resize_image(image, height, width, rule.filter))
        views.append(View(*pad_images(resized, rule.divisor)))
        if flip:  # before padding, which stays right and bottom
            views.append(View(*pad_images([image.flip(2) for image in resized], rule.divisor), mirrored=True))
    return tuple(views) + tuple(view for each in further for view in views_of(images, each))


def predict_views(
    model: Any, views: Views, sizes: Sequence[tuple[int, int]], settings: Inference, proposals: Regions = ()
) -> list[Prediction]:
    """The prediction of each photo at `sizes` (H, W), on the CPU, from all views of it.

    proposals: of each photo; passed over where the model takes none.
    """
    return run_views(model, views, sizes, settings, proposals)()


def run_views(
    model: Any, views: Views, sizes: Sequence[tuple[int, int]], settings: Inference, proposals: Regions = ()
) -> Callable[[], list[Prediction]]:
    """Run the network as `predict_views` does; the function that is returned decodes what came of it.

    The two may be called by different threads, so that the network can see the next photos while these are decoded.
    """
    with torch.inference_mode():
        if _stitches(model, settings):
            stitched = _stitched(model, views[0], sizes, settings)
            return lambda: stitched
        if settings.averages and not _joins_views(model, settings):
            found = _average(model, views, sizes, settings)
            return lambda: found
        if settings.averages:
            outputs = _joined(model, views, settings)
        else:
            outputs = _outputs(model, views[0], settings, views[1:], proposals)
    return partial(decoded, model, outputs, sizes, settings)


def kept_outputs(model: Any, views: Views, settings: Inference) -> Any:
    """What the network says of photos that it looks at once: `decoded` makes predictions of it as often as asked."""
    with torch.inference_mode():
        return _outputs(model, views[0], settings, views[1:])


def decoded(model: Any, outputs: Any, sizes: Sequence[tuple[int, int]], settings: Inference) -> list[Prediction]:
    """The prediction of each photo at `sizes` (H, W), on the CPU, by the decode options of the settings."""
    with torch.inference_mode():
        predictions = model.decode(outputs, sizes, **settings.decode_options)
        return [distributed.to_cpu(prediction) for prediction in predictions]


def _outputs(model: Any, view: View, settings: Inference, further: Sequence[View] = (), proposals: Regions = ()) -> Any:
    """further: the views of the other networks of a model of several. proposals: of each photo."""
    pairs = [
        tuple(tensor.to(settings.device, non_blocking=True) for tensor in (each.images, each.valid))
        for each in (view, *further)
    ]
    takes_proposals = _takes_proposals(model) and any(regions is not None for regions in proposals)
    with distributed.autocast(settings.precision, settings.device):
        if takes_proposals:
            return model(*pairs[0], proposals)
        return model(*pairs[0], pairs[1:]) if further else model(*pairs[0])


def _takes_proposals(model: Any) -> bool:
    return isinstance(model, GivenProposals)


def _joins_views(model: Any, settings: Inference) -> bool:
    return isinstance(model, JoinsViews) and not settings.window


def _stitches(model: Any, settings: Inference) -> bool:
    """Whether windows are joined segment by segment, since there are no class scores to average."""
    alone = settings.window > 0 and not settings.flip and tuple(settings.scales) == (1.0,)
    semantic = _gives_semantic(model, settings.decode_options) and not isinstance(model, JoinsViews)
    if not alone or semantic or isinstance(model, SeveralInputs):
        return False
    return not (isinstance(model, GivenProposals) and model.needs_proposals)


def _stitched(model: Any, view: View, sizes: Sequence[tuple[int, int]], settings: Inference) -> list[Prediction]:
    """The prediction of each photo of a view at `sizes`, from windows that are stitched as the tiles of a large image.

    Where the stride allows it, windows begin at multiples of the network's coarsest cell, as in the whole photo.
    """
    side, labels = settings.window, model.labels

    def predict(photo: NDArray[np.uint8]) -> Prediction:
        part = torch.from_numpy(np.ascontiguousarray(photo.transpose(2, 0, 1)))
        window = View(*pad_images([part], model.input.resize.divisor))
        return decoded(model, _outputs(model, window, settings), [photo.shape[:2]], settings)[0]

    overlap = min(side - 1, side - math.ceil(round(settings.window_stride * side, 6)))
    align = max(COARSEST, model.input.resize.divisor)
    align = align if side - overlap >= align else 1
    found: list[Prediction] = []
    extents: list[list[int]] = valid_extents(view.images, view.valid).tolist()
    for image, (height, width), size in zip(view.images, extents, sizes, strict=True):
        photo = image[:, :height, :width].permute(1, 2, 0).cpu().numpy()
        grid = Grid((height, width), *(tile_spans(length, side, overlap, align) for length in (height, width)))
        found.append(resized_prediction(predicted_in_tiles(photo, grid, predict, labels), size))
    return found


def _joined(model: Any, views: Views, settings: Inference) -> Any:
    """The outputs of all views as one, as of the largest that is not mirrored, so that no detail is lost."""
    ordered = sorted(views, key=lambda view: (view.mirrored, -view.images[0, 0].numel()))
    outputs = [_outputs(model, view, settings) for view in ordered]
    return model.join_views(outputs, [view.mirrored for view in ordered])


def _average(model: Any, views: Views, sizes: Sequence[tuple[int, int]], settings: Inference) -> list[Prediction]:
    means = ((total / len(views)).max(0) for total in _summed_scores(model, views, sizes, settings))
    given = {name: settings.decode_options[name] for name in OF_MAPS if name in settings.decode_options}
    return [distributed.to_cpu(decided(best.indices, best.values, model.labels, **given)) for best in means]


def _summed_scores(model: Any, views: Views, sizes: Sequence[tuple[int, int]], settings: Inference) -> list[Tensor]:
    """Float32 (C, H, W) of each photo at `sizes`: the sum over all views of it."""
    sums: list[Tensor] = []
    for view in views:
        if settings.window:
            found = _scores_through_windows(model, view, sizes, settings)
        else:
            found = model.class_scores(_outputs(model, view, settings), sizes)
        scores = [each.float().flip(2) if view.mirrored else each.float() for each in found]
        sums = [a + b for a, b in zip(sums, scores, strict=True)] if sums else scores
    return sums


def class_scores(model: Any, images: Sequence[Tensor], settings: Inference) -> list[Tensor]:
    """Float32 (C, H, W) of each photo, uint8 (3, H, W) RGB, at its size and on the CPU: the mean over all views of it.

    `model`: a `ClassScorer`, as `prepare` leaves it.
    """
    with torch.inference_mode():
        views = views_maker(model, settings)(images)
        sums = _summed_scores(model, views, [(image.shape[1], image.shape[2]) for image in images], settings)
        return [total.cpu() / len(views) for total in sums]


def _scores_through_windows(
    model: Any, view: View, sizes: Sequence[tuple[int, int]], settings: Inference
) -> list[Tensor]:
    """Class scores (C, H, W) of each photo of a view at `sizes`: the mean over windows, resized."""
    scores: list[Tensor] = []
    extents: list[list[int]] = valid_extents(view.images, view.valid).tolist()
    for image, (height, width), size in zip(view.images, extents, sizes, strict=True):
        mean = _through_windows(model, image[:, :height, :width], settings)
        scores.append(F.interpolate(mean[None], size, mode="bilinear")[0])
    return scores


def _through_windows(model: Any, image: Tensor, settings: Inference) -> Tensor:
    """Class scores (C, H, W) of a photo (3, H, W) at its size, as many windows at once as there may be photos.

    A photo that is smaller than a window is padded to it, right and bottom, as the padding of a batch.
    """
    height, width = image.shape[1:]
    side, seen = settings.window, torch.zeros(height, width, device=settings.device)
    sums = seen.new_zeros(len(model.labels), height, width)
    places = iter(window_places((height, width), side, settings.window_stride))
    while chunk := list(islice(places, settings.batch_size)):
        parts = [image[:, top : top + side, left : left + side] for top, left in chunk]
        padded = [F.pad(part, (0, side - part.shape[2], 0, side - part.shape[1])) for part in parts]
        images, valid = pad_images(padded, model.input.resize.divisor)
        for each, part in zip(valid, parts, strict=True):
            each[part.shape[1] :] = False
            each[:, part.shape[2] :] = False
        found = model.class_scores(_outputs(model, View(images, valid), settings), [part.shape[1:] for part in parts])
        for (top, left), scores in zip(chunk, found, strict=True):
            place = slice(top, top + scores.shape[1]), slice(left, left + scores.shape[2])
            sums[:, *place] += scores
            seen[place] += 1
    return sums / seen


def _gives_semantic(model: Any, decode_options: Mapping[str, Any]) -> bool:
    """Whether what the model is asked for is a semantic map, whose scores it hands over."""
    if not isinstance(model, ClassScorer):
        return False
    return "task" not in known_decode_options(model) or decode_options.get("task") == "semantic"


def known_decode_options(model: Any) -> list[str]:
    return [name for name in inspect.signature(model.decode).parameters if name not in ("outputs", "sizes")]


def check_decode_options(model: Any, name: str, decode_options: Mapping[str, Any]) -> None:
    """Raises PansightError for one that the model's decode does not know, listing those it knows, or out of range."""
    known = known_decode_options(model)
    for option, value in decode_options.items():
        if option not in known:
            raise choice_error(f"decode option of {name}", option, known)
        if option in DECODE_OPTIONS:
            DECODE_OPTIONS[option].settled(value, f"{option} of {name}")
