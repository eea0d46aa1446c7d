"""Roman's ASDF files of large images: headers as of FITS, from their metadata, and pixels by rows, compressed with lz4 or not.

The format (ASDF standard 1.6, "low-level file layout") is a YAML text and blocks of bytes. Files are untrusted: the text is
bounded (`gampen_ray.data.tiles.yaml_tree`), sizes are checked before they are allocated, and arrays in other files are refused.
Shape legend: H x W pixels, h rows.
"""

import dataclasses
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from astropy.io import fits

from gampen_ray.data.cutouts import CutoutError
from gampen_ray.data.tiles.fits_files import Hdu
from gampen_ray.data.tiles.grid import Grid, unit_vectors, wcs_text
from gampen_ray.data.tiles.yaml_tree import Mapping, mapping_of, numbers_of, read_tree, shown
from gampen_ray.errors import UserError

__all__ = ["MAX_BLOCKS", "MAX_TEXT_BYTES", "Array", "ArrayRows", "chosen_hdu", "rows_of"]

MAX_TEXT_BYTES = 4 << 20
"""Longest YAML text that is read."""
MAX_BLOCKS = 1000
"""Most blocks before the one that is wanted."""
_MAX_FRAMES = 1 << 16
_MAX_RATIO = 255
"""The most that lz4 makes of a byte."""
_CHUNK_BYTES = 256 << 10
_END = re.compile(rb"\r?\n\.\.\.\r?\n")
_MAGIC = b"\xd3BLK"
# Flags, compression, allocated, used and decompressed size, checksum.
_BLOCK = struct.Struct(">I4sQQQ16s")
_STREAMED = 1
_TYPES = {f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)} - {"float8"}
_ORDERS: dict[str, Any] = {"little": "<", "big": ">"}
_SHORT = "the ASDF file is truncated: it is shorter than its header says"
# Degrees: no pixel of Roman's has a side of 3.6 arcsec.
_MAX_SCALE_DEG = 1e-3
# By which the stated centre and corners may differ from those of the projection.
_CENTRE_PIXELS, _CORNER_PIXELS = 0.25, 2.0


@dataclasses.dataclass(frozen=True)
class Array(Hdu):
    """An array by its metadata, the child ``index`` of ``roman``; lz4's bytes if ``compressed``.

    Parameters
    ----------
    dtype
        Of its pixels.
    """

    dtype: np.dtype


def chosen_hdu(file: BinaryIO, names: tuple[str, ...]) -> tuple[Array, fits.Header]:
    """Return an image, and its header for that of the file; see `gampen_ray.data.tiles.fits_files.chosen_hdu`.

    Parameters
    ----------
    names
        Keys below ``roman``, those preferred first; none: data.

    Raises
    ------
    UserError
        If it is compressed and lz4 is not installed.
    CutoutError
        If there is none, or it cannot be read.
    """
    names = names or ("data",)
    roman, blocks_at = _roman(file)
    name = next((name for name in names if name in roman), None)
    if name is None:
        raise CutoutError(f"no array named {' or '.join(names)} below roman; there are {shown(', '.join(list(roman)[:20]))}")
    array = _array(file, roman, name, blocks_at)
    return array, array.header


def rows_of(file: BinaryIO, index: int) -> tuple["ArrayRows", fits.Header]:
    """Return what reads the rows of an image, and its header; a CutoutError if it is not there."""
    roman, blocks_at = _roman(file)
    if not 0 <= index < len(roman):
        raise CutoutError(f"the ASDF file has no array {index}")
    array = _array(file, roman, list(roman)[index], blocks_at)
    return ArrayRows(file, array), array.header


class ArrayRows:
    """Reads rows of an array; see `gampen_ray.data.tiles.fits_files.Rows`.

    Raises
    ------
    CutoutError
        If its compressed pieces do not add up to the array.
    """

    def __init__(self, file: BinaryIO, array: Array) -> None:
        self._file, self._array = file, array
        self._frames = list(_frames(file, array)) if array.compressed else []
        self._starts = np.cumsum([0, *(size for _, _, size in self._frames)])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows ``start`` to ``stop`` (h x W) in native byte order.

        Raises
        ------
        CutoutError
            If the file ends before, or is damaged.
        """
        width, dtype = self._array.shape[1], self._array.dtype
        first, last = start * width * dtype.itemsize, stop * width * dtype.itemsize
        if self._array.compressed:
            data = self._decompressed(first, last)
        else:
            data = _exactly(self._file, self._array.start + first, last - first)
        return np.frombuffer(data, dtype).reshape(stop - start, width).astype(dtype.newbyteorder("="))

    def _decompressed(self, first: int, last: int) -> bytes:
        pieces = []
        for number in range(int(np.searchsorted(self._starts, first, side="right")) - 1, len(self._frames)):
            begin = int(self._starts[number])
            if begin >= last:
                break
            at, length, size = self._frames[number]
            lz4 = _lz4_block()
            try:
                piece = lz4.decompress(_exactly(self._file, at, length))
            except lz4.LZ4BlockError as error:
                raise CutoutError(f"damaged ASDF file: {error}") from None
            if len(piece) != size:
                raise CutoutError(f"damaged ASDF file: a piece of {size:,} bytes decompresses to {len(piece):,}")
            pieces.append(piece[max(0, first - begin) : last - begin])
        return b"".join(pieces)


def _frames(file: BinaryIO, array: Array) -> Iterator[tuple[int, int, int]]:
    """Yield place, length and decompressed size of an array's pieces: each begins with its size, and its length lies before."""
    at, left = array.start, math.prod(array.shape) * array.dtype.itemsize
    for _ in range(_MAX_FRAMES):
        if not left and at == array.stop:
            return
        if array.stop - at < 8:
            break
        length, size = struct.unpack(">I", (head := _exactly(file, at, 8))[:4])[0], struct.unpack("<I", head[4:])[0]
        if not (4 < length <= array.stop - at - 4 and 0 < size <= min(left, _MAX_RATIO * length)):
            break
        yield at + 4, length, size
        at, left = at + 4 + length, left - size
    raise CutoutError("damaged ASDF file: the compressed pieces do not add up to the array")


def _roman(file: BinaryIO) -> tuple[Mapping, int]:
    """Return what the text of a Roman file holds, and where its blocks begin."""
    file.seek(0)
    text = file.read(_CHUNK_BYTES)
    if not text.startswith(b"#ASDF "):
        raise CutoutError(f"not an ASDF file: it begins with {text[:20]!r}")
    while not (end := _END.search(text)):
        if len(text) >= MAX_TEXT_BYTES:
            raise CutoutError(f"the YAML text of the ASDF file is longer than {MAX_TEXT_BYTES:,} bytes")
        if not (chunk := file.read(_CHUNK_BYTES)):
            raise CutoutError("the YAML text of the ASDF file has no end: the file is truncated or damaged")
        text += chunk
    return mapping_of(read_tree(text[: end.end()]), "roman"), end.end()


def _array(file: BinaryIO, roman: Mapping, name: str, blocks_at: int) -> Array:
    node, unit = roman[name], None
    # Early files: quantities.
    if isinstance(node, Mapping) and "/quantity" in node.tag:
        node, unit = node.get("value"), str(node.get("unit"))
    if not isinstance(node, Mapping) or "/ndarray" not in node.tag or not str(node.get("source")).isdecimal():
        where = node.tag.rpartition("/")[2] if isinstance(node, Mapping) else "text"
        raise CutoutError(f"{name} is no array in a block of this file ({shown(where) or 'mapping'}); others are not read")
    if unread := node.keys() & {"strides", "mask"} | ({"offset"} if node.get("offset", "0") != "0" else set()):
        raise CutoutError(f"{name} has {', '.join(sorted(unread))}, which is not read")
    if node.get("datatype") not in _TYPES or node.get("byteorder") not in _ORDERS:
        raise CutoutError(
            f"{name} is of the type {shown(node.get('datatype'))} {shown(node.get('byteorder'))}, which is not read"
        )
    dtype = np.dtype(node["datatype"]).newbyteorder(_ORDERS[node["byteorder"]])
    sides = node.get("shape")
    if not (isinstance(sides, list) and len(sides) == 2 and all(re.fullmatch(r"[1-9]\d{0,8}", str(side)) for side in sides)):
        raise CutoutError(f"{name} is no image of two dimensions: its shape is {shown(sides)}")
    height, width = map(int, sides)
    start, used, size, compression = _block(file, blocks_at, int(node["source"][:9]))
    if compression not in (b"\0\0\0\0", b"lz4\0"):
        label = compression.rstrip(b"\0").decode("latin-1")
        raise CutoutError(f"{name} is compressed with {shown(label)}, which is not read; write it with lz4 or uncompressed")
    if compressed := compression == b"lz4\0":
        _lz4_block()
    if size != height * width * dtype.itemsize or not (compressed or used == size) or size > _MAX_RATIO * used:
        raise CutoutError(f"damaged ASDF file: {name} of {width} x {height} {dtype.name} lies in a block of {size:,} bytes")
    header = _header(roman, name, unit, height, width)
    return Array(list(roman).index(name), header, start, start + used, compressed, dtype)


def _lz4_block() -> Any:
    try:
        import lz4.block
    except ImportError:
        raise UserError('tiles: ASDF files compressed with lz4 need lz4; pip install "gampen_ray[asdf]"') from None
    return lz4.block


def _block(file: BinaryIO, at: int, number: int) -> tuple[int, int, int, bytes]:
    """Return of a block where its bytes begin, their number, that of the decompressed ones, and the compression."""
    if number >= MAX_BLOCKS:
        raise CutoutError(f"the ASDF file has an array in block {number}; the first {MAX_BLOCKS} are read")
    file.seek(at)
    padding = file.read(_CHUNK_BYTES)
    at += len(padding) - len(padding.lstrip(b"\0"))
    for count in range(number + 1):
        head = _exactly(file, at, 6 + _BLOCK.size)
        flags, compression, allocated, used, size, _ = _BLOCK.unpack(head[6:])
        start = at + 6 + int.from_bytes(head[4:6], "big")
        if not head.startswith(_MAGIC) or start < at + 6 + _BLOCK.size or used > allocated or flags & _STREAMED:
            raise CutoutError(f"damaged ASDF file: block {count} has no header that can be read")
        at = start + allocated
    return start, used, size, compression


def _exactly(file: BinaryIO, at: int, count: int) -> bytes:
    try:
        file.seek(at)
        data = file.read(count)
    except (OSError, OverflowError, ValueError):
        # Beyond what a file can have.
        data = b""
    if len(data) < count:
        raise CutoutError(_SHORT)
    return data


def _header(roman: Mapping, name: str, unit: str | None, height: int, width: int) -> fits.Header:
    meta, info = mapping_of(roman, "meta"), mapping_of(roman, "meta", "wcsinfo")
    if info.get("projection") != "TAN":
        raise CutoutError(f"meta.wcsinfo.projection is {shown(info.get('projection'))}, not TAN")
    rows = info.get("rotation_matrix")
    numbers = [number for row in rows if isinstance(row, list) for number in row] if isinstance(rows, list) else None
    matrix_4 = numbers_of(numbers, "meta.wcsinfo.rotation_matrix", 4)
    # Its name in the first schema; degrees, but by some programs and some schemas' words arcseconds.
    scale_name = "pixel_scale_ref" if "pixel_scale_ref" in info else "pixel_scale"
    (scale,) = numbers_of(info.get(scale_name), f"meta.wcsinfo.{scale_name}", 1)
    scale = scale if scale < _MAX_SCALE_DEG else scale / 3600
    places = [numbers_of(info.get(key), f"meta.wcsinfo.{key}", 1)[0] for key in ("x_ref", "y_ref", "ra_ref", "dec_ref")]
    cards: dict[str, Any] = {"NAXIS": 2, "NAXIS1": width, "NAXIS2": height, "EXTNAME": shown(name)[:60]}
    cards |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CUNIT1": "deg", "CUNIT2": "deg", "RADESYS": "ICRS"}
    # x_ref and y_ref count from 0.
    cards |= {"CRPIX1": places[0] + 1, "CRPIX2": places[1] + 1, "CRVAL1": places[2], "CRVAL2": places[3]}
    cards |= {"CDELT1": scale, "CDELT2": scale}
    cards |= dict(zip(("PC1_1", "PC1_2", "PC2_1", "PC2_2"), matrix_4, strict=True))
    cards["FILTER"] = _filter(meta)
    header = fits.Header(list(cards.items()))
    grid = Grid(wcs_text(header), height, width)
    _check(grid, info)
    header["PIXAR_SR"] = math.radians(grid.pixel_scale_arcsec / 3600) ** 2
    # The schemas' unit, but of mosaics of rates whose fluxes were not calibrated.
    steps = meta.get("cal_step")
    if unit is None and (not isinstance(steps, Mapping) or steps.get("flux", "COMPLETE") == "COMPLETE"):
        unit = "MJy/sr"
    if unit:
        header["BUNIT"] = shown(unit)[:40]
    return header


def _filter(meta: Mapping) -> str:
    found = (meta.get(group) for group in ("instrument", "basic"))
    names = (group.get("optical_element") for group in found if isinstance(group, Mapping))
    return next((name for name in names if isinstance(name, str) and re.fullmatch(r"\w{1,20}", name, re.ASCII)), "")


def _check(grid: Grid, info: Mapping) -> None:
    """Raise a CutoutError if the image's centre or corners are elsewhere than the metadata state."""
    side = math.radians(grid.pixel_scale_arcsec / 3600)
    if not side > 0:
        raise CutoutError("meta.wcsinfo cannot be used: its pixels have no area")
    centre = next((pair for pair in (("ra", "dec"), ("ra_center", "dec_center")) if pair[0] in info), None)
    if centre:
        ra_1, dec_1 = (np.array(numbers_of(info.get(key), f"meta.wcsinfo.{key}", 1)) for key in centre)
        away = float(np.linalg.norm(unit_vectors(ra_1, dec_1)[0] - grid.centre)) / side
        if not away <= _CENTRE_PIXELS:
            raise CutoutError(f"meta.wcsinfo contradicts itself: its centre is {away:.3g} pixels from that of its projection")
    words = str(info.get("s_region", "")).split()
    if words[:2] == ["POLYGON", "ICRS"] and len(words) == 10:
        corners = np.reshape(numbers_of(words[2:], "meta.wcsinfo.s_region", 8), (4, 2))
        # Theirs begin at the first pixel and go along y, ours along x.
        ours = unit_vectors(*grid.corners)[[0, 3, 2, 1]]
        away = float(np.linalg.norm(unit_vectors(*corners.T) - ours, axis=1).max()) / side
        if not away <= _CORNER_PIXELS:
            raise CutoutError(f"meta.wcsinfo contradicts itself: s_region is {away:.3g} pixels from the image's corners")
