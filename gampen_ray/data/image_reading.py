"""The images of some rows of a plan, read from a file each, a file a band, or a place in a file of many."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from gampen_ray import storage
from gampen_ray.config import ReaderConfig
from gampen_ray.data import containers, reader_process
from gampen_ray.data.containers import INDEX
from gampen_ray.data.cutouts import Cutout, CutoutError, too_large
from gampen_ray.errors import UserError

__all__ = ["FILES", "SOURCE", "Images", "file_content", "raised"]

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
        return too_large(size, reader)
    try:
        return storage.read_bytes(uri)
    except UserError as error:
        if uri.startswith("s3://"):
            # The file exists: a server fault must not quarantine the galaxy.
            raise
        return CutoutError(f"the file cannot be read: {error}")


def raised(content: bytes | CutoutError) -> bytes:
    """Return the result of `file_content`, or raise it if it is an error."""
    if isinstance(content, CutoutError):
        raise content
    return content


class Images:
    """Reads the images of some rows of a plan; a context manager, which closes the files of many.

    Parameters
    ----------
    rows
        Rows of the plan.
    reader
        How files are read.
    """

    def __init__(self, rows: pa.Table, reader: ReaderConfig) -> None:
        self._reader, self._stack = reader, contextlib.ExitStack()
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

    def read(self, rows: Iterable[int]) -> Iterator[tuple[Any, int]]:
        """Yield for each row what `cutout` takes, and the number of bytes read."""
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
        names = [self._files[row] if self._files else [self._sources[row]] for row in rows]
        contents = self._pool.map(lambda uri: file_content(uri, self._reader), itertools.chain.from_iterable(names))
        for some in names:
            files = [next(contents) for _ in some]
            yield (some, files), sum(len(content) for content in files if isinstance(content, bytes))

    def cutout(self, found: Any) -> Cutout:
        """Return the image that `read` has found; a `CutoutError` if it cannot be used."""
        if isinstance(found, CutoutError):
            raise found
        if isinstance(found, Cutout):
            return found
        names, files = found
        if len(names) == 1:
            return reader_process.read_file(raised(files[0]), names[0], self._reader)
        return reader_process.read_bands(files, names, self._reader)

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
