"""HDF5 files: an array of images with columns beside it, as Galaxy10 and Multimodal Universe store them."""

from typing import Any, ClassVar

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.stacks import StackContainer

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
            if isinstance(item, h5py.Dataset) and item.shape:
                arrays[name] = item

        self._file.visititems(add)
        super().__init__(uri, arrays, config)

    def close(self) -> None:
        self._file.close()
        self._source.close()
