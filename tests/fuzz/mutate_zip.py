"""ZIPs that a careful tool must refuse, and odd ones that it may read."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile

import numpy as np

NAMES = (
    "../evil.txt", "../../evil.txt", "/evil.txt", "//evil", "C:/evil.txt", "a\\..\\..\\evil", "a/../../evil", "./a",
    "a//b", "..", ".", "", "/", "a\0b", "\u202etxt", "a" * 300, "é/ü.png", "con", "a:b", "x/" * 600 + "y", " ",
    "~/evil", "$HOME/evil",
)  # fmt: skip


def pack(files: dict[str, bytes], prefix: str = "") -> bytes:
    """A sound ZIP."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return stream.getvalue()


def mutate_zip(rng: np.random.Generator, files: dict[str, bytes]) -> tuple[str, bytes]:
    """A ZIP of these files with one thing wrong or odd."""
    makers = (_names, _links, _flags, _central, _cut, _nested, _twice, _methods, _bomb, _prefixed, _bytes)
    maker = makers[int(rng.integers(len(makers)))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # zipfile's, about names that are there twice
        return maker.__name__[1:], maker(rng, files)


def _with(files: dict[str, bytes], *entries: tuple[zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO(pack(files))
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return stream.getvalue()


def _names(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    entry = zipfile.ZipInfo("x")
    entry.filename = NAMES[int(rng.integers(len(NAMES)))]  # the constructor cuts at a zero
    return _with(files, (entry, b"evil"))


def _links(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """A link (or a device) and a file written through it."""
    kind = int(rng.choice([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK]))
    name = ("link", next(iter(files)))[int(rng.integers(2))]
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    rest = {key: data for key, data in files.items() if key != name}
    return _with(rest, (entry, b"../../elsewhere"), (zipfile.ZipInfo(f"{name}/evil.txt"), b"evil"))


def _flags(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """Encrypted, or other flags, in both records of an entry or one."""
    data = bytearray(pack(files))
    mask = int(rng.choice([1, 0x40, 0x41, 0x800, 0x2000, 0x20, 8]))
    for mark, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        if rng.random() < 0.7:
            place = data.find(mark)
            data[place + at : place + at + 2] = struct.pack("<H", mask)
    return bytes(data)


def _central(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """Other sizes, offsets and counts in the central directory and at the end."""
    data = bytearray(pack(files))
    central, end = data.find(b"PK\1\2"), data.rfind(b"PK\5\6")
    places = [central + n for n in (16, 20, 24, 42)] + [end + n for n in (8, 12, 16)] + [central + 28]
    place = places[int(rng.integers(len(places)))]
    data[place : place + 4] = struct.pack("<I", int(rng.choice([0, 1, 1000, 2**31, 2**32 - 2, 2**32 - 1])))
    return bytes(data)


def _cut(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    data = pack(files)
    return data[: int(rng.integers(len(data)))]


def _nested(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    inner = pack(files)
    for _ in range(int(rng.integers(1, 4))):
        inner = pack({"in.zip": inner})
    return inner if rng.random() < 0.5 else pack({**files, "in.zip": inner})


def _twice(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """The same name twice; or a file where another has a folder; or names that differ in case alone."""
    name = list(files)[int(rng.integers(len(files)))]
    again = (name, name.upper(), f"{name}/x", name.split("/")[0], f"{name}/", f"./{name}")[int(rng.integers(6))]
    return _with(files, (zipfile.ZipInfo(again), b"again"))


def _methods(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """Packed by another method than it says."""
    data = bytearray(pack(files))
    method = struct.pack("<H", int(rng.choice([0, 1, 9, 12, 14, 93, 99])))
    for mark, at in ((b"PK\1\2", 10), (b"PK\3\4", 8)):
        place = data.find(mark)
        data[place + at : place + at + 2] = method
    return bytes(data)


def _bomb(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """An entry that states gigabytes, or less than it holds."""
    data = bytearray(_with(files, (zipfile.ZipInfo("swollen.png"), b"")))
    data = bytearray(pack({**files, "swollen.png": bytes(10**6)})) if rng.random() < 0.5 else data
    place = data.rfind(b"PK\1\2")
    stated = int(rng.choice([0, 10, 2**30, 2**32 - 2]))
    data[place + 24 : place + 28] = struct.pack("<I", stated)
    return bytes(data)


def _prefixed(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    """Bytes before and after (both legal), a folder around, other kinds of entries beside."""
    around = pack(files, ("", "export/", "a/b/c/")[int(rng.integers(3))])
    before = b"#!/bin/sh\n" * int(rng.integers(2))
    return before + around + bytes(int(rng.choice([0, 1, 70_000])))


def _bytes(rng: np.random.Generator, files: dict[str, bytes]) -> bytes:
    data = bytearray(pack(files))
    for _ in range(int(rng.integers(1, 8))):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)
