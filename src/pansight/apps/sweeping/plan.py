"""The plan of a sweep: what is trained, what is varied, how often; read from and written to sweep.toml.

The same file serves as a study that is shipped (``recipes/studies``), as one that a user writes by hand, and as the
record in the folder of a sweep, from which it can be run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from pansight import config as settings_of_runs
from pansight.apps.sweeping.grid import SEED, Axis, Range, Run, Varied, make_axis, make_range, runs_of, variants
from pansight.apps.sweeping.study import Study, plain_study, read_study
from pansight.config import Config, flatten, override, read_toml, recipe_path, recipes
from pansight.engine.assemble import with_absolute_paths
from pansight.errors import PansightError, choice_error
from pansight.files import write_text

SWEEP = "sweep.toml"
RECIPE = "recipe.toml"
"""The copy of the recipe in the folder of a sweep, so that a recipe that changes does not change the sweep."""
SEARCHES = ("", "tpe")
MOST_RUNS = 10_000


@dataclass(frozen=True)
class Plan:
    """recipe: a shipped recipe or a file, "" for none. settings: dotted, over the recipe. seeds: of each variant.

    study: which figures are told, what is measured besides, and what was published; see `Study`.
    """

    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    varied: tuple[Varied, ...] = ()
    seeds: tuple[int, ...] = (0,)
    one_at_a_time: bool = False
    search: str = ""
    trials: int = 0
    study: Study = field(default_factory=Study)

    def axes(self) -> list[Axis]:
        """What a grid is made of. Raises PansightError for a range, which only a search can draw from."""
        for each in self.varied:
            if isinstance(each, Range):
                raise PansightError(
                    where=f"--vary {each.name}",
                    expected="values for a grid",
                    found=f"the range {each.low:g}..{each.high:g}",
                    hint="--search tpe --trials N draws from ranges",
                )
        return [each for each in self.varied if isinstance(each, Axis)]

    def runs(self) -> list[Run]:
        """All runs of a grid. Raises PansightError where there are too many."""
        chosen = variants(self.axes(), self.one_at_a_time)
        if len(chosen) * len(self.seeds) > MOST_RUNS:
            found = f"{len(chosen) * len(self.seeds):,}"
            raise PansightError(where="sweep", expected=f"at most {MOST_RUNS:,} runs", found=found)
        return runs_of(chosen, self.seeds)


def studies() -> dict[str, Path]:
    """The shipped sweeps by name, ``studies/cityscapes_detr``, in order."""
    root = Path(settings_of_runs.__file__).parent / "recipes"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("studies/*.toml"))}


def read_plan(target: str | Path | None) -> tuple[Plan, Path | None]:
    """(the plan that `target` stands for, the folder where it is the folder of a sweep).

    target: a shipped study or a file with a [sweep] section; a shipped recipe, or a file with the settings of a
    training; a folder with sweep.toml; None: a plan of nothing but settings.
    Raises PansightError for anything else.
    """
    if target is None or str(target) == "":
        return Plan(), None
    if Path(target).is_dir():
        if not (Path(target) / SWEEP).is_file():
            raise PansightError(where=target, expected=f"a recipe, or the folder of a sweep ({SWEEP})", found="neither")
        return _read(Path(target) / SWEEP), Path(target)
    known = studies()
    if str(target) in known:
        return _read(known[str(target)]), None
    try:
        path = recipe_path(target)
    except PansightError as error:
        raise choice_error("recipe or study", str(target), [*known, *recipes()]) from error
    if "sweep" in read_toml(path):
        return _read(path), None
    return Plan(str(target)), None


def _read(path: Path) -> Plan:
    """Raises PansightError, naming the file, for what is no plan."""
    try:
        return _plan(read_toml(path), path.parent)
    except PansightError as error:
        raise error if error.where.startswith(str(path)) else error.at(path) from error


def _plan(content: Mapping[str, Any], folder: Path) -> Plan:
    unknown = set(content) - {"sweep", "vary", "settings", "study"}
    if unknown:
        expected = "the sections sweep, vary, settings and study"
        raise PansightError(where=min(unknown), expected=expected, found="another")
    head = {key: content.get(key, {}) for key in ("sweep", "vary", "settings")}
    for key, table in head.items():
        if not isinstance(table, Mapping):
            raise PansightError(where=key, expected="a section", found=f"{table!r}")
    known = {"recipe", "seeds", "one_at_a_time", "search", "trials"}
    if set(head["sweep"]) - known:
        raise choice_error("key of [sweep]", min(set(head["sweep"]) - known), known)
    given = dict(head["sweep"])
    recipe = str(given.get("recipe", ""))
    if recipe and (folder / recipe).is_file():
        recipe = str(folder / recipe)
    settings = known_settings(flatten(head["settings"]), "settings")
    varied = tuple(_varied(name, values) for name, values in head["vary"].items())
    plan = Plan(recipe, settings, varied, study=read_study(content.get("study", {})))
    return with_counts(plan, *(given.get(key) for key in ("seeds", "search", "trials", "one_at_a_time")))


def _varied(name: str, values: Any) -> Varied:
    if isinstance(values, Mapping) and {"low", "high"} <= set(values) <= {"low", "high", "log"}:
        return make_range(name, values["low"], values["high"], bool(values.get("log", False)))
    if isinstance(values, str) or not isinstance(values, Sequence | Mapping):
        raise PansightError(where=f"vary: {name}", expected="a list of values", found=f"{values!r}")
    return make_axis(name, values)


def known_settings(given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Dotted settings as plain values of their types, paths made absolute. Raises PansightError for an unknown key."""
    try:
        values = flatten(with_absolute_paths(override(Config(), given)).to_dict())
    except PansightError as error:
        raise error.at(where) if where else error from error
    return {key: values[key] for key in given}


def with_counts(
    plan: Plan, seeds: object = None, search: object = None, trials: object = None, one_at_a_time: object = None
) -> Plan:
    """`plan` with what is given changed. seeds: how many, from ``train.seed`` on, or which.

    Raises PansightError for numbers and names that cannot be.
    """
    if seeds is not None:
        first = int(plan.settings.get(SEED, 0))
        counted = range(first, first + seeds) if type(seeds) is int and seeds < 1000 else ()
        chosen = seeds if isinstance(seeds, list) else list(counted)
        whole = all(type(seed) is int and seed >= 0 for seed in chosen)
        if not whole or not chosen or len(set(chosen)) < len(chosen):
            raise PansightError(where="--seeds", expected="1 … 999 seeds", found=f"{seeds!r}")
        plan = replace(plan, seeds=tuple(chosen))
    if search is not None:
        if search not in SEARCHES:
            raise choice_error("search", str(search), SEARCHES[1:])
        plan = replace(plan, search=str(search))
    if trials is not None:
        if type(trials) is not int or trials < 0:
            raise PansightError(where="--trials", expected="a number of trials", found=f"{trials!r}")
        plan = replace(plan, trials=trials)
    if one_at_a_time is not None:
        if not isinstance(one_at_a_time, bool):
            raise PansightError(where="one_at_a_time", expected="true or false", found=f"{one_at_a_time!r}")
        plan = replace(plan, one_at_a_time=one_at_a_time)
    return plan


def with_varied(plan: Plan, varied: Sequence[Varied]) -> Plan:
    """`plan` that varies these as well; an axis of a name that is there already takes its place."""
    names = [each.name for each in varied]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise PansightError(where=f"--vary {twice}", expected="each setting once", found="it twice")
    kept = tuple(each for each in plan.varied if each.name not in names)
    return replace(plan, varied=(*kept, *varied))


def check_numbers(plan: Plan) -> None:
    """Raises PansightError where search, trials and what is varied do not belong together."""
    if not plan.search and plan.trials:
        raise PansightError(where="--trials", expected="--search tpe with it", found="none")
    if plan.search and not plan.trials:
        raise PansightError(where="--search", expected="--trials N with it", found="none")
    if plan.search and plan.one_at_a_time:
        raise PansightError(where="--one-at-a-time", expected="a grid", found="a search")
    if plan.search and not plan.varied:
        raise PansightError(where="--search", expected="something to search over (--vary KEY=VALUES)", found="nothing")
    if plan.search and (plan.study.evaluate or plan.study.combine):
        raise PansightError(where="--search", expected="a grid, whose networks are measured again", found="a search")


def write_plan(plan: Plan, folder: Path, heading: str) -> None:
    """sweep.toml, and the copy of the recipe beside it."""
    recipe = ""
    if plan.recipe:
        source, recipe = recipe_path(plan.recipe), RECIPE
        if source.resolve() != (folder / RECIPE).resolve():
            write_text(folder / RECIPE, source.read_text(encoding="utf-8-sig"))
    head: dict[str, Any] = {"recipe": recipe, "seeds": list(plan.seeds)}
    head |= {"one_at_a_time": True} if plan.one_at_a_time else {}
    head |= {"search": plan.search, "trials": plan.trials} if plan.search else {}
    content = {"sweep": head, "vary": {each.name: _plain(each) for each in plan.varied}, "settings": plan.settings}
    content |= {"study": section} if (section := plain_study(plan.study)) else {}
    comment = "".join(f"# {line}\n" for line in heading.splitlines())
    write_text(folder / SWEEP, comment + tomli_w.dumps(content))


def _plain(each: Varied) -> Any:
    if isinstance(each, Range):
        return {"low": each.low, "high": each.high, "log": each.log}
    if all(list(point.settings) == [each.name] for point in each.points):
        return [point.settings[each.name] for point in each.points]
    return {point.label: point.settings for point in each.points}


def check_same(old: Plan, new: Plan, folder: Path) -> None:
    """Raises PansightError where a sweep in `folder` was begun with other settings than these.

    Values, seeds, trials and rows that are measured again may be added: every run has its own folder.
    """

    def refuse(where: str, expected: object, found: object) -> None:
        raise PansightError(
            where=f"{folder / SWEEP}: {where}",
            expected=f"{expected}, as the sweep began",
            found=f"{found}",
            hint="give another sweep another folder (--out)",
        )

    texts = [recipe_path(plan.recipe).read_text(encoding="utf-8-sig") if plan.recipe else "" for plan in (old, new)]
    if texts[0] != texts[1]:
        refuse("recipe", "the recipe", "another one")
    for key in [*old.settings, *(key for key in new.settings if key not in old.settings)]:
        one, other = old.settings.get(key, "the recipe's"), new.settings.get(key, "the recipe's")
        if key != SEED and one != other:
            refuse(key, one, other)
    for kind in ("evaluate", "combine"):
        rows, others = getattr(old.study, kind), getattr(new.study, kind)
        for label in rows:
            if label in others and rows[label] != others[label]:
                refuse(f"{kind}: {label}", rows[label], others[label])
    if old.search != new.search:
        refuse("search", old.search or "a grid", new.search or "a grid")
    if new.search and _spaces(old) != _spaces(new):
        refuse("vary", _spaces(old), _spaces(new))


def _spaces(plan: Plan) -> dict[str, Any]:
    return {each.name: _plain(each) for each in plan.varied}
