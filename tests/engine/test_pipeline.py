"""Photos that are predicted while the next ones are read: the results, their order, errors, and what is chosen."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight import models
from pansight.data.images import write_png
from pansight.engine.infer import Inference
from pansight.engine.predict import PhotoPrediction, Predictor, speed
from pansight.engine.predict.pipeline import Shown, mapped
from pansight.engine.predict.speed import Speed
from pansight.errors import PansightError
from pansight.types import LabelSpace

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "models")]
import toy
from contract import SMALL, core_first, flat, small, thresholds

LABELS = LabelSpace.from_names(["circle", "square"], ["background"])


def photos(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture
def predictor(monkeypatch: pytest.MonkeyPatch) -> Predictor:
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    torch.manual_seed(0)
    return Predictor(models.build("toy", LABELS), "toy", {}, device="cpu")


def assert_equal(found: PhotoPrediction, expected: PhotoPrediction) -> None:
    """Bit for bit."""
    assert np.array_equal(found.photo, expected.photo)
    left, right = flat(found), flat(expected)
    assert len(left) == len(right) > 0
    assert all(torch.equal(a, b) for a, b in zip(left, right))
    if found.panoptic is not None and expected.panoptic is not None:
        assert found.panoptic.segments == expected.panoptic.segments


# --- what is predicted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", core_first(SMALL))
def test_many_are_predicted_as_each_alone(name: str) -> None:
    predictor = Predictor(small(name, LABELS), name, SMALL[name], device="cpu")
    images = photos((64, 80), (80, 64), (64, 80))
    options = {
        option: max(0, low) if option == "thing_threshold" else low
        for option, low in thresholds(predictor.model).items()
    }
    regions = [torch.tensor([[0.1, 0.1, 0.6, 0.7]])] * len(images)
    alone = [predictor.predict(image, given, **options) for image, given in zip(images, regions)]
    many = list(predictor.predict_many(images, regions, **options))
    assert len(many) == len(images)
    for found, expected in zip(many, alone):
        assert_equal(found, expected)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_photos_of_equal_size_share_a_batch_and_stay_in_order(predictor: Predictor, batch_size: int) -> None:
    images = photos((40, 48), (48, 40), (40, 48), (40, 47), (48, 40), (40, 48), (40, 48))
    forward, seen = predictor.model.forward, []

    def watched(tensors: Tensor, valid: Tensor | None = None) -> Any:
        seen.append(tuple(tensors.shape))
        return forward(tensors, valid)

    predictor.model.forward = watched
    alone = [predictor.predict(image) for image in images]
    seen.clear()
    for found, expected in zip(predictor.predict_many(images, batch_size=batch_size), alone, strict=True):
        assert_equal(found, expected)
    assert max(shape[0] for shape in seen) == batch_size
    assert sum(shape[0] for shape in seen) == len(images)
    assert {shape[2:] for shape in seen} == {(40, 48), (48, 40)}


def test_pixels_may_be_overwritten_by_the_next(predictor: Predictor) -> None:
    """As a camera does that fills one array again and again."""
    images = photos(*[(24, 32)] * 5)

    def camera() -> Iterator[NDArray[np.uint8]]:
        buffer = np.zeros((24, 32, 3), np.uint8)
        for image in images:
            buffer[:] = image
            yield buffer

    for found, image in zip(predictor.predict_many(camera()), images, strict=True):
        assert_equal(found, predictor.predict(image))


def test_views_are_joined_or_averaged_as_before(predictor: Predictor) -> None:
    model = Predictor(small("pspnet", LABELS), "pspnet", SMALL["pspnet"], device="cpu")
    views = model.with_views(flip=True, scales=(1.0, 1.5))
    images = photos((64, 80), (64, 80))
    for found, image in zip(views.predict_many(images), images, strict=True):
        assert_equal(found, views.predict(image))


def test_options_are_checked_before_anything_is_read(predictor: Predictor) -> None:
    with pytest.raises(PansightError, match="decode option of toy"):
        predictor.predict_many(iter([]), speed_limit=3)
    with pytest.raises(PansightError, match="batch size: expected 1 or more, found 0"):
        predictor.predict_many(iter([]), batch_size=0)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_comes_when_its_turn_comes(predictor: Predictor, tmp_path: Path) -> None:
    for number, image in enumerate(photos((24, 32), (24, 32))):
        write_png(tmp_path / f"{number}.png", image)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    names = ["0.png", "1.png", "bad.png", "0.png"]
    many = predictor.predict_many(tmp_path / name for name in names)
    for name in names[:2]:
        assert_equal(next(many), predictor.predict(tmp_path / name))
    with pytest.raises(PansightError, match=r"bad\.png"):
        next(many)


def test_an_error_of_the_network_ends_all_threads(predictor: Predictor) -> None:
    before = threading.active_count()

    def broken(*given: Any) -> Any:
        raise RuntimeError("no network")

    predictor.model.forward = broken
    with pytest.raises(RuntimeError, match="no network"):
        list(predictor.predict_many(photos((24, 32), (24, 32))))
    assert threading.active_count() == before


def test_whoever_leaves_early_leaves_no_thread(predictor: Predictor) -> None:
    before = threading.active_count()
    endless = repeat(photos((24, 32))[0])
    many = predictor.predict_many(endless)
    next(many)
    assert threading.active_count() > before
    many.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_errors_that_are_returned_take_the_place_of_a_prediction(predictor: Predictor) -> None:
    (image,) = photos((24, 32))
    items = [1, 0, 0, 1, 1, 0, 1]

    def read(item: int) -> Shown | PansightError:
        return Shown(image) if item else PansightError(where=item, expected="a photo", found="none")

    results = list(predictor.stream(items, read, batch_size=2))
    assert [result.item for result in results] == items
    assert [isinstance(result.found, PhotoPrediction) for result in results] == [item == 1 for item in items]


# --- threads ---------------------------------------------------------------------------------------------------------


def test_results_of_threads_stay_in_order_and_few_are_computed_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    for place, result in enumerate(mapped(lambda number: number**2, items(), threads=3, ahead=2)):
        assert result == place**2
        assert len(taken) <= place + 3


def test_errors_of_items_and_of_work_come_in_order() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no more")

    results = mapped(lambda number: 6 // number, items(), ahead=5)
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ValueError, match="no more"):
        next(results)
    divided = mapped(lambda number: 6 // number, [3, 0, 1], ahead=5)
    assert next(divided) == 2
    with pytest.raises(ZeroDivisionError):
        next(divided)


# --- the fastest settings --------------------------------------------------------------------------------------------

SETTINGS = Inference(torch.device("cpu"))


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, bool, bool], float]:
    """By precision, memory format and compilation, what a photo takes: 1 s where nothing else is written into it."""
    table: dict[tuple[str, bool, bool], float] = {}

    def tried(model: Any, twin: Any, settings: Inference, shown: Shown) -> Any:
        compiled = twin._compiled_call_impl is not None
        key = settings.precision, settings.channels_last, compiled
        if table.get(key) == np.inf:
            raise RuntimeError("no compiler")
        return speed._Trial(model, twin, settings, table.get(key, 1.0))

    monkeypatch.setattr(speed, "_tried", tried)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: setattr(self, "_compiled_call_impl", print))
    return table


@pytest.mark.parametrize(
    ("native", "took", "images", "expected"),
    [
        ("bf16", {}, 29, ("bf16", True, False)),  # too few to try anything
        ("bf16", {}, 30, ("fp32", True, False)),  # nothing is faster
        ("bf16", {("bf16", True, False): 0.5}, 30, ("bf16", True, False)),
        ("bf16", {("bf16", True, False): 0.98}, 30, ("fp32", True, False)),  # within chance
        ("fp32", {("fp32", False, False): 0.8}, 30, ("fp32", False, False)),
        ("bf16", {("bf16", True, False): 0.5, ("bf16", False, False): 0.4}, 30, ("bf16", False, False)),
        ("fp32", {("fp32", True, True): 0.1}, 1199, ("fp32", True, False)),  # not worth compiling
        ("fp32", {("fp32", True, True): 0.1}, 1200, ("fp32", True, True)),
        ("fp32", {("fp32", True, True): np.inf}, 1200, ("fp32", True, False)),  # cannot be compiled
    ],
)
def test_the_faster_of_two_is_kept(
    predictor: Predictor,
    seconds: dict[Any, float],
    monkeypatch: pytest.MonkeyPatch,
    native: str,
    took: dict[Any, float],
    images: int,
    expected: tuple[str, bool, bool],
) -> None:
    monkeypatch.setattr(speed.distributed, "resolve_precision", lambda precision, device: native)
    seconds |= took
    tuned = predictor.tuned(photos((24, 32))[0], images)
    assert tuned.speed is not None
    assert tuned.speed[:3] == expected
    assert tuned.precision == expected[0]
    assert predictor.speed is None
    assert predictor.precision == "fp32"


def test_what_was_chosen_is_one_line() -> None:
    assert Speed("fp32", True, False, 0.4123, 0.5).line() == (
        "fp32, channels_last, not compiled: 0.412 s a photo, 0.5 s exact"
    )
    assert Speed("bf16", True, False).line() == (
        "bf16, channels_last, not compiled: for fewer than 30 photos nothing is tried"
    )


def test_a_trial_leaves_the_model_as_it_is(predictor: Predictor) -> None:
    (image,) = photos((24, 32))
    formats = [weight.stride() for weight in predictor.model.parameters()]
    expected = predictor.predict(image)
    tuned = predictor.tuned(image, 30)
    assert tuned.speed is not None
    assert tuned.speed.exact > 0
    assert [weight.stride() for weight in predictor.model.parameters()] == formats
    assert_equal(predictor.predict(image), expected)
    for found in tuned.predict_many([image, image]):
        assert np.array_equal(found.photo, image)
        assert torch.equal(flat(found)[0], flat(expected)[0])
