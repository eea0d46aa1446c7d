import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats

from gampen_ray.errors import UserError
from gampen_ray.posterior.mixture import Mixture
from tests.posterior.posterior_cases import components_1d, gaussian, mixture, schema

ALL = ("identity", "log", "logit")
LINK = {"identity": lambda t: t, "log": np.exp, "logit": special.expit}


def density_in_y(transform, means, sigmas):
    """Physical-space density of components given in transformed space, from scipy alone."""
    slope = {"identity": lambda y: 1.0, "log": lambda y: 1 / y, "logit": lambda y: 1 / (y * (1 - y))}[transform]
    inverse = {"identity": lambda y: y, "log": np.log, "logit": special.logit}[transform]
    return lambda y: np.mean(stats.norm.pdf(inverse(y), means, sigmas)) * slope(y)


def central_moments(transform, means, sigmas):
    """Mean and central moments 2 to 4 by adaptive quadrature over t."""
    link = LINK[transform]
    knots = np.unique(np.concatenate([np.add.outer(means, k * np.asarray(sigmas)).ravel() for k in (-12, -4, 0, 4, 14)]))

    def expect(g):
        pieces = itertools.pairwise(knots)
        pdf = lambda t: np.mean(stats.norm.pdf(t, means, sigmas))  # noqa: E731
        return sum(integrate.quad(lambda t: g(link(t)) * pdf(t), a, b, epsabs=1e-14, epsrel=1e-11)[0] for a, b in pieces)

    mean = expect(lambda y: y)
    return mean, *(expect(lambda y, p=p: (y - mean) ** p) for p in (2, 3, 4))


class TestConstruction:
    def test_wrong_mean_shape(self):
        with pytest.raises(ValueError, match=r"mean_NKD has shape \(2, 3, 1\); it must be N x K x 2"):
            Mixture(torch.zeros(2, 3, 1), torch.ones(2, 3, 1, 1), schema("log", "logit"))

    def test_wrong_tril_shape(self):
        with pytest.raises(ValueError, match="scale_tril_NKDD has shape"):
            Mixture(torch.zeros(2, 3, 1), torch.ones(2, 2, 1, 1), schema("log"))

    def test_non_finite_galaxy_is_named(self):
        mean = torch.zeros(3, 2, 1)
        mean[1, 0] = math.nan
        with pytest.raises(ValueError, match=r"1 of 3 galaxies .* the first is number 1"):
            Mixture(mean, torch.ones(3, 2, 1, 1), schema("log"))

    def test_singular_covariance(self):
        with pytest.raises(ValueError, match="not positive definite"):
            Mixture(torch.zeros(3, 2, 1), torch.zeros(3, 2, 1, 1), schema("log"))

    def test_index_and_concatenate(self):
        m = mixture(*ALL, num_galaxies=7)
        parts = Mixture.concatenate([m[:3], m[np.array([3, 4])], m[5], m[np.arange(7) == 6]])
        assert len(parts) == 7 and parts.num_passes == 32
        assert torch.equal(parts.mean_NKD, m.mean_NKD)
        assert [len(galaxy) for galaxy in m] == [1] * 7

    def test_concatenate_of_different_targets(self):
        with pytest.raises(ValueError, match="different target schemas"):
            Mixture.concatenate([mixture("log"), mixture("logit")])

    def test_no_galaxies(self):
        m = mixture(*ALL)[:0]
        assert m.mean().shape == m.mode().shape == m.quantile(0.5).shape == m.cdf(np.zeros((0, 3))).shape == (0, 3)
        assert m.to_table().num_rows == 0


class TestQuantiles:
    @pytest.mark.parametrize("transform", ALL)
    def test_agree_with_root_of_scipy_cdf(self, transform):
        means, sigmas = np.array([-1.0, 0.2, 0.5, 3.0]), np.array([0.4, 0.2, 1.0, 0.3])
        m = components_1d(transform, means, sigmas)
        for q in (1e-6, 0.00135, 0.3, 0.5, 0.9, 0.99865):
            t = optimize.brentq(lambda t, q=q: stats.norm.cdf(t, means, sigmas).mean() - q, -10, 10, xtol=1e-13, rtol=1e-14)
            assert m.quantile(q)[0, 0] == pytest.approx(LINK[transform](t), rel=1e-11)

    def test_agree_with_a_million_draws(self):
        m = mixture(*ALL, num_galaxies=1, spread=0.5, seed=3)
        draws = m.sample(1_000_000, seed=1)[0]
        levels = np.array([0.02275, 0.15865, 0.5, 0.84135, 0.97725])
        difference = m.quantile(levels)[0] - np.quantile(draws, levels, axis=0)
        assert np.all(np.abs(difference) < 0.005 * (m.quantile(levels[-1]) - m.quantile(levels[0])))

    def test_single_gaussian(self):
        m = gaussian([0.7], [[0.25]], "identity")
        assert m.quantile([0.1, 0.9])[0, :, 0] == pytest.approx(stats.norm.ppf([0.1, 0.9], 0.7, 0.5), rel=1e-12)

    def test_identical_components_are_one(self):
        m = components_1d("log", [0.7] * 5, [0.5] * 5)
        assert m.quantile(0.3)[0, 0] == pytest.approx(stats.lognorm.ppf(0.3, 0.5, scale=np.exp(0.7)), rel=1e-12)

    def test_widely_separated_components(self):
        m = components_1d("identity", [-100.0, 100.0], [0.1, 0.1])
        low, median, high = m.quantile([0.25, 0.5, 0.75])[0, :, 0]
        assert (low, high) == (pytest.approx(-100), pytest.approx(100))
        assert -100 < median < 100

    def test_narrow_component_in_a_broad_one(self):
        m = components_1d("identity", [0.0, 1.0], [1.0, 1e-6])
        cdf = lambda t: 0.5 * (stats.norm.cdf(t) + stats.norm.cdf(t, 1.0, 1e-6))  # noqa: E731
        assert cdf(m.quantile(0.7)[0, 0]) == pytest.approx(0.7, abs=1e-9)

    def test_inverts_cdf_over_many_galaxies(self):
        m = mixture(*ALL, num_galaxies=600, spread=1.5, location=0.0)
        inner = m.quantile(0.4)
        inner[:, 2] = np.clip(inner[:, 2], 0.01, 0.99)
        expected = np.where((inner[:, 2] > 0.01) & (inner[:, 2] < 0.99), 0.4, m.cdf(inner)[:, 2])
        assert m.cdf(inner)[:, :2] == pytest.approx(0.4, abs=1e-12)
        assert m.cdf(inner)[:, 2] == pytest.approx(expected, abs=1e-12)

    def test_credible_interval_is_equal_tailed(self):
        m = mixture(*ALL)
        assert np.array_equal(m.credible_interval(0.9), m.quantile([0.05, 0.95]))
        assert m.credible_interval(0.9).shape == (20, 2, 3)

    def test_level_outside_zero_one(self):
        with pytest.raises(ValueError, match="must lie strictly between 0 and 1"):
            mixture("log").quantile([0.5, 1.0])


class TestMoments:
    @pytest.mark.parametrize("transform", ALL)
    @pytest.mark.parametrize(
        ("means", "sigmas"),
        [([0.4], [0.5]), ([-1.0, 0.5, 0.8], [0.3, 0.6, 0.2]), ([-3.0, 3.0], [0.2, 0.3]), ([0.0, 0.3], [1.5, 1.2])],
        ids=["K=1", "generic", "bimodal", "broad"],
    )
    def test_agree_with_adaptive_quadrature(self, transform, means, sigmas):
        m = components_1d(transform, means, sigmas)
        mean, second, third, fourth = central_moments(transform, np.array(means), np.array(sigmas))
        tolerance = {"rel": 1e-6, "abs": 1e-9}
        assert m.mean()[0, 0] == pytest.approx(mean, **tolerance)
        assert m.std()[0, 0] == pytest.approx(math.sqrt(second), **tolerance)
        assert m.skew()[0, 0] == pytest.approx(third / second**1.5, rel=1e-6, abs=1e-8)
        assert m.kurtosis()[0, 0] == pytest.approx(fourth / second**2 - 3, rel=1e-6, abs=1e-6)

    @pytest.mark.parametrize("mean", [-2.0, 0.0, 4.0])
    def test_logit_quadrature_at_sigma_three(self, mean):
        m = components_1d("logit", [mean], [3.0])
        expected = central_moments("logit", np.array([mean]), np.array([3.0]))
        assert m.mean()[0, 0] == pytest.approx(expected[0], abs=1e-7)
        assert m.std()[0, 0] == pytest.approx(math.sqrt(expected[1]), abs=1e-6)

    def test_lognormal(self):
        m = gaussian([2.0], [[0.36]], "log")
        mean, var, skew, kurtosis = stats.lognorm.stats(0.6, scale=np.exp(2.0), moments="mvsk")
        got = (m.mean(), m.std(), m.skew(), m.kurtosis())
        assert [x[0, 0] for x in got] == pytest.approx([mean, math.sqrt(var), skew, kurtosis], rel=1e-12)

    @pytest.mark.parametrize("transform", ALL)
    def test_tiny_sigma_is_linear(self, transform):
        m = components_1d(transform, [1.0, 1.0], [1e-6, 1e-6])
        slope = {"identity": 1.0, "log": math.e, "logit": special.expit(1.0) * special.expit(-1.0)}[transform]
        assert m.std()[0, 0] == pytest.approx(1e-6 * slope, rel=1e-5)
        assert m.kurtosis()[0, 0] == pytest.approx(0, abs=1e-4)

    def test_large_fluxes_do_not_overflow(self):
        m = components_1d("log", [300.0, 300.2], [0.3, 0.3])
        shifted = components_1d("log", [0.0, 0.2], [0.3, 0.3])
        assert m.kurtosis() == pytest.approx(shifted.kurtosis(), rel=1e-9)
        assert m.std() == pytest.approx(shifted.std() * math.exp(300), rel=1e-9)

    def test_law_of_total_variance(self):
        m = mixture(*ALL)
        assert m.aleatoric_std() ** 2 + m.epistemic_std() ** 2 == pytest.approx(m.std() ** 2, rel=1e-12)

    def test_identical_components_have_no_epistemic_part(self):
        m = components_1d("logit", [0.7] * 4, [0.5] * 4)
        assert m.epistemic_std()[0, 0] == pytest.approx(0, abs=1e-12)
        assert m.aleatoric_std() == pytest.approx(m.std())


class TestCovariance:
    @pytest.mark.parametrize("correlation", [-0.95, 0.3, 0.8])
    @pytest.mark.parametrize("sigma", [0.4, 1.2, 2.0])
    @pytest.mark.parametrize(
        "pair",
        [
            ("identity", "identity"),
            ("log", "identity"),
            ("identity", "logit"),
            ("log", "log"),
            ("logit", "log"),
            ("logit", "logit"),
        ],
        ids="-".join,
    )
    def test_agrees_with_two_dimensional_quadrature(self, pair, sigma, correlation):
        covariance = np.array([[sigma**2, correlation * sigma * 0.7], [correlation * sigma * 0.7, 0.49]])
        m = gaussian([0.5, -0.8], covariance, *pair)
        # Tensor-product trapezoid in the two independent variates, 401 x 401 nodes to 10 sigma.
        u = np.linspace(-10, 10, 401)
        weight = np.exp(-0.5 * u**2) / np.exp(-0.5 * u**2).sum()
        factor = np.linalg.cholesky(covariance)
        x = LINK[pair[0]](0.5 + factor[0, 0] * u)[:, None]
        y = LINK[pair[1]](-0.8 + factor[1, 0] * u[:, None] + factor[1, 1] * u)
        joint = weight[:, None] * weight
        expected = (joint * (x - (joint * x).sum()) * (y - (joint * y).sum())).sum()
        scale = m.std()[0].prod()
        assert abs(m.covariance()[0, 0, 1] - expected) < 3e-6 * scale

    def test_mixture_agrees_with_a_million_draws(self):
        m = mixture("logit", "log", "identity", "logit", num_galaxies=1, spread=0.6, seed=5)
        draws = m.sample(1_000_000, seed=2)[0]
        assert m.correlation()[0] == pytest.approx(np.corrcoef(draws.T), abs=0.005)
        assert m.std()[0] == pytest.approx(draws.std(0), rel=0.005)

    def test_diagonal_is_variance(self):
        m = mixture(*ALL)
        assert np.diagonal(m.covariance(), axis1=1, axis2=2) == pytest.approx(m.std() ** 2, rel=1e-12)
        assert np.diagonal(m.correlation(), axis1=1, axis2=2) == pytest.approx(1.0)


class TestMode:
    def test_lognormal_closed_form(self):
        assert gaussian([2.0], [[0.36]], "log").mode()[0, 0] == pytest.approx(math.exp(2.0 - 0.36), rel=1e-12)

    def test_gaussian(self):
        assert gaussian([2.0], [[0.36]], "identity").mode()[0, 0] == pytest.approx(2.0, rel=1e-14)

    @pytest.mark.parametrize("transform", ALL)
    @pytest.mark.parametrize("seed", range(6))
    def test_agrees_with_brute_force(self, transform, seed):
        rng = np.random.default_rng(seed)
        means, sigmas = rng.normal(0, rng.choice([0.1, 0.7, 2.0]), 8), rng.uniform(0.15, 1.0, 8)
        m = components_1d(transform, means, sigmas)
        t = np.linspace(-12, 12, 400_001)
        jacobian = {"identity": 0 * t, "log": -t, "logit": np.logaddexp(0, t) + np.logaddexp(0, -t)}[transform]
        log_density = special.logsumexp(stats.norm.logpdf(t[:, None], means, sigmas), axis=1) + jacobian
        assert m.mode()[0, 0] == pytest.approx(LINK[transform](t[np.argmax(log_density)]), rel=1e-4, abs=1e-4)
        f = density_in_y(transform, means, sigmas)
        y = m.mode()[0, 0]
        assert f(y) >= max(f(y * (1 - 1e-4)), f(y * (1 + 1e-4)))

    def test_bimodal_takes_the_higher_peak(self):
        assert components_1d("identity", [-5.0, 5.0], [1.0, 0.9]).mode()[0, 0] == pytest.approx(5.0, abs=1e-8)

    def test_equal_peaks_give_the_smaller_value(self):
        assert components_1d("identity", [-5.0, 5.0], [0.5, 0.5]).mode()[0, 0] == pytest.approx(-5.0, abs=1e-8)

    def test_wide_logit_is_bimodal_with_modes_near_the_ends(self):
        m = components_1d("logit", [0.1], [3.0])
        f = density_in_y("logit", [0.1], [3.0])
        assert m.mode()[0, 0] > 0.99
        assert f(m.mode()[0, 0]) > 3 * f(0.5)

    def test_tiny_sigma_far_apart(self):
        m = components_1d("log", [-3.0, 0.0, 4.0], [1e-4, 2e-4, 3e-4])
        assert m.mode()[0, 0] == pytest.approx(math.exp(-3 - 1e-8), rel=1e-9)


@pytest.mark.parametrize(
    ("mistake", "match"),
    [
        (lambda m: m.credible_interval(68), r"^level is 68; give a probability between 0 and 1, such as 0\.68$"),
        (lambda m: m.sample(-1, 0), r"^n is -1; give a number of draws$"),
        (lambda m: m.log_prob([1.0, 2.0]), r"^y_ND has the shape \(2,\), not \(3, 1\): a row a galaxy, \w+$"),
        (lambda m: m.cdf([[1.0, 2.0]] * 3), r"^y_ND has the shape \(3, 2\), not \(3, 1\)"),
    ],
)
def test_mistakes_are_one_line(mistake, match):
    with pytest.raises(ValueError, match=match):
        mistake(mixture("identity", num_galaxies=3))


def test_densities_take_lists():
    m = mixture("identity", num_galaxies=2)
    assert m.log_prob([[0.1], [0.2]]).tolist() == m.log_prob(np.array([[0.1], [0.2]])).tolist()


class TestDensities:
    @pytest.mark.parametrize("transform", ALL)
    def test_marginal_density_integrates_to_one(self, transform):
        m = components_1d(transform, [-0.5, 0.4], [0.4, 0.3])
        y = LINK[transform](np.linspace(-4, 4, 4001))
        density = m.marginal_density(0, y)
        assert integrate.simpson(density[0], x=y) == pytest.approx(1, abs=1e-5)
        f = density_in_y(transform, [-0.5, 0.4], [0.4, 0.3])
        assert density[0, 2000] == pytest.approx(f(y[2000]), rel=1e-12)

    def test_marginal_density_vanishes_outside_the_domain(self):
        assert mixture("logit").marginal_density(0, np.array([-1.0, 0.0, 1.0, 2.0])).max() == 0
        assert mixture("log").marginal_density(0, np.array([-1.0, 0.0])).max() == 0

    def test_marginal_density_is_the_slope_of_the_cdf(self):
        m = mixture(*ALL, num_galaxies=300)
        y, h = 0.5, 1e-6
        slope = (m.cdf(np.full((300, 3), y + h)) - m.cdf(np.full((300, 3), y - h))) / (2 * h)
        for d in range(3):
            assert m.marginal_density(d, np.array([y]))[:, 0] == pytest.approx(slope[:, d], rel=1e-6, abs=1e-9)

    def test_log_prob_of_one_gaussian_component(self):
        mean, covariance = np.array([0.5, 0.3]), np.array([[0.3, 0.1], [0.1, 0.2]])
        m = gaussian(mean, covariance, "log", "logit")
        y = np.array([[1.7, 0.4]])
        t = np.array([np.log(1.7), special.logit(0.4)])
        expected = stats.multivariate_normal.logpdf(t, mean, covariance) - np.log(1.7) - np.log(0.4 * 0.6)
        assert m.log_prob(y) == pytest.approx([expected], rel=1e-12)

    def test_log_prob_in_one_dimension_is_the_marginal(self):
        m = mixture("logit", num_galaxies=4)
        assert np.exp(m.log_prob(np.full((4, 1), 0.3))) == pytest.approx(m.marginal_density(0, np.array([0.3]))[:, 0])

    def test_truth_outside_the_domain(self):
        with pytest.raises(UserError, match="log_0: 1 of 2 values lie outside"):
            mixture("log", num_galaxies=2).log_prob(np.array([[1.0], [-1.0]]))

    def test_samples_are_seeded_and_follow_the_marginals(self):
        m = mixture(*ALL, num_galaxies=3)
        draws = m.sample(4000, seed=7)
        assert draws.shape == (3, 4000, 3)
        assert np.array_equal(draws, m.sample(4000, seed=7))
        assert not np.array_equal(draws, m.sample(4000, seed=8))
        for d in range(2):
            target = m.targets.targets[d]
            sigma = np.linalg.norm(m.scale_tril_NKDD[0, :, d].numpy(), axis=-1)
            z = target.standardise(draws[0, :, d])
            cdf = lambda x, d=d, s=sigma: stats.norm.cdf(x[:, None], m.mean_NKD[0, :, d].numpy(), s).mean(1)  # noqa: E731
            assert stats.kstest(z, cdf).pvalue > 1e-3


class TestScaled:
    def test_stretches_standardised_quantiles_about_the_mean(self):
        m = mixture(*ALL)
        factor = np.array([0.5, 1.7, 3.0])
        centre = m.standardised_mean()[:, None]
        q = np.array([0.01, 0.4, 0.8])
        expected = centre + factor * (m.standardised_quantile(q) - centre)
        assert m.scaled(factor).standardised_quantile(q) == pytest.approx(expected, rel=1e-9, abs=1e-10)

    def test_inverse(self):
        m = mixture(*ALL)
        back = m.scaled(np.array([0.5, 1.7, 3.0])).scaled(1 / np.array([0.5, 1.7, 3.0]))
        assert back.mean_NKD.numpy() == pytest.approx(m.mean_NKD.numpy(), rel=1e-12)
        assert back.scale_tril_NKDD.numpy() == pytest.approx(m.scale_tril_NKDD.numpy(), rel=1e-12)

    def test_not_positive(self):
        with pytest.raises(ValueError, match="must hold 1 positive numbers"):
            mixture("log").scaled(np.array([0.0]))


def test_standardised_std_is_that_of_draws():
    made = mixture("log", "logit", num_galaxies=5)
    draws = made.standardised_sample(200_000, seed=0)
    np.testing.assert_allclose(made.standardised_std(), draws.std(1), rtol=0.01)
    np.testing.assert_allclose(made.standardised_mean(), draws.mean(1), atol=0.01)


def test_probabilities_take_one_pair_of_ends_for_all_and_refuse_others() -> None:
    m = mixture("logit", num_galaxies=4)
    assert m.probability(0, 1) == pytest.approx(np.ones((4, 1)))
    assert m.probability(0.2, 0.6) == pytest.approx(m.cdf(np.full((4, 1), 0.6)) - m.cdf(np.full((4, 1), 0.2)))
    with pytest.raises(ValueError, match="low_ND is above high_ND; give the lower value first"):
        m.probability(0.6, 0.2)
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(\); give a number a galaxy and target, \(4, 1\)"):
        m.probability(np.zeros(3), 1)
