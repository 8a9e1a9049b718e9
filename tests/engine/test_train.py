"""The loop: exact resumption, memory, failures, precision."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from pansight import models
from pansight.config import TrainConfig
from pansight.data import open_dataset
from pansight.data.loader import train_stream
from pansight.engine.checkpoint import RunLog, last_checkpoint
from pansight.engine.train import Interrupted, split, train
from pansight.errors import PansightError
from pansight.weights import load_model
from pansight.weights.native import write_model

sys.path.insert(0, str(Path(__file__).parent))
import toy

STEPS = TrainConfig(steps=9, batch_size=4, lr=0.01, checkpoint_every=3, log_every=2, precision="fp32", trackers=())


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(scope="module")
def shapes():
    return open_dataset("shapes", count=12, height=32, width=32)


def run(folder: Path, dataset, resume=False, stop_after=None, evaluate=None, options=None, **changes):
    """Train the toy model; stop_after: raise a stand-in for a crash when the batch after that step is asked for."""
    config = TrainConfig(**{**vars(STEPS), **changes})
    options = options or {}
    torch.manual_seed(config.seed)
    if resume:
        model = load_model(last_checkpoint(folder))[0]
    else:
        model = models.build("toy", dataset.labels, **options)

    def batches(first):
        stream = train_stream(dataset, None, config.batch_size, 8, config.steps, config.seed, first)
        for step, batch in enumerate(stream, first):
            if step == stop_after:
                raise ConnectionError("pulled the plug")
            yield batch

    folder.mkdir(exist_ok=True)
    save = partial(write_model, model=model, name="toy", options=options)
    result = train(model, batches, config, folder, Accelerator(cpu=True), save, evaluate, resume)
    return model, result


def rows(folder: Path, kind: str = "train"):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["kind"] == kind]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("crash", [4, 6, 8])
def test_a_crashed_run_resumes_to_the_same_bits(tmp_path, shapes, crash, ema):
    whole, _ = run(tmp_path / "whole", shapes, ema_decay=ema)
    with pytest.raises(ConnectionError):
        run(tmp_path / "broken", shapes, stop_after=crash, ema_decay=ema)
    resumed, result = run(tmp_path / "broken", shapes, resume=True, ema_decay=ema)
    assert (result.step, result.stopped_by) == (9, "steps")
    assert same(whole, resumed)
    losses = [[(r["step"], r["loss"], r["losses"], r["lr"]) for r in rows(tmp_path / f)] for f in ("whole", "broken")]
    assert losses[0] == losses[1]
    assert [step for step, *_ in losses[0]] == [2, 4, 6, 8, 9]
    # what was saved is what was trained
    assert same(whole.cpu(), load_model(tmp_path / "broken")[0])


def test_ema_weights_are_the_ones_saved_and_evaluated(tmp_path, shapes):
    seen = []

    def evaluate(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {"All": {"pq": 0.1}}

    torch.manual_seed(0)
    model = models.build("toy", shapes.labels)
    save = partial(write_model, model=model, name="toy", options={})
    config = TrainConfig(**{**vars(STEPS), "ema_decay": 0.9, "evaluate_every": 9})
    stream = partial(_stream, shapes, config)
    train(model, stream, config, tmp_path, Accelerator(cpu=True), save, lambda folder: evaluate(model))
    plain, _ = run(tmp_path / "plain", shapes)
    best = load_model(tmp_path / "checkpoints" / "best")[0].state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, seen[0][key])
        assert torch.equal(value, best[key])
    assert not same(model, plain)


def _stream(dataset, config, first):
    return train_stream(dataset, None, config.batch_size, 8, config.steps, config.seed, first)


@pytest.mark.slow
def test_sigkill_and_resume_give_the_weights_of_an_unbroken_run(tmp_path):
    """A real process is killed in the middle of a step; the resumed one must not show it."""
    from pansight.apps.cli import main

    command = ["train", "--model", "toy", "--data", "shapes", "--data.options.count", "12"]
    command += ["--data.options.height", "32", "--data.options.width", "32", "--train.steps", "9"]
    command += ["--train.batch-size", "4", "--train.checkpoint-every", "2", "--train.ema-decay", "0.9"]
    command += ["--train.trackers", "", "--data.workers", "0", "--augment.photometric", "0.5"]
    command += ["--train.evaluate-every", "1"]  # without it, the clock would have a say in which weights are the best
    killed = subprocess.run(
        [sys.executable, toy.__file__, *command, "--out", str(tmp_path / "killed")],
        env={**os.environ, "TOY_KILL_AT": "6"},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((tmp_path / "killed" / "evaluation.json").read_text())["step"] <= 5  # that of the best so far
    assert main(["train", "--resume", "--out", str(tmp_path / "killed")]) == 0
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    models_of = [load_model(tmp_path / name)[0] for name in ("killed", "whole")]
    assert same(*models_of)
    figures = [json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("killed", "whole")]
    assert figures[0]["per_class"] == figures[1]["per_class"]


def test_out_of_memory_halves_the_micro_batch_and_nothing_else(tmp_path, shapes, capfd):
    small, _ = run(tmp_path / "small", shapes, accumulate=4)
    shrunk, _ = run(tmp_path / "shrunk", shapes, options={"memory_limit": 1})
    assert same(small, shrunk)
    said = [line for line in capfd.readouterr().err.splitlines() if "out of memory" in line]
    assert said == [
        "out of memory at step 0: from now on 2 micro-batches of 2; the batch of a step stays the same",
        "out of memory at step 0: from now on 4 micro-batches of 1; the batch of a step stays the same",
    ]
    whole, _ = run(tmp_path / "whole", shapes)
    for a, b in zip(whole.parameters(), shrunk.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-2)  # only the noise of the toy's loss differs


def test_a_repeated_step_starts_from_the_same_statistics(tmp_path, shapes):
    """The passes that ran out of memory had moved BatchNorm's mean and variance already."""
    parts, _ = run(tmp_path / "parts", shapes, accumulate=4, steps=2, options={"batch_norm": True})
    repeated, _ = run(tmp_path / "repeated", shapes, steps=2, options={"batch_norm": True, "memory_limit": 1})
    assert parts.backbone.norm.num_batches_tracked == 8
    assert same(parts, repeated)


def test_a_run_with_batch_norm_says_what_parts_do_to_it(tmp_path, shapes, capfd):
    def said(**changes) -> list[str]:
        run(tmp_path / str(len(list(tmp_path.iterdir()))), shapes, steps=1, **changes)
        return [line for line in capfd.readouterr().err.splitlines() if "BatchNorm" in line]

    line = "the model trains BatchNorm, which sees the batch in {} pieces and normalises each by itself: "
    line += "the result is not that of one piece"
    assert said(options={"batch_norm": True}) == []
    assert said(options={"batch_norm": False}, accumulate=2) == []
    assert said(options={"batch_norm": True}, accumulate=2) == [line.format(2)]
    assert said(options={"batch_norm": True}, accumulate=2, freeze=("backbone",)) == []
    assert said(options={"batch_norm": True, "memory_limit": 2}) == [line.format(2)]


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_crashed_run_with_batch_norm_resumes_to_the_same_bits(tmp_path, shapes, ema):
    options = {"batch_norm": True}
    whole, _ = run(tmp_path / "whole", shapes, options=options, ema_decay=ema)
    with pytest.raises(ConnectionError):
        run(tmp_path / "broken", shapes, options=options, stop_after=7, ema_decay=ema)
    resumed, _ = run(tmp_path / "broken", shapes, options=options, resume=True, ema_decay=ema)
    assert same(whole, resumed)
    assert resumed.backbone.norm.num_batches_tracked == 9


def test_out_of_memory_with_a_single_image_is_an_error(tmp_path, shapes, monkeypatch):
    def explode(self, batch, totals=None):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(toy.Toy, "loss", explode)
    with pytest.raises(PansightError, match=r"out of memory with one image of 32×32 at a time") as caught:
        run(tmp_path, shapes)
    assert caught.value.code == "out_of_memory"


def test_other_runtime_errors_pass(tmp_path, shapes, monkeypatch):
    def explode(self, batch, totals=None):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(toy.Toy, "loss", explode)
    with pytest.raises(RuntimeError, match=r"shapes do not match"):
        run(tmp_path, shapes)


def test_micro_batches_weigh_each_image_alike(shapes):
    batch = next(train_stream(shapes, None, 5, 8, 1, 0))
    pieces = list(split(batch, 2))
    assert [len(p.sizes) for p in pieces] == [2, 3]
    assert sum((p.image_ids for p in pieces), ()) == batch.image_ids
    assert torch.equal(torch.cat([p.images for p in pieces]), batch.images)
    assert [len(p.sizes) for p in split(batch, 16)] == [1] * 5


def test_nan_stops_the_run_and_names_the_images(tmp_path, shapes):
    with pytest.raises(PansightError) as caught:
        run(tmp_path, shapes, options={"poison": "7"}, checkpoint_every=1)
    message = str(caught.value)
    assert "\n" not in message
    step = int(message.removeprefix("step ").split(":")[0])
    assert "classes nan, size 0." in message
    ids = message.partition("images ")[2].partition(";")[0].split(", ")
    assert "7" in ids
    assert len(ids) == 4
    for name in ("last", "stopped") if step > 1 else ("stopped",):
        model = load_model(tmp_path / "checkpoints" / name)[0]
        assert all(p.isfinite().all() for p in model.parameters())
    expected, _ = run(tmp_path / "before", shapes, steps=max(step - 1, 1), schedule="constant")
    assert expected is not None


def test_a_step_that_fails_leaves_the_statistics_before_it(tmp_path, shapes):
    with pytest.raises(PansightError, match=r"^step \d+: expected finite losses") as caught:
        run(tmp_path, shapes, options={"poison": "7", "batch_norm": True})
    step = int(str(caught.value).removeprefix("step ").split(":")[0])
    stopped = load_model(tmp_path / "checkpoints" / "stopped")[0]
    assert stopped.backbone.norm.num_batches_tracked == step - 1


def test_nan_gradient_of_a_finite_loss_stops_the_run_too(tmp_path, shapes, monkeypatch):
    def loss(self, batch, totals=None):
        # the square root has an infinite slope at 0
        return {"root": (self.head.bias - self.head.bias.detach()).abs().sqrt().sum()}

    monkeypatch.setattr(toy.Toy, "loss", loss)
    with pytest.raises(PansightError, match=r"step 1: expected finite losses, found root 0, gradient norm nan"):
        run(tmp_path, shapes)


def test_interrupt_finishes_the_step_and_saves(tmp_path, shapes, monkeypatch):
    before = signal.getsignal(signal.SIGINT)  # not Python's own where the suite runs in the background of a shell
    monkeypatch.setenv("TOY_INTERRUPT_AT", "4")
    with pytest.raises(Interrupted, match=r"interrupted after step 4, which is saved; go on with --resume"):
        run(tmp_path / "a", shapes, checkpoint_every=0)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert signal.getsignal(signal.SIGINT) is before
    resumed, _ = run(tmp_path / "a", shapes, resume=True, checkpoint_every=0)
    whole, _ = run(tmp_path / "b", shapes)
    assert same(resumed, whole)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_and_memory_format(tmp_path, shapes, precision):
    model, _ = run(tmp_path, shapes, precision=precision, steps=2, channels_last=True)
    assert model.head.weight.dtype == torch.float32
    assert model.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(math.isfinite(r["loss"]) for r in rows(tmp_path))


def test_fp16_needs_cuda():
    from pansight.engine.distributed import make_accelerator

    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    with pytest.raises(PansightError, match=r"fp16 needs a CUDA device"):
        make_accelerator("fp16")


def test_learning_lowers_the_loss_and_best_follows_the_figures(tmp_path, shapes):
    figures = iter([0.2, 0.7, 0.4])
    model, _ = run(
        tmp_path,
        shapes,
        steps=30,
        evaluate_every=10,
        log_every=10,
        clip_norm=1.0,
        lr=0.05,
        evaluate=lambda folder: {"All": {"pq": next(figures)}},
    )
    losses = [r["loss"] for r in rows(tmp_path)]
    assert losses[-1] < 0.8 * losses[0]
    assert [r["metrics"]["All"]["pq"] for r in rows(tmp_path, "evaluation")] == [0.2, 0.7, 0.4]
    best, last = (load_model(tmp_path / "checkpoints" / name)[0] for name in ("best", "last"))
    assert same(last, model)
    assert not same(best, model)


def test_frozen_parts_do_not_move(tmp_path, shapes):
    torch.manual_seed(0)
    start = models.build("toy", shapes.labels)
    model, _ = run(tmp_path, shapes, freeze=("backbone",), steps=2)
    assert torch.equal(start.backbone.conv.weight, model.backbone.conv.weight)
    assert not torch.equal(start.head.weight, model.head.weight)


def test_annealing_follows_the_progress(tmp_path, shapes, monkeypatch):
    """Of 8 steps: 1 until a quarter of the run, (1 - x) ** 0.9 over the half after it, 0 from three quarters on."""
    seen = []
    loss = toy.Toy.loss
    monkeypatch.setattr(
        toy.Toy,
        "loss",
        lambda self, batch, totals: seen.append(self.annealing.probs.item()) or loss(self, batch, totals),
    )
    model, _ = run(tmp_path, shapes, steps=8)
    expected = [1, 1, 1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0, 0]
    assert seen == pytest.approx(expected)
    assert load_model(tmp_path)[0].annealing.probs.item() == model.annealing.probs.item() == 0


def test_log_drops_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 5}\n{"st')
    RunLog(path).trim(4)
    assert path.read_text() == '{"step": 1}\n'


def test_a_broken_training_state_is_named(tmp_path, shapes):
    run(tmp_path, shapes, steps=3)
    path = tmp_path / "checkpoints" / "last" / "training.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(PansightError, match=r"training.pt: expected a training state, found "):
        run(tmp_path, shapes, resume=True)
    path.unlink()
    with pytest.raises(PansightError, match=r"expected a run to resume \(checkpoints/last/training.pt\), found none"):
        run(tmp_path, shapes, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint_good(tmp_path, shapes, monkeypatch):
    import pansight.engine.checkpoint as checkpoint

    save = torch.save

    def full(state, path):
        if state["step"] > 3:
            raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
        save(state, path)

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(PansightError, match=r"checkpoints/last: cannot be written: training.pt: "):
        run(tmp_path / "run", shapes)
    monkeypatch.undo()
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["last"]
    resumed, _ = run(tmp_path / "run", shapes, resume=True)
    whole, _ = run(tmp_path / "whole", shapes)
    assert same(resumed, whole)
