"""HDF5 files: an array of images with columns beside it, as Galaxy10 and Multimodal Universe store them."""

import itertools
import math
from typing import Any, ClassVar

import numpy as np

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.stacks import StackContainer, needs_values

__all__ = ["Hdf5Container"]


class Hdf5Container(StackContainer):
    """The arrays of an HDF5 file, those in groups by their path; images are read in runs of rows."""

    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5", ".hdf", ".he5")
    package: ClassVar[str] = "h5py"

    def __init__(self, uri: str, config: ReaderConfig) -> None:
        import h5py

        self._source = storage.open_input(uri)
        self._file = h5py.File(self._source, "r")
        arrays: dict[str, Any] = {}

        def add(name: str, item: Any) -> None:
            # Others may have their values in any file of this machine.
            if isinstance(item, h5py.Dataset) and item.shape and not (item.is_virtual or item.external):
                arrays[name] = _Written(item) if needs_values(item) and not _is_whole(item) else item

        self._file.visititems(add)
        super().__init__(uri, arrays, config)

    def close(self) -> None:
        self._file.close()
        self._source.close()


def _is_whole(dataset: Any) -> bool:
    """Return whether all of a dataset was written."""
    if dataset.chunks is None:
        return bool(dataset.id.get_storage_size())
    sides = zip(dataset.shape, dataset.chunks, strict=True)
    return dataset.id.get_num_chunks() == math.prod(-(-side // step) for side, step in sides)


class _Written:
    """A dataset that was never written in parts, as by a program that ended early: they are NaN, where HDF5 gives zeros."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self.shape, self.dtype, self.chunks = dataset, dataset.shape, dataset.dtype, dataset.chunks
        self._places: set[tuple[int, ...]] = set()
        if self.chunks:
            dataset.id.chunk_iter(lambda chunk: self._places.add(chunk.chunk_offset))

    def __getitem__(self, key: Any) -> np.ndarray:
        start, stop, _ = key.indices(self.shape[0])
        values = self._dataset[start:stop].astype(np.result_type(self.dtype, np.float32))
        if not self.chunks:
            return np.full_like(values, np.nan)
        first, *others = self.chunks
        rows = range(start // first * first, stop, first)
        grid = (range(0, side, step) for side, step in zip(self.shape[1:], others, strict=True))
        for place in itertools.product(rows, *grid):
            if place not in self._places:
                top = slice(max(place[0] - start, 0), max(place[0] + first - start, 0))
                values[top, *(slice(at, at + step) for at, step in zip(place[1:], others, strict=True))] = np.nan
        return values
