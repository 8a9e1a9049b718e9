"""Graphs of whole numbers: weights and activations in 8 bits, whose ranges are those that some photos show."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pansight.apps.exporting.checking import check_photos, inputs_of
from pansight.apps.exporting.engines import package, quiet
from pansight.apps.exporting.tracing import Size
from pansight.errors import PansightError

MOST = 300
"""Photos that are looked at: more hardly move the ranges."""

ONNX_LAYERS = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
"""What becomes whole numbers in ONNX; all else computes with real ones, above all boxes and scores."""

Arrays = Mapping[str, NDArray[Any]]
"""The inputs of a graph for one photo, by name."""


def calibration(folder: str | Path, sizes: Sequence[Size], names: Sequence[str], known: Sequence[str]) -> list[Arrays]:
    """The inputs for each photo of a folder, at most MOST of them, spread over all.

    names: of the inputs in the order of `inputs_of`; known: those that the graph has.
    """
    photos = check_photos(folder)
    chosen = np.unique(np.linspace(0, len(photos) - 1, min(MOST, len(photos))).round().astype(int)).tolist()
    found: list[Arrays] = []
    for index in chosen:
        tensors = zip(names, inputs_of(photos[index], sizes), strict=False)
        found.append({name: np.ascontiguousarray(each.numpy()) for name, each in tensors if name in known})
    return found


def quantize_openvino(file: Path, out: Path, photos: Sequence[Arrays]) -> None:
    """By nncf's post-training quantization."""
    openvino, nncf = package("openvino"), package("nncf")
    with quiet():
        model = openvino.Core().read_model(str(file))
        dataset = nncf.Dataset(list(photos))
        openvino.save_model(nncf.quantize(model, dataset, subset_size=len(photos)), str(out), compress_to_fp16=False)


def quantize_onnx(file: Path, out: Path, photos: Sequence[Arrays]) -> None:
    """By ONNX Runtime: QDQ, weights of each channel by themselves."""
    tools = package("onnxruntime.quantization")

    class Reader(tools.CalibrationDataReader):
        """The photos one after the other, then None."""

        def __init__(self) -> None:
            self.left = iter(photos)

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    with quiet():
        tools.quantize_static(
            str(file),
            str(out),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=ONNX_LAYERS,
            per_channel=True,
        )


QUANTIZERS: dict[str, Callable[[Path, Path, Sequence[Arrays]], None]] = {
    "openvino": quantize_openvino,
    "onnx": quantize_onnx,
}


def quantized(target: str, file: Path, photos: Sequence[Arrays]) -> None:
    """Put a graph of whole numbers, by the ranges that these photos show, into the place of that of real ones."""
    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "real"
        real.mkdir()
        for each in file.parent.glob(f"{file.stem}.*"):  # the weights may stand beside it
            shutil.move(each, real / each.name)
        QUANTIZERS[target](real / file.name, file, photos)


def check_int8(target: str) -> None:
    """Raises PansightError for a target that has no whole numbers."""
    if target not in QUANTIZERS:
        raise PansightError(where="int8", expected=f"a graph for {' or '.join(QUANTIZERS)}", found=f"to {target}")
