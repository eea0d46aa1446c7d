import numpy as np
import pytest
import torch
from scipy import integrate, stats

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.ranks import SIGNIFICANCE, coverage_ribbon, joint_density, rosenblatt, uniformity
from tests.posterior.posterior_cases import components_1d, mixture, schema


def test_band_holds_all_levels_at_once_as_often_as_stated():
    """The probability that 50 uniform ranks stay within the band, exactly, from level to level."""
    count, found = 50, uniformity(np.random.default_rng(0).random(50))
    probability, before = np.eye(1, count + 1)[0], 0.0
    for level, low, high in zip(found.level_G, found.low_G, found.high_G, strict=True):
        # Of those above the level before, each is below this one with this probability.
        step = (level - before) / (1 - before)
        probability = sum(
            probability[k] * np.r_[np.zeros(k), stats.binom.pmf(np.arange(count - k + 1), count - k, step)]
            for k in range(count + 1)
        )
        number = np.arange(count + 1)
        probability = np.where((number >= round(low * count)) & (number <= round(high * count)), probability, 0)
        before = level
    assert probability.sum() == pytest.approx(1 - SIGNIFICANCE, abs=0.005)


def test_band_and_p_value_agree():
    rng = np.random.default_rng(1)
    decisions = []
    for power in np.linspace(1, 1.3, 30):
        found = uniformity(rng.random(800) ** power)
        inside = ((found.low_G <= found.share_G) & (found.share_G <= found.high_G)).all()
        decisions.append((bool(inside), found.p > SIGNIFICANCE))
    assert {inside for inside, _ in decisions} == {True, False}
    assert sum(inside != accepted for inside, accepted in decisions) <= 1


def test_shares_by_hand():
    found = uniformity(np.array([0.1, 0.5, 0.505, 0.995]))
    share = dict(zip(found.level_G.round(2).tolist(), found.share_G.tolist(), strict=True))
    assert (share[0.09], share[0.1], share[0.5], share[0.51], share[0.99]) == (0, 0.25, 0.5, 0.75, 0.75)
    assert found.to_dict()["share"][49] == pytest.approx(0)


def test_band_is_narrow_in_the_tails():
    found = uniformity(np.linspace(0.0005, 0.9995, 1000))
    width = found.high_G - found.low_G
    assert found.p > 0.9
    assert width[0] < 0.4 * width[49]


def test_ribbons_are_quantiles_of_the_beta_distribution():
    low_G, high_G = coverage_ribbon(np.array([0.105, 0.2, 0.305, 0.9]))
    # At the level 0.3, which half of them are below.
    assert low_G[29] == pytest.approx(stats.beta(3, 3).ppf(0.025))
    assert high_G[29] == pytest.approx(stats.beta(3, 3).ppf(0.975))


def test_conditional_ranks_of_a_mixture_by_integration():
    m = mixture("identity", "identity", num_galaxies=3, num_passes=4)
    z_ND = m.standardised_mean() + np.array([[0.3, -0.5], [-0.2, 0.1], [0.0, 0.6]])
    rank_ND = rosenblatt(m, z_ND)
    assert rank_ND[:, 0] == pytest.approx(m.cdf(m.targets.physical(z_ND))[:, 0])
    for i, (first, second) in enumerate(z_ND):

        def density(z, i=i, first=first):
            return np.exp(m[i].standardised_log_prob(np.array([[[first, z]]]))[0, 0])

        below, total = (integrate.quad(density, -8, end, points=[m.standardised_mean()[i, 1]])[0] for end in (second, 8))
        assert rank_ND[i, 1] == pytest.approx(below / total, abs=1e-6)


def test_conditional_ranks_are_uniform_and_independent():
    m = mixture("identity", "identity", "identity", num_galaxies=4000, num_passes=4)
    rank_ND = rosenblatt(m, m.standardised_sample(1, 3)[:, 0])
    assert min(uniformity(rank_N).p for rank_N in rank_ND.T) > 0.01
    assert np.abs(np.corrcoef(rank_ND.T) - np.eye(3)).max() < 4 / np.sqrt(4000)


def test_joint_density_of_a_gaussian():
    m = mixture("identity", "identity", "identity", num_galaxies=40, num_passes=1)
    z_ND = m.standardised_sample(1, 5)[:, 0]
    found = joint_density(m, z_ND, seed=0, num_draws=4000)
    residual = torch.linalg.solve_triangular(
        m.scale_tril_NKDD[:, 0], torch.from_numpy(z_ND - m.standardised_mean())[..., None], upper=False
    )
    distance2_N = residual.square().sum((1, 2)).numpy()
    assert found.rank_N == pytest.approx(stats.chi2(3).cdf(distance2_N), abs=0.04)
    log_det_N = np.log(torch.diagonal(m.scale_tril_NKDD[:, 0], dim1=-2, dim2=-1).numpy()).sum(axis=1)
    constant_N = 1.5 * np.log(2 * np.pi) + log_det_N
    assert found.score.value == pytest.approx(constant_N + 0.5 * distance2_N)
    assert found.score.expected == pytest.approx(constant_N + 1.5, abs=0.1)


def test_joint_rank_of_the_middle_of_two_peaks_is_last():
    m = components_1d("identity", [-10.0, 10.0], [1.0, 1.0])
    assert joint_density(m, m.targets.standardise(np.zeros((1, 1))), seed=0).rank_N[0] > 0.998


def test_one_draw_is_enough_for_uniform_joint_ranks():
    m = mixture("identity", "identity", num_galaxies=3000, num_passes=2)
    assert uniformity(joint_density(m, m.standardised_sample(1, 6)[:, 0], seed=1, num_draws=1).rank_N).p > 0.01


def test_ranks_of_one_galaxy():
    m = Mixture(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, 1), schema("identity"))
    rank = joint_density(m, np.zeros((1, 1)), seed=0).rank_N
    assert uniformity(rank).share_G[-1] == 1
