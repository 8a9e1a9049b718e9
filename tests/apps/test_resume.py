"""``pansight train --resume`` with other settings, beside another process, and after a kill while it writes."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from pansight import models
from pansight.apps.cli import main
from pansight.config import Config, override, read_config
from pansight.data import Shapes
from pansight.data.formats.coco_panoptic import export_coco_panoptic
from pansight.engine.checkpoint.changes import FIXED, OPEN, changes
from pansight.engine.checkpoint.lock import LOCK, holding
from pansight.engine.session import Session
from pansight.errors import PansightError

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
import toy


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    export_coco_panoptic(Shapes(6, 32, 40), folder, "train")
    export_coco_panoptic(Shapes(2, 32, 40, split="val"), folder, "val")
    return folder


class Stopped(Exception):
    """A kill after a checkpoint."""


def words(data: Path) -> list[str]:
    """A training of 8 steps with a checkpoint after 4."""
    settings = {"steps": 8, "batch-size": 2, "lr": 0.01, "evaluate-every": 0, "checkpoint-every": 4, "trackers": ""}
    given = [word for name, value in settings.items() for word in (f"--train.{name}", str(value))]
    return ["train", "--model", "toy", "--data", str(data), *given]


@pytest.fixture(scope="module")
def half(data, tmp_path_factory) -> Path:
    """A run that was killed after 4 of 8 steps."""
    folder = tmp_path_factory.mktemp("runs") / "half"
    save = Session.save_last

    def stopping(self):
        save(self)
        if self.state.step == 4:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
        patch.setattr(Session, "save_last", stopping)
        with pytest.raises(Stopped):
            main([*words(data), "--out", str(folder)])
    return folder


@pytest.fixture
def run(half, tmp_path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "run"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "last" / "model.safetensors")


def resumed(run: Path, *more: str) -> dict[str, torch.Tensor]:
    assert main(["train", "--resume", "--out", str(run), *more]) == 0
    return weights(run)


def equal(one, two) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "value"),
    [("lr", 1e-5), ("weight_decay", 0.5), ("backbone_lr_factor", 0.0), ("clip_norm", 1e-4), ("steps", 6)],
)
def test_what_can_change_takes_effect_and_is_noted(setting, value, half, run, tmp_path, capsys):
    plain = resumed(Path(shutil.copytree(half, tmp_path / "plain")))
    capsys.readouterr()
    other = resumed(run, f"--train.{setting.replace('_', '-')}", f"{value}")
    assert f"changed    train.{setting} = {value}" in capsys.readouterr().out
    rated = setting != "backbone_lr_factor" or any(name.startswith("backbone") for name in plain)
    assert equal(plain, other) != rated
    text = (run / "config.toml").read_text()
    assert f"# from step 4 on: train.{setting} = {value} instead of " in text
    assert tomllib.loads(text)["train"][setting] == value
    assert read_config(run / "config.toml") == override(read_config(half / "config.toml"), {f"train.{setting}": value})


def test_a_run_goes_on_after_a_change_and_notes_every_one(run, capsys):
    resumed(run, "--train.steps", "9")
    resumed(run, "--train.steps", "10")
    capsys.readouterr()
    resumed(run, "--train.steps", "10")  # the same again is no change
    assert "changed" not in capsys.readouterr().out
    text = (run / "config.toml").read_text()
    assert "# from step 4 on: train.steps = 9 instead of 8" in text
    assert "# from step 9 on: train.steps = 10 instead of 9" in text
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


REFUSED = {
    "--model": ("mask2former", "model.name"),
    "--backbone": ("resnet18", "model.backbone"),
    "--weights": ("elsewhere", "model.weights"),
    "--model.options.width": ("20", "model.options.width"),
    "--train.optimizer": ("sgd", "train.optimizer"),
    "--train.ema-decay": ("0.9", "train.ema_decay"),
    "--train.freeze": ("head", "train.freeze"),
    "--train.decay": ("everything", "train.decay"),
    "--train.layer-decay": ("0.5", "train.layer_decay"),
    "--train.seed": ("3", "train.seed"),
    "--train.lr": ("0", "train.lr"),
    "--train.batch-size": ("0", "train.batch_size"),
}


@pytest.mark.parametrize("flag", REFUSED)
def test_what_cannot_change_is_refused_and_leaves_the_run_as_it_is(flag, run, capsys):
    value, key = REFUSED[flag]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["train", "--resume", "--out", str(run), flag, value]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith(f"pansight: {key}: expected ")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    resumed(run)


def test_the_same_command_with_resume_goes_on(data, half, run, tmp_path):
    plain = resumed(Path(shutil.copytree(half, tmp_path / "plain")))
    assert main([*words(data), "--out", str(run), "--resume"]) == 0
    assert equal(weights(run), plain)


def test_a_recipe_that_is_named_again_means_what_it_has(run, tmp_path, capsys):
    (tmp_path / "mine.toml").write_text("[train]\nsteps = 9\n")
    resumed(run, "--recipe", str(tmp_path / "mine.toml"))
    assert "changed    train.steps = 9 instead of 8, from step 4 on" in capsys.readouterr().out
    assert read_config(run / "config.toml").train.lr == 0.01  # which the recipe leaves open


def test_every_setting_is_either_fixed_or_open_to_change():
    """A name in the table that no setting has would never refuse anything."""
    known = {"model", *(f"{part}.{name}" for part, values in Config().to_dict().items() for name in values)}
    assert known >= set(FIXED) | set(OPEN)
    assert changes(Config(), Config()) == []
    with pytest.raises(PansightError, match=r"train\.optimizer: expected adamw, as the run began, found sgd"):
        changes(Config(), override(Config(), {"train.optimizer": "sgd"}))


def _hold(folder: str, held, done) -> None:
    with holding(Path(folder)):
        held.set()
        done.wait(60)


@pytest.mark.slow
def test_a_second_process_is_refused_while_the_first_lives(data, run, tmp_path, capsys):
    context = multiprocessing.get_context("spawn")
    held, done = context.Event(), context.Event()
    first = context.Process(target=_hold, args=(str(run), held, done))
    first.start()
    assert held.wait(60)
    for more in (["--resume"], ["--overwrite"], []):
        assert main([*words(data), "--out", str(run), *more]) == 2
        assert "another training writes into this folder; wait for it or stop it" in capsys.readouterr().err
    first.kill()
    first.join()
    resumed(run)  # a killed process holds nothing


def test_a_lock_file_alone_says_nothing(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).touch()
    assert main([*words(data), "--out", str(tmp_path / "run")]) == 0
    assert main([*words(data), "--out", str(tmp_path / "run"), "--overwrite"]) == 0


def test_a_folder_that_was_made_for_nothing_goes(tmp_path, capsys):
    assert main(["train", "--resume", "--out", str(tmp_path / "gone")]) == 2
    assert "expected a run to resume" in capsys.readouterr().err
    assert not (tmp_path / "gone").exists()


def test_where_there_are_no_locks_a_run_goes_on(run, monkeypatch):
    def none(self, *arguments, **more):
        raise NotImplementedError("no locks")

    monkeypatch.setattr(FileLock, "acquire", none)
    resumed(run)


def test_what_a_kill_left_is_cleared_and_stops_nothing(half, run, tmp_path):
    plain = resumed(Path(shutil.copytree(half, tmp_path / "plain")))
    for name in ("checkpoints/.last.7.tmp", "checkpoints/.best.0a1b2c3d.tmp", ".predictions.12.tmp", "candidate"):
        (run / name / "deep").mkdir(parents=True)
        (run / name / "deep" / "half").write_text("x")
    for name in (".evaluation.json.7.tmp", ".config.toml.1.tmp", ".metrics.jsonl.9.tmp"):
        (run / name).write_text("{")
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "kind": "tr')
    assert equal(resumed(run), plain)
    assert not list(run.rglob("*.tmp"))
    assert not (run / "candidate").exists()


def test_adam_is_adam_and_resumes_as_it_began(data, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main([*words(data), "--train.optimizer", "adam", "--out", str(whole)]) == 0
    config = read_config(whole / "config.toml")
    assert (config.train.optimizer, config.train.weight_decay) == ("adam", 0.0)
    save = Session.save_last

    def stopping(self):
        save(self)
        if self.state.step == 4:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Session, "save_last", stopping)
        with pytest.raises(Stopped):
            main([*words(data), "--train.optimizer", "adam", "--out", str(parts)])
    assert equal(resumed(parts), weights(whole))
