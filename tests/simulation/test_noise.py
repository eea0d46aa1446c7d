import numpy as np
import pytest

from gampen_ray.simulation import noise

SIZE = 64


def fields(spectrum: np.ndarray | None, count: int = 60) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.stack([noise.correlated_noise(rng, spectrum, SIZE) for _ in range(count)])


def at_lag(images: np.ndarray, dy: int, dx: int) -> float:
    height, width = images.shape[1:]
    return float((images[:, dy:, dx:] * images[:, : height - dy, : width - dx]).mean() / (images**2).mean())


@pytest.mark.parametrize("correlation", [0.1, 0.25])
def test_noise_has_unit_variance_and_the_asked_correlation(correlation: float) -> None:
    images = fields(noise.noise_spectrum(correlation, SIZE))
    assert images.std() == pytest.approx(1, abs=0.01)
    for lag, expected in {(0, 1): correlation, (1, 0): correlation, (1, 1): correlation**2, (0, 2): 0, (3, 0): 0}.items():
        assert at_lag(images, *lag) == pytest.approx(expected, abs=0.01), lag


def test_without_correlation_noise_is_white() -> None:
    np.testing.assert_allclose(fields(noise.noise_spectrum(0.0, SIZE), 2), fields(None, 2), atol=1e-12)
    assert at_lag(fields(None), 0, 1) == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("size", [32, 61])
def test_correlation_is_measured_in_blank_cutouts_and_made_again(size: int) -> None:
    blank = list(5 + 3 * fields(noise.noise_spectrum(0.2, SIZE)))
    # A source and missing pixels do not count.
    blank[0][20:24, 20:24] = 500
    blank[1][5] = np.nan
    measured = noise.measure_autocorrelation(blank)
    assert measured[8, 8] == 1
    assert measured[8, 9] == pytest.approx(0.2, abs=0.01)
    assert measured[9, 9] == pytest.approx(0.04, abs=0.01)
    rng = np.random.default_rng(1)
    again = np.stack([noise.correlated_noise(rng, noise.measured_spectrum(measured, size), size) for _ in range(60)])
    assert again.std() == pytest.approx(1, abs=0.015)
    assert at_lag(again, 0, 1) == pytest.approx(0.2, abs=0.015)


def test_sky_residual_is_a_plane_of_the_asked_spread() -> None:
    drawn = [noise.sky_residual(np.random.default_rng(seed), 0.1, 0.03, 33) for seed in range(2000)]
    image, columns = drawn[0]
    assert image[16, 16] == pytest.approx(columns["sky_level"])
    assert image[16, 32] - image[16, 16] == pytest.approx(columns["sky_gradient_x"])
    assert image[32, 16] - image[16, 16] == pytest.approx(columns["sky_gradient_y"])
    levels = np.abs([columns["sky_level"] for _, columns in drawn])
    assert np.quantile(levels, 0.6827) == pytest.approx(0.1, rel=0.1)
    # One in twenty has five times the spread, of whose normal 55 % lie beyond 0.3.
    assert (levels > 0.3).mean() == pytest.approx(0.05 * 0.55 + 0.95 * 0.0027, abs=0.01)
    image, columns = noise.sky_residual(np.random.default_rng(0), 0.0, 0.0, 8)
    assert (image == 0).all()


def test_masks_are_small_and_filled_pixels_follow_their_neighbours() -> None:
    x = np.indices((SIZE, SIZE))[1]
    plane = 3.0 + 0.5 * x
    shares = []
    for seed in range(60):
        mask, axis = noise.draw_mask(np.random.default_rng(seed), SIZE)
        shares.append(mask.mean())
        filled = noise.filled(plane, mask, axis, interpolate=True)
        np.testing.assert_array_equal(filled[~mask], plane[~mask])
        if axis == 1:
            inner = mask & (x > np.argmin(mask, axis=1)[:, None]) & (x < SIZE - 1 - np.argmin(mask[:, ::-1], axis=1)[:, None])
            np.testing.assert_allclose(filled[inner], plane[inner])
        assert (noise.filled(plane, mask, axis, interpolate=False)[mask] == 0).all()
    assert 0.005 < np.mean(shares) < 0.1
    assert max(shares) < 0.25
