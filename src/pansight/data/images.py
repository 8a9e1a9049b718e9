"""Read image files as arrays: with a size limit, with their orientation, and as fast as the decoders allow.

JPEG and PNG go through imagecodecs (libjpeg-turbo, libspng; measured 1.3 and 1.5 times as fast as OpenCV), everything
else through OpenCV. What comes out is always RGB uint8 (H, W, 3): grey is repeated, an alpha channel is dropped, a
palette is looked up, 16 bits keep their upper 8 (the full range is assumed, as libpng and OpenCV do).

Orientation. A camera's EXIF tag says how to turn the stored pixels; viewers and annotation tools do. So do we, unless
the truth disagrees: `read_image(..., mask_size=...)` leaves the stored pixels alone where their size fits the
annotation and the turned size does not (sets such as COCO are annotated on the stored pixels of some photos). The
orientation tag of TIFF files is ignored, since microscopes and scanners store the pixels as they are meant.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pansight.data.kinds import an_animation, several_frames, what_else
from pansight.errors import PansightError
from pansight.files import open_plain, read_plain, replacing
from pansight.ops.idmap import IdArray
from pansight.ops.maps.label_png import MAX_PIXELS, decode_ids, decode_index, open_label_png

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB, PNG_PALETTE = 0, 2, 3

MAX_DEFLATE = 1032
"""Deflate expands one byte to at most so many bytes (RFC 1951: 258 bytes from two bits)."""


END = 2**16
"""Bytes at either end of a large image file that are read to see whether it is whole."""

CHECKED = 2**20
"""A PNG of at most so many bytes is read to its end, and its checksums are compared."""


class Header(NamedTuple):
    """The header of an image file, read before any pixel is decoded."""

    kind: str  # "jpeg", "png" or "other"
    height: int  # as stored, before any turn
    width: int
    orientation: int  # EXIF 1 … 8; 1 = as stored
    channels: int  # as stored; 0 where unknown
    png_color: int = -1  # colour type of a PNG
    bits: int = 8
    frame_at: int = 0  # position of a JPEG's frame header: thumbnails come before it

    @property
    def turned_size(self) -> tuple[int, int]:
        """(H, W) after the EXIF turn."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def read_bytes(path: str | Path) -> bytes:
    """Raises PansightError where the file is missing, empty or unreadable."""
    try:
        data = read_plain(path)
    except FileNotFoundError as error:
        raise PansightError(where=path, expected="an image file", found="no such file", code="missing_file") from error
    except OSError as error:
        raise PansightError(where=path, expected="a readable image file", reason=error.strerror or error) from error
    if not data:
        raise PansightError(where=path, expected="an image", found="an empty file")
    return data


def read_header(data: bytes, name: str | Path) -> Header:
    """The header of an encoded image. Raises PansightError where it is damaged or promises more than MAX_PIXELS."""
    try:
        if data[:2] == b"\xff\xd8":
            header = _jpeg_header(data)
        elif data[:8] == PNG_SIGNATURE:
            header = _png_header(data, name)
        else:
            header = _other_header(data, name)
    except (struct.error, IndexError, ValueError) as error:  # of a JPEG also: no marker is left
        raise PansightError(where=name, expected="an image", found="a truncated header") from error
    if header.height < 1 or header.width < 1:
        raise PansightError(where=name, expected="an image of at least 1×1", found=f"{header.height}×{header.width}")
    if header.height * header.width > MAX_PIXELS:
        found = f"{header.height}×{header.width}"
        raise PansightError(where=name, expected=f"at most {MAX_PIXELS // 10**6} million pixels", found=found)
    return header


def _jpeg_header(data: bytes) -> Header:
    """Walk the markers up to the frame header (ITU T.81, B.1); on the way the EXIF block may give an orientation.

    Stray bytes between two markers are passed over, as decoders do.
    """
    position, orientation = 2, 1
    while True:
        position = data.index(b"\xff", position)
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in (0x00, 0x01, 0xD8) or 0xD0 <= marker <= 0xD7:  # these stand alone, without a length
            position += 2
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            return Header("jpeg", height, width, orientation, channels, bits=bits, frame_at=position)
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length


def _png_header(data: bytes, name: str | Path) -> Header:
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    orientation, position = 1, 8
    while position + 8 <= len(data):  # chunks before the pixels: eXIf may be among them
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IDAT":
            break
        if kind == b"acTL" and (frames := struct.unpack_from(">I", data, position + 8)[0]) > 1:
            raise PansightError(where=name, expected="one still image", found=an_animation("PNG", frames))
        if kind == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return Header("png", height, width, orientation, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(color, 0), color, bits)


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of an EXIF block; 1 where there is none or the block is damaged."""
    entry = _orientation_entry(tiff)
    if entry is None:
        return 1
    value = struct.unpack_from(entry.order + "H", tiff, entry.at + entry.size - entry.room)[0]
    return value if 1 <= value <= 8 else 1


class _TiffEntry(NamedTuple):
    """An entry of a TIFF directory: tag and type (two bytes each), count and value (`room` bytes each)."""

    at: int  # position of its first byte
    order: str  # of the bytes, as struct has it
    room: int  # 4, or 8 in a BigTIFF

    @property
    def size(self) -> int:
        return 4 + 2 * self.room


def _orientation_entry(tiff: bytes) -> _TiffEntry | None:
    """Where the first directory of a TIFF or BigTIFF tells the orientation; None where it does not or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return None
    try:
        is_big = struct.unpack_from(order + "H", tiff, 2)[0] == 43
        directory = struct.unpack_from(order + ("Q" if is_big else "I"), tiff, 8 if is_big else 4)[0]
        count = struct.unpack_from(order + ("Q" if is_big else "H"), tiff, directory)[0]
        entry = _TiffEntry(directory + (8 if is_big else 2), order, 8 if is_big else 4)
        for _ in range(count):  # struct.error ends it where the count is damaged
            if struct.unpack_from(order + "H", tiff, entry.at)[0] == 0x0112:
                return entry if entry.at + entry.size <= len(tiff) else None
            entry = entry._replace(at=entry.at + entry.size)
    except (struct.error, OverflowError):
        return None
    return None


def _as_stored(data: bytes) -> bytes:
    """The same TIFF, which says that its pixels stand as they are meant; other data unchanged.

    OpenCV turns the pixels of a TIFF as its tag says, whichever flags it is given.
    """
    entry = _orientation_entry(data)
    if entry is None:
        return data
    short, once, upright = 3, 1, 1
    kind = entry.order + ("HHIHxx" if entry.room == 4 else "HHQHxxxxxx")
    return data[: entry.at] + struct.pack(kind, 0x0112, short, once, upright) + data[entry.at + entry.size :]


def _other_header(data: bytes, name: str | Path) -> Header:
    try:
        with open_pillow(data) as image:
            frames = several_frames(image)
            if frames:
                raise PansightError(where=name, expected="one still image", found=frames)
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # as stored: PIL has turned its width and height
                tags = image.tag_v2
                return Header("other", int(tags[257]), int(tags[256]), 1, 0, bits=_tiff_bits(tags))
            return Header("other", image.height, image.width, int(image.getexif().get(0x0112, 1)), 0)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        known = what_else(data)
        found = str(error)
        if isinstance(error, UnidentifiedImageError) or known:
            found = known or f"{len(data)} bytes of another kind"
        raise PansightError(where=name, expected="an image", found=found) from error


def _tiff_bits(tags: Any) -> int:
    """Bits of a sample; negative where the samples are floating-point numbers (TIFF 6, tags 258 and 339)."""
    bits, kinds = (
        [number for number in (value if isinstance(value, tuple) else (value,)) if isinstance(number, int)]
        for value in (tags.get(258, 1), tags.get(339, 1))
    )
    return max(bits, default=1) * (-1 if 3 in kinds else 1)


@contextmanager
def open_pillow(data: bytes) -> Iterator[Image.Image]:
    """An image without a line of Pillow's own: it warns below our limit of size, and of damage that we name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        with Image.open(io.BytesIO(data)) as image:
            yield image


def read_image(path: str | Path, mask_size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """An image file as RGB uint8 (H, W, 3), turned upright (see the head of this file).

    mask_size: (H, W) of the annotation, where there is one. Raises PansightError, naming the file, where it is missing,
    truncated, no image, too large, or of another size than its annotation.
    """
    return decode_image(read_bytes(path), path, mask_size)


def decode_image(data: bytes, name: str | Path, mask_size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """As read_image, from the bytes of a file; `name` is for error messages."""
    header = read_header(data, name)
    return _turn(_decode_rgb(data, header, name), _fitting_turn(header, name, mask_size))


def _fitting_turn(header: Header, name: str | Path, mask_size: tuple[int, int] | None) -> int:
    """The EXIF orientation by which the pixels are to be turned, so that they fit the annotation where there is one."""
    if mask_size is None or mask_size == header.turned_size:
        return header.orientation
    if mask_size != (header.height, header.width):
        expected, (height, width) = f"{mask_size[0]}×{mask_size[1]} (its annotation)", header.turned_size
        raise PansightError(where=name, expected=f"an image of {expected}", found=f"{height}×{width} (height × width)")
    return 1


def check_stored(path: str | Path, mask_size: tuple[int, int] | None = None) -> Header:
    """The header of an image file that can be read, as far as this is told without decoding its pixels.

    Of a JPEG and of a large PNG only both ends are read. Raises PansightError as `read_image` does, but for pixels that
    are damaged within such a file: of a JPEG the decoder makes something all the same.
    """
    ends = _both_ends(path)
    return check_content(ends, lambda: read_bytes(path), Path(path).stat().st_size, path, mask_size)


def check_content(
    ends: bytes, read: Callable[[], bytes], size: int, name: str | Path, mask_size: tuple[int, int] | None = None
) -> Header:
    """As `check_stored`, of an image that lies within another file. ends: its first and its last END bytes. read: gives
    all of its `size` bytes, where these do not suffice."""
    try:
        header = _whole_header(ends, name)
    except PansightError:  # the header may be longer than what was read
        header = _whole_header(read(), name)
    if header.kind == "png" and size <= CHECKED:
        _check_png_sums(read(), name)
    _fitting_turn(header, name, mask_size)
    return header


def _check_png_sums(data: bytes, name: str | Path) -> None:
    """Raises PansightError where a chunk of a PNG that decoders need has other bytes than were written."""
    position, end, content = len(PNG_SIGNATURE), len(data), memoryview(data)
    while position + 12 <= end:
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = content[position + 4 : position + 8 + length]
        if position + 12 + length > end:
            break
        is_needed = not kind[0] & 0x20  # an upper-case first letter
        if is_needed and zlib.crc32(chunk) != struct.unpack_from(">I", data, position + 8 + length)[0]:
            raise PansightError(where=name, expected="a whole PNG", found="bytes that are not those that were written")
        if kind == b"IEND":
            return
        position += 12 + length
    raise PansightError(where=name, expected="a whole PNG", found="no end chunk (truncated)")


def _whole_header(data: bytes, name: str | Path) -> Header:
    header = read_header(data, name)
    if header.kind == "png" and (data.rfind(b"IEND") < 0 or data.find(b"IDAT") < 0):
        raise PansightError(where=name, expected="a whole PNG", found="no end chunk (truncated)")
    if header.kind == "jpeg":
        check_whole(data, header, name)
    return header


def _both_ends(path: str | Path) -> bytes:
    """The first and the last END bytes of a JPEG or PNG; all of another file, and of a small one."""
    try:
        with open_plain(path) as file:
            head = file.read(END)
            if len(head) == END and head.startswith((b"\xff\xd8", PNG_SIGNATURE)):
                file.seek(max(END, file.seek(0, 2) - END))
            return head + file.read()
    except OSError:
        return read_bytes(path)  # which says what is wrong


def _decode_rgb(data: bytes, header: Header, name: str | Path) -> NDArray[Any]:
    check_whole(data, header, name)
    if header.kind == "other" and not 0 < header.bits <= 16:
        found = f"{abs(header.bits)} bits" + (" (floating point)" if header.bits < 0 else "")
        raise PansightError(where=name, expected="an image of 8 or 16 bits a channel", found=found)
    image: NDArray[Any] | None
    try:
        if header.kind == "jpeg" and header.channels in (1, 3):
            image = imagecodecs.jpeg8_decode(data)
        elif header.kind == "png":
            image = imagecodecs.png_decode(data)
        else:
            image = _decode_with_opencv(data)
    except (RuntimeError, ValueError, cv2.error) as error:
        raise PansightError(where=name, expected="a whole image", reason=_one_line(error)) from error
    if image is None:
        found = "one that cannot be decoded"
        if header.kind == "jpeg" and header.bits != 8:
            found = f"a JPEG of {header.bits} bits and {header.channels} channels, which is not read: save it with 8"
        raise PansightError(where=name, expected="a whole image", found=found)
    if image.dtype == np.uint16:
        image = (image >> (header.bits - 8 if 8 < header.bits <= 16 else 8)).astype(np.uint8)
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 2:  # grey and alpha
        return cv2.cvtColor(np.ascontiguousarray(image[..., 0]), cv2.COLOR_GRAY2RGB)
    return image if image.shape[2] == 3 else cv2.cvtColor(image, cv2.COLOR_RGBA2RGB)


def _decode_with_opencv(data: bytes) -> NDArray[Any] | None:
    """RGB (H, W, 3) or None. OpenCV's own lines about damaged files stay off the terminal: the caller has its own."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return cast(Any, cv2.imdecode(np.frombuffer(_as_stored(data), np.uint8), flags))
    finally:
        cv2.utils.logging.setLogLevel(level)


def check_whole(data: bytes, header: Header, name: str | Path) -> None:
    """Raises PansightError where a JPEG or PNG is cut off, which is seen without decoding it.

    A decoder of JPEG fills the missing part with grey and says nothing.
    """
    if header.kind == "jpeg" and data.rfind(b"\xff\xd9") < header.frame_at:
        raise PansightError(where=name, expected="a whole JPEG", found="no end marker (truncated)")
    if header.kind == "png":
        check_png(data, header, name)


def check_png(data: bytes, header: Header, name: str | Path) -> None:
    """To be called before decoding. Raises PansightError where a PNG is cut off, or the length of its packed pixels
    cannot be that of its size: with too few it is a bomb of memory, with too many one of time.
    """
    if data.rfind(b"IEND") < 0:
        raise PansightError(where=name, expected="a whole PNG", found="no end chunk (truncated)")
    packed, position = 0, 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        packed += length if kind == b"IDAT" else 0
        position += 12 + length
    size = header.height * (header.width * header.channels * header.bits // 8)  # without the rows' filters
    if size > MAX_DEFLATE * packed + 4096 or packed > 2 * (size + header.height) + 2**16:
        expected = f"a whole PNG of {header.height}×{header.width}"
        raise PansightError(where=name, expected=expected, found=f"{packed} bytes of packed pixels")


def _turn(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation (TIFF 6, tag 274)."""
    if orientation == 1:
        return image
    if orientation >= 5:
        image = cv2.transpose(image)
    # 2 and 6 mirror left-right, 4 and 8 top-bottom, 3 and 7 both, 5 is the transpose alone
    code = {2: 1, 6: 1, 3: -1, 7: -1, 4: 0, 8: 0}.get(orientation)
    return image if code is None else cv2.flip(image, code)


def read_rgb_ids(path: str | Path) -> IdArray:
    """An RGB-coded id PNG (COCO panoptic) as int32 (H, W). Raises PansightError for anything but an 8-bit RGB PNG."""
    return decode_ids_png(read_bytes(path), path)


def decode_ids_png(data: bytes, name: str | Path) -> IdArray:
    """As `read_rgb_ids`, from the bytes of a file; `name` is for error messages."""
    return decode_ids(open_label_png(data, str(name)))


def read_index_png(path: str | Path) -> IdArray:
    """A PNG whose pixel values are numbers of objects or classes, as int32 (H, W).

    These are the raw samples of 1 to 16 bits grey, or the indices of a palette, not its colours. Transparency is passed
    over; red, green and blue that are equal in every pixel are one grey. Raises PansightError for other files.
    """
    data = read_bytes(path)
    header = read_header(data, path)
    if header.kind != "png":
        raise PansightError(
            where=path,
            expected="a PNG with one channel of ids",
            found={"jpeg": "a JPEG"}.get(header.kind, "another format"),
        )
    check_png(data, header, path)
    return decode_index(data, str(path))


def write_png(path: str | Path, image: NDArray[np.uint8] | NDArray[np.uint16], level: int = 3) -> None:
    """Grey (H, W) or RGB (H, W, 3), whole or not at all. Raises PansightError where the file cannot be written."""
    with replacing(path) as temporary:
        temporary.write_bytes(encode_png(image, level))


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16], level: int = 3) -> bytes:
    """The PNG file of grey (H, W) or RGB (H, W, 3)."""
    # a copy where a side is 1: NumPy calls it contiguous whatever its strides, the encoder does not
    whole = image.copy() if 1 in image.shape else np.ascontiguousarray(image)
    return bytes(imagecodecs.png_encode(whole, level=level))


def write_picture(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """RGB uint8 (H, W, 3) as the kind of file that the suffix says, a PNG where there is none; whole or not at all.

    Raises PansightError for a suffix of another kind, and where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() in ("", ".png"):
        write_png(path, picture)
        return
    if path.suffix.lower() not in (".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"):
        raise PansightError(where=path, expected="a name of a PNG, JPEG, WebP, BMP or TIFF", found=path.suffix)
    with replacing(path) as temporary, temporary.open("wb") as file:
        kind = Image.registered_extensions()[path.suffix.lower()]
        Image.fromarray(picture).save(file, format=kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {}))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
