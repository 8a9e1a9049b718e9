"""Id PNGs read by compiled code: the same numbers as an ordinary decoder, and one line for every kind of damage."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pngs import chunk, filtered, header, interlaced_png, packed_png, png, rgb_of, structured_ids

from pansight.errors import PansightError
from pansight.ops.fast.kernels import png as png_kernels
from pansight.ops.maps.label_png import (
    MAX_PIXELS,
    SIGNATURE,
    PairCounter,
    decode_ids,
    decode_index,
    ids_by_decoder,
    open_label_png,
)
from pansight.ops.maps.overlap import overlaps_of

FILTERS = {"none": 0, "sub": 1, "up": 2, "average": 3, "paeth": 4}


def decoded(data: bytes) -> np.ndarray:
    return decode_ids(open_label_png(data, "a.png"))


def counted(counter: PairCounter, first: bytes, second: bytes) -> list[list[int]]:
    return [v.tolist() for v in counter.count(open_label_png(first, "a.png"), open_label_png(second, "b.png"))]


def expected(first: np.ndarray, second: np.ndarray) -> list[list[int]]:
    """The pairs by np.unique, pixel by pixel."""
    keys, pixels = np.unique(first.astype(np.int64) << 24 | second, return_counts=True)
    return [(keys >> 24).tolist(), (keys & 0xFFFFFF).tolist(), pixels.tolist()]


def random_ids(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 2**24, (height, width)).astype(np.int32)


def test_the_encoder_of_the_tests_writes_what_others_read():
    rng = np.random.default_rng(0)
    for filters in (*([f] for f in range(5)), [4, 3, 2, 1, 0]):
        for channels in (3, 4):
            pixels = rng.integers(0, 256, (9, 13, channels)).astype(np.uint8)
            for data in (png(pixels, filters), interlaced_png(pixels, filters), png(pixels, filters, 3, empty=True)):
                assert (imagecodecs.png_decode(data) == pixels).all()
                assert (np.array(Image.open(io.BytesIO(data))) == pixels).all()


@pytest.mark.parametrize("kind", FILTERS)
def test_every_filter_on_every_width(kind):
    rng = np.random.default_rng(FILTERS[kind])
    counter = PairCounter()
    for width in range(1, 71):
        height = int(rng.integers(1, 7))
        first, second = structured_ids(rng, height, width), random_ids(rng, height, width)
        packed = [png(rgb_of(ids), [FILTERS[kind]]) for ids in (first, second)]
        assert (decoded(packed[0]) == first).all()
        assert (decoded(packed[1]) == second).all()
        assert counted(counter, *packed) == expected(first, second)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 20),
    width=st.integers(1, 40),
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    alpha=st.sampled_from([None, "opaque", "random"]),
    parts=st.integers(1, 4),
    empty=st.booleans(),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
)
def test_mixed_filters(seed, height, width, filters, alpha, parts, empty, noise):
    """One counter sees images of all sizes one after the other: what it keeps must not show."""
    rng = np.random.default_rng(seed)
    first, second = structured_ids(rng, height, width), structured_ids(rng, height, width)
    first = np.where(rng.random(first.shape) < noise, random_ids(rng, height, width), first)
    a = {None: None, "opaque": np.full(first.shape, 255), "random": rng.integers(0, 256, first.shape)}[alpha]
    packed = png(rgb_of(first, a), filters, parts, empty), png(rgb_of(second), filters[::-1])
    assert (decoded(packed[0]) == first).all()
    assert counted(COUNTER, *packed) == expected(first, second)
    assert counted(COUNTER, *packed[::-1]) == expected(second, first)


COUNTER = PairCounter()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), height=st.integers(1, 6), width=st.integers(1, 30), channels=st.sampled_from([3, 4]))
def test_any_bytes_with_any_filters_are_some_image(data, height, width, channels):
    """Rows no encoder would write, long stretches of zeros among them: as Pillow reads them."""
    stride = width * channels + 1
    raw = bytearray(data.draw(st.binary(min_size=height * stride, max_size=height * stride)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    for y in range(height):
        row = np.frombuffer(raw[y * stride : (y + 1) * stride], np.uint8).copy()
        row[rng.random(stride) < rng.choice([0, 0.5, 0.95, 1])] = 0
        row[0] = rng.integers(0, 5)
        raw[y * stride : (y + 1) * stride] = row.tobytes()
    packed = packed_png(header(height, width, kind=2 if channels == 3 else 6), bytes(raw))
    rgb = np.array(Image.open(io.BytesIO(packed)))[..., :3].astype(np.int32)
    ids = rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16
    assert (decoded(packed) == ids).all()
    assert counted(COUNTER, packed, packed) == expected(ids, ids)


def test_rows_that_do_not_change_are_counted():
    """Filter Up with nothing but zeros: in the first row (void), in the middle and at the end."""
    ids = np.zeros((12, 9), np.int32)
    ids[3:9, 2:7] = 70_000
    other = np.zeros_like(ids)
    other[5:, :4] = 3
    for filters in ([2], [4], [2, 4]):
        packed = png(rgb_of(ids), filters), png(rgb_of(other), filters)
        assert counted(PairCounter(), *packed) == expected(ids, other)


def test_interlaced_goes_through_the_ordinary_decoder():
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (3, 2), (9, 17)):
        first, second = structured_ids(rng, height, width), structured_ids(rng, height, width)
        a, b = interlaced_png(rgb_of(first), [4]), interlaced_png(rgb_of(second, np.full(second.shape, 9)), [2])
        assert (decoded(a) == first).all()
        assert (decoded(b) == second).all()
        assert counted(PairCounter(), a, b) == expected(first, second)
        assert counted(PairCounter(), a, png(rgb_of(second), [1])) == expected(first, second)
        assert counted(PairCounter(), png(rgb_of(first), [1]), b) == expected(first, second)


@pytest.mark.parametrize("extra", [-1, 0, 1, 4000])
def test_more_pairs_than_the_table_holds(extra):
    """An image without segments, each pixel an id of its own; afterwards the counter is as good as new."""
    n = png_kernels.MOST_PAIRS + extra
    ids = np.zeros((4, n // 4 + 1), np.int32)
    ids.flat[:n] = np.random.default_rng(0).permutation(n) + 1
    ids.flat[n:] = 1
    zeros = np.zeros_like(ids)
    counter = PairCounter()
    packed = png(rgb_of(ids), [1]), png(rgb_of(zeros), [2])
    assert counted(counter, *packed) == expected(ids, zeros)
    assert counted(counter, packed[1], packed[1]) == [[0], [0], [ids.size]]
    assert counted(counter, *packed[::-1]) == expected(zeros, ids)


def test_equals_overlaps_of():
    rng = np.random.default_rng(2)
    first, second = structured_ids(rng, 40, 60, 40), structured_ids(rng, 40, 60, 40)
    found = PairCounter().count(*(open_label_png(png(rgb_of(i), [2, 4]), "") for i in (first, second)))
    for a, b in zip(found, overlaps_of(first, second)):
        assert a.dtype == b.dtype == np.int64
        assert (a == b).all()


# --- errors ----------------------------------------------------------------------------------------------------------


def read_all(data: bytes) -> None:
    """Both ways of reading; each must give the same verdict."""
    other = png(rgb_of(np.zeros((5, 7), np.int32)))
    decode_ids(open_label_png(data, "a.png"))
    PairCounter().count(open_label_png(other, "b.png"), open_label_png(data, "a.png"))


def refused(data: bytes) -> str:
    """The error, of both ways of reading, in one line."""
    with pytest.raises(PansightError) as caught:
        decode_ids(open_label_png(data, "a.png"))
    with pytest.raises(PansightError):
        PairCounter().count(open_label_png(data, "a.png"), open_label_png(data, "a.png"))
    message = str(caught.value)
    assert "\n" not in message
    assert "a.png" in message
    assert "expected" in message
    assert "found" in message
    return message


SMALL = np.arange(35, dtype=np.int32).reshape(5, 7) * 4_001


@pytest.mark.parametrize(
    "data", [png(rgb_of(SMALL), [4, 2], 2), interlaced_png(rgb_of(SMALL), [1])], ids=["plain", "interlaced"]
)
def test_truncated_at_every_byte(data):
    read_all(data)
    for length in range(len(data) - 4):  # the last four: the checksum of IEND
        refused(data[:length])


def test_a_damaged_byte_is_an_error_or_no_damage():
    """Each byte of the file changed: the right numbers come out (checksums of chunks are not read), or an error."""
    data = png(rgb_of(SMALL), [4, 2, 1, 3, 0])
    survivors = 0
    for at in range(len(data)):
        for change in (1, 128, 255):
            damaged = bytearray(data)
            damaged[at] ^= change
            try:
                found = decoded(bytes(damaged))
            except PansightError:
                continue
            survivors += 1
            assert found.shape != SMALL.shape or (found == SMALL).all()
    assert survivors


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"\xff\xd8\xff\xe0 a photo", "a JPEG"),
        (b"GIF89a", "another format"),
        (SIGNATURE, "no header"),
        (SIGNATURE + chunk(b"CgBI", bytes(4)) + header(5, 7)[8:], "no header"),
        (header(5, 7), "truncated"),
        (header(5, 7, bits=16), "16-bit RGB"),
        (header(5, 7, bits=16, kind=6), "16-bit RGB with alpha"),
        (header(5, 7, bits=8, kind=0), "8-bit grey"),
        (header(5, 7, bits=16, kind=0), "16-bit grey"),
        (header(5, 7, bits=8, kind=3), "8-bit palette"),
        (header(5, 7, bits=4, kind=3), "4-bit palette"),
        (header(5, 7, bits=8, kind=4), "8-bit grey with alpha"),
        (header(5, 7, bits=8, kind=5), "8-bit pixels of an unknown kind"),
        (header(0, 7), "0×7"),
        (header(5, 0), "5×0"),
        (header(2**32 - 1, 2**32 - 1), "4294967295×4294967295"),
        (header(MAX_PIXELS + 1, 1), f"{MAX_PIXELS + 1}×1"),
        (header(5, 7) + chunk(b"IEND", b""), "no pixels"),
        (header(5, 7) + chunk(b"IDAT", b"") + chunk(b"IEND", b""), "no pixels"),
        (header(5, 7) + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""), "damaged pixels"),
        (packed_png(header(5, 7), filtered(rgb_of(SMALL), [5])), "unknown row filter"),
        (packed_png(header(5, 7), filtered(rgb_of(SMALL), [0, 0, 0, 0, 255])), "unknown row filter"),
        (packed_png(header(5, 7), filtered(rgb_of(SMALL), [0])[:-1]), "109"),
        (packed_png(header(5, 7), b""), "found 0"),
        (packed_png(header(5, 7), filtered(rgb_of(SMALL), [0]) + b"\0"), "damaged pixels"),
        (packed_png(header(5, 7), bytes(10**7)), "damaged pixels"),
        (packed_png(header(5, 7, interlaced=1), bytes(50)), "damaged pixels (interlaced)"),
        (packed_png(header(5, 7, interlaced=7), bytes(110)), "damaged pixels (interlaced)"),
        (header(5, 7) + struct.pack(">I", 2**32 - 1) + b"IDAT" + zlib.compress(bytes(200)), "truncated"),
    ],
)  # fmt: skip
def test_what_is_no_id_png(data, found):
    assert found in refused(data)


def test_a_bomb_is_refused_by_its_header(monkeypatch):
    """Nothing is inflated and no memory taken before the size is known."""
    bomb = packed_png(header(20_000, 20_000), bytes(1000))
    monkeypatch.setattr(imagecodecs, "deflate_decode", lambda *_, **__: pytest.fail("inflated"))
    with pytest.raises(PansightError, match=r"100 million pixels, found 20000×20000"):
        open_label_png(bomb, "bomb.png")


def test_sizes_that_differ():
    a, b = (
        open_label_png(png(rgb_of(np.zeros(size, np.int32))), name) for size, name in (((2, 3), "a"), ((3, 2), "b"))
    )
    with pytest.raises(PansightError, match=r"b: expected the size 2×3 of a, found 3×2 \(height × width\)"):
        PairCounter().count(a, b)


def test_the_counter_survives_an_error():
    rng = np.random.default_rng(3)
    ids = structured_ids(rng, 5, 7)
    good, bad = png(rgb_of(ids), [4]), packed_png(header(5, 7), filtered(rgb_of(SMALL), [0, 1, 2, 9]))
    counter = PairCounter()
    for pair in ((bad, good), (good, bad), (good, png(rgb_of(SMALL))[:-60] + chunk(b"IEND", b""))):
        with pytest.raises(PansightError):
            counted(counter, *pair)
        assert counted(counter, good, good) == expected(ids, ids)


# --- one channel whose values are the numbers -------------------------------------------------------------------------


def packed_rows(values: np.ndarray, bits: int) -> bytes:
    """Rows of samples of 1 to 16 bits as they stand in a PNG before they are deflated, each behind filter 0."""
    rows = b""
    for row in values.tolist():
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + bytes(int(text[n : n + 8], 2) for n in range(0, len(text), 8))
    return rows


def one_channel(values: np.ndarray, bits: int, kind: int = 0, *chunks: bytes) -> bytes:
    pixels = chunk(b"IDAT", zlib.compress(packed_rows(values, bits)))
    return header(*values.shape, bits=bits, kind=kind) + b"".join(chunks) + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("transparent", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [*((0, bits) for bits in (1, 2, 4, 8, 16)), *((3, b) for b in (1, 2, 4, 8))])
def test_samples_and_indices_are_raw(kind, bits, transparent):
    values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7))
    extra = [chunk(b"PLTE", bytes(n % 256 for n in range(3 * 2**bits)))] if kind == 3 else []
    if transparent:
        extra.append(chunk(b"tRNS", b"\0\1" if kind == 0 else b"\0" * 2**bits))
    found = decode_index(one_channel(values, bits, kind, *extra), "a.png")
    assert found.dtype == np.int32
    assert found.tolist() == values.tolist()


@pytest.mark.parametrize(("mode", "channels"), [("LA", 2), ("RGB", 3), ("RGBA", 4)])
@pytest.mark.parametrize("bits", [8, 16])
def test_equal_colours_are_one_grey_and_alpha_is_passed_over(mode, channels, bits):
    values = np.random.default_rng(1).integers(0, 2**bits, (4, 6))
    layers = [values] * (channels - (channels in (2, 4)))
    if channels in (2, 4):
        layers.append(np.random.default_rng(2).integers(0, 2**bits, values.shape))
    samples = np.stack(layers, 2).reshape(4, -1)  # (H, W, C) → (H, W·C)
    data = header(4, 6, bits=bits, kind={2: 4, 3: 2, 4: 6}[channels])
    data += chunk(b"IDAT", zlib.compress(packed_rows(samples, bits))) + chunk(b"IEND", b"")
    assert decode_index(data, mode).tolist() == values.tolist()
    if channels > 2:
        samples[0, 0] ^= 1
        data = header(4, 6, bits=bits, kind={3: 2, 4: 6}[channels])
        data += chunk(b"IDAT", zlib.compress(packed_rows(samples, bits))) + chunk(b"IEND", b"")
        with pytest.raises(
            PansightError, match=f"{mode}: expected a PNG with one channel of ids, found a {bits}-bit RGB"
        ):
            decode_index(data, mode)


def test_a_damaged_index_png_is_one_line():
    whole = one_channel(np.arange(35).reshape(5, 7), 8)
    for data in (whole[:60], whole[:50] + b"\0" * 9 + whole[59:], whole[:20]):
        with pytest.raises(PansightError, match=r"a\.png: expected a whole PNG, found damaged pixels"):
            decode_index(data, "a.png")


@pytest.mark.parametrize("plain", [False, True])
def test_transparency_of_an_rgb_id_png_is_passed_over(plain):
    ids = np.array([[0, 1, 70_000], [5, 5, 0]])
    data = png(rgb_of(ids))
    at = data.index(b"IDAT") - 4
    marked = data[:at] + chunk(b"tRNS", b"\0\1\0\0\0\0") + data[at:]
    opened = open_label_png(marked, "a.png")
    assert (ids_by_decoder(opened) if plain else decode_ids(opened)).tolist() == ids.tolist()
