"""Zarr groups: an array of images, with Cutana's table of sources beside the group or columns inside it."""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data import catalogs
from gampen_ray.data.containers.stacks import INDEX, StackContainer, needs_values

__all__ = ["ZarrContainer"]

# Cutana's.
_METADATA, _ROW = "images_metadata.parquet", "idx_in_zarr"


class ZarrContainer(StackContainer):
    """A Zarr array of images, or a group that holds one; Cutana's table lists the galaxies where it is there."""

    suffixes: ClassVar[tuple[str, ...]] = (".zarr",)
    package: ClassVar[str] = "zarr"

    def __init__(self, uri: str, config: ReaderConfig) -> None:
        import zarr

        # s3fs reads the usual AWS_* variables, but by default accesses S3 without credentials.
        options = None if storage.is_local(uri) else {"anon": False}
        found: Any = zarr.open(uri, mode="r", storage_options=options)
        arrays: Any = {"images": found} if isinstance(found, zarr.Array) else dict(found.arrays())
        arrays = {name: _Stored(array) if needs_values(array) else array for name, array in arrays.items()}
        self._metadata = storage.join(uri.rstrip("/").rpartition("/")[0] or ".", _METADATA)
        super().__init__(uri, arrays, config)

    def rows(self) -> pa.Table:
        """Return Cutana's table, its ``idx_in_zarr`` as the number of the image, or the columns inside the group."""
        if not storage.exists(self._metadata):
            return super().rows()
        table = catalogs.read_catalog(self._metadata)
        if _ROW not in table.column_names:
            return table
        return table.rename_columns([INDEX if name == _ROW else name for name in table.column_names])


class _Stored:
    """An array whose chunks that are not there are NaN: Zarr reads its fill value, usually zero, in place of a lost chunk."""

    def __init__(self, array: Any) -> None:
        self.shape, self.dtype, self.chunks = array.shape, np.dtype(array.dtype), array.chunks
        # Integers that differ by the fill value are those of no chunk.
        self._read = [_filled(array, value) for value in ((np.nan,) if self.dtype.kind == "f" else (0, 1))]

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *second = (array[key] for array in self._read)
        if not second or (first == second[0]).all():
            return first
        return np.where(first == second[0], first, np.nan)


def _filled(array: Any, value: float) -> Any:
    import zarr

    metadata = dataclasses.replace(array.metadata, fill_value=array.dtype.type(value))
    return zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=array.store_path, config=array.config))
