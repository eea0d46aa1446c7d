"""Selections, orders and pages of a catalogue of 100,000 rows in files of all sizes, against NumPy."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.errors import StorageError, UserError
from gampen_ray.inference.flags import Flag
from gampen_ray.viewer import table as module
from gampen_ray.viewer.table import CatalogTable, Selection

COUNT, PAGE = 100_000, 9_973


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    flux = rng.lognormal(3, 1, COUNT).round(2)
    flux[rng.random(COUNT) < 0.01] = np.nan
    return {
        "object_id": 2**60 + rng.permutation(COUNT),
        "flux_mean": flux,
        "flags": np.where(rng.random(COUNT) < 0.1, 1 << rng.integers(0, 6, COUNT), 0),
    }


@pytest.fixture(scope="module")
def catalog(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> CatalogTable:
    root = tmp_path_factory.mktemp("catalog")
    (root / "catalog").mkdir()
    missing = np.isnan(values["flux_mean"]) & (np.arange(COUNT) % 2 == 0)
    columns = values | {"flux_mean": pa.array(values["flux_mean"], mask=missing), "mixture_mean": np.zeros(COUNT)}
    whole = pa.table(columns)
    ends = [0, *np.sort(np.random.default_rng(1).choice(COUNT, 60, replace=False)), COUNT]
    for part, (start, stop) in enumerate(itertools.pairwise(ends)):
        pq.write_table(whole.slice(start, stop - start), root / "catalog" / f"part-{part:06d}-0000.parquet", row_group_size=500)
    return CatalogTable(str(root))


def paged(catalog: CatalogTable, wanted: Selection) -> pa.Table:
    row_M = catalog.select(wanted)
    return pa.concat_tables(catalog.rows(row_M[i : i + PAGE], ["object_id", "flux_mean"]) for i in range(0, len(row_M), PAGE))


@pytest.mark.parametrize("descending", [False, True])
def test_pages_hold_every_row_once_in_their_order(catalog: CatalogTable, values: dict[str, Any], descending: bool) -> None:
    assert len(catalog) == COUNT
    found = paged(catalog, Selection(sort="flux_mean", descending=descending))
    np.testing.assert_array_equal(np.sort(found["object_id"].to_numpy()), 2**60 + np.arange(COUNT))
    flux = found["flux_mean"].to_numpy()
    known = int(np.isfinite(values["flux_mean"]).sum())
    expected = np.sort(values["flux_mean"])[:known]
    np.testing.assert_array_equal(flux[:known], expected[::-1] if descending else expected)
    assert np.isnan(flux[known:]).all()


def test_the_order_of_the_files_and_its_reverse(catalog: CatalogTable, values: dict[str, Any]) -> None:
    np.testing.assert_array_equal(paged(catalog, Selection())["object_id"].to_numpy(), values["object_id"])
    np.testing.assert_array_equal(catalog.select(Selection(descending=True)), np.arange(COUNT)[::-1])


def test_filters_hold_together(catalog: CatalogTable, values: dict[str, Any]) -> None:
    text = np.array(["12" in str(one) for one in values["object_id"]])
    flagged = values["flags"] == Flag.UNUSUAL_IMAGE.value
    bright = values["flux_mean"] > 20
    wanted = Selection(text="12", flag="UNUSUAL_IMAGE", where="flux_mean > 20")
    expected = np.flatnonzero(text & flagged & bright)
    assert 10 < len(expected) < 1000
    np.testing.assert_array_equal(catalog.select(wanted), expected)
    warned = np.isin(values["flags"], [8, 16, 32])
    for choice, those in {"any": values["flags"] != 0, "none": values["flags"] == 0, "warned": warned}.items():
        np.testing.assert_array_equal(catalog.select(Selection(flag=choice)), np.flatnonzero(those))
    assert len(catalog.select(Selection(text="no such"))) == len(catalog.rows(np.zeros(0, int))) == 0


def test_names_that_are_none_are_mistakes_and_mixtures_are_no_columns(catalog: CatalogTable) -> None:
    for wanted in (Selection(where="age > 1"), Selection(where="mixture_mean > 1"), Selection(sort="age"), Selection(flag="X")):
        with pytest.raises(UserError, match=r"^(where|sort|flag): .*there are: "):
            catalog.select(wanted)
    with pytest.raises(UserError, match=r"^where: .*compare columns"):
        catalog.select(Selection(where="__import__('os').system('true')"))


def test_rows_come_in_the_order_asked_for(catalog: CatalogTable, values: dict[str, Any]) -> None:
    rows = np.array([99_999, 3, 50_000, 3, 0])
    np.testing.assert_array_equal(catalog.rows(rows, ["object_id"])["object_id"].to_numpy(), values["object_id"][rows])
    assert catalog.rows(rows).column_names == ["object_id", "flux_mean", "flags"]


def test_a_sample_is_of_few_files_and_of_the_selection(catalog: CatalogTable, monkeypatch: pytest.MonkeyPatch) -> None:
    row_M = catalog.select(Selection(where="flux_mean > 20"))
    some = catalog.sample(row_M, 1_000)
    assert len(some) == 1_000 and np.isin(some, row_M).all() and (np.diff(some) > 0).all()
    np.testing.assert_array_equal(catalog.sample(row_M, COUNT), row_M)
    monkeypatch.setattr(module, "_SAMPLED_FILES", 2)
    assert len(catalog.sample(row_M, COUNT)) < len(row_M) / 2


def test_columns_that_are_kept_are_bounded(catalog: CatalogTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", 9 * COUNT)
    catalog._columns.clear()
    for name in ("flux_mean", "flags", "object_id", "flags"):
        assert len(catalog.column(name)) == COUNT
        assert list(catalog._columns) == [name]


def test_a_folder_without_files_and_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^catalog: .* holds no file of a catalogue; give the output folder"):
        CatalogTable(str(tmp_path))
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "part.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(StorageError, match=r"part\.parquet is damaged or no Parquet: "):
        CatalogTable(str(tmp_path))
