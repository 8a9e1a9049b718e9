"""A prediction over its photo, whatever kind it is."""

from __future__ import annotations

from torch import Tensor

from pansight.drawing.objects import draw_objects
from pansight.drawing.segments import class_colors, overlay
from pansight.errors import PansightError
from pansight.ops.maps.regions import class_regions
from pansight.types import LabelSpace, Prediction


def draw_prediction(
    image: Tensor,
    prediction: Prediction,
    labels: LabelSpace,
    *,
    score: float = 0.5,
    opacity: float = 0.5,
    names: bool = True,
    background: bool = False,
    by_class: bool = False,
) -> Tensor:
    """The panoptic map, else the objects, else the semantic map over the image: uint8 (3, H, W) → the same.

    score: objects below it are left out (those of a panoptic map were chosen by its rule). opacity: of the paint, 0..1.
    names: class names, and scores where there are any. background: paint stuff of the name background, too. by_class:
    things have the colour of their class, which stays from frame to frame of a video, instead of one each.
    Raises PansightError where the prediction holds nothing, or is of another size than the image.
    """
    if prediction.panoptic is not None:
        regions, scores = prediction.panoptic, True
    elif prediction.instances is not None:
        instances = prediction.instances
        return draw_objects(image, instances, labels, score, opacity=opacity, names=names, by_class=by_class)
    elif prediction.semantic is not None:
        regions, scores = class_regions(prediction.semantic), False
    else:
        raise PansightError(where="prediction", expected="segments, objects or classes", found="none of them")
    return overlay(
        image,
        regions,
        labels,
        opacity=opacity,
        names=names,
        scores=scores,
        background=background,
        colors=class_colors(regions.segments, labels) if by_class else None,
    )
