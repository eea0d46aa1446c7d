import numpy as np
import pytest
import torch
from scipy import stats

from gampen_ray.posterior.local import terms
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.ranks import uniformity
from gampen_ray.posterior.tarp import references, tarp
from tests.posterior.posterior_cases import schema


def test_rank_of_an_isotropic_gaussian():
    """The squared distance of its draws from a point has a noncentral chi-squared distribution."""
    rng = np.random.default_rng(0)
    m = Mixture(torch.zeros(60, 1, 3), 0.7 * torch.eye(3).expand(60, 1, 3, 3), schema(*["identity"] * 3))
    z_ND, reference_ND = m.standardised_sample(1, 1)[:, 0], rng.normal(size=(60, 3))
    distance2_N, offset2_N = (np.square(x).sum(axis=1) / 0.7**2 for x in (z_ND - reference_ND, reference_ND))
    expected_N = stats.ncx2(3, offset2_N).cdf(distance2_N)
    assert tarp(m, z_ND, reference_ND, seed=0, num_draws=4000) == pytest.approx(expected_N, abs=0.04)


def test_distances_are_in_units_of_the_posterior_widths():
    width = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    m = Mixture(torch.zeros(1, 1, 2), torch.diag(width).expand(1, 1, 2, 2), schema("identity", "identity"))
    far = tarp(m, np.array([[0.0, 4e-4]]), np.zeros((1, 2)), seed=0)
    near = tarp(m, np.array([[0.1, 1e-5]]), np.zeros((1, 2)), seed=0)
    assert far[0] > 0.99
    assert near[0] < 0.1


def test_a_reference_does_not_depend_on_the_galaxys_own_truth():
    rng = np.random.default_rng(3)
    z_ND = rng.normal(size=(200, 2))
    term_NF = terms({"a": rng.random(200), "b": rng.random(200)})[1]
    before = references(z_ND, term_NF, np.random.default_rng(0))
    changed = z_ND.copy()
    changed[17] += 100
    after = references(changed, term_NF, np.random.default_rng(0))
    assert after[17] == pytest.approx(before[17])
    assert not np.allclose(after, before)


def test_references_follow_the_features():
    rng = np.random.default_rng(4)
    feature_N = rng.random(3000)
    z_ND = np.stack([3 * feature_N, rng.normal(size=3000)], axis=1)
    reference_ND = references(z_ND, terms({"a": feature_N})[1], np.random.default_rng(0))
    assert np.corrcoef(reference_ND[:, 0], feature_N)[0, 1] > 0.99
    assert reference_ND[:, 1].std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("known", [True, False])
def test_a_posterior_equal_to_the_prior_fails_only_where_references_depend_on_the_image(known):
    rng = np.random.default_rng(5)
    z_ND = rng.normal(size=(2000, 2))
    image_ND = z_ND + 0.7 * rng.normal(size=z_ND.shape)
    features = {"a": image_ND[:, 0], "b": image_ND[:, 1]} if known else {"a": rng.random(2000)}
    prior = Mixture(torch.zeros(2000, 1, 2), torch.eye(2).expand(2000, 1, 2, 2), schema("identity", "identity"))
    rank_N = tarp(prior, z_ND, references(z_ND, terms(features)[1], np.random.default_rng(0)), seed=0)
    assert (uniformity(rank_N).p < 0.01) == known
