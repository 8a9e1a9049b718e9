"""Models given away: the card tells what the run knows, and what is put on the hub is what `load` fetches from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hub import ADDRESS, Hub
from huggingface_hub import constants

import pansight
from pansight.apps.cli import main
from pansight.config import read_config
from pansight.engine.predict.card import Facts, model_card
from pansight.errors import PansightError
from pansight.models import MODELS, build
from pansight.types import LabelSpace
from pansight.weights import save_model

LABELS = LabelSpace.from_json(
    [
        {"id": 5, "name": "bolt", "isthing": 1, "color": [1, 2, 3]},
        {"id": 9, "name": "table | bench", "isthing": 0, "color": [4, 5, 6]},
    ]
)
RECORD: dict[str, Any] = {
    "All": {"pq": 0.5, "sq": 0.75, "rq": 0.625, "n": 2},
    "Things": {"pq": 0.4, "sq": 0.7, "rq": 0.6, "n": 1},
    "Stuff": {"pq": 0.6, "sq": 0.8, "rq": 0.65, "n": 1},
    "per_class": {"5": {"pq": 0.4}, "9": {"pq": 0.6}},
    "image_ids": [1, 2, 3],
    "intervals": {"All": {"pq": [0.45, 0.55]}},
    "semantic": {"miou": 0.7, "convention": "cityscapes", "per_class": {"5": {"iou": 0.66}, "9": {"iou": 0.74}}},
    "instances": {"mask": {"ap": 0.123}, "per_class": {"5": {"mask": 0.123}}},
}


def small(name: str = "semantic_fpn") -> tuple[Any, str, dict[str, Any]]:
    options = {"pretrained": "none", **MODELS[name].tiny}
    return build(name, LABELS, **options).eval(), name, options


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was trained from a file, with an evaluation."""
    folder = tmp_path / "runs" / "scenes"
    save_model(folder / "checkpoints" / "best", *small())
    (folder / "config.toml").write_text(
        f'[model]\nname = "semantic_fpn"\nweights = "/home/somebody/start.pth"\n[data]\nsource = "{tmp_path}/yard"\n'
        "[train]\nsteps = 77\n"
    )
    (folder / "evaluation.json").write_text(json.dumps(RECORD))
    (folder / "run.json").write_text(json.dumps({"hardware": "CPU, 2 threads", "parameters": 1_500_000}))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The client talks to it, has its token, and an empty cache."""
    hub = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", ADDRESS)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", ADDRESS + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("pansight.nn.backbones.hub.hub_answers", lambda: True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    huggingface_hub.set_client_factory(hub.client)
    yield hub
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def test_what_is_pushed_is_what_is_loaded(run: Path, hub: Hub) -> None:
    pushed = pansight.load(run)
    assert pushed.push_to_hub("owner/scenes", licence="mit", data_licence="cc0-1.0") == f"{ADDRESS}/owner/scenes"
    assert set(hub.files["owner/scenes"]) >= {"README.md", "config.json", "model.safetensors", "recipe.toml"}
    assert hub.private["owner/scenes"]
    fetched = pansight.Predictor.from_pretrained("owner/scenes")
    assert (fetched.name, fetched.labels) == (pushed.name, pushed.labels)
    state = fetched.model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in pushed.model.state_dict().items())
    card = hub.files["owner/scenes"]["README.md"].decode()
    assert 'pansight.load("owner/scenes")' in card
    assert "- weights: mit\n- data: cc0-1.0" in card
    pushed.push_to_hub("owner/scenes", message="again")  # a second commit to the same place


def test_the_command(run: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), "owner/open", "--public", "--licence", "mit"]) == 0
    assert capsys.readouterr().out.strip() == f"{ADDRESS}/owner/open"
    assert not hub.private["owner/open"]


def test_a_refusal_is_one_line(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "wrong")
    assert main(["push", str(run), "owner/scenes"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "owner/scenes: the hub did not take the model" in told
    assert "hf auth login, or HF_TOKEN, says who you are" in told
    assert not hub.files
    with pytest.raises(PansightError, match=r"no owner: expected owner/name"):
        pansight.load(run).push_to_hub("no owner")
    assert [request for request in hub.requests if request.startswith("POST")] == ["POST /api/repos/create"]


def test_a_hub_out_of_reach_is_one_line(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pansight.nn.backbones.hub.hub_answers", lambda: False)
    with pytest.raises(PansightError, match=r"owner/scenes: the hub did not take the model: it does not answer"):
        pansight.load(run).push_to_hub("owner/scenes")
    assert not hub.requests


def test_the_card_tells_what_the_run_knows(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "given"
    pansight.load(run).save_pretrained(out)
    card = (out / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    metrics = front["model-index"][0]["results"][0]["metrics"]
    assert {m["type"]: m["value"] for m in metrics} == {"pq": 50.0, "miou": 70.0, "mask_ap": 12.3}
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "yard"
    assert "license" not in front  # of weights that started from an unknown file nothing is known
    assert "| All | 50.0 (45.0 … 55.0) | 75.0 | 62.5 |" in card
    assert "| mIoU (cityscapes) | 70.0 |" in card
    assert "| 1 | table \\| bench | stuff | 60.0 | 74.0 | – |" in card
    assert "On 3 images" in card
    assert "train.steps = 77" in card
    assert "Fine-tuned from start.pth." in card
    assert "1.5 million parameters" in card
    for file in out.glob("*.*"):  # nobody need know how folders are called on the machine that trained
        assert str(tmp_path).encode() not in file.read_bytes()
        assert b"somebody" not in file.read_bytes()
    recipe = read_config(out / "recipe.toml")
    assert (recipe.train.steps, recipe.data.source, recipe.model.weights) == (77, "yard", "start.pth")
    again = pansight.load(out)
    assert again.predict(torch.zeros(3, 40, 40, dtype=torch.uint8)).semantic is not None


def test_without_a_run_nothing_is_guessed(tmp_path: Path) -> None:
    save_model(tmp_path / "saved", *small())
    pansight.load(tmp_path / "saved").save_pretrained(tmp_path / "given")
    card = (tmp_path / "given" / "README.md").read_text()
    assert "Not measured: the weights came without an evaluation." in card
    assert "- weights: not known; whoever publishes them has to state it" in card
    assert yaml.safe_load(card.split("---")[1]).get("model-index") is None
    assert not (tmp_path / "given" / "recipe.toml").exists()


@pytest.mark.parametrize("name", MODELS)
def test_a_card_of_every_model(name: str) -> None:
    """The front matter is what the hub reads of it, and no part is empty."""
    card = model_card(Facts(name, MODELS[name].build.__doc__ or "", LABELS, licence="mit", record=RECORD))
    front = yaml.safe_load(card.split("---")[1])
    assert (front["license"], front["library_name"]) == ("mit", "pansight")
    assert name in front["tags"]
    assert huggingface_hub.ModelCard(card).data.eval_results is not None
    assert "\n\n\n" not in card


def test_figures_on_training_images_are_told() -> None:
    record = RECORD | {"about": {"trained_on": 2}}
    assert "2 of them were trained on" in model_card(Facts("unet", "U-Net.", LABELS, record=record))
