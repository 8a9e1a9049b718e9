"""Every option of every model is explained, and checked before anything is built."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_type_hints

import pytest
from contract import LABELS, SMALL, core_first

from pansight.errors import PansightError
from pansight.models import MODELS, build, builder_options, check_decode, check_options, decode_options
from pansight.models.options import Option

EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
SPELLINGS: list[Any] = ["128,64", "[128, 64]", " 128 ,64", ["128", "64"], ["128,64"], (128, 64), [128, 64]]
FOREIGN: list[Any] = [
    "abc",
    "",
    "1",
    math.nan,
    math.inf,
    -math.inf,
    -1,
    10**9,
    10**5000,
    1e300,
    b"1",
    object(),
    {"a": 1},
]
FOREIGN += [None, True, [], ["a"], [None], [math.nan], [-1], [0], [10**9], [[1]], [1] * 1000, "x" * 100_000]


def bad_values(option: Option) -> list[Any]:
    """The values above of another kind than the option's, or out of its range."""
    return [value for value in FOREIGN if not _is_good(option, value)]


def _is_good(option: Option, value: Any) -> bool:
    """Written apart from the code that it tests: what a reader of the option's line would say."""
    if value is None:
        return option.optional
    if option.kind == "true or false":
        return value is True
    if option.kind == "text":
        return value in option.choices
    if option.kind == "table":
        return value == {}  # the keys that it may hold are told beside it
    if option.is_list and isinstance(value, str):  # a list in its other spelling
        value = {"1": [1], "": []}.get(value, value)
    numbers = value if option.is_list and isinstance(value, list) else [value]
    if not option.is_list and isinstance(value, list):
        return False
    if len(numbers) > 512 or option.length not in (None, len(numbers)):
        return False
    kinds = int if option.kind.startswith("whole") else int | float
    return all(isinstance(n, kinds) and n is not True and option.low <= n <= option.high for n in numbers)


@EVERY_MODEL
def test_every_option_is_explained(name: str) -> None:
    """In a line that says what it is, and with a range for every number."""
    declared = MODELS[name].options
    for key in builder_options(name):
        assert len(declared[key].meaning.split()) >= 3, key
        assert "\n" not in declared[key].meaning
        if "number" in declared[key].kind:
            assert math.isfinite(declared[key].low), key
            assert math.isfinite(declared[key].high), key


@EVERY_MODEL
def test_defaults_and_tiny_options_pass(name: str) -> None:
    defaults = builder_options(name)
    assert check_options(name, defaults) == defaults
    assert check_options(name, MODELS[name].tiny) == MODELS[name].tiny


@EVERY_MODEL
def test_bad_values_are_refused_in_a_line(name: str) -> None:
    for key in builder_options(name):
        values = bad_values(MODELS[name].options[key])
        assert len(values) > 10, key
        for value in values:
            with pytest.raises(PansightError) as caught:
                build(name, LABELS, **{key: value})
            line = str(caught.value)
            assert key in line, (key, value, line)
            assert "\n" not in line
            assert len(line) < 700


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("detr", {"heads": 7}, "channels of model detr: expected a multiple of heads .7., found 256"),
        ("detr_panoptic", {"channels": 24, "heads": 4}, "channels of model detr_panoptic: .*multiple of 16"),
        (
            "mask2former",
            {"channels": 30, "heads": 5},
            "channels of model mask2former: expected a multiple of 4, found 30",
        ),
        ("maskformer", {"heads": 3}, "channels of model maskformer: expected a multiple of heads .3."),
        ("eomt", {"size": 650}, "size of model eomt: expected a multiple of patch .16., found 650"),
        ("mask_rcnn", {"anchor_sizes": [64, 32, 128, 256, 512]}, "anchor_sizes .*: expected 5 numbers, .*increasing"),
        ("mask_rcnn", {"anchor_sizes": [8, 16, 32]}, "anchor_sizes of model mask_rcnn: expected 5 numbers"),
        ("mask_rcnn", {"long": 0}, "long of model mask_rcnn: expected at least 1 where short is above 0, found 0"),
        ("mask_rcnn", {"backbone": "resnot18"}, "backbone of model mask_rcnn: unknown backbone 'resnot18'.*resnet18"),
        ("eomt", {"backbone": "vit_smal_patch16_224"}, "unknown backbone.*vit_small_patch16_224"),
        ("mask_rcnn_r50_d2", {"backbone": "resnet18"}, "unknown backbone of model mask_rcnn_r50_d2: 'resnet18'"),
        (
            "mask_rcnn",
            {"roi_op": "aling"},
            "unknown roi_op of model mask_rcnn: 'aling'; known: .*did you mean 'align'",
        ),
        ("detr", {"stuf": True}, "unknown option of model detr: 'stuf'"),
    ],
)
def test_options_that_cannot_be_together_or_meant(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PansightError, match=message):
        build(name, LABELS, **options)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_list_has_one_syntax(spelling: Any) -> None:
    settled = check_options("detr", {"class_hidden": spelling})["class_hidden"]
    assert list(settled) == [128, 64]


def test_a_single_number_is_a_list_of_one() -> None:
    assert check_options("detr", {"class_hidden": 128}) == {"class_hidden": [128]}


@EVERY_MODEL
def test_thresholds_are_shares(name: str) -> None:
    """Every argument of decode has a line of its own, which it is checked by."""
    model = get_type_hints(MODELS[name].build)["return"]
    assert list(decode_options(name)) == list(inspect.signature(model.decode).parameters)[3:]
    for key, option in decode_options(name).items():
        for value in bad_values(option):
            with pytest.raises(PansightError) as caught:
                check_decode(name, {key: value})
            assert key in str(caught.value)


def test_a_task_is_one_of_the_model() -> None:
    with pytest.raises(PansightError, match=r"unknown task of detr: 'panoptic'; known: all, instance$"):
        check_decode("detr", {"task": "panoptic"})
    with pytest.raises(PansightError, match=r"decode option of mask_rcnn 'score'; .*did you mean 'score_threshold'"):
        check_decode("mask_rcnn", {"score": 0.5})


def test_weights_may_bring_the_other_options() -> None:
    """Their heads may divide what the defaults do not."""
    assert check_options("detr", {"heads": 6}, complete=False) == {"heads": 6}


@pytest.mark.slow
@pytest.mark.parametrize("name", core_first(SMALL))
def test_the_least_values_build(name: str) -> None:
    """What the table allows, the builder takes: every number of a tiny model at its least, one after the other."""
    for key, option in MODELS[name].options.items():
        if key not in builder_options(name) or "number" not in option.kind or option.is_list:
            continue
        least = int(option.low) if option.kind == "whole number" else option.low
        tied = option.multiple_of or any(key in other.multiple_of for other in MODELS[name].options.values())
        if not tied and key not in ("short", "long"):
            build(name, LABELS, **{**SMALL[name], key: least})
