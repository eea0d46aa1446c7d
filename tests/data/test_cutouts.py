"""Cutouts as arrays: size, non-finite pixels and names."""

import numpy as np
import pytest

from gampen_ray.data.cutouts import CutoutError, fit_to_size, stem, without_blanks

IMAGE = np.random.default_rng(0).normal(100, 10, size=(40, 50)).astype(np.float32)


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
    from gampen_ray.model.pixel_grids import resize

    for length in range(2, 9):
        image = np.random.default_rng(length).normal(size=(1, length, length + 1)).astype(np.float32)
        for size in range(2, 9):
            np.testing.assert_array_equal(fit_to_size(image, size), resize(torch.from_numpy(image)[None], size)[0].numpy())


def test_nan_policies() -> None:
    image = IMAGE[None].copy()
    image[0, 20, 20:23] = [np.nan, np.inf, -np.inf]
    with pytest.raises(
        CutoutError, match=r"3 of 2,000 pixels are without a value: NaN, .*; nan_policy zero, median or interpolate"
    ):
        fit_to_size(image, 64)
    zero, median = fit_to_size(image, 50, ("zero",)), fit_to_size(image, 50, ("median",))
    assert (zero[0, 25, 20:23] == 0).all()
    assert (median[0, 25, 20:23] == np.median(image[np.isfinite(image)])).all()


def test_a_mask_is_no_image() -> None:
    mask = (IMAGE > 105).astype(np.float32)[None]
    with pytest.raises(CutoutError, match="all pixels have one of two values, 0 and 1, as in a mask"):
        fit_to_size(mask, 16)


def test_missing_pixels_are_interpolated_from_those_around_them() -> None:
    y, x = np.indices((40, 50))
    plane = np.stack([3.0 * x + 2 * y, 7.0 * x]).astype(np.float32)
    image = plane.copy()
    image[0, 20, 20] = image[0, :, 30] = image[1, 9:12, 15:18] = np.nan
    filled = fit_to_size(image, 40, ("interpolate",))
    # Less than the step from pixel to pixel, also in a hole and at the edge.
    assert np.abs(filled - plane[:, :, 5:45]).max() < 7
    # Of a linear image, the mean around a pixel is its value.
    assert filled[0, 20, 15] == pytest.approx(plane[0, 20, 20])
    known = np.isfinite(image[:, :, 5:45])
    np.testing.assert_array_equal(filled[known], plane[:, :, 5:45][known])
    image[1, 10:30, 10:30] = np.nan
    with pytest.raises(CutoutError, match=r"^\d+ pixels of band r without a value are too far from others to be interpolated"):
        fit_to_size(image, 40, ("interpolate",), ("g", "r"))


def test_only_pixels_inside_the_crop_count() -> None:
    image = IMAGE[None].copy()
    image[0, 0, 0] = np.nan
    assert np.isfinite(fit_to_size(image, 16)).all()


@pytest.mark.parametrize("policy", ["quarantine", "zero", "median", "interpolate"])
def test_constant_images_are_refused_under_every_policy(policy: str) -> None:
    with pytest.raises(CutoutError, match="all pixels are without a value: NaN, infinite, 1e20 or more, masked"):
        fit_to_size(np.full((1, 8, 8), np.nan, dtype=np.float32), 16, (policy,))  # type: ignore[arg-type]
    with pytest.raises(CutoutError, match="all pixels have the same value 3"):
        fit_to_size(np.full((1, 8, 8), 3, dtype=np.float32), 16, (policy,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b/G265911fitim.fits", "G265911fitim"),
        ("587722984439545906-g.fits.gz", "587722984439545906-g"),
        ("x.y.fits.fz", "x.y"),
        ("s3://bucket/a.FIT", "a"),
        ("a/x.y.npy", "x.y"),
        ("J1234.5-01.tif.gz", "J1234.5-01"),
        ("v1.25", "v1.25"),
        ("plain", "plain"),
    ],
)
def test_stem(name: str, expected: str) -> None:
    assert stem(name) == expected


@pytest.mark.parametrize("value", [-999.0, -99.0, -9999.0, 1e20, -1e30, np.finfo(np.float32).max])
def test_a_sentinel_has_no_value(value: float) -> None:
    image = IMAGE[None].copy()
    image[0, 20, 21] = value
    assert np.argwhere(np.isnan(without_blanks(image))).tolist() == [[0, 20, 21]]


def test_positive_sentinels_are_told_from_brightness_by_their_number() -> None:
    image = np.random.default_rng(0).normal(0, 1, (1, 40, 40)).astype(np.float32)
    image[0, 20, 20] = 99
    np.testing.assert_array_equal(without_blanks(image), image)
    image[0, 3, :5] = 99
    assert np.isnan(without_blanks(image)).sum() == 6
    # Counts about 99.
    counts = np.random.default_rng(0).poisson(99, (1, 40, 40)).astype(np.float32)
    np.testing.assert_array_equal(without_blanks(counts), counts)
    # A galaxy of counts, two pixels of which have 99 by chance.
    counts = np.random.default_rng(0).poisson(20, (1, 40, 40)).astype(np.float32)
    counts[0, 20, 20:24] = (99, 99, 500, 800)
    np.testing.assert_array_equal(without_blanks(counts), counts)
    # Scaled integers in steps of 0.5.
    steps = np.round(2 * np.random.default_rng(0).normal(99, 10, (1, 40, 40))).astype(np.float32) / 2
    np.testing.assert_array_equal(without_blanks(steps), steps)


@pytest.mark.parametrize("side", [np.s_[-28:], np.s_[:1], np.s_[:, :3], np.s_[:, -1:]])
@pytest.mark.parametrize("value", [0.0, 7.5])
def test_a_border_of_one_value_has_none(side: tuple, value: float) -> None:
    image = IMAGE.copy()
    image[side] = value
    blank = np.isnan(without_blanks(image[None]))[0]
    assert blank[side].all()
    assert blank.sum() == image[side].size


def test_images_without_noise_keep_their_border() -> None:
    y, x = np.indices((40, 40)) - 19.5
    image = np.maximum(5 - np.hypot(x, y), 0).astype(np.float32)[None]
    np.testing.assert_array_equal(without_blanks(image), image)
    gradient = np.repeat(np.arange(40, dtype=np.float32)[:, None], 40, axis=1)[None]
    np.testing.assert_array_equal(without_blanks(gradient), gradient)
