"""The libraries that run a graph: ONNX Runtime and OpenVINO, each loaded when it is first asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import RuntimeFault
from .values import Array

Run = Callable[[Sequence[Array]], list[Array]]
"""The inputs of a graph, in its order → its outputs."""


def open_graph(graph: Path, inputs: Sequence[str], outputs: Sequence[str], engine: str, threads: int) -> Run:
    """A graph, ready to run. engine: a key of ENGINES, or "auto": ONNX Runtime for .onnx, OpenVINO for .xml.

    threads: of the processor; 0: as many as the engine likes. inputs, outputs: the names that it must have.
    Raises RuntimeFault where no engine can run it, the library is missing, or its inputs are others.
    """
    suffix = graph.suffix.lower()
    if engine not in ("auto", *ENGINES):
        raise RuntimeFault("engine", f"one of auto, {', '.join(ENGINES)}", repr(engine))
    if engine == "auto":
        engine = {".onnx": "onnxruntime", ".xml": "openvino"}.get(suffix, "")
    if suffix not in READS.get(engine, ()):
        hint = "export it with --to onnx, or --to openvino"
        raise RuntimeFault(graph, f"a graph for {engine or 'ONNX Runtime or OpenVINO'}", f"one of {suffix}", hint)
    try:
        library = importlib.import_module(engine)
    except ImportError as error:
        raise RuntimeFault(engine, "an installed library", "none", f"pip install {engine}") from error
    known, given, run = ENGINES[engine](library, graph, threads)
    for kind, wanted, found in (("inputs", inputs, known), ("outputs", outputs, given)):
        if list(wanted) != list(found):
            raise RuntimeFault(graph, f"the {kind} {', '.join(wanted)}", ", ".join(found), "export it again")
    return run


def _onnxruntime(library: Any, graph: Path, threads: int) -> tuple[list[str], list[str], Run]:
    options = library.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    try:
        session = library.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of the library, which has a dozen kinds and no common base
        raise RuntimeFault(graph, "a graph that ONNX Runtime can run", f"{error!s:.120}") from error
    names, given = [each.name for each in session.get_inputs()], [each.name for each in session.get_outputs()]

    def run(arrays: Sequence[Array]) -> list[Array]:
        return list(session.run(given, dict(zip(names, arrays, strict=True))))

    return names, given, run


def _openvino(library: Any, graph: Path, threads: int) -> tuple[list[str], list[str], Run]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
    try:
        compiled = library.Core().compile_model(str(graph), "CPU", settings)
    except Exception as error:  # of the library, whose errors are plain RuntimeErrors of many lines
        raise RuntimeFault(graph, "a graph that OpenVINO can run", f"{error!s:.120}") from error
    names, given = [each.any_name for each in compiled.inputs], [each.any_name for each in compiled.outputs]

    def run(arrays: Sequence[Array]) -> list[Array]:
        found = compiled(list(arrays))
        return [found[each].copy() for each in compiled.outputs]

    return names, given, run


ENGINES: dict[str, Callable[[Any, Path, int], tuple[list[str], list[str], Run]]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
READS = {"onnxruntime": (".onnx",), "openvino": (".xml", ".onnx")}
