"""Graphs for other engines: a model traced, written, checked against itself and described, in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.exporting.checking import ENOUGH, check_photos, shares_alike
from pansight.apps.exporting.describing import EXPORT, FORMAT, described
from pansight.apps.exporting.engines import ENGINES, Engine, Traced
from pansight.apps.exporting.quantizing import calibration, check_int8, quantized
from pansight.apps.exporting.scoring import GraphModel, figure_table, figures_of, open_annotated
from pansight.apps.exporting.tracing import FURTHER, INPUTS, Graph, Size, check_rule_inside, dtype_of, sizes_of, traced
from pansight.data import Dataset
from pansight.errors import PansightError
from pansight.files import read_json, replacing_folder, write_json
from pansight.models import entry

GRAPHS: dict[str, Engine] = ENGINES

ANY_SIZE, SIZE = "photos of any size", "a photo that fits into {} × {}"


class Exported(NamedTuple):
    """A graph that was written."""

    folder: Path
    target: str
    alike: float
    """The share of pixels on which it says what its model says, of the photo where it is least, 0 … 1."""
    photos: int
    size: tuple[int, int] | None
    """(H, W) of its input; None: any."""
    why_fixed: str
    """Why it takes no other size, in one line; "" where it takes any, or this one was asked for, or is the model's."""
    figures: tuple[str, ...] = ()
    """Lines of a table: what the model and the graph reach on annotated images."""


def is_graph_folder(folder: Path) -> bool:
    """Whether a folder holds an exported graph, or nothing: what an export may replace."""
    if not any(folder.iterdir()):
        return True
    path = folder / EXPORT
    return path.is_file() and read_json(path).get("format") == FORMAT


def write_graph(
    model: Any,
    name: str,
    options: Mapping[str, Any],
    target: str,
    out: Path,
    asked: tuple[int, int] | None = None,
    check: str | Path | None = None,
    rule_inside: bool = False,
    int8: str | Path | None = None,
    data: str | Path | None = None,
) -> Exported:
    """Write `out` whole, or not at all. Arguments as of `export`; see `Exporter.write`."""
    return Exporter(model, name, options, check, rule_inside).write(target, out, asked, int8, data)


class Exporter:
    """A model to be written as graphs, which is traced once for all targets."""

    def __init__(
        self,
        model: Any,
        name: str,
        options: Mapping[str, Any],
        check: str | Path | None = None,
        rule_inside: bool = False,
    ):
        if rule_inside:
            check_rule_inside(model, name)
        self.model, self.name, self.options = model.to("cpu").float().eval(), name, options
        self.rule_inside = rule_inside
        self.model.set_progress(1.0)
        self.photos = check_photos(check)
        self._graphs: dict[Sequence[Size], tuple[Graph, Traced]] = {}

    def write(
        self,
        target: str,
        out: Path,
        asked: tuple[int, int] | None = None,
        int8: str | Path | None = None,
        data: str | Path | None = None,
    ) -> Exported:
        """Write `out` whole, or not at all. int8: photos by which it becomes a graph of whole numbers. data: annotated
        images, on which model and graph are measured.

        A graph for any size is tried first. Where the exporter, or the graph at another size than it was traced with,
        shows that the network does not allow it, the graph takes one size.
        Raises PansightError, saying why in a line, where neither can be had.
        """
        if int8 is not None:
            check_int8(target)
        dataset = self._opened(data)
        attempts = sizes_of(self.model, asked)
        why = ""
        for number, sizes in enumerate(attempts, start=1):
            try:
                with replacing_folder(out) as folder:
                    alike, figures = self._written(folder, target, sizes, int8, dataset)
            except PansightError as error:
                if number == len(attempts):
                    raise
                why = error.what
                continue
            return Exported(out, target, alike, len(self.photos), sizes[0].fixed, why, figures)
        raise AssertionError("there is at least one attempt")

    def _opened(self, data: str | Path | None) -> Dataset | None:
        if data is not None and self.rule_inside:
            raise PansightError(where="data", expected="a graph without the rule inside", found="one that has it")
        return None if data is None else open_annotated(data, self.model)

    def _written(
        self, folder: Path, target: str, sizes: Sequence[Size], int8: str | Path | None, dataset: Dataset | None
    ) -> tuple[float, tuple[str, ...]]:
        """The files of an export → the share of pixels that is alike on the worst photo, and figures on the images.

        Raises PansightError, also where a graph of real numbers is not like its model.
        """
        engine, file = GRAPHS[target], folder / GRAPHS[target].file
        where, tasks = f"export of {self.name} to {target}", () if self.rule_inside else entry(self.name).tasks
        try:
            graph, program = self._traced(sizes)
            engine.write(program, file)
            known, run = engine.open(file, program.inputs)
            alike = min(shares_alike(graph, run, sizes, self.photos, tasks))
            if not alike >= ENOUGH:
                expected = f"the model's own maps on at least {ENOUGH:.1%} of the pixels"
                raise PansightError(where=where, expected=expected, found=f"{alike:.2%}")
            if int8 is not None:
                quantized(target, file, calibration(int8, sizes, program.inputs, known))
                run = engine.open(file, program.inputs)[1]
                alike = min(shares_alike(graph, run, sizes, self.photos, tasks))
        except (PansightError, MemoryError):
            raise
        except Exception as error:  # of the exporters and engines, which raise whatever they like
            raise PansightError(f"cannot be exported: {_in_short(error)}", where=where) from error
        about = described(graph, self.name, self.options, target, file, known, sizes)
        write_json(folder / EXPORT, about | ({} if int8 is None else {"precision": "int8"}))
        return alike, () if dataset is None else self._figures(GraphModel(graph, run, sizes), dataset)

    def _figures(self, graph: GraphModel, dataset: Dataset) -> tuple[str, ...]:
        before, after = (figures_of(each, dataset, entry(self.name).tasks) for each in (self.model, graph))
        return tuple(figure_table(before, after, len(dataset)))

    def _traced(self, sizes: Sequence[Size]) -> tuple[Graph, Traced]:
        if sizes not in self._graphs:
            example = [tensor for size in sizes for tensor in size.example(dtype_of(size.rule))]
            graph = Graph(self.model, example, self.rule_inside)
            names = (*INPUTS, *FURTHER)[: len(example)]
            self._graphs[sizes] = graph, Traced(traced(graph, sizes, example), names, graph.names)
        return self._graphs[sizes]


def _in_short(error: BaseException) -> str:
    """The first line of the first cause of an error, with its kind."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in f"{error}".splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason':.200}"


def report_of_graph(exported: Exported) -> str:
    """What the command prints."""
    takes = ANY_SIZE if exported.size is None else SIZE.format(*exported.size)
    lines = [
        f"{exported.folder}: {GRAPHS[exported.target].file}, for {takes}",
        f"checked on {exported.photos} photos: the same maps as the model on {exported.alike:.3%} of the pixels",
    ]
    if exported.why_fixed:
        lines.append(f"one size alone, since for any size: {exported.why_fixed}")
    return "\n".join([*lines, *exported.figures])
