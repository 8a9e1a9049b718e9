"""What a file is that was taken for a photo and is none that can be read: said by its first bytes."""

from __future__ import annotations

from PIL import Image, TiffImagePlugin

FULL_SIZE, REDUCED = 254, 1
"""The TIFF tag NewSubfileType, and its bit for a smaller copy of another page, as microscopes store them (TIFF 6)."""

_STARTS = (
    (b"%PDF", "a PDF: export its pages as images"),
    (b"FUJIFILMCCD-RAW", "a raw photo: develop it to JPEG or TIFF"),
    (b"II*\0\x10\0\0\0CR", "a raw photo: develop it to JPEG or TIFF"),
    (b"\x1aE\xdf\xa3", "a video: save its frames as images"),
    (b"RIFF????AVI ", "a video: save its frames as images"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"Rar!", "an archive: unpack it"),
    (b"7z\xbc\xaf", "an archive: unpack it"),
    (b"\0\x05\x16\x07", "what macOS keeps beside a file, not the file"),
    (b"8BPS", "a Photoshop document: export it as PNG"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000: convert it to PNG"),
    (b"\xff\x0a", "JPEG XL: convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL ", "JPEG XL: convert it to JPEG or PNG"),
    (b"\x89HDF", "an HDF5 file: save its arrays as images"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file itself"),
)
"""First bytes, ? for any, and what they mean."""

_BRANDS = (
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "an HEIC photo: convert it to JPEG"),
    ((b"avif", b"avis"), "an AVIF image: convert it to JPEG or PNG"),
    ((b"crx ",), "a raw photo: develop it to JPEG or TIFF"),
    ((b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"3gp4", b"3gp5"), "a video: save its frames"),
)
"""Brands of ISO media files (ISO/IEC 14496-12, ftyp), and what they mean."""


def what_else(data: bytes) -> str:
    """What the bytes of a file are, with what to do, where it is a known kind that is not read here; else ""."""
    if data[4:8] == b"ftyp":
        for brands, meaning in _BRANDS:
            if data[8:12] in brands:
                return meaning
        return "a media file that is no still image"
    for start, meaning in _STARTS:
        if len(data) >= len(start) and all(a == b or b == ord("?") for a, b in zip(data, start, strict=False)):
            return meaning
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG drawing: save it as PNG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, which a download leaves where the file was not given"
    return ""


def several_frames(image: Image.Image) -> str:
    """How many frames or pages an opened image has, with what to do, where it is more than one; else ""."""
    frames = int(getattr(image, "n_frames", 1))
    if frames < 2:
        return ""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        pages = _full_pages(image, frames)
        return f"a TIFF of {pages} pages: save the page that is meant as a file of its own" if pages > 1 else ""
    return an_animation(f"{image.format}", frames)


def an_animation(kind: str, frames: int) -> str:
    return f"an animation ({kind}) of {frames} frames: save the frame that is meant"


def _full_pages(image: TiffImagePlugin.TiffImageFile, frames: int) -> int:
    """Pages that are not smaller copies of another; the image stands at the first page before and after."""
    pages = 0
    try:
        for frame in range(min(frames, 1000)):
            image.seek(frame)
            pages += not (int(image.tag_v2.get(FULL_SIZE, 0)) & REDUCED)
    finally:
        image.seek(0)
    return pages
