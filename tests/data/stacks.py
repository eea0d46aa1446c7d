"""Files of many galaxies, and the columns that a whole plan of them gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gampen_ray.config import CutoutsConfig, ReaderConfig
from gampen_ray.data.ingest_plan import plan
from gampen_ray.data.packing import read_rows

SIZE, COUNT = 12, 40
BANDS = ("g", "r", "z")
RNG = np.random.default_rng(3)
ONE = RNG.normal(size=(COUNT, SIZE, SIZE)).astype(np.float32)
SEVERAL = RNG.normal(size=(COUNT, 3, SIZE, SIZE)).astype(np.float32)
IDS = [f"G{number:03d}" for number in range(COUNT)]
RA = np.linspace(10, 20, COUNT)


def read_plan(images: Path, *, catalog: Path | None = None, per_unit: int = 7, **reader: Any) -> dict[str, Any]:
    """Return the columns of a whole plan, read in units as workers would."""
    config = CutoutsConfig(
        images=str(images),
        catalog=str(catalog) if catalog else "",
        cutout_size=SIZE,
        reader=ReaderConfig(**{"nan_policy": "zero"} | reader),
    )
    rows, info = plan(config)
    parts = [read_rows(rows.slice(start, per_unit), config.reader, info) for start in range(0, len(rows), per_unit)]
    joined: dict[str, Any] = {name: np.concatenate([np.asarray(part[0][name]) for part in parts]) for name in parts[0][0]}
    return joined | {"reason": np.concatenate([part[2] for part in parts]), "info": info}


def write_hdf5(path: Path, **arrays: Any) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file.create_dataset(name, data=values, compression="gzip", chunks=True)


def write_zarr(path: Path, **arrays: Any) -> None:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(str(path), mode="w")
    for name, values in arrays.items():
        group.create_array(name, data=np.asarray(values))


def write_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


def write_npz_compressed(path: Path, **arrays: Any) -> None:
    np.savez_compressed(path, **arrays)
