"""The flags of ``pansight predict`` for many photos on many machines. What the command needs is loaded when it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pansight.errors import PansightError


@dataclass(frozen=True)
class EngineSettings:
    """Many photos on many machines, with Ray Data (docs/scale.md)."""

    engine: Literal["here", "ray"] = "here"
    """here: this process, with overlays; ray: the processes of a Ray cluster, or of this machine, in parts."""
    part_size: int | None = None
    """Photos of a part, which is written whole; a job that is started again computes missing parts. [default: 1000]"""
    worker_cores: int | None = None
    """Cores of each process of Ray. [default: all of a machine; 1 where a process has a GPU]"""


def check_engine(settings: EngineSettings, given: Mapping[str, bool]) -> None:
    """Raises PansightError for a flag that says nothing with the engine. given: flags of overlays and videos."""
    if settings.engine == "here":
        numbers = {"--part-size": settings.part_size, "--worker-cores": settings.worker_cores}
        for flag, value in numbers.items():
            if value is not None:
                raise PansightError(where=flag, expected="--engine ray", found="none")
        return
    for flag, is_given in given.items():
        if is_given:
            raise PansightError(where=flag, expected="a prediction in this process", found="--engine ray")


def predict_many(
    weights: str,
    images: Sequence[str],
    out: Path,
    overwrite: bool,
    options: dict[str, Any],
    recursive: bool,
    batch_size: int,
    settings: EngineSettings,
) -> int:
    """The command with --engine ray; 1 where a photo could not be read."""
    from pansight.apps.photos import many

    defaults = many.Cluster()
    size, cores = settings.part_size, settings.worker_cores
    cluster = many.Cluster(
        defaults.part_size if size is None else size, defaults.worker_cores if cores is None else cores
    )
    found = many.predict_many(weights, images, out, overwrite, options, recursive, batch_size, cluster)
    print(many.result_lines(found, out))
    return int(bool(found.failed))
