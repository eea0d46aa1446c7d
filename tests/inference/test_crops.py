"""FITS in, learned crop out: pixels against SciPy and closed forms, coordinates against astropy."""

import dataclasses
import gzip
import io
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.wcs import WCS
from scipy.ndimage import map_coordinates

from gampen_ray.config import NetworkConfig, ReaderConfig
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.inference.crops import Cropper, crop_name, pixel_map
from gampen_ray.inference.predictor import Predictor
from gampen_ray.model.network import Network
from tests.networks import NETWORK, SIZE, bundle

RNG = np.random.default_rng(0)
INSIDE = {
    "scale": [[0.7, 0.0, 0.0], [0.0, 0.7, 0.0]],
    "shear and shift": [[0.5, 0.2, 0.1], [-0.15, 0.6, -0.05]],
    "flip": [[-0.6, 0.0, 0.2], [0.0, 0.8, 0.0]],
}
OUTSIDE = INSIDE | {"zoom out": [[1.3, 0.1, 0.2], [0.0, 1.2, 0.0]]}
SHAPES = [(20, 20), (31, 26), (25, 28), (20, 33)]
SMALL_SHAPES = [(13, 16), (17, 31), (20, 15)]


def _bundle(theta: list[list[float]], **images: Any) -> Bundle:
    """A model that crops every image by one affine map."""
    plain = bundle()
    transformer = dataclasses.replace(NETWORK.spatial_transformer, family="affine")
    config: NetworkConfig = dataclasses.replace(NETWORK, spatial_transformer=transformer)
    preprocessing = dataclasses.replace(plain.images, **images)
    network = Network(config, channels=preprocessing.channels, size=SIZE, num_targets=2)
    assert network.transformer is not None
    head: Any = network.transformer.parameters_head[-1]
    head.bias.data.copy_(torch.tensor(theta).flatten())
    return dataclasses.replace(plain, network=network.eval(), config=config, images=preprocessing)


@pytest.mark.parametrize(
    ("name", "crop"),
    [
        ("deep/a.fits", "deep/a.fits"),
        ("a.FIT.gz", "a.FIT.gz"),
        ("a.fits.fz", "a.fits.fz"),
        ("a.npy", "a.npy.fits"),
        ("a.npy.gz", "a.npy.gz.fits"),
        ("a.fits.png", "a.fits.png.fits"),
    ],
)
def test_a_crop_has_a_name_of_fits(name: str, crop: str) -> None:
    assert crop_name(name) == crop


def _fits(pixels: np.ndarray, header: fits.Header | None = None) -> bytes:
    buffer = io.BytesIO()
    fits.PrimaryHDU(pixels.astype(np.float32), header).writeto(buffer)
    return buffer.getvalue()


def _open(result: bytes | CutoutError, hdu: int = 0) -> tuple[np.ndarray, fits.Header]:
    assert isinstance(result, bytes), result
    with fits.open(io.BytesIO(result)) as hdus:
        return np.array(hdus[hdu].data), hdus[hdu].header


def _crop(
    model: Bundle, pixels: np.ndarray, header: fits.Header | None = None, **options: Any
) -> tuple[np.ndarray, fits.Header]:
    return _open(Cropper(model, "d" * 64, **options)(["a.fits"], [_fits(pixels, header)])[0])


def _file_pixels(header: fits.Header, shift: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Zero-based (x, y) in the file of every pixel of the crop, moved by ``shift`` pixels, H x W x 2, from the cards."""
    matrix = np.array([[header[f"GRA{i}_{j}"] for j in (1, 2)] for i in (1, 2)])
    y, x = np.mgrid[: header["NAXIS2"], : header["NAXIS1"]] + 1
    return (np.stack([x, y], axis=-1) + shift) @ matrix.T + [header["GRB1"], header["GRB2"]] - 1


@pytest.mark.parametrize("crop_size", [0, 13, 40])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("theta", INSIDE.values(), ids=INSIDE)
def test_a_gradient_has_its_values_at_the_mapped_coordinates(
    theta: list[list[float]], shape: tuple[int, int], crop_size: int
) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    crop, header = _crop(_bundle(theta), 100 + 3.0 * x - 2.0 * y, crop_size=crop_size)
    assert crop.shape == (crop_size or SIZE,) * 2
    assert crop.dtype == np.dtype(">f4")
    at = _file_pixels(header)
    np.testing.assert_allclose(crop, header["GRAREA"] * (100 + 3 * at[..., 0] - 2 * at[..., 1]), rtol=2e-7)


@pytest.mark.parametrize("oversampling", [1, 3])
@pytest.mark.parametrize("shape", [*SHAPES[:1], *SMALL_SHAPES])
@pytest.mark.parametrize("theta", OUTSIDE.values(), ids=OUTSIDE)
def test_resampling_is_that_of_scipy(theta: list[list[float]], shape: tuple[int, int], oversampling: int) -> None:
    # Sides no longer than the network's input: the network sees the whole file, and zeros around it.
    pixels = RNG.normal(size=(min(shape[0], SIZE), min(shape[1], SIZE))).astype(np.float32)
    crop, header = _crop(_bundle(theta), pixels, oversampling=oversampling)
    # Samples at the centres of equal parts of each pixel.
    steps = (np.arange(oversampling) + 0.5) / oversampling - 0.5
    samples = []
    for shift in itertools.product(steps, steps):
        at = _file_pixels(header, shift)
        samples.append(map_coordinates(pixels.astype(float), [at[..., 1], at[..., 0]], order=1, mode="grid-constant"))
    np.testing.assert_allclose(crop, header["GRAREA"] * np.mean(samples, axis=0), rtol=1e-6, atol=1e-6)


def test_only_the_networks_input_is_seen() -> None:
    inner = np.zeros((30, 30), np.float32)
    inner[5:25, 5:25] = RNG.normal(size=(20, 20))
    pixels = inner + np.where(inner == 0, 7.0, 0.0)
    np.testing.assert_array_equal(*(_crop(_bundle(OUTSIDE["zoom out"]), image)[0] for image in (inner, pixels)))


@pytest.mark.parametrize("crop_size", [0, 15, 31])
@pytest.mark.parametrize("theta", OUTSIDE.values(), ids=OUTSIDE)
def test_flux_of_an_object_inside_is_conserved(theta: list[list[float]], crop_size: int) -> None:
    y, x = np.mgrid[:27, :24]
    pixels = 5000 * np.exp(-((x - 11.3) ** 2 + (y - 13.2) ** 2) / 2 / 1.1**2)
    for oversampling, accuracy in ((0, 0.012), (4, 0.003)):
        crop, header = _crop(_bundle(theta), pixels, crop_size=crop_size, oversampling=oversampling)
        assert crop.sum() == pytest.approx(pixels.sum(), rel=accuracy)
    matrix, _ = pixel_map(np.array(theta), shape=(27, 24), size=SIZE, crop_size=crop_size or SIZE)
    assert header["GRAREA"] == pytest.approx(abs(np.linalg.det(matrix)))


def test_the_whole_image_at_its_own_size_stays_as_it_is() -> None:
    pixels = RNG.normal(size=(SIZE, SIZE)).astype(np.float32)
    crop, header = _crop(_bundle([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), pixels)
    np.testing.assert_allclose(crop, pixels, atol=1e-6)
    assert (header["GRSCALE"], header["GRAREA"], header["GRB1"]) == (1, 1, 0)


def test_the_map_is_the_networks_for_this_image_in_any_batch() -> None:
    model = bundle()
    images = RNG.normal(5, 1, size=(3, 1, 24, 21)).astype(np.float32)
    results = Cropper(model, "d")(["a", "b", "c"], [_fits(image[0]) for image in images])
    scales = [_open(result)[1]["GRSCALE"] for result in results]
    np.testing.assert_allclose(scales, Predictor(model, num_passes=1, seed=0)(images).crop_scale_N, rtol=1e-5)
    np.testing.assert_allclose(scales[2], _crop(model, images[2, 0])[1]["GRSCALE"], rtol=1e-5)


@pytest.mark.parametrize("shape", [*SHAPES, *SMALL_SHAPES])
@pytest.mark.parametrize("theta", OUTSIDE.values(), ids=OUTSIDE)
def test_a_star_has_its_place_in_the_sky(theta: list[list[float]], shape: tuple[int, int]) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.1, -2.2], [12.0, 9.0]
    wcs.wcs.cd = [[-4e-5, 2e-5], [2e-5, 4e-5]]
    y, x = np.mgrid[: shape[0], : shape[1]]
    star = np.array([shape[1] / 2 - 0.2, shape[0] / 2 - 0.9])
    pixels = 1000 * np.exp(-((x - star[0]) ** 2 + (y - star[1]) ** 2) / 2 / 1.3**2)
    crop, header = _crop(_bundle(theta), pixels, wcs.to_header(), crop_size=31)
    rows, columns = np.mgrid[:31, :31]
    centroid = [(crop * axis).sum() / crop.sum() for axis in (columns, rows)]
    sky = WCS(header).all_pix2world([centroid], 0)
    np.testing.assert_allclose(wcs.all_world2pix(sky, 0)[0], star, atol=0.02)


def test_cards_of_the_file_stay_and_the_map_is_recorded() -> None:
    header = fits.Header({"BUNIT": "nJy", "FILTER": "HSC-R", "MAGZERO": 31.4})
    _, cropped = _crop(_bundle(INSIDE["scale"]), RNG.normal(size=(22, 22)), header)
    assert (cropped["BUNIT"], cropped["FILTER"], cropped["MAGZERO"]) == ("nJy", "HSC-R", 31.4)
    assert (cropped["GRBUNDLE"], cropped["GRINPUT"]) == ("d" * 64, SIZE)
    assert cropped["GRSCALE"] == pytest.approx(0.7)
    assert "flux is conserved" in " ".join(cropped["HISTORY"])
    assert max(map(len, cropped["HISTORY"])) <= 72
    assert "CTYPE1" not in cropped
    assert not any("WCS left out" in line for line in cropped["HISTORY"])


def test_all_bands_are_kept() -> None:
    model = _bundle(INSIDE["flip"], bands=("g", "r", "i"), channels=3)
    model.network.transformer.localisation[0] = torch.nn.Conv2d(3, 4, 5)  # type: ignore[union-attr]
    cube = RNG.normal(size=(3, 24, 22)).astype(np.float32)
    crop, _ = _crop(model, cube)
    assert crop.shape == (3, SIZE, SIZE)
    for band in range(3):
        np.testing.assert_array_equal(crop[band], _crop(_bundle(INSIDE["flip"]), cube[band])[0])


def test_a_crop_is_compressed_as_its_file_is() -> None:
    data = _fits(RNG.normal(size=(24, 24)))
    names = ["a.fits", "a.fits.gz", "a.FITS.FZ"]
    plain, zipped, tiled = Cropper(_bundle(INSIDE["scale"]), "d")(names, [data, gzip.compress(data), data])
    assert isinstance(zipped, bytes)
    assert gzip.decompress(zipped) == plain
    pixels, header = _open(tiled, hdu=1)
    np.testing.assert_array_equal(pixels, _open(plain)[0])
    assert header["GRSCALE"] == pytest.approx(0.7)


def test_bad_files_have_a_reason_and_the_others_a_crop() -> None:
    image = RNG.normal(size=(24, 24))
    with_nan = image.copy()
    with_nan[12, 12] = np.nan
    extreme = np.where(np.isnan(with_nan), -3.4e38, image)
    contents = [_fits(image), b"<html>", _fits(image)[:4000], _fits(with_nan), _fits(extreme), CutoutError("gone")]
    results = Cropper(_bundle(OUTSIDE["zoom out"]), "d", crop_size=15)([*"abcdef"], contents)
    assert isinstance(results[0], bytes)
    for result, reason in zip(
        results[1:],
        [
            "not a file of a known format",
            "truncated",
            "1 of 400 pixels are without a value: NaN",
            "1 of 400 pixels are without a value: NaN",
            "gone",
        ],
        strict=True,
    ):
        assert isinstance(result, CutoutError)
        assert reason in str(result)
    filled = Cropper(_bundle(INSIDE["scale"]), "d", reader=ReaderConfig(nan_policy="zero"))(["a"], [_fits(with_nan)])[0]
    expected = _crop(_bundle(INSIDE["scale"]), np.nan_to_num(with_nan))[0]
    np.testing.assert_array_equal(_open(filled)[0], expected)


def test_a_map_without_area_or_number_is_a_reason() -> None:
    for theta in ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[np.nan, 0.0, 0.0], [0.0, 1.0, 0.0]]):
        (result,) = Cropper(_bundle(theta), "d")(["a"], [_fits(RNG.normal(size=(24, 24)))])
        assert isinstance(result, CutoutError)
        assert "no finite crop" in str(result)


@pytest.mark.filterwarnings("ignore::astropy.utils.exceptions.AstropyWarning")
def test_damaged_bytes_give_a_crop_or_a_reason() -> None:
    header = fits.Header({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRPIX1": 9.5, "CD1_1": 1e-5})
    header.update({"CRVAL2": 2.0, "CRPIX2": 1.0, "CD2_2": 1e-5, "A_ORDER": 2, "A_0_2": 1e-4, "B_ORDER": 2, "BUNIT": "nJy"})
    whole, cropper = _fits(RNG.normal(size=(24, 24)), header), Cropper(_bundle(INSIDE["scale"]), "d")
    contents: list[bytes | CutoutError] = []
    for _ in range(200):
        data = bytearray(whole)
        for position in RNG.integers(6, 2880, size=5):
            data[position] = RNG.integers(32, 127)
        contents.append(bytes(data))
    for result in cropper(["a"] * len(contents), contents):
        assert isinstance(result, CutoutError) or _open(result)[0].shape == (SIZE, SIZE)


def test_mistakes_are_refused() -> None:
    config = dataclasses.replace(NETWORK, spatial_transformer=dataclasses.replace(NETWORK.spatial_transformer, family="none"))
    network = Network(config, channels=1, size=SIZE, num_targets=2)
    with pytest.raises(UserError, match=r"bundle: its network has no spatial transformer \(family none\)"):
        Cropper(dataclasses.replace(bundle(), network=network), "d")
    with pytest.raises(UserError, match="crop_size: a crop of 1 pixel a side has no scale; give 2 or more"):
        Cropper(bundle(), "d", crop_size=1)


def test_files_are_held_against_the_bundle_and_converted_for_the_network() -> None:
    model = _bundle(INSIDE["scale"], zero_point_mag=30.0, pixel_scale_arcsec=0.2)
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CDELT1": -0.2 / 3600, "CDELT2": 0.2 / 3600}
    image = RNG.normal(100, 10, (SIZE, SIZE)).astype(np.float32)
    cropper = Cropper(model, "digest")
    seen = []
    cropper._network.crop = lambda images, *rest: seen.append(images) or type(model.network).crop(model.network, images, *rest)

    def crop(cropper: Cropper, **cards: Any) -> Any:
        buffer = io.BytesIO()
        fits.PrimaryHDU(image, fits.Header(cards)).writeto(buffer)
        return cropper(["a.fits"], [buffer.getvalue()])[0]

    pixels = [fits.getdata(io.BytesIO(crop(cropper, **cards))) for cards in (wcs, wcs | {"MAGZERO": 32.5})]
    # The crop is in the file's unit, a tenth of the bundle's.
    np.testing.assert_array_equal(*pixels)
    assert seen[1].mean() < seen[0].mean()
    for cards, message in (
        (wcs | {"CDELT1": -0.3 / 3600, "CDELT2": 0.3 / 3600}, "the header gives the pixel scale 0.3, but the bundle 0.2"),
        ({"FILTER": "g"}, "the header gives the band g, not r"),
    ):
        assert str(crop(cropper, **cards)).startswith(message)
        assert isinstance(crop(Cropper(model, "digest", reader=ReaderConfig(headers="ignore")), **cards), bytes)
