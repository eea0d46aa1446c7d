import json

import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from gampen_ray.posterior.mode_centred import interval_of_draws, mode_centred_interval
from gampen_ray.posterior.summary import LEVELS, summarise, summary_columns
from tests.parity import FOLDER, golden, needs_parity
from tests.posterior.posterior_cases import components_1d, gaussian, mixture

PROBABILITIES = list(LEVELS.values())


def test_the_interval_of_a_gaussian_is_the_equal_tailed_one() -> None:
    posterior = gaussian([1.5], [[0.04]], "identity")
    expected = np.stack([posterior.credible_interval(level) for level in PROBABILITIES], axis=1)
    assert mode_centred_interval(posterior, PROBABILITIES) == pytest.approx(expected, rel=1e-10)


def test_the_interval_of_a_lognormal_solves_its_equation() -> None:
    mu, sigma = 0.2, 0.7
    law = scipy.stats.lognorm(sigma, scale=np.exp(mu))
    mode = np.exp(mu - sigma**2)
    ends = mode_centred_interval(gaussian([mu], [[sigma**2]], "log"), PROBABILITIES)[0, :, :, 0]
    for level, (low, high) in zip(PROBABILITIES, ends, strict=True):
        half = scipy.optimize.brentq(lambda w, p=level: law.cdf(mode + w) - law.cdf(mode - w) - p, 0, 50)  # type: ignore
        assert (low, high) == pytest.approx((max(0.0, mode - half), mode + half), rel=1e-8)


@pytest.mark.parametrize("transform", ["identity", "log", "logit"])
def test_every_interval_holds_its_probability(transform: str) -> None:
    posterior = mixture(transform, num_galaxies=300)
    ends_NL2D = mode_centred_interval(posterior, PROBABILITIES)
    mode_ND = posterior.mode()
    for i, level in enumerate(PROBABILITIES):
        low, high = ends_NL2D[:, i, 0], ends_NL2D[:, i, 1]
        assert posterior.probability(low, high) == pytest.approx(np.full_like(low, level), abs=1e-9)
        symmetric = (low > 0) & (high < 1) if transform == "logit" else low > (0 if transform == "log" else -np.inf)
        assert (mode_ND - low)[symmetric] == pytest.approx((high - mode_ND)[symmetric], rel=1e-6)


def test_an_interval_at_the_end_of_the_domain_grows_on_the_other_side() -> None:
    posterior = components_1d("logit", [-5.0, -1.0], [1.0, 1.5])
    low, high = mode_centred_interval(posterior, [0.9545])[0, 0, :, 0]
    assert low == 0.0
    assert posterior.cdf(np.array([[high]]))[0, 0] == pytest.approx(0.9545, abs=1e-9)


def test_the_summary_offers_them_beside_the_equal_tailed_ones() -> None:
    posterior = mixture("log", "logit", num_galaxies=7)
    plain, both = summarise(posterior), summarise(posterior, mode_centred=True)
    added = [name for name in both if name not in plain]
    assert added == [f"{t}_mode_{end}{s}" for t in posterior.targets.names for s in LEVELS for end in ("lo", "hi")]
    assert list(both) == [column.name for column in summary_columns(posterior.targets, mode_centred=True)]
    assert all(np.array_equal(plain[name], both[name]) for name in plain)
    ends = mode_centred_interval(posterior, PROBABILITIES)
    assert np.array_equal(both["logit_1_mode_hi95"], ends[:, 1, 1, 1])


@needs_parity
@pytest.mark.parametrize(
    "case",
    [
        *("gaussian_300", "gaussian_50", "lognormal_300", "beta_edge0_300", "beta_edge1_300", "uniform_300", "bimodal_300"),
        *("half_zeros_300", "magnitude_500", "flux_500", "tiny_3"),
    ],
)
def test_intervals_of_draws_are_those_of_gampen(case: str) -> None:
    draws = golden("intervals.npz")[f"data_{case}"]
    expected = json.loads((FOLDER / "intervals.json").read_text())[case]
    mode, ends = interval_of_draws(draws, PROBABILITIES)
    assert [mode, *ends.ravel()] == pytest.approx(expected, abs=np.ptp(draws) / 999)


@pytest.mark.parametrize("draws", [[1.0], [2.0, 2.0, 2.0], [1.0, np.nan], [1.0, np.inf]])
def test_draws_without_a_density_are_refused(draws: list[float]) -> None:
    with pytest.raises(ValueError, match="have no kernel density"):
        interval_of_draws(np.array(draws), [0.68])


def test_the_kernel_widens_the_interval_of_normal_draws() -> None:
    half = [np.ptp(interval_of_draws(np.random.default_rng(seed).normal(size=1000), [0.6827])[1]) / 2 for seed in range(40)]
    assert np.mean(half) == pytest.approx(1.046, abs=0.015)
