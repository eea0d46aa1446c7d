"""The images of some rows of a plan, read from a file each, a file a band, or a place in a file of many."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data import containers
from gampen_ray.data.containers import INDEX
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.data.reader_process import File, read_files
from gampen_ray.data.readers.fits_bands import stacked
from gampen_ray.errors import UserError

__all__ = ["FILES", "SOURCE", "Images", "file_content", "raised"]

T = TypeVar("T")
SOURCE, FILES = "gampen_ray:source", "gampen_ray:files"
"""Columns with the URI of a galaxy's file, and where there is a file a band, with all of them in the order of the bands."""
_READ_THREADS = 8


def file_content(uri: str, reader: ReaderConfig) -> bytes | CutoutError:
    """Return the content of a file, or the error: files are read ahead of their use, so it is raised later (`raised`)."""
    size = storage.size(uri)
    if size is None:
        there = "it is a folder" if storage.exists(uri) else "there is no such file"
        return CutoutError(there)
    if size > reader.max_mebibytes << 20:
        return too_large("the file", size, reader)
    try:
        return storage.read_bytes(uri)
    except UserError as error:
        if uri.startswith("s3://"):
            # The file exists: a server fault must not quarantine the galaxy.
            raise
        return CutoutError(f"the file cannot be read: {error}")


def raised(found: T | CutoutError) -> T:
    """Return what was found in a file, or raise it if it is an error."""
    if isinstance(found, CutoutError):
        raise found
    return found


class Images:
    """Reads the images of some rows of a plan; a context manager, which closes the files of many.

    Parameters
    ----------
    rows
        Rows of the plan.
    reader
        How files are read.
    headers
        Whether cutouts have the headers of files of their own, which cost time.
    """

    def __init__(self, rows: pa.Table, reader: ReaderConfig, *, headers: bool = False) -> None:
        self._reader, self._headers, self._stack = reader, headers, contextlib.ExitStack()
        self._sources = rows.column(SOURCE).to_pylist()
        self._index = rows.column(INDEX).to_pylist() if INDEX in rows.column_names else None
        self._files = rows.column(FILES).to_pylist() if FILES in rows.column_names else None
        self._open: tuple[str, Any] = ("", None)

    def __enter__(self) -> "Images":
        self._pool = self._stack.enter_context(ThreadPoolExecutor(_READ_THREADS))
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._stack.close()

    def read(self, rows: Iterable[int]) -> Iterator[tuple[Cutout | CutoutError, int]]:
        """Yield for each row its image, or why there is none, and the number of bytes read.

        Files of their own are all read before the first is yielded: give some tens of rows at a time.
        """
        if self._index is not None:
            for source, some in itertools.groupby(rows, key=lambda row: self._sources[row]):
                container = self._container(source)
                for found in container.read([self._index[row] for row in some]):
                    if isinstance(found, CutoutError):
                        yield found, 0
                        continue
                    if found.pixel_scale_arcsec is None and self._reader.headers != "ignore":
                        found = dataclasses.replace(found, pixel_scale_arcsec=container.pixel_scale_arcsec)
                    yield found, found.image_CHW.nbytes
            return
        uris = [uri for row in rows for uri in (self._files[row] if self._files else (self._sources[row],))]
        configs = [self._reader]
        if self._files:
            configs = [dataclasses.replace(self._reader, bands=(band,)) for band in self._reader.bands]
        sizes = []

        def files() -> Iterator[File]:
            contents = self._pool.map(lambda uri: file_content(uri, self._reader), uris)
            for uri, content, config in zip(uris, contents, itertools.cycle(configs), strict=False):
                sizes.append(len(content) if isinstance(content, bytes) else 0)
                yield File(content, uri, config)

        found, step = read_files(files(), headers=self._headers), len(configs)
        for start in range(0, len(found), step):
            yield self._stacked(found[start : start + step]), sum(sizes[start : start + step])

    def _stacked(self, planes: Sequence[Cutout | CutoutError]) -> Cutout | CutoutError:
        if len(planes) == 1:
            return planes[0]
        bands = self._reader.bands
        for band, plane in zip(bands, planes, strict=True):
            if isinstance(plane, CutoutError):
                return CutoutError(f"band {band}: {plane}")
        try:
            return stacked(bands, [plane for plane in planes if isinstance(plane, Cutout)])
        except CutoutError as error:
            return error

    def _container(self, uri: str) -> containers.Container:
        if self._open[0] != uri:
            self._close()
            self._entered = containers.open_container(uri, self._reader)
            self._open = uri, self._entered.__enter__()
        return self._open[1]

    def _close(self) -> None:
        if self._open[0]:
            self._entered.__exit__(None, None, None)
            self._open = "", None
