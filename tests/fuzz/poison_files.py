"""Files that would crash, hang or swell a process that decodes them unwarily, by kind, each with the reason it must get."""

import gzip
import io

import numpy as np
from astropy.io import fits

PIXELS = np.random.default_rng(0).normal(100, 10, size=(40, 48)).astype(np.float32)
_AXES = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 24.5, "CRPIX2": 20.5}
WCS = _AXES | {"CRVAL1": 150.0, "CRVAL2": 2.0, "CD1_1": -5e-5, "CD2_2": 5e-5}
_EMPTY_HDU = fits.ImageHDU().header.tostring().encode()


def file(*hdus: object) -> bytes:
    """Return a FITS file."""
    buffer = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(buffer)
    return buffer.getvalue()


def image(**cards: object) -> bytes:
    """Return an intact file of one image, with some cards."""
    return file(fits.PrimaryHDU(PIXELS, fits.Header(WCS | {"FILTER": "r"} | cards)))


def compressed(kind: str) -> bytes:
    """Return an intact tile-compressed file."""
    return file(fits.PrimaryHDU(), fits.CompImageHDU(PIXELS.astype(np.int16), compression_type=kind, tile_shape=(20, 24)))


def with_card(data: bytes, key: str, value: object) -> bytes:
    """Change a card."""
    start = data.index(f"{key:<8}=".encode())
    return data[:start] + f"{key:<8}= {value!s:>20}".ljust(80).encode() + data[start + 80 :]


def _hcompress(height: int, width: int) -> bytes:
    data = compressed("HCOMPRESS_1")
    # Each stream begins with its magic number and sides.
    start = data.index(b"\xdd\x99") + 2
    return data[:start] + height.to_bytes(4, "big") + width.to_bytes(4, "big") + data[start + 8 :]


def _gzip_tile(size: int) -> bytes:
    with fits.open(io.BytesIO(compressed("GZIP_1")), disable_image_compression=True) as hdus:
        streams = np.empty(4, dtype=object)
        streams[:] = [np.frombuffer(gzip.compress(bytes(size), mtime=0), np.uint8)] * 4
        column = fits.Column("COMPRESSED_DATA", "1PB()", array=streams)
        table = fits.BinTableHDU.from_columns([column])
        table.header.update({name: value for name, value in hdus[1].header.items() if name.startswith("Z")})
        return file(fits.PrimaryHDU(), table)


POISON = {
    "axes": (lambda: with_card(image(), "NAXIS", 2**31 - 1), "NAXIS is 2147483647"),
    "columns": (lambda: with_card(compressed("RICE_1"), "TFIELDS", 2**31 - 1), "TFIELDS is 2147483647"),
    "groups": (lambda: with_card(compressed("RICE_1"), "GCOUNT", -16), "GCOUNT is -16"),
    "large-tile": (lambda: _hcompress(20_000, 24), "tile 1 of 480 pixels holds 20000 x 24"),
    "empty-tile": (lambda: _hcompress(0, 0), "tile 1 of 480 pixels holds 0 x 0"),
    "swollen-tile": (lambda: _gzip_tile(1 << 22), "tile 1 of 480 pixels decompresses to more"),
    "bomb": (lambda: gzip.compress(bytes(1 << 27)), r"decompresses to more than 64 MiB \(reader.max_mebibytes\)"),
    "nested-bomb": (lambda: gzip.compress(_gzip_tile(1 << 22)), "tile 1 of 480 pixels decompresses to more"),
    "endless": (lambda: file(fits.PrimaryHDU()) + 20_000 * _EMPTY_HDU, "there is no last one|longer than 2 s"),
    "large": (lambda: bytes((64 << 20) + 1), r"the file has 64.0 MiB, more than 64 \(reader.max_mebibytes\)"),
}
"""How the content of each kind is made, and what matches its reason."""
