"""What is checked of a FITS file before code that trusts its headers: sizes that are allocated, and compressed streams."""

import itertools
import math
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import CutoutError, too_large

__all__ = ["MAX_HDUS", "check_compression", "check_headers", "check_size", "image_shape"]

MAX_HDUS = 1000
"""Most HDUs of a file that is read."""
_BITPIX = (8, 16, 32, 64, -32, -64)
_CARD = 80
# The standard ends at 999 axes and fields. Each of the GCOUNT random groups adds to the HDU's size.
_COUNTS = {"NAXIS": 999, "ZNAXIS": 999, "TFIELDS": 999, "PCOUNT": 1 << 40, "GCOUNT": 1 << 40}
_KEYS = np.array([f"{name:8}".encode() for name in _COUNTS]).view(np.uint64)
_VALUE = re.compile(rb"= *([+-]?\d+)")


def check_headers(data: bytes) -> None:
    """Raise a CutoutError if a header of a FITS file has a count that astropy would follow without end.

    All that looks like a header is checked, without its place in the file: pixels do not, but by malice.
    """
    num_cards = len(data) // _CARD
    keys: np.ndarray = np.ndarray(num_cards, np.uint64, data, strides=(_CARD,))
    for number in np.flatnonzero(np.isin(keys, _KEYS)).tolist():
        card = number * _CARD
        name = data[card : card + 8].decode().strip()
        if (match := _VALUE.match(data, card + 8)) and not 0 <= int(match[1]) <= _COUNTS[name]:
            raise CutoutError(f"damaged FITS file: {name} is {int(match[1])}")


def image_shape(hdu: Any) -> tuple[int, ...]:
    """Return the shape of an HDU's image by its header, the slowest axis first."""
    return tuple(int(hdu.header[f"NAXIS{axis}"]) for axis in range(hdu.header["NAXIS"], 0, -1))


def check_size(hdu: Any, file_bytes: int, config: ReaderConfig, *, truncated: bool) -> None:
    """Raise a CutoutError if an image is too large as float32, or larger than its file; reading allocates what the header says.

    Parameters
    ----------
    hdu
        HDU with an image.
    file_bytes
        Size of the file.
    config
        Largest image.
    truncated
        Whether astropy found the file to be shorter than its headers say.
    """
    if (bitpix := hdu.header["BITPIX"]) not in _BITPIX:
        raise CutoutError(f"BITPIX is {bitpix}: FITS has no such pixel type; write the pixels as float32 (BITPIX -32)")
    shape = image_shape(hdu)
    pixels = math.prod(shape)
    if min(shape) < 1:
        raise CutoutError(f"the image has no pixels: its shape is {shape}")
    if pixels * 4 > config.max_mebibytes << 20:
        raise too_large(f"the image of shape {shape}", pixels * 4, config)
    if isinstance(hdu, fits.CompImageHDU):
        if truncated:
            raise CutoutError("the FITS file is truncated: it is shorter than its header says")
        return
    # Missing padding after the last pixel is harmless.
    declared = pixels * abs(int(hdu.header["BITPIX"])) // 8
    found = file_bytes - hdu.fileinfo()["datLoc"]
    if found < declared:
        raise CutoutError(f"the FITS file is truncated: {declared:,} bytes of pixels declared, {max(found, 0):,} found")


def check_compression(table: Any, shape: tuple[int, ...], data: bytes) -> None:
    """Raise a CutoutError if the table of a tile-compressed image has what its decoders take on trust, to the process's end.

    Parameters
    ----------
    table
        HDU opened as a table.
    shape
        Of the image.
    data
        Content of the file.
    """
    header = table.header
    tile = [int(header.get(f"ZTILE{axis}", side if axis == 1 else 1)) for axis, side in enumerate(reversed(shape), 1)]
    names = {str(header[key]).upper(): header[f"ZVAL{key[5:]}"] for key in header if re.fullmatch(r"ZNAME\d+", key)}
    known = {"BYTEPIX": (1, 2, 4, 8), "BLOCKSIZE": (16, 32)}
    wrong = [f"{name} {names[name]}" for name, values in known.items() if name in names and names[name] not in values]
    wrong += [f"ZTILE{axis} {size}" for axis, size in enumerate(tile, 1) if not 0 < size <= shape[-axis]]
    if header["ZBITPIX"] not in _BITPIX:
        wrong.append(f"ZBITPIX {header['ZBITPIX']}")
    if wrong:
        raise CutoutError(f"damaged FITS file: the compressed image has {', '.join(wrong)}")
    hcompress = header["ZCMPTYPE"] == "HCOMPRESS_1"
    if hcompress:
        for number, (stream, pixels) in enumerate(_streams(table, "COMPRESSED_DATA", shape, tile, data), 1):
            # Magic number, sides, scale: White, Postman & Lattanzi 1992.
            height, width = struct.unpack(">ii", stream[2:10]) if len(stream) >= 10 else (0, 0)
            if min(height, width) < 1 or height * width != pixels:
                raise CutoutError(f"damaged FITS file: tile {number} of {pixels} pixels holds {height} x {width}")
    for column in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA")[not str(header["ZCMPTYPE"]).startswith("GZIP") :]:
        for number, (stream, pixels) in enumerate(_streams(table, column, shape, tile, data), 1):
            # gzip's header too.
            if len(zlib.decompressobj(31).decompress(stream, 8 * pixels + 1)) > 8 * pixels:
                raise CutoutError(f"damaged FITS file: tile {number} of {pixels} pixels decompresses to more than their bytes")


def _streams(table: Any, column: str, shape: tuple[int, ...], tile: list[int], data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the stream of each tile that has one in this column, and the tile's number of pixels."""
    if column not in table.columns.names:
        return
    if not re.fullmatch(r"\d*[PQ]B.*", table.columns[column].format):
        raise CutoutError(f"damaged FITS file: the column {column} is of {table.columns[column].format}, not of bytes")
    header, start = table.header, table.fileinfo()["datLoc"]
    heap = start + int(header.get("THEAP", header["NAXIS1"] * header["NAXIS2"]))
    rows: Any = np.frombuffer(data, table.columns.dtype.newbyteorder(">"), header["NAXIS2"], start)
    # Tiles lie in the order of pixels; those at the far edges are smaller.
    axes = zip(shape, reversed(tile), strict=True)
    sides = [[min(length, side - low) for low in range(0, side, length)] for side, length in axes]
    for (length, offset), tile_shape in zip(rows[column].tolist(), itertools.product(*sides), strict=False):
        if length:
            yield data[heap + offset : heap + offset + length], math.prod(tile_shape)
