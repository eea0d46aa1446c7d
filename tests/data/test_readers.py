"""Reading of cutout files: FITS files made by astropy, intact and broken, gzip, and a user's reader."""

import gzip
import io
import re

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.readers import READERS, read_cutout
from gampen_ray.errors import UserError

IMAGE = np.random.default_rng(0).normal(100, 10, size=(40, 50)).astype(np.float32)


def _fits(pixels: np.ndarray | None, header: fits.Header | None = None, **compression: object) -> bytes:
    buffer = io.BytesIO()
    if compression:
        hdus = [fits.PrimaryHDU(), fits.CompImageHDU(pixels, header, **compression)]
    else:
        hdus = [fits.PrimaryHDU(pixels, header)]
    fits.HDUList(hdus).writeto(buffer)
    return buffer.getvalue()


def _with_card(data: bytes, key: str, value: object) -> bytes:
    start = data.index(f"{key:<8}=".encode())
    return data[:start] + f"{key:<8}= {value!s:>20}".encode() + data[start + 30 :]


def _read(data: bytes, name: str = "a.fits", **fields: object) -> Cutout:
    return read_cutout(data, name, ReaderConfig(**fields))


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4", "u1", "u2"])
def test_every_pixel_type_becomes_native_float32(dtype: str) -> None:
    image = _read(_fits(IMAGE.astype(dtype))).image_CHW
    assert image.dtype == np.float32
    assert image.dtype.isnative
    np.testing.assert_array_equal(image[0], IMAGE.astype(dtype).astype(np.float32))


def test_scaled_integers() -> None:
    hdu = fits.PrimaryHDU(IMAGE.astype("f8"))
    hdu.scale("int16", bscale=0.01, bzero=100)
    buffer = io.BytesIO()
    hdu.writeto(buffer)
    np.testing.assert_allclose(_read(buffer.getvalue()).image_CHW[0], IMAGE, atol=0.0051)


def test_gzip_and_tile_compression() -> None:
    np.testing.assert_array_equal(_read(gzip.compress(_fits(IMAGE))).image_CHW[0], IMAGE)
    lossless = _fits(IMAGE, compression_type="GZIP_2", quantize_level=0)
    np.testing.assert_array_equal(_read(lossless).image_CHW[0], IMAGE)


def test_first_image_or_the_requested_one() -> None:
    buffer = io.BytesIO()
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])])
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(IMAGE), fits.ImageHDU(IMAGE + 1)]).writeto(buffer)
    data = buffer.getvalue()
    np.testing.assert_array_equal(_read(data).image_CHW[0], IMAGE)
    np.testing.assert_array_equal(_read(data, hdu=3).image_CHW[0], IMAGE + 1)
    for index, message in ((0, "HDU 0 holds no image"), (1, "HDU 1 holds no image"), (9, "no HDU 9: the file has 4")):
        with pytest.raises(CutoutError, match=message):
            _read(data, hdu=index)


def test_a_cube_is_bands_only_if_bands_are_requested() -> None:
    cube = np.stack([IMAGE, IMAGE + 1, IMAGE + 2])
    assert _read(_fits(cube), bands=("g", "r", "i")).image_CHW.shape == (3, 40, 50)
    assert _read(_fits(IMAGE[None, None])).image_CHW.shape == (1, 40, 50)
    with pytest.raises(CutoutError, match=r"3-dimensional with shape \(3, 40, 50\), not a two-dimensional image"):
        _read(_fits(cube))
    with pytest.raises(CutoutError, match=r"2-dimensional with shape \(40, 50\), not a cube of 3 bands"):
        _read(_fits(IMAGE), bands=("g", "r", "i"))


def test_position_is_that_of_the_centre() -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [25.5, 20.5]  # the centre of 50 x 40 pixels, counted from 1
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    cutout = _read(_fits(IMAGE, wcs.to_header()))
    assert (cutout.ra, cutout.dec) == (pytest.approx(150.0), pytest.approx(2.0))
    assert np.isnan(_read(_fits(IMAGE)).ra)


def test_non_standard_headers_and_missing_padding_are_harmless() -> None:
    header = fits.Header()
    header["FILTER"] = "r"
    data = _fits(IMAGE, header)
    broken = data.replace(b"FILTER  =", b"FILTER  :")
    np.testing.assert_array_equal(_read(broken).image_CHW[0], IMAGE)
    unpadded = data[: 2880 + IMAGE.nbytes]
    np.testing.assert_array_equal(_read(unpadded).image_CHW[0], IMAGE)


COMPRESSED = _fits(IMAGE, compression_type="RICE_1")
BROKEN = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "text": (b"<html>404 not found", r"not a file of a known format \(fits, numpy, picture\): it begins with b'<html>404"),
    "truncated pixels": (_fits(IMAGE)[:5000], "truncated: 8,000 bytes of pixels declared, 2,120 found"),
    "no pixels": (_fits(IMAGE)[:2880], "truncated: 8,000 bytes of pixels declared, 0 found"),
    "truncated header": (_fits(IMAGE)[:800], "damaged FITS file"),
    "truncated gzip": (gzip.compress(_fits(IMAGE))[:3000], "gzip file is truncated"),
    "damaged gzip": (b"\x1f\x8b" + b"x" * 50, "damaged gzip file"),
    "truncated compressed": (COMPRESSED[: len(COMPRESSED) - 3000], "truncated"),
    "no image": (_fits(None), "no HDU holds an image"),
    "one-dimensional": (_fits(IMAGE[0]), r"1-dimensional with shape \(50,\)"),
    "huge": (
        _with_card(_fits(IMAGE), "NAXIS1", 999_999_999),
        r"the image of shape \(40, 999999999\) has 152,587.9 MiB, more than 64",
    ),
    "huge compressed": (_with_card(COMPRESSED, "ZNAXIS1", 999_999_999), "more than 64 .reader.max_mebibytes"),
    "negative": (_with_card(_fits(IMAGE), "NAXIS1", -50), "damaged FITS file|no pixels"),
    "no such axis": (_with_card(_fits(IMAGE), "NAXIS", 900), "damaged FITS file"),
    # Without a check, astropy reads without end, or its decoder ends the process.
    "countless axes": (_with_card(_fits(IMAGE), "NAXIS", 999_999_999), "damaged FITS file: NAXIS is 999999999"),
    "HDUs in a circle": (_with_card(COMPRESSED, "PCOUNT", -8640), "PCOUNT is -8640"),
    "no pixel of bytes": (_with_card(COMPRESSED, "ZVAL2", -1), "the compressed image has BYTEPIX -1"),
    "blocks of nothing": (_with_card(COMPRESSED, "ZVAL1", 0), "the compressed image has BLOCKSIZE 0"),
    "tiles of nothing": (_with_card(COMPRESSED, "ZTILE1", 0), "the compressed image has ZTILE1 0"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_have_a_reason(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(CutoutError, match=reason):
        _read(data)


@pytest.mark.parametrize("source", ["plain", "compressed"])
def test_damaged_bytes_give_an_image_or_a_reason(source: str) -> None:
    rng = np.random.default_rng(1)
    whole = _fits(IMAGE) if source == "plain" else COMPRESSED
    for _ in range(100):
        data = bytearray(whole)
        for position in rng.integers(6, 6000, size=5):
            data[position] = rng.integers(32, 127)
        try:
            assert _read(bytes(data)).image_CHW.dtype == np.float32
        except CutoutError as error:
            assert "\n" not in str(error)


def test_values_beyond_float32_are_infinite() -> None:
    image = IMAGE.astype("f8")
    image[0, 0] = 1e300
    assert np.isinf(_read(_fits(image)).image_CHW[0, 0, 0])


@pytest.mark.parametrize("cut", [2880, 5000])
def test_all_members_of_a_gzip_file_are_read(cut: int) -> None:
    data = _fits(IMAGE)
    members = gzip.compress(data[:cut]) + gzip.compress(data[cut:])
    np.testing.assert_array_equal(_read(members, "a.fits.gz").image_CHW[0], IMAGE)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(_fits(IMAGE)) + b"garbage", "damaged gzip file"),
        (gzip.compress(_fits(IMAGE)) + gzip.compress(bytes(range(256)))[:-9], "the gzip file is truncated"),
        (gzip.compress(_fits(IMAGE)) + gzip.compress(b"more")[:4], "the gzip file is truncated"),
        (gzip.compress(_fits(IMAGE))[:-8] + bytes(8), "damaged gzip file: CRC check failed"),
    ],
)
def test_later_members_of_a_gzip_file_are_checked(data: bytes, reason: str) -> None:
    with pytest.raises(CutoutError, match=reason):
        _read(data, "a.fits.gz")


def test_all_members_together_are_bounded() -> None:
    member = gzip.compress(bytes(600 << 10))
    with pytest.raises(CutoutError, match=r"decompresses to more than 1 MiB \(reader.max_mebibytes\)"):
        _read(2 * member, "a.fits.gz", max_mebibytes=1)
    with pytest.raises(CutoutError, match=r"not a file of a known format .*: it begins with b'\\x00"):
        _read(member, "a.fits.gz")


class NpyReader:
    """A user's reader."""

    def reads(self, name: str, head: bytes) -> bool:
        return name.endswith(".npy") and head.startswith(b"\x93NUMPY")

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        return Cutout(np.load(io.BytesIO(data)).astype(np.float32))


@pytest.fixture
def with_npy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, "npy", NpyReader)


def _npy(image_CHW: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, image_CHW)
    return buffer.getvalue()


@pytest.mark.usefixtures("with_npy")
@pytest.mark.parametrize("asked", ["auto", "npy"])
def test_a_users_reader_is_chosen_by_content_or_by_name(asked: str) -> None:
    data, config = _npy(IMAGE[None]), ReaderConfig(format=asked)
    np.testing.assert_array_equal(read_cutout(data, "a.npy", config).image_CHW[0], IMAGE)
    np.testing.assert_array_equal(read_cutout(gzip.compress(data), "a.npy.gz", config).image_CHW[0], IMAGE)
    # No image of one band becomes one of two by broadcasting.
    for pixels, shape in ((IMAGE[None], "(1, 40, 50)"), (IMAGE, "(40, 50)")):
        reason = f"the NPY file's image has shape {shape}, not (bands, height, width) with 2 bands"
        with pytest.raises(CutoutError, match=re.escape(reason)):
            _read(_npy(pixels), "a.npy", format=asked, bands=("g", "r"))
    with pytest.raises(CutoutError, match="damaged NPY file: ValueError: "):
        _read(data[:-1], "a.npy", format=asked)


@pytest.mark.usefixtures("with_npy")
def test_a_file_of_unknown_or_unexpected_format_has_a_reason() -> None:
    np.testing.assert_array_equal(_read(_fits(IMAGE)).image_CHW[0], IMAGE)
    with pytest.raises(
        CutoutError, match=r"not a file of a known format \(npy, fits, numpy, picture\): it begins with b'hello'"
    ):
        _read(b"hello", "a.npy")
    with pytest.raises(CutoutError, match="not a NPY file: it begins with b'SIMPLE"):
        _read(_fits(IMAGE), "a.npy", format="npy")
    with pytest.raises(UserError, match=r"reader\.format: 'np' is unknown; did you mean 'npy'\?"):
        _read(_npy(IMAGE[None]), "a.npy", format="np")
