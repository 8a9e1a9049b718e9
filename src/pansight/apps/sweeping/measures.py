"""The second part of a study: trained networks are measured again, with other decode options or put together.

Each such measurement is a run of its own, a process of ``pansight evaluate`` with a folder and a log like a training's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pansight.apps.sweeping.grid import Run, name_of
from pansight.apps.sweeping.runs import COMBINED, RUNS, folder_of
from pansight.apps.sweeping.study import Study
from pansight.config import ModelConfig, read_config
from pansight.engine.checkpoint import CONFIG
from pansight.engine.evaluate import EVALUATION
from pansight.engine.predict import combine_models
from pansight.errors import PansightError, choice_error


def measures_of(study: Study, trainings: Sequence[Run]) -> list[Run]:
    """What is measured of the trainings; none where the study has neither `evaluate` nor `combine`.

    Raises PansightError for a pair of variants that the sweep does not have.
    """
    taken = {run.name.lower() for run in trainings}
    made: list[Run] = []
    for run in trainings:
        for label, decode in study.evaluate.items():
            row = ", ".join(filter(None, [run.variant, label]))
            made.append(_measure(row, run.seed, decode, (run.name,), taken))
    variants = list(dict.fromkeys(run.variant for run in trainings))
    of = {(run.variant, run.seed): run.name for run in trainings}
    for seed in dict.fromkeys(run.seed for run in trainings):
        for label, pair in study.combine.items():
            if label in variants:
                raise PansightError(where=f"combine: {label}", expected="a name of its own", found="that of a variant")
            for variant in (pair.instances, pair.semantic):
                if variant not in variants:
                    raise choice_error(f"variant of combine: {label}:", variant, variants)
            parts = of[pair.instances, seed], of[pair.semantic, seed]
            made.append(_measure(label, seed, pair.decode, parts, taken))
    return made


def _measure(row: str, seed: int, decode: Mapping[str, object], of: tuple[str, ...], taken: set[str]) -> Run:
    settings = {f"evaluate.decode.{key}": value for key, value in decode.items()}
    return Run(name_of(row, seed, taken), row, seed, settings, of)


def discard(sweep: Path, run: Run) -> None:
    """Forget a measurement of a network that has been trained anew since."""
    (folder_of(sweep, run) / EVALUATION).unlink(missing_ok=True)


def put_together(sweep: Path, run: Run) -> None:
    """Save the two networks of `run` as one model, with the data and settings of evaluation that both were given.

    Raises PansightError where they do not belong together.
    """
    if len(run.of) == 1:
        return
    parts = [sweep / RUNS / name for name in run.of]
    folder = sweep / COMBINED / run.name
    combine_models(parts[0], parts[1], device="cpu").save(folder)
    config = read_config(parts[0] / CONFIG)
    evaluated = replace(config.evaluate, decode={})
    replace(config, model=ModelConfig(name="combined"), evaluate=evaluated).save(folder / CONFIG)
