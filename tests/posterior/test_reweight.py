"""Posteriors under new priors and the priors themselves, against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gampen_ray.errors import UserError
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.prior import Prior
from gampen_ray.posterior.reweight import effective_size
from tests.posterior.posterior_cases import gaussian, mixture, schema


def normal(mean_D, covariance_DD):
    return lambda y: stats.multivariate_normal(mean_D, covariance_DD).logpdf(y)


def test_gaussian_priors_give_the_product_of_gaussians() -> None:
    """A posterior N(m, S) under N(0, A), put under N(b, B): the precisions add, and A's is taken off."""
    mean_D, covariance_DD = np.array([0.4, -0.3]), np.array([[0.09, 0.03], [0.03, 0.16]])
    old_DD, new_D, new_DD = np.diag([4.0, 2.0]), np.array([0.2, 0.1]), np.array([[0.3, 0.1], [0.1, 0.2]])
    precision_DD = np.linalg.inv(covariance_DD) - np.linalg.inv(old_DD) + np.linalg.inv(new_DD)
    exact_DD = np.linalg.inv(precision_DD)
    exact_D = exact_DD @ (np.linalg.solve(covariance_DD, mean_D) + np.linalg.solve(new_DD, new_D))
    posterior = gaussian(mean_D, covariance_DD, "identity", "identity")
    found = posterior.reweight(normal(new_D, new_DD), normal(np.zeros(2), old_DD), num_draws=200_000)
    np.testing.assert_allclose(found.mean()[0], exact_D, atol=0.004)
    np.testing.assert_allclose(found.covariance()[0], exact_DD, atol=0.002)
    np.testing.assert_allclose(found.std()[0], np.sqrt(np.diag(exact_DD)), rtol=0.01)
    ends = exact_D + np.outer([-1, 1], np.sqrt(np.diag(exact_DD)))
    np.testing.assert_allclose(found.credible_interval(2 * stats.norm.cdf(1) - 1)[0], ends, atol=0.01)
    np.testing.assert_allclose(found.quantile(0.5)[0], exact_D, atol=0.006)


def test_effective_size_of_gaussian_weights_is_kishs() -> None:
    """For a posterior N(0, 1) and the ratio exp(a y): E(w)^2 / E(w^2) = exp(-a^2)."""
    assert effective_size(np.array([[1.0, 1, 1, 1], [1, 0, 0, 0], [3, 1, 0, 0], [0, 0, 0, 0]])).tolist() == [4, 1, 1.6, 0]
    posterior = gaussian([0.0], [[1.0]], "identity")
    found = posterior.reweight(lambda y: 0.8 * y[..., 0], lambda y: np.zeros(y.shape[:-1]), num_draws=100_000)
    assert found.effective_size_N[0] / 100_000 == pytest.approx(math.exp(-(0.8**2)), rel=0.03)
    assert found.mean()[0, 0] == pytest.approx(0.8, abs=0.02)


def test_the_training_prior_itself_changes_nothing() -> None:
    posterior = mixture("log", "logit", num_galaxies=3)
    same = normal(np.zeros(2), np.eye(2))
    found = posterior.reweight(same, same, num_draws=50)
    np.testing.assert_allclose(found.effective_size_N, 50)
    np.testing.assert_allclose(found.mean(), posterior.sample(50, 0).mean(axis=1))
    assert len(found) == 3


def test_draws_outside_the_training_have_no_weight() -> None:
    posterior = gaussian([0.0], [[1.0]], "identity")
    above = lambda y: np.where(y[..., 0] > 0, 0.0, -np.inf)  # noqa: E731
    found = posterior.reweight(lambda y: np.zeros(y.shape[:-1]), above, num_draws=100_000)
    assert found.mean()[0, 0] == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)
    nowhere = posterior.reweight(lambda y: np.full(y.shape[:-1], -np.inf), above)
    assert nowhere.effective_size_N.tolist() == [0]
    for value in (nowhere.mean(), nowhere.std(), nowhere.quantile(0.5), nowhere.credible_interval(0.5)):
        assert np.isnan(value).all()


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (lambda y: np.zeros(y.shape), r"new: gives the shape \(1000, 1\) for values of the shape \(1000, 1\); return one"),
        (lambda y: np.full(y.shape[:-1], np.nan), "new: is no log of a density at .*; return a finite number, or -inf"),
        (lambda y: np.full(y.shape[:-1], np.inf), "new: is no log of a density at"),
    ],
)
def test_what_is_no_prior_is_refused(new, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gaussian([0.0], [[1.0]], "identity").reweight(new, lambda y: np.zeros(y.shape[:-1]))


def drawn(count: int, seed: int = 0) -> np.ndarray:
    """Galaxies with a log-uniform radius, and B/T that goes with it."""
    rng = np.random.default_rng(seed)
    score = rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], count)
    return np.stack(
        [np.exp(stats.norm.cdf(score[:, 0]) * 2 - 1), stats.beta(0.8, 0.8).ppf(stats.norm.cdf(score[:, 1]))], axis=1
    )


def test_a_fitted_prior_has_the_density_and_the_relations_of_the_galaxies() -> None:
    prior, held_out = Prior.fit(drawn(50_000), schema("log", "logit")), drawn(5_000, seed=1)
    score = np.stack(
        [stats.norm.ppf((np.log(held_out[:, 0]) + 1) / 2), stats.norm.ppf(stats.beta(0.8, 0.8).cdf(held_out[:, 1]))]
    )
    copula = normal(np.zeros(2), [[1, 0.7], [0.7, 1]])(score.T) - stats.norm.logpdf(score).sum(axis=0)
    exact = copula - np.log(2 * held_out[:, 0]) + stats.beta(0.8, 0.8).logpdf(held_out[:, 1])
    found = prior.log_density(held_out)
    seen = np.isfinite(found)
    assert seen.mean() > 0.999
    assert np.mean((exact - found)[seen]) == pytest.approx(0, abs=0.01)
    assert np.std((exact - found)[seen]) < 0.15
    again = prior.sample(50_000, 3)
    assert stats.ks_2samp(again[:, 0], held_out[:, 0]).pvalue > 1e-3
    assert stats.ks_2samp(again[:, 1], held_out[:, 1]).pvalue > 1e-3
    assert stats.spearmanr(again)[0] == pytest.approx(stats.spearmanr(held_out)[0], abs=0.02)
    outside = np.array([[0.3, 0.5], [3.0, 0.5], [1.0, -0.1], [1.0, 1.1], [-1.0, 0.5]])
    assert np.isneginf(prior.log_density(outside)).all()


def test_its_density_adds_up_to_one() -> None:
    prior = Prior.fit(drawn(5_000), schema("log", "logit"))
    radius, ratio = np.linspace(0.3, 2.8, 1001), np.linspace(0, 1, 2001)
    radius, ratio = 0.5 * (radius[1:] + radius[:-1]), 0.5 * (ratio[1:] + ratio[:-1])
    grid = np.stack(np.meshgrid(radius, ratio, indexing="ij"), axis=-1)
    assert np.exp(prior.log_density(grid)).sum() * (radius[1] - radius[0]) * (ratio[1] - ratio[0]) == pytest.approx(1, abs=0.01)


def test_values_that_many_galaxies_share_are_one_bin() -> None:
    values = drawn(5_000)
    values[:2_000, 1] = 0.0
    prior = Prior.fit(values, schema("log", "logit"))
    assert prior.masses[1][0] == pytest.approx(0.4 + 0.6 * stats.beta(0.8, 0.8).cdf(0.01), abs=0.01)
    again = Prior.from_dict(prior.to_dict(), prior.targets)
    np.testing.assert_array_equal(again.log_density(values), prior.log_density(values))


def test_too_few_galaxies_make_no_prior() -> None:
    with pytest.raises(
        UserError, match=r"prior: the values have the shape \(99, 2\); give 2 columns, log_0, logit_1, of at least"
    ):
        Prior.fit(drawn(99), schema("log", "logit"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"masses": [[0.5, 0.6], [1.0]]}, "the shares of log_0 add up to 1.1"),
        ({"edges": [[1, 0, 2], [0, 1]]}, "log_0 has 3 ends of 2 bins, or they do not ascend"),
        ({"edges": [[0, 1, 2]]}, "there are 1 histograms for 2 targets"),
        ({"correlation": [[1, 2], [2, 1]]}, "no positive definite"),
        ({"correlation": [[1, 0], [0]]}, "no square matrix"),
    ],
)
def test_a_damaged_prior_is_refused(change: dict, message: str) -> None:
    sound = {"edges": [[0, 1, 2], [0, 1]], "masses": [[0.5, 0.5], [1.0]], "correlation": [[1.0, 0.0], [0.0, 1.0]]}
    targets = schema("log", "logit")
    assert np.isfinite(Prior.from_dict(sound, targets).log_density(np.array([2.0, 0.5])))
    with pytest.raises(ValueError, match=message):
        Prior.from_dict(sound | change, targets)


def test_reweighting_by_a_fitted_prior_undoes_it() -> None:
    """Posteriors under a prior of one mean, put under that of another, are those made with it."""
    rng = np.random.default_rng(5)
    first, second = (Prior.fit(rng.normal(mean, 1.0, (100_000, 1)), schema("identity")) for mean in (0.0, 0.5))
    noise, seen = 0.5, np.array([-0.5, 0.0, 1.0])
    kept = 1 / (1 + noise**2)
    target = schema("identity").targets[0]
    mean_NKD = torch.from_numpy((kept * seen - target.location) / target.scale)[:, None, None]
    tril_NKDD = torch.full((3, 1, 1, 1), noise * math.sqrt(kept) / target.scale, dtype=torch.float64)
    found = Mixture(mean_NKD, tril_NKDD, schema("identity")).reweight(second.log_density, first.log_density, num_draws=50_000)
    np.testing.assert_allclose(found.mean()[:, 0], kept * (seen + noise**2 * 0.5), atol=0.015)
    np.testing.assert_allclose(found.std()[:, 0], noise * math.sqrt(kept), rtol=0.02)
