"""Read checkpoint files as plain tensors, without running anything that is written in them.

``read_tensors`` tells the format by the first bytes, not by the name: safetensors; torch's zip and legacy files,
through ``torch.load(weights_only=True)``; and the legacy pickles of numpy arrays (``.pkl`` of detectron2 and Caffe2),
through an unpickler that knows the few names such a file needs. Its stand-ins build arrays from bytes themselves: not
even numpy's own unpickling code, which trusts its input, is reached.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pansight.errors import PansightError

NUMBERS = frozenset(f"{kind}{size}" for kind, sizes in {"f": "248", "i": "1248", "u": "1248"}.items() for size in sizes)
"""The dtypes that a legacy pickle may hold (besides "b1"): torch has no others for weights."""

TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
WRAPPERS = ("model", "state_dict", "model_state", "blobs")
"""The keys under which training code commonly puts the state dict."""


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name, on the CPU; what wraps them (epoch, optimizer, author) is left out.

    Raises PansightError, one line with the file, what was expected and what was found: no such file, an empty,
    truncated or foreign file, a pickle that names code, no tensors inside.
    """
    path = Path(path)
    content = _read_any(path)
    if not isinstance(content, Mapping):
        raise PansightError(where=path, expected="a dict of tensors by name", found=type(content).__name__)
    for key in WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    tensors = {
        str(name): _to_tensor(value) for name, value in content.items() if isinstance(value, Tensor | np.ndarray)
    }
    if not tensors:
        some = ", ".join(repr(str(key)) for key in list(content)[:3]) or "nothing"
        raise PansightError(
            where=path, expected="a dict of tensors by name", found=f"no tensor among its keys ({some})"
        )
    if all(name.startswith("module.") for name in tensors):  # saved from DistributedDataParallel
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def read_pickle(path: str | Path) -> Any:
    """Unpickle numpy arrays in dicts, lists, strings and numbers; any other type is a PansightError that names it."""
    try:
        with open(path, "rb") as file:
            return _resolve(_Unpickler(file, path).load())
    except PansightError:
        raise
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, UnicodeDecodeError …
        raise PansightError(
            where=path, expected="a pickle of numpy arrays", found=f"a damaged file ({_one_line(error)})"
        ) from error


def _read_any(path: Path) -> Any:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise PansightError("no such file", where=path, hint="expected a checkpoint", code="missing_file") from error
    except OSError as error:
        raise PansightError("cannot be read", where=path, reason=error.strerror or error, code="cannot_read") from error
    if not head:
        raise PansightError(where=path, expected="a checkpoint", found="an empty file (0 bytes)")
    if head[8:9] == b"{":  # 8 bytes of header length, then the JSON header
        try:
            return load_file(path)
        except SafetensorError as error:
            raise PansightError(
                where=path, expected="safetensors", found=f"a damaged file ({_one_line(error)})"
            ) from error
    if head[:4] == b"PK\x03\x04" or head.startswith(TORCH_LEGACY_MAGIC):
        return _read_torch(path)
    if head[:1] == b"\x80" or head[:1] in b"(}c":  # protocol 2 and later; 0 and 1, as Python 2 wrote them
        return read_pickle(path)
    raise PansightError(
        where=path,
        expected="a checkpoint (.safetensors, .pth, .pt, .pkl)",
        found=f"a file that begins with {head[:4]!r}",
    )


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, KeyError … on damaged files
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            found = f"the name {code[1]}, which could run code; save its state_dict() alone"
            raise PansightError(where=path, expected="tensors only", found=found) from error
        raise PansightError(
            where=path, expected="a torch checkpoint", found=f"a damaged file ({_one_line(error)})"
        ) from error


def _to_tensor(value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    # A copy, since torch wants writable memory and the arrays are views of the bytes that were read.
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160]


# The stand-ins. They are functions and instances with __setstate__, so that a pickle can only call them: it holds no
# class of ours whose attributes its BUILD instruction could replace.


class _Dtype:
    """A numpy dtype being unpickled: code such as "f4", then the byte order by __setstate__."""

    def __init__(self, code: str):
        if code not in NUMBERS and code != "b1":
            raise ValueError(f"arrays of dtype {code!r}; expected numbers")
        self.value = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]  # (version, byte order, subdtype, names, fields, size, alignment, flags)
        if order not in "<>=|":
            raise ValueError(f"byte order {order!r}")
        self.value = self.value.newbyteorder(order)


class _Array:
    """A numpy array being unpickled; its bytes come by __setstate__ and are checked against its shape."""

    value: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, is_fortran, data = state[-4:]  # (version,) shape, dtype, is_fortran, data
        self.value = _array_of_bytes(data, dtype, shape, "F" if is_fortran else "C")


def _array_of_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(data, str):  # bytes of Python 2, which encoding="latin1" has turned into a string
        data = data.encode("latin1")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)  # raises ValueError where sizes disagree


def _array(*_: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *_: Any) -> _Dtype:
    return _Dtype(str(code).lstrip("<>=|"))


def _scalar(dtype: Any, data: Any) -> Any:
    return _array_of_bytes(data, dtype, (), "C")[()]


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"encoding {encoding!r}")
    return text.encode("latin1")  # how Python 3 writes bytes in the protocols of Python 2


def _empty_bytes() -> bytes:
    return b""  # how Python 3 writes them in the protocols of Python 2: bytes()


def _ndarray(*_: Any) -> NoReturn:
    raise ValueError("numpy.ndarray called; expected it as an argument only")


ALLOWED: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _ndarray,
    "_codecs.encode": _encode,
    "__builtin__.bytes": _empty_bytes,
    **{f"numpy.{core}.multiarray._reconstruct": _array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array_of_bytes for core in ("core", "_core")},
}
"""Every name that a pickle may use."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: str | Path):
        super().__init__(file, fix_imports=True, encoding="latin1")
        self._path = path

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = f"{module_name}.{global_name}"
        if name not in ALLOWED:
            found = f"the name {name}, which could run code; save it as .pth or .safetensors"
            raise PansightError(where=self._path, expected="a pickle of numpy arrays", found=found)
        return ALLOWED[name]

    def persistent_load(self, pid: Any) -> NoReturn:
        raise ValueError("a reference to an object outside the file")


def _resolve(value: Any) -> Any:
    """Replace stand-ins by the arrays that they hold, inside dicts, lists and tuples."""
    if isinstance(value, _Array | _Dtype):
        return value.value
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolve(item) for item in value]
    return value
