import itertools

import numpy as np
import pytest
from scipy import stats

from gampen_ray.posterior.local import LEVEL, bins, in_bins, local_coverage, terms

NAMES = ("radius", "flux")


def uniform_ranks(num_galaxies, seed):
    return np.random.default_rng(seed).random((num_galaxies, 2))


def test_bins_hold_equally_many_galaxies_in_order():
    value_N = np.random.default_rng(0).normal(size=1003)
    value_N[:3] = np.nan, np.inf, -np.inf
    parts = [members for name, members in bins({"psf": value_N})]
    assert [len(part) for part in parts] == [200] * 5
    assert all(value_N[a].max() <= value_N[b].min() for a, b in itertools.pairwise(parts))
    assert not {0, 1, 2} & set(np.concatenate(parts).tolist())


def test_few_galaxies_have_fewer_bins():
    columns = {"a": np.arange(60.0), "b": np.full(60, np.nan), "c": np.arange(3.0)}
    assert [(name, len(members)) for name, members in bins(columns)] == [("a", 30), ("a", 30), ("c", 3)]


def test_rows_by_hand():
    rank_ND = np.full((50, 2), 0.5)
    rank_ND[:10, 1] = 0.99
    score_ND = np.full((50, 2), np.nan)
    score_ND[:5, 0] = 2.0
    rows = in_bins(NAMES, rank_ND, {"psf": np.arange(50.0)}, scores={"crps": score_ND})["rows"]
    assert [(row["target"], row["low"], row["high"], row["num_galaxies"]) for row in rows] == [
        ("radius", 0, 24, 25),
        ("flux", 0, 24, 25),
        ("radius", 25, 49, 25),
        ("flux", 25, 49, 25),
    ]
    assert [row["coverage"] for row in rows] == [1, 0.6, 1, 1]
    assert rows[1]["mean_rank"] == pytest.approx((10 * 0.99 + 15 * 0.5) / 25)
    assert rows[1]["error"] == pytest.approx(np.sqrt(LEVEL * (1 - LEVEL) / 25))
    assert rows[1]["mean_rank_error"] == pytest.approx(1 / np.sqrt(12 * 25))
    assert [row.get("crps") for row in rows] == [2, None, None, None]


def test_largest_deviation_of_one_bin_is_that_of_four_normal_variables():
    found = in_bins(NAMES, uniform_ranks(1000, 0), {"a": np.zeros(1000)}, num_bins=1)
    assert found["critical"] == pytest.approx(3.02, abs=0.1)


def test_bins_of_equal_columns_count_once():
    rank_ND, value_N = uniform_ranks(1000, 1), np.arange(1000.0)
    one, two = in_bins(NAMES, rank_ND, {"a": value_N}), in_bins(NAMES, rank_ND, {"a": value_N, "b": -value_N})
    assert two["critical"] == pytest.approx(one["critical"], abs=0.1)
    assert in_bins(NAMES, rank_ND, {})["p"] == 1


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


def test_bins_find_where_posteriors_are_too_narrow():
    rng = np.random.default_rng(0)
    value_N = rng.random(4000)
    # Twice as wide as the posteriors say in the upper half.
    truth_ND = rng.normal(size=(4000, 2)) * np.where(value_N > 0.505, 2.0, 1.0)[:, None]
    column = {"psf": np.where(value_N < 0.01, np.nan, value_N)}
    rows = in_bins(NAMES, stats.norm.cdf(truth_ND), column, num_bins=2)["rows"]
    assert 0.01 <= rows[0]["low"] < rows[0]["high"] < rows[2]["low"]
    assert rows[0]["coverage"] == pytest.approx(LEVEL, abs=0.04)
    assert rows[2]["coverage"] == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.04)
