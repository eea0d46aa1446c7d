"""Decompression of untrusted gzip and bzip2 files, up to a bound."""

import bz2
import gzip
import io
import re
import zlib

from gampen_ray.data.cutouts import CutoutError

__all__ = ["decompressed"]

_CHUNK_BYTES = 1 << 20


def decompressed(data: bytes, most_bytes: int, limit: str) -> bytes:
    """Return the content of a gzip or bzip2 file with all its members; other data unchanged.

    Parameters
    ----------
    data
        Content of the file.
    most_bytes, limit
        Largest size, decompressed, which is exceeded by no more than a chunk on the way; what sets it, for the message.

    Raises
    ------
    CutoutError
        If it is damaged or larger.
    """
    if data.startswith(b"\x1f\x8b"):
        kind, opened = "gzip", gzip.GzipFile(fileobj=io.BytesIO(data))
    elif re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", data):
        kind, opened = "bzip2", bz2.BZ2File(io.BytesIO(data))
    else:
        return data
    content = bytearray()
    try:
        # One large read would allocate its full size first.
        with opened as file:
            while chunk := file.read(_CHUNK_BYTES):
                content += chunk
                if len(content) > most_bytes:
                    raise CutoutError(f"decompresses to more than {most_bytes >> 20:,} MiB ({limit})")
    except EOFError:
        raise CutoutError(f"the {kind} file is truncated") from None
    except (OSError, zlib.error) as error:
        raise CutoutError(f"damaged {kind} file: {error}") from None
    return bytes(content)
