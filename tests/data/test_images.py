"""Reading image files: decoders, orientation, limits, and one line for every bad file."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from pansight.data import images
from pansight.data.images import decode_image, read_header, read_image, read_index_png, read_rgb_ids, write_png
from pansight.errors import PansightError


@pytest.fixture
def photo() -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    return np.stack([x * 7, y * 9, (x + y) * 4], -1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    memory = io.BytesIO()
    image.save(memory, kind, **options)
    return memory.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
def test_every_png_mode_becomes_what_pil_sees_as_rgb(tmp_path, photo, mode):
    image = Image.fromarray(photo)
    if mode == "LA":
        image = image.convert("L")
        image.putalpha(200)
    else:
        image = image.convert(mode)
    (tmp_path / "a.png").write_bytes(encode(image, "PNG"))
    expected = image.convert("L").convert("RGB") if mode == "LA" else image.convert("RGB")
    found = read_image(tmp_path / "a.png")
    assert found.flags.c_contiguous
    assert np.array_equal(found, np.asarray(expected))


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
    deep = np.array([[0, 255, 256, 65535]], np.uint16)
    write_png(tmp_path / "deep.png", deep)
    assert read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("BMP", "RGB"), ("WEBP", "RGB"), ("TIFF", "RGB")],
)
def test_other_formats_come_close_to_pil(tmp_path, photo, kind, mode):
    data = encode(Image.fromarray(photo).convert(mode), kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a").astype(int) - expected).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_images_as_pil_does(tmp_path, photo, kind, orientation):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(photo), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "a").write_bytes(data)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))).astype(int)
    found = read_image(tmp_path / "a")
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 3
    stored = read_image(tmp_path / "a", mask_size=(24, 32))
    assert stored.shape[:2] == (24, 32)


@pytest.mark.parametrize("layout", ["<", ">", "big"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_tiff_is_passed_over(tmp_path, photo, layout, mode, orientation):
    """Decoders turn a TIFF by themselves, whatever they are asked for; both byte orders and BigTIFF are read."""
    image = Image.fromarray(photo).convert("L") if mode == "I;16" else Image.fromarray(photo).convert(mode)
    pixels = np.asarray(image)
    pixels = pixels.astype(np.uint16) << 8 if mode == "I;16" else pixels
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=layout == "big", byteorder=layout.strip("big") or "<") as file:
        file.write(
            pixels, extratags=[(274, "H", 1, orientation, True)], photometric="rgb" if pixels.ndim == 3 else None
        )
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages.first.tags[274].value == orientation
    found = read_image(tmp_path / "a.tif")
    assert np.array_equal(found, np.asarray(image.convert("RGB")))
    assert np.array_equal(read_image(tmp_path / "a.tif", mask_size=(24, 32)), found)
    assert read_header((tmp_path / "a.tif").read_bytes(), "a").turned_size == (24, 32)


@pytest.mark.parametrize(
    "head", [b"II*\0\xff\xff\xff\xff", b"MM\0+\0\x08\0\0" + b"\xff" * 8, b"II+\0\x08\0\0\0" + b"\xff" * 8, b"MM"]
)
def test_tiffs_whose_directory_lies_outside_are_named(head):
    with pytest.raises(PansightError, match=r"a\.tif: expected"):
        decode_image(head + b"\1" * 40, "a.tif")
    assert images._as_stored(head + b"\1" * 40) == head + b"\1" * 40


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_truncated_images_are_named(tmp_path, photo, kind, share):
    data = encode(Image.fromarray(photo), kind)
    file = tmp_path / "cut.img"
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(PansightError, match=r"cut\.img: expected .*, found") as caught:
        read_image(file)
    assert "\n" not in str(caught.value)


def test_a_truncated_photo_with_a_whole_thumbnail_is_noticed(tmp_path, photo):
    data = encode(Image.fromarray(photo), "JPEG")
    block = b"Exif\0\0" + data  # whatever its content, it holds an end marker
    joined = data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:-20]
    (tmp_path / "a.jpg").write_bytes(joined)
    with pytest.raises(PansightError, match="truncated"):
        read_image(tmp_path / "a.jpg")


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"no image at all")
    for name, found in (("gone.png", "no such file"), ("empty.png", "empty file"), ("text.png", "another kind")):
        with pytest.raises(PansightError, match=found) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)


def test_a_bomb_is_refused_by_its_header(photo):
    data = bytearray(encode(Image.fromarray(photo), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(PansightError, match="at most 100 million pixels, found 60000×60000"):
        images.decode_image(bytes(data), "bomb.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_sizes_are_read(tmp_path, size):
    pixels = np.full((*size, 3), 7, np.uint8)
    write_png(tmp_path / "a.png", pixels)
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)
    assert read_header((tmp_path / "a.png").read_bytes(), "a").turned_size == size


def test_palette_indices_are_ids_not_colours(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    assert image.mode == "P"
    (tmp_path / "m.png").write_bytes(encode(image, "PNG"))
    assert read_index_png(tmp_path / "m.png").tolist() == [[0, 1, 2]]


def test_id_pngs_of_the_wrong_mode_are_refused(tmp_path, photo):
    write_png(tmp_path / "rgb.png", photo)
    write_png(tmp_path / "grey.png", photo[..., 0])
    with pytest.raises(PansightError, match="one channel of ids, found a 8-bit RGB PNG"):
        read_index_png(tmp_path / "rgb.png")
    with pytest.raises(PansightError, match="8-bit RGB PNG of segment ids, found 8-bit grey"):
        read_rgb_ids(tmp_path / "grey.png")


@pytest.mark.parametrize("stray", [b"\0\0\0", b"\x12", b"\xff\xff", b"ab\0\xff\x00c", b"\xff\xd0"])
def test_stray_bytes_between_the_markers_of_a_jpeg_are_passed_over(tmp_path, photo, stray):
    data = encode(Image.fromarray(photo), "JPEG")
    at = 4 + struct.unpack_from(">H", data, 4)[0]  # behind the first block
    (tmp_path / "a.jpg").write_bytes(data[:at] + stray + data[at:])
    (tmp_path / "b.jpg").write_bytes(data)
    assert read_header((tmp_path / "a.jpg").read_bytes(), "a").turned_size == (24, 32)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), read_image(tmp_path / "b.jpg"))


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"quality": 30, "subsampling": 2}, {"restart_marker_rows": 1}]
)
def test_jpegs_of_other_kinds_are_read_and_their_cut_is_seen(tmp_path, photo, options):
    data = encode(Image.fromarray(photo), "JPEG", **options)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - expected).max() <= 4
    images.check_whole(data, read_header(data, "a"), "a")
    for cut in (data[:-2], data[: len(data) * 2 // 3]):
        with pytest.raises(PansightError, match="a: expected a whole JPEG, found no end marker"):
            images.check_whole(cut, read_header(cut, "a"), "a")


@pytest.mark.parametrize(
    ("mode", "found"),
    [("F", r"32 bits \(floating point\)"), ("I", "32 bits"), ("I;16", None), ("1", None), ("L", None)],
)
def test_tiffs_of_any_depth_are_read_or_named_without_a_line_of_others(tmp_path, photo, capfd, mode, found):
    Image.fromarray(photo[..., 0].astype(np.int32)).convert(mode).save(tmp_path / "a.tif")
    if found is None:
        assert read_image(tmp_path / "a.tif").shape == (24, 32, 3)
    else:
        with pytest.raises(PansightError, match=rf"a\.tif: expected an image of 8 or 16 bits a channel, found {found}"):
            read_image(tmp_path / "a.tif")
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-300])
    with pytest.raises(PansightError, match=r"b\.tif: expected"):
        read_image(tmp_path / "b.tif")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_of_more_than_eight_bits_keep_their_upper_ones(bits, channels):
    """As cameras and medical scanners write them; those of 16 bits are packed without loss."""
    ramp = np.linspace(0, 2**bits - 1, 32 * 48).reshape(32, 48).astype(np.uint16)
    pixels = np.stack([ramp] * 3, -1) if channels == 3 else ramp
    data = imagecodecs.jpeg8_encode(np.ascontiguousarray(pixels), bitspersample=bits, lossless=bits == 16)
    found = decode_image(bytes(data), "a.jpg")
    assert found.shape == (32, 48, 3)
    assert np.abs(found.astype(int) - (ramp >> (bits - 8))[..., None]).max() <= 5


def test_a_jpeg_that_no_decoder_takes_is_named_for_what_it_is():
    target = io.BytesIO()
    Image.new("CMYK", (16, 16)).save(target, "JPEG")
    data = target.getvalue()
    at = data.index(b"\xff\xc0") + 4
    with pytest.raises(PansightError, match="found a JPEG of 12 bits and 4 channels"):
        decode_image(data[:at] + b"\x0c" + data[at + 1 :], "a.jpg")
