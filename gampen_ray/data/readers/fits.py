"""FITS files, plain or tile-compressed. Files are untrusted: any fault becomes a `CutoutError` in plain words.

Shape legend: C bands, H x W pixels.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from astropy.io import fits

from gampen_ray.config import ReaderConfig
from gampen_ray.data.cutouts import CORE, Cutout, CutoutError, overlap
from gampen_ray.data.headers import canonical_band, header_band, header_facts, linear_pixels
from gampen_ray.data.kinds import Kind, hdu_kind, hdu_name
from gampen_ray.data.mask_planes import header_planes, plane_bits
from gampen_ray.data.readers.arrays import band_order, standard_deviation
from gampen_ray.data.readers.fits_bands import band_hdus, band_names, named_bands, plane_names, stacked
from gampen_ray.data.readers.fits_limits import MAX_HDUS, check_compression, check_headers, check_size, image_shape

__all__ = ["FitsReader"]

_SATURATED = ("SAT", "SATURATED")
# An image with its mask, segmentation map, noise and PSF; more are those of many galaxies.
_MOST_NAMELESS = 6


class FitsReader:
    """The image of one HDU: two-dimensional, or for several bands a cube with these on its first axis, or an HDU a band.

    Leading axes of length one are dropped. Without an index, HDUs that are no image of a galaxy by their name (EXTNAME, or
    IMAGETYP) are passed over, those named SCI or IMAGE are preferred, and an image of one value is passed over if another
    follows. Pixels that the file's own variance, weight, error or mask image marks as unexposed become NaN, as do BLANK ones;
    the median of the noise in the first three becomes a number of the galaxy. Where headers name the bands of HDUs or of a
    cube's planes, those asked for are taken, in the order asked for.
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
                cutouts = [
                    file.cutout(place, (band,), config) for place, band in zip(places, config.bands, strict=bool(places))
                ]
                if not places:
                    return file.cutout(file.choose(config), config.bands, config)
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

    def choose(self, config: ReaderConfig) -> int:
        """Return the place of the HDU whose image is read."""
        hdus, index, num_bands = self._hdus, config.hdu, len(config.bands)
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
        if len(wanted) > _MOST_NAMELESS and not any(
            hdu_name(hdus[place]) or header_band(hdus[place].header) for place in wanted
        ):
            raise CutoutError(f"{len(wanted)} HDUs hold images, none of which has a name; reader.hdu takes one of them")
        science = [place for place in wanted if kinds[place] == "science"]
        # A preview in colours has other axes.
        fitting = [place for place in science or wanted if _fits_bands(image_shape(hdus[place]), num_bands)]
        if num_bands == 1 and config.headers != "ignore":
            fitting = self._of_band(fitting, config)
        if not fitting:
            return (science or wanted)[0]
        chosen = next((place for place in fitting[:-1] if not _constant(self.pixels(place))), fitting[-1])
        name = hdu_name(hdus[chosen])
        twins = [place for place in fitting if place >= chosen and name and hdu_name(hdus[place]) == name]
        if len(twins) > 1:
            raise CutoutError(f"the HDUs {', '.join(map(str, twins))} are all named {name}; reader.hdu takes one of them")
        band = header_band(hdus[chosen].header) if num_bands == 1 and config.headers != "ignore" else ""
        twins = [place for place in fitting if place >= chosen and band and header_band(hdus[place].header) == band]
        if len(twins) > 1:
            named = ", ".join(f"{place} {hdu_name(hdus[place])}".strip() for place in twins)
            raise CutoutError(f"the HDUs {named} are all of the band {band}; reader.hdu takes one of them")
        return chosen

    def _of_band(self, places: list[int], config: ReaderConfig) -> list[int]:
        # Those of some HDUs that show the only band asked for; all where they have no bands, or none has this one.
        images = [self._hdus[place] for place in places]
        names = band_names(images) if len(images) > 1 else []
        if names and config.bands == ReaderConfig().bands:
            # Refuses, and says which there are.
            band_order(names, config)
        band = canonical_band(config.bands[0])
        own = [canonical_band(name) for name in names] or [header_band(image.header) for image in images]
        if names and all(own) and band and band not in own:
            raise CutoutError(f"no HDU has the band {config.bands[0]}; the images are of {', '.join(names)}")
        return [place for place, one in zip(places, own, strict=True) if band and one == band] or places

    def band_places(self, config: ReaderConfig) -> list[int]:
        """Return the place of each band's HDU; none where one HDU holds all bands."""
        images = [place for place, hdu in enumerate(self._hdus) if _holds_image(hdu) and hdu.header["NAXIS"] >= 2]
        if len(config.bands) == 1 or config.hdu is not None or len(images) < 2 or self._hdus[images[0]].header["NAXIS"] > 2:
            return []
        found = band_hdus([self._hdus[place] for place in images], config.bands)
        return [images[index] for index in found]

    def cutout(self, place: int, bands: tuple[str, ...], config: ReaderConfig) -> Cutout:
        """Return the image of an HDU with what its header says and with its noise."""
        hdu, trusted = self._hdus[place], config.headers != "ignore"
        pixels, shape = self.pixels(place), image_shape(hdu)[-2:]
        facts = header_facts(hdu.header, self._hdus[0].header, shape, position_only=not trusted)
        # Once its cards have been read, which takes as long for every copy.
        header = hdu.header.copy(strip=True)
        order = _plane_order(header, image_shape(hdu), config) if trusted else None
        image_CHW = _to_bands(linear_pixels(pixels, header), len(bands), order)
        names = (facts["band"],) if bands == ReaderConfig().bands and facts.get("band") else bands
        numbers: dict[str, float] = {}
        sigma_CHW = None
        for kind, companion in self._companions(place, shape):
            # M planes: one, or as many as the image has.
            pixels_MHW = self.pixels(companion).reshape(-1, *shape)
            marked_MHW = _marked(pixels_MHW, kind, self._hdus[companion].header, config.mask_planes)
            image_CHW[:, np.any(marked_MHW, axis=0)] = np.nan
            power = _noise_power(hdu_name(self._hdus[companion]), kind, bands if config.noise_planes else ())
            if power is None:
                continue
            if len(pixels_MHW) == len(bands) and order is None:
                numbers = _noise(pixels_MHW, power, names) | numbers
            if config.noise_planes and sigma_CHW is None and len(pixels_MHW) == math.prod(image_shape(hdu)[:-2]):
                sigma_CHW = standard_deviation(pixels_MHW if order is None else pixels_MHW[order], power)
        return Cutout(image_CHW, header=header, numbers=numbers, sigma_CHW=sigma_CHW, **facts)

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

    def _companions(self, place: int, shape: tuple[int, ...]) -> Iterator[tuple[Kind, int]]:
        # The variance, error, weight and mask of the size of a galaxy's image, by kind and place: those of its band, where
        # both name one of the file's, else those before the next galaxy.
        bands = self._config.bands
        if len(bands) == 1:
            images = [hdu for hdu in self._hdus if _holds_image(hdu)]
            bands = band_names(images) if len(images) > 1 else []
        mine, following = set(named_bands(self._hdus[place], bands)), True
        for other, hdu in enumerate(self._hdus):
            if not _holds_image(hdu):
                continue
            kind = hdu_kind(hdu)
            if other > place and kind in ("", "science"):
                following = False
            named = set(named_bands(hdu, bands))
            own = bool(named & mine) if named and mine else following and other > place
            if own and kind in ("variance", "error", "weight", "mask") and image_shape(hdu)[-2:] == shape:
                yield kind, other


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
        names = header_planes(header)
        marked_MHW = (flags_MHW & plane_bits(names, planes)) != 0
        # Pipelines interpolate over saturated pixels. Those of stars elsewhere in the image do no harm.
        core = (..., *(overlap(side, CORE)[0] for side in flags_MHW.shape[1:]))
        marked_MHW[core] |= (flags_MHW[core] & plane_bits(names, _SATURATED)) != 0
        return marked_MHW
    # A weight of zero says that no exposure contributes, a variance that is not finite likewise.
    return ~np.isfinite(pixels_MHW) | ((pixels_MHW <= 0) if kind == "weight" else False)


def _noise_power(name: str, kind: Kind, bands: Sequence[str]) -> float | None:
    """Return the power of an HDU's pixels that is their noise; None for a mask, a weight of unknown unit, or a part of a
    variance. The name may end with one of these bands."""
    powers = {"error": 1.0, "variance": 0.5, "weight": -0.5}
    whole = {"variance": r"var|variance", "weight": "ivar|invvar"}
    endings = "|".join(re.escape(band) for band in bands)
    if kind in whole and not re.fullmatch(rf"({whole[kind]})([-_. ]({endings}))?", name.strip(), re.IGNORECASE):
        return None
    return powers.get(kind)


def _noise(pixels_MHW: np.ndarray, power: float, bands: Sequence[str]) -> dict[str, float]:
    """Return the median noise of each band by column."""
    noise = {}
    for band, plane_HW in zip(bands, pixels_MHW, strict=True):
        positive = plane_HW[np.isfinite(plane_HW) & (plane_HW > 0)]
        noise[f"noise_{band}"] = float(np.median(positive)) ** power if positive.size else math.nan
    return noise


def _plane_order(header: Any, shape: tuple[int, ...], config: ReaderConfig) -> list[int] | None:
    # The planes of the bands asked for, where the header names those of a cube; None: as they are.
    names = plane_names(header, shape[-3]) if len(shape) > 2 and math.prod(shape[:-3]) == 1 else []
    if len(names) < 2:
        return None
    order = band_order(names, config)
    return order if order != list(range(len(names))) else None


def _to_bands(pixels: np.ndarray, num_bands: int, order: list[int] | None = None) -> np.ndarray:
    if order is not None:
        pixels = pixels.reshape(pixels.shape[-3:])[order]
    shape = (1, *pixels.shape[-2:]) if order is not None and num_bands == 1 else pixels.shape
    if not _fits_bands(shape, num_bands):
        wanted = "a two-dimensional image" if num_bands == 1 else f"a cube of {num_bands} bands"
        raise CutoutError(f"the image is {len(shape)}-dimensional with shape {shape}, not {wanted}")
    with np.errstate(over="ignore", invalid="ignore"):
        # Values beyond float32 become infinite. FITS is big-endian; the result is native, and a copy.
        return np.array(pixels.reshape(num_bands, *shape[-2:]), dtype=np.float32, order="C")
