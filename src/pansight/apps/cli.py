"""The command line: flags and help come from the definition of the settings, and every error is one line.

Only `config` is imported here; what a command needs is loaded when it runs, so that ``--help`` is quick.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter

from pansight.apps.commandline import cluster, labels, scores, serving, sweeps
from pansight.apps.commandline import data as data_commands
from pansight.apps.commandline import hub as hub_commands
from pansight.apps.commandline import huge as huge_commands
from pansight.apps.commandline.cluster import EngineSettings
from pansight.apps.commandline.huge import HugeSettings
from pansight.apps.commandline.pace import PaceSettings
from pansight.apps.commandline.scores import FileSettings
from pansight.apps.commandline.settings import INNER, EvaluateSettings, Settings, given_settings, remember
from pansight.errors import Interrupted, PansightError

BAD_INPUT, READER_GONE, SIGNALLED = 2, 141, 128
"""Exit codes; the number of the signal is added to the last, as in a shell."""
LONGEST = 1200
"""Letters of a line of complaint."""

app = App(
    "pansight",
    help="Panoptic segmentation: from a folder of annotations to a trained, measured, explained model.",
    help_epilogue="Two commands to start with: pansight demo; pansight train --data DIR",
    version=f"pansight {version('pansight')}",
    help_format="plaintext",
    config=remember,
    result_action="return_value",
    default_parameter=Parameter(consume_multiple=True),
    suppress_keyboard_interrupt=False,
)


@app.command(help_epilogue="Example: pansight demo --minutes 3")
def demo(
    *,
    minutes: float = 3.5,
    out: Path = Path("runs/demo"),
    steps: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
):
    """Train Panoptic FPN on generated shapes, measure it on 200 others and write the report.

    Parameters
    ----------
    minutes
        Of training; evaluation and report come on top.
    out
        The run folder.
    steps
        Train for so many steps instead, whatever they take.
    seed
        Of weights, order of images and sampling; the images themselves stay the same.
    overwrite
        Replace the run that stands there.
    """
    from pansight.apps import commands

    commands.demo(minutes, out, steps, seed, overwrite)


@app.command(
    help_epilogue="Examples: pansight train --model panoptic_fpn --backbone resnet50 --data DIR; "
    "pansight train --recipe shapes/panoptic_fpn --train.steps 500; pansight train --resume --out runs/shapes"
)
def train(
    *,
    model: str | None = None,
    backbone: str | None = None,
    data: str | None = None,
    recipe: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    max_minutes: float | None = None,
    settings: Settings = None,
) -> int:
    """Train a model, measure it and write its report. What is left open is chosen from the data and printed.

    Parameters
    ----------
    model
        A system: pansight models lists them. [default: panoptic_fpn]
    backbone
        Any timm backbone by name. [default: the model's own]
    data
        A folder or annotation file in a format of pansight datasets, or the word shapes.
    recipe
        Settings that were measured: a shipped name such as shapes/panoptic_fpn, or a TOML file.
    weights
        Fine-tune from a run, a saved model, a hub id or an official checkpoint; classes are kept by name.
    out
        The run folder. [default: runs/RECIPE or runs/MODEL]
    resume
        Go on with the run in the folder, after a kill or an interruption, as if nothing had happened.
    overwrite
        Replace the run in the folder.
    strict
        Stop at an image that cannot be used, instead of leaving it out, telling it and ending with code 1.
    max_minutes
        Train for so many minutes, evaluations not counted; the whole schedule follows the clock.
    """
    from pansight.apps import commands

    given = dict(given_settings) | ({"data.strict": True} if strict else {})
    run = commands.train(model, backbone, data, recipe, weights, out, resume, overwrite, max_minutes, given)
    return 1 if run.left_out else 0


@app.command(
    help_epilogue="Examples: pansight evaluate runs/demo --data DIR --out results; "
    "pansight evaluate --gt panoptic_val.json --pred predictions.json --report report.html"
)
def evaluate(
    weights: str | None = None,
    /,
    *,
    data: str | None = None,
    split: Annotated[str | None, Parameter(name=["--split", "--part"])] = None,
    out: Path | None = None,
    overwrite: bool = False,
    strict: bool = False,
    threshold: float | None = None,
    files: Annotated[FileSettings | None, Parameter(name="*", group="Files")] = None,
    settings: EvaluateSettings = None,
) -> int:
    """Measure a model, or files with predictions: PQ, SQ, RQ of all, things and stuff; AP; mIoU; what went wrong.

    Parameters
    ----------
    weights
        A run folder (its best weights), a saved model, a hub id or a checkpoint file. Files are scored without one.
    data
        Images with their truth. [default: the validation images of the run]
    split
        The part of the data: train, val or test. [default: val where there is one]
    out
        Where evaluation.json, predictions and report.html go. [default: the run, or evaluations/NAME]
    overwrite
        Replace the results that stand there.
    strict
        Stop at an image that cannot be used, instead of leaving it out, telling it and ending with code 1.
    threshold
        How sure the model must be of a segment or object, 0 … 1; left out: the model's own.
    """
    if weights is None:
        options = {"--data": data, "--split": split, "--threshold": threshold}
        given = [name for name, value in options.items() if value is not None] + [f"--{key}" for key in given_settings]
        if given:
            raise PansightError(where="evaluate", expected=f"a run or model for {given[0]}", found="none")
        scores.evaluate_files(files or FileSettings(), overwrite, out)
        return 0
    files = files or FileSettings()
    if files != FileSettings(map=files.map, miou=files.miou, report=files.report, charts=files.charts):
        raise PansightError(where="evaluate", expected=f"a model ({weights}) or files (--gt, --pred)", found="both")
    from pansight.apps import measuring

    values = dict(given_settings) | ({} if files.miou is None else {"evaluate.miou": files.miou})
    values |= {"data.strict": True} if strict else {}
    pages = files.report, files.charts
    record = measuring.evaluate(weights, data, out, split, overwrite, values, files.map, threshold, *pages)
    return 1 if "left_out" in record["about"] else 0


@app.command(
    help_epilogue="Examples: pansight predict runs/demo photos/ --out found; "
    "pansight predict runs/mask_rcnn photos/ --task instance --threshold 0.7; pansight predict runs/demo drive.mp4; "
    "pansight predict runs/demo field.tif --tile 1024 --out field_map.tif"
)
def predict(
    weights: str,
    /,
    *images: str,
    out: Path = Path("predictions"),
    overwrite: bool = False,
    recursive: bool = True,
    task: str | None = None,
    threshold: float | None = None,
    score: float | None = None,
    opacity: float = 0.5,
    names: bool = True,
    background: bool = False,
    every: int = 1,
    fps: float | None = None,
    proposals: list[Path] | None = None,
    pace: Annotated[PaceSettings | None, Parameter(name="*", group="Speed")] = None,
    huge: Annotated[HugeSettings | None, Parameter(name="*", group="Huge images")] = None,
    engine: Annotated[EngineSettings | None, Parameter(name="*", group="Many machines")] = None,
) -> int:
    """Predict photos and videos: overlays, COCO panoptic PNG and JSON, and a table. Code 1 where one is unreadable.

    Parameters
    ----------
    weights
        A run folder, a saved model, a hub id or a checkpoint file.
    images
        Photos, folders with their sub-folders, patterns, videos; tar shards, Parquet lists, s3://bucket/photos.
    out
        Where the results go.
    overwrite
        Replace predictions that stand there.
    recursive
        Look into sub-folders.
    task
        panoptic, instance or semantic, where the model can do several; left out: its own.
    threshold
        How sure the model must be of a segment or object, 0 … 1; left out: the model's own.
    score
        Objects under this score are kept in the files, but not drawn. [default: the threshold, else 0.5]
    opacity
        Of the paint over segments and masks, 0 … 1.
    names
        Write class names and scores into the overlays.
    background
        Paint stuff of the name background, too.
    every
        Of a video, predict the first frame and every so many-th after it.
    fps
        Take the images for the frames of a video, so many a second, and write an overlay video of them.
    proposals
        Files of regions that may hold an object, as COCO results with boxes, by the names of the photos (fast_rcnn).
    """
    options = {name: v for name, v in (("task", task), ("score_threshold", threshold)) if v is not None}
    pace, engine, huge = pace or PaceSettings(), engine or EngineSettings(), huge or HugeSettings()
    whole = {"--score": score is not None, "--opacity": opacity != 0.5, "--no-names": not names}
    whole |= {"--background": background, "--every": every != 1, "--fps": fps is not None}
    whole |= {"--proposals": proposals is not None}
    cluster.check_engine(engine, whole | {"--tile": huge.tile is not None, "--speed": pace.speed != "exact"})
    if huge.tile is not None:
        huge_commands.check_whole_photos(whole | {"--no-recursive": not recursive} | pace.given())
        return huge_commands.predict_huge(weights, images, out, overwrite, options, huge)
    huge_commands.check_unused(huge)
    if engine.engine == "ray":
        return cluster.predict_many(weights, images, out, overwrite, options, recursive, pace.batch_size, engine)
    how = (score, opacity, names, background), recursive, every, fps, proposals or ()
    return _predict_here(weights, images, out, overwrite, options, how, pace)


def _predict_here(
    weights: str,
    images: Sequence[str],
    out: Path,
    overwrite: bool,
    options: dict[str, Any],
    how: tuple[Any, ...],
    pace: PaceSettings,
) -> int:
    """Predict photos in this process and print the table. how: the parts of Drawing, then what `photos.predict` takes
    after it.
    """
    from pansight.apps import photos

    drawing, recursive, every, fps, proposals = how
    how_fast = photos.Pace(**vars(pace))
    results = photos.predict(
        weights, images, out, overwrite, options, photos.Drawing(*drawing), recursive, every, fps, proposals, how_fast
    )
    print(photos.photo_table(results))
    print(f"overlays and predictions: {out}")
    return 1 if results.failed else 0


@app.command(
    help_epilogue="Examples: pansight export runs/scenes --to hf --out my-model; "
    "pansight export runs/scenes --to onnx --out graph --check photos/"
)
def export(
    weights: str,
    /,
    *,
    out: Path,
    to: str = "hf",
    size: tuple[int, int] | None = None,
    check: Path | None = None,
    rule_inside: bool = False,
    int8: Path | None = None,
    data: Path | None = None,
    overwrite: bool = False,
):
    """Write a model as a folder: for Hugging Face transformers, as ours, or as a graph for other engines.

    Parameters
    ----------
    weights
        A run folder, a saved model, a hub id or a checkpoint file.
    out
        The new folder.
    to
        hf: transformers (DETR, MaskFormer, Mask2Former and EoMT); folder: a saved model of ours, whatever the system;
        onnx, openvino, torch: a graph with export.json, for what runs without pansight (docs/export.md).
    size
        Height and width of the graph's input. [default: any, where the network takes any, else its own]
    check
        Photos on which the graph must say what the model says: a folder, or one. [default: generated ones]
    rule_inside
        The graph gives the panoptic map itself (MaskFormer, Mask2Former, EoMT).
    int8
        Photos, by which an ONNX or OpenVINO graph becomes one of whole numbers of 8 bits.
    data
        Annotated images, on which model and graph are measured side by side.
    overwrite
        Replace an earlier export that stands there.
    """
    from pansight.apps import exporting

    how = (size, check, rule_inside, int8, data)
    print(exporting.report(exporting.export(weights, out, to, overwrite, *how), out))


@app.command(help_epilogue="Example: pansight models panoptic_fpn")
def models(name: str | None = None, /, *, json: bool = False):
    """List the models, or what the options of one mean.

    Parameters
    ----------
    name
        A model.
    json
        Print the same as JSON.
    """
    from pansight.apps.commands import listing

    if json:
        print(listing.as_json(name))
    else:
        print(listing.list_models() if name is None else listing.describe_model(name))


@app.command(help_epilogue="Example: pansight datasets coco_panoptic")
def datasets(name: str | None = None, /):
    """List the data formats that are read, or the options of one.

    Parameters
    ----------
    name
        A format.
    """
    from pansight.apps import commands

    print(commands.datasets(name))


scores.register(app)
data_commands.register(app)
labels.register(app)
sweeps.register(app)
serving.register(app)
hub_commands.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for bad input (one line on stderr), 130 after Ctrl-C, 143 after
    SIGTERM, 141 where the reader of a pipe has gone.

    A command may end with a code of its own: the integer it returns.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that is no text, or a terminal that lacks a letter
        sys.stdout.reconfigure(errors="backslashreplace")
    tokens = _joined(list(sys.argv[1:] if arguments is None else arguments))
    if "torch" not in sys.modules:  # which reads the variable when it is loaded
        os.environ |= waiting_policy(_load(), os.cpu_count() or 1, os.environ)
    try:
        with _terminable():
            result = app(tokens, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (PansightError, cyclopts.CycloptsError) as error:
        return _complain(str(error), BAD_INPUT)
    except BrokenPipeError:  # whoever read the output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        return READER_GONE
    except OSError as error:  # a full disk, a missing right: the file system's own words
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror or error}", BAD_INPUT)
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Interrupted) else signal.SIGINT
        return _complain(str(error) or "interrupted", SIGNALLED + number)
    return result if isinstance(result, int) else 0


def waiting_policy(load: float, cores: int, environment: Mapping[str, str]) -> dict[str, str]:
    """What is added to the environment of a machine that is busy already: threads that wait for one another sleep.

    By default they spin, which is a little quicker where each has a core of its own. Where other programs want the
    cores too, spinning keeps them from the thread that is waited for, and a step of training can take many times as
    long. Results are the same. load: threads that want to run, without those of this process. What the user says of
    threads stands.
    """
    if load < 0.5 * cores or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"} & set(environment):
        return {}
    return {"OMP_WAIT_POLICY": "PASSIVE"}


def _load() -> float:
    """Of the last minute; 0 where the system does not say."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return 0.0


@contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM ends a command as Ctrl-C does, so that files which are half-written are removed."""
    process = os.getpid()

    def terminate(number: int, frame: object) -> None:
        if os.getpid() != process:  # a child that was forked with this handler
            os._exit(SIGNALLED + number)
        raise Interrupted(number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _joined(tokens: list[str]) -> list[str]:
    """``train … --model.options.class-hidden 128 64`` with the values of the option as one list, ``128,64``.

    The parser gives an option of free name one value. Commands beside `train` have arguments without a flag, which may
    follow the value; there only numbers go on with a list of numbers.
    """
    joined: list[str] = []
    is_option = False
    for token in tokens:
        is_flag = token.startswith("--")
        if is_option and not is_flag and not joined[-1].startswith("--"):
            if tokens[0] == "train" or (_is_number(token) and _is_number(joined[-1].rpartition(",")[2])):
                joined[-1] += f",{token}"
                continue
            is_option = False
        if is_flag:
            is_option = "=" not in token and (
                "options." in token or ".decode." in token or token.startswith("--option.")
            )
            token = _with_inner_name(token)
        joined.append(token)
    return joined


def _with_inner_name(flag: str) -> str:
    """The flag with INNER in place of the dot before the name in an option that is a table."""
    name, equals, value = flag.partition("=")
    parts = name.split(".", 3)
    if len(parts) == 4 and parts[:2] == ["--model", "options"]:
        name = f"{'.'.join(parts[:3])}{INNER}{parts[3]}"
    return f"{name}{equals}{value}"


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _complain(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:  # a file may give names of any length; what was expected and a hint stand at the ends
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    print(f"pansight: {line}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
