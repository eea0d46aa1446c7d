"""The rows to blame for the failure of a unit."""

import math

import pytest

from gampen_ray.engine.bisection import culprits


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 64, 1000])
def test_each_row_that_fails_alone_is_found_in_few_trials(num_rows: int) -> None:
    for bad in ({0}, {num_rows - 1}, {num_rows // 2}, {0, num_rows // 3, num_rows - 1}):
        tried: list[range] = []

        def fails(rows: range, bad: set[int] = bad, tried: list[range] = tried) -> str:
            tried.append(rows)
            return f"row {min(bad & set(rows))}" if bad & set(rows) else ""

        assert culprits(num_rows, fails) == {row: f"row {row}" for row in bad}
        assert len(tried) <= 2 * len(bad) * (1 + math.ceil(math.log2(num_rows)))


def test_rows_that_only_fail_together_or_once_are_not_to_blame() -> None:
    assert culprits(10, lambda rows: "too large" if len(rows) > 3 else "") == {}
    assert culprits(10, lambda _: "") == {}


def test_where_everything_fails_the_search_ends() -> None:
    tried = []
    found = culprits(5000, lambda rows: tried.append(rows) or "no disk")
    assert found == dict.fromkeys(range(5000), "no disk")
    assert len(tried) < 100
