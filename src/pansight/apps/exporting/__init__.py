"""``pansight export``: write a model as a folder that other tools load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pansight.apps.exporting.folders import write_ours, write_transformers
from pansight.apps.exporting.graphs import GRAPHS, Exported, is_graph_folder, report_of_graph, write_graph
from pansight.errors import PansightError, choice_error
from pansight.weights import load_model
from pansight.weights.huggingface.export import is_export
from pansight.weights.native import is_saved

TARGETS = {
    "hf": "a folder of Hugging Face transformers",
    "folder": "a saved folder of ours, for every model",
    **{target: graph.meaning for target, graph in GRAPHS.items()},
}


def export(
    weights: str | Path,
    out: str | Path,
    to: str = "hf",
    overwrite: bool = False,
    size: tuple[int, int] | None = None,
    check: str | Path | None = None,
    rule_inside: bool = False,
    int8: str | Path | None = None,
    data: str | Path | None = None,
) -> str | Exported:
    """Write a model as a folder → what loads it: a class of transformers, "" for a folder of ours, or the graph.

    weights: a run folder (its best checkpoint), a saved folder, a hub id or an official checkpoint file. to: a key of
    TARGETS. "onnx", "openvino" and "torch" write a graph that needs no code of ours, with export.json, which says all
    that is to be done before and after it (docs/export.md). size: (H, W) of its input; None: any, where the network
    takes any, else its own. check: a folder of photos, or one photo, on which the graph must say what the model says;
    None: generated ones. rule_inside: the graph gives the panoptic map itself, of the systems of competing masks.
    int8: photos, by which an ONNX or OpenVINO graph becomes one of whole numbers of 8 bits. data: annotated images, on
    which model and graph are measured. The folder appears whole or not at all.
    Raises PansightError where the target cannot have the model, where the graph says something else than the model, or
    where something stands at `out`: with overwrite, an earlier export is replaced, but nothing else.
    """
    if to not in TARGETS:
        raise choice_error("export target", to, TARGETS)
    flags = {"size": size, "check": check, "rule_inside": rule_inside or None, "int8": int8, "data": data}
    for flag, value in flags.items():
        if value is not None and to not in GRAPHS:
            raise PansightError(where=flag, expected=f"a graph ({', '.join(GRAPHS)})", found=f"to {to}")
    out = Path(out)
    replaceable: Callable[[Path], bool] = {"hf": is_export, "folder": is_saved}.get(to, is_graph_folder)
    if out.exists() and not (out.is_dir() and replaceable(out)):
        raise PansightError(where=out, expected="a new folder or an earlier export", found="something else")
    if out.exists() and any(out.iterdir()) and not overwrite:
        raise PansightError(where=out, expected="no export yet", found="one", hint="add --overwrite")
    if to in GRAPHS:
        return write_graph(*load_model(weights), to, out, size, check, rule_inside, int8, data)
    model, name, options = load_model(weights)
    if to == "hf":
        return write_transformers(model, name, options, weights, out)
    write_ours(model, name, options, out)
    return ""


def report(written: str | Exported, out: Path) -> str:
    """What the command prints of an export to `out`."""
    if isinstance(written, Exported):
        return report_of_graph(written)
    return f"{out}: {f'{written}.from_pretrained' if written else 'pansight.load'}({str(out)!r})"
