"""How a bundle's posteriors hold where the images differ from those of its training: seeing, sky, depth, noise, neighbours, ...

    python benchmarks/shifts.py --bundle BUNDLE --survey kids-r
    python benchmarks/shifts.py --bundle BUNDLE --dataset DATASET

Simulates galaxies that the bundle has not seen, the same ones under each shift where the shift allows, and predicts them.
Prints JSON; a table goes to standard error. With a simulated dataset, its survey, scene and cutout size are taken.

A shift *holds* if the coverage of 68.27 % is within 4 points of it for each target, is *flagged* if at least 95 % of its
galaxies have a flag that warns of it, and *fails* otherwise. Numbers that the user states wrongly are *not visible*: no image
shows them.
"""

import argparse
import dataclasses
import json
import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from parts import flag_shares, predicted, resampled_sizes, warned
from scipy import ndimage

from gampen_ray.config.base import build, replace
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.config.scene import SceneConfig
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.inference.predictor import Prediction
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.simulation import noise
from gampen_ray.simulation.galaxies import Galaxy
from gampen_ray.simulation.inputs import Inputs, read_inputs
from gampen_ray.simulation.psf import APERTURE_PIXELS
from gampen_ray.simulation.render import render
from gampen_ray.simulation.scene import galaxy_of, psf_of, simulate
from gampen_ray.simulation.surveys import SURVEYS, Survey

TOLERANCE = 0.04
"""Largest difference of a coverage from 68.27 % that holds."""
LEAST_FLAGGED = 0.95
BEYOND_MAG = 1.5
"""Magnitudes beyond the trained range."""
STAR_PIXELS = 61

logger = logging.getLogger(__name__)
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shift:
    """Galaxies that differ from the training's in one respect.

    Parameters
    ----------
    name
        What differs.
    columns
        Makes images, truths and conditions.
    stated
        Why it is not judged; empty: it is.
    zero_point_mag, pixel_scale_arcsec
        What the predictor is given of the cutouts; None: nothing.
    """

    name: str
    columns: Callable[[], Columns]
    stated: str = ""
    zero_point_mag: float | None = None
    pixel_scale_arcsec: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sky:
    """Galaxies as in the training, and how to draw them again under other conditions."""

    survey: Survey
    scene: SceneConfig
    inputs: Inputs
    size: int
    seed: int
    count: int

    def draw(
        self,
        scene: Mapping[str, Any] | None = None,
        *,
        survey: Survey | None = None,
        size: int = 0,
        inputs: Inputs | None = None,
    ) -> Columns:
        """Simulate, with other fields of the scene (by dotted name), survey, size or inputs."""
        return simulate(
            survey or self.survey,
            replace(self.scene, **(scene or {})),
            cutout_size=size or self.size,
            seed=self.seed,
            start=0,
            stop=self.count,
            inputs=inputs or self.inputs,
        )

    def generator(self) -> np.random.Generator:
        """Return the source of what is added to the images."""
        return np.random.default_rng([self.seed, self.count])


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bundle = load_bundle(arguments.bundle)
    sky = the_sky(bundle, arguments)
    names = bundle.targets.names
    logger.info("%-44s%s  flagged  verdict", "", "".join(f"{f'{name}: 68 %, 95 %, bias':>42}" for name in names))
    rows = []
    for shift in shifts(sky, bundle):
        if arguments.only and shift.name not in arguments.only:
            continue
        columns = shift.columns()
        prediction = predicted(
            bundle,
            columns,
            num_passes=arguments.num_passes,
            seed=arguments.seed,
            zero_point_mag=shift.zero_point_mag,
            pixel_scale_arcsec=shift.pixel_scale_arcsec,
        )
        rows.append({"shift": shift.name, "stated": shift.stated, **measured(prediction, columns)})
        rows[-1]["verdict"] = "not visible" if shift.stated else verdict(rows[-1])
        show(rows[-1])
    result = {"bundle": arguments.bundle, "survey": sky.survey.name, "num_galaxies": sky.count, "seed": sky.seed, "rows": rows}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def the_sky(bundle: Bundle, arguments: argparse.Namespace) -> Sky:
    """Return the galaxies of the command line.

    Raises
    ------
    UserError
        If the seed is that of the dataset.
    """
    survey, scene, size = SURVEYS[arguments.survey], SceneConfig(), bundle.images.size
    if arguments.dataset:
        info = shards.read_dataset_info(arguments.dataset)
        survey, size = SURVEYS[info.survey], info.cutout_size
        scene = build(SceneConfig, info.source["scene"], recorded=True)
        if info.source["seed"] == arguments.seed:
            raise UserError(f"seed: {arguments.seed} made the dataset; give another, for galaxies that the bundle has not seen")
    return Sky(
        survey=survey,
        scene=scene,
        inputs=read_inputs(scene),
        size=size,
        seed=arguments.seed,
        count=arguments.num_galaxies,
    )


def shifts(sky: Sky, bundle: Bundle) -> Iterator[Shift]:
    """Yield the shifts."""
    survey, none = sky.survey, sky.draw()
    yield Shift(name="none", columns=lambda: none)
    if not sky.scene.psf.stamps:
        yield from psf_shifts(sky, none)
    for factor in (-0.3, -0.1, 0.1, 0.3):
        yield Shift(
            name=f"sky {factor:+g} sigma of a pixel",
            columns=lambda factor=factor: added(none, factor * none["sky_noise"][:, None, None]),
        )
    for depth in (-0.5, 0.5):
        strength = tuple(10 ** (-0.4 * depth) * factor for factor in sky.scene.noise.sky)
        yield Shift(
            name=f"depth {depth:+g} mag",
            columns=lambda strength=strength: sky.draw({"noise.sky": strength}),
        )
    yield Shift(name="coadd's noise of equal strength added", columns=lambda: with_noise(sky, none, coadd_noise))
    yield Shift(name="noise smoothed over 1 pixel, equal strength", columns=lambda: with_noise(sky, none, smooth_noise))
    yield Shift(name="a neighbour of similar brightness", columns=lambda: with_neighbour(sky, none))
    for name, probability in (("smooth disks", 0.0), ("knots in every disk", 1.0)):
        yield Shift(name=name, columns=lambda probability=probability: sky.draw({"knots.probability": probability}))
    for fill in ("interpolate", "zero"):
        yield Shift(
            name=f"missing pixels, fill {fill}",
            columns=lambda fill=fill: sky.draw({"masks.probability": 1.0, "masks.fill": fill}),
        )
    brightest, faintest = survey.magnitude_range
    for low, high in ((faintest, faintest + BEYOND_MAG), (brightest - BEYOND_MAG, brightest)):
        yield Shift(
            name=f"{low:g} to {high:g} mag",
            columns=lambda low=low, high=high: at_magnitudes(sky, none, low, high),
        )
    for scale in (0.5, 0.8, 1.25, 2.0):
        pixel = scale * survey.pixel_scale_arcsec
        yield Shift(
            name=f"pixels of {pixel:.3g} arcsec, resampled",
            columns=lambda pixel=pixel: on_other_pixels(sky, bundle, pixel),
            pixel_scale_arcsec=pixel,
        )
    for error in (-0.2, 0.2):
        yield Shift(
            name=f"zero point {error:+g} mag",
            columns=lambda: none,
            stated="the zero point is stated wrongly, which no image shows",
            zero_point_mag=survey.zero_point_mag + error,
        )


def psf_shifts(sky: Sky, none: Columns) -> Iterator[Shift]:
    """Yield other widths of the PSF, given and stated wrongly, and other shapes."""
    low, high = sky.scene.psf.fwhm_arcsec or sky.survey.psf_fwhm_arcsec

    def seeing(factor: float) -> Columns:
        return sky.draw({"psf.fwhm_arcsec": (factor * low, factor * high)})

    def stated_wrongly(factor: float) -> Columns:
        return seeing(factor) | {name: values for name, values in none.items() if name.startswith("psf_")}

    for percent in (-20, -10, 10, 20):
        yield Shift(name=f"seeing {percent:+} %", columns=lambda percent=percent: seeing(1 + percent / 100))
    for percent in (-20, -10, 10, 20):
        yield Shift(
            name=f"seeing {percent:+} %, stated as before",
            columns=lambda percent=percent: stated_wrongly(1 + percent / 100),
            stated="the PSF is stated wrongly, which an image without stars hardly shows",
        )
    for name, beta in (("steeper wings", (8.0, 20.0)), ("shallower wings", (1.5, 1.7))):
        yield Shift(name=f"PSF of {name}", columns=lambda beta=beta: sky.draw({"psf.beta": beta}))
    for low, high in ((0.2, 0.3), (0.6, 0.7)):
        yield Shift(
            name=f"aureole of {100 * low:g} to {100 * high:g} %",
            columns=lambda wings=(low, high): sky.draw({"psf.wing_fraction": wings}),
        )


def added(columns: Columns, light_NHW: np.ndarray) -> Columns:
    """Return galaxies with something added to their images."""
    return columns | {"image": (columns["image"] + light_NHW[:, None]).astype(np.float32)}


def coadd_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return unit noise as of a coadd by linear interpolation."""
    return noise.correlated_noise(rng, noise.noise_spectrum(0.25, size), size)


def smooth_noise(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return unit noise smoothed by a Gaussian of a standard deviation of one pixel."""
    return 2 * math.sqrt(math.pi) * ndimage.gaussian_filter(rng.standard_normal((size, size)), 1.0, mode="wrap")


def with_noise(sky: Sky, columns: Columns, draw: Callable[[np.random.Generator, int], np.ndarray]) -> Columns:
    """Return galaxies with as much noise again, of another kind."""
    rng = sky.generator()
    return added(columns, np.stack([sigma * draw(rng, sky.size) for sigma in columns["sky_noise"]]))


def with_neighbour(sky: Sky, columns: Columns) -> Columns:
    """Return galaxies beside another, within a magnitude of them, and not so near that a catalogue would take both for one."""
    rng, scale = sky.generator(), sky.survey.pixel_scale_arcsec
    rows = [{name: values[i] for name, values in columns.items() if name != "image"} for i in range(sky.count)]
    light = []
    for row, other in zip(rows, rows[1:] + rows[:1], strict=True):
        flux = min(row["flux"] * 10 ** rng.uniform(-0.4, 0.4), sky.survey.flux(sky.survey.magnitude_range[0]))
        nearest = max(row["effective_radius_arcsec"], 1.5 * row["psf_fwhm_arcsec"]) * (1 + max(0, np.log10(flux / row["flux"])))
        distance = math.sqrt(rng.uniform(nearest**2, max(nearest, 0.45 * sky.size * scale) ** 2))
        angle = rng.uniform(0, 2 * math.pi)
        neighbour = dataclasses.replace(
            galaxy_of(other, scale),
            flux=flux,
            x_offset_arcsec=distance * math.cos(angle),
            y_offset_arcsec=distance * math.sin(angle),
        )
        image = render([neighbour], psf=psf_of(row, sky.inputs), pixel_scale_arcsec=scale, size=sky.size)
        photons = np.sqrt(np.maximum(image, 0) / sky.survey.electrons_per_flux) if sky.scene.noise.photons else 0.0
        light.append(image + photons * rng.standard_normal(image.shape))
    return added(columns, np.stack(light))


def at_magnitudes(sky: Sky, columns: Columns, low: float, high: float) -> Columns:
    """Return galaxies of other magnitudes, of the same structure and among the same neighbours."""
    brightest, faintest = sky.survey.magnitude_range
    survey = dataclasses.replace(sky.survey, magnitude_range=(min(low, brightest), max(high, faintest)))
    structure = ("effective_radius_arcsec", "bulge_to_total", "disk_axis_ratio", "bulge_axis_ratio")
    galaxies = {name: columns[name] for name in structure} | {
        "bulge_over_disk": columns["bulge_radius_arcsec"] / columns["disk_radius_arcsec"],
        "magnitude": sky.generator().uniform(low, high, sky.count),
    }
    depth = sky.scene.neighbours.depth_mag - (survey.magnitude_range[1] - faintest)
    inputs = dataclasses.replace(sky.inputs, galaxies=galaxies)
    return sky.draw({"neighbours.depth_mag": max(0.0, depth)}, survey=survey, inputs=inputs)


def on_other_pixels(sky: Sky, bundle: Bundle, pixel_scale_arcsec: float) -> Columns:
    """Return galaxies on other pixels; their PSF is that of stars which are resampled as the predictor does."""
    ratio = pixel_scale_arcsec / sky.survey.pixel_scale_arcsec
    survey = dataclasses.replace(
        sky.survey, pixel_scale_arcsec=pixel_scale_arcsec, sky_noise=ratio * sky.survey.sky_noise
    )  # the same depth per area
    columns = sky.draw(survey=survey, size=math.ceil(sky.size / float(ratio)))
    stars, unit = [], []
    for i in range(sky.count):
        psf = psf_of({name: values[i] for name, values in columns.items() if name.startswith("psf_")}, sky.inputs)
        stars.append(render([POINT], psf=psf, pixel_scale_arcsec=pixel_scale_arcsec, size=round(STAR_PIXELS / ratio)))
        # Fluxes count a PSF's light within a number of pixels, in the truth of these and in the bundle of its own.
        within = [
            1 - psf.light_beyond(APERTURE_PIXELS * scale) for scale in (sky.survey.pixel_scale_arcsec, pixel_scale_arcsec)
        ]
        unit.append(within[0] / within[1])
    return columns | {"flux": columns["flux"] * unit} | resampled_sizes(bundle, np.stack(stars), pixel_scale_arcsec)


POINT = Galaxy(
    flux=1.0,
    bulge_to_total=0.0,
    bulge_radius_arcsec=1e-3,
    disk_radius_arcsec=1e-3,
    bulge_axis_ratio=1.0,
    disk_axis_ratio=1.0,
    bulge_position_angle_deg=0.0,
    disk_position_angle_deg=0.0,
)
"""A star."""


def measured(prediction: Prediction, columns: Columns) -> dict[str, Any]:
    """Return coverage, biases and shares of flags; galaxies without a posterior count as flagged, and in nothing else."""
    good_N, targets = prediction.usable_N, prediction.mixture.targets
    mixture = prediction.mixture[good_N]
    truth_ND = np.stack([columns[name] for name in targets.names], axis=1)[good_N]
    flagged_N = warned(prediction)
    # Twice the distance of the truth's quantile from the median: uniform where posteriors are calibrated.
    depth_ND = np.abs(2 * mixture.cdf(truth_ND) - 1)
    error_ND = mixture.mean() - truth_ND
    rows = {}
    for d, target in enumerate(targets):
        relative_N = error_ND[:, d] / truth_ND[:, d] if target.transform == "log" else error_ND[:, d]
        rows[target.name] = {
            "coverage": {name: float((depth_ND[:, d] <= level).mean()) for name, level in LEVELS.items()},
            "coverage_68_not_flagged": share(depth_ND[~flagged_N[good_N], d] <= LEVELS["68"]),
            "median_bias_sigma": float(np.median(error_ND[:, d] / mixture.std()[:, d])),
            "median_bias_percent": 100 * float(np.median(relative_N)),
        }
    return {
        "targets": rows,
        "flagged": flag_shares(prediction),
        "warned": float(flagged_N.mean()),
        "without_posterior": float((~good_N).mean()),
    }


def share(values: np.ndarray) -> float | None:
    """Return the share of true values; None where there are none."""
    return float(values.mean()) if len(values) else None


def verdict(row: dict[str, Any]) -> str:
    """Return whether a shift holds, is flagged or fails."""
    if all(abs(target["coverage"]["68"] - LEVELS["68"]) <= TOLERANCE for target in row["targets"].values()):
        return "holds"
    return "flagged" if row["warned"] >= LEAST_FLAGGED else "fails"


def show(row: dict[str, Any]) -> None:
    """Log a row of the table: coverage in per cent, bias in sigma and in per cent."""
    cells = (
        f"{100 * target['coverage']['68']:.1f} {100 * target['coverage']['95']:.1f} "
        f"{target['median_bias_sigma']:+.2f} ({target['median_bias_percent']:+.1f} %)"
        for target in row["targets"].values()
    )
    logger.info("%-44s%s %6.1f %%  %s", row["shift"], "".join(f"{c:>42}" for c in cells), 100 * row["warned"], row["verdict"])


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="bundle, trained on simulated galaxies")
    parser.add_argument("--survey", default="kids-r", help="survey preset of its training, with the default scene")
    parser.add_argument("--dataset", default="", help="simulated dataset of its training, whose survey and scene are taken")
    parser.add_argument("--num-galaxies", type=int, default=2000, help="galaxies for each shift")
    parser.add_argument("--num-passes", type=int, default=NUM_PASSES, help="Monte Carlo dropout passes")
    parser.add_argument("--only", nargs="+", default=[], help="names of shifts, as in the table; left out: all")
    parser.add_argument("--seed", type=int, default=20_261_129, help="of galaxies and dropout masks; not the training's")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main(parsed())
    except UserError as error:
        sys.exit(f"error: {error}")
