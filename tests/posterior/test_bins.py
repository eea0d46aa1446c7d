import itertools

import astropy.units as u
import numpy as np
import pytest
from astropy_healpix import HEALPix
from scipy import stats

from gampen_ray.posterior.bins import LEVEL, bins, in_bins, pixels

NAMES = ("radius", "flux")


def uniform_ranks(num_galaxies, seed):
    return np.random.default_rng(seed).random((num_galaxies, 2))


def test_bins_hold_equally_many_galaxies_in_order():
    value_N = np.random.default_rng(0).normal(size=1003)
    value_N[:3] = np.nan, np.inf, -np.inf
    (groups,) = bins({"psf": value_N})
    parts = groups.members()
    assert [len(part) for part in parts] == [200] * 5
    assert all(value_N[a].max() <= value_N[b].min() for a, b in itertools.pairwise(parts))
    assert not {0, 1, 2} & set(np.concatenate(parts).tolist())


def test_few_galaxies_have_fewer_bins():
    columns = {"a": np.arange(60.0), "b": np.full(60, np.nan), "c": np.arange(3.0)}
    found = [(groups.column, len(members)) for groups in bins(columns) for members in groups.members()]
    assert found == [("a", 30), ("a", 30), ("c", 3)]


def test_rows_by_hand():
    rank_ND = np.full((50, 2), 0.5)
    rank_ND[:10, 1] = 0.99
    score_ND = np.full((50, 2), np.nan)
    score_ND[:5, 0] = 2.0
    rows = in_bins(NAMES, rank_ND, bins({"psf": np.arange(50.0)}), scores={"crps": score_ND})["rows"]
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
    found = in_bins(NAMES, uniform_ranks(1000, 0), bins({"a": np.zeros(1000)}, 1))
    assert found["critical"] == pytest.approx(3.02, abs=0.1)


def test_bins_of_equal_columns_count_once():
    rank_ND, value_N = uniform_ranks(1000, 1), np.arange(1000.0)
    columns = {"a": value_N}, {"a": value_N, "b": -value_N}
    one, two = (in_bins(NAMES, rank_ND, bins(named)) for named in columns)
    assert two["critical"] == pytest.approx(one["critical"], abs=0.1)
    assert in_bins(NAMES, rank_ND, [])["p"] == 1


def test_bins_find_where_posteriors_are_too_narrow():
    rng = np.random.default_rng(0)
    value_N = rng.random(4000)
    # Twice as wide as the posteriors say in the upper half.
    truth_ND = rng.normal(size=(4000, 2)) * np.where(value_N > 0.505, 2.0, 1.0)[:, None]
    column = {"psf": np.where(value_N < 0.01, np.nan, value_N)}
    rows = in_bins(NAMES, stats.norm.cdf(truth_ND), bins(column, 2))["rows"]
    assert 0.01 <= rows[0]["low"] < rows[0]["high"] < rows[2]["low"]
    assert rows[0]["coverage"] == pytest.approx(LEVEL, abs=0.04)
    assert rows[2]["coverage"] == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.04)


def test_texts_are_grouped_by_value():
    tile_N = np.repeat(np.array(["b", "a", "few", ""], dtype=object), [40, 25, 24, 30])
    (groups,) = bins({"tile": tile_N})
    assert [dict(label) for label in groups.labels] == [{"value": "a"}, {"value": "b"}]
    assert [set(tile_N[members]) for members in groups.members()] == [{"a"}, {"b"}]
    assert [len(members) for members in groups.members()] == [25, 40]
    assert bins({"tile": np.full(100, "", dtype=object)}) == []


def test_of_many_values_the_most_frequent_are_kept():
    tile_N = np.repeat([f"t{i:03d}" for i in range(210)], [25] * 10 + [26] * 200)
    (groups,) = bins({"tile": tile_N})
    assert [label["value"] for label in groups.labels] == [f"t{i:03d}" for i in range(10, 210)]


def test_bias_and_scatter_are_the_median_and_the_central_68_percent_of_errors():
    error_ND = np.random.default_rng(0).normal([0.3, -2.0], [1.0, 4.0], size=(40_000, 2))
    column = {"psf": np.arange(40_000.0)}
    rows = in_bins(NAMES, uniform_ranks(40_000, 0), bins(column, 1), errors={"": error_ND, "_sigma": error_ND / [1.0, 4.0]})[
        "rows"
    ]
    for row, bias, sigma in zip(rows, (0.3, -2.0), (1.0, 4.0), strict=True):
        assert row["bias"] == pytest.approx(bias, abs=4 * row["bias_error"])
        assert row["bias_error"] == pytest.approx(np.sqrt(np.pi / 2 / 40_000) * sigma, rel=0.02)
        assert row["scatter"] == pytest.approx(sigma, rel=0.02)
        assert (row["bias_sigma"], row["scatter_sigma"]) == pytest.approx((row["bias"] / sigma, row["scatter"] / sigma))


def test_the_largest_of_disjoint_groups_is_that_of_independent_variables():
    value_N = np.random.default_rng(1).random(20_000)
    rank_ND = uniform_ranks(20_000, 2)
    exact = in_bins(NAMES, rank_ND, bins({"a": value_N}, 40))["critical"]
    # A constant column shares its galaxies with all of them, and adds one group.
    drawn = in_bins(NAMES, rank_ND, bins({"a": value_N}, 40) + bins({"b": np.zeros(20_000)}, 1))["critical"]
    assert exact == pytest.approx(stats.norm.isf(0.5 * (1 - 0.99 ** (1 / 160))), abs=0.1)
    assert drawn == pytest.approx(exact, abs=0.15)


def test_pixels_hold_a_hundred_galaxies_in_the_median():
    rng = np.random.default_rng(3)
    # Across the origin of right ascension.
    ra_N, dec_N = (rng.uniform(-5, 5, 20_000) % 360), rng.uniform(-2, 3, 20_000)
    ra_N[:10], dec_N[10:20] = np.nan, np.nan
    nside, groups = pixels(ra_N, dec_N)
    sizes = [len(members) for members in groups.members()]
    assert np.median(sizes) >= 100 and min(sizes) >= 25 and len(sizes) > 50
    assert (groups.group_N[:20] == -1).all()
    healpix = HEALPix(nside, order="nested")
    for label, members in zip(groups.labels, groups.members(), strict=True):
        found = healpix.lonlat_to_healpix(*(angle[members] * u.deg for angle in (ra_N, dec_N)))
        assert set(found.tolist()) == {label["pixel"]}
        assert abs(dec_N[members].mean() - label["dec"]) < 1
        assert np.abs((ra_N[members] - label["ra"] + 180) % 360 - 180).max() < 2
    # Four times as many pixels would be too small.
    assert np.median(sizes) < 450


def test_few_galaxies_or_one_place_have_no_map():
    rng = np.random.default_rng(4)
    assert pixels(rng.uniform(0, 360, 99), rng.uniform(-90, 90, 99)) is None
    assert pixels(np.full(10_000, 150.0), np.full(10_000, 2.0)) is None
    assert pixels(np.full(500, np.nan), np.full(500, np.nan)) is None


def test_a_biased_patch_of_the_sky_is_found():
    rng = np.random.default_rng(5)
    ra_N, dec_N = rng.uniform(130, 140, 10_000), rng.uniform(-2, 3, 10_000)
    _, groups = pixels(ra_N, dec_N)
    biased = np.bincount(groups.group_N[groups.group_N >= 0]).argmax()
    rank_ND = rng.random((10_000, 2))
    assert in_bins(NAMES, rank_ND, [groups])["p"] > 0.01
    rank_ND[:, 1] = np.where(groups.group_N == biased, rank_ND[:, 1] ** 2, rank_ND[:, 1])
    found = in_bins(NAMES, rank_ND, [groups])
    assert found["p"] < 0.01
    worst = min(found["rows"], key=lambda row: row["mean_rank"])
    assert (worst["target"], worst["pixel"]) == ("flux", groups.labels[biased]["pixel"])
