"""FITS files, plain or tile-compressed. Files are untrusted: any fault becomes a `CutoutError` in plain words.

Shape legend: C bands, H x W pixels.
"""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import Cutout, CutoutError
from gampen_ray.data.headers import canonical_band, header_band, header_facts, linear_pixels
from gampen_ray.data.kinds import Kind, hdu_kind, hdu_name
from gampen_ray.data.readers.fits_bands import band_hdus, stacked
from gampen_ray.data.readers.fits_limits import MAX_HDUS, check_compression, check_headers, check_size, image_shape

__all__ = ["FitsReader"]

# Of the names of LSST's and HSC's mask planes: MP_NO_DATA = 8, or MSKN0008 = 'NO_DATA'.
_PLANE, _NAMED_PLANE = "MP_", "MSKN"


class FitsReader:
    """The image of one HDU: two-dimensional, or for several bands a cube with these on its first axis, or an HDU a band.

    Leading axes of length one are dropped. Without an index, HDUs that are no image of a galaxy by their name (EXTNAME, or
    IMAGETYP) are passed over, those named SCI or IMAGE are preferred, and an image of one value is passed over if another
    follows. Pixels that the file's own variance, weight, error or mask image marks as unexposed become NaN, as do BLANK ones.
    """

    def reads(self, name: str, head: bytes) -> bool:
        return head.startswith(b"SIMPLE")

    def read(self, data: bytes, config: ReaderConfig) -> Cutout:
        check_headers(data)
        # Headers that break the standard's letter are common and harmless; a truncated file, too, is only a warning.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            # Without uint=False, BLANK pixels of unsigned integers stay numbers.
            hdus: Any
            with fits.open(io.BytesIO(data), memmap=False, lazy_load_hdus=True, uint=False) as hdus:
                file = _File(hdus, data, caught, config)
                places = file.band_places(config)
                cutouts = [file.cutout(place, 1, config) for place in places]
                if not places:
                    return file.cutout(file.choose(config.hdu, config.bands), len(config.bands), config)
        return stacked(config.bands, cutouts)


class _File:
    """The HDUs of an open file."""

    def __init__(self, hdus: Any, data: bytes, caught: Sequence[warnings.WarningMessage], config: ReaderConfig) -> None:
        self._hdus: list[Any] = []
        self._data, self._caught, self._config = data, caught, config
        start = -1
        for hdu in hdus:
            # A damaged size may lead back to an earlier HDU, without end.
            if hdu.fileinfo()["hdrLoc"] <= start or len(self._hdus) == MAX_HDUS:
                raise CutoutError(
                    f"damaged FITS file: HDU {len(self._hdus)} begins inside an earlier one, or there is no last one"
                )
            start = hdu.fileinfo()["hdrLoc"]
            self._hdus.append(hdu)

    def choose(self, index: int | None, bands: tuple[str, ...]) -> int:
        """Return the place of the HDU whose image is read."""
        hdus = self._hdus
        if index is not None:
            if not 0 <= index < len(hdus):
                raise CutoutError(f"no HDU {index}: the file has {len(hdus)}, counted from 0")
            if not _holds_image(hdus[index]):
                raise CutoutError(f"HDU {index} holds no image")
            return index
        images = [place for place, hdu in enumerate(hdus) if _holds_image(hdu)]
        if not images:
            raise CutoutError("no HDU holds an image")
        kinds = {place: hdu_kind(hdus[place]) for place in images}
        # A file that holds a PSF alone was asked for as one.
        wanted = [place for place in images if kinds[place] in ("", "science") or (kinds[place] == "psf" and len(images) == 1)]
        if not wanted:
            names = ", ".join(hdu_name(hdus[place]) for place in images)
            raise CutoutError(f"no HDU holds the image of a galaxy, by their names {names}; reader.hdu takes one all the same")
        science = [place for place in wanted if kinds[place] == "science"]
        # A preview in colours has other axes.
        fitting = [place for place in science or wanted if _fits_bands(image_shape(hdus[place]), len(bands))]
        if len(bands) == 1 and (band := canonical_band(bands[0])):
            fitting = [place for place in fitting if header_band(hdus[place].header) == band] or fitting
        for place in fitting[:-1]:
            if not _constant(self.pixels(place)):
                return place
        return (fitting or science or wanted)[-1 if fitting else 0]

    def band_places(self, config: ReaderConfig) -> list[int]:
        """Return the place of each band's HDU; none where one HDU holds all bands."""
        images = [place for place, hdu in enumerate(self._hdus) if _holds_image(hdu) and hdu.header["NAXIS"] >= 2]
        if len(config.bands) == 1 or config.hdu is not None or len(images) < 2 or self._hdus[images[0]].header["NAXIS"] > 2:
            return []
        found = band_hdus([self._hdus[place] for place in images], config.bands)
        return [images[index] for index in found]

    def cutout(self, place: int, num_bands: int, config: ReaderConfig) -> Cutout:
        """Return the image of an HDU with what its header says."""
        hdu = self._hdus[place]
        pixels, shape = self.pixels(place), image_shape(hdu)[-2:]
        facts = header_facts(hdu.header, self._hdus[0].header, shape, position_only=config.headers == "ignore")
        # Once its cards have been read, which takes as long for every copy.
        header = hdu.header.copy(strip=True)
        image_CHW = _to_bands(linear_pixels(pixels, header), num_bands)
        if (unexposed_HW := self.unexposed(place, shape, config.mask_planes)) is not None:
            image_CHW[:, unexposed_HW] = np.nan
        return Cutout(image_CHW, header=header, **facts)

    def pixels(self, place: int) -> Any:
        """Return the pixels of an image HDU; astropy keeps them."""
        hdu = self._hdus[place]
        truncated = any("truncated" in str(warning.message) for warning in self._caught)
        check_size(hdu, len(self._data), self._config, truncated=truncated)
        if isinstance(hdu, fits.CompImageHDU):
            tables: Any
            with fits.open(io.BytesIO(self._data), memmap=False, disable_image_compression=True) as tables:
                check_compression(tables[place], image_shape(hdu), self._data)
        return hdu.data

    def unexposed(self, place: int, shape: tuple[int, ...], planes: tuple[str, ...]) -> np.ndarray | None:
        """Return which pixels have no value by the images between an image and the next one of a galaxy; None: unknown."""
        bad_HW: np.ndarray | None = None
        for follower in range(place + 1, len(self._hdus)):
            hdu = self._hdus[follower]
            if not _holds_image(hdu):
                continue
            kind = hdu_kind(hdu)
            if kind in ("", "science"):
                break
            if kind in ("variance", "error", "weight", "mask") and image_shape(hdu)[-2:] == shape:
                marked_HW = np.any(_marked(self.pixels(follower).reshape(-1, *shape), kind, hdu.header, planes), axis=0)
                bad_HW = marked_HW if bad_HW is None else bad_HW | marked_HW
        return bad_HW


def _holds_image(hdu: Any) -> bool:
    return bool(hdu.is_image and hdu.header.get("NAXIS", 0))


def _fits_bands(shape: tuple[int, ...], num_bands: int) -> bool:
    while len(shape) > 2 and shape[0] == 1:
        shape = shape[1:]
    return len(shape) == 2 if num_bands == 1 else len(shape) == 3 and shape[0] == num_bands


def _constant(pixels: np.ndarray) -> bool:
    finite = pixels[np.isfinite(pixels)]
    return not finite.size or finite.min() == finite.max()


def _marked(pixels_MHW: np.ndarray, kind: Kind, header: Any, planes: tuple[str, ...]) -> np.ndarray:
    if kind == "mask":
        flags_MHW: np.ndarray = np.nan_to_num(pixels_MHW).astype(np.int64)
        return (flags_MHW & _plane_bits(header, planes)) != 0
    # A weight of zero says that no exposure contributes, a variance that is not finite likewise.
    return ~np.isfinite(pixels_MHW) | ((pixels_MHW <= 0) if kind == "weight" else False)


def _plane_bits(header: Any, planes: tuple[str, ...]) -> int:
    bits = {name.removeprefix(_PLANE): header[name] for name in header if name.startswith(_PLANE)}
    bits |= {str(header[name]): int(name[len(_NAMED_PLANE) :]) for name in header if name.startswith(_NAMED_PLANE)}
    chosen = (int(bits[name]) for name in planes if name in bits)
    return -1 if "any" in planes else sum(1 << bit for bit in set(chosen) if 0 <= bit < 63)


def _to_bands(pixels: np.ndarray, num_bands: int) -> np.ndarray:
    shape = pixels.shape
    if not _fits_bands(shape, num_bands):
        wanted = "a two-dimensional image" if num_bands == 1 else f"a cube of {num_bands} bands"
        raise CutoutError(f"the image is {len(shape)}-dimensional with shape {shape}, not {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        # Values beyond float32 become infinite. FITS is big-endian; the result is native, and a copy.
        return np.array(pixels.reshape(num_bands, *shape[-2:]), dtype=np.float32, order="C")
