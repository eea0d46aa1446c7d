"""Every diagnostic rejects the wrong posteriors that it can see, and accepts the right one as often as it says."""

import numpy as np
import pytest
from scipy import stats

from tests.posterior.wrong_posteriors import WRONG, p_values, right

GALAXIES, REPETITIONS = 2000, 200
# What each test cannot see is not a fault: marginal ranks know nothing of a correlation, scores and joint ranks average over
# all galaxies, and balls about points in all directions hardly move with a shift.
ALL = {"crps", "energy score", "log score", "rank", "conditional rank", "joint rank", "tarp", "bins", "local coverage"}
SEEN = {
    "too wide": ALL,
    "too narrow": ALL,
    "shifted": {"rank", "bins", "local coverage"},
    "wrong in one bin": {"log score", "joint rank", "bins", "local coverage"},
    "wrong correlation": {"joint rank", "tarp", "local coverage"},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_posteriors_are_rejected(name):
    found = p_values(WRONG[name](right(GALAXIES, 1)), num_draws=128)
    assert {key for key in SEEN[name] if found[key] >= 0.01} == set()


@pytest.fixture(scope="module")
def accepted():
    few = 200
    cases, p_of = right(few * REPETITIONS, 2), {}
    for i in range(REPETITIONS):
        for key, p in p_values(cases[few * i : few * (i + 1)], num_draws=16, seed=i).items():
            p_of.setdefault(key, []).append(p)
    return p_of


@pytest.mark.parametrize("key", sorted(ALL))
@pytest.mark.parametrize("level", [0.05, 0.2])
def test_right_posteriors_are_rejected_as_often_as_stated(accepted, key, level):
    low, high = stats.binom(REPETITIONS, level).ppf([0.0005, 0.9995])
    assert low <= np.sum(np.array(accepted[key]) < level) <= high
