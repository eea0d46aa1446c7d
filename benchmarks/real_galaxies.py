"""Posteriors of real galaxies against least-squares fits of their pixels, and of the same galaxies in two surveys.

    python benchmarks/real_galaxies.py --bundle BUNDLE --tile kids_r_tile.fits
    python benchmarks/real_galaxies.py --bundle BUNDLE --pairs DATA

``--tile``: isolated galaxies of a tile within the bundle's range of flux, with the PSF of the tile's stars. ``--pairs``: DATA
has the folders ``kids`` and ``sdss`` with image, bad-pixel mask, segmentation, error map and PSF of each galaxy (``*fitim``,
``*mskim``, ``*segim``, ``*sigma``, ``*psfim``: the example data of ProFit, Robotham et al. 2017, MNRAS 466, 1513).

The fits are independent of the network: a bulge and a disk (Sersic indices 4 and 1) through the PSF's image, with a constant
sky; for the pairs also a single Sersic profile where it is better. The fit takes the survey's pixels; the network takes them
resampled to the bundle's scale, and the PSF as measured on stars resampled likewise. Prints JSON; tables go to standard error.
Shape legend: N galaxies, P parameters, H x W pixels.
"""

import argparse
import dataclasses
import json
import logging
import math
import sys
import typing
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from parts import flag_names, predicted, warned
from scipy import ndimage, optimize
from shifts import resampled_sizes

from gampen_ray.config import ReaderConfig
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.data.readers import read_cutout
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.predictor import Prediction
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.psf import StampPsf
from gampen_ray.simulation.render import render

TARGETS: tuple[str, ...] = ("flux", "effective_radius_arcsec", "bulge_to_total")
STAMP = 61
"""Side of the stars' images, pixels."""
_DETECTION_SIGMA, _ISOLATION = 3.0, 0.05
_MAX_CALLS = 60

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cutout:
    """A galaxy's pixels, in the bundle's flux units and the survey's pixels."""

    name: str
    image: np.ndarray
    """(H, W), the galaxy near the centre."""
    sigma: np.ndarray
    """(H, W), infinite where a pixel is not to be fitted."""
    psf: StampPsf
    pixel_scale_arcsec: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A least-squares fit: values and standard errors of `TARGETS`; a single Sersic profile has no B/T."""

    model: str
    chi2_per_pixel: float
    value: dict[str, float | None]
    error: dict[str, float | None]


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bundle = load_bundle(arguments.bundle)
    result: dict[str, Any] = {"bundle": arguments.bundle}
    if arguments.tile:
        cutouts = tile_cutouts(bundle, arguments.tile, arguments.pixel_scale, arguments.zero_point, arguments.num_galaxies)
        rows = compared(bundle, cutouts, arguments)
        result["tile"] = {"galaxies": rows, "summary": summary(rows)}
        show(rows)
        for name, line in result["tile"]["summary"].items():
            logger.info("%-24s %s", name, "  ".join(f"{key} {value:.3g}" for key, value in line.items()))
    if arguments.pairs:
        pairs = {survey: pair_cutouts(bundle, Path(arguments.pairs), survey, scale) for survey, scale in SURVEY_PIXELS.items()}
        rows = {survey: compared(bundle, cutouts, arguments, single=True) for survey, cutouts in pairs.items()}
        numbers = agreement(*rows.values())
        agreeing = sum(abs(row["sigmas"]) <= 2 or bool(row["flagged"]) for row in numbers)
        result["pairs"] = {**rows, "numbers": numbers, "agree_or_flagged": agreeing}
        for survey, galaxies in rows.items():
            logger.info("%s", survey)
            show(galaxies)
        for row in numbers:
            logger.info("%(name)-10s %(number)-10s difference %(difference)+.3f = %(sigmas)+.2f sigma  %(flagged)s", row)
        logger.info("%d of %d numbers agree within 2 sigma or are flagged", agreeing, len(numbers))
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


# --- the tile ------------------------------------------------------------------------------------------------------------


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
    psf = StampPsf(stamp=stamp / stamp.sum())
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


def background(image: np.ndarray) -> tuple[float, float]:
    """Return level and standard deviation of the sky, by clipping."""
    kept = image[np.isfinite(image)]
    for _ in range(8):
        level, sigma = float(np.median(kept)), 1.4826 * float(np.median(np.abs(kept - np.median(kept))))
        kept = kept[np.abs(kept - level) < 3 * sigma]
    return level, sigma


def detected(image: np.ndarray, noise: float, half: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return the sources far from the edges (place, flux, width, whether isolated), and the image of their labels."""
    smooth = ndimage.gaussian_filter(image, 1.5)
    label = np.zeros(image.shape, np.int32)
    found_pixels = smooth > _DETECTION_SIGMA * noise / (2 * math.sqrt(math.pi) * 1.5)
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


# --- the pairs -----------------------------------------------------------------------------------------------------------

SURVEY_PIXELS = {"kids": 0.2, "sdss": 0.339}


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
                psf=StampPsf(stamp=stamp / stamp.sum()),
                pixel_scale_arcsec=scale,
            )
        )
    if not cutouts:
        raise UserError(f"pairs: {folder / survey} holds no *fitim.fits; give the folder above kids and sdss")
    return cutouts


def agreement(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return differences of magnitude and ln radius between two surveys, over their joint standard deviation."""
    rows = []
    for one, other in zip(first, second, strict=True):
        for number, target, factor in (
            ("magnitude", "flux", -2.5 / math.log(10)),
            ("ln radius", "effective_radius_arcsec", 1.0),
        ):
            value = [factor * math.log(row["posterior"][target]["mean"]) for row in (one, other)]
            sigma = [factor * row["posterior"][target]["std"] / row["posterior"][target]["mean"] for row in (one, other)]
            difference = value[1] - value[0]
            rows.append(
                {
                    "name": one["name"],
                    "number": number,
                    "difference": difference,
                    "sigmas": difference / math.hypot(*sigma),
                    "flagged": " / ".join(",".join(row["flags"]) for row in (one, other) if row["warned"]),
                }
            )
    return rows


# --- fits ----------------------------------------------------------------------------------------------------------------


def fitted(cutout: Cutout, *, single: bool) -> Fit:
    """Return a least-squares fit: bulge and disk, or if wanted and better a single Sersic profile."""
    fits_ = [fit_model(cutout, start, single=False) for start in (0.2, 0.7)]
    if single:
        fits_ += [fit_model(cutout, 0.0, single=True)]
    return min(fits_, key=lambda fit: fit.chi2_per_pixel)


def fit_model(cutout: Cutout, start: float, *, single: bool) -> Fit:
    """Fit ln flux, sky, centre and the shapes, by least squares from a share of the bulge.

    The derivatives at the minimum give the errors; those of B/T and radius follow by propagation.
    """
    image, scale = cutout.image, cutout.pixel_scale_arcsec
    size = max(image.shape)
    height, width = image.shape
    used = np.isfinite(cutout.sigma)
    top, left = (size - height) // 2, (size - width) // 2
    # The renderer's centre is that of its square.
    y0, x0 = (size - 1) / 2 - top - (height - 1) / 2, (size - 1) / 2 - left - (width - 1) / 2
    border = np.concatenate([image[:3][used[:3]], image[-3:][used[-3:]]])
    sky = float(np.median(border)) if border.size else 0.0
    light = np.where(used, image - sky, 0.0)
    centre = light[height // 2 - 12 : height // 2 + 13, width // 2 - 12 : width // 2 + 13]
    flux = max(float(light.sum()), float(centre.sum()), float(cutout.sigma[used].min()))

    def galaxy(p: np.ndarray) -> Galaxy:
        # Ellipticities of the disk by two components, so that a round one has no angle.
        shear = min(math.hypot(p[4], p[5]), 0.8)
        q, angle = (1 - shear) / (1 + shear), math.degrees(math.atan2(p[5], p[4])) / 2
        return Galaxy(
            flux=math.exp(p[0]),
            bulge_to_total=0.0 if single else float(np.clip(p[6], 0, 1)),
            bulge_radius_arcsec=math.exp(p[1] if single else p[7]),
            disk_radius_arcsec=math.exp(p[1]),
            bulge_axis_ratio=q if single else float(p[8]),
            disk_axis_ratio=q,
            bulge_position_angle_deg=angle,
            disk_position_angle_deg=angle,
            x_offset_arcsec=p[2] - x0 * scale,
            y_offset_arcsec=p[3] - y0 * scale,
            # In steps, as each index has a table of its transform.
            disk_sersic_index=round(float(p[6]), 2) if single else 1.0,
        )

    def residual(p: np.ndarray) -> np.ndarray:
        model = render([galaxy(p)], psf=cutout.psf, pixel_scale_arcsec=scale, size=size)
        model = model[top : top + height, left : left + width] + p[-1] * sky_unit
        return ((model - image) / cutout.sigma)[used]

    sky_unit = float(np.median(cutout.sigma[used]))
    radius = math.log(1.5)
    begin = [math.log(flux), radius, 0.0, 0.0, 0.0, 0.0]
    low, high = [begin[0] - 3, math.log(0.03), -1.5, -1.5, -0.7, -0.7], [begin[0] + 3, math.log(20), 1.5, 1.5, 0.7, 0.7]
    if single:
        begin, low, high = [*begin, 1.5], [*low, 0.5], [*high, 6.0]
    else:
        begin, low, high = (
            [*begin, start, radius - 1, 0.8],
            [*low, 0.0, math.log(0.03), 0.3],
            [*high, 1.0, math.log(10), 1.0],
        )
    # A step that moves the index to another table.
    step = np.full(len(begin) + 1, 1e-4)
    step[6] = 0.02 if single else 1e-3
    found: Any = optimize.least_squares(
        residual,
        [*begin, sky / sky_unit],
        bounds=([*low, -5], [*high, 5]),
        x_scale=np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.1, *([0.5] if single else [0.1, 0.3, 0.2]), 0.1]),
        jac=typing.cast(Any, lambda p: jacobian(residual, p, step, np.array([*high, 5]))),
        max_nfev=_MAX_CALLS,
    )
    # What changes nothing, as the radius of a bulge without light, has no error.
    covariance = np.linalg.pinv(found.jac.T @ found.jac)

    def numbers(p: np.ndarray) -> np.ndarray:
        one = galaxy(p)
        return np.array([one.flux, one.effective_radius_arcsec, one.bulge_to_total][: 2 if single else 3])

    value = numbers(found.x)
    slope = jacobian(numbers, found.x, step, np.array([*high, 5]))
    error = np.sqrt(np.einsum("dp,pq,dq->d", slope, covariance, slope))
    return Fit(
        model="sersic" if single else "bulge + disk",
        chi2_per_pixel=2 * float(found.cost) / int(used.sum()),
        value=dict.fromkeys(TARGETS) | dict(zip(TARGETS, value.tolist(), strict=False)),
        error=dict.fromkeys(TARGETS) | dict(zip(TARGETS, error.tolist(), strict=False)),
    )


def jacobian(function: Any, p: np.ndarray, step: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return derivatives by one-sided differences, with a fixed step for each parameter, that stay below the bounds."""
    here = function(p)
    columns = []
    for i, h in enumerate(np.where(p + step < high, step, -step)):
        moved = p.copy()
        moved[i] += h
        columns.append((function(moved) - here) / h)
    return np.stack(columns, axis=1)


# --- comparison ----------------------------------------------------------------------------------------------------------


def flux_factor(bundle: Bundle, zero_point_mag: float) -> float:
    """Return the factor from flux units of a zero point to those of the bundle."""
    if bundle.images.zero_point_mag is None:
        raise UserError("bundle: it has no zero point, and so no magnitudes; give one that was trained with a zero point")
    return 10 ** (0.4 * (bundle.images.zero_point_mag - zero_point_mag))


def compared(
    bundle: Bundle, cutouts: list[Cutout], arguments: argparse.Namespace, *, single: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each galaxy: posterior, fit, their pull, and flags."""
    rows = []
    for cutout in cutouts:
        sizes = resampled_sizes(bundle, cutout.psf.stamp[None], cutout.pixel_scale_arcsec)
        columns = {name: np.full(1, np.nan) for name in bundle.images.condition_names} | sizes
        columns["image"] = cutout.image[None, None].astype(np.float32)
        prediction = predicted(
            bundle,
            columns,
            num_passes=arguments.num_passes,
            seed=arguments.seed,
            pixel_scale_arcsec=cutout.pixel_scale_arcsec,
        )
        fit = fitted(cutout, single=single)
        rows.append(
            {
                "name": cutout.name,
                "psf": {name: float(values[0]) for name, values in sizes.items()},
                "posterior": posterior(prediction),
                "fit": dataclasses.asdict(fit),
                **differences(prediction, fit),
                "flags": flag_names(prediction),
                "warned": bool(warned(prediction)[0]),
            }
        )
    return rows


def posterior(prediction: Prediction) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and intervals of one galaxy."""
    mixture = prediction.mixture
    rows = {}
    for d, target in enumerate(mixture.targets):
        rows[target.name] = {"mean": float(mixture.mean()[0, d]), "std": float(mixture.std()[0, d])}
        for suffix, level in LEVELS.items():
            low, high = mixture.credible_interval(level)[0, :, d].tolist()
            rows[target.name] |= {f"lo{suffix}": low, f"hi{suffix}": high}
    return rows


def differences(prediction: Prediction, fit: Fit) -> dict[str, dict[str, float]]:
    """Return posterior mean - fit by target, as ``offset`` and, over both standard deviations, as ``pull``.

    Of targets modelled by their logarithm, differences are those of the logarithm; a single Sersic profile has no B/T.
    """
    mixture = prediction.mixture
    result: dict[str, dict[str, float]] = {"offset": {}, "pull": {}}
    for d, target in enumerate(mixture.targets):
        mean, std = float(mixture.mean()[0, d]), float(mixture.std()[0, d])
        value, error = fit.value[target.name], fit.error[target.name]
        if value is None or error is None:
            continue
        offset, sigma = mean - value, math.hypot(std, error)
        if target.transform == "log":
            offset, sigma = math.log(mean / value), math.hypot(std / mean, error / value)
        result["offset"][target.name], result["pull"][target.name] = offset, offset / sigma
    return result


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each target the median pull, its robust scatter, and the share of fits inside the credible intervals."""
    result = {}
    for name in rows[0]["pull"]:
        pull = np.array([row["pull"][name] for row in rows])
        fit = np.array([row["fit"]["value"][name] for row in rows])
        result[name] = {
            "median_pull": float(np.median(pull)),
            "scatter": 1.4826 * float(np.median(np.abs(pull - np.median(pull)))),
            "median_offset": float(np.median([row["offset"][name] for row in rows])),
        }
        for suffix in LEVELS:
            low, high = (np.array([row["posterior"][name][f"{end}{suffix}"] for row in rows]) for end in ("lo", "hi"))
            result[name][f"inside_{suffix}"] = float(((fit >= low) & (fit <= high)).mean())
    result["warned"] = {"share": float(np.mean([row["warned"] for row in rows]))}
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """Log a line for each galaxy: posterior, fit and pull of each target."""
    for row in rows:
        cells = []
        for name, pull in row["pull"].items():
            mine, fit, error = row["posterior"][name], row["fit"]["value"][name], row["fit"]["error"][name]
            cells.append(f"{name[:8]} {mine['mean']:.4g}+-{mine['std']:.2g} ({fit:.4g}+-{error:.2g}) {pull:+.1f}")
        flags = ",".join(row["flags"])
        logger.info("%-12s %s  chi2 %.2f %s", row["name"], "  ".join(cells), row["fit"]["chi2_per_pixel"], flags)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="bundle with a zero point and a pixel scale")
    parser.add_argument("--tile", default="", help="FITS image of a piece of sky")
    parser.add_argument("--pixel-scale", type=float, default=0.339, help="of the tile, arcsec")
    parser.add_argument("--zero-point", type=float, default=0.0, help="of the tile, AB magnitude")
    parser.add_argument("--num-galaxies", type=int, default=30, help="galaxies of the tile")
    parser.add_argument("--pairs", default="", help="folder with galaxies in kids/ and sdss/")
    parser.add_argument("--num-passes", type=int, default=NUM_PASSES, help="Monte Carlo dropout passes")
    parser.add_argument("--seed", type=int, default=0, help="of the dropout masks")
    chosen = parser.parse_args(arguments)
    if not (chosen.tile or chosen.pairs):
        parser.error("give --tile, --pairs or both")
    return chosen


if __name__ == "__main__":
    try:
        main(parsed())
    except UserError as error:
        sys.exit(f"error: {error}")
