"""``pansight predict --engine ray``: many photos on many machines, in parts that are written whole and never twice.

    OUT/plan.json             what is predicted of what, and how; another job is refused
    OUT/part-000000/          predictions.json and predictions/*.png (or semantic, instances),
                              segments.parquet, images.parquet

Ray Data gives the parts to processes and, where one dies with its machine, gives its part to another. A part counts as
done when its folder stands there, so that a job which is started again computes what is left.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.photos import Wanted
from pansight.apps.photos.finding import Photo, find_photos
from pansight.apps.photos.many.part import IMAGES, SEGMENTS, Done, Part, parts_of, predict_part
from pansight.apps.photos.video import is_video
from pansight.engine.predict import load
from pansight.engine.progress import ProgressBar, stop_signal
from pansight.errors import Interrupted, PansightError
from pansight.files import read_json, write_json

PLAN = "plan.json"
SHOWN = 20
"""Errors that are printed."""


class Cluster(NamedTuple):
    """How the work is shared out. part_size: photos of a part. worker_cores: of each process, which has all of its
    machine's where it is 0; where there are GPUs, each process has one, and 1 core where it is 0.
    """

    part_size: int = 1000
    worker_cores: int = 0


class ManyResults(NamedTuple):
    """What came of all parts. before: parts that were there already. seconds: from the first to the last one."""

    images: int
    segments: int
    failed: list[str]
    parts: int
    before: int
    seconds: float


def predict_many(
    weights: str,
    images: Sequence[str | Path],
    out: str | Path,
    overwrite: bool = False,
    decode_options: dict[str, Any] | None = None,
    recursive: bool = True,
    batch_size: int = 1,
    cluster: Cluster = Cluster(),  # noqa: B008 (immutable)
) -> ManyResults:
    """Predict photos with Ray Data; `out` must lie where every machine of the cluster writes to, inputs where it reads.

    A Ray cluster is found as Ray finds it (RAY_ADDRESS); without one, this machine is all of it. images: as for
    `predict`, but videos. What an earlier call with the same photos, weights and options finished is kept.
    Raises PansightError for bad input, where Ray is missing, where `out` holds another job and `overwrite` is not set,
    and where no photo can be read; Interrupted after Ctrl-C or SIGTERM, when finished parts stay.
    """
    out, options = Path(out).absolute(), dict(decode_options or {})
    if cluster.part_size < 1 or cluster.worker_cores < 0 or batch_size < 1:
        raise PansightError(where="predict", expected="--part-size, --batch-size of 1 or more", found="less")
    ray = _ray()
    photos = _absolute(find_photos(images, recursive, without=out, pieces=True).photos)
    video = next((photo for photo in photos if is_video(photo.file)), None)
    if video is not None:
        raise PansightError(where=video.file, expected="photos", found="a video", hint="predict it without --engine")
    weights = str(Path(weights).absolute()) if Path(weights).exists() else weights
    Wanted.of(load(weights, device="cpu"), options, None)  # what cannot be is refused before anything starts
    parts = parts_of(photos, cluster.part_size)
    _begin(out, _plan(weights, photos, options, cluster.part_size), overwrite)
    left = [part for part in parts if not (out / part.name).is_dir()]
    start = time.monotonic()
    with stop_signal("part") as stop, ProgressBar("predict") as bar:
        for number, done in enumerate(_run(ray, left, weights, options, batch_size, out, cluster), 1):
            rate = done.images / max(done.seconds, 1e-6)
            bar.update(number / len(left), f"part {number}/{len(left)}, {rate:.1f} images/s in one process")
            if stop.is_set():
                raise Interrupted(f"interrupted after part {number} of {len(left)}; start it again", stop.number)
    return _counted(out, parts, len(parts) - len(left), time.monotonic() - start)


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.data  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "install the extra pansight[ray]"
        raise PansightError(where="--engine ray", expected="Ray Data", found="none", hint=hint) from error
    return ray


def _absolute(photos: Sequence[Photo]) -> list[Photo]:
    """Workers have another working folder."""
    return [photo if photo.piece else photo._replace(file=photo.file.absolute()) for photo in photos]


def _plan(weights: str, photos: Sequence[Photo], options: dict[str, Any], part_size: int) -> dict[str, Any]:
    """What makes two jobs the same one."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(f"{photo.name}\0{photo.file if photo.piece is None else tuple(photo.piece)}\n".encode())
    plan = {"weights": weights, "options": options, "photos": len(photos), "part_size": part_size}
    return plan | {"digest": digest.hexdigest()}


def _begin(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Start a job in a folder, or go on with it there. Raises PansightError where the folder holds anything else."""
    file = out / PLAN
    if file.is_file() and not overwrite:
        old = read_json(file)
        differs = [key for key in plan if old.get(key) != plan[key]]
        if differs:
            found = f"one with other {differs[0].replace('digest', 'photos')}"
            raise PansightError(where=file, expected="the same job", found=found, hint="--overwrite, or another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        if not file.is_file():
            raise PansightError(where=out, expected="an empty folder, or one of such a job", found="other files")
        for folder in out.glob("part-*"):
            shutil.rmtree(folder)
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, plan)


class _Worker:
    """A process of Ray that has the model, and predicts the parts that it is given."""

    def __init__(self, weights: str, options: dict[str, Any], batch_size: int, out: str):
        self.predictor = load(weights)
        self.how = options, batch_size, Path(out)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = Part.from_json(row["part"])
        try:
            return {**predict_part(part, self.predictor, *self.how)._asdict(), "error": ""}
        except PansightError as error:  # as a result: Ray would wrap it into pages
            return {**Done(part.number, 0, 0, 0, 0.0)._asdict(), "error": f"{error}"}


def _run(
    ray: Any, parts: list[Part], weights: str, options: dict[str, Any], batch_size: int, out: Path, cluster: Cluster
) -> Iterator[Done]:
    """The parts as they are finished. Raises PansightError where one cannot be written."""
    if not parts:
        return
    mine = not ray.is_initialized()
    if mine:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else each start warns of what Ray Data does itself
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # of any kind, a plain Exception where a machine is too busy to start in time
            reason = str(error).splitlines()[0]
            raise PansightError("Ray does not start", where="--engine ray", reason=reason) from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources, workers = shares(ray.cluster_resources(), len(ray.nodes()), cluster.worker_cores, len(parts))
    try:
        data = ray.data.from_items([{"part": part.to_json()} for part in parts], override_num_blocks=len(parts))
        how = weights, options, batch_size, str(out)
        pool = ray.data.ActorPoolStrategy(size=workers)
        for row in data.map(_Worker, fn_constructor_args=how, compute=pool, **resources).iter_rows():
            error = row.pop("error")
            if error:
                raise PansightError(error)
            yield Done(**row)
    finally:
        if mine:
            ray.shutdown()


def shares(found: Mapping[str, float], nodes: int, cores: int, parts: int) -> tuple[dict[str, float], int]:
    """(what each process gets, how many of them): a GPU where there are any, else `cores`, or a machine's cores."""
    gpus, all_cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    if gpus:
        return {"num_gpus": 1, "num_cpus": cores or 1}, min(gpus, parts)
    each = cores or max(1, all_cores // max(nodes, 1))
    return {"num_cpus": each}, max(1, min(all_cores // each, parts))


def _counted(out: Path, parts: Sequence[Part], before: int, seconds: float) -> ManyResults:
    """The sums over all parts, those of earlier calls included. Raises PansightError where no photo could be read."""
    import pyarrow.parquet

    images = segments = 0
    failed: list[str] = []
    for part in parts:
        errors = pyarrow.parquet.read_table(out / part.name / IMAGES, columns=["error"]).column(0).to_pylist()
        failed += [error for error in errors if error is not None]
        images += len(errors)
        segments += pyarrow.parquet.ParquetFile(out / part.name / SEGMENTS).metadata.num_rows
    if len(failed) == images:
        raise PansightError(where=out, expected="photos that can be read", found=f"none of {images}", reason=failed[0])
    return ManyResults(images - len(failed), segments, failed, len(parts), before, seconds)


def result_lines(results: ManyResults, out: Path) -> str:
    """The lines for the terminal."""
    rate = f", {results.images / max(results.seconds, 1e-6):.1f} images/s" if not results.before else ""
    lines = [f"{results.images} images, {results.segments} segments in {results.parts} parts{rate}"]
    if results.before:
        lines.append(f"kept       {results.before} parts of an earlier call")
    lines += [f"not read   {error}" for error in results.failed[:SHOWN]]
    if len(results.failed) > SHOWN:
        lines.append(f"           and {len(results.failed) - SHOWN} more: the column error of images.parquet")
    return "\n".join([*lines, f"predictions: {out}/part-*"])
