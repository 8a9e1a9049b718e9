"""The models of a server, and the way of a photo through it: decoded, seen in a batch, answered.

The event loop only passes things on. Photos are decoded and answers encoded by a few threads, each model has two of its
own (`worker`). So many photos of a model are decoded and wait for its network as fill a few batches; the others wait as
the small files that they came as.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pansight.apps.serving.http.bodies import decoded_photo
from pansight.apps.serving.http.problems import refusal
from pansight.apps.serving.settings import ServeSettings
from pansight.apps.serving.work.measures import Measures
from pansight.apps.serving.work.worker import Worker
from pansight.engine.predict import Look, Predictor, Prepared
from pansight.models import builder_options, check_decode, decode_options, entry
from pansight.types import Prediction

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Served:
    """A model under its name. places: photos of it that are decoded and wait, at most."""

    worker: Worker
    places: asyncio.Semaphore

    @property
    def name(self) -> str:
        return self.worker.name

    @property
    def predictor(self) -> Predictor:
        return self.worker.predictor


class Service:
    """Close it at the end: it has threads."""

    def __init__(self, predictors: Mapping[str, Predictor], settings: ServeSettings, measures: Measures):
        """predictors: by the names that requests may give; the first one answers where none is given."""
        self.settings, self.measures = settings, measures
        self._helpers = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1)), "serve")
        self._deciders = ThreadPoolExecutor(1, "decide")  # so that no slider waits behind the photos of programs
        self.models = {
            name: Served(
                Worker(name, predictor, settings.batch, settings.wait / 1000, measures),
                asyncio.Semaphore(2 * settings.batch + 2),
            )
            for name, predictor in predictors.items()
        }

    def model(self, name: str | None) -> Served:
        """Raises `Refusal` for a name that no model has."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise refusal(404, "model", f"one of {', '.join(self.models)}", name[:80])
        return self.models[name]

    def check(self, served: Served, options: Mapping[str, Any]) -> None:
        """Raises PansightError for an option that the model's decode does not have, or a value out of range."""
        check_decode(served.predictor.name, options)

    async def helped(self, work: Callable[..., Value], *arguments: Any) -> Value:
        """work(*arguments) in one of the few threads beside the models'."""
        return await asyncio.get_running_loop().run_in_executor(self._helpers, work, *arguments)

    async def decided(self, work: Callable[[], Value]) -> Value:
        """work() in the thread of the page's sliders."""
        return await asyncio.get_running_loop().run_in_executor(self._deciders, work)

    async def predict(
        self, served: Served, data: bytes, options: Mapping[str, Any], where: str = "image"
    ) -> tuple[NDArray[np.uint8], Prediction]:
        """(the photo, what is in it). data: of an image file. Raises `Refusal` or PansightError for what is none."""
        self.check(served, options)
        async with served.places:
            photo = await self._prepared(served, data, where)
            return photo.photo, await asyncio.wrap_future(served.worker.predict(photo, options))

    async def look(self, served: Served, data: bytes) -> tuple[NDArray[np.uint8], Look]:
        """(the photo, what the network says of it)."""
        async with served.places:
            photo = await self._prepared(served, data, "image")
            return photo.photo, await asyncio.wrap_future(served.worker.look(photo))

    async def _prepared(self, served: Served, data: bytes, where: str) -> Prepared:
        most = self.settings.max_pixels
        return await self.helped(lambda: served.predictor.prepared(decoded_photo(data, most, where)))

    def close(self) -> None:
        for served in self.models.values():
            served.worker.close()
        for pool in (self._helpers, self._deciders):
            pool.shutdown(cancel_futures=True)


def model_info(served: Served) -> dict[str, Any]:
    """The content of a `ModelInfo`."""
    predictor = served.predictor
    defaults = builder_options(predictor.name) | dict(predictor.options)
    options: list[dict[str, Any]] = []
    for name, option in decode_options(predictor.name).items():
        low, high = (None if abs(bound) == float("inf") else bound for bound in (option.low, option.high))
        row = {"name": name, "meaning": option.meaning, "kind": option.kind, "low": low, "high": high}
        default = defaults.get(name)
        is_plain = isinstance(default, bool | int | float | str)
        options.append(row | {"choices": list(option.choices), "default": default if is_plain else None})
    chosen = entry(predictor.name)
    return {
        "name": served.name,
        "system": predictor.name,
        "produces": list(chosen.produces),
        "tasks": list(chosen.tasks),
        "options": options,
        "classes": predictor.labels.to_json(),
    }
