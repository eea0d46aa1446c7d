"""Readers of cutout files: their protocol, and the registry by format.

A reader is a class of this folder, or of a module of your own (`gampen_ray.plugins`), registered in `READERS`.
"""

import re
from typing import Protocol

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.decompression import decompressed
from gampen_ray.data.readers.arrays import NumpyReader
from gampen_ray.data.readers.fits import FitsReader
from gampen_ray.data.readers.pictures import PictureReader
from gampen_ray.plugins import Registry

__all__ = ["READERS", "CutoutReader", "chosen_readers", "read_cutout"]

_HEAD_BYTES = 1024


class CutoutReader(Protocol):
    """Reads the files of one format."""

    def reads(self, name: str, head: bytes) -> bool:
        """Return whether a file has this format, by its name and its first kilobyte, both decompressed."""
        ...

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        """Return the image of a file, given its decompressed content.

        A `CutoutError` holds the reason why there is none; any other exception counts as a damaged file.
        """
        ...


READERS: Registry[type[CutoutReader]] = Registry("reader.format")
"""Readers by format; with format "auto" the last one that recognises a file reads it: yours precede the others."""
READERS.register("picture")(PictureReader)
READERS.register("numpy")(NumpyReader)
READERS.register("fits")(FitsReader)


def chosen_readers(config: ReaderConfig) -> dict[str, CutoutReader]:
    """Return the reader of the configured format, or all readers for "auto", by name; a `UserError` for an unknown name."""
    names = READERS.names[::-1] if config.format == "auto" else (config.format,)
    return {name: READERS[name]() for name in names}


def read_cutout(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read the image of a file, compressed by gzip or bzip2 or not, in this process; files that others wrote are read by
    `gampen_ray.data.reader_process`.

    Parameters
    ----------
    data
        Content of the file.
    name
        Its name or URI.
    config
        Format, HDU, bands and the largest size.

    Raises
    ------
    CutoutError
        If there is no such image, or it is truncated, damaged or too large.
    """
    if not data:
        raise CutoutError("the file is empty (0 bytes)")
    content = decompressed(data, config.max_mebibytes << 20, "reader.max_mebibytes")
    if content is not data:
        data, name = content, re.sub(r"\.(gz|bz2)$", "", name)
    chosen = chosen_readers(config)
    for format_, reader in chosen.items():
        if reader.reads(name, data[:_HEAD_BYTES]):
            return _read(reader, format_.upper(), data, config)
    known = f"file of a known format ({', '.join(chosen)})" if config.format == "auto" else f"{config.format.upper()} file"
    raise CutoutError(f"not a {known}: it begins with {data[:20]!r}")


def _read(reader: CutoutReader, format_: str, data: bytes, config: ReaderConfig) -> Cutout:
    try:
        cutout = reader.read(data, config)
    except (CutoutError, MemoryError):
        raise
    except Exception as error:
        # Any exception may come out of a damaged file, and each concerns that file alone.
        raise CutoutError(f"damaged {format_} file: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    shape, num_bands = cutout.image_CHW.shape, len(config.bands)
    if len(shape) != 3 or shape[0] != num_bands:
        raise CutoutError(f"the {format_} file's image has shape {shape}, not (bands, height, width) with {num_bands} bands")
    if cutout.sigma_CHW is not None and cutout.sigma_CHW.shape != shape:
        raise CutoutError(f"the {format_} file's noise planes have shape {cutout.sigma_CHW.shape}, not the image's {shape}")
    return cutout
