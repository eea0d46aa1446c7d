"""NumPy files of many images: ``.npy`` with one array, ``.npz`` with arrays by name."""

import math
import zipfile
from typing import Any, ClassVar

import numpy as np

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.stacks import StackContainer
from gampen_ray.data.readers.arrays import npy_header
from gampen_ray.errors import UserError

__all__ = ["NumpyContainer"]

_MOST_BYTES = 1 << 30
_BANDS = ("filters", "bands", "band", "image_band")


class NumpyContainer(StackContainer):
    """A ``.npy`` file of images, or a ``.npz`` file with such an array and columns."""

    suffixes: ClassVar[tuple[str, ...]] = (".npy", ".npz")

    def __init__(self, uri: str, config: ReaderConfig) -> None:
        self._file = storage.open_input(uri)
        arrays: dict[str, Any] = {"images": _NpyArray(self._file)} if uri.lower().endswith(".npy") else _npz(self._file)
        names, images = next((arrays[name] for name in _BANDS if name in arrays), None), arrays.get("images")
        if names is not None and images is not None and len(images.shape) == 3 and names.shape == images.shape[:1]:
            # The bands of one galaxy, not a galaxy each.
            arrays = {"images": _One(images), "image_band": names}
        super().__init__(uri, arrays, config)

    def close(self) -> None:
        self._file.close()


def _npz(file: Any) -> dict[str, Any]:
    """Return the arrays of a ``.npz`` file; those of Python objects are left out, as they would have to be unpickled."""
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if name.endswith(".npy")]
    arrays = {name.removesuffix(".npy"): _NpyArray(archive.open(name)) for name in names}
    return {name: array for name, array in arrays.items() if array.dtype.kind != "O"}


class _One:
    """An image of several bands as a stack of one."""

    def __init__(self, image: "_NpyArray") -> None:
        self._image, self.shape, self.dtype = image, (1, *image.shape), image.dtype

    def __getitem__(self, key: slice) -> np.ndarray:
        return self._image[:][np.newaxis][key]


class _NpyArray:
    """An array in NumPy's format that is read by slices of its first axis."""

    def __init__(self, file: Any) -> None:
        self.shape, self._fortran, self.dtype = npy_header(file)
        self._file, self._start = file, file.tell()

    def __getitem__(self, key: Any) -> np.ndarray:
        if self._fortran or not self.shape:
            # Rows are not contiguous.
            if math.prod(self.shape) * self.dtype.itemsize > _MOST_BYTES:
                raise UserError("the array is stored in Fortran's order, whose rows cannot be read alone; save it in C's order")
            self._file.seek(self._start)
            flat = np.frombuffer(self._file.read(math.prod(self.shape) * self.dtype.itemsize), self.dtype)
            return flat.reshape(self.shape, order="F")[key]
        start, stop, _ = key.indices(self.shape[0])
        row = math.prod(self.shape[1:])
        self._file.seek(self._start + start * row * self.dtype.itemsize)
        data = self._file.read((stop - start) * row * self.dtype.itemsize)
        if len(data) < (stop - start) * row * self.dtype.itemsize:
            raise EOFError("the file is truncated")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])
