"""Read checkpoint files as plain tensors, without running anything that is written in them.

``read_tensors`` tells the format by the first bytes, not by the name: safetensors; torch's archives and the files that
it wrote before it had archives (``weights.torch_files``); and the legacy pickles of numpy arrays (``.pkl`` of
detectron2 and Caffe2). All pickles are read as data (``weights.pickles``): not even numpy's and torch's own unpickling
code, which trusts its input, is reached. What lies around the weights is taken off by ``keys.unwrapped``.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pansight.archives import BROKEN_ZIP
from pansight.errors import PansightError, shown
from pansight.files import open_plain
from pansight.weights import torch_files
from pansight.weights.keys import unwrapped
from pansight.weights.licences import show
from pansight.weights.pickles import Made, load

NUMBERS = frozenset(f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes)
"""The dtypes that an array in a pickle may have (besides "b1"): torch has no others for weights."""

ARRAYS = {f"numpy.{core}.{place}" for core in ("core", "_core") for place in ("multiarray._reconstruct",)}
ARRAYS |= {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
SCALARS = {f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")}

DAMAGED = (*BROKEN_ZIP, LookupError, TypeError, AttributeError, OSError)
"""What a file raises that is cut off, or whose bytes were changed."""

REAL = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int16, torch.int32, torch.int64, torch.bool}
"""The types of weights and counters. Eight bits are a quantised weight, whose scale lies elsewhere."""
REAL_NUMBERS = "weights of real numbers (float32, float16, bfloat16 …)"


def read_tensors(path: str | Path, is_part: bool = False) -> dict[str, Tensor]:
    """The weights of a checkpoint file by name, on the CPU. is_part: of several files, so that names stay as they are.

    What a training wraps them in (its epoch, optimiser, arguments), and the prefixes that it puts before their names,
    are left out; which weights were taken is logged by the logger "pansight", where there was a choice.
    Raises PansightError, one line with the file, what was expected and what was found: no such file; an empty,
    truncated or foreign file; a pickle that names code; no tensors inside; weights that are quantised, complex, sparse,
    NaN or infinite.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
            return _read(file, path, is_part)
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, hint="expected a checkpoint", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error


def _read(file: BinaryIO, path: Path, is_part: bool) -> dict[str, Tensor]:
    head = file.read(16)
    if not head:
        raise PansightError(where=path, expected="a checkpoint", found="an empty file (0 bytes)")
    if head[8:9] == b"{":  # 8 bytes of header length, then the JSON header
        try:
            return _weights(load_file(path), _as_it_is, path, is_part)
        except (SafetensorError, *DAMAGED) as error:
            raise _damaged(path, "safetensors", error) from error
    expected = "a torch checkpoint" if head[:4] == b"PK\x03\x04" else "a pickle of tensors or numpy arrays"
    try:
        if head[:4] == b"PK\x03\x04":
            content, blocks = torch_files.open_archive(file, path)
        elif head[:1] == b"\x80" or head[:1] in b"(}c":  # protocol 2 and later; 0 and 1, as Python 2 wrote them
            content, blocks = _read_pickle(file, path)
        else:
            found = f"a file that begins with {head[:4]!r}"
            raise PansightError(where=path, expected="a checkpoint (.safetensors, .pth, .pt, .pkl)", found=found)
        read = torch_files.reader(blocks) if blocks is not None else _no_block
        return _weights(content, lambda value: _tensor_of(value, read), path, is_part)
    except DAMAGED as error:
        raise _damaged(path, expected, error) from error


def _read_pickle(file: BinaryIO, path: Path) -> tuple[Any, torch_files.Blocks | None]:
    """(content, blocks behind the pickle or None): of torch before it had archives, or of arrays."""
    # A map of the file, unlike the file itself, gives no more bytes than there are, however many a pickle asks for.
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    content, _ = load(data, path)
    return torch_files.open_legacy(data, path) if content == torch_files.MAGIC else (content, None)


def read_pickle(path: str | Path) -> Any:
    """A pickle of numpy arrays, numbers and texts; a dict has its arrays in place. Anything else is a PansightError."""
    path = Path(path)
    try:
        with open_plain(path) as file:
            content, _ = _read_pickle(file, path)
        if not isinstance(content, dict):
            return _plain(content)
        return {key: _plain(value) for key, value in content.items()}
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, code="missing_file") from error
    except DAMAGED as error:
        raise _damaged(path, "a pickle of numpy arrays", error) from error


def read_state(path: str | Path) -> Any:
    """What ``torch.save`` wrote of dicts, lists, tuples, numbers, texts and tensors: the state of a training.

    Raises PansightError where the file is missing or damaged, cannot be read, or holds anything else.
    """
    path = Path(path)
    try:
        with open_plain(path) as file:
            content, blocks = torch_files.open_archive(file, path)
            return _rebuilt(content, torch_files.reader(blocks), {}, 0)
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, code="missing_file") from error
    except DAMAGED as error:
        raise _damaged(path, "a training state", error) from error


MAX_DEPTH = 32
"""How deeply the dicts and lists of a state may be nested; an optimiser's have a depth of 4."""


def _rebuilt(value: Any, read: Callable[[Any], Tensor], known: dict[int, Any], depth: int) -> Any:
    """`value` with tensors in place of what stands for them. known: by identity, so that what is shared is visited once
    and the time is bounded by the size of the file.
    """
    if isinstance(value, int | float | str | bytes | None):
        return value
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise ValueError("values nested too deeply")
    if isinstance(value, dict):
        new: Any = {key: _rebuilt(each, read, known, depth + 1) for key, each in value.items()}
    elif isinstance(value, list | tuple):
        new = type(value)(_rebuilt(each, read, known, depth + 1) for each in value)
    elif torch_files.is_tensor(value):
        new = torch_files.tensor_of(value, read)
    else:
        raise TypeError(f"a value of another kind ({value.name if isinstance(value, Made) else type(value).__name__})")
    known[id(value)] = new
    return new


def _plain(value: Any) -> Any:
    if isinstance(value, Made) and value.name in ARRAYS | SCALARS:
        return _array_of(value)
    return value


def _weights(content: Any, tensor_of: Callable[[Any], Tensor], path: Path, is_part: bool) -> dict[str, Tensor]:
    """What `read_tensors` gives of the content of a file. tensor_of: from a value that `is_weight` to the tensor."""
    if not isinstance(content, Mapping):
        found = content.name if isinstance(content, Made) else type(content).__name__
        raise PansightError(where=path, expected="a dict of tensors by name", found=found)
    if is_part:
        taken, said = {name: value for name, value in content.items() if is_weight(value)}, ""
    else:
        taken, said = unwrapped(content, is_weight, str(path))
    if said:
        show(f"weights    {path}: {said}")
    if odd := [f"{name} ({kind})" for name, value in taken.items() if (kind := torch_files.odd_kind(value))]:
        raise PansightError(where=path, expected=REAL_NUMBERS, found=_some(odd))
    tensors = {name: tensor_of(value).detach() for name, value in taken.items()}
    check_numbers(tensors, path)
    return tensors


def is_weight(value: Any) -> bool:
    """Whether a value of a checkpoint stands for a tensor."""
    return (
        isinstance(value, Tensor) or torch_files.is_tensor(value) or (isinstance(value, Made) and value.name in ARRAYS)
    )


def check_numbers(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Raises PansightError, with the names of the first tensors, for weights that cannot be meant."""
    odd = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})" for name, tensor in tensors.items() if not _real(tensor)
    ]
    if odd:
        raise PansightError(where=path, expected=REAL_NUMBERS, found=_some(odd))
    endless = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if endless:
        raise PansightError(where=path, expected="finite weights", found=f"NaN or infinity in {_some(endless)}")


def _real(tensor: Tensor) -> bool:
    return tensor.dtype in REAL and tensor.layout == torch.strided


def _some(names: list[str]) -> str:
    return ", ".join(shown(name, 120) for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _no_block(parts: Any) -> Tensor:
    raise ValueError("a reference to an object outside the file")


def _damaged(path: Path, expected: str, error: BaseException) -> PansightError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return PansightError(where=path, expected=expected, found=f"a damaged file ({reason:.160})")


# --- arrays of numpy, from what a pickle would have made -------------------------------------------------------------


def _tensor_of(value: Made, read: Callable[[Any], Tensor]) -> Tensor:
    if value.name not in ARRAYS:
        return torch_files.tensor_of(value, read)
    array = _array_of(value)
    # A copy, since torch wants writable memory and the arrays are views of the bytes that were read.
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _array_of(value: Made) -> np.ndarray:
    """Raises ValueError or TypeError where shape and bytes disagree, or the numbers are of no known type."""
    if value.name.endswith("_reconstruct"):
        if not isinstance(value.state, tuple) or len(value.state) < 4:
            raise ValueError("an array without its state")
        shape, dtype, is_fortran, data = value.state[-4:]  # (version,) shape, dtype, is_fortran, data
        return _filled(data, dtype, shape, "F" if is_fortran else "C")
    if value.name in SCALARS:
        dtype, data = value.arguments
        return _filled(data, dtype, (), "C")
    data, dtype, shape, order = value.arguments  # of _frombuffer
    return _filled(data, dtype, shape, order)


def _filled(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(data, str):  # bytes of Python 2, which are read as a text
        data = data.encode("latin1")
    return np.frombuffer(data, _dtype_of(dtype)).reshape(shape, order=order)


def _dtype_of(value: Any) -> np.dtype:
    """A numpy dtype: a code such as "f4", then the byte order in its state."""
    if not isinstance(value, Made) or value.name != "numpy.dtype":
        raise TypeError("an array of no type")
    code = value.arguments[0]
    code = code.lstrip("<>=|") if isinstance(code, str) else ""
    if code not in NUMBERS and code != "b1":
        raise ValueError(f"arrays of dtype {code!r:.20}; expected numbers")
    dtype = np.dtype(code)
    if value.state is None:
        return dtype
    order = value.state[1]  # (version, byte order, subdtype, names, fields, size, alignment, flags)
    if not isinstance(order, str) or order not in tuple("<>=|"):
        raise ValueError("another byte order than < > = |")
    return dtype.newbyteorder(order)  # type: ignore[arg-type]
