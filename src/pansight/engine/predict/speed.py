"""Which settings are fastest on this machine, found by trying them on a photo: precision, memory format, compilation.

What is tried depends on what there is to gain. A trial of an eager setting costs about three photos, and one of
`torch.compile` minutes; neither is begun where the photos that are left could not pay for it.
"""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from pansight.data.dataset import image_tensor
from pansight.engine import distributed
from pansight.engine.infer import Inference, predict_views, views_maker
from pansight.engine.predict.pipeline import Shown
from pansight.nn.backbones.folding import folded

TRIED_FROM = 30
"""Photos: with fewer, trials take longer than what they can save."""
COMPILED_FROM = 1200.0
"""Seconds of work from which compiling is tried: it takes minutes for a network of the size of a ResNet-50."""
GAIN = 0.97
"""A setting is taken if it needs at most this share of the time of the best one so far: less is chance."""


class Speed(NamedTuple):
    """What was chosen. seconds: of a photo with it; exact: with the settings before; 0 where nothing was tried."""

    precision: str
    channels_last: bool
    compiled: bool
    seconds: float = 0.0
    exact: float = 0.0

    def line(self) -> str:
        """For people: "fp32, channels_last, not compiled: 0.41 s a photo, 0.46 s exact"."""
        layout = "channels_last" if self.channels_last else "contiguous"
        chosen = f"{self.precision}, {layout}, {'compiled' if self.compiled else 'not compiled'}"
        if not self.exact:
            return f"{chosen}: for fewer than {TRIED_FROM} photos nothing is tried"
        return f"{chosen}: {self.seconds:.3g} s a photo, {self.exact:.3g} s exact"


class Tuned(NamedTuple):
    """model: in the memory format of the settings. twin: what predicts, folded and perhaps compiled."""

    model: Any
    twin: Any
    settings: Inference
    speed: Speed


class _Trial(NamedTuple):
    model: Any
    twin: Any
    settings: Inference
    seconds: float


def fastest(model: Any, settings: Inference, shown: Shown, photos: int) -> Tuned:
    """The fastest way to predict `photos` photos like this one; `model` as `infer.prepare` leaves it.

    In turn, the better of two is kept: bf16 where the device computes in it, the other memory format, `torch.compile`.
    `model` itself is not changed: another memory format and compilation are those of a copy.
    """
    native = distributed.resolve_precision("auto", settings.device)
    half = replace(settings, precision=native if settings.precision == "fp32" else settings.precision)
    if photos < TRIED_FROM:
        return Tuned(model, folded(model), half, Speed(half.precision, half.channels_last, compiled=False))
    best = exact = _tried(model, folded(model), settings, shown)
    if half != settings:
        best = _better(best, _tried(model, exact.twin, half, shown))
    best = _better(best, _in_other_layout(best, shown))
    compiled = _compiled(best, shown) if photos * best.seconds >= COMPILED_FROM else None
    best = best if compiled is None else _better(best, compiled)
    chosen = best.settings
    speed = Speed(chosen.precision, chosen.channels_last, best is compiled, best.seconds, exact.seconds)
    return Tuned(best.model, best.twin, chosen, speed)


def _better(first: _Trial, second: _Trial) -> _Trial:
    return second if second.seconds < GAIN * first.seconds else first


def _tried(model: Any, twin: Any, settings: Inference, shown: Shown) -> _Trial:
    """The seconds of a photo from the tensor that the network is given to the prediction, without the first run."""
    photo = image_tensor(shown.photo)
    views, sizes = views_maker(twin, settings)([photo]), [(photo.shape[1], photo.shape[2])]
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        predict_views(twin, views, sizes, settings, [shown.proposals])
        seconds.append(time.perf_counter() - start)
    return _Trial(model, twin, settings, min(seconds[1:]))


def _in_other_layout(trial: _Trial, shown: Shown) -> _Trial:
    last = not trial.settings.channels_last
    other = copy.deepcopy(trial.model).to(memory_format=torch.channels_last if last else torch.contiguous_format)
    return _tried(other, folded(other), replace(trial.settings, channels_last=last), shown)


def _compiled(trial: _Trial, shown: Shown) -> _Trial | None:
    """None where the network cannot be compiled, or there is no compiler."""
    twin = copy.deepcopy(trial.twin)
    twin.compile()
    try:
        return _tried(trial.model, twin, trial.settings, shown)
    except Exception:  # torch raises whatever its compiler, and that of the system, meet with
        return None
