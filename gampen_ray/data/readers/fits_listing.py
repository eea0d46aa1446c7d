"""What the HDUs of a FITS file hold, in words, without their pixels."""

import dataclasses
import io
from typing import Any

from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.decompression import decompressed
from gampen_ray.data.headers import canonical_band
from gampen_ray.data.kinds import hdu_kind
from gampen_ray.data.readers.fits_bands import band_names, plane_names
from gampen_ray.data.readers.fits_limits import check_headers

__all__ = ["FitsListing", "listing"]


@dataclasses.dataclass(frozen=True)
class FitsListing:
    """What was found.

    Parameters
    ----------
    images
        Whether each HDU holds an image; None for a file that is not FITS.
    kinds
        What each HDU shows by its name (`gampen_ray.data.kinds.hdu_kind`).
    texts
        Description of each HDU.
    bands
        Names of the bands: of its HDUs, of its only image, or numbers for the planes of a cube.
    """

    images: list[bool] | None = None
    kinds: list[str] = dataclasses.field(default_factory=list)
    texts: list[str] = dataclasses.field(default_factory=list)
    bands: list[str] = dataclasses.field(default_factory=list)


def listing(data: bytes, config: ReaderConfig) -> FitsListing:
    """Return what the HDUs of a FITS file hold, compressed or not; nothing for a damaged one, which its reader explains."""
    try:
        data = decompressed(data, config.max_mebibytes << 20, "reader.max_mebibytes")
        check_headers(data)
        hdus: Any
        with fits.open(io.BytesIO(data), memmap=False) as hdus:
            described = [_described(index, hdu) for index, hdu in enumerate(hdus)]
            images = [hdu for hdu in hdus if hdu.is_image and hdu.header.get("NAXIS", 0) >= 2]
            return FitsListing(
                images=[image for image, _ in described],
                kinds=[hdu_kind(hdu) for hdu in hdus],
                texts=[text for _, text in described],
                bands=_bands(images),
            )
    except MemoryError:
        raise
    except Exception:
        return FitsListing()


def _described(index: int, hdu: Any) -> tuple[bool, str]:
    name = f"{index} {hdu.name}".strip()
    if not hdu.is_image:
        return False, f"{name} table of {hdu.header.get('NAXIS2', 0):,} rows"
    shape = " x ".join(str(size) for size in hdu.shape)
    return bool(shape), f"{name} {shape} BITPIX {hdu.header['BITPIX']}" if shape else f"{name} empty"


def _bands(images: list[Any]) -> list[str]:
    named = band_names(images)
    if len(named) > 1:
        return named
    planes = [size for size in (images[0].shape if images else ())[:-2] if size > 1]
    if len(planes) == 1 and planes[0] <= 32:
        return plane_names(images[0].header, planes[0]) or [f"band{number}" for number in range(1, planes[0] + 1)]
    return [canonical_band(name) or name for name in named]
