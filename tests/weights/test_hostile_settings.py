"""Settings of a saved model that anyone may have changed: one line at once, whatever stands in whatever field."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pansight.errors import PansightError
from pansight.models import MODELS, build, builder_options
from pansight.types import LabelSpace
from pansight.weights import fitting, load_model, save_model

pytestmark = pytest.mark.slow

LABELS = LabelSpace.from_names(["a"], ["b"])
GENERAL = [name for name, entry in MODELS.items() if not entry.variant_of]
SMALLER: dict[str, dict[str, Any]] = {
    name: {"backbone": "resnet10t"} for name in ("faster_rcnn", "mask_rcnn", "panoptic_fpn")
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers: threads would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def states() -> dict[str, tuple[dict[str, Any], dict[str, torch.Tensor]]]:
    """Model → (options, weights)."""
    result: dict[str, Any] = {}
    for name in GENERAL:
        options = SMALLER.get(name, {}) | dict(MODELS[name].tiny)
        with torch.device("meta"):
            result[name] = options, dict(build(name, LABELS, **options).state_dict())
    return result


NAN, INFINITE = float("nan"), float("inf")
IMPOSSIBLE = {"1e9": 10**9, "1e400": 10**400, "NaN": NAN, "infinity": INFINITE, "-1e9": -(10**9), "deep": [[[[[1]]]]]}
ODD = {"-1": -1, "1.5": 1.5, "text": "x", "list": [], "table": {"a": 1}, "0": 0, "thousands": 9999}


@pytest.mark.parametrize("name", GENERAL)
def test_impossible_values_of_every_option(name: str, states: dict[str, Any]) -> None:
    options, state = states[name]
    for option in builder_options(name):
        for value in IMPOSSIBLE.values() if option != "pretrained" else ():
            with pytest.raises(PansightError, match="x: ") as error:
                fitting.build_to_fit(name, LABELS, {**options, option: value}, state, "x")
            assert "\n" not in str(error.value)
            assert option in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GENERAL)
def test_odd_values_of_every_option_are_taken_or_refused(name: str, states: dict[str, Any]) -> None:
    """Within bounds a value may be legal. Nothing but a PansightError comes out. Every third value for each option."""
    options, state = states[name]
    for number, option in enumerate(builder_options(name)):
        for value in list(ODD.values())[number % 3 :: 3]:
            with contextlib.suppress(PansightError):
                fitting.check_settings(name, LABELS, {**options, option: value}, state, "x", "x")


VIT: dict[str, Any] = {
    "checkpoint_path": "/etc/hostname",
    "pretrained_cfg": {"url": "file:///etc/hostname"},
    "cache_dir": "x",
    "img_size": 64,
    "embed_layer": "x",
    "device": "cuda",
    "depth": 10**6,
    "depth of 0": 0,
    "num_heads": 0,
    "embed_dim": 1.5,
    "mlp_ratio": -1,
    "drop_path_rate": 2.0,
    "qkv_bias": 1,
    "act_layer": ["x"],
}


@pytest.mark.parametrize("key", VIT)
def test_options_of_a_vit(key: str, states: dict[str, Any]) -> None:
    options, state = states["eomt"]
    vit = options["vit_options"] | {key.split(" ")[0]: VIT[key]}
    with pytest.raises(PansightError, match=r"x: "):
        fitting.build_to_fit("eomt", LABELS, {**options, "vit_options": vit}, state, "x")


def test_a_model_is_no_deeper_than_its_file(states: dict[str, Any]) -> None:
    options, state = states["mask2former"]
    deep = {"backbone": "swin_c8_d999-999-999-999_h1-1-1-1_w7"}
    with pytest.raises(PansightError, match="expected options that the weights fit, found more layers than"):
        fitting.build_to_fit("mask2former", LABELS, {**options, **deep}, state, "x")
    with pytest.raises(PansightError, match="unknown backbone"):
        fitting.build_to_fit("mask2former", LABELS, {**options, "backbone": "swin_c8_d9999999_h1_w7"}, state, "x")


def test_whole_numbers_are_no_weights(states: dict[str, Any]) -> None:
    options, state = states["detr"]
    changed = state | {"query_embed.weight": state["query_embed.weight"].to(torch.int64)}
    with pytest.raises(PansightError, match=r"query_embed\.weight: expected numbers like float32, found int64"):
        fitting.build_to_fit("detr", LABELS, options, changed, "x")


# --- the rest of a saved folder --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    options = {"size": 32, "queries": 3, "blocks": 1, "vit_options": {"embed_dim": 24, "depth": 2, "num_heads": 2}}
    save_model(folder, build("eomt", LABELS, **options), "eomt", options)
    return folder


RULE: dict[str, Any] = {"short": 32, "long": 32, "divisor": 32, "rounding": "eomt", "filter": "antialias"}
EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "options a text": lambda c: c.update(options="ab"),
    "options a list": lambda c: c.update(options=[]),
    "model a list": lambda c: c.update(model=["eomt"]),
    "version a table": lambda c: c.update(format_version={}),
    "colour of two": lambda c: c["labels"][0].update(color=[1, 2]),
    "colour a word": lambda c: c["labels"][0].update(color="red"),
    "colour 1.5": lambda c: c["labels"][0].update(color=[1, 2, 1.5]),
    "colour 1e9": lambda c: c["labels"][0].update(color=[1, 2, 10**9]),
    "id null": lambda c: c["labels"][0].update(id=None),
    "id 1.5": lambda c: c["labels"][0].update(id=1.5),
    "id twice": lambda c: c["labels"][0].update(id=c["labels"][1]["id"]),
    "name a number": lambda c: c["labels"][0].update(name=3),
    "isthing a text": lambda c: c["labels"][0].update(isthing="no"),
    "labels a table": lambda c: c.update(labels={}),
    "labels of numbers": lambda c: c.update(labels=[1, 2]),
    "a class more": lambda c: c["labels"].append({"id": 9, "name": "z", "isthing": 1}),
    "mean of two": lambda c: c["input"].update(mean=[1, 2]),
    "mean NaN": lambda c: c["input"].update(mean=[NAN] * 3),
    "mean a text": lambda c: c["input"].update(mean="abc"),
    "scale 0": lambda c: c["input"].update(scale=[0.0, 1.0, 1.0]),
    "scale -1": lambda c: c["input"].update(scale=[1.0, -1.0, 1.0]),
    "scale infinite": lambda c: c["input"].update(scale=[INFINITE, 1.0, 1.0]),
    "bgr a text": lambda c: c["input"].update(bgr="no"),
    "black padding a number": lambda c: c["input"].update(black_padding=3),
    "input a list": lambda c: c.update(input=[]),
    **{
        f"{key} {value}": lambda c, key=key, value=value: c["input"].update(resize=RULE | {key: value})
        for key in ("short", "long", "divisor", "height", "multiple")
        for value in (-3, 1.5, "8", 10**9, NAN, None, [1])
    },
    "filter a list": lambda c: c["input"].update(resize=RULE | {"filter": []}),
    "stretched a number": lambda c: c["input"].update(resize=RULE | {"stretched": 2}),
}


@pytest.mark.parametrize("title", EDITS)
def test_every_field_of_a_saved_folder(title: str, saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    EDITS[title](config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PansightError) as error:
        load_model(folder)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_names_in_a_folder_are_shown_escaped(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["options"]["a\x1b[31m\n\u202e" + "b" * 10**6] = 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PansightError) as error:
        load_model(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 2000


# --- folders of transformers -----------------------------------------------------------------------------------------

VALUES = (10**9, -1, 1.5, NAN, "x", [], {}, None, [[1]], True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["detr", "detr_panoptic", "maskformer", "mask2former", "eomt"])
def test_every_number_of_a_config_of_transformers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third of the values above in every field, as far as the comparison with the tensors."""
    from small_models import CASES

    from pansight.weights import huggingface
    from pansight.weights.huggingface.export import prepare

    _, options = CASES[name]
    prepared = prepare(build(name, LABELS, **options), name, options, "test")
    state = {key: tensor.to("meta") for key, tensor in prepared.tensors.items()}
    monkeypatch.setattr(huggingface, "read_state", lambda *_: state)

    def compared(*arguments: Any) -> torch.nn.Module:
        fitting.check_settings(*arguments)
        return torch.nn.Identity()  # what fits would be built for real

    monkeypatch.setattr(huggingface.system(prepared.config["model_type"]), "build_to_fit", compared)
    whole = prepared.config
    places = [(whole, key) for key in whole if key not in ("pansight", "label2id", "architectures", "dtype")]
    for inner in ("backbone_config", "decoder_config"):
        places += [(whole[inner], key) for key in whole.get(inner) or {}]
    for number, (table, key) in enumerate(places):
        before = table[key]
        for value in VALUES[number % 3 :: 3]:
            table[key] = value
            (tmp_path / "config.json").write_text(json.dumps(whole))
            with contextlib.suppress(PansightError):
                huggingface.load_folder(tmp_path)
        table[key] = before
