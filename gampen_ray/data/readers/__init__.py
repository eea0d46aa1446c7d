"""From the content of a file to a cutout: the contract of a reader, and the readers by name of the format.

A format is a file of this folder, or a class of your own code; either is added to `READERS`.
"""

import gzip
import io
import zlib
from typing import Protocol

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import MAX_FILE_BYTES, Cutout, CutoutError
from gampen_ray.data.readers.fits import FitsReader
from gampen_ray.errors import UserError

__all__ = ["READERS", "CutoutReader", "check_format", "read_cutout"]

_HEAD_BYTES = 1024
_CHUNK_BYTES = 1 << 20


class CutoutReader(Protocol):
    """Reads the files of one format."""

    def reads(self, name: str, head: bytes) -> bool:
        """Return whether a file has this format, by its name without ``.gz`` and its first kilobyte, decompressed."""
        ...

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        """Return the image of a file, given its decompressed content; a `CutoutError` holds the reason why there is none."""
        ...


READERS: dict[str, CutoutReader] = {"fits": FitsReader()}
"""Readers by name of the format; with format "auto" the first one that recognises a file reads it."""


def check_format(config: ReaderConfig) -> None:
    """Raise a `UserError` if the format asked for has no reader."""
    if config.format not in ("auto", *READERS):
        raise UserError(f"reader.format: {config.format!r} has no reader; give auto or one of: {', '.join(READERS)}")


def read_cutout(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read the image of a file, gzipped or not.

    Parameters
    ----------
    data
        Content of the file.
    name
        Its name or URI.
    config
        Format, HDU and bands.

    Raises
    ------
    CutoutError
        If there is no such image, or it is truncated, damaged or too large.
    """
    if not data:
        raise CutoutError("the file is empty (0 bytes)")
    if data.startswith(b"\x1f\x8b"):
        data, name = _gunzip(data), name.removesuffix(".gz")
    asked = READERS if config.format == "auto" else {config.format: READERS[config.format]}
    for reader in asked.values():
        if reader.reads(name, data[:_HEAD_BYTES]):
            return reader.read(data, config)
    raise CutoutError(f"not a {' or '.join(asked).upper()} file: it begins with {data[:20]!r}")


def _gunzip(data: bytes) -> bytes:
    # In small reads: a single large one would allocate its whole size first.
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_FILE_BYTES:
                    raise CutoutError(f"decompresses to more than {MAX_FILE_BYTES >> 20} MiB: no cutout")
    except EOFError:
        raise CutoutError("the gzip file is truncated") from None
    except (OSError, zlib.error) as error:
        raise CutoutError(f"damaged gzip file: {error}") from None
    return bytes(content)
