import numpy as np
import pytest

from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.verdicts import coverage_verdict, crop_verdict, radius_target, seed_verdict, training_verdict


def crop(scale=(0.2, 0.8), **options) -> CropStatistics:
    return CropStatistics.of(np.linspace(*scale, 100), **options)


@pytest.mark.parametrize(
    ("statistics", "verdict", "words"),
    [
        (crop(), "holds", "0.23 to 0.77"),
        (crop((0.743, 0.743)), "fails", "the crop is constant, 0.743 to 0.743"),
        (crop(dead_fraction=1.0), "fails", "100% of the localisation network's hidden units are dead"),
        (crop(dead_fraction=0.05), "marginal", "5% of"),
        (crop(radius_N=np.arange(100.0)), "holds", "rank correlation with the effective radius 1.00"),
        (crop(radius_N=np.arange(100.0)[::-1]), "fails", "-1.00"),
        (crop(radius_N=np.abs(np.arange(100.0) - 32)), "marginal", "rank correlation"),
        (CropStatistics.of(np.r_[np.full(60, 1.0), np.linspace(0.2, 0.9, 40)]), "marginal", "61% of the crops are at a bound"),
        (crop(log_radius_N=np.log(np.linspace(0.2, 0.8, 100)) - 2), "marginal", "the measured radius times a constant"),
        (CropStatistics.of(np.array([0.5])), "holds", "0.5 to 0.5"),
    ],
)
def test_crop(statistics: CropStatistics, verdict: str, words: str) -> None:
    found = crop_verdict(statistics)
    assert found.verdict == verdict
    assert words in found.text


@pytest.mark.parametrize(
    ("points", "error", "verdict"), [(1.9, 0.1, "holds"), (3.9, 0.1, "marginal"), (4.1, 0.1, "fails"), (4.1, 1.7, "holds")]
)
def test_coverage(points: float, error: float, verdict: str) -> None:
    row = {"target": "flux", "level": 0.6827, "coverage": 0.6827 - points / 100, "error": error / 100}
    found = coverage_verdict([row])
    assert found.verdict == verdict
    assert f"the 68.27 % region of flux holds {68.27 - points:.1f} % of the truths" in found.text


def test_coverage_in_bins_has_twice_the_limits() -> None:
    good = {"target": "flux", "level": 0.6827, "coverage": 0.6827, "error": 0.001}
    edge = {"column": "psf", "low": 0.6, "high": 0.7}
    for off, verdict in ((0.039, "holds"), (0.079, "marginal"), (0.081, "fails")):
        found = coverage_verdict([good], [good | edge | {"coverage": 0.6827 + off}])
        assert found.verdict == verdict
        assert "where psf is 0.6 to 0.7, the largest deviation of 2" in found.text


def test_seeds_name_the_remedy() -> None:
    seeds = {"verdict": "fails", "num_passes": 4, "worst": "std differs", "advice": "64 passes"}
    assert seed_verdict(seeds).text == "two seeds, 4 passes: std differs; give 64 passes"
    assert "64" not in seed_verdict(seeds | {"verdict": "holds"}).text


@pytest.mark.parametrize(
    ("losses", "verdict", "words"),
    [
        ([0.5, -2.0, -2.1, -2.05], "holds", "-2.1, at epoch 3 of 4"),
        ([None, 1.6, 1.5, None], "fails", "nothing was learned"),
        ([None, None], "fails", "nothing was learned"),
        ([-2.0, -1.0, -0.5, 0.0], "marginal", "overfitting"),
        ([-2.0, -1.9, -1.85, -1.8], "holds", "at epoch 1 of 4"),
    ],
)
def test_training(losses: list, verdict: str, words: str) -> None:
    found = training_verdict([{"epoch": i + 1, "val_loss": loss} for i, loss in enumerate(losses)], num_targets=3)
    assert found.verdict == verdict
    assert words in found.text


def test_target_that_is_a_radius() -> None:
    assert radius_target(("flux", "Effective_Radius_arcsec")) == 1
    assert radius_target(("flux", "size")) is None
