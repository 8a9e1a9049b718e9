"""The files of ``torch.save``: a pickle that refers to blocks of numbers, which lie beside it in a ZIP archive. Before
torch 1.6 they lay behind it.

The pickle is read as data (``weights.pickles``). A block is read only when a tensor that is wanted lies in it, and only
as far as the tensor's type and number of elements say.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import torch
from torch import Tensor

from pansight.errors import PansightError
from pansight.weights.pickles import Made, Name, Reference, load

MAGIC = 0x1950A86A20F9469CFC6C
"""The number that the first pickle of a file without an archive holds."""

UNPACKED_FREE, UNPACKED_RATIO = 2**26, 8
"""torch itself never compresses. Who did may unpack UNPACKED_FREE bytes, and UNPACKED_RATIO times the file's size."""

MAX_DIMENSIONS = 25

STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
    "QUInt4x2Storage": torch.uint8,
    "QUInt2x4Storage": torch.uint8,
}

PLAIN = {f"torch._utils.{name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
WRAPPED = {f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
SUBCLASS = "torch._tensor._rebuild_from_type_v2"
ODD = {"torch._utils._rebuild_qtensor": "quantised", "torch._utils._rebuild_sparse_tensor": "sparse"}
"""The function that would rebuild a tensor of a kind that no weights here have → the kind."""


class Blocks(Protocol):
    """Where the numbers lie."""

    def read(self, key: str, size: int) -> Tensor:
        """uint8 (size,): the first bytes of a block. Raises ValueError or LookupError where it is not there."""
        ...


class TorchFile(NamedTuple):
    """content: what was saved, with a `Made` in place of every tensor. blocks: where their numbers lie."""

    content: Any
    blocks: Blocks


def is_tensor(value: Any) -> bool:
    """Whether `value` stands for a tensor of torch, of whatever kind."""
    return isinstance(value, Made) and (value.name in PLAIN | WRAPPED | {SUBCLASS} or value.name in ODD)


def odd_kind(value: Any) -> str:
    """ "quantised" or "sparse" where `value` stands for such a tensor, else ""."""
    return ODD.get(value.name, "") if isinstance(value, Made) else ""


def tensor_of(value: Made, read: Callable[[Sequence[Any]], Tensor]) -> Tensor:
    """The tensor that `value` stands for, on the CPU.

    read: from the parts of a reference to the block, float or integer (elements,); see `reader`.
    Raises ValueError, TypeError or LookupError where the file is damaged, or the tensor is larger than its block.
    """
    for _ in range(4):  # a parameter of a subclass of a tensor, at most
        if value.name not in WRAPPED and value.name != SUBCLASS:
            break
        value = _inner(value)
    if value.name in ODD:
        raise ValueError(f"a {ODD[value.name]} tensor")
    reference, offset, size, strides = value.arguments[:4]
    if value.name not in PLAIN or not isinstance(reference, Reference):
        raise TypeError("a tensor of no block")
    block = read(reference.parts)
    if value.name.endswith("_v3"):  # bytes of a type that has no storage class of its own
        block = block.view(_type_of(value.arguments[6]))
    numbers = (offset, *size, *strides)
    if len(size) != len(strides) or len(size) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError("a tensor of an impossible shape")
    last = offset + sum((side - 1) * stride for side, stride in zip(size, strides, strict=True))
    count = math.prod(size)
    if count and (last >= len(block) or count > len(block)):
        raise ValueError(f"a tensor {list(size)} of {len(block)} numbers")
    return block.as_strided(size, strides, offset) if count else block.new_empty(size)


def _inner(value: Made) -> Made:
    """What a parameter wraps: its first argument; of ``_rebuild_from_type_v2`` (function, type, arguments, state)."""
    inner = value.arguments[0]
    if isinstance(inner, Name):
        inner = Made(inner.text, value.arguments[2])
    if not isinstance(inner, Made):
        raise TypeError("a parameter of no tensor")
    return inner


def _type_of(name: Any) -> torch.dtype:
    dtype = vars(torch).get(name.text.removeprefix("torch.")) if isinstance(name, Name) else None
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor of no known type")
    return dtype


def reader(blocks: Blocks) -> Callable[[Sequence[Any]], Tensor]:
    """From the parts of a reference, ("storage", class, key, device, elements, …), to the numbers; each block once."""
    known: dict[str, Tensor] = {}

    def read(parts: Sequence[Any]) -> Tensor:
        key, dtype, elements = block_of(parts)
        if key not in known:
            known[key] = blocks.read(key, elements * dtype.itemsize)
        return known[key].view(dtype)

    return read


def block_of(parts: Sequence[Any]) -> tuple[str, torch.dtype, int]:
    """(key, type, number of elements) of a reference. Raises ValueError or TypeError for one that is none of torch."""
    kind, storage, key, _, elements, *view = parts
    if kind != "storage" or not isinstance(storage, Name) or not isinstance(key, str) or type(elements) is not int:
        raise TypeError("a reference to an object outside the file")
    dtype = STORAGES.get(storage.text.rpartition(".")[2])
    if dtype is None:
        raise ValueError("a block of an unknown type")
    if elements < 0 or any(view):
        raise ValueError("a block of an impossible size")
    return key, dtype, elements


# --- archives --------------------------------------------------------------------------------------------------------


class _ArchiveBlocks:
    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self.archive, self.folder = archive, folder

    def read(self, key: str, size: int) -> Tensor:
        entry = self.archive.getinfo(f"{self.folder}/data/{key}")
        if size > entry.file_size:
            raise ValueError(f"{size} bytes of the {entry.file_size} of a block")
        block = torch.empty(size, dtype=torch.uint8)
        opened: Any = self.archive.open(entry)
        with opened as file:
            if size and file.readinto(block.numpy()) != size:
                raise ValueError("a block that ends early")
        return block


def open_archive(file: BinaryIO, path: Path) -> TorchFile:
    """What ``torch.save`` has written since version 1.6. `file` must stay open while blocks are read.

    Raises PansightError where the archive unpacks to far more than its size, or the pickle names code; what zipfile
    raises, ValueError, LookupError or TypeError where the file is damaged.
    """
    archive = zipfile.ZipFile(file)
    entries = archive.infolist()
    packed = path.stat().st_size
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > packed and unpacked > UNPACKED_FREE + UNPACKED_RATIO * packed:
        found = f"{unpacked / 2**20:.0f} MiB out of {packed / 2**20:.1f} MiB"
        raise PansightError(where=path, expected="a torch checkpoint, which is not compressed", found=found)
    pickled = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise ValueError("an archive without data.pkl")
    folder = pickled[0].filename.partition("/")[0]
    if f"{folder}/byteorder" in archive.namelist() and archive.read(f"{folder}/byteorder") != b"little":
        raise ValueError("numbers in the byte order of another kind of machine")
    with archive.open(pickled[0]) as member:
        content, _ = load(io.BytesIO(member.read()), path)
    return TorchFile(content, _ArchiveBlocks(archive, folder))


# --- files without an archive ----------------------------------------------------------------------------------------


class _TrailingBlocks:
    """Blocks behind the pickles: in the order of `places`, each with its number of elements before it."""

    def __init__(self, data: mmap.mmap, places: dict[str, tuple[int, int]]):
        self.data, self.places = data, places

    def read(self, key: str, size: int) -> Tensor:
        start, length = self.places[key]
        if size > length:
            raise ValueError(f"{size} bytes of the {length} of a block")
        if not size:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(bytearray(self.data[start : start + size]), dtype=torch.uint8)


def open_legacy(data: mmap.mmap, path: Path) -> TorchFile:
    """What ``torch.save`` wrote before version 1.6; `data` stands behind the first pickle, which held `MAGIC`.

    Raises as `open_archive` does.
    """
    version, _ = load(data, path)
    about, _ = load(data, path)
    if version != 1001 or not isinstance(about, dict) or about.get("little_endian") is not True:
        raise ValueError("another version, or numbers in the byte order of another kind of machine")
    content, references = load(data, path)
    keys, _ = load(data, path)
    sizes = {key: dtype.itemsize for key, dtype, _ in (block_of(reference.parts) for reference in references)}
    places: dict[str, tuple[int, int]] = {}
    place, end = data.tell(), len(data)
    for key in keys:
        if place + 8 > end:
            raise ValueError("a block that ends early")
        length = struct.unpack_from("<q", data, place)[0] * sizes[key]
        if not 0 <= length <= end - place - 8:
            raise ValueError("a block that ends early")
        places[key] = place + 8, length
        place += 8 + length
    return TorchFile(content, _TrailingBlocks(data, places))
