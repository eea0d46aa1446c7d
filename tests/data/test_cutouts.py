"""FITS to cutout: real files made by astropy, whole and broken."""

import gzip
import io

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from gampen_ray.config import ReaderConfig
from gampen_ray.data import readers
from gampen_ray.data.cutouts import Cutout, CutoutError, fit_to_size, stem

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


def read_cutout(data: bytes, **fields: object) -> Cutout:
    return readers.read_cutout(data, "a.fits", ReaderConfig(**fields))


# --- what can be read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f4", "f8", "i2", "i4", "u1", "u2"])
def test_every_pixel_type_becomes_native_float32(dtype: str) -> None:
    image = read_cutout(_fits(IMAGE.astype(dtype))).image_CHW
    assert image.dtype == np.float32
    assert image.dtype.isnative
    np.testing.assert_array_equal(image[0], IMAGE.astype(dtype).astype(np.float32))


def test_scaled_integers() -> None:
    hdu = fits.PrimaryHDU(IMAGE.astype("f8"))
    hdu.scale("int16", bscale=0.01, bzero=100)
    buffer = io.BytesIO()
    hdu.writeto(buffer)
    np.testing.assert_allclose(read_cutout(buffer.getvalue()).image_CHW[0], IMAGE, atol=0.0051)


def test_gzip_and_tile_compression() -> None:
    np.testing.assert_array_equal(read_cutout(gzip.compress(_fits(IMAGE))).image_CHW[0], IMAGE)
    lossless = _fits(IMAGE, compression_type="GZIP_2", quantize_level=0)
    np.testing.assert_array_equal(read_cutout(lossless).image_CHW[0], IMAGE)


def test_first_image_or_the_one_asked_for() -> None:
    buffer = io.BytesIO()
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1])])
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(IMAGE), fits.ImageHDU(IMAGE + 1)]).writeto(buffer)
    data = buffer.getvalue()
    np.testing.assert_array_equal(read_cutout(data).image_CHW[0], IMAGE)
    np.testing.assert_array_equal(read_cutout(data, hdu=3).image_CHW[0], IMAGE + 1)
    for index, message in ((0, "HDU 0 holds no image"), (1, "HDU 1 holds no image"), (9, "no HDU 9: the file has 4")):
        with pytest.raises(CutoutError, match=message):
            read_cutout(data, hdu=index)


def test_a_cube_is_bands_only_where_bands_are_asked() -> None:
    cube = np.stack([IMAGE, IMAGE + 1, IMAGE + 2])
    assert read_cutout(_fits(cube), bands=("g", "r", "i")).image_CHW.shape == (3, 40, 50)
    assert read_cutout(_fits(IMAGE[None, None])).image_CHW.shape == (1, 40, 50)
    with pytest.raises(CutoutError, match=r"3-dimensional with shape \(3, 40, 50\), not a two-dimensional image"):
        read_cutout(_fits(cube))
    with pytest.raises(CutoutError, match=r"2-dimensional with shape \(40, 50\), not a cube of 3 bands"):
        read_cutout(_fits(IMAGE), bands=("g", "r", "i"))


def test_position_is_that_of_the_centre() -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [25.5, 20.5]  # the centre of 50 x 40 pixels, counted from 1
    wcs.wcs.cdelt = [-5e-5, 5e-5]
    cutout = read_cutout(_fits(IMAGE, wcs.to_header()))
    assert (cutout.ra, cutout.dec) == (pytest.approx(150.0), pytest.approx(2.0))
    assert np.isnan(read_cutout(_fits(IMAGE)).ra)


def test_non_standard_headers_and_missing_padding_do_no_harm() -> None:
    header = fits.Header()
    header["FILTER"] = "r"
    data = _fits(IMAGE, header)
    broken = data.replace(b"FILTER  =", b"FILTER  :")
    np.testing.assert_array_equal(read_cutout(broken).image_CHW[0], IMAGE)
    unpadded = data[: 2880 + IMAGE.nbytes]
    np.testing.assert_array_equal(read_cutout(unpadded).image_CHW[0], IMAGE)


# --- what cannot ---------------------------------------------------------------------------------------------------------


COMPRESSED = _fits(IMAGE, compression_type="RICE_1")
BROKEN = {
    "empty": (b"", r"the file is empty \(0 bytes\)"),
    "text": (b"<html>404 not found", "not a FITS file: it begins with b'<html>404"),
    "truncated pixels": (_fits(IMAGE)[:5000], "truncated: 8,000 bytes of pixels promised, 2,120 there"),
    "no pixels": (_fits(IMAGE)[:2880], "truncated: 8,000 bytes of pixels promised, 0 there"),
    "truncated header": (_fits(IMAGE)[:800], "damaged FITS file"),
    "truncated gzip": (gzip.compress(_fits(IMAGE))[:3000], "gzip file is truncated"),
    "damaged gzip": (b"\x1f\x8b" + b"x" * 50, "damaged gzip file"),
    "truncated compressed": (COMPRESSED[: len(COMPRESSED) - 3000], "truncated"),
    "no image": (_fits(None), "no HDU holds an image"),
    "one-dimensional": (_fits(IMAGE[0]), r"1-dimensional with shape \(50,\)"),
    "huge": (_with_card(_fits(IMAGE), "NAXIS1", 999_999_999), r"promises an image of shape \(40, 999999999\): no cutout"),
    "huge compressed": (_with_card(COMPRESSED, "ZNAXIS1", 999_999_999), "no cutout"),
    "negative": (_with_card(_fits(IMAGE), "NAXIS1", -50), "damaged FITS file|no pixels"),
    "no such axis": (_with_card(_fits(IMAGE), "NAXIS", 900), "damaged FITS file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_have_a_reason(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(CutoutError, match=reason):
        read_cutout(data)


@pytest.mark.parametrize("source", ["plain", "compressed"])
def test_damaged_bytes_give_an_image_or_a_reason(source: str) -> None:
    rng = np.random.default_rng(1)
    whole = _fits(IMAGE) if source == "plain" else COMPRESSED
    for _ in range(100):
        data = bytearray(whole)
        for position in rng.integers(6, 6000, size=5):
            data[position] = rng.integers(32, 127)
        try:
            assert read_cutout(bytes(data)).image_CHW.dtype == np.float32
        except CutoutError as error:
            assert "\n" not in str(error)


# --- size and non-finite pixels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(2, 9))
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 5), (4, 7), (9, 2), (3, 6)])
def test_crop_and_pad_keep_the_centre(height: int, width: int, size: int) -> None:
    image = np.arange(1.0, height * width + 1, dtype=np.float32).reshape(1, height, width)
    result = fit_to_size(image, size)
    assert result.shape == (1, size, size)
    # The last pixel that is kept, in both images.
    new = np.unravel_index(result[0].argmax(), (size, size))
    old = np.argwhere(image[0] == result[0].max())[0]
    for axis, length in enumerate((height, width)):
        moved = (new[axis] - (size - 1) / 2) - (old[axis] - (length - 1) / 2)
        assert moved == (0 if (length - size) % 2 == 0 else (0.5 if length > size else -0.5))
        assert (result[0] != 0).any(axis=1 - axis).sum() == min(length, size)


@pytest.mark.parametrize("small", [3, 4, 5, 6])
@pytest.mark.parametrize("large", [6, 7, 8, 9])
def test_a_crop_undoes_a_pad(small: int, large: int) -> None:
    image = np.random.default_rng(0).normal(size=(2, small, small)).astype(np.float32)
    np.testing.assert_array_equal(fit_to_size(fit_to_size(image, large), small), image)


def test_the_rule_is_that_of_the_network_input() -> None:
    torch = pytest.importorskip("torch")
    from gampen_ray.model.images import resize

    for length in range(2, 9):
        image = np.random.default_rng(length).normal(size=(1, length, length + 1)).astype(np.float32)
        for size in range(2, 9):
            np.testing.assert_array_equal(fit_to_size(image, size), resize(torch.from_numpy(image)[None], size)[0].numpy())


def test_nan_policies() -> None:
    image = IMAGE[None].copy()
    image[0, 20, 20:23] = [np.nan, np.inf, -np.inf]
    with pytest.raises(CutoutError, match="3 of 2,000 pixels are NaN or infinite; nan_policy zero or median would fill them"):
        fit_to_size(image, 64)
    zero, median = fit_to_size(image, 50, "zero"), fit_to_size(image, 50, "median")
    assert (zero[0, 25, 20:23] == 0).all()
    assert (median[0, 25, 20:23] == np.median(image[np.isfinite(image)])).all()


def test_only_pixels_inside_the_crop_count() -> None:
    image = IMAGE[None].copy()
    image[0, 0, 0] = np.nan
    assert np.isfinite(fit_to_size(image, 16)).all()


@pytest.mark.parametrize("policy", ["quarantine", "zero", "median"])
def test_images_without_content_are_refused_in_any_case(policy: str) -> None:
    with pytest.raises(CutoutError, match="all pixels are NaN or infinite"):
        fit_to_size(np.full((1, 8, 8), np.nan, dtype=np.float32), 16, policy)  # type: ignore[arg-type]
    with pytest.raises(CutoutError, match="all pixels have the same value 3"):
        fit_to_size(np.full((1, 8, 8), 3, dtype=np.float32), 16, policy)  # type: ignore[arg-type]


def test_values_beyond_float32_are_infinite() -> None:
    image = IMAGE.astype("f8")
    image[0, 0] = 1e300
    assert np.isinf(read_cutout(_fits(image)).image_CHW[0, 0, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/G265911fitim.fits", "G265911fitim"),
        ("587722984439545906-g.fits.gz", "587722984439545906-g"),
        ("x.y.fits.fz", "x.y"),
        ("s3://bucket/a.FIT", "a"),
        ("plain", "plain"),
    ],
)
def test_stem(name: str, expected: str) -> None:
    assert stem(name) == expected
