"""Files and folders that hold the images of many galaxies: their protocol, and the registry by format.

A container is a class of this folder, or of a module of your own (`gampen_ray.plugins`), registered in `CONTAINERS`. It is
opened where it is read, in runs of rows, and never read whole.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data.containers.faults import file_faults
from gampen_ray.data.containers.hdf5 import Hdf5Container
from gampen_ray.data.containers.numpy_files import NumpyContainer
from gampen_ray.data.containers.parquet import ParquetContainer
from gampen_ray.data.containers.stacks import INDEX
from gampen_ray.data.containers.webdataset import WebDatasetContainer
from gampen_ray.data.containers.zarr_groups import ZarrContainer
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.errors import UserError
from gampen_ray.plugins import Registry

__all__ = ["CONTAINERS", "INDEX", "Container", "container_format", "container_rows", "open_container"]


class Container(Protocol):
    """The images of many galaxies, opened for reading."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of the names of such files or folders, in lower case."""
    package: ClassVar[str]
    """Package that it needs beside those of gampen_ray, the name of its extra too; empty: none."""
    pixel_scale_arcsec: float | None
    """Pixel scale that it states, arcsec; None: none."""
    bands: tuple[str, ...]
    """Names of the bands that it states; none: it states none."""

    def __init__(self, uri: str, config: ReaderConfig) -> None: ...

    def rows(self) -> pa.Table:
        """Return the scalar columns, a row per galaxy, without reading any image; a `UserError` if there are no such images."""
        ...

    def read(self, indices: Sequence[int]) -> Iterator[Cutout | CutoutError]:
        """Yield the image of each index of `rows`, or why there is none; ascending indices are read in one pass."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


CONTAINERS: Registry[type[Container]] = Registry("reader.format")
"""Containers by format; with format "auto" the one with a file's ending reads it."""
CONTAINERS.register("hdf5")(Hdf5Container)
CONTAINERS.register("numpy_stack")(NumpyContainer)
CONTAINERS.register("parquet")(ParquetContainer)
CONTAINERS.register("webdataset")(WebDatasetContainer)
CONTAINERS.register("zarr")(ZarrContainer)


def container_format(uri: str, config: ReaderConfig) -> str:
    """Return the format of a container by its name, empty if it is none."""
    if config.format != "auto":
        return config.format if config.format in CONTAINERS.names else ""
    lower = uri.lower().rstrip("/")
    return next((name for name in CONTAINERS.names if lower.endswith(CONTAINERS[name].suffixes)), "")


@contextlib.contextmanager
def open_container(uri: str, config: ReaderConfig) -> Iterator[Container]:
    """Open a container and close it in the end.

    Raises
    ------
    UserError
        If its package is not installed, or it cannot be opened.
    """
    kind = CONTAINERS[container_format(uri, config)]
    if kind.package and not importlib.util.find_spec(kind.package):
        raise UserError(f'images: {uri} needs {kind.package}; pip install "gampen_ray[{kind.package}]"')
    with file_faults(uri, "opened"):
        container = kind(uri, config)
    try:
        with storage.explained(uri):
            yield container
    finally:
        container.close()


def container_rows(uri: str, config: ReaderConfig) -> pa.Table:
    """Return the scalar columns of a container, a row per galaxy; see `Container.rows`.

    Raises
    ------
    UserError
        As for `open_container`, or if its columns are damaged or it has no images.
    """
    with open_container(uri, config) as container, file_faults(uri, "read"):
        return container.rows()
