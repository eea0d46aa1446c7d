import numpy as np
import pyarrow as pa
import pytest

from gampen_ray.data.where import Where
from gampen_ray.errors import UserError

TABLE = pa.table(
    {
        "magnitude": [18.0, 20.0, 22.0, None, float("nan")],
        "count": [2**60, 2**60 + 1, 0, -3, 7],
        "size": [1, 30, 2, 3, 4],
        "tile": ["a", "b", None, "a b", "it's"],
        "good": [True, False, True, None, True],
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("magnitude < 20", [0]),
        ("magnitude <= 20.0", [0, 1]),
        ("20 < magnitude", [2]),
        ("18 < magnitude <= 22", [1, 2]),
        ("magnitude != 18", [1, 2]),
        # What is unknown fulfils neither a comparison nor its opposite.
        ("not magnitude < 20", [1, 2]),
        ("magnitude < 20 or count == 7", [0, 4]),
        ("magnitude < 21 and not (tile == 'a' or count < 0)", [1]),
        # A floating-point number would round it.
        (f"count == {2**60 + 1}", [1]),
        ("count >= -3 and count < 10", [2, 3, 4]),
        ('tile == "it\'s"', [4]),
        ("tile > 'a'", [1, 3, 4]),
        ("good", [0, 2, 4]),
        ("not good and magnitude == 20", [1]),
        ("good == True", [0, 2, 4]),
        ("  size < magnitude  ", [0, 2]),
    ],
)
def test_rows_that_fulfil_it(text: str, rows: list[int]) -> None:
    assert np.flatnonzero(Where(text)(TABLE)).tolist() == rows


def test_it_names_its_columns_once() -> None:
    assert Where("a < 1 and (b == 'x' or not a > c)").names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("magnitude <", "invalid syntax"),
        ("1 < 2", "it names no column"),
        ("magnitude + 1 < 20", r"'magnitude \+ 1' is neither a column, a number, a text nor a comparison"),
        ("__import__('os').system('true')", "is neither a column"),
        ("tile.upper() == 'A'", "is neither a column"),
        ("magnitude in (1, 2)", "In is no comparison"),
        ("magnitude < 20 if good else 3", "is neither a column"),
        ("magnitude[0] < 20", "is neither a column"),
        ("magnitude < None", "'None' is neither a column"),
        ("-tile < 3", "'-tile' is neither a column"),
        ("magnitude < 20; good", "invalid syntax"),
        ("(" * 500 + "magnitude < 1" + ")" * 500, "."),
        ("magnitude < 1 or " * 200 + "good", "it has 3,404 characters"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf"^where: .*{fault}.*; compare columns with numbers") as caught:
        Where(text)(TABLE)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tile < 3", "less"),
        ("magnitude", "it is double, neither true nor false"),
        ("magnitude and good", "and_kleene"),
        (f"count < {10**40}", "."),
    ],
)
def test_values_that_cannot_be_compared_are_refused(text: str, fault: str) -> None:
    with pytest.raises(UserError, match=rf"^where: .*{fault}"):
        Where(text)(TABLE)
