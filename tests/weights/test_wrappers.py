"""What training scripts put around weights and before their names is taken off, and said."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights import _recognised, licences
from pansight.weights.unpickle import read_tensors

STATE = {"backbone.body.conv1.weight": torch.arange(4.0), "rpn.head.conv.bias": torch.ones(2)}
OTHER = {key: tensor + 1 for key, tensor in STATE.items()}


def under(prefix: str, state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in state.items()}


@pytest.fixture(autouse=True)
def nothing_said_yet() -> None:
    """A line is logged once in a process; here every test wants its own."""
    licences.show.cache_clear()


def taken(content: Any, path: Path, caplog: pytest.LogCaptureFixture) -> str:
    """What is said of a file from which STATE comes."""
    torch.save(content, path)
    with caplog.at_level(logging.WARNING, "pansight"):
        loaded = read_tensors(path)
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) <= 1
    return lines[0].removeprefix(f"weights    {path}: ") if lines else ""


KEYS = "state_dict model_state_dict model model_state module net network checkpoint weights params blobs generator"
KEYS += " ema model_ema ema_model state_dict_ema teacher student whatever_its_author_called_it"


@pytest.mark.parametrize("key", KEYS.split())
def test_every_wrapper(key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = taken(
        {"epoch": 3, key: STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}}}, tmp_path / "x", caplog
    )
    assert said == ("" if key in ("model", "state_dict", "blobs") else f"took {key}")


PREFIXES = ("module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module.", "module.model.", "net.")
PREFIXES += ("_orig_mod.module.", "model._orig_mod.", "model.model.", "ema_model.module.", "_fsdp_wrapped_module.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("safe", [False, True], ids=["torch", "safetensors"])
def test_every_prefix(prefix: str, safe: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not safe:
        assert taken(under(prefix), tmp_path / "x", caplog).startswith("took the tensors, without their prefix")
        return
    save_file(under(prefix), tmp_path / "x")
    assert read_tensors(tmp_path / "x").keys() == STATE.keys()


def test_parts_that_were_compiled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiled = {key.replace("backbone.", "backbone._orig_mod."): tensor for key, tensor in STATE.items()}
    assert taken(compiled, tmp_path / "x", caplog) == "took the tensors, without their prefix _orig_mod."


CONTENTS: dict[str, tuple[Any, str]] = {
    "averaged model": (
        under("module.") | {"n_averaged": torch.tensor(5)},
        "took the tensors, without their prefix module.",
    ),
    "Lightning": (
        {
            "state_dict": under("model.") | {"criterion.empty_weight": torch.ones(3), "val_pq.sum": torch.ones(1)},
            "hyper_parameters": {"lr": 1e-3},
            "callbacks": {"EarlyStopping": {"best": torch.tensor(0.3)}},
            "pytorch-lightning_version": "2.5",
        },
        "took state_dict, without its prefix model.",
    ),
    "nested": ({"model": {"state_dict": STATE}}, "took model.state_dict"),
    "YOLO": ({"ema": {"module": STATE, "updates": 5}, "model": OTHER}, "took ema.module rather than model"),
    "timm": (
        {"state_dict": under("module.", OTHER), "state_dict_ema": under("module.")},
        "took state_dict_ema rather than state_dict, without its prefix module.",
    ),
    "DINO": ({"student": OTHER, "teacher": STATE}, "took teacher rather than student"),
    "mmengine": (
        {"meta": {"epoch": 1}, "state_dict": STATE, "ema_state_dict": OTHER},
        "took state_dict rather than ema_state_dict",
    ),
    "a rate called ema": ({"ema": 0.999, "model": STATE}, ""),
    "two copies in one dict": (
        under("model.", OTHER) | under("ema_model.") | {"n_averaged": torch.tensor(1)},
        "took the tensors, without their prefix ema_model. (rather than model.)",
    ),
    "a figure beside": ({"best": torch.tensor(0.3), "model": STATE}, ""),
    "nothing": (STATE, ""),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_what_is_taken_is_said(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content, said = CONTENTS[kind]
    assert taken(content, tmp_path / "x", caplog) == said


def test_any_attribute_of_a_training_class(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``self.detector_net = fasterrcnn(…)``: names that no origin knows until their common beginning is gone."""
    with caplog.at_level(logging.WARNING, "pansight"):
        found = _recognised(under("trainer.detector_net.") | {"loss.weight": torch.ones(1)}, "x.pth")
    assert found is not None
    assert found[0] == "torchvision"
    assert found[1].keys() == STATE.keys()
    assert caplog.messages == ["weights    x.pth: took the tensors, without their prefix trainer.detector_net."]
    assert _recognised({"a.b.c.d.weight": torch.ones(1)}, "x.pth") is None


def test_two_tensors_of_one_name(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a._orig_mod.b": torch.ones(1)}, tmp_path / "x.pth")
    with pytest.raises(PansightError, match=r"expected one tensor for a\.b, found a second in a\._orig_mod\.b"):
        read_tensors(tmp_path / "x.pth")
