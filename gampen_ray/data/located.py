"""Galaxies with their images: the columns of bookkeeping that the plan of an ingest has beside those of the catalogue."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray.data.containers import INDEX
from gampen_ray.data.image_reading import FILES, SOURCE

__all__ = ["Located", "bundled"]

pc: Any = pyarrow.compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Located:
    """Galaxies and their images.

    Parameters
    ----------
    table
        Columns of the catalogue, or those beside the images of a file of many; an identifier only if there is one.
    source
        URI of each galaxy's file, null where there is none.
    faults
        Why there is none, by row; empty text, or no rows at all, for the ordinary reasons.
    catalog
        URI of the catalogue, empty without one.
    index, files
        Place in a file of many; URIs of the bands' files; None: neither.
    """

    table: pa.Table
    source: pa.ChunkedArray
    faults: np.ndarray | None = None
    catalog: str = ""
    index: pa.ChunkedArray | None = None
    files: pa.ChunkedArray | None = None

    @property
    def bookkeeping(self) -> dict[str, Any]:
        """Columns of the plan, by name; the file of a row without one is the catalogue."""
        source = self.source.fill_null(self.catalog) if self.catalog else self.source
        others = {INDEX: self.index, FILES: self.files}
        return {SOURCE: source} | {name: values for name, values in others.items() if values is not None}

    def take(self, rows: pa.Array) -> "Located":
        """Return some of the galaxies."""
        columns = {"table": self.table, "source": self.source, "index": self.index, "files": self.files}
        taken: dict[str, Any] = {name: None if values is None else values.take(rows) for name, values in columns.items()}
        faults = None if self.faults is None else self.faults[rows.to_numpy()]
        return dataclasses.replace(self, **taken, faults=faults)


def bundled(planes: Sequence[pa.ChunkedArray]) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Return the first file of each row, null where one of them is missing, and if there are several a list of all."""
    missing = pc.or_(pc.is_null(planes[0]), pc.is_null(planes[-1]))
    for plane in planes[1:-1]:
        missing = pc.or_(missing, pc.is_null(plane))
    source = pc.if_else(missing, pa.scalar(None, pa.string()), planes[0])
    if len(planes) == 1:
        return source, None
    columns = [plane.combine_chunks() for plane in planes]
    count, size = len(columns[0]), len(columns)
    # Concatenated band by band; row n of the lists is the elements n, n + count, n + 2 count, ...
    order = pa.array((np.arange(count)[:, np.newaxis] + count * np.arange(size)).ravel())
    lists = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * size, pa.concat_arrays(columns).take(order))
    return source, pa.chunked_array([lists])
