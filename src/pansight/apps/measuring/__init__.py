"""``pansight evaluate``: measure a run, a saved model or an official checkpoint, and write figures, predictions, page.

The record says what was measured and how; figures of other settings are never put in its place unasked, and the page
beside them is written with them.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pansight.apps.measuring.parts import Part, open_part
from pansight.apps.measuring.thresholds import check_threshold, lost_to_threshold, with_threshold
from pansight.apps.measuring.trained import count_trained_on
from pansight.apps.pages.charts import check_folder, report_charts, write_charts
from pansight.apps.pages.report import curves, read_run, render, write_report
from pansight.config import Config, EvaluateConfig, flatten, override, read_config
from pansight.data import Dataset
from pansight.data.dataset import part_names
from pansight.engine import distributed
from pansight.engine.assemble import check_proposals, left_out, relabel, told_left_out
from pansight.engine.checkpoint import CONFIG
from pansight.engine.evaluate import EVALUATION
from pansight.engine.evaluate import evaluate as measure
from pansight.engine.infer import check_decode_options
from pansight.engine.progress import clock
from pansight.errors import PansightError
from pansight.files import read_json, write_json, write_text
from pansight.metrics.files.class_map import read_class_map
from pansight.metrics.files.summary import summary
from pansight.weights import load_model

WITHOUT_EFFECT = ("batch_size", "channels_last", "sheet", "loss")
"""Settings that change how an evaluation is computed or shown, not what its figures are."""


def evaluate(
    weights: str | Path,
    data: str | Path | None = None,
    out: str | Path | None = None,
    split: str | None = None,
    overwrite: bool = False,
    settings: Mapping[str, Any] | None = None,
    class_map: str | Path | None = None,
    threshold: float | None = None,
    report: str | Path | None = None,
    charts: str | Path | None = None,
) -> dict[str, Any]:
    """Measure a run, a saved model or an official checkpoint; returns the record of evaluation.json.

    data: images with their truth; by default the validation images of the run, which also stand for data without a
    validation part that the run was trained on. split: the part of them (train, val, test).
    out: where evaluation.json, predictions/ and report.html go; by default the run itself for its own validation
    images, else evaluations/NAME. settings: as for `train`; the sections data and evaluate count.
    class_map: the word names, or a TOML file, where the data has other classes than the model: figures are those of the
    data's classes; what has no counterpart on either side is void, and printed.
    threshold: the least score, 0 … 1, of segments, or of objects where a model gives boxes alone. report: another file
    for the page. charts: a folder for its charts as SVG and PNG.
    Images that cannot be used are left out, printed, and listed under about.left_out of the record.
    Raises PansightError for bad input, or where `out` holds an evaluation already (of the run itself: with other
    settings than these) and `overwrite` is not set.
    """
    check_threshold(threshold)
    if charts is not None:
        check_folder(Path(charts), overwrite)
    run = _config_of(weights)
    if run is None and data is None:
        raise PansightError(where=weights, expected="a run with its data", found="weights alone", hint="add --data DIR")
    given = flatten(settings or {})
    config = override(run or Config(), {k: v for k, v in given.items() if k.startswith("evaluate.")})
    folder = Path(out) if out else _default_folder(weights, run, data, split)
    if not overwrite:
        _refuse_existing(report, folder / EVALUATION if out else None)
    model, name, _ = load_model(weights)
    check_decode_options(model, name, config.evaluate.decode)
    used = with_threshold(config.evaluate, threshold, model, name)
    part = open_part(run, data, split, _of_data(given, run, model, name))
    about = _about(weights, name, part, class_map, used)
    missing = left_out(part.dataset)
    accelerator = distributed.make_accelerator()
    say = distributed.speaker(accelerator)
    for line in told_left_out(missing):
        say(f"left out   {line}")
    if not out and not overwrite:
        _refuse_other(folder, about, _about(weights, name, part, None, (run or config).evaluate))
    dataset, mapping = part.dataset, None
    if class_map is not None:
        mapping = read_class_map(class_map, model.labels, dataset.labels)
        for line in mapping.notes(model.labels, dataset.labels):
            say(line)
    else:
        dataset = _in_classes_of(model, part)
    about |= {"left_out": list(missing)} if missing else {}
    about |= _trained_on(Path(weights), part, min(len(dataset), used.limit or len(dataset)))
    model.to(accelerator.device)
    batch = max(1, run.train.batch_size if run else used.batch_size)
    facts = accelerator, folder, max(config.data.workers, 0), mapping
    record = measure(model, dataset, used, *facts, about={"about": about}, loss_batch=batch)
    if accelerator.is_main_process:
        lost = None if mapping else lost_to_threshold(record, model, dataset, used, accelerator.device)
        if lost:
            about["note"] = lost
            write_json(folder / EVALUATION, record)
        _tell(record, folder, len(dataset), report, charts)
    distributed.wait_for_everyone(accelerator)
    return record


def _of_data(given: Mapping[str, Any], run: Config | None, model: Any, name: str) -> dict[str, Any]:
    """The given settings under data. Raises PansightError where the model lacks regions, or takes none."""
    settings = {key: value for key, value in given.items() if key.startswith("data.")}
    check_proposals(model, name, override(run or Config(), settings).data)
    return settings


def _in_classes_of(model: Any, part: Part) -> Dataset:
    """The images in the classes of the model. Raises PansightError, with a way out, for classes that it lacks."""
    try:
        return relabel(part.dataset, model.labels, part.source)
    except PansightError as error:
        hint = "--map names, or --map FILE, measures the classes that both have"
        raise PansightError(where=error.where, expected=error.expected, found=error.found, hint=hint) from error


def _config_of(weights: str | Path) -> Config | None:
    path = Path(weights) / CONFIG
    return read_config(path) if path.is_file() else None


def _default_folder(weights: str | Path, run: Config | None, data: str | Path | None, split: str | None) -> Path:
    """The run itself for its own validation images, else evaluations/NAME."""
    part = part_names(split)[0] if split else ""
    if data is None and part in ("", "val"):
        return Path(weights)
    source = run.data.source if data is None and run is not None else str(data)
    return Path("evaluations") / "-".join(filter(None, [Path(weights).stem, Path(source).stem, part]))


def _refuse_existing(report: str | Path | None, record: Path | None) -> None:
    for path, what in ((report, "file"), (record, "evaluation")):
        if path is not None and Path(path).exists():
            raise PansightError(where=path, expected=f"no {what} yet", found="one", hint="add --overwrite")


def _refuse_other(folder: Path, about: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Raises PansightError where the folder holds figures of other settings, naming the first that differs.

    usual: what an evaluation is about that does not say so, as that of a training.
    """
    path = folder / EVALUATION
    if not path.is_file():
        return
    record = read_json(path)
    stands = record.get("about") or usual if isinstance(record, dict) else usual
    for key, value in _decisive(about).items():
        other = _decisive(stands).get(key)
        if other != value:
            raise PansightError(
                where=path,
                expected=f"an evaluation with {key} {value!r:.60}",
                found=f"one with {other!r:.60}",
                hint="name another folder (--out) or add --overwrite",
            )


def _decisive(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the figures depend on, flat."""
    flat = {key: about.get(key) for key in ("weights", "data", "part", "map")}
    return flat | {key: value for key, value in about.get("settings", {}).items() if key not in WITHOUT_EFFECT}


def _about(
    weights: str | Path, name: str, part: Part, class_map: str | Path | None, config: EvaluateConfig
) -> dict[str, Any]:
    """What is measured and how, for the record and the page; plain JSON values."""
    settings = replace(Config(), evaluate=config).to_dict()["evaluate"]
    versions = {"pansight": version("pansight"), "torch": torch.__version__, "python": platform.python_version()}
    return {
        "weights": str(Path(weights).resolve() if Path(weights).exists() else weights),
        "model": name,
        "data": str(part.source),
        "part": part.name,
        "map": None if class_map is None else str(class_map),
        "settings": settings,
        "versions": versions,
    }


def _trained_on(weights: Path, part: Part, count: int) -> dict[str, Any]:
    """How many of the measured images the run was trained on, which is said where there are any."""
    found = count_trained_on(weights, part.dataset, count)
    if found:
        print(
            f"warning    {found} of the {count} measured images were trained on: the figures are better than on others"
        )
    return {} if found is None else {"trained_on": found}


def _tell(
    record: dict[str, Any], folder: Path, count: int, report: str | Path | None, charts: str | Path | None
) -> None:
    """Print the figures, and write the page beside them and where it was asked for, and its charts."""
    about = record["about"]
    print(summary(record))
    if "note" in about:
        print(f"note       {about['note']}")
    page = write_report(folder)
    if report is not None:
        page = Path(report)
        write_text(page, render(read_run(folder)))
    if charts is not None:
        run = read_run(folder)
        write_charts(Path(charts), report_charts(run.evaluation, run.labels, curves(run.log)))
    what = f"{about['data']}, {about['part']}"
    print(f"{min(count, about['settings']['limit'] or count)} images of {what} in {clock(record['seconds'])}")
    print(f"figures    {folder / EVALUATION}")
    print(f"report     {page}")
    if charts is not None:
        print(f"charts     {charts}")
