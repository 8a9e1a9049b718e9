"""A training that follows the clock: rates, evaluations and what is said, by a clock that the tests turn."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from pansight import models
from pansight.apps.cli import main, waiting_policy
from pansight.config import Config, TrainConfig, override, read_config
from pansight.data import open_dataset
from pansight.data.loader import train_stream, whole_batch
from pansight.engine import automatic, clock
from pansight.engine.clock import BusyMachine, Demand, Stopwatch, waiting_share
from pansight.engine.optim import lr_factor
from pansight.errors import PansightError

sys.path.insert(0, str(Path(__file__).parent))
import toy
import toy_run
from toy_run import rows, run, turn

TWENTY = 20 / 60
"""Minutes in which a step takes a twentieth of the time."""


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(models.MODELS, "toy", toy.ENTRIES["toy"])


@pytest.fixture(scope="module")
def shapes():
    return open_dataset("shapes", count=12, height=32, width=32)


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"schedule": "constant"}, {0: 0.001, 0.025: 0.5005, 0.05: 1.0, 1: 1.0}),
        ({"schedule": "cosine"}, {0.5: 0.5, 0.75: 0.5 * (1 - math.sqrt(0.5)), 1: 0.0}),
        ({"schedule": "poly", "power": 2.0}, {0.05: 0.9025, 0.5: 0.25, 1: 0.0}),
        ({"schedule": "step", "milestones": (0.5, 0.75)}, {0.49: 1.0, 0.5: 0.1, 0.76: 0.01}),
        ({"schedule": "constant", "warmup_steps": 4, "warmup_factor": 0.0}, {0.01: 0.75}),  # three of those steps
    ],
)
def test_by_the_clock_rates_are_functions_of_the_share_of_the_time(settings, factors):
    config = TrainConfig(max_minutes=2, **settings)
    for share, factor in factors.items():
        assert math.isclose(lr_factor(config, 3, share), factor, abs_tol=1e-9), share


def test_a_number_of_steps_is_over_in_good_time_where_the_clock_is_ahead():
    """By its share of all steps, or the first twentieth of the time where that is more."""
    facts = {"max_minutes": 2, "schedule": "constant", "warmup_factor": 0.0}
    config = TrainConfig(steps=1000, warmup_steps=200, **facts)
    assert math.isclose(lr_factor(config, 5, 0.1), 0.5)
    assert lr_factor(config, 10, 0.2) == 1.0
    assert math.isclose(lr_factor(config, 100, 100 / 1000), 0.5)  # the steps are ahead
    short = TrainConfig(steps=6000, warmup_steps=30, **facts)  # of which the time allows 800
    assert math.isclose(lr_factor(short, 15, 15 / 800), 0.5)
    too_long = TrainConfig(warmup_steps=500, **facts)
    assert math.isclose(lr_factor(too_long, 1, 0.025), 0.5)
    assert lr_factor(too_long, 2, 0.05) == 1.0
    delayed = TrainConfig(warmup_steps=0, backbone_delay=(500, 1000), **facts)
    assert [lr_factor(delayed, 2, at, backbone=True) for at in (0.04, 0.1)] == [0.0, 1.0]
    assert math.isclose(lr_factor(delayed, 2, 0.075, backbone=True), 0.5)
    assert lr_factor(delayed, 2, 0.04) == 1.0


def test_a_training_by_the_clock_follows_it_to_its_end(tmp_path, shapes, monkeypatch, capsys):
    seen = []
    now = turn(monkeypatch)

    def evaluate(folder):
        seen.append(now.seconds)
        now.seconds += 100  # an evaluation takes nothing of the time of training
        return {"All": {"pq": 0.5}}

    _, result = run(tmp_path, shapes, now, evaluate, steps=0, max_minutes=TWENTY, evaluate_every=-1)
    assert (result.step, result.stopped_by, result.seconds) == (20, "time", 20.0)
    rates = [row["lr"] for row in rows(tmp_path)]
    cosine = [0.01 * 0.5 * (1 + math.cos(math.pi * step / 20)) for step in range(20)]
    assert rates[0] == pytest.approx(0.001 * cosine[0])
    assert rates[1:] == pytest.approx(cosine[1:])  # warm-up is over after a twentieth
    assert [row["step"] for row in rows(tmp_path, "evaluation")] == [4, 8, 12, 16, 20]
    assert seen == [4, 108, 212, 316, 420]
    assert "1000000" not in capsys.readouterr().err + (tmp_path / "metrics.jsonl").read_text()


def test_annealing_follows_the_clock(tmp_path, shapes, monkeypatch):
    probs, loss = [], toy.Toy.loss

    def noting(self, batch, totals=None):
        probs.append(self.annealing.probs.item())
        return loss(self, batch, totals)

    monkeypatch.setattr(toy.Toy, "loss", noting)
    run(tmp_path, shapes, turn(monkeypatch), steps=0, max_minutes=8 / 60)
    assert probs == pytest.approx([1, 1, 1, 0.75**0.9, 0.5**0.9, 0.25**0.9, 0, 0])


def test_a_run_by_the_clock_goes_on_where_it_was(tmp_path, shapes, monkeypatch):
    import signal

    now = turn(monkeypatch)
    settings = {"steps": 0, "max_minutes": TWENTY, "evaluate_every": 0}
    monkeypatch.setenv("TOY_INTERRUPT_AT", "7")
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted after step 7, which is saved; go on with --resume"):
        run(tmp_path, shapes, now, **settings)
    monkeypatch.delenv("TOY_INTERRUPT_AT")
    assert signal.getsignal(signal.SIGINT) == before
    now.seconds += 1000  # the run stands still between two sessions
    _, result = run(tmp_path, shapes, now, resume=True, **settings)
    assert (result.step, result.seconds) == (20, 20.0)
    rates = [row["lr"] for row in rows(tmp_path)]
    assert rates[10] == pytest.approx(0.005)
    _, again = run(tmp_path, shapes, now, resume=True, **settings)  # nothing is left to do
    assert (again.step, len(rows(tmp_path))) == (20, 20)


def test_the_bar_shows_the_steps_and_the_time_that_there_are(tmp_path, shapes, monkeypatch):
    from pansight.engine.progress import ProgressBar

    said = []
    monkeypatch.setattr(ProgressBar, "update", lambda self, share, text: said.append((share, text)))
    now = turn(monkeypatch)
    run(tmp_path / "a", shapes, now, steps=0, max_minutes=TWENTY)
    assert said[6][0] == pytest.approx(7 / 20)
    assert said[6][1].startswith("step 7, 0:07 of 0:20, loss ")
    said.clear()
    run(tmp_path / "b", shapes, now, steps=10, max_minutes=TWENTY)
    assert said[6][1].startswith("step 7/10, 0:07 of 0:20, loss ")
    said.clear()
    run(tmp_path / "c", shapes, now, steps=10)
    assert said[6][1].startswith("step 7/10, loss ")


def test_the_chosen_settings_pretend_no_number_of_steps(tmp_path, shapes):
    config, choices = automatic.choose(
        override(Config(), {"model.name": "toy", "train.max_minutes": 2}), shapes, toy_run.torch.device("cpu")
    )
    found = {choice.key: choice.value for choice in choices}
    assert (found["train.steps"], found["train.warmup_steps"], found["train.evaluate_every"]) == (0, -1, -1)
    assert config.train.evaluate_share == 0.2
    config.save(tmp_path / "config.toml")
    again, _ = automatic.choose(read_config(tmp_path / "config.toml"), shapes, toy_run.torch.device("cpu"))
    assert again == config


def test_a_run_needs_an_end(tmp_path, shapes):
    with pytest.raises(PansightError, match=r"^train.steps: expected steps, or train.max_minutes, found neither$"):
        run(tmp_path, shapes, clock.time.monotonic, steps=0)


# --- epochs and batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "steps"),
    [(12, 3, 4, 9), (10, 1, 4, 3), (10, 0.5, 8, 1), (70, 0.1, 1, 7), (5, 2, 5, 2)],
)
def test_epochs_are_counted_in_steps(images, epochs, batch, steps):
    assert clock.steps_of_epochs(TrainConfig(epochs=epochs, batch_size=batch), images) == steps
    assert clock.steps_of_epochs(TrainConfig(epochs=epochs, batch_size=batch, steps=steps), images) == steps
    line = r"^train.epochs: expected epochs or steps, found .* epochs, which are \d+ steps of \d+ images, and 99 steps;"
    with pytest.raises(PansightError, match=line):
        clock.steps_of_epochs(TrainConfig(epochs=epochs, batch_size=batch, steps=99), images)


def test_a_batch_is_at_most_the_data():
    assert [whole_batch(size, 5, 1) for size in (0, 3, 5, 8)] == [0, 3, 5, 5]
    assert [whole_batch(8, 5, 2), whole_batch(8, 2, 4), whole_batch(8, 9, 3)] == [4, 4, 8]


def test_epochs_take_the_place_of_the_steps_of_a_recipe(tmp_path, capsys):
    """Five images at a batch of eight, which is cut; whichever of steps and epochs is given counts."""
    words = ["train", "--model", "toy", "--data", "shapes", "--data.options.count", "5", "--train.trackers", ""]
    words += ["--data.options.height", "32", "--data.options.width", "32", "--train.batch-size", "8"]
    first, second = tmp_path / "a", tmp_path / "b"
    assert main([*words, "--train.epochs", "2", "--out", str(first)]) == 0
    assert "train.batch_size = 5 instead of 8: there are 5 images to train on" in capsys.readouterr().out
    made = read_config(first / "config.toml").train
    assert (made.epochs, made.steps, made.batch_size) == (2.0, 2, 5)
    recipe = ["train", "--recipe", str(first / "config.toml"), "--train.steps", "3", "--out", str(second)]
    assert main(recipe) == 0
    assert (read_config(second / "config.toml").train.epochs, rows(second)[-1]["step"]) == (0.0, 3)
    for more in (["--train.epochs", "2", "--train.steps", "7"], ["--resume", "--train.epochs", "2"]):
        capsys.readouterr()
        assert main([*words, *more, "--out", str(second if "--resume" in more else tmp_path / "c")]) == 2
        assert capsys.readouterr().err.startswith("pansight: train.epochs: expected ")
    assert not (tmp_path / "c").exists()


def test_batches_without_end(shapes):
    for workers in (0, 1):
        stream = train_stream(shapes, None, 5, 8, 0, 0, start_step=1_000_000_000, workers=workers)
        assert len(next(stream).sizes) == 5


# --- evaluations -----------------------------------------------------------------------------------------------------


def test_an_evaluation_that_takes_too_long_is_put_off(tmp_path, shapes, monkeypatch, capsys):
    """Each takes 3 seconds, a step one: by a fifth of the time the first one may come after 15 steps."""
    now, seen = turn(monkeypatch), []

    def evaluate(folder):
        seen.append(len(rows(tmp_path)))
        now.seconds += 3
        return {"All": {"pq": 1 / len(seen)}}

    settings = {"steps": 40, "evaluate_every": 5, "evaluate_share": 0.2}
    _, result = run(tmp_path, shapes, now, evaluate, images=12, **settings)  # 12 images, 4 of which take a second
    assert seen == [15, 30, 40]
    assert result.seconds == 40
    said = [line for line in capsys.readouterr().err.splitlines() if "put off" in line]
    line = "step {}: the evaluation, of about 0:03, is put off: they take at most 20 % of the time of training "
    assert said == [line.format(step) + "(train.evaluate_share)" for step in (5, 10, 20, 25, 35)]
    seen.clear()
    run(
        tmp_path / "free",
        shapes,
        now,
        lambda folder: seen.append(0) or {"All": {"pq": 0.1}},
        steps=10,
        evaluate_every=5,
    )
    assert len(seen) == 2  # without a share any time is right


@pytest.mark.parametrize(
    ("given", "every", "share"),
    [({}, 200, 0.2), ({"evaluate_every": 7}, 7, 0.0), ({"evaluate_every": 7, "evaluate_share": 0.5}, 7, 0.5)],
)
def test_a_given_distance_of_evaluations_stands(shapes, given, every, share):
    config, _ = automatic.choose(
        override(Config(), {"model.name": "toy", "train": given}), shapes, toy_run.torch.device("cpu")
    )
    assert (config.train.evaluate_every, config.train.evaluate_share) == (every, share)


def test_generated_shapes_are_measured_on_200():
    assert [len(open_dataset("shapes", split=part)) for part in ("train", "val", "test")] == [1000, 200, 200]
    assert len(open_dataset("shapes")) == 1000
    assert len(open_dataset("shapes", split="val", count=300)) == 300


def test_a_stopwatch_stands_still():
    now = toy_run.Clock()
    watch = Stopwatch(5.0, now)
    now.seconds += 2
    with watch.paused():
        now.seconds += 100
    assert watch.seconds() == 7


# --- a busy machine --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        (Demand(10, 1, 0), Demand(15, 6, 0), 0.5),  # a core half of the time
        (Demand(10, 1, 9), Demand(20, 1, 9), 0.0),  # a load that takes nothing from this process
        (Demand(10, 5, 0), Demand(12, 4, 0), 0.0),  # threads have ended
        (Demand(10, None, 0), Demand(20, None, 4), 0.5),  # twice as many threads as cores
        (Demand(10, None, 0), Demand(20, None, 2.2), 0.0),  # its own
        (Demand(0, None, 0), Demand(0, None, 0), 0.0),
    ],
)
def test_waiting_is_a_share_of_what_was_wanted(before, after, share):
    assert waiting_share(before, after, cores=2, threads=2) == pytest.approx(share)


def test_a_busy_machine_is_noticed_once():
    now = toy_run.Clock()
    demands = iter([Demand(0, 0, 0), Demand(10, 0.1, 0), Demand(15, 5.1, 0), Demand(20, 20, 0)])
    machine = BusyMachine(lambda: next(demands), now)
    said = []
    for second in range(50):
        now.seconds = second
        if line := machine.notice():
            said.append((second, line.partition(";")[0]))
    assert said == [(20, "other programs keep the processor busy: 50 % of its time this training waits for a core")]


def test_threads_sleep_on_a_machine_that_is_busy_at_the_start():
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    assert [waiting_policy(load, 2, {}) for load in (0.0, 0.9, 1.0, 4.0)] == [{}, {}, passive, passive]
    for given in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        assert waiting_policy(4.0, 2, {given: "1"}) == {}


def test_the_demand_of_this_process_is_read():
    first = clock.demand_now()
    sum(range(1_000_000))
    assert clock.demand_now().computed > first.computed
    assert first.waited is None or first.waited >= 0
