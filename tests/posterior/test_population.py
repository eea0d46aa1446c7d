"""Populations from noisy posteriors, against the truth that made them."""

import numpy as np
import pytest
import torch

from gampen_ray.errors import UserError
from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.population import Population, cell_probabilities, population, shares
from gampen_ray.posterior.prior import Prior

NOISE = 0.5


def schema(*names: str) -> TargetSchema:
    targets = [
        Target(name=name, unit="", transform="identity", clip_low=0, clip_high=1, location=0.0, scale=1.0, low=-6.0, high=6.0)
        for name in names
    ]
    return TargetSchema(tuple(targets))


def observed(true_ND: np.ndarray, prior_sigma: float = np.inf) -> Mixture:
    """The exact posteriors of values with Gaussian noise of `NOISE`, under a Gaussian prior about 0."""
    count, dims = true_ND.shape
    noisy_ND = true_ND + np.random.default_rng(1).normal(0, NOISE, true_ND.shape)
    kept = 1 / (1 + NOISE**2 / prior_sigma**2)
    tril_NKDD = torch.eye(dims, dtype=torch.float64).expand(count, 1, dims, dims) * NOISE * kept**0.5
    return Mixture(torch.from_numpy(kept * noisy_ND)[:, None], tril_NKDD, schema(*"ab"[:dims]))


def flat_prior(dims: int = 1) -> Prior:
    return Prior.fit(np.random.default_rng(0).uniform(-6, 6, (50_000, dims)), schema(*"ab"[:dims]))


def two_peaks(count: int) -> np.ndarray:
    rng = np.random.default_rng(2)
    return np.where(rng.random(count) < 0.7, rng.normal(-1.4, 0.6, count), rng.normal(1.6, 0.6, count))[:, None]


@pytest.mark.parametrize("prior_sigma", [np.inf, 1.5])
def test_a_known_population_is_recovered_from_gaussian_noise(prior_sigma: float) -> None:
    """Whatever the prior under which the posteriors were made."""
    truth_ND, fine, coarse = two_peaks(3000), np.linspace(-5, 5, 26), np.linspace(-5, 5, 11)
    prior = flat_prior()
    if np.isfinite(prior_sigma):
        prior = Prior.fit(np.random.default_rng(3).normal(0, prior_sigma, (100_000, 1)), schema("a"))
    posterior = observed(truth_ND, prior_sigma)
    # Cells are finer than the bins that are asked for.
    found = population(posterior, prior, {"a": fine}, num_draws=500).marginal("a")
    share_SB = np.add.reduceat(found, np.arange(0, 25, 5), axis=1)
    truth_B, naive_B = (np.histogram(values_N, coarse[::2])[0] / 3000 for values_N in (truth_ND, posterior.mean()))
    pull_B, naive_pull_B = ((row_B - truth_B) / share_SB.std(axis=0) for row_B in (share_SB.mean(axis=0), naive_B))
    assert np.abs(pull_B).max() < 3
    assert np.abs(naive_pull_B).max() > 5
    assert share_SB.std(axis=0).max() < 0.03


def test_a_relation_of_two_targets_is_recovered() -> None:
    rng = np.random.default_rng(4)
    a_N = rng.normal(0, 1.0, 1000)
    posterior = observed(np.stack([a_N, 0.8 * a_N + rng.normal(0, 0.3, 1000)], axis=1))
    edge, middle = np.linspace(-5, 5, 16), np.linspace(-5, 5, 31)[1::2]
    share_SAB = population(posterior, flat_prior(2), {"a": edge, "b": edge}, num_draws=200).marginal("a", "b")
    a_S, b_S = share_SAB.sum(axis=2) @ middle, share_SAB.sum(axis=1) @ middle
    product_S, square_S = np.einsum("sab,a,b->s", share_SAB, middle, middle), share_SAB.sum(axis=2) @ middle**2
    slope_S = (product_S - a_S * b_S) / (square_S - a_S**2)
    assert abs(slope_S.mean() - 0.8) < 3 * slope_S.std()
    assert slope_S.std() < 0.06
    # Noise on the abscissa makes the naive relation flatter.
    assert np.polyfit(*posterior.mean().T, 1)[0] < 0.68


def test_probabilities_of_cells_are_those_of_the_mixture() -> None:
    posterior, edge = observed(two_peaks(5)), np.array([-2.0, 0.0, 0.5, 3.0])
    exact_NB = cell_probabilities(posterior, {"a": edge})
    below = np.stack([posterior.cdf(np.full((5, 1), y))[:, 0] for y in edge], axis=1)
    np.testing.assert_allclose(exact_NB, np.diff(below, axis=1), atol=1e-12)
    drawn_NB = shares(posterior.sample(20_000, 0), posterior.targets, {"a": edge})
    np.testing.assert_allclose(drawn_NB, exact_NB, atol=0.015)
    assert cell_probabilities(observed(np.zeros((2, 2))), {"b": edge, "a": edge}).shape == (2, 9)
    # Cells of b, and in each those of a; the last edge belongs to the last cell.
    values = np.array([[[0.1, -1.0], [3.0, 3.0], [9.0, 0.0]]])
    found = shares(values, schema("a", "b"), {"b": edge, "a": edge})
    np.testing.assert_allclose(found, [np.array([0, 1, 0, 0, 0, 0, 0, 0, 1]) / 3])


def test_marginals_are_sums_over_the_other_targets() -> None:
    share_SB = np.arange(12.0).reshape(2, 6)
    found = Population(edges={"a": np.arange(3), "b": np.arange(4)}, share_SB=share_SB)
    np.testing.assert_array_equal(found.marginal("b"), share_SB.reshape(2, 2, 3).sum(axis=1))
    np.testing.assert_array_equal(found.marginal("a", "b"), share_SB.reshape(2, 2, 3))


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ({"c": np.arange(3)}, "edges: c is no target of the posteriors; name one of a"),
        ({"a": np.array([1.0, 0.0])}, "edges: those of a do not ascend"),
        ({"a": np.array([4.0, 5.0])}, "edges: 5 of 5 galaxies have no probability in any cell of the training; widen"),
        ({"a": np.array([7.0, 9.0])}, "edges: 5 of 5 galaxies have no probability in any cell of the training; widen"),
    ],
)
def test_misuse_is_told_in_one_line(edges: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        population(observed(np.full((5, 1), -40.0)), flat_prior(), edges)
    assert "\n" not in str(caught.value)


def test_a_population_of_no_galaxies_is_refused() -> None:
    none = Mixture(torch.zeros(0, 1, 1), torch.ones(0, 1, 1, 1), schema("a"))
    with pytest.raises(UserError, match="edges: 0 of 0 galaxies"):
        population(none, flat_prior(), {"a": np.linspace(-6, 6, 5)})
