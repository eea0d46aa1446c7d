import numpy as np
import pytest
from scipy import integrate, stats

from gampen_ray.posterior.scores import Score, crps, energy_score
from tests.posterior.posterior_cases import mixture


def test_crps_of_a_gaussian():
    """Gneiting & Raftery 2007, the equation after 21."""
    m = mixture("identity", "log", num_galaxies=5, num_passes=1)
    z_ND = m.standardised_mean() + np.linspace(-1, 1, 10).reshape(5, 2)
    sigma_ND = m.standardised_std()
    u_ND = (z_ND - m.standardised_mean()) / sigma_ND
    expected_ND = sigma_ND * (u_ND * (2 * stats.norm.cdf(u_ND) - 1) + 2 * stats.norm.pdf(u_ND) - 1 / np.sqrt(np.pi))
    found = crps(m, z_ND)
    assert found.value == pytest.approx(expected_ND)
    assert found.expected == pytest.approx(sigma_ND / np.sqrt(np.pi))


def test_crps_of_a_mixture_by_integration():
    m = mixture("identity", num_galaxies=2, num_passes=5)
    z_ND = m.standardised_mean() + 0.4
    for i, found in enumerate(crps(m, z_ND).value[:, 0]):
        grid = np.linspace(-8, 8, 20_001)
        cdf = stats.norm.cdf(grid[:, None], m.mean_NKD[i, :, 0], m.scale_tril_NKDD[i, :, 0, 0]).mean(axis=1)
        assert found == pytest.approx(integrate.trapezoid((cdf - (grid >= z_ND[i, 0])) ** 2, grid), abs=2e-3)


def test_expected_scores_are_those_of_truths_from_the_posterior():
    m = mixture("identity", "identity", num_galaxies=1, num_passes=3)
    many = m[np.zeros(4000, np.int64)]
    z_ND = m.standardised_sample(4000, 2)[0]
    for score in (crps(many, z_ND), energy_score(many, z_ND, seed=0)):
        row = score.summary()
        assert (np.abs(row["value"] - row["expected"]) < 4 * row["error"]).all()
        assert (row["error"] < 0.03 * row["expected"]).all()


def test_energy_score_of_one_target_is_its_crps():
    m = mixture("identity", num_galaxies=300, num_passes=3)
    z_ND = m.standardised_sample(1, 4)[:, 0]
    assert energy_score(m, z_ND, seed=0, num_draws=2000).value == pytest.approx(crps(m, z_ND).value[:, 0], abs=0.06)


def test_energy_score_by_all_pairs_of_draws():
    m = mixture("identity", "log", "logit", num_galaxies=2, num_passes=4)
    z_ND = m.standardised_mean() + 0.5
    draw_NSD = m.standardised_sample(1500, 9)
    pairs_N = np.linalg.norm(draw_NSD[:, :, None] - draw_NSD[:, None], axis=-1).mean(axis=(1, 2))
    expected_N = np.linalg.norm(draw_NSD - z_ND[:, None], axis=-1).mean(axis=1) - 0.5 * pairs_N
    assert energy_score(m, z_ND, seed=0, num_draws=4000).value == pytest.approx(expected_N, abs=0.04)


def test_summary_by_hand():
    row = Score(np.array([1.0, 3.0, 5.0, 3.0]), np.full(4, 2.0)).summary()
    assert (row["value"], row["expected"]) == (3.0, 2.0)
    assert row["error"] == pytest.approx(np.sqrt(3) / 2)
    assert row["p"] == pytest.approx(2 * stats.norm.sf(2 / np.sqrt(3)))


def test_score_of_one_galaxy_says_nothing():
    assert Score(np.array([1.0]), np.array([2.0])).summary()["p"] == pytest.approx(0.317, abs=0.001)


def test_few_wide_posteriors_do_not_outweigh_many_narrow_ones():
    rng = np.random.default_rng(0)
    sigma_N = np.r_[np.full(1000, 0.01), np.full(5, 10.0)]
    excess_N = stats.norm.pdf(rng.standard_normal(1005)) - 1 / (2 * np.sqrt(np.pi))
    # The score of all but the wide ones is too large.
    value_N, expected_N = sigma_N * (2 + excess_N + np.r_[np.full(1000, 0.05), np.zeros(5)]), 2 * sigma_N
    assert Score(value_N, expected_N).summary()["p"] > 0.01
    assert Score(value_N, expected_N, scale=expected_N).summary()["p"] < 1e-6
    assert Score(sigma_N * (2 + excess_N), expected_N, scale=expected_N).summary()["p"] > 0.01
