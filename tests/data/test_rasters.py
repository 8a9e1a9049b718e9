"""Rasters are read by windows, whichever package reads them, and what cannot be read is one line."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from pansight.data.formats import rasters
from pansight.data.formats.rasters import Colours, Stretch, colours_of, open_raster
from pansight.data.formats.rasters.arrays import ArrayRaster, open_tiff
from pansight.data.formats.rasters.gdal import GdalRaster
from pansight.data.formats.rasters.writing import write_map
from pansight.data.images import write_png
from pansight.errors import PansightError

sys.path.insert(0, str(Path(__file__).parents[1] / "apps"))
from huge_scenes import write_tiff

HEIGHT, WIDTH = 90, 130
WINDOW = (17, 40, 50, 70)
"""top, left, height, width."""
UTM = (0.5, 0.0, 400000.0, 0.0, -0.5, 5800000.0)


def noise(bands: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    """(H, W, bands), values 1 … 200."""
    return np.random.default_rng(seed).integers(1, 200, (HEIGHT, WIDTH, bands)).astype(dtype)


def window(image: np.ndarray) -> np.ndarray:
    top, left, height, width = WINDOW
    return image[top : top + height, left : left + width]


READERS = {"gdal": GdalRaster, "tifffile": open_tiff}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("options", [{}, {"interleave": "band"}, {"tiled": False}, {"compress": "deflate"}])
def test_geotiff(reader: str, options: dict, tmp_path) -> None:
    image = noise(4, np.uint16)
    path = write_tiff(tmp_path / "a.tif", image, photometric="minisblack", **options)
    with READERS[reader](path) as raster:
        assert (raster.size, raster.bands, raster.dtype, raster.alpha) == ((HEIGHT, WIDTH), 4, np.uint16, 0)
        assert raster.place.transform == UTM
        assert [tag[0] for tag in raster.place.tags] == [33550, 33922, 34735, 34737]
        pixels, valid = raster.read(*WINDOW, (4, 1))
        assert np.array_equal(pixels, window(image)[..., [3, 0]])
        assert valid.all()
        pixels, valid = raster.sample((2,), 30)
        assert pixels.shape[2] == 1
        assert pixels[..., 0].shape == valid.shape
        assert pixels.size <= (HEIGHT + 30) * WIDTH
        assert set(pixels.ravel()) <= set(image[..., 1].ravel())


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["alpha", "nodata", "nan"])
def test_pixels_without_a_value(reader: str, kind: str, tmp_path) -> None:
    """Where all bands hold nodata; where a pixel is wholly transparent."""
    image = noise(3, np.float32 if kind == "nan" else np.uint8)
    empty = np.zeros((HEIGHT, WIDTH), bool)
    empty[:, 60:80] = True
    image[0, 0, 0] = 0
    if kind == "alpha":
        image = np.concatenate([image, np.where(empty, 0, 128).astype(np.uint8)[..., None]], 2)
        path = write_tiff(tmp_path / "a.tif", image, photometric="rgb", alpha="yes")
    else:
        value = np.nan if kind == "nan" else 0
        image[empty] = value
        path = write_tiff(tmp_path / "a.tif", image, nodata=value)
    with READERS[reader](path) as raster:
        assert raster.alpha == (4 if kind == "alpha" else 0)
        _, valid = raster.read(0, 0, HEIGHT, WIDTH, (1, 2, 3))
        assert np.array_equal(valid, ~empty)


def test_ome_tiff_and_pyramids(tmp_path) -> None:
    """Channels before rows; of a pyramid the largest level."""
    image = noise(3)
    tifffile.imwrite(
        tmp_path / "a.ome.tif", image.transpose(2, 0, 1), metadata={"axes": "CYX"}, photometric="minisblack"
    )
    with tifffile.TiffWriter(tmp_path / "b.ome.tif") as writer:
        writer.write(image, subifds=1, tile=(64, 64), photometric="rgb", metadata={"axes": "YXS"})
        writer.write(image[::2, ::2], subfiletype=1, tile=(32, 32), photometric="rgb")
    for name in ("a.ome.tif", "b.ome.tif"):
        with open_raster(tmp_path / name) as raster:
            assert isinstance(raster, ArrayRaster)
            assert (raster.size, raster.bands) == ((HEIGHT, WIDTH), 3)
            assert np.array_equal(raster.read(*WINDOW, (1, 2, 3))[0], window(image))
    tifffile.imwrite(tmp_path / "c.ome.tif", np.stack([image[..., 0]] * 5), metadata={"axes": "ZYX"})
    with pytest.raises(
        PansightError, match="expected one image with axes y, x and bands, found Z of 5, Y of 90, X of 130"
    ):
        open_raster(tmp_path / "c.ome.tif")


def test_zarr_arrays_and_ome_zarr(tmp_path) -> None:
    image = noise(3)
    zarr.save_array(str(tmp_path / "last.zarr"), image)
    zarr.save_array(str(tmp_path / "first.zarr"), np.ascontiguousarray(image.transpose(2, 0, 1)))
    group = zarr.open_group(str(tmp_path / "ome.zarr"), mode="w")
    group.create_array("0", data=np.ascontiguousarray(image.transpose(2, 0, 1))[None])
    group.create_array("1", data=np.ascontiguousarray(image[::2, ::2].transpose(2, 0, 1))[None])
    axes = [{"name": name} for name in "tcyx"]
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]}
    for name in ("last", "first", "ome"):
        with open_raster(tmp_path / f"{name}.zarr") as raster:
            assert (raster.size, raster.bands) == ((HEIGHT, WIDTH), 3), name
            assert np.array_equal(raster.read(*WINDOW, (3, 2, 1))[0], window(image)[..., ::-1]), name
    (tmp_path / "folder").mkdir()
    with pytest.raises(PansightError, match="folder: expected a Zarr array, found none"):
        open_raster(tmp_path / "folder")
    zarr.open_group(str(tmp_path / "two.zarr"), mode="w").create_array("a", data=image)
    zarr.open_group(str(tmp_path / "two.zarr")).create_array("b", data=image)
    with pytest.raises(PansightError, match="expected one Zarr array, found 2: a, b; name one of them"):
        open_raster(tmp_path / "two.zarr")
    with open_raster(tmp_path / "two.zarr" / "b") as raster:
        assert raster.bands == 3


def test_photos_are_decoded_whole(tmp_path) -> None:
    image = noise(3)
    write_png(tmp_path / "a.png", image)
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[5] = 0
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with open_raster(tmp_path / name) as raster:
            assert (raster.size, raster.bands, raster.place) == ((HEIGHT, WIDTH), 3, None)
            assert np.array_equal(raster.read(*WINDOW, (1, 2, 3))[0], window(image))
            _, valid = raster.read(0, 0, HEIGHT, WIDTH, (1, 2, 3))
            assert valid.all() == (name == "a.png")
            assert np.flatnonzero(~valid.all(1)).tolist() == ([] if name == "a.png" else [5])


# --- colours ---------------------------------------------------------------------------------------------------------


def test_three_bands_are_taken_as_they_are_and_one_is_grey(tmp_path) -> None:
    image = noise(3)
    with open_raster(write_tiff(tmp_path / "rgb.tif", image)) as raster:
        assert colours_of(raster) == Colours((1, 2, 3))
        rgb, valid = colours_of(raster, (3, 1, 2)).read(raster, *WINDOW)
        assert np.array_equal(rgb, window(image)[..., [2, 0, 1]])
        assert valid.all()
    with open_raster(write_tiff(tmp_path / "grey.tif", image[..., 0])) as raster:
        rgb, _ = colours_of(raster).read(raster, *WINDOW)
        assert np.array_equal(rgb, window(image)[..., [0, 0, 0]])


def test_values_are_stretched(tmp_path) -> None:
    """0 becomes 0, 3000 becomes 255, halfway 128; what lies beyond is cut."""
    image = noise(3, np.float32)
    image[0, :5] = np.array([0, 1500, 3000, -5, 9000])[:, None]
    image[1, 0, 1] = np.nan
    with open_raster(write_tiff(tmp_path / "a.tif", image)) as raster:
        colours = colours_of(raster, stretch=Stretch.parsed("0:3000"))
        rgb, valid = colours.read(raster, 0, 0, 2, 5)
        assert rgb[0, :, 0].tolist() == [0, 128, 255, 0, 255]
        assert rgb.dtype == np.uint8
        assert valid[1].tolist() == [False, True, True, True, True]
        assert rgb[1, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("side", [1024, 40])
def test_percentiles_leave_out_nodata(reader: str, side: int, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pansight.data.formats.rasters.colours.SAMPLE", side)
    image = np.linspace(1000, 2000, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).astype(np.uint16)
    image[:, ::10] = 0
    with READERS[reader](write_tiff(tmp_path / "a.tif", image, nodata=0)) as raster:
        ((low, high),) = colours_of(raster, stretch=Stretch.parsed("2,98")).limits
        assert low == pytest.approx(1020, abs=15)
        assert high == pytest.approx(1980, abs=15)


@pytest.mark.parametrize("text", ["2", "98,2", "-1,50", "0,101", "5:5", "a,b", "1,2,3", "nan:3", ""])
def test_impossible_stretches(text: str) -> None:
    with pytest.raises(
        PansightError, match="--stretch: expected two percentiles such as 2,98, or two values such as 0:3000"
    ):
        Stretch.parsed(text)


@pytest.mark.parametrize(
    ("bands", "dtype", "hint"),
    [
        (4, np.uint8, "found 4 of uint8; name three of them, red first: --bands 4,3,2$"),
        (8, np.uint16, "found 8 of uint16; name three of them, red first: --bands 4,3,2 --stretch 2,98$"),
        (3, np.uint16, "found 3 of uint16; scale them to 0 … 255 by percentiles, --stretch 2,98, or by values"),
        (3, np.float32, "found 3 of float32; scale them"),
    ],
)
def test_bands_and_types_that_a_model_does_not_know(bands: int, dtype: type, hint: str, tmp_path) -> None:
    with (
        open_raster(write_tiff(tmp_path / "a.tif", noise(bands, dtype), photometric="minisblack")) as raster,
        pytest.raises(PansightError, match=f"a.tif: expected 3 bands of uint8, {hint}"),
    ):
        colours_of(raster)


def test_bands_that_there_are_not(tmp_path) -> None:
    with open_raster(write_tiff(tmp_path / "a.tif", noise(3))) as raster:
        for bands in ((0, 1, 2), (1, 2), (2, 3, 4)):
            with pytest.raises(PansightError, match="--bands: expected one or three bands, each 1 … 3, found"):
                colours_of(raster, bands)


# --- files that are damaged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_truncated_tiff(reader: str, at_once: bool, tmp_path, monkeypatch) -> None:
    """Told when it is opened; without tifffile to compare lengths, when the pixels that are missing are read."""
    path = write_tiff(tmp_path / "a.tif", noise(3), compress="deflate")
    path.write_bytes(path.read_bytes()[:-5000])
    if at_once:
        with pytest.raises(
            PansightError, match=r"a\.tif: expected a whole TIFF, found [\d,]+ bytes too few \(truncated\)"
        ):
            READERS[reader](path)
        return
    monkeypatch.setattr("pansight.data.formats.rasters.gdal.check_whole_tiff", lambda path: None)
    monkeypatch.setattr("pansight.data.formats.rasters.arrays.check_whole_tiff", lambda path: None)
    with (
        READERS[reader](path) as raster,
        pytest.raises(PansightError, match=r"a\.tif: expected a whole image, found: ."),
    ):
        raster.read(0, 0, HEIGHT, WIDTH, (1, 2, 3))


@pytest.mark.parametrize("name", ["a.tif", "b.jp2", "c.ome.tif"])
def test_no_image_at_all(name: str, tmp_path) -> None:
    (tmp_path / name).write_bytes(b"no image " * 100)
    with pytest.raises(PansightError, match=f"{name}: expected a"):
        open_raster(tmp_path / name)
    with pytest.raises(PansightError, match="expected an image, found no such file"):
        open_raster(tmp_path / "none.tif")


def test_packages_that_are_missing(tmp_path, monkeypatch) -> None:
    """TIFF is read without rasterio; anything else names the extra."""
    image = noise(3)
    path = write_tiff(tmp_path / "a.tif", image)
    (tmp_path / "b.jp2").write_bytes(b"x")
    monkeypatch.setattr(rasters, "is_installed", lambda package: False)
    with open_raster(path) as raster:
        assert isinstance(raster, ArrayRaster)
        assert np.array_equal(raster.read(*WINDOW, (1, 2, 3))[0], window(image))
    message = r"b\.jp2: expected rasterio to be installed, found none; install the extra pansight\[huge\]"
    with pytest.raises(PansightError, match=message):
        open_raster(tmp_path / "b.jp2")


@pytest.mark.parametrize("reader", READERS)
def test_a_table_of_colours_is_no_grey(reader: str, tmp_path) -> None:
    colours = np.arange(3 * 256, dtype=np.uint16).reshape(3, 256)
    tifffile.imwrite(tmp_path / "a.tif", noise(1)[..., 0], photometric="palette", colormap=colours)
    with pytest.raises(
        PansightError, match=r"a\.tif: expected bands of colours, found a table of colours; .*-expand rgb"
    ):
        READERS[reader](tmp_path / "a.tif")


def test_a_photo_too_large_to_be_decoded_whole(tmp_path, monkeypatch) -> None:
    write_png(tmp_path / "a.png", noise(3))
    monkeypatch.setattr("pansight.data.formats.rasters.photo.MAX_PIXELS", HEIGHT * WIDTH - 1)
    with pytest.raises(PansightError, match="found 130×90; convert it to a tiled TIFF, which is read by windows"):
        open_raster(tmp_path / "a.png")


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tif", "zarr"])
@pytest.mark.parametrize("size", [(1, 1), (512, 512), (700, 1030)])
def test_maps_are_written_from_parts_of_any_height(kind: str, size: tuple[int, int], tmp_path) -> None:
    ids = np.random.default_rng(0).integers(0, 2**32, size, np.uint32)
    cuts = [0, *sorted({min(n, size[0]) for n in (1, 300, 301, 690)}), size[0]]
    parts = (ids[a:b] for a, b in pairwise(cuts) if b > a)
    target = tmp_path / f"map.{kind}"
    write_map(target, parts, size, 0, None, zarr=kind == "zarr")
    found = tifffile.imread(target) if kind == "tif" else zarr.open(str(target), mode="r")[:]
    assert np.array_equal(found, ids)


def test_large_tiffs_are_bigtiffs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("pansight.data.formats.rasters.writing.BIG", 4 * 30 * 40)
    for height in (29, 30):
        write_map(tmp_path / "map.tif", iter([np.ones((height, 40), np.uint32)]), (height, 40), 0, None, zarr=False)
        with tifffile.TiffFile(tmp_path / "map.tif") as file:
            assert file.is_bigtiff == (height == 30)
