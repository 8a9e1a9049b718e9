"""Ctrl-C and SIGTERM: what is at hand is finished, what is needed to go on is saved, nothing half-written is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pansight import load, models
from pansight.apps.cli import main
from pansight.apps.commands import running
from pansight.config import EvaluateConfig
from pansight.data import open_dataset
from pansight.data.formats.shapes import Shapes
from pansight.data.images import write_png
from pansight.engine.evaluate import evaluate
from pansight.engine.progress import stop_signal
from pansight.errors import Interrupted

sys.path.insert(0, str(Path(__file__).parent))
import toy
from oracle import Oracle
from toy_run import send_at_image

BOTH = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
NOTICE = "stopping after the {} at hand; again to stop at once"


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(autouse=True)
def _handlers():
    """Every test leaves the handlers of signals as they were."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def command(out: Path, *more: str) -> list[str]:
    words = ["train", "--model", "toy", "--data", "shapes", "--data.options.count", "8", "--out", str(out)]
    words += [
        "--data.options.height",
        "32",
        "--data.options.width",
        "32",
        "--train.trackers",
        "",
        "--data.workers",
        "0",
    ]
    usual = {"--train.steps": "4", "--train.batch-size": "4", "--train.evaluate-every": "2"}
    return [*words, *more, *(word for pair in usual.items() if pair[0] not in more for word in pair)]


def lines_of(capfd) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if line.startswith(("stopping", "pansight"))]


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# --- the signal itself -----------------------------------------------------------------------------------------------


def test_the_first_signal_waits_and_the_second_does_not(capfd):
    with stop_signal("image") as stop:
        assert not stop.is_set()
        send(signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        assert capfd.readouterr().err == NOTICE.format("image") + "\n"
        with pytest.raises(Interrupted) as caught:
            send(signal.SIGINT)
    assert (caught.value.number, caught.value.at_once) == (signal.SIGINT, True)


def test_with_nothing_at_hand_the_first_one_stops():
    with stop_signal(), pytest.raises(Interrupted) as caught:
        send(signal.SIGTERM)
    assert (caught.value.number, caught.value.at_once) == (signal.SIGTERM, False)


def test_one_inside_another_shares_what_was_heard():
    with stop_signal("step", shown=False) as outer:
        with stop_signal("image", shown=False):
            send(signal.SIGINT)
        assert outer.number == signal.SIGINT  # the inner job was finished: the outer one has to stop
        with stop_signal("image", shown=False) as inner:
            assert inner.is_set()
        with pytest.raises(Interrupted), stop_signal():
            pytest.fail("entered")


def test_a_forked_worker_leaves_it_to_its_parent():
    with stop_signal("step", shown=False) as stop:
        child = os.fork()
        if not child:
            send(signal.SIGINT)
            os._exit(stop.number)
        assert os.waitpid(child, 0)[1] == 0


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), BOTH)
@pytest.mark.parametrize("image", [3, 11])  # of the evaluation after step 2, and of that after step 4, the last one
def test_an_evaluation_in_training_stops_after_the_image_at_hand(tmp_path, monkeypatch, capfd, number, code, image):
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert main(command(whole)) == 0
    with monkeypatch.context() as patch:
        send_at_image(patch, number, image)
        capfd.readouterr()
        assert main(command(out)) == code
    step = 2 if image == 3 else 4
    text = f"pansight: interrupted in the evaluation after step {step}, which is saved; go on with --resume"
    assert lines_of(capfd) == [NOTICE.format("image"), text]
    assert not (out / "candidate").exists()
    assert (out / "checkpoints" / "best").exists() == (step == 4)
    assert main(["train", "--resume", "--out", str(out)]) == 0
    for name in ("last", "best"):
        a, b = (load(folder / "checkpoints" / name).model.state_dict() for folder in (out, whole))
        assert all(torch.equal(a[key], b[key]) for key in a), name
    logs = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (out, whole)]
    assert [(row["kind"], row["step"]) for row in logs[0]] == [(row["kind"], row["step"]) for row in logs[1]]


def test_a_signal_before_an_evaluation_leaves_it_to_the_next_session(tmp_path, monkeypatch):
    out, whole = tmp_path / "run", tmp_path / "whole"
    assert main(command(whole)) == 0
    monkeypatch.setenv("TOY_INTERRUPT_AT", "4")  # in the last step
    assert main(command(out)) == 130
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert main(["train", "--resume", "--out", str(out)]) == 0
    figures = [json.loads((folder / "evaluation.json").read_text()) for folder in (out, whole)]
    assert (figures[0]["step"], figures[0]["per_class"]) == (figures[1]["step"], figures[1]["per_class"])


def test_a_second_signal_in_an_evaluation_stops_at_once(tmp_path, monkeypatch, capfd):
    send_at_image(monkeypatch, signal.SIGINT, 3, times=2)
    assert main(command(tmp_path / "run", "--train.checkpoint-every", "1")) == 130
    assert lines_of(capfd)[-1] == "pansight: stopped at once; go on from the last checkpoint with --resume"


def test_a_training_that_saved_nothing_leaves_no_folder(tmp_path, monkeypatch, capfd):
    send_at_image(monkeypatch, signal.SIGINT, 3, times=2)
    assert main(command(tmp_path / "run")) == 130
    assert lines_of(capfd)[-1] == "pansight: interrupted before anything was saved"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("every", ["0", "2"])
def test_the_report_and_the_intervals_stop_at_once(tmp_path, monkeypatch, capfd, every):
    """Both come after the training; the next session makes them."""
    out = tmp_path / "run"
    target, name = (running, "with_intervals") if every == "2" else (running, "write_report")
    with monkeypatch.context() as patch:
        patch.setattr(target, name, lambda *given: send(signal.SIGTERM) or time.sleep(60))
        assert main(command(out, "--train.evaluate-every", every)) == 143
    text = "pansight: interrupted after the training, which is saved; --resume measures it and writes its report"
    assert lines_of(capfd)[-1] == text
    assert main(["train", "--resume", "--out", str(out)]) == 0
    assert "bootstrap interval over the images" in (out / "report.html").read_text()


def test_only_the_evaluation_that_stands_has_intervals(tmp_path):
    assert main(command(tmp_path)) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())
    assert "All" in record["intervals"]
    assert "All" in record["instances"]["intervals"]["mask"]
    log = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [row["metrics"] for row in log if row["kind"] == "evaluation"]
    assert len(measured) == 2
    assert not any("intervals" in part for row in measured for part in (row, row["instances"]))


# --- evaluate and predict --------------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path) -> Path:
    out = tmp_path / "trained"
    assert main(command(out, "--train.steps", "1", "--train.evaluate-every", "0")) == 0
    return out


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_an_evaluation_leaves_what_stood_there(trained, tmp_path, monkeypatch, capfd, number, code):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    words = [["evaluate", str(trained)], ["evaluate", str(trained), "--out", str(tmp_path / "new")]]
    for arguments in words:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            send_at_image(patch, number, 3)
            assert main(arguments) == code
        text = "pansight: interrupted after image 3 of 8; nothing is written"
        assert lines_of(capfd) == [NOTICE.format("image"), text]
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_intervals_of_an_evaluation_stop_at_once(tmp_path, monkeypatch, number):
    import pansight.engine.evaluate as module

    shapes = Shapes(3, 32, 32)
    monkeypatch.setattr(module, "with_intervals", lambda record: send(number) or time.sleep(60))
    with pytest.raises(Interrupted, match=r"interrupted after the last image; nothing is written") as caught:
        evaluate(Oracle(shapes, "masks", 0.5), shapes, EvaluateConfig(), Accelerator(cpu=True), tmp_path / "out")
    assert caught.value.number == number
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), BOTH)
def test_predict_writes_all_or_nothing(trained, tmp_path, monkeypatch, capfd, number, code):
    dataset, photos = open_dataset("shapes", count=4, height=32, width=32), tmp_path / "photos"
    photos.mkdir()
    for index in range(4):
        write_png(photos / f"{index}.png", dataset[index].image.permute(1, 2, 0).numpy())
    capfd.readouterr()
    send_at_image(monkeypatch, number, 2)
    out = tmp_path / "found"
    assert main(["predict", str(trained), str(photos), "--out", str(out)]) == code
    text = "pansight: interrupted after image 2 of 4; nothing is written"
    assert lines_of(capfd) == [NOTICE.format("image"), text]
    assert not out.exists() or list(out.iterdir()) == []


# --- processes -------------------------------------------------------------------------------------------------------


def test_sigterm_ends_a_command_cleanly(tmp_path):
    """A real process, and a command that knows nothing of signals."""
    code = (
        "import os, sys, time; from pansight.apps import cli\n"
        "from pansight.files import replacing\n"
        "@cli.app.command\n"
        "def wait(path: str):\n"
        "    with replacing(path) as temporary:\n"
        "        temporary.write_text('half')\n"
        "        print('ready', flush=True)\n"
        "        time.sleep(60)\n"
        "sys.exit(cli.main(['wait', sys.argv[1]]))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "file")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (143, "pansight: interrupted\n")
    assert list(tmp_path.iterdir()) == []
