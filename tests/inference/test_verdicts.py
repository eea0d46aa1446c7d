import numpy as np
import pytest

from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.verdicts import (
    bin_verdict,
    coverage_verdict,
    crop_verdict,
    local_verdict,
    radius_target,
    rank_verdict,
    score_verdict,
    seed_verdict,
    training_verdict,
)


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


@pytest.mark.parametrize(
    ("share", "band", "verdict"),
    [
        (0.019, 0.01, "holds"),
        (-0.039, 0.01, "marginal"),
        (0.041, 0.01, "fails"),
        (0.041, 0.05, "holds"),
        (-0.06, 0.05, "marginal"),
    ],
)
def test_ranks(share: float, band: float, verdict: str) -> None:
    even = {"p": 0.5, "level": [0.25, 0.5], "share": [0.0, 0.001], "low": [-band, -band], "high": [band, band]}
    found = rank_verdict({"radius": even, "flux": even | {"p": 0.003, "share": [0.0, share]}})
    assert found.verdict == verdict
    assert f"{50 + 100 * share:.1f} % of the truths rank below 50 % in flux (p 0.003), the largest deviation of 2" in found.text


@pytest.mark.parametrize(
    ("score", "value", "verdict"),
    [
        ("crps", 0.21, "holds"),
        ("crps", 0.181, "marginal"),
        ("crps", 0.25, "fails"),
        ("log", 0.34, "holds"),
        ("log", 0.51, "fails"),
    ],
)
def test_scores(score: str, value: float, verdict: str) -> None:
    found = score_verdict([{"score": score, "target": "flux", "value": value, "expected": 0.2, "error": 0.001}], num_targets=3)
    assert found.verdict == verdict
    assert f"the {score} score of flux is {value}, 0.2 if calibrated" in found.text


@pytest.mark.parametrize(
    ("coverage", "mean_rank", "verdict", "words"),
    [
        (0.72, 0.5, "holds", "holds 72.0 % of the truths"),
        (0.61, 0.5, "marginal", "holds 61.0 % of the truths"),
        (0.6827, 0.6, "fails", "rank at 60.0 % on average"),
    ],
)
def test_bins(coverage: float, mean_rank: float, verdict: str, words: str) -> None:
    row = {"target": "flux", "column": "psf", "low": 0.6, "high": 0.7, "level": 0.6827, "error": 0.01, "mean_rank_error": 0.006}
    found = bin_verdict({"rows": [row | {"coverage": coverage, "mean_rank": mean_rank}], "critical": 3.5})
    assert found.verdict == verdict
    assert "of flux where psf is 0.6 to 0.7" in found.text
    assert words in found.text


def test_bins_within_the_largest_deviation_by_chance_hold() -> None:
    row = {"target": "flux", "column": "psf", "low": 0, "high": 1, "level": 0.6827, "error": 0.04, "mean_rank_error": 0.025}
    found = bin_verdict({"rows": [row | {"coverage": 0.82, "mean_rank": 0.58}], "critical": 3.5})
    assert found.verdict == "holds"


@pytest.mark.parametrize(
    ("p", "effect", "verdict"), [(1e-9, 0.09, "holds"), (1e-9, 0.19, "marginal"), (0.002, 0.3, "fails"), (0.02, 0.3, "holds")]
)
def test_local(p: float, effect: float, verdict: str) -> None:
    effects = {"bias of flux": 0.01, "width of flux": effect}
    found = local_verdict({"p": p, "effects": effects, "statistic": "width of flux", "term": "psf, degree 1"})
    assert found.verdict == verdict
    assert "most of all width of flux with psf, degree 1" in found.text


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


def test_training_on_numbers_alone() -> None:
    assert (
        training_verdict([{"epoch": 0, "val_loss": -2.0}], num_targets=3).text == "least validation loss -2, on numbers alone"
    )


def test_training_that_images_did_not_improve() -> None:
    history = [{"epoch": i, "val_loss": loss} for i, loss in enumerate((-2.121, -1.889, -2.054, -2.096))]
    found = training_verdict(history, num_targets=3)
    expected = "least validation loss -2.12, on numbers alone: 3 epochs on images did not improve it, -2.1 at the last"
    assert (found.verdict, found.text) == ("marginal", expected)
    assert training_verdict([*history, {"epoch": 4, "val_loss": -2.2}], num_targets=3).verdict == "holds"


def test_target_that_is_a_radius() -> None:
    assert radius_target(("flux", "Effective_Radius_arcsec")) == 1
    assert radius_target(("flux", "size")) is None
