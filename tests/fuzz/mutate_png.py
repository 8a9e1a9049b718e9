"""PNGs chunk by chunk: headers that lie, streams that swell, chunks that lack; check sums are right unless said."""

from __future__ import annotations

import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIDES = (0, 1, 2, 7, 100, 9_999, 60_000, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
Chunks = list[tuple[bytes, bytes]]


def mutate_png(rng: np.random.Generator, data: bytes, other: bytes) -> tuple[str, bytes]:
    """One change. Raises ValueError where `data` is no PNG (any more)."""
    chunks = chunks_of(data)
    names = (
        "header",
        "header byte",
        "bomb",
        "pixels",
        "drop",
        "swap",
        "again",
        "extra",
        "crc",
        "length",
        "splice",
        "recode",
    )
    name = names[int(rng.integers(len(names)))]
    place = int(rng.integers(len(chunks)))
    kind = chunks[place][0]
    if name == "header":
        size = [int(n) for n in rng.choice(SIDES, 2)] if rng.random() < 0.7 else [8, 6]
        extra = [int(rng.choice([1, 2, 4, 8, 16, 3])), int(rng.choice([0, 2, 3, 4, 6, 1])), 0, 0, int(rng.integers(2))]
        extra = extra if rng.random() < 0.5 else list(chunks[0][1][8:])
        chunks[0] = b"IHDR", struct.pack(">II5B", *size, *extra)
    elif name == "header byte":
        header = bytearray(chunks[0][1])
        header[int(rng.integers(len(header)))] = int(rng.integers(256))
        chunks[0] = b"IHDR", bytes(header)
    elif name == "bomb":
        stream = zlib.compressobj(9)
        stream = stream.compress(bytes(int(rng.choice([10**4, 10**6, 10**7])))) + stream.flush()
        chunks = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
        chunks.insert(1, (b"IDAT", stream))
    elif name == "pixels":
        chunks = _with_pixels(rng, chunks)
    elif name == "drop":
        del chunks[place]
    elif name == "swap":
        chunks.insert(int(rng.integers(len(chunks))), chunks.pop(place))
    elif name == "again":
        chunks.insert(int(rng.integers(len(chunks) + 1)), chunks[place])
    elif name == "extra":
        chunks.insert(int(rng.integers(len(chunks) + 1)), _extra(rng))
    elif name == "splice":
        chunks[int(place > 0) :] = chunks_of(other)[int(place > 0) :]
    if name == "crc":
        return f"{name} of {kind!r}", join(chunks, broken=place)
    if name == "length":
        return f"{name} of {kind!r}", join(
            chunks, lengths={place: int(rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1]))}
        )
    if name == "recode":
        return _recoded(rng, chunks)
    return f"{name} at {kind!r}", join(chunks)


def chunks_of(data: bytes) -> Chunks:
    """(kind, content) of each chunk of a sound PNG."""
    if data[:8] != SIGNATURE:
        raise ValueError("no PNG")
    found: Chunks = []
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        found.append((kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not found or found[0][0] != b"IHDR" or len(found[0][1]) != 13:
        raise ValueError("no PNG")
    return found


def join(chunks: Chunks, broken: int = -1, lengths: dict[int, int] | None = None) -> bytes:
    """The file of these chunks. broken: the one with a wrong check sum. lengths: what chunks say instead."""
    parts = [SIGNATURE]
    for n, (kind, content) in enumerate(chunks):
        length = (lengths or {}).get(n, len(content))
        check = zlib.crc32(kind + content) ^ (n == broken)
        parts.append(struct.pack(">I", length) + kind + content + struct.pack(">I", check))
    return b"".join(parts)


def png_of(height: int, width: int, stream: bytes, bits: int = 8, kind: int = 2, more: Chunks | None = None) -> bytes:
    """A PNG with this header and this zlib stream. kind: 0 grey, 2 RGB, 3 palette, 4 and 6 with alpha."""
    header = struct.pack(">II5B", width, height, bits, kind, 0, 0, 0)
    return join([(b"IHDR", header), *(more or []), (b"IDAT", stream), (b"IEND", b"")])


def _pixels(chunks: Chunks) -> bytes:
    """The filtered bytes, as far as they can be unpacked."""
    inflate = zlib.decompressobj()
    try:
        return inflate.decompress(b"".join(content for kind, content in chunks if kind == b"IDAT"), 10**6)
    except zlib.error:
        return bytes(100)


def _with_pixels(rng: np.random.Generator, chunks: Chunks) -> Chunks:
    """Other values, other row filters, too many or too few bytes, in one chunk or many."""
    raw = bytearray(_pixels(chunks))
    for _ in range(int(rng.integers(1, 20)) if raw else 0):
        raw[int(rng.integers(len(raw)))] = int(rng.choice([0, 1, 4, 5, 255, int(rng.integers(256))]))
    end = len(raw) + int(rng.choice([0, 0, 0, -1, 1, -len(raw) // 2]))
    stream = zlib.compress(bytes(raw[:end]) + bytes(max(0, end - len(raw))))
    first = next((n for n, chunk in enumerate(chunks) if chunk[0] == b"IDAT"), len(chunks))
    rest = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    step = int(rng.choice([1, 5, len(stream)]))
    return [*rest[:first], *((b"IDAT", stream[n : n + step]) for n in range(0, len(stream), step)), *rest[first:]]


def _extra(rng: np.random.Generator) -> tuple[bytes, bytes]:
    swollen = zlib.compress(bytes(10**6), 9)
    extras = [
        (b"acTL", struct.pack(">II", int(rng.choice([0, 1, 2**32 - 1])), 0)),
        (b"fcTL", bytes(26)),
        (b"fdAT", bytes(4) + swollen),
        (b"zTXt", b"name\0\0" + swollen),
        (b"iTXt", b"name\0\1\0\0\0" + swollen),
        (b"iCCP", b"name\0\0" + swollen),
        (b"tEXt", b"k\0" + bytes(1000)),
        (b"PLTE", bytes(int(rng.choice([0, 1, 3, 300, 768, 771])))),
        (b"tRNS", bytes(int(rng.choice([0, 1, 2, 6, 256])))),
        (b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([int(rng.integers(12)), 0, 0, 0])),
        (b"eXIf", b"MM\0*\xff\xff\xff\xff\xff\xff"),
        (b"IEND", b""),
        (b"ABCD", bytes(10)),
        (b"abcd", bytes(10)),
    ]
    return extras[int(rng.integers(len(extras)))]


def _recoded(rng: np.random.Generator, chunks: Chunks) -> tuple[str, bytes]:
    """A sound PNG of the same size, or one pixel more, of another kind."""
    width, height = struct.unpack_from(">II", chunks[0][1])
    if not 0 < height * width < 10_000:
        raise ValueError("no small PNG")
    height += int(rng.choice([0, 0, 0, 1]))
    bits, kind = [(8, 0), (16, 0), (1, 0), (4, 0), (8, 2), (16, 2), (8, 3), (2, 3), (8, 4), (8, 6), (16, 6)][
        int(rng.integers(11))
    ]
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    row = -(-width * bits * samples // 8)
    most = int(rng.choice([1, 4, 256]))
    raw = b"".join(bytes(1) + rng.integers(0, most, row, np.uint8).tobytes() for _ in range(height))
    more = [(b"PLTE", bytes(range(240)))] if kind == 3 and rng.random() < 0.8 else []
    return f"recoded as {bits} bits of kind {kind}", png_of(height, width, zlib.compress(raw), bits, kind, more)
