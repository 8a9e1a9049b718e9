"""The commands about scores: compare, and evaluate for files. What a command needs is loaded when it runs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from pansight.errors import PansightError

DEFAULT_PAGE = Path("comparison.html")


@dataclass(frozen=True)
class FileSettings:
    """Scoring files: predictions of any tool against a truth, both as COCO panoptic JSON and PNGs."""

    gt: Path | None = None
    """JSON of the truth."""
    gt_dir: Path | None = None
    """Folder or ZIP of its PNGs. [default: the folder of the JSON's name]"""
    pred: Path | None = None
    """JSON of the predictions."""
    pred_dir: Path | None = None
    """Folder or ZIP of their PNGs. [default: the folder of the JSON's name]"""
    json: Path | None = None
    """Write all figures to this file."""
    table: Path | None = None
    """Write a row for each segment to this Parquet file."""
    report: Path | None = None
    """Write the page to this file: files with truth, prediction and errors of every image, models with the best and
    the worst."""
    charts: Path | None = None
    """Write the charts of the page into this folder, each as SVG and PNG."""
    images: Path | None = None
    """Folder of the photos, for the report."""
    map: str | None = None
    """Match classes by name: the word names, or a TOML file with lines "predicted class" = "class of the truth"."""
    boundary: bool = False
    """Boundary PQ and Boundary IoU as well (slower)."""
    errors: bool = True
    """Error classes, what repairing each would gain, and the confusion of segments."""
    miou: str | None = None
    """Convention of the mIoU: cityscapes, detectron2 or semseg. [default: cityscapes, or that of the run]"""
    strict_compat: bool = False
    """As panopticapi: areas from the JSON, the last crowd of a class only."""
    shard: str = "1/1"
    """Only this part of the images, such as 3/16."""
    partial: Path | None = None
    """Write a partial result to be joined by --merge."""
    merge: Annotated[list[Path] | None, Parameter(negative=())] = None
    """Join partial results of all shards; needs no other files."""
    threads: int = 0
    """0: all cores."""


def register(app: App) -> None:
    """Add the commands to the command line."""
    app.command(
        compare,
        help_epilogue="Examples: pansight compare runs/old runs/new; "
        "pansight compare old.json new.json --fail-below 0.5 --fail-worse --overwrite",
    )
    app.command(
        combine,
        help_epilogue="Examples: pansight combine --instances runs/mask_rcnn --semantic runs/pspnet --out runs/both; "
        "pansight combine --instances results.json --semantic maps/ --gt panoptic_val.json --out combined",
    )


def compare(
    *evaluations: Path,
    out: Path = DEFAULT_PAGE,
    json: Path | None = None,
    names: Annotated[list[str] | None, Parameter(negative=())] = None,
    resamples: int = 10_000,
    seed: int = 0,
    fail_below: float | None = None,
    fail_worse: bool = False,
    overwrite: bool = False,
    gt: Path | None = None,
    gt_dir: Path | None = None,
    map: str | None = None,
    charts: Path | None = None,
) -> int:
    """Compare evaluations, with the first and each with each: intervals, p-values, classes, images; table and page.

    By PQ where all have it, else by AP of masks or boxes, else by mIoU. The folder of a sweep is compared by itself,
    and its page is written anew in it.

    Exit code: 0; 1 where --fail-below or --fail-worse finds fault; 2 for bad input.

    Parameters
    ----------
    evaluations
        Files evaluation.json, or folders with one: the baseline first, the one in question last. With --gt also
        predictions as COCO panoptic JSON.
    out
        The page (HTML).
    json
        Write all figures to this file as well.
    names
        What to call the evaluations. [default: their folders]
    resamples
        Of the images, for the intervals; and as many swaps for the p-values.
    seed
        Of the resamples: the same seed gives the same figures.
    fail_below
        Exit with 1 where the figure compared (All) of the last evaluation is below this fraction: 0.5 is 50 %.
    fail_worse
        Exit with 1 where the last evaluation is worse than the first with p < 0.05.
    overwrite
        Replace the files that stand there.
    gt
        JSON of the truth that predictions are scored against.
    gt_dir
        Folder or ZIP of its PNGs. [default: the folder of the JSON's name]
    map
        Compare the classes that all have: the word names, or a TOML file with lines "their class" = "class of the
        first".
    charts
        Write the scores with their intervals into this folder, each as SVG and PNG.
    """
    from pansight.apps.pages import comparison
    from pansight.apps.sweeping import compare_folder, is_sweep

    if len(evaluations) == 1 and is_sweep(evaluations[0]):
        page = None if out == DEFAULT_PAGE else out
        compare_folder(evaluations[0], page, json, resamples, seed, overwrite)
        return 0
    result = comparison.compare(
        evaluations, out, names, resamples, seed, fail_below, fail_worse, json, overwrite, gt, gt_dir, map, charts
    )
    return int(bool(result["failures"]))


def evaluate_files(settings: FileSettings, overwrite: bool, out: Path | None = None) -> None:
    """What ``pansight evaluate`` does without a model. out: a folder for evaluation.json and report.html."""
    from pansight.apps import scoring
    from pansight.metrics.files.score import Figures

    settings = _in_folder(settings, out)
    outputs = scoring.Outputs(
        settings.json, settings.table, settings.report, settings.images, settings.partial, overwrite, settings.charts
    )
    if settings.merge:
        _refuse_for_merge(settings)
        scoring.merge_files(settings.merge, outputs)
        return
    if settings.gt is None or settings.pred is None:
        given = [f"--{name}" for name in ("gt", "pred") if getattr(settings, name) is not None]
        expected = "expected a run or model, or --gt FILE --pred FILE, or --merge PARTS"
        raise PansightError(f"{expected}; found {given[0] + ' only' if given else 'none'}", where="evaluate")
    if (settings.table or settings.report) and not settings.errors:
        raise PansightError(where="evaluate", expected="error classes for --table and --report", found="--no-errors")
    if settings.images and not settings.report:
        raise PansightError(where="evaluate", expected="--report FILE for the photos of --images", found="none")
    if settings.map and settings.strict_compat:
        raise PansightError(
            where="evaluate", expected="either --map or --strict-compat", found="both: panopticapi maps nothing"
        )
    if settings.threads < 0:
        raise PansightError(where="--threads", expected="0 (all cores) or a number of threads", found=settings.threads)
    figures = Figures(settings.errors, settings.boundary, None, settings.miou or Figures.convention)
    scoring.evaluate_files(
        settings.gt,
        settings.pred,
        settings.gt_dir,
        settings.pred_dir,
        outputs,
        figures,
        settings.map,
        _shard(settings.shard),
        settings.strict_compat,
        settings.threads,
    )


def _in_folder(settings: FileSettings, out: Path | None) -> FileSettings:
    """Figures and page go into the folder `out`, unless they have a place of their own or it is not given."""
    if out is None:
        return settings
    if out.is_file():
        raise PansightError(
            where="--out", expected="a folder", found=f"the file {out}", hint="--json FILE, --report FILE"
        )
    report = settings.report or (out / "report.html" if settings.errors else None)
    return replace(settings, json=settings.json or out / "evaluation.json", report=report)


def _refuse_for_merge(settings: FileSettings) -> None:
    """Partial results hold sums: what needs the images comes from the parts themselves."""
    given = {
        "--" + f.name.replace("_", "-")
        for f in fields(settings)
        if f.name not in ("merge", "json", "report") and getattr(settings, f.name) != f.default
    }
    if given:
        raise PansightError(where="evaluate", expected="--merge with --json or --report only", found=min(given))


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and len(text) < 20):
        raise PansightError(where="--shard", expected="PART/PARTS such as 3/16", found=f"{text[:40]!r}")
    return int(part), int(parts)


def combine(
    *,
    instances: Path,
    semantic: Path,
    out: Path,
    rule: str = "panopticapi",
    score_threshold: float = 0.5,
    max_overlap: float = 0.5,
    min_stuff_area: int = 4096,
    data: Path | None = None,
    categories: Path | None = None,
    class_table: Path | None = None,
    gt: Path | None = None,
    gt_dir: Path | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> int:
    """Combine an instance prediction and a semantic one into panoptic predictions; or two models into one.

    Things are those of the instances, stuff that of the semantic maps, classes are matched by name. Exit code 1 where
    something was left out.

    Parameters
    ----------
    instances
        Objects as COCO results with masks (run lengths or polygons), or a folder that predict wrote. Or a model: a run
        folder, a saved model, a hub id or a checkpoint file.
    semantic
        A folder of PNGs whose pixels are classes, semantic.json of predict, or COCO-stuff results. Or a model.
    out
        The new folder: predictions.json and its PNGs, combine.json, with --gt evaluation.json. Of models a saved model.
    rule
        panopticapi or detectron2: how stuff that overlaps is painted, and which ids segments get.
    score_threshold
        Objects below this score are dropped.
    max_overlap
        Objects are dropped if more than this share of them is covered by better ones.
    min_stuff_area
        Stuff of fewer pixels is dropped.
    data
        A COCO JSON that lists the images that are meant. [default: those that the predictions list]
    categories
        A JSON of COCO categories (id, name, isthing), where the predictions have numbers alone.
    class_table
        What the numbers in the PNGs stand for: a list of names, CSV or JSON. [default: the table beside them]
    gt
        COCO panoptic JSON of the truth: both parts and what they make are measured, and images and classes are its own.
    gt_dir
        Folder of its PNGs. [default: the folder of the JSON's name]
    strict
        Stop at what cannot be combined instead of leaving it out and telling it.
    overwrite
        Replace results that stand there.
    """
    from pansight.apps.scoring import combining

    merge = combining.Merge(rule, score_threshold, max_overlap, min_stuff_area)
    inputs = combining.Inputs(instances, semantic, data, categories, class_table, gt, gt_dir)
    found = combining.combine(instances, semantic, out, merge, inputs, strict, overwrite)
    if found is None:
        print(f"{out}: pansight.load({str(out)!r}); pansight evaluate {out} --data DIR measures it")
        return 0
    print(found.text(out))
    return int(bool(found.left_out))
