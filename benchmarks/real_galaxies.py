"""Posteriors of real galaxies against least-squares fits of their pixels, and of the same galaxies in two surveys.

    python benchmarks/real_galaxies.py --bundle BUNDLE --tile kids_r_tile.fits
    python benchmarks/real_galaxies.py --bundle BUNDLE --pairs DATA

``--tile``: isolated galaxies of a tile within the bundle's range of flux, with the PSF of the tile's stars. ``--pairs``: DATA
has the folders ``kids`` and ``sdss`` with image, bad-pixel mask, segmentation, error map and PSF of each galaxy (``*fitim``,
``*mskim``, ``*segim``, ``*sigma``, ``*psfim``: the example data of ProFit, Robotham et al. 2017, MNRAS 466, 1513).

The fits are independent of the network: a bulge and a disk (Sersic indices 4 and 1) through the PSF's image, with a constant
sky; for the pairs also a single Sersic profile where it is better. The fit takes the survey's pixels; the network takes them
resampled to the bundle's scale, and the PSF as measured on stars resampled likewise. Prints JSON; tables go to standard error.
"""

import argparse
import dataclasses
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from parts import flag_names, predicted, resampled_sizes, warned
from pixel_fits import Fit, fitted
from real_cutouts import SURVEY_PIXELS, Cutout, pair_cutouts, tile_cutouts

from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.predictor import Prediction
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.simulation.psf import StampPsf

logger = logging.getLogger(__name__)


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


def compared(
    bundle: Bundle, cutouts: list[Cutout], arguments: argparse.Namespace, *, single: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each galaxy: posterior, fit, their pull, and flags."""
    rows = []
    for cutout in cutouts:
        assert isinstance(cutout.psf, StampPsf)
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
