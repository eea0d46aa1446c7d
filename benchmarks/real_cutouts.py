"""Cutouts of real galaxies for `real_galaxies.py`: from a tile, and from folders of galaxies in two surveys.

Shape legend: C bands, H x W pixels.
"""

import dataclasses
import logging
import math
import typing
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy import ndimage

from gampen_ray.config import ReaderConfig
from gampen_ray.data.readers import read_cutout
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle
from gampen_ray.simulation.psf import APERTURE_PIXELS, StampPsf
from gampen_ray.simulation.render import Psf

STAMP = 61
"""Side of the stars' images, pixels."""
SURVEY_PIXELS = {"kids": 0.2, "sdss": 0.339}
"""Folders of the pairs, and their pixels in arcsec."""
_DETECTION_SIGMA, _ISOLATION = 3.0, 0.05
# Of sources, before they are detected, pixels.
_SMOOTHING = 1.5

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutout:
    """A galaxy's pixels, in the bundle's flux units and the survey's pixels."""

    name: str
    image: np.ndarray
    """(H, W), the galaxy near the centre."""
    sigma: np.ndarray
    """(H, W), infinite where a pixel is not to be fitted."""
    psf: Psf
    pixel_scale_arcsec: float


def tile_cutouts(bundle: Bundle, path: str, scale: float, zero_point_mag: float, count: int) -> list[Cutout]:
    """Return up to ``count`` isolated galaxies of a tile, evenly by rank of flux within the bundle's range."""
    pixels_CHW = read_cutout(Path(path).read_bytes(), path, ReaderConfig()).image_CHW
    image = flux_factor(bundle, zero_point_mag) * pixels_CHW[0].astype(np.float64)
    sky, noise = background(image)
    image -= sky
    # Small enough to hold a faint galaxy, large enough for its neighbours' edges.
    half = math.ceil(0.5 * (bundle.images.size + 2) * (bundle.images.pixel_scale_arcsec or scale) / scale)
    sources, label = detected(image, noise, half)
    stamp = star_stamp(image, noise, sources)
    psf = StampPsf.of(stamp, _aperture(bundle, scale))
    star_width = second_moment(stamp)
    flux = next(target for target in bundle.targets if target.name == "flux")
    good = [
        source
        for source in sources
        if source["isolated"] and source["width"] > 1.3 * star_width and 1.5 * flux.low < source["flux"] < flux.high / 1.5
    ]
    good.sort(key=lambda source: source["flux"])
    chosen = [good[i] for i in np.unique(np.linspace(0, len(good) - 1, min(count, len(good))).astype(int))] if good else []
    if not chosen:
        raise UserError(f"tile: no isolated galaxy of {path} is within the bundle's range of flux; give another tile")
    logger.info("%d sources, %d isolated galaxies in range, %d chosen", len(sources), len(good), len(chosen))
    return [
        Cutout(
            name=f"{source['x']},{source['y']}",
            image=around(image, source, half),
            # What belongs to other sources is left out of the fit.
            sigma=np.where(np.isin(around(label, source, half), (0, source["index"])), noise, np.inf),
            psf=psf,
            pixel_scale_arcsec=scale,
        )
        for source in chosen
    ]


def _aperture(bundle: Bundle, scale: float) -> float:
    """Return the radius, in pixels of an image, within which the bundle's fluxes count a PSF's light."""
    return APERTURE_PIXELS * (bundle.images.pixel_scale_arcsec or scale) / scale


def background(image: np.ndarray) -> tuple[float, float]:
    """Return level and standard deviation of the sky, by clipping."""
    kept = image[np.isfinite(image)]
    for _ in range(8):
        level, sigma = float(np.median(kept)), 1.4826 * float(np.median(np.abs(kept - np.median(kept))))
        kept = kept[np.abs(kept - level) < 3 * sigma]
    return level, sigma


def others(image: np.ndarray, noise: float) -> np.ndarray:
    """Return which pixels other sources add light to: those that are brighter than their mirror images through the centre.

    Profiles have no odd part. A pixel is taken where the difference is above 5 sigma and a fifth of the mirror's light, and not
    within 3 pixels of the centre; with those within 2 pixels of it.
    """
    smooth = ndimage.gaussian_filter(image, _SMOOTHING)
    y, x = (np.arange(side) - 0.5 * (side - 1) for side in image.shape)
    row, column = np.unravel_index(np.argmax(np.where(np.hypot(y[:, None], x) < 4, smooth, -np.inf)), image.shape)
    y0, x0 = y[row] + _summit(smooth[row - 1 : row + 2, column]), x[column] + _summit(smooth[row, column - 1 : column + 2])
    mirror = np.maximum(ndimage.shift(smooth[::-1, ::-1], (2 * y0, 2 * x0)), 0)
    limit = np.maximum(5 * math.sqrt(2) * noise / (2 * math.sqrt(math.pi) * _SMOOTHING), 0.2 * mirror)
    found = (smooth - mirror > limit) & (np.hypot(y[:, None] - y0, x - x0) > 3)
    return ndimage.binary_dilation(found, iterations=2)


def _summit(three: np.ndarray) -> float:
    """Return where a Gaussian through three values is highest, pixels from the middle one, at most half a pixel."""
    left, middle, right = np.log(np.maximum(three, 1e-3 * abs(three).max()))
    return float(np.clip(0.5 * (left - right) / min(left - 2 * middle + right, -1e-9), -0.5, 0.5))


def detected(image: np.ndarray, noise: float, half: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the sources far from the edges (place, flux, width, whether isolated), and the image of their labels."""
    smooth = ndimage.gaussian_filter(image, _SMOOTHING)
    label = np.zeros(image.shape, np.int32)
    found_pixels = smooth > _DETECTION_SIGMA * noise / (2 * math.sqrt(math.pi) * _SMOOTHING)
    number = int(typing.cast(Any, ndimage.label(found_pixels, output=label)))
    found = ndimage.find_objects(label)
    flux = ndimage.sum_labels(image, label, np.arange(number + 1))
    peak = ndimage.maximum_position(smooth, label, np.arange(1, number + 1))
    sources = []
    for index, ((y, x), box) in enumerate(zip(peak, found, strict=True), start=1):
        bright = flux[index] > 50 * noise
        if not (bright and half < y < image.shape[0] - half - 1 and half < x < image.shape[1] - half - 1):
            continue
        near = label[y - half // 2 : y + half // 2 + 1, x - half // 2 : x + half // 2 + 1]
        neighbours = np.setdiff1d(near, (0, index))
        peaks = smooth[box] * (label[box] == index)
        # A second peak in the same island is a blend.
        maxima = (peaks == ndimage.maximum_filter(peaks, 7)) & (peaks > 0.1 * smooth[y, x])
        own = image[y - 8 : y + 9, x - 8 : x + 9]
        sources.append(
            {
                "x": int(x),
                "y": int(y),
                "flux": float(flux[index]),
                "peak": float(image[y, x]),
                "width": second_moment(own),
                "isolated": int(maxima.sum()) == 1 and float(flux[neighbours].sum()) < _ISOLATION * flux[index],
                "index": index,
            }
        )
    return sources, label


def second_moment(image: np.ndarray) -> float:
    """Return the width of a source, in a window that weighs its core: standard deviation, pixels."""
    y, x = np.indices(image.shape) - np.array(image.shape)[:, None, None] // 2
    weight = image * np.exp(-(x**2 + y**2) / (2 * 3.0**2))
    return math.sqrt(max(float((weight * (x**2 + y**2)).sum() / weight.sum()), 0.0) / 2)


def around(image: np.ndarray, source: dict[str, Any], half: int) -> np.ndarray:
    """Return the pixels about a source."""
    y, x = source["y"], source["x"]
    return image[y - half : y + half + 1, x - half : x + half + 1]


def star_stamp(image: np.ndarray, noise: float, sources: list[dict[str, Any]]) -> np.ndarray:
    """Return the median image of the tile's isolated stars, the narrowest sources, of unit flux within 8 pixels."""
    half = STAMP // 2
    inside = [
        source
        for source in sources
        if source["isolated"]
        and 100 * noise < source["peak"] < 3000 * noise  # neither faint nor saturated
        and min(source["y"], source["x"]) > half
        and max(source["y"] - image.shape[0], source["x"] - image.shape[1]) < -half - 1
    ]
    if len(inside) < 5:
        raise UserError(f"tile: only {len(inside)} bright isolated sources, too few to find stars; give a larger tile")
    widths = np.array([source["width"] for source in inside])
    # The locus of the stars: the densest tenth of an interval of widths, from the narrowest tenth on.
    ordered = np.sort(widths)
    step = max(2, len(ordered) // 10)
    start = int(np.argmin(ordered[step:] - ordered[:-step]))
    locus = float(np.median(ordered[start : start + step]))
    stars = [source for source, width in zip(inside, widths, strict=True) if abs(width / locus - 1) < 0.04]
    y, x = np.indices((STAMP, STAMP)) - half
    radius = np.hypot(x, y)
    stack = []
    for source in stars:
        star, core = around(image, source, half), radius < 4
        star = star - np.median(star[radius > half - 4])
        total = (star * core).sum()
        shift = -(star * y * core).sum() / total, -(star * x * core).sum() / total
        # In Fourier space, which blurs nothing.
        centred = np.fft.ifft2(ndimage.fourier_shift(np.fft.fft2(star), shift)).real
        stack.append(centred / centred[radius < 8].sum())
    logger.info("%d stars of width %.2f pixels", len(stars), locus)
    return np.median(stack, axis=0)


def pair_cutouts(bundle: Bundle, folder: Path, survey: str, scale: float) -> list[Cutout]:
    """Return the galaxies of a survey, in maggies, in the order of their names."""
    cutouts = []
    factor = flux_factor(bundle, 0.0)
    for path in sorted((folder / survey).glob("*fitim.fits")):
        name = path.name.removesuffix("fitim.fits")
        image, mask, segments, sigma, stamp = (
            np.asarray(fits.getdata(path.with_name(f"{name}{kind}.fits")), np.float64)
            for kind in ("fitim", "mskim", "segim", "sigma", "psfim")
        )
        own = segments == segments[tuple(side // 2 for side in segments.shape)]
        used = (mask == 0) & ((segments == 0) | own)
        stamp = np.pad(stamp, max(0, (STAMP - len(stamp)) // 2))
        cutouts.append(
            Cutout(
                name=name,
                image=factor * image,
                sigma=np.where(used, factor * sigma, np.inf),
                psf=StampPsf.of(stamp, _aperture(bundle, scale)),
                pixel_scale_arcsec=scale,
            )
        )
    if not cutouts:
        raise UserError(f"pairs: {folder / survey} holds no *fitim.fits; give the folder above kids and sdss")
    return cutouts


def flux_factor(bundle: Bundle, zero_point_mag: float) -> float:
    """Return the factor from flux units of a zero point to those of the bundle."""
    if bundle.images.zero_point_mag is None:
        raise UserError("bundle: it has no zero point, and so no magnitudes; give one that was trained with a zero point")
    return 10 ** (0.4 * (bundle.images.zero_point_mag - zero_point_mag))
