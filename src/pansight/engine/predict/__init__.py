"""Prediction on photos given as a file, an array, a tensor or a PIL image."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pansight.data.dataset import image_tensor
from pansight.data.images import read_image
from pansight.engine import distributed
from pansight.engine.infer import ClassScorer, Inference, check_decode_options, class_scores, infer, prepare
from pansight.engine.predict import publishing
from pansight.engine.predict.looks import Look, Prepared, look_at, prepared
from pansight.engine.predict.pipeline import Result, Shown, predict_stream
from pansight.engine.predict.speed import Speed, fastest
from pansight.errors import PansightError
from pansight.interop.photo import PhotoPrediction
from pansight.nn.backbones.folding import folded, stamp
from pansight.types import LabelSpace
from pansight.weights import load_model, save_model
from pansight.weights.combined import combine_loaded

Item = TypeVar("Item")

Photo = str | Path | NDArray[np.uint8] | Tensor | Image.Image
"""A path, uint8 RGB as array (H, W, 3) or tensor (3, H, W), or a PIL image."""


class Predictor:
    """A model with all that turns a photo into its input; `load` makes one.

    >>> predictor = pansight.load("runs/demo")
    >>> prediction = predictor.predict("photo.jpg")
    >>> prediction.panoptic.segments
    >>> prediction.overlay("overlay.png")

    speed: what `tuned` chose, None where it was not asked. source: what it was loaded from, "" for none.
    """

    speed: Speed | None = None

    def __init__(
        self,
        model: Any,
        name: str,
        options: dict[str, Any],
        device: str | torch.device | None = None,
        precision: str = "fp32",
        source: str = "",
    ):
        """device: the accelerator where there is one, else the CPU. precision: fp32, bf16, fp16 or auto."""
        self.source = source
        if device is None:
            device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        self.device = torch.device(device or "cpu")
        self.name, self.options = name, options
        self.precision = distributed.resolve_precision(precision, self.device)
        self._settings = Inference(self.device, self.precision)
        self.model = prepare(model, self._settings)
        self._twin, self._stamp = folded(self.model), stamp(self.model)

    @property
    def labels(self) -> LabelSpace:
        return self.model.labels

    def predict(self, image: Photo, proposals: Tensor | None = None, **decode_options: Any) -> PhotoPrediction:
        """The prediction at the size of the image, on the CPU. decode_options: thresholds and task of the decode.

        proposals: for a detector that is given them (fast_rcnn), float32 (P, 4), regions that may hold an object, as
        x1, y1, x2, y2 in shares of the width and height, 0 … 1, the best first.
        """
        return self.predict_batch([image], [proposals], **decode_options)[0]

    def predict_batch(
        self, images: Sequence[Photo], proposals: Sequence[Tensor | None] = (), **decode_options: Any
    ) -> list[PhotoPrediction]:
        """As `predict`, in one pass; images of different sizes are padded to the largest. proposals: of each image."""
        check_decode_options(self.model, self.name, decode_options)
        photos = [read_photo(image) for image in images]
        settings = replace(self._settings, batch_size=max(1, len(photos)), decode_options=decode_options)
        found = infer(self._current(), map(image_tensor, photos), settings, proposals)
        return [
            PhotoPrediction(each.panoptic, each.semantic, each.instances, photo=photo, labels=self.labels)
            for each, photo in zip(found, photos, strict=True)
        ]

    def predict_many(
        self,
        images: Iterable[Photo],
        proposals: Iterable[Tensor | None] = (),
        batch_size: int = 1,
        **decode_options: Any,
    ) -> Iterator[PhotoPrediction]:
        """The prediction of each image, in order, while the next ones are read and computed.

        >>> for prediction in predictor.predict_many(["a.jpg", "b.jpg"]):
        ...     print(prediction.panoptic.segments)

        images: may be endless; a few are taken ahead. batch_size: images of equal network size that are predicted at
        once; with 1, the default, each prediction is bit for bit that of `predict`. proposals: of each image.
        Raises PansightError for one that cannot be read when its turn comes.
        """
        items = zip(map(_at_hand, images), chain(proposals, repeat(None)))
        results = self.stream(
            items, lambda item: Shown(read_photo(item[0]), item[1]), batch_size=batch_size, **decode_options
        )
        return _predictions(results)

    def stream(
        self,
        items: Iterable[Item],
        read: Callable[[Item], Shown | PansightError],
        batch_size: int = 1,
        **decode_options: Any,
    ) -> Generator[Result[Item]]:
        """As `predict_many`, of anything that `read` makes a photo of: see `pipeline.predict_stream`."""
        check_decode_options(self.model, self.name, decode_options)
        if batch_size < 1:
            raise PansightError(where="batch size", expected="1 or more", found=batch_size)
        settings = replace(self._settings, batch_size=batch_size, decode_options=decode_options)
        return predict_stream(self._current(), items, read, settings)

    def prepared(self, image: Photo) -> Prepared:
        """A photo as the network takes it; any thread may call this while the network is at work."""
        return prepared(self._current(), read_photo(image), self._settings)

    def look_at(self, photos: Sequence[Prepared]) -> Look:
        """What the network says of photos whose views are equally large, kept: predictions with any thresholds follow
        from it without running the network again.

        Raises PansightError for a detector that is given its regions.
        """
        return look_at(self._current(), photos, self._settings)

    def tuned(self, image: Photo, images: int, proposals: Tensor | None = None, **decode_options: Any) -> Predictor:
        """The same model with the settings that are fastest for `images` images of the size of this one.

        It may compute in bf16, so that its predictions differ from those of this predictor by rounding. What was
        chosen is its `speed`; how, is told by `speed.fastest`. The model of this predictor stays as it is.
        """
        check_decode_options(self.model, self.name, decode_options)
        settings = replace(self._settings, decode_options=decode_options)
        found = fastest(self.model, settings, Shown(read_photo(image), proposals), images)
        other = copy.copy(self)
        other.model, other._twin, other._stamp = found.model, found.twin, stamp(found.model)
        other._settings = replace(found.settings, decode_options={})
        other.precision, other.speed = found.settings.precision, found.speed
        return other

    def class_scores(self, images: Sequence[Photo]) -> list[Tensor]:
        """How likely each class is at each pixel of each image: float32 (C, H, W), at its size and on the CPU.

        Raises PansightError where the model gives no such scores.
        """
        if not isinstance(self.model, ClassScorer):
            raise PansightError(where="class scores", expected="a model that gives a semantic map", found=self.name)
        return class_scores(self._current(), [image_tensor(read_photo(image)) for image in images], self._settings)

    def with_views(self, flip: bool = False, scales: Sequence[float] = (1.0,), **decode_options: Any) -> Predictor:
        """The same model looking at each image several times: mirrored too, and at its size times each of `scales`.

        decode_options: what will be asked of it, such as the task. Raises PansightError where views cannot be joined.
        """
        several = copy.copy(self)
        several._settings = replace(self._settings, flip=flip, scales=tuple(scales))
        prepare(self.model, replace(several._settings, decode_options=decode_options))
        return several

    def _current(self) -> Any:
        """The twin of the model, renewed where it has learnt since, or was moved."""
        if self._stamp != (now := stamp(self.model)):
            self._twin, self._stamp = folded(self.model), now
        return self._twin

    def save(self, folder: str | Path) -> None:
        """As a folder that `load` reads: config.json and model.safetensors."""
        save_model(folder, self.model, self.name, self.options)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Predictor:
        """As `load`, under the name that the Hugging Face libraries use."""
        return load(path)

    def save_pretrained(self, folder: str | Path, licence: str = "", data_licence: str = "") -> None:
        """As `save`, with a model card beside it: see `publishing.save_pretrained`."""
        publishing.save_pretrained(
            folder, self.model, self.name, self.options, self.source, licence=licence, data_licence=data_licence
        )

    def push_to_hub(
        self,
        hub_id: str,
        licence: str = "",
        data_licence: str = "",
        private: bool = True,
        token: str | None = None,
        message: str = "",
    ) -> str:
        """Put the model on the Hugging Face hub as owner/name → its address: see `publishing.push_to_hub`."""
        model = self.model, self.name, self.options
        return publishing.push_to_hub(hub_id, *model, self.source, licence, data_licence, private, token, message)


def load(path: str | Path, device: str | torch.device | None = None, precision: str = "fp32") -> Predictor:
    """A run folder (its best checkpoint), a saved model, a hub id, or an official checkpoint file.

    Raises PansightError, naming the file, where it is none of them or its tensors do not fit.
    """
    return Predictor(*load_model(path), device=device, precision=precision, source=str(path))


def combine_models(
    instances: str | Path | Predictor,
    semantic: str | Path | Predictor,
    score_threshold: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
    device: str | torch.device | None = None,
    precision: str = "fp32",
) -> Predictor:
    """An instance model and a semantic one as one model of panoptic maps; its `save` writes what `load` reads.

    instances, semantic: what `load` takes, or gives. Thresholds of the merge (docs/combining.md): objects below
    score_threshold are dropped, as are those of which better ones cover more than max_overlap, and stuff of fewer
    pixels than min_stuff_area at the size of the photo. Lines on classes that only one of the two knows are logged by
    the logger "pansight".
    Raises PansightError as `weights.combined.combine_loaded` and `load` do.
    """
    thresholds = {"score_threshold": score_threshold, "max_overlap": max_overlap, "min_stuff_area": min_stuff_area}
    loaded = [
        (each.model, each.name, each.options) if isinstance(each, Predictor) else load_model(each)
        for each in (instances, semantic)
    ]
    whole = combine_loaded(loaded[0], loaded[1], thresholds)
    for note in whole.notes:
        logging.getLogger("pansight").warning("combined   %s", note)
    return Predictor(whole.model, whole.name, whole.options, device, precision)


def _predictions(results: Generator[Result[Any]]) -> Iterator[PhotoPrediction]:
    with closing(results):
        for result in results:
            if isinstance(result.found, PansightError):
                raise result.found
            yield result.found


def _at_hand(image: Photo) -> Photo:
    """A file, which is read later; else a copy of the pixels, which the caller may overwrite with those of the next."""
    return image if isinstance(image, str | Path) else read_photo(image).copy()


def read_photo(image: Photo) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3). Raises PansightError for anything else, with what was found."""
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return np.array(image.convert("RGB"))
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise PansightError(where="image", expected="uint8 (3, H, W)", found=f"{image.dtype} {tuple(image.shape)}")
        image = image.cpu().permute(1, 2, 0).numpy()  # (3, H, W) → (H, W, 3)
    if not isinstance(image, np.ndarray):
        raise PansightError(
            where="image", expected="a path, an array, a tensor or a PIL image", found=type(image).__name__
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise PansightError(where="image", expected="uint8 (H, W, 3)", found=f"{image.dtype} {image.shape}")
    return image if image.flags.writeable else image.copy()  # torch warns of memory that it must not write
