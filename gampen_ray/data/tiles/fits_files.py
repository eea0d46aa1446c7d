"""FITS files of hundreds of MB: headers without pixels, and pixels by rows, from disk or S3, compressed or not.

Headers are read by a scanner of our own, which needs no more of a file than its headers; rows of plain images are read where
they lie, and those of tile-compressed ones by astropy. Shape legend: H x W pixels, h rows.
"""

import bz2
import contextlib
import dataclasses
import gzip
import io
import math
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from gampen_ray import storage
from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.kinds import hdu_name
from gampen_ray.data.readers.fits_limits import MAX_HDUS, check_compression, check_headers

__all__ = ["Hdu", "Rows", "chosen_hdu", "headers", "opened", "rows_of"]

_BLOCK, _MOST_BLOCKS = 2880, 1000
_CHUNK_BYTES = 16 << 20
_PACKED = {".gz": lambda file: gzip.GzipFile(fileobj=file), ".bz2": bz2.BZ2File}
_SHORT = "the FITS file is truncated: it is shorter than its header says"
_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}


@dataclasses.dataclass(frozen=True)
class Hdu:
    """An HDU by its header.

    Parameters
    ----------
    index
        Its number, counted from 0.
    header
        Its cards; of a tile-compressed image those of the image.
    start, stop
        Where its data begin and end in the file, bytes, without padding.
    compressed
        Whether it is a tile-compressed image.
    """

    index: int
    header: Any
    start: int
    stop: int
    compressed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its image, the slowest axis first; empty: no image."""
        if self.header.get("XTENSION", "IMAGE").strip() != "IMAGE":
            return ()
        return tuple(int(self.header[f"NAXIS{axis}"]) for axis in range(int(self.header["NAXIS"]), 0, -1))


@contextlib.contextmanager
def opened(uri: str, *, whole: bool = False) -> Iterator[BinaryIO]:
    """Open a file for reading with seeks; a compressed one (``.gz``, ``.bz2``) is decompressed on the way.

    Parameters
    ----------
    whole
        A compressed file is decompressed at once, to a temporary file, so that seeks backwards cost nothing.

    Raises
    ------
    CutoutError
        If a compressed file is damaged.
    """
    packed = next((kind for suffix, kind in _PACKED.items() if uri.lower().endswith(suffix)), None)
    with contextlib.ExitStack() as stack:
        file: Any = stack.enter_context(storage.open_input(uri))
        if packed:
            file = stack.enter_context(packed(file))
            if whole:
                plain = stack.enter_context(tempfile.TemporaryFile())
                with _damage_explained():
                    while chunk := file.read(_CHUNK_BYTES):
                        plain.write(chunk)
                file = plain
        yield file


def headers(file: BinaryIO) -> Iterator[Hdu]:
    """Yield the HDUs of a FITS file, of which no data are read.

    Raises
    ------
    CutoutError
        If the file is no FITS file, or a header is damaged or truncated.
    """
    start = 0
    for index in range(MAX_HDUS):
        with _damage_explained():
            file.seek(start)
            first = file.read(_BLOCK)
        if not first.strip(b"\0 ") and index:
            return
        if not first.startswith(b"XTENSION" if index else b"SIMPLE"):
            raise CutoutError(f"not a FITS file: HDU {index} begins with {first[:20]!r}")
        header, length = _header(file, first, index)
        hdu = _hdu(index, header, start + length)
        yield hdu
        start = hdu.start + -(-(hdu.stop - hdu.start) // _BLOCK) * _BLOCK
    raise CutoutError(f"damaged FITS file: more than {MAX_HDUS} HDUs")


def chosen_hdu(file: BinaryIO, names: tuple[str, ...]) -> tuple[Hdu, Any]:
    """Return the HDU of an image and the header of the first HDU; those behind the preferred one are not read.

    Parameters
    ----------
    names
        Names, those preferred first, or numbers counted from 0; none: the first HDU that holds an image.

    Raises
    ------
    CutoutError
        If there is none.
    """

    def is_named(hdu: Hdu, name: str) -> bool:
        return hdu.index == int(name) if name.isdecimal() else _name(hdu).upper() == name.upper()

    found: list[Hdu] = []
    for hdu in headers(file):
        found.append(hdu)
        if is_named(hdu, names[0]) if names else hdu.shape:
            break
    chosen = [hdu for name in names for hdu in found if is_named(hdu, name)] if names else found[-1:]
    if chosen and len(chosen[0].shape) == 2:
        return chosen[0], found[0].header
    there = ", ".join(_name(hdu) or "without a name" for hdu in found)
    raise CutoutError(f"no two-dimensional image{' named ' + ' or '.join(names) if names else ''} among the HDUs {there}")


def _name(hdu: Hdu) -> str:
    return hdu_name(hdu) or ("PRIMARY" if hdu.index == 0 and hdu.shape else "")


def rows_of(file: BinaryIO, index: int) -> tuple["Rows", Any]:
    """Return what reads the rows of an HDU's image, and its header; a CutoutError if it is not there."""
    found = [hdu for hdu in headers(file) if hdu.index == index]
    if not found:
        raise CutoutError(f"the FITS file is truncated: HDU {index} is missing")
    return Rows(file, found[0]), found[0].header


class Rows:
    """Reads rows of an HDU's image.

    Parameters
    ----------
    file
        As `opened`, ``whole``.
    hdu
        Of the file.
    """

    def __init__(self, file: BinaryIO, hdu: Hdu) -> None:
        self._file, self._hdu = file, hdu
        self._section: Any = None
        if not hdu.compressed:
            self._dtype = np.dtype(_TYPES[int(hdu.header["BITPIX"])])
            self._scale, self._zero = float(hdu.header.get("BSCALE", 1)), float(hdu.header.get("BZERO", 0))
            return
        file.seek(0)
        # The compressed content: a tenth of the pixels or so.
        data = file.read()
        if len(data) < hdu.stop:
            raise CutoutError(_SHORT)
        with _quiet():
            tables: Any = fits.open(io.BytesIO(data), memmap=False, disable_image_compression=True)
            check_compression(tables[hdu.index], hdu.shape, data)
            images: Any = fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=True, uint=False)
            self._section = images[hdu.index].section

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop`` (h x W) in native byte order, integers as such; BLANK ones are NaN.

        Raises
        ------
        CutoutError
            If the file ends before.
        """
        if self._section is not None:
            try:
                with _quiet():
                    return np.asarray(self._section[start:stop])
            except Exception as error:
                # Any exception may come out of a damaged stream.
                raise CutoutError(f"damaged FITS file: {type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
        width, size = self._hdu.shape[1], self._dtype.itemsize
        self._file.seek(self._hdu.start + start * width * size)
        data = self._file.read((stop - start) * width * size)
        if len(data) < (stop - start) * width * size:
            raise CutoutError(_SHORT)
        raw = np.frombuffer(data, self._dtype).reshape(stop - start, width)
        if self._dtype.kind == "f":
            values = raw.astype(self._dtype.newbyteorder("="))
            return values if (self._scale, self._zero) == (1, 0) else values * self._scale + self._zero
        blank = self._hdu.header.get("BLANK")
        if self._scale == 1 and self._zero == int(self._zero) and blank is None:
            return raw.astype(np.int64) + int(self._zero) if self._zero else raw.astype(self._dtype.newbyteorder("="))
        values = raw * self._scale + self._zero
        return values if blank is None else np.where(raw == blank, np.nan, values)


def _header(file: BinaryIO, first: bytes, index: int) -> tuple[Any, int]:
    blocks = [first]
    while not any(blocks[-1][at : at + 8] == b"END     " for at in range(0, _BLOCK, 80)):
        with _damage_explained():
            blocks.append(file.read(_BLOCK))
        if len(blocks[-1]) < _BLOCK or len(blocks) == _MOST_BLOCKS:
            raise CutoutError(f"the header of HDU {index} has no end: the file is truncated or damaged")
    data = b"".join(blocks)
    check_headers(data)
    with _quiet():
        return fits.Header.fromstring(data.decode("latin-1")), len(data)


def _hdu(index: int, header: Any, start: int) -> Hdu:
    try:
        with _quiet():
            sides = [int(header[f"NAXIS{axis + 1}"]) for axis in range(int(header["NAXIS"]))]
            pixels = math.prod(sides) if sides else 0
            groups, extra = int(header.get("GCOUNT", 1)), int(header.get("PCOUNT", 0))
            size = abs(int(header["BITPIX"])) // 8 * groups * (pixels + extra if sides else 0)
            compressed = bool(header.get("ZIMAGE", False))
            if compressed:
                header = _uncompressed(header)
            elif int(header["BITPIX"]) not in _TYPES:
                raise CutoutError(f"BITPIX is {header['BITPIX']}: FITS has no such pixel type")
    except (KeyError, TypeError, ValueError, fits.VerifyError) as error:
        if isinstance(error, CutoutError):
            raise
        raise CutoutError(f"damaged FITS file: the header of HDU {index}: {' '.join(str(error).split())[:200]}") from None
    if min(sides, default=1) < 0 or size < 0:
        raise CutoutError(f"damaged FITS file: the header of HDU {index} has a negative size")
    return Hdu(index, header, start, start + size, compressed)


def _uncompressed(header: Any) -> Any:
    # The cards of the image that a table holds.
    image = header.copy()
    image["XTENSION"] = "IMAGE"
    for name in ("BITPIX", "NAXIS", *(f"NAXIS{axis + 1}" for axis in range(int(header["ZNAXIS"])))):
        image[name] = header[f"Z{name}"]
    return image


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # Headers that break the standard's letter are common and harmless.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _damage_explained() -> Iterator[None]:
    # Of a decompressor: storage explains its own faults.
    try:
        yield
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise CutoutError(f"the compressed file is truncated or damaged: {error}") from None
