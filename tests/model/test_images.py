import numpy as np
import pytest
import torch

from gampen_ray.config import ImagesConfig
from gampen_ray.errors import UserError
from gampen_ray.model.images import ImagePreprocessing, random_symmetry, resize, sky_sigma


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
    images = ImagePreprocessing.fit(ImagesConfig(softening=2.0, channels=3), ("r",), noise())
    x = torch.from_numpy(noise(2))
    out = images(x)
    assert out.shape == (2, 3, 32, 32)
    torch.testing.assert_close(out[:, 2:], torch.asinh(x / 2.0))


def test_automatic_softening_is_the_sky_noise() -> None:
    assert ImagePreprocessing.fit(ImagesConfig(), ("r",), noise(200)).softening == pytest.approx(3.0, rel=0.03)


def test_round_trip_through_plain_values() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(size=24), ("g", "r"), np.repeat(noise(), 2, axis=1))
    assert ImagePreprocessing.from_dict(images.to_dict()) == images


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


def test_random_symmetry_draws_all_eight_elements_equally() -> None:
    image = torch.arange(9.0).view(1, 1, 3, 3)
    out = random_symmetry(image.expand(8000, 1, 3, 3), torch.Generator().manual_seed(0))
    elements, counts = torch.unique(out.flatten(1), dim=0, return_counts=True)
    assert len(elements) == 8
    # 5 sigma of a binomial with p = 1/8
    assert (counts - 1000).abs().max() < 5 * np.sqrt(8000 / 8 * 7 / 8)


def test_another_surveys_cutouts_are_converted_to_the_training_units() -> None:
    images = ImagePreprocessing.fit(ImagesConfig(), ("r",), noise(), zero_point_mag=30.0, pixel_scale_arcsec=0.2)
    y, x = np.mgrid[:48, :48] - 23.5
    galaxy = torch.tensor(np.exp(-(x**2 + y**2) / 2 / 5.0**2)[None, None])
    out = images.match(galaxy, zero_point_mag=27.5, pixel_scale_arcsec=0.3)
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
    assert images.match(x, zero_point_mag=zero_point_mag, pixel_scale_arcsec=pixel_scale_arcsec) is x
