import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.flags import Flag, range_flags
from gampen_ray.inference.predictor import Predictor
from gampen_ray.inference.ranges import Ranges
from gampen_ray.model.measure import PLAIN_NUMBERS
from tests.networks import bundle, galaxies


def test_ranges_are_two_sided_quantiles() -> None:
    held_out = np.linspace(0, 1, 9999)[:, None, None] * np.ones((1, len(PLAIN_NUMBERS), 1))
    ranges = Ranges.fit(held_out)
    tails = [0.003 if name == "correlation" else 0.001 for name in PLAIN_NUMBERS]
    np.testing.assert_allclose(ranges.low_QC[:, 0], tails, atol=2e-4)
    np.testing.assert_allclose(ranges.high_QC[:, 0], 1 - np.array(tails), atol=2e-4)
    np.testing.assert_allclose(ranges.outside(held_out).mean(axis=0), 2 * np.array(tails), rtol=0.3)
    ranges = Ranges.fit(held_out[:, :2])
    numbers = np.array([[0.5, 0.5], [-0.1, 0.5], [0.5, 1.1], [np.nan, np.inf]])[..., None]
    assert ranges.outside(numbers).tolist() == [[False, False], [True, False], [False, True], [True, True]]


@pytest.mark.parametrize("count", [20, 36, 150, 600, 5000])
def test_ranges_of_a_small_validation_split_are_not_too_narrow(count: int) -> None:
    rng = np.random.default_rng(count)
    shares = [Ranges.fit(rng.normal(size=(count, 8, 1))).outside(rng.normal(size=(500, 8, 1))).mean() for _ in range(40)]
    # With the extremes, 5 % for 36 galaxies.
    assert np.mean(shares) < 0.01
    same = Ranges.fit(np.zeros((count, 2, 1)))
    assert same.outside(np.array([[[0.0], [0.0]], [[0.0], [0.1]]])).tolist() == [[False, False], [False, True]]


def test_one_band_out_of_range_suffices() -> None:
    ranges = Ranges(low_QC=np.array([[0.0, 10.0]]), high_QC=np.array([[1.0, 11.0]]))
    assert ranges.outside(np.array([[[0.5, 10.5]], [[0.5, 0.5]]])).tolist() == [[False], [True]]


def test_a_bundle_without_ranges_of_the_last_numbers_has_none_of_their_flags() -> None:
    ranges = Ranges(low_QC=np.zeros((2, 1)), high_QC=np.ones((2, 1)))
    assert range_flags(np.full((1, len(PLAIN_NUMBERS), 1), 2.0), ranges) == Flag.SKY_OUT_OF_RANGE | Flag.NOISE_OUT_OF_RANGE


def test_each_plain_number_has_a_flag_of_its_own() -> None:
    count = len(PLAIN_NUMBERS)
    ranges = Ranges(low_QC=np.zeros((count, 1)), high_QC=np.ones((count, 1)))
    flags = range_flags(0.5 + np.eye(count)[..., None], ranges)
    names = [Flag(int(value)).name for value in flags]
    assert names == [
        "SKY_OUT_OF_RANGE",
        "NOISE_OUT_OF_RANGE",
        "BRIGHTNESS_OUT_OF_RANGE",
        "SIZE_OUT_OF_RANGE",
        "PIXELS_CONSTANT",
        "NOISE_CORRELATION_OUT_OF_RANGE",
        "STRAY_LIGHT_OUT_OF_RANGE",
        "PIXELS_ZERO",
    ]


def _correlated(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 0.5, image.shape)
    return image + ndimage.uniform_filter(noise, (1, 1, 3, 3))


def _masked(image: np.ndarray) -> np.ndarray:
    return np.where(np.arange(20)[:, None] < 3, 0, image)


def _neighbour(image: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:20, :20]
    return image + 40 * np.exp(-((x - 1) ** 2 + (y - 9) ** 2) / 4)


@pytest.mark.parametrize(
    ("shift", "flag"),
    [
        (lambda image: image + 0.2, Flag.SKY_OUT_OF_RANGE),
        (lambda image: image + np.random.default_rng(1).normal(0, 0.3, image.shape), Flag.NOISE_OUT_OF_RANGE),
        (lambda image: np.random.default_rng(1).normal(0, 0.1, image.shape), Flag.BRIGHTNESS_OUT_OF_RANGE),
        (lambda image: 20 * image, Flag.BRIGHTNESS_OUT_OF_RANGE),
        (_masked, Flag.PIXELS_CONSTANT),
        (_correlated, Flag.NOISE_CORRELATION_OUT_OF_RANGE),
        (_neighbour, Flag.STRAY_LIGHT_OUT_OF_RANGE),
    ],
)
def test_a_shift_is_flagged_by_its_cause(shift, flag: Flag, tmp_path: Path) -> None:
    model = bundle()
    held_out = model.images.plain_numbers(torch.from_numpy(galaxies(1000, seed=1)["image"])).numpy()
    dataclasses.replace(model, ranges=Ranges.fit(held_out)).save(str(tmp_path / "b"))
    predict = Predictor(load_bundle(str(tmp_path / "b")), num_passes=1, seed=0, device="cpu")
    images = galaxies(300, seed=2)["image"]
    usual = predict(images).flags_N
    for one in Flag:
        if one >= Flag.SKY_OUT_OF_RANGE:
            assert ((usual & one) > 0).mean() <= 0.015, one
    assert ((predict(shift(images).astype(np.float32)).flags_N & flag) > 0).mean() > 0.95


def test_numbers_of_a_smaller_cutout_are_those_without_padding() -> None:
    model = bundle()
    cutout = torch.from_numpy(galaxies(3)["image"])[..., 2:18, 2:18]
    numbers = model.images.plain_numbers(cutout).numpy()
    assert (numbers[:, PLAIN_NUMBERS.index("constant")] < 0.02).all()
    assert numbers[:, PLAIN_NUMBERS.index("noise")] == pytest.approx(0, abs=0.7)


def test_the_page_of_the_catalogue_lists_all_flags() -> None:
    page = (Path(__file__).parents[2] / "docs" / "catalogue.md").read_text()
    assert re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", page, re.MULTILINE) == [(f.name, str(f.value)) for f in Flag]
