"""Mixtures under another prior, against closed forms and many weighted draws."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gampen_ray.posterior.exchange import exchange_prior
from gampen_ray.posterior.mixture import Mixture
from tests.posterior.posterior_cases import gaussian, mixture, schema


def normal(mean_D, covariance_DD):
    return lambda y: stats.multivariate_normal(mean_D, covariance_DD).logpdf(y)


def flat(y):
    return np.zeros(y.shape[:-1])


@pytest.mark.parametrize("num_passes", [1, 17, 289])
def test_gaussian_priors_give_the_product_of_gaussians(num_passes: int) -> None:
    """A posterior N(m, S) under N(0, A), put under N(b, B): the precisions add, and A's is taken off."""
    mean_D, covariance_DD = np.array([0.4, -0.3]), np.array([[0.09, 0.03], [0.03, 0.16]])
    old_DD, new_D, new_DD = np.diag([4.0, 2.0]), np.array([0.2, 0.1]), np.array([[0.3, 0.1], [0.1, 0.2]])
    precision_DD = np.linalg.inv(covariance_DD) - np.linalg.inv(old_DD) + np.linalg.inv(new_DD)
    exact_DD = np.linalg.inv(precision_DD)
    exact_D = exact_DD @ (np.linalg.solve(covariance_DD, mean_D) + np.linalg.solve(new_DD, new_D))
    one = gaussian(mean_D, covariance_DD, "identity", "identity")
    posterior = Mixture(one.mean_NKD.repeat(1, num_passes, 1), one.scale_tril_NKDD.repeat(1, num_passes, 1, 1), one.targets)
    found, share_N = exchange_prior(posterior, normal(new_D, new_DD), normal(np.zeros(2), old_DD))
    sigma_D = np.sqrt(np.diag(exact_DD))
    np.testing.assert_allclose(found.mean()[0], exact_D, atol=0.01 * sigma_D.min())
    np.testing.assert_allclose(found.covariance()[0], exact_DD, atol=0.005)
    ends = exact_D + np.outer([-1, 1], sigma_D)
    np.testing.assert_allclose(found.credible_interval(2 * stats.norm.cdf(1) - 1)[0], ends, atol=0.06 * sigma_D.min())
    assert found.num_passes == num_passes
    ratio = normal(new_D, new_DD)(draws := posterior.sample(100_000, 0)[0]) - normal(np.zeros(2), old_DD)(draws)
    weight = np.exp(ratio)
    assert share_N[0] == pytest.approx(weight.mean() ** 2 / (weight**2).mean(), rel=0.02)


def test_equal_priors_change_nothing_but_what_a_component_hides() -> None:
    posterior = mixture("log", "logit", num_galaxies=6, num_passes=289)
    found, share_N = exchange_prior(posterior, flat, flat)
    np.testing.assert_allclose(share_N, 1)
    np.testing.assert_allclose(found.standardised_mean(), posterior.standardised_mean(), atol=0.01)
    np.testing.assert_allclose(found.standardised_std(), posterior.standardised_std(), rtol=0.02)
    levels = np.array([0.1587, 0.5, 0.8413])
    offset = found.standardised_quantile(levels) - posterior.standardised_quantile(levels)
    assert np.abs(offset / posterior.standardised_std()[:, None]).max() < 0.12


def test_a_prior_of_two_groups_is_that_of_many_weighted_draws() -> None:
    """The shape of a prior is in the result, not its moments alone: B/T is in two groups far apart."""
    posterior = mixture("logit", "log", num_galaxies=4, num_passes=289)

    def groups(y):
        return np.where((y[..., 0] < 0.35) | (y[..., 0] > 0.75), 0.0, np.log(0.05))

    found, _ = exchange_prior(posterior, groups, flat)
    many = posterior.reweight(groups, flat, num_draws=100_000)
    assert np.abs((found.mean() - many.mean()) / many.std()).max() < 0.08
    np.testing.assert_allclose(found.std(), many.std(), rtol=0.1)
    for level in (0.1587, 0.5, 0.8413):
        below_NSD = many.draw_NSD < found.quantile(level)[:, None]
        np.testing.assert_allclose(np.einsum("ns,nsd->nd", many.weight_NS, below_NSD), level, atol=0.06)


def test_a_galaxy_does_not_depend_on_the_others_to_the_last_bit() -> None:
    posterior = mixture("log", "logit", "identity", num_galaxies=7, num_passes=17)
    priors = (normal(np.ones(3), np.eye(3)), normal(np.zeros(3), 3 * np.eye(3)))
    together, share_N = exchange_prior(posterior, *priors)
    for rows in (slice(3, 4), [6, 0, 3]):
        alone, alone_N = exchange_prior(posterior[rows], *priors)
        assert torch.equal(alone.mean_NKD, together.mean_NKD[rows])
        assert torch.equal(alone.scale_tril_NKDD, together.scale_tril_NKDD[rows])
        np.testing.assert_array_equal(alone_N, share_N[rows])


def test_what_the_prior_excludes_keeps_its_posterior_and_has_no_share() -> None:
    posterior = mixture("identity", num_galaxies=3, num_passes=5)
    found, share_N = exchange_prior(posterior, lambda y: np.full(y.shape[:-1], -np.inf), flat)
    assert share_N.tolist() == [0, 0, 0]
    assert torch.equal(found.mean_NKD, posterior.mean_NKD)


def test_a_few_draws_that_are_left_give_a_proper_posterior() -> None:
    """Far from the prior a single draw has almost all of the weight: wide, as that is all that is known, and finite."""
    targets = schema("identity", "identity")
    posterior = Mixture(torch.zeros(1, 17, 2), torch.eye(2).expand(1, 17, 2, 2), targets)
    found, share_N = exchange_prior(posterior, normal([0.0, 0.0], 1e-6 * np.eye(2)), flat)
    assert 0 < share_N[0] < 0.005
    assert np.isfinite(found.std()).all() and (found.std() > 0.01).all()
    assert math.isclose(found.scale_tril_NKDD.triu(1).abs().max(), 0)


def test_an_empty_catalogue_stays_empty() -> None:
    found, share_N = exchange_prior(mixture("log", num_galaxies=2)[:0], flat, flat)
    assert (len(found), len(share_N)) == (0, 0)
