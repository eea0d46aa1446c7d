"""What a crop about a galaxy can hold: its light, and how it follows the effective radius; prints JSON.

    python benchmarks/crop_light.py [--num-galaxies 1500] [--size 96] [--seed 77]

Draws galaxies of KiDS without noise through their PSFs. Of the light that a cutout has of a galaxy, it gives the squares that
hold 90, 95 and 98 %, and what squares of several measured half-light radii hold. The rank correlation of their sides with the
effective radius is beside them; without the PSF, its half-light radius is subtracted in quadrature. A table goes to standard
error.
"""

import argparse
import json
import logging
import math
import sys

import numpy as np
import torch
from scipy import stats

from gampen_ray.model.border import local_sky
from gampen_ray.model.measure import measure
from gampen_ray.simulation.scene import render_row, simulate
from gampen_ray.simulation.surveys import SURVEYS

SURVEY = SURVEYS["kids-r"]
SHARES, RADII, ENOUGH = (0.9, 0.95, 0.98), (6, 8, 10, 12, 14), 0.98
# Of the PSF's half-light radius: the least of a galaxy's own.
_LEAST = 0.2

logger = logging.getLogger(__name__)


def main(arguments: argparse.Namespace) -> None:
    """Draw, measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    size, scale = arguments.size, SURVEY.pixel_scale_arcsec
    columns = simulate(SURVEY, cutout_size=size, seed=arguments.seed, start=0, stop=arguments.num_galaxies)
    images_N1HW = torch.from_numpy(columns.pop("image"))
    sky_N1, sigma_N1 = local_sky(images_N1HW)
    log_radius_N = measure(images_N1HW - sky_N1[..., None, None], sigma_N1)[:, 0].double().numpy()
    radius_N, psf_N = size * np.exp(log_radius_N), columns["psf_r50_arcsec"] / scale
    light_NS = np.stack([squares(columns, i, size) for i in range(len(radius_N))])
    own_N = np.sqrt(np.maximum(radius_N**2 - psf_N**2, (_LEAST * psf_N) ** 2))
    # The innermost square is four pixels of a cutout of even side, and one of an odd one.
    half_S = np.arange(light_NS.shape[1]) + (0.5 if size % 2 else 1.0)
    crops = {
        **{f"holds {share:.0%}": 2 * np.array([np.interp(share, light_S, half_S) for light_S in light_NS]) for share in SHARES},
        **{f"{count} radii": 2 * count * radius_N for count in RADII},
        **{f"{count} radii without PSF": 2 * count * own_N for count in RADII},
    }
    found = {}
    for name, side_N in crops.items():
        side_N = np.minimum(side_N, size)
        held_N = np.array([np.interp(side / 2, half_S, light_S) for side, light_S in zip(side_N, light_NS, strict=True)])
        found[name] = {
            "rank_correlation": float(np.corrcoef(*map(stats.rankdata, (side_N, columns["effective_radius_arcsec"])))[0, 1]),
            "holds_98": float((held_N >= ENOUGH * (1 - 1e-9)).mean()),
            "whole_cutout": float((side_N >= size).mean()),
            "median_side_pixel": float(np.median(side_N)),
        }
        logger.info("%-22s correlation %.2f  98 %% of the light in %3.0f %%  whole cutout %2.0f %%", name, *row(found[name]))
    json.dump(found, sys.stdout, indent=2)
    sys.stdout.write("\n")


def squares(columns: dict[str, np.ndarray], i: int, size: int) -> np.ndarray:
    """Return the share of a galaxy's light in the cutout that squares of growing side about its middle hold."""
    values = {name: float(value_N[i]) for name, value_N in columns.items()}
    image_HW = render_row(values, pixel_scale_arcsec=SURVEY.pixel_scale_arcsec, size=size)
    from_middle = np.abs(np.arange(size) - (size - 1) / 2)
    ring_HW = np.maximum(*np.meshgrid(from_middle, from_middle)).astype(int)
    light_S = np.cumsum(np.bincount(ring_HW.ravel(), image_HW.ravel(), minlength=math.ceil(size / 2)))
    return light_S / light_S[-1]


def row(figures: dict[str, float]) -> tuple[float, float, float]:
    """Return what the table shows."""
    return figures["rank_correlation"], 100 * figures["holds_98"], 100 * figures["whole_cutout"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-galaxies", type=int, default=1500)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seed", type=int, default=77)
    main(parser.parse_args())
