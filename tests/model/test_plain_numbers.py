"""Plain numbers of cutouts against closed forms."""

import math

import numpy as np
import torch
from scipy import ndimage

from gampen_ray.model.border import noise_correlation
from gampen_ray.model.measure import PLAIN_NUMBERS, flat_core, plain_numbers
from gampen_ray.simulation.noise import correlated_noise, noise_spectrum

SIDE = 64


def numbers(image: np.ndarray, unit: float = 1.0) -> dict[str, float]:
    found = plain_numbers(torch.from_numpy(image.astype(np.float32))[None, None], unit)[0, :, 0]
    return dict(zip(PLAIN_NUMBERS, found.tolist(), strict=True))


def sky(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE))


def test_sky_and_noise() -> None:
    found = numbers(5 + 2 * sky(), unit=2.0)
    assert math.isclose(found["sky"], math.asinh(2.5), abs_tol=0.1)
    assert abs(found["noise"]) < 0.08
    assert found["constant"] == 0
    assert found["stray_light"] < 1


def test_brightness_is_the_log_of_the_flux_and_size_does_not_depend_on_it() -> None:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    galaxy = np.exp(-(x**2 + y**2) / 2 / 9)
    faint, bright = numbers(1e3 * galaxy + sky()), numbers(1e5 * galaxy + sky())
    assert math.isclose(bright["brightness"] - faint["brightness"], math.log(100), abs_tol=0.05)
    assert math.isclose(bright["size"], faint["size"], abs_tol=0.02)
    # Half of a Gaussian's light lies within 1.1774 sigma; a soft aperture of finite width holds less of it.
    assert math.isclose(math.exp(bright["size"]) * SIDE, 1.1774 * 3, rel_tol=0.2)
    total = math.log(1e5 * 2 * math.pi * 9)
    assert total - 0.3 < bright["brightness"] < total


def test_share_of_constant_pixels() -> None:
    image = sky()
    image[:16] = 7.0
    assert math.isclose(numbers(image)["constant"], 0.25, abs_tol=0.02)
    assert numbers(np.zeros((SIDE, SIDE)))["constant"] == 1
    # Single pixels of zero, such as masked cosmic rays, have no equal neighbour.
    image = sky()
    image[::8, ::8] = 0
    assert numbers(image)["constant"] == 0
    assert numbers(image)["zeros"] == 1 / 64


def test_a_plateau_in_the_core_is_one_of_bright_pixels_alone() -> None:
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius = np.hypot(x - 2, y + 1)
    galaxy = 5 + 3000 * np.exp(-radius / 3) + sky()
    clipped = galaxy.clip(max=1500)
    second = np.where(radius < 2, 1500 * (1 + 0.001 * sky(1)), galaxy)
    elsewhere = galaxy.copy()
    elsewhere[5:9, 5:9] = 1e5
    images = [galaxy, clipped, second, elsewhere, sky(), sky().clip(max=1), np.full((SIDE, SIDE), 3.0)]
    found = flat_core(torch.from_numpy(np.stack(images)[:, None]))
    assert found.tolist() == [False, True, True, False, False, False, False]
    # In one band of two, of an odd side.
    two = torch.from_numpy(np.stack([galaxy, clipped])[None, :, 20:45, 20:45])
    assert flat_core(two).tolist() == [True]
    assert flat_core(two[:, :1]).tolist() == [False]


def test_correlation_of_neighbouring_pixels() -> None:
    rng = np.random.default_rng(0)
    for correlation in (0.0, 0.1, 0.25):
        spectrum = noise_spectrum(correlation, SIDE)
        found = [numbers(correlated_noise(rng, spectrum, SIDE))["correlation"] for _ in range(20)]
        assert math.isclose(np.mean(found), correlation, abs_tol=0.03)
    assert abs(numbers(sky())["correlation"]) < 0.06


def test_correlation_is_that_of_the_noise_alone() -> None:
    y, x = np.indices((SIDE, SIDE))
    # Two wide galaxies and a star in the border, and a gradient.
    sources = ((5, 8, 2, 6), (5, 60, 40, 8), (50, 30, 62, 1.5))
    light = sum(a * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * s**2)) for a, cx, cy, s in sources)
    assert abs(numbers(sky() + light + 0.02 * x)["correlation"]) < 0.1
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(SIDE, SIDE)), 1.0, mode="wrap")
    assert math.isclose(numbers(smooth + light / 10)["correlation"], math.exp(-1 / 4), abs_tol=0.08)


def test_slopes_of_bright_sources_do_not_pass_for_correlated_noise() -> None:
    y, x = np.indices((SIDE, SIDE))
    for amplitude in (4, 8):
        light = amplitude * np.exp(-((x - 2) ** 2 + (y - 30) ** 2) / (2 * 8**2))
        signal = torch.from_numpy(np.stack([sky(seed) + light for seed in range(20)]))[:, None]
        # That of all pixels, which networks are given, and that of blank ones.
        every, blank = (float(noise_correlation(signal, blank=choice).mean()) for choice in (False, True))
        assert abs(blank) < 0.03
        assert every > 0.05
        assert abs(np.mean([numbers(sky(seed) + light)["correlation"] for seed in range(20)])) < 0.03


def test_stray_light() -> None:
    image = sky()
    image[8:12, :4] += 100.0
    # The outermost squares of 4 x 4 pixels, each of which has a noise of 4.
    squares = 4 * (SIDE // 4 - 1)
    assert math.isclose(numbers(image)["stray_light"], math.log1p(400 / math.sqrt(squares)), rel_tol=0.05)
    assert numbers(sky())["stray_light"] < 0.5


def test_extreme_cutouts_raise_nothing() -> None:
    hot = np.zeros((SIDE, SIDE))
    hot[32, 32] = 1e30
    for image in (np.zeros((SIDE, SIDE)), np.full((SIDE, SIDE), 1e38), 1e38 * sky().clip(-1, 1), 1e-30 * sky(), hot):
        found = numbers(image)
        assert set(found) == set(PLAIN_NUMBERS)
    assert np.isfinite(list(numbers(np.zeros((SIDE, SIDE))).values())).all()
