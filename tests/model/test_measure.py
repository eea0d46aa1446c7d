"""Measured numbers against closed forms of Gaussian galaxies."""

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from gampen_ray.model.border import local_sky
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.measure import (
    _dilated,
    blend_share,
    centre_offset,
    measure,
    number_names,
    number_noise,
    plain_numbers,
    window_widths,
)
from gampen_ray.model.pixel_grids import resize
from gampen_ray.model.symmetries import random_symmetry

SIZE, NOISE = 64, 0.01


def gaussians(a: float, b: float | None = None, flux: float = 100.0, x0: float = 0.0, y0: float = 0.0) -> torch.Tensor:
    """A noiseless elliptical Gaussian of widths (sigma) a along x and b along y, offset from the middle."""
    b = a if b is None else b
    y, x = torch.meshgrid(*2 * [torch.arange(SIZE, dtype=torch.float64) - (SIZE - 1) / 2], indexing="ij")
    image = torch.exp(-(((x - x0) / a) ** 2 + ((y - y0) / b) ** 2) / 2) / (2 * math.pi * a * b)
    return (flux * image)[None, None].float()


def measured(images: torch.Tensor, noise: float = NOISE) -> dict[str, np.ndarray]:
    numbers = measure(images, torch.full(images.shape[:2], noise))
    names = number_names(tuple("gri"[: images.shape[1]]), SIZE)
    assert numbers.shape == (len(images), len(names))
    return {name: numbers[:, i].numpy() for i, name in enumerate(names)}


def profile(numbers: dict[str, np.ndarray], kind: str) -> np.ndarray:
    return np.array([numbers[f"{kind}_g_{s}"][0] for s in range(len(window_widths(SIZE)))])


@pytest.mark.parametrize("offset", [(0.0, 0.0), (1.3, -0.8)])
@pytest.mark.parametrize("width", [1.5, 3.0, 6.0])
def test_fluxes_in_windows(width: float, offset: tuple[float, float]) -> None:
    t = np.array(window_widths(SIZE))
    numbers = measured(gaussians(width, x0=offset[0], y0=offset[1]))
    flux = np.sinh(profile(numbers, "flux")) * 2 * math.sqrt(math.pi) * t * NOISE
    np.testing.assert_allclose(flux, 100 * t**2 / (width**2 + t**2), rtol=0.01)
    assert numbers["noise_g"] == pytest.approx(math.log(NOISE))


@pytest.mark.parametrize(("a", "b"), [(4.0, 2.0), (2.0, 4.0), (3.0, 2.8)])
def test_elongations_in_windows(a: float, b: float) -> None:
    t = np.array(window_widths(SIZE))
    numbers = measured(gaussians(a, b, flux=1e4))
    difference = abs(1 / (1 / a**2 + 1 / t**2) - 1 / (1 / b**2 + 1 / t**2)) / t**2
    np.testing.assert_allclose(profile(numbers, "elongation"), difference, rtol=0.01, atol=2e-3)
    np.testing.assert_allclose(profile(numbers, "fourth"), 3 * difference**2, rtol=0.02, atol=4e-3)
    np.testing.assert_allclose(profile(numbers, "twist"), 0, atol=2e-3)


def test_a_twist_is_seen() -> None:
    # An inner galaxy along x within an outer one along the diagonal.
    y, x = torch.meshgrid(*2 * [torch.arange(SIZE) - (SIZE - 1) / 2], indexing="ij")
    u, v = (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)
    outer = torch.exp(-((u / 10) ** 2 + (v / 4) ** 2) / 2)[None, None]
    assert profile(measured(outer + gaussians(4.0, 1.5)), "twist").max() > 0.03


def test_half_light_radius() -> None:
    radii = [SIZE * math.exp(measured(gaussians(width))["log_radius"][0]) for width in (1.5, 2.0, 3.0, 4.0)]
    # The aperture where the curve ends has 0.9 of the light.
    np.testing.assert_allclose(radii, 1.1774 * np.array([1.5, 2.0, 3.0, 4.0]), rtol=0.2)
    assert radii[3] / radii[1] == pytest.approx(2, rel=0.03)


def test_nothing_changes_where_the_image_is_turned_or_mirrored() -> None:
    image = gaussians(5.0, 2.0, x0=1.2, y0=0.4) + gaussians(2.0, 3.0, x0=6, y0=-9)
    image = image + NOISE * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    draws = torch.tensor([[i & 1, i >> 1 & 1, i >> 2 & 1] for i in range(8)]).T * 0.9
    turned = random_symmetry(image.expand(8, -1, -1, -1), draws)
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    numbers = measure(turned, torch.full((8, 1), NOISE))
    torch.testing.assert_close(numbers, numbers[:1].expand(8, -1), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("flux", [30.0, 3000.0])
def test_the_noise_of_numbers_is_known_to_a_factor_of_four(flux: float) -> None:
    torch.manual_seed(0)
    images = gaussians(3.0, 2.0, flux=flux).repeat(200, 2, 1, 1) * torch.tensor([1.0, 0.3])[:, None, None]
    numbers_NM = measure(images + NOISE * torch.randn_like(images), torch.full(images.shape[:2], NOISE))
    ratio_M = (numbers_NM.std(0) / number_noise(numbers_NM, 2, SIZE).median(0).values).numpy()
    ratio = dict(zip(number_names(("g", "r"), SIZE), ratio_M, strict=True))
    # Elongation and fourth moments of white noise have variances of 1 and 12 in a window, and folded ones less.
    windows = range(len(window_widths(SIZE)))
    for kind, expected in {"blended_flux": 1.0, "flux": 1.0, "elongation": 1.0, "fourth": math.sqrt(12)}.items():
        found = [ratio[f"{kind}_{band}_{s}"] for band in "gr" for s in windows]
        np.testing.assert_allclose(found, expected, rtol=0.25)
    folded = [ratio[f"{kind}_{band}_{s}"] for kind in ("dipole", "twist") for band in "gr" for s in windows]
    assert 0.25 < min(folded) < max(folded) < 1
    assert 0.5 < ratio["log_radius"] < 2


def test_sky_and_noise_beside_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    images = 5 + 2 * torch.randn(60, 1, SIZE, SIZE, generator=generator) + gaussians(3.0, flux=1e4)
    images = images + gaussians(2.0, flux=1e4, x0=29, y0=-20) + gaussians(1.5, flux=3e3, x0=-10, y0=30)
    sky, noise = local_sky(images)
    assert sky.mean() == pytest.approx(5, abs=0.1)
    assert sky.std() < 0.12
    assert noise.mean() == pytest.approx(2, rel=0.03)


def test_numbers_of_any_finite_image_are_finite() -> None:
    images = torch.zeros(7, 1, SIZE, SIZE)
    images[1] = 1e4
    images[2, 0, 32, 32] = 1e38
    images[3, 0, 2, 2] = -1e38
    images[4] = 1e30 * torch.randn(SIZE, SIZE)
    images[5, 0, ::2] = -1e20
    images[6] = torch.rand(SIZE, SIZE)
    sky, noise = local_sky(images)
    assert sky.isfinite().all()
    assert noise[[0, 1, 2, 3, 6]].isfinite().all()
    assert measure(images - sky[..., None, None], noise.nan_to_num(1e30)).isfinite().all()


def test_a_galaxy_does_not_depend_on_its_batch() -> None:
    images = torch.randn(7, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2)) + gaussians(3.0, flux=500)
    _, noise = local_sky(images)
    whole = measure(images, noise)
    for size in (1, 3):
        parts = [measure(*one) for one in zip(images.split(size), noise.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5, atol=1e-5)


def test_names_are_known_where_tensors_have_shapes_alone() -> None:
    expected = number_names(("r",), 64)
    with torch.device("meta"):
        assert number_names(("r",), 64) == expected


@pytest.mark.parametrize("side", [64, 65])
@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (8, 0), (0, -12), (-7, 9)])
def test_a_galaxy_off_the_centre_is_found_beside_neighbours(shift: tuple[int, int], side: int) -> None:
    y, x = np.indices((side, side)) - (side - 1) / 2
    galaxy = 60 * np.exp(-np.hypot(x - shift[0], y - shift[1]) / 4)
    # Ten times as bright, beside the galaxy but not over it.
    neighbour = 600 * np.exp(-np.hypot(x + 24, y + 24) / 1.5)
    noise = np.random.default_rng(0).normal(0, 1, (side, side))
    (found,) = centre_offset(torch.tensor(galaxy + neighbour + noise)[None, None]).tolist()
    expected = math.hypot(*shift)
    assert found == (0 if expected < 4 else pytest.approx(expected, abs=1.5))


def test_noise_and_flat_galaxies_are_not_off_the_centre() -> None:
    y, x = np.indices((64, 64)) - 31.5
    flat = 3 * np.exp(-((np.hypot(x, y) / 15) ** 2))
    noise = np.random.default_rng(0).normal(0, 1, (20, 1, 64, 64))
    assert not centre_offset(torch.tensor(noise)).any()
    assert not centre_offset(torch.tensor(flat + noise)).any()


def test_a_source_is_found_where_nothing_is_in_the_middle() -> None:
    y, x = np.indices((64, 64)) - 31.5
    noise = np.random.default_rng(0).normal(0, 1, (5, 1, 64, 64))
    offsets = centre_offset(torch.tensor(60 * np.exp(-np.hypot(x - 20, y) / 2) + noise))
    torch.testing.assert_close(offsets, torch.full_like(offsets, 20), atol=1.5, rtol=0)


@pytest.mark.parametrize("reach", [1, 2, 3, 5])
def test_a_mask_is_dilated_as_by_scipy(reach: int) -> None:
    mask = torch.rand(3, 2, 17, 12, generator=torch.Generator().manual_seed(reach)) > 0.95
    square = np.ones((1, 1, 2 * reach + 1, 2 * reach + 1), bool)
    assert np.array_equal(_dilated(mask, reach).numpy(), ndimage.binary_dilation(mask.numpy(), square))


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0, 3.0])
def test_the_share_of_a_neighbours_light(ratio: float) -> None:
    width, distance = 2.5, 9.0
    galaxy, neighbour = gaussians(width), gaussians(width, flux=100 * ratio, x0=distance)
    images = torch.cat([galaxy.expand(-1, 2, -1, -1), torch.cat([galaxy, galaxy + neighbour], dim=1)])
    share_N = blend_share(measure(images, torch.full((2, 2), NOISE)), 2, SIZE)
    assert share_N[0] == pytest.approx(0, abs=1e-4)
    widths = np.array(window_widths(SIZE))
    window = widths[np.abs(np.log(widths / (1.5 * 1.1774 * width))).argmin()]
    # The largest of the bands. Where the neighbour has less than a fifth of the galaxy's light, it does not stand out.
    whole = ratio * math.exp(-(distance**2) / 2 / (width**2 + window**2))
    assert 0.3 * whole - 1e-4 < share_N[1] < 1.1 * whole + 1e-4


def test_a_galaxy_in_the_noise_is_not_blended() -> None:
    noise = NOISE * torch.randn((200, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(1))
    share_N = blend_share(measure(gaussians(3.0, flux=0.5) + noise, torch.full((200, 1), NOISE)), 1, SIZE)
    assert (share_N > 0.2).float().mean() < 0.02


@pytest.mark.parametrize("side", [40, 48, 60])
def test_light_that_numbers_and_flags_share_changes_neither(side: int) -> None:
    images = ImagePreprocessing(bands=("r",), size=48, softening=0.1, channels=1, measure=True)
    image_NCHW = torch.from_numpy(np.random.default_rng(1).normal(0.3, 0.1, (6, 1, side, side)).astype(np.float32))
    image_NCHW[:, :, side // 2 - 2 : side // 2 + 3, side // 2 - 2 : side // 2 + 3] += 2.0
    seen_NCHW = resize(image_NCHW, min(side, 48))
    sky_NC, sigma_NC = local_sky(seen_NCHW)
    matched = images.match(image_NCHW, zero_point_mag=None, pixel_scale_arcsec=None)
    numbers_NM, plain_NQC = images.numbers(matched), images.plain_numbers(matched)
    assert torch.equal(numbers_NM, measure(resize(seen_NCHW - sky_NC[..., None, None], 48), sigma_NC, unit=0.1))
    assert torch.equal(plain_NQC, plain_numbers(seen_NCHW, 0.1))
