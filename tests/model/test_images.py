import json
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from gampen_ray import documents
from gampen_ray.config import ImagesConfig, OptimizerConfig
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing, asinh, sky_sigma
from gampen_ray.model.pixel_grids import resize
from gampen_ray.model.symmetries import AUGMENTATIONS, random_rotation, random_symmetry, rotate
from tests.parity import golden, needs_parity


def noise(n: int = 50, size: int = 32, sigma: float = 3.0) -> np.ndarray:
    return np.random.default_rng(0).normal(10.0, sigma, (n, 1, size, size)).astype(np.float32)


@pytest.mark.parametrize(("have", "want"), [(8, 8), (9, 4), (8, 5), (5, 9), (4, 9), (3, 8)])
def test_resize_keeps_the_centre_pixel(have: int, want: int) -> None:
    image = torch.zeros(1, 1, have, have)
    image[..., (have - 1) // 2, (have - 1) // 2] = 1
    out = resize(image, want)
    row, column = np.argwhere(out[0, 0].numpy() == 1)[0]
    assert out.shape == (1, 1, want, want)
    # the centre lies between two pixels where the parity changes
    assert row == column
    assert abs(row - (want - 1) / 2) <= 1


def test_padding_then_cropping_restores_the_image() -> None:
    image = torch.from_numpy(noise(2, 7))
    torch.testing.assert_close(resize(resize(image, 12), 7), image)


def test_sky_sigma_ignores_the_level_and_the_galaxy() -> None:
    images = noise(200)
    images[:, :, 12:20, 12:20] += 1e4
    assert sky_sigma(images) == pytest.approx(3.0, rel=0.03)


def test_stretch_is_asinh_of_the_image_over_the_softening() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(softening=2.0, channels=3, sky="none"), ("r",), noise())
    x = torch.from_numpy(noise(2))
    out = images(x)
    assert out.shape == (2, 3, 32, 32)
    torch.testing.assert_close(out[:, 2:], torch.asinh(x / 2.0))


def test_automatic_softening_is_the_sky_noise() -> None:
    assert ImagePreprocessing.fit(ImagesConfig(), ("r",), noise(200)).softening == pytest.approx(3.0, rel=0.03)


def test_round_trip_through_plain_values() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(size=24), ("g", "r"), np.repeat(noise(), 2, axis=1))
    assert documents.parsed(ImagePreprocessing, json.dumps(images.to_dict()), "", "") == images


def test_only_a_single_band_is_repeated() -> None:
    with pytest.raises(UserError, match=r"images\.channels: 3 channels cannot be filled from the 2 bands g, r"):
        ImagePreprocessing.fit(ImagesConfig(channels=3), ("g", "r"), np.repeat(noise(), 2, axis=1))


def test_noiseless_images_need_a_softening() -> None:
    with pytest.raises(UserError, match=r"images\.softening: 0 \(automatic\)"):
        ImagePreprocessing.fit(ImagesConfig(), ("r",), np.zeros((3, 1, 8, 8), np.float32))


def test_wrong_number_of_bands_is_named() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(), ("r",), noise())
    with pytest.raises(UserError, match=r"images: shape \(1, 2, 32, 32\) does not fit"):
        images(torch.zeros(1, 2, 32, 32))


def draws(count: int) -> torch.Tensor:
    return torch.rand(3, count, generator=torch.Generator().manual_seed(0))


def test_random_symmetry_draws_all_eight_elements_equally() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    out = random_symmetry(image.expand(8000, 1, 3, 3), draws(8000))
    elements, counts = torch.unique(out.flatten(1), dim=0, return_counts=True)
    assert len(elements) == 8
    # 5 sigma of a binomial with p = 1/8
    assert (counts - 1000).abs().max() < 5 * np.sqrt(8000 / 8 * 7 / 8)


@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_only_move_pixels(size: int) -> None:
    image = np.random.default_rng(0).lognormal(0, 5, (2, 3, size, size)).astype(np.float32)
    # Row y of the turned image is column y of the image: counter-clockwise with the first row at the bottom.
    np.testing.assert_array_equal(rotate(image, 90)[..., ::-1], image.swapaxes(-1, -2))
    np.testing.assert_array_equal(rotate(image, 180), image[..., ::-1, ::-1])
    np.testing.assert_array_equal(rotate(image, 270)[..., ::-1, :], image.swapaxes(-1, -2))
    for angle in (0, 360, -720):
        np.testing.assert_array_equal(rotate(image, angle), image)


def spot(x0: float, y0: float, size: int = 41, sigma: float = 1.5) -> np.ndarray:
    """A round Gaussian of unit peak at an offset from the image's centre, pixels."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.exp(-((x - x0) ** 2 + (y - y0) ** 2) / 2 / sigma**2)[None, None].astype(np.float32)


@pytest.mark.parametrize("size", [40, 41])
@pytest.mark.parametrize("angle", [13.0, 60.0, 90.0, 200.5, -45.0])
def test_turned_spot_lies_where_the_rotation_takes_it(angle: float, size: int) -> None:
    x0, y0 = 7.0, -4.0
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turned = rotate(spot(x0, y0, size), angle)
    np.testing.assert_allclose(turned, spot(cos * x0 - sin * y0, sin * x0 + cos * y0, size), atol=5e-3)
    assert float(turned.sum()) == pytest.approx(2 * np.pi * 1.5**2, rel=2e-4)


def test_interpolation_leaves_most_of_the_noise() -> None:
    turned = rotate(noise(50, 64), 23.0)[..., 16:48, 16:48]
    assert 0.87 * 3.0 * 0.98 < float(turned.std()) < 3.0
    assert float(turned.mean()) == pytest.approx(10.0, abs=0.05)


def test_corners_are_filled_with_sky() -> None:
    corners = np.stack([rotate(noise(200), 45.0)[..., y, x] for y in (0, 1, -1) for x in (0, -1)])
    assert corners.mean() == pytest.approx(10.0, abs=0.5)
    assert corners.std() == pytest.approx(0.87 * 3.0, rel=0.15)


def test_only_square_images_are_turned() -> None:
    with pytest.raises(UserError, match=r"images: 8 x 9 pixels cannot be turned; crop the cutouts to squares"):
        rotate(np.zeros((1, 1, 8, 9)), 90)


def test_random_rotation_draws_flips_and_angles_evenly() -> None:
    # A spot to the right of the centre, with a fainter one beside it that tells a mirrored image.
    image = torch.from_numpy(spot(12, 0) + 0.5 * spot(12, 8)).expand(4000, 1, 41, 41)
    out = random_rotation(image, draws(len(image)))[:, 0].double().numpy()
    y, x = np.mgrid[:41, :41] - 20.0
    bright_y, bright_x = np.array([np.unravel_index(turned.argmax(), turned.shape) for turned in out]).T - 20.0
    np.testing.assert_allclose(np.hypot(bright_x, bright_y), 12, atol=1)
    # The mean of unit vectors of uniform angle has components of standard deviation 1 / sqrt(2 N).
    direction = np.exp(1j * np.arctan2(bright_y, bright_x)).mean()
    assert max(abs(direction.real), abs(direction.imag)) < 5 / np.sqrt(8000)
    centroid_y, centroid_x = ((out * axis).sum((1, 2)) / out.sum((1, 2)) for axis in (y, x))
    mirrored = bright_x * centroid_y - bright_y * centroid_x < 0
    assert mirrored.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4000))


def test_random_rotation_fills_the_corners_with_zeros() -> None:
    out = random_rotation(torch.ones(500, 1, 21, 21), draws(500))
    assert float(out[..., 0, 0].min()) == 0 and float(out[..., 0, 0].mean()) < 0.2
    torch.testing.assert_close(out[..., 4:17, 4:17], torch.ones(500, 1, 13, 13))


def test_augmentations_are_those_of_the_config() -> None:
    options = get_args(get_type_hints(OptimizerConfig)["augment"])
    assert set(options) == set(AUGMENTATIONS)
    image = torch.from_numpy(noise(3))
    assert AUGMENTATIONS["none"](image, torch.Generator()) is image


def test_another_surveys_cutouts_are_converted_to_the_training_units() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(size=72), ("r",), noise(), zero_point_mag=30.0, pixel_scale_arcsec=0.2)
    y, x = np.mgrid[:48, :48] - 23.5
    galaxy = torch.tensor(np.exp(-(x**2 + y**2) / 2 / 5.0**2)[None, None])
    out = images.match(galaxy, zero_point_mag=27.5, pixel_scale_arcsec=0.3).image_NCHW
    assert out.shape == (1, 1, 72, 72)
    # 2.5 mag are a factor of ten, and resampling keeps the flux and the width on the sky.
    assert float(out.sum()) == pytest.approx(10 * float(galaxy.sum()), rel=1e-3)
    row = out[0, 0, 36].double()
    offset = torch.arange(72) - 35.5
    width = float(((row * offset**2).sum() / row.sum()).sqrt())
    assert width == pytest.approx(5.0 * 1.5, rel=0.02)


@pytest.mark.parametrize("zero_point_mag", [None, 30.0])
@pytest.mark.parametrize("pixel_scale_arcsec", [None, 0.2, 0.2001])
def test_cutouts_in_training_units_stay_as_they_are(zero_point_mag: float | None, pixel_scale_arcsec: float | None) -> None:
    images = ImagePreprocessing.fit(ImagesConfig(), ("r",), noise(), zero_point_mag=30.0, pixel_scale_arcsec=0.2)
    x = torch.from_numpy(noise(2))
    matched = images.match(x, zero_point_mag=zero_point_mag, pixel_scale_arcsec=pixel_scale_arcsec)
    assert matched.image_NCHW is x and matched.noise is None


@pytest.mark.parametrize("pixel", [0.11, 0.16, 0.27])
def test_numbers_do_not_depend_on_the_pixels(pixel: float) -> None:
    """A Gaussian galaxy in white noise of the same depth gives the same numbers on pixels of any size that sample it."""
    images = ImagePreprocessing(
        bands=("r",), size=64, softening=1.0, channels=1, pixel_scale_arcsec=0.2, sky="border", measure=True
    )

    def cutouts(pixel: float, seed: int) -> torch.Tensor:
        side = round(64 * 0.2 / pixel)
        y, x = (np.indices((side, side)) - (side - 1) / 2) * pixel
        light = 2e4 * pixel**2 / (2 * np.pi * 0.6**2) * np.exp(-((x - 0.1) ** 2 + (y / 0.8) ** 2) / (2 * 0.6**2)) / 0.8
        sky = np.random.default_rng(seed).normal(5, pixel / 0.2, (400, 1, side, side))
        return torch.from_numpy(light + sky).float()

    def found(pixel: float, seed: int) -> np.ndarray:
        matched = images.match(cutouts(pixel, seed), zero_point_mag=None, pixel_scale_arcsec=pixel)
        numbers = images.numbers(matched)
        assert numbers is not None
        plain = images.plain_numbers(matched)[:, [1, 2, 3, 5], 0]
        return torch.cat([numbers, plain], dim=1).numpy()

    own, other = found(0.2, 1), found(pixel, 2)
    error = np.sqrt((own.var(axis=0) + other.var(axis=0)) / 400)
    names = [*images.number_names, "noise", "brightness", "size", "correlation"]
    # The correlation of neighbours is that of the original pixels: zero. A dipole or twist without noise is near zero.
    differences = dict(zip(names, np.abs(own.mean(axis=0) - other.mean(axis=0)) / (error + 0.01), strict=True))
    assert {name: value for name, value in differences.items() if value > 4} == {}
    # Fluxes scatter alike: the logarithm of one over its noise is in the numbers, and so that of the noise is added.
    fluxes = [index for index, name in enumerate(names) if name.startswith(("blended_flux", "flux"))]
    scatter = [(found[:, fluxes] + found[:, [names.index("noise_r")]]).std(axis=0) for found in (own, other)]
    np.testing.assert_allclose(*scatter, rtol=0.2)


def test_conversions_are_told_and_what_is_unknown_too() -> None:
    images = ImagePreprocessing(bands=("r",), size=8, softening=1.0, channels=1, zero_point_mag=27.0, pixel_scale_arcsec=0.2)
    assert images.conversions(zero_point_mag=27.0, pixel_scale_arcsec=0.2) == []
    assert images.conversions(zero_point_mag=None, pixel_scale_arcsec=0.4) == [
        "zero_point_mag of the cutouts is unknown; taken to be 27, as in training",
        "cutouts are converted from pixel_scale_arcsec 0.4 to 0.2, as in training",
    ]
    ignorant = ImagePreprocessing(bands=("r",), size=8, softening=1.0, channels=1)
    assert ignorant.conversions(zero_point_mag=30.0, pixel_scale_arcsec=None) == []


@needs_parity
def test_the_stretch_is_that_of_gampen_where_its_own_is_accurate() -> None:
    arrays = golden("arsinh.npz")
    images = ImagePreprocessing(bands=("r",), size=1, softening=1.0, channels=1)
    ours = images(torch.from_numpy(arrays["x"])[:, None, None, None]).double().flatten().numpy()
    assert ours == pytest.approx(arrays["numpy_arcsinh"], rel=1e-6)
    # For large negative values the original's logarithm loses its digits.
    accurate = arrays["x"] > -1e3
    assert ours[accurate] == pytest.approx(arrays["out_f64"][accurate], rel=1e-6, abs=1e-9)


@needs_parity
@pytest.mark.parametrize("size", [81, 80, 64])
def test_crop_stretch_and_repeat_are_those_of_gampen(size: int) -> None:
    arrays = golden("labels_and_item.npz")
    images = ImagePreprocessing(bands=("r",), size=64, softening=1.0, channels=3)
    inputs = images(torch.from_numpy(arrays[f"item_{size}_raw"])[None, None])[0]
    assert torch.equal(inputs[0], inputs[1]) and torch.equal(inputs[0], inputs[2])
    assert inputs[0].numpy() == pytest.approx(arrays[f"item_{size}_channel0"], abs=1e-6)


@pytest.mark.parametrize(
    ("trained", "given", "zoom"), [(0.2, 0.2, 1.0), (0.2, 0.2005, 1.0), (0.2, 0.3, 1.5), (0.2, None, 1.0), (None, 0.2, 1.0)]
)
def test_zoom_tells_whether_cutouts_are_resampled(trained: float | None, given: float | None, zoom: float) -> None:
    preprocessing = ImagePreprocessing(bands=("r",), size=30, softening=1.0, channels=1, pixel_scale_arcsec=trained)
    assert preprocessing.zoom(given) == pytest.approx(zoom, rel=1e-12)
    side = preprocessing.match(torch.ones(1, 1, 20, 20), zero_point_mag=None, pixel_scale_arcsec=given).image_NCHW.shape[-1]
    assert side == round(20 * zoom)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_asinh_is_that_of_torch(dtype: torch.dtype) -> None:
    sizes = 10.0 ** torch.arange(-30, 38, 0.1, dtype=torch.float64)
    x = torch.cat([sizes, -sizes, torch.zeros(1, dtype=torch.float64), torch.linspace(-9, 9, 10_001, dtype=torch.float64)]).to(
        dtype
    )
    found, exact = asinh(x), torch.asinh(x.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=0)
