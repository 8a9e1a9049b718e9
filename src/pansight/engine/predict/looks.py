"""What a network said of photos, kept: predictions with other thresholds, or at another size, follow without it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pansight.data.dataset import image_tensor
from pansight.data.loader import Views
from pansight.engine.infer import GivenProposals, Inference, decoded, kept_outputs, views_maker
from pansight.engine.predict.pipeline import batched
from pansight.errors import PansightError
from pansight.types import Prediction


class Prepared(NamedTuple):
    """A photo, uint8 RGB (H, W, 3), and its views as the network takes them."""

    photo: NDArray[np.uint8]
    views: Views

    @property
    def key(self) -> Any:
        """Equal for photos that the network can look at in one batch without padding one for the other."""
        return tuple(view.images.shape for view in self.views), self.views[0].images.dtype

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the photo."""
        return self.photo.shape[0], self.photo.shape[1]


@dataclass(frozen=True, eq=False)
class Look:
    """The raw outputs of a model for a few photos. bytes: that it keeps."""

    model: Any
    outputs: Any
    sizes: tuple[tuple[int, int], ...]  # (H, W) of each photo
    settings: Inference
    bytes: int

    def decide(
        self, decode_options: Mapping[str, Any], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[Prediction]:
        """The prediction of each photo, on the CPU. sizes: (H, W) of each, the photos' own where left out.

        decode_options: thresholds and task, as `Predictor.predict` takes them, checked by the caller. Several threads
        may call this at the same time.
        """
        settings = replace(self.settings, decode_options=dict(decode_options))
        return decoded(self.model, self.outputs, list(sizes or self.sizes), settings)


def prepared(model: Any, photo: NDArray[np.uint8], settings: Inference) -> Prepared:
    return Prepared(photo, views_maker(model, settings)([image_tensor(photo)]))


def look_at(model: Any, photos: Sequence[Prepared], settings: Inference) -> Look:
    """One pass over photos of equal `key`; `model` as `infer.prepare` leaves it, seen once and without windows.

    Raises PansightError for settings with several views, and for a model that must be given regions.
    """
    if settings.averages or (isinstance(model, GivenProposals) and model.needs_proposals):
        found = "several views" if settings.averages else "a detector that is given its regions"
        raise PansightError(where="look", expected="a model that looks at a photo once, by itself", found=found)
    outputs = kept_outputs(model, batched([each.views for each in photos]), settings)
    kept = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(outputs))
    return Look(model, outputs, tuple(each.size for each in photos), settings, kept)


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in outputs of a model, however they are nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))
