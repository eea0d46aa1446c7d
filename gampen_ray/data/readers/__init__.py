"""Readers of cutout files: their protocol, and the registry by format.

A reader is a class of this folder, or of a module of your own (`gampen_ray.plugins`), registered in `READERS`.
"""

import bz2
import dataclasses
import gzip
import io
import zlib
from collections.abc import Sequence
from typing import Protocol

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import MAX_FILE_BYTES, Cutout, CutoutError
from gampen_ray.data.readers.arrays import NumpyReader
from gampen_ray.data.readers.fits import FitsReader
from gampen_ray.data.readers.fits_bands import stacked
from gampen_ray.data.readers.pictures import PictureReader
from gampen_ray.plugins import Registry

__all__ = ["READERS", "CutoutReader", "chosen_readers", "read_bands", "read_content", "read_cutout"]

_HEAD_BYTES = 1024
_CHUNK_BYTES = 1 << 20


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
    """Read the image of a file, compressed by gzip or bzip2 or not.

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
        data, name = _decompressed(data, "gzip"), name.removesuffix(".gz")
    elif data.startswith(b"BZh") and data[4:10] == b"1AY&SY":
        data, name = _decompressed(data, "bzip2"), name.removesuffix(".bz2")
    chosen = chosen_readers(config)
    for format_, reader in chosen.items():
        if reader.reads(name, data[:_HEAD_BYTES]):
            return _read(reader, format_.upper(), data, config)
    known = f"file of a known format ({', '.join(chosen)})" if config.format == "auto" else f"{config.format.upper()} file"
    raise CutoutError(f"not a {known}: it begins with {data[:20]!r}")


def read_content(data: bytes, name: str, config: ReaderConfig) -> Cutout:
    """Read a file that lies in a container: its own format is found by its content; see `read_cutout`."""
    return read_cutout(data, name, dataclasses.replace(config, format="auto"))


def read_bands(files: Sequence[bytes | CutoutError], names: Sequence[str], config: ReaderConfig) -> Cutout:
    """Read an image from a file a band, or why it cannot be read, in the order of the bands.

    See `gampen_ray.data.readers.fits_bands.stacked`.

    Raises
    ------
    CutoutError
        As `read_cutout`, naming the band, or if the files contradict each other.
    """
    cutouts = []
    for band, data, name in zip(config.bands, files, names, strict=True):
        try:
            if isinstance(data, CutoutError):
                raise data
            cutouts.append(read_cutout(data, name, dataclasses.replace(config, bands=(band,))))
        except CutoutError as error:
            raise CutoutError(f"band {band}: {error}") from None
    return stacked(config.bands, cutouts)


def _read(reader: CutoutReader, format_: str, data: bytes, config: ReaderConfig) -> Cutout:
    try:
        cutout = reader.read(data, config)
    except CutoutError:
        raise
    except Exception as error:
        # Any exception may come out of a damaged file, and each concerns that file alone.
        raise CutoutError(f"damaged {format_} file: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    shape, num_bands = cutout.image_CHW.shape, len(config.bands)
    if len(shape) != 3 or shape[0] != num_bands:
        raise CutoutError(f"the {format_} file's image has shape {shape}, not (bands, height, width) with {num_bands} bands")
    return cutout


def _decompressed(data: bytes, kind: str) -> bytes:
    # Reads in chunks: one large read would allocate its full size first.
    content = bytearray()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) if kind == "gzip" else bz2.BZ2File(io.BytesIO(data)) as file:
            while chunk := file.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > MAX_FILE_BYTES:
                    raise CutoutError(f"decompresses to more than {MAX_FILE_BYTES >> 20} MiB: too large for a cutout")
    except EOFError:
        raise CutoutError(f"the {kind} file is truncated") from None
    except (OSError, zlib.error) as error:
        raise CutoutError(f"damaged {kind} file: {error}") from None
    return bytes(content)
