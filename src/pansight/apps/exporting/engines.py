"""What writes a traced program in the format of another engine, and what runs such a file: one pair for each target."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pansight.apps.exporting.translations import translations
from pansight.errors import PansightError

OPSET = 18
ONE_FILE = 1_500_000_000
"""Bytes of weights that still stand in the ONNX file itself; protobuf ends at 2 GiB."""

Runner = Callable[[Sequence[Tensor]], list[Tensor]]
"""The inputs of a graph, in its order → its outputs."""


class Traced:
    """A program of torch.export, with the names of its inputs and outputs."""

    def __init__(self, program: torch.export.ExportedProgram, inputs: Sequence[str], outputs: Sequence[str]):
        self.program, self.inputs, self.outputs = program, tuple(inputs), tuple(outputs)

    @cached_property
    def onnx(self) -> Any:
        """The same as ONNX, opset 18: made once, whatever is written of it."""
        for name in ("onnx", "onnxscript"):
            package(name)
        with quiet():
            return torch.onnx.export(
                self.program,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                input_names=list(self.inputs),
                output_names=list(self.outputs),
                custom_translation_table=translations(),
            )

    def bytes(self) -> int:
        """Of all weights."""
        return sum(each.numel() * each.element_size() for each in self.program.state_dict.values())


class Engine(NamedTuple):
    """A target of the export."""

    meaning: str
    file: str
    write: Callable[[Traced, Path], None]
    open: Callable[[Path, Sequence[str]], tuple[list[str], Runner]]
    """(file, names of inputs) → those of them that the graph has, and what runs it."""


@contextmanager
def quiet() -> Generator[None]:
    """Exporters talk on every channel there is; what matters of it they raise."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def package(name: str) -> Any:
    """A package of the extra "export". Raises PansightError where it is missing."""
    from importlib import import_module

    try:
        with quiet():
            return import_module(name)
    except ImportError as error:
        hint = "pip install 'pansight[export]'"
        raise PansightError(where="export", expected=f"the package {name}", found="none", hint=hint) from error


def write_onnx(traced: Traced, file: Path) -> None:
    """model.onnx, opset 18; large weights stand beside it in model.onnx.data."""
    converted = traced.onnx
    with quiet():
        converted.save(file, external_data=traced.bytes() > ONE_FILE)


def open_onnx(file: Path, inputs: Sequence[str]) -> tuple[list[str], Runner]:
    runtime = package("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    known = [each.name for each in session.get_inputs()]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: np.ascontiguousarray(each.numpy()) for name, each in zip(inputs, tensors) if name in known}
        return [_tensor(array) for array in session.run(None, arrays)]

    return known, run


def write_openvino(traced: Traced, file: Path) -> None:
    """model.xml and model.bin, in float32, by way of ONNX, which has the names of the outputs."""
    openvino = package("openvino")
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(traced, Path(folder) / "model.onnx")
        with quiet():
            model = openvino.convert_model(str(Path(folder) / "model.onnx"))
            openvino.save_model(model, str(file), compress_to_fp16=False)


def open_openvino(file: Path, inputs: Sequence[str]) -> tuple[list[str], Runner]:
    openvino = package("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", settings)
    known = [each.get_any_name() for each in compiled.inputs]

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        arrays = {name: np.ascontiguousarray(each.numpy()) for name, each in zip(inputs, tensors) if name in known}
        found = compiled(arrays)
        return [_tensor(np.array(found[each])) for each in compiled.outputs]

    return known, run


def write_torch(traced: Traced, file: Path) -> None:
    """model.pt2, which ``torch.export.load`` reads; it gives the outputs as a tuple, in the order of their names."""
    with quiet():
        torch.export.save(traced.program, file)


def open_torch(file: Path, inputs: Sequence[str]) -> tuple[list[str], Runner]:
    with quiet():
        module = torch.export.load(file).module()

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            return list(module(*tensors))

    return list(inputs), run


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


ENGINES: dict[str, Engine] = {
    "onnx": Engine("a graph for ONNX Runtime and other engines: model.onnx", "model.onnx", write_onnx, open_onnx),
    "openvino": Engine("a graph for OpenVINO: model.xml, model.bin", "model.xml", write_openvino, open_openvino),
    "torch": Engine("a graph of torch.export: model.pt2", "model.pt2", write_torch, open_torch),
}
