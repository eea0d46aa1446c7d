import numpy as np
import pytest

from gampen_ray.posterior.bins import LEVEL
from gampen_ray.posterior.local import local_coverage, terms

NAMES = ("radius", "flux")


def uniform_ranks(num_galaxies, seed):
    return np.random.default_rng(seed).random((num_galaxies, 2))


def test_terms_are_orthonormal_functions_of_the_features():
    rng = np.random.default_rng(2)
    columns = {"a": rng.lognormal(size=500), "b": rng.random(500)}
    columns["b"][:20] = np.nan
    names, term_NF = terms(columns | {"copy": 3 * columns["a"] ** 2, "constant feature": np.ones(500)})
    assert term_NF.T @ term_NF == pytest.approx(np.eye(len(names)), abs=1e-12)
    assert names == ["constant", *(f"{name}, degree {n}" for n in (1, 2, 3) for name in "ab"), "a × b"]
    # Whatever is a polynomial of the ranks is a combination of the terms.
    rank_N = columns["a"].argsort().argsort() / 500
    rest_N = rank_N**3 - term_NF @ (term_NF.T @ rank_N**3)
    assert np.abs(rest_N).max() < 1e-9


def test_coefficient_of_the_constant_is_the_mean_rank():
    rank_ND = uniform_ranks(400, 3)
    rank_ND[:, 0] = 0.3 + 0.4 * rank_ND[:, 0] ** 2
    found = local_coverage(NAMES, rank_ND, rank_ND, ["constant"], np.full((400, 1), 1 / 20))
    width = np.sqrt(5 / 400) * (6 * rank_ND[:, 0] ** 2 - 6 * rank_ND[:, 0] + 1).sum()
    assert found["coefficient"] == pytest.approx(width)
    assert (found["statistic"], found["term"], found["degrees"]) == ("width of radius", "constant", 5)
    assert found["p"] < 0.01


def test_dependence_of_two_targets_is_found():
    rank_ND = uniform_ranks(2000, 4)
    rank_ND[:, 1] = (rank_ND[:, 0] + 0.8 * rank_ND[:, 1]) % 1
    found = local_coverage(NAMES, rank_ND, rank_ND, ["constant"], np.full((2000, 1), 2000**-0.5))
    assert found["statistic"] == "dependence of radius and flux"


def test_spread_of_the_local_coverage():
    """Half of the galaxies are covered by 0.9, the others by 0.4636 of the intervals: 68.27 % on average."""
    rng = np.random.default_rng(5)
    value_N = np.arange(20_000) / 20_000
    share_N = np.where(value_N < 0.5, 0.9, 2 * LEVEL - 0.9)
    inside = rng.random(20_000) < share_N
    offset_N = np.where(inside, LEVEL * rng.random(20_000), LEVEL + (1 - LEVEL) * rng.random(20_000))
    wrong_N = 0.5 + 0.5 * offset_N * rng.choice([-1, 1], 20_000)
    rank_ND = np.stack([wrong_N, rng.random(20_000)], axis=1)
    step = np.stack([np.ones(20_000), np.sign(value_N - 0.5)], axis=1) / np.sqrt(20_000)
    found = local_coverage(NAMES, rank_ND, rank_ND, ["constant", "step"], step)
    assert found["spread"]["radius"] == pytest.approx(0.9 - LEVEL, abs=0.01)
    assert found["spread"]["flux"] < 0.01
    assert (found["statistic"], found["term"]) == ("width of radius", "step")
