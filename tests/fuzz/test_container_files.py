"""A short run of what `python -m tests.fuzz.container_files` does at length."""

import pytest

from tests.fuzz.container_files import run


@pytest.mark.parametrize("kind", ["hdf5", "zarr", "parquet", "npz"])
def test_mutated_containers_give_images_or_reasons(kind: str) -> None:
    if kind in ("hdf5", "zarr"):
        pytest.importorskip({"hdf5": "h5py"}.get(kind, kind))
    result = run(kind, 15, 20)
    assert (result["findings"], sum(result["outcomes"].values())) == ([], 15)
    assert result["memory_gb"] < 1
