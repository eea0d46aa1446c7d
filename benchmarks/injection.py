"""Training by injection against training on a white-noise simulation, on a sky of correlated noise; prints JSON.

    python benchmarks/injection.py WORK [--num-galaxies 30000]

Writes coadd tiles with noise that is correlated over pixels, residuals of the sky and crowded galaxies, trains one network on
galaxies added to half of them (`gampen-ray simulate --background`) and one on as many simulated galaxies with white noise and
no residuals, and predicts galaxies added to the other half. Both networks are given measured numbers alone and the PSF's width.
WORK keeps every step: run the same command again to resume.
"""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits
from scipy import ndimage

import gampen_ray
from gampen_ray.config.scene import GalaxiesConfig
from gampen_ray.errors import UserError
from gampen_ray.simulation import noise
from gampen_ray.simulation.galaxies import draw_galaxy
from gampen_ray.simulation.psf import MoffatPsf
from gampen_ray.simulation.render import render
from gampen_ray.simulation.surveys import SURVEYS

TILES, SIDE, STAMP, SIZE = 24, 640, 95, 64
"""Number of tiles; side of a tile, of the stamp of a source and of a cutout, pixels."""
CROWDED = 3.0
"""Density of galaxies over the survey's."""
CORRELATION = 0.4
"""Of adjacent pixels; the simulation has up to 0.25."""
RESIDUAL_SIGMA, RESIDUAL_PIXELS = 0.3, 60
"""Standard deviation of the residual sky, in that of a pixel, and the scale over which it varies."""
FWHM_ARCSEC = (0.6, 0.85)
SLOPE, FAINTEST, COUNTS_MAG = 0.38, 25.0, 24.0
SURVEY = SURVEYS["kids-r"]
TABLE = 'zero_point_mag = 30.0\npsf_keyword = "PSF_FWHM"\nimage = { files = ["{tile}_{band}.fits"] }\n'

logger = logging.getLogger(__name__)


def main(work: Path, num_galaxies: int, num_test: int) -> None:
    """Make, train, predict and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    common: dict[str, Any] = {"cutout_size": SIZE, "survey": SURVEY.name}
    for number, half in enumerate(("train", "test")):
        write_tiles(work / f"tiles-{half}", number)
        table = work / "tiles.toml"
        table.write_text(TABLE)
        gampen_ray.footprint(
            survey="generic", table=str(table), tiles=str(work / f"tiles-{half}"), output=str(work / f"footprint-{half}")
        )
    white = {"noise": {"correlation": [0.0, 0.0], "sky_level": 0.0, "sky_gradient": 0.0}, "psf": {"fwhm_arcsec": FWHM_ARCSEC}}
    injected = {"neighbours": {"companions": 0.2}}
    split = {"train": 0.9, "val": 0.1}
    backgrounds = {half: str(work / f"footprint-{half}") for half in ("train", "test")}
    datasets: dict[str, dict[str, Any]] = {
        "injection": {"background": backgrounds["train"], "scene": injected, "num_galaxies": num_galaxies, "seed": 1},
        "white_noise": {"scene": white, "num_galaxies": num_galaxies, "seed": 1},
        "test": {"background": backgrounds["test"], "num_galaxies": num_test, "seed": 2},
    }
    for name, fields in datasets.items():
        gampen_ray.simulate(output=str(work / name), split=split, **common, **fields)
    result = {name: measured(work, name) for name in ("injection", "white_noise")}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def measured(work: Path, name: str) -> dict[str, Any]:
    """Train on a dataset, predict the held-out injections, and return the coverage of their truths."""
    run, catalog = work / f"run-{name}", str(work / f"catalog-{name}")
    gampen_ray.train(
        dataset=str(work / name),
        output=str(run),
        conditions=["psf_fwhm_arcsec"],
        optimizer={"epochs": 0, "weight_decay": 0.02},
    )
    gampen_ray.infer(bundle=str(run / "bundle"), dataset=str(work / "test"), output=catalog, posterior="mixture")
    evaluation = gampen_ray.evaluate(catalog=catalog, output=str(work / f"evaluation-{name}"))
    manifest = json.loads(Path(catalog, "manifest.json").read_bytes())
    coverage = evaluation["coverage"]["calibrated"]
    warned = manifest["num_warned"] / manifest["num_galaxies"]
    logger.info("%s: %s, %.1f %% flagged", name, coverage, 100 * warned)
    return {"coverage": coverage, "flagged": warned}


def write_tiles(folder: Path, half: int) -> None:
    """Write tiles, those of one half apart from those of the other, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(half * TILES, (half + 1) * TILES):
        path = folder / f"t{number:02d}_r.fits"
        if not path.exists():
            image_HW, fwhm_arcsec = tile(np.random.default_rng([5, number]))
            header = fits.Header({"PSF_FWHM": fwhm_arcsec, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "RADESYS": "ICRS"})
            header.update({"CRPIX1": (SIDE + 1) / 2, "CRPIX2": (SIDE + 1) / 2, "CRVAL1": 150.0 + 0.1 * number, "CRVAL2": 0.0})
            degrees = SURVEY.pixel_scale_arcsec / 3600
            header.update({"CD1_1": -degrees, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": degrees})
            part = path.with_suffix(".part")
            fits.PrimaryHDU(image_HW, header).writeto(part, overwrite=True)
            part.rename(path)


def tile(rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Return a tile (H, W), flux units, and the width of its stars, arcsec."""
    scale, pad = SURVEY.pixel_scale_arcsec, STAMP // 2
    psf = MoffatPsf(
        fwhm_arcsec=rng.uniform(*FWHM_ARCSEC),
        beta=rng.uniform(1.8, 4.765),
        wing_fraction=rng.uniform(0, 0.15),
        wing_fwhm_arcsec=3.0,
    )
    light_HW = np.zeros((SIDE + 2 * pad, SIDE + 2 * pad))
    brightest = SURVEY.magnitude_range[0]
    least = 10 ** (SLOPE * (brightest - FAINTEST))
    density = CROWDED * SURVEY.galaxies_per_arcmin2 * 10 ** (SLOPE * (FAINTEST - COUNTS_MAG))
    for _ in range(rng.poisson(density * (len(light_HW) * scale / 60) ** 2)):
        flux = SURVEY.flux(FAINTEST + np.log10(rng.uniform(least, 1)) / SLOPE)
        galaxy = dataclasses.replace(draw_galaxy(rng, SURVEY, GalaxiesConfig(), SIZE * scale), flux=flux)
        y, x = rng.integers(0, SIDE, 2)
        light_HW[y : y + STAMP, x : x + STAMP] += render([galaxy], psf=psf, pixel_scale_arcsec=scale, size=STAMP)
    light_HW = light_HW[pad:-pad, pad:-pad]
    sky = SURVEY.sky_noise * rng.uniform(0.8, 1.2)
    residual_HW = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), RESIDUAL_PIXELS, mode="wrap")
    noise_HW = noise.correlated_noise(rng, noise.noise_spectrum(CORRELATION, SIDE), SIDE)
    image_HW = light_HW + RESIDUAL_SIGMA * sky * residual_HW / residual_HW.std()
    image_HW += np.sqrt(sky**2 + light_HW / SURVEY.electrons_per_flux) * noise_HW
    return image_HW.astype(np.float32), psf.sizes(scale).fwhm_arcsec


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of all steps")
    parser.add_argument("--num-galaxies", type=int, default=30_000, help="galaxies of each training set, validation included")
    parser.add_argument("--num-test", type=int, default=3_000, help="held-out injections")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parsed()
    try:
        main(arguments.work, arguments.num_galaxies, arguments.num_test)
    except UserError as error:
        sys.exit(f"error: {error}")
