"""Graphs for other engines: a model traced, written, checked against itself and described, in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pansight.apps.exporting.checking import ENOUGH, check_photos, shares_alike
from pansight.apps.exporting.describing import EXPORT, FORMAT, described
from pansight.apps.exporting.engines import ENGINES, Engine, Traced
from pansight.apps.exporting.tracing import FURTHER, INPUTS, Graph, Size, dtype_of, sizes_of, traced
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
) -> Exported:
    """Write `out` whole, or not at all. Arguments as of `export`; see `Exporter.write`."""
    return Exporter(model, name, options, check).write(target, out, asked)


class Exporter:
    """A model to be written as graphs, which is traced once for all targets."""

    def __init__(self, model: Any, name: str, options: Mapping[str, Any], check: str | Path | None = None):
        self.model, self.name, self.options = model.to("cpu").float().eval(), name, options
        self.model.set_progress(1.0)
        self.photos = check_photos(check)
        self._graphs: dict[Sequence[Size], tuple[Graph, Traced]] = {}

    def write(self, target: str, out: Path, asked: tuple[int, int] | None = None) -> Exported:
        """Write `out` whole, or not at all.

        A graph for any size is tried first. Where the exporter, or the graph at another size than it was traced with,
        shows that the network does not allow it, the graph takes one size.
        Raises PansightError, saying why in a line, where neither can be had.
        """
        attempts = sizes_of(self.model, asked)
        why = ""
        for number, sizes in enumerate(attempts, start=1):
            try:
                with replacing_folder(out) as folder:
                    alike = self._written(folder, target, sizes)
            except PansightError as error:
                if number == len(attempts):
                    raise
                why = error.what
                continue
            return Exported(out, target, alike, len(self.photos), sizes[0].fixed, why)
        raise AssertionError("there is at least one attempt")

    def _written(self, folder: Path, target: str, sizes: Sequence[Size]) -> float:
        """The files of an export → the share of pixels that is alike on the worst photo. Raises PansightError."""
        engine, file = GRAPHS[target], folder / GRAPHS[target].file
        where = f"export of {self.name} to {target}"
        try:
            graph, program = self._traced(sizes)
            engine.write(program, file)
            known, run = engine.open(file, program.inputs)
            alike = min(shares_alike(graph, run, sizes, self.photos, entry(self.name).tasks))
        except (PansightError, MemoryError):
            raise
        except Exception as error:  # of the exporters and engines, which raise whatever they like
            raise PansightError(f"cannot be exported: {_in_short(error)}", where=where) from error
        if not alike >= ENOUGH:
            expected = f"the model's own maps on at least {ENOUGH:.1%} of the pixels"
            raise PansightError(where=where, expected=expected, found=f"{alike:.2%}")
        about = described(self.model, self.name, self.options, target, file, known, graph.names, sizes)
        write_json(folder / EXPORT, about)
        return alike

    def _traced(self, sizes: Sequence[Size]) -> tuple[Graph, Traced]:
        if sizes not in self._graphs:
            example = [tensor for size in sizes for tensor in size.example(dtype_of(size.rule))]
            graph = Graph(self.model, example)
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
    return "\n".join(lines)
