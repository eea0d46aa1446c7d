from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gampen_ray.data.catalog_writing import check_suffix, write_catalog
from gampen_ray.data.catalogs import column_unit, read_catalog
from gampen_ray.errors import UserError

TABLE = pa.table(
    {
        "object_id": ["007", "a,b", "c"],
        "number": pa.array([2**60 + 1, None, 3]),
        "flag": [True, True, False],
        "sure": pa.array([True, None, False]),
        "radius": pa.array([1.5, None, 0.1], pa.float32()),
    }
)
SCHEMA = TABLE.schema.set(4, pa.field("radius", pa.float32(), metadata={"unit": "arcsec", "description": "a size"}))


@pytest.mark.parametrize("suffix", ["csv", "ecsv", "fits", "parquet"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    uri = str(tmp_path / f"t.{suffix}")
    write_catalog(uri, TABLE.cast(SCHEMA))
    found = read_catalog(uri, ("object_id",))
    # A missing number may be read as NaN.
    np.testing.assert_allclose(found["radius"].to_numpy(), TABLE["radius"].to_numpy(), rtol=1e-6)
    assert found.drop_columns("radius").to_pydict() == TABLE.drop_columns("radius").to_pydict()
    assert column_unit(found, "radius") == ("" if suffix == "csv" else "arcsec")


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^output: 'Čapek' has other letters than those of FITS, ASCII; give \.ecsv"):
        write_catalog(str(tmp_path / "t.fits"), pa.table({"name": ["Čapek"]}))
    with pytest.raises(UserError, match=r"^field: t\.xml is no table by its name; give one that ends in \.csv, "):
        check_suffix("field", "t.xml")
    assert not list(tmp_path.iterdir())
