"""The state of a training is read as data: what was saved comes back, and a file that was tampered with is one line."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from pansight.engine.checkpoint import read_training_state, write_training_state
from pansight.errors import PansightError


def state(name: str = "adamw") -> dict[str, Any]:
    """Of a real optimiser after a step, with all that stands beside it."""
    layer = torch.nn.Linear(3, 2)
    kinds = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    options = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = kinds[name](layer.parameters(), lr=0.1, **options)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    raw = OrderedDict((key, value.clone()) for key, value in layer.state_dict().items())
    beside = {"step": 7, "seconds": 1.5, "parts": 2, "best": None, "window": {"loss": 0.5}, "due": True, "raw": raw}
    return {**beside, "optimizer": optimizer.state_dict(), "scaler": None}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    given = state(name)
    write_training_state(tmp_path, given)
    found = read_training_state(tmp_path)
    assert found.keys() == given.keys()
    assert found["optimizer"]["param_groups"] == given["optimizer"]["param_groups"]
    torch.testing.assert_close(found["optimizer"]["state"], given["optimizer"]["state"], rtol=0, atol=0)
    torch.testing.assert_close(found["raw"], dict(given["raw"]), rtol=0, atol=0)
    assert [found[key] for key in ("step", "seconds", "parts", "best", "window", "due", "scaler")] == [
        given[key] for key in ("step", "seconds", "parts", "best", "window", "due", "scaler")
    ]


def archive(content: Any) -> bytes:
    """What torch.save would write of `content`, which holds no tensors."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as file:
        file.writestr("archive/data.pkl", content if isinstance(content, bytes) else pickle.dumps(content, 2))
    return target.getvalue()


class Code:
    def __reduce__(self) -> Any:
        return print, ("this must not be printed",)


def shared_branches() -> list[Any]:
    leaf: list[Any] = [0]
    for _ in range(30):
        leaf = [leaf] * 10
    return leaf


def in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


HOSTILE = {
    "code": lambda: {**state(), "step": Code()},
    "no dict": lambda: [1, 2],
    "a text for the step": lambda: {"step": "x", "seconds": 1, "parts": 1, "optimizer": {}},
    "a list for the optimiser": lambda: {"step": 1, "seconds": 1, "parts": 1, "optimizer": []},
    "no parts": lambda: {"step": 1, "seconds": 1, "optimizer": {}},
    "a list in itself": lambda: {"step": 1, "seconds": 1, "parts": 1, "optimizer": {"x": in_itself()}},
    "another object": lambda: {"step": 1, "seconds": 1, "parts": 1, "optimizer": {"x": Path("x")}},
    "a text of 8 EiB": lambda: b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"abc.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_states_are_one_line(tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = HOSTILE[what]()
    if what == "code":
        torch.save(content, tmp_path / "training.pt")
    else:
        (tmp_path / "training.pt").write_bytes(archive(content))
    with pytest.raises(PansightError) as caught:
        read_training_state(tmp_path)
    assert "training.pt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "must not" not in capsys.readouterr().out


def test_shared_branches_take_no_time(tmp_path: Path) -> None:
    """A few hundred bytes that have 10 ** 30 leaves are read as the few lists that they are."""
    content = {"step": 1, "seconds": 1, "parts": 1, "optimizer": {"x": shared_branches()}}
    (tmp_path / "training.pt").write_bytes(archive(content))
    branch = read_training_state(tmp_path)["optimizer"]["x"]
    assert branch[0] is branch[9]
