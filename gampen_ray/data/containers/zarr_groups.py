"""Zarr groups: an array of images, with Cutana's table of sources beside the group or columns inside it."""

from typing import Any, ClassVar

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data import catalogs
from gampen_ray.data.containers.stacks import INDEX, StackContainer

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
