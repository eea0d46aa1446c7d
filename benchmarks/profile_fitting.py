"""Posteriors beside profile fits: the same simulated cutouts, fitted by least squares and predicted by a bundle.

    OMP_NUM_THREADS=1 python benchmarks/profile_fitting.py [--num-galaxies 400]

Fits are given what surveys have, and more: the true PSF, the true noise of each pixel, and the right model (bulge and disk with
Sersic indices 4 and 1, begun twice, at B/T of 0.2 and 0.7; the better fit counts). The single Sersic profile is the wrong model
that is used most. Pixels to which other sources add light are left out, where that is seen; these are not fitted with the
galaxy. A fit's error is that of its linearised least squares. The bundle is given the image and its conditions. Prints JSON,
with a row for each bin, method and target; a table goes to standard error.
"""

import argparse
import itertools
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pixel_fits import TARGETS, Fit, fit_model, fitted
from real_cutouts import Cutout, others

from gampen_ray.config.base import build
from gampen_ray.config.scene import SceneConfig
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.simulation.information import LIMIT_TARGETS, PSF_PARAMETERS, Limit
from gampen_ray.simulation.scene import psf_of, render_row, simulate
from gampen_ray.simulation.surveys import SURVEYS, Survey

MAGNITUDES = (16.0, 18.0, 20.0, 21.0, 22.0, 23.0)
ISOLATED = 0.01
"""Largest light of neighbours within two effective radii, over the galaxy's, of a galaxy that counts as isolated."""
LOGARITHMIC = ("flux", "effective_radius_arcsec")
"""Targets whose deviations and errors are those of their logarithms."""

logger = logging.getLogger(__name__)
Result = tuple[np.ndarray, np.ndarray, np.ndarray, float]
"""Values and ends of the 68.27 % interval of `TARGETS` (N x D, N x 2 x D), stated errors (N x D), and CPU seconds a galaxy."""


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    made = bundle.provenance["dataset"]["made_by"]
    survey, scene, size = SURVEYS[made["survey"]], build(SceneConfig, made["scene"]), made["cutout_size"]
    columns = simulate(survey, scene, cutout_size=size, seed=arguments.seed, start=0, stop=arguments.num_galaxies)
    cutouts = [cutout_of({name: column[i] for name, column in columns.items()}, survey) for i in range(arguments.num_galaxies)]
    methods: dict[str, Callable[[], Result]] = {
        "bundle": lambda: predicted(bundle, columns, arguments.num_passes),
        "bulge + disk fit": lambda: fits(cutouts, lambda cutout: fitted(cutout, single=False)),
        "Sersic fit": lambda: fits(cutouts, lambda cutout: fit_model(cutout, 0.0, single=True)),
    }
    truth_ND = np.stack([columns[name] for name in TARGETS], axis=1)
    limit_ND = Limit.of(columns, survey, size).std(known=PSF_PARAMETERS, sky_sigma=scene.noise.sky_level)
    limit_ND = limit_ND[:, [LIMIT_TARGETS.index(name) for name in ("ln_flux", "ln_effective_radius", "bulge_to_total")]]
    results = {}
    for name, method in methods.items():
        results[name] = method()
        logger.info("%s: %.3g CPU seconds a galaxy", name, results[name][3])
    rows = []
    for label, index_N in bins(columns).items():
        for name, result in results.items():
            rows += [{"bin": label, "method": name, **row} for row in judged(result, truth_ND, limit_ND, index_N)]
    seconds = {name: result[3] for name, result in results.items()}
    show(rows)
    json.dump({"num_galaxies": arguments.num_galaxies, "cpu_seconds": seconds, "rows": rows}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def cutout_of(row: Mapping[str, Any], survey: Survey) -> Cutout:
    """Return what is fitted of a simulated galaxy."""
    scale, image = survey.pixel_scale_arcsec, row["image"][0].astype(np.float64)
    light = render_row(row, pixel_scale_arcsec=scale, size=len(image))
    sigma = np.sqrt(row["sky_noise"] ** 2 + np.maximum(light, 0) / survey.electrons_per_flux)
    sigma[others(image, float(row["sky_noise"]))] = np.inf
    return Cutout(name=str(row["object_id"]), image=image, sigma=sigma, psf=psf_of(row), pixel_scale_arcsec=scale)


def fits(cutouts: list[Cutout], fit: Callable[[Cutout], Fit]) -> Result:
    """Return the results of a fit; NaN where the model has no such target."""
    began = time.process_time()
    found = [fit(cutout) for cutout in cutouts]
    seconds = (time.process_time() - began) / len(cutouts)
    value_ND, error_ND = (
        np.array([[np.nan if (x := values[name]) is None else x for name in TARGETS] for values in column])
        for column in ([fit.value for fit in found], [fit.error for fit in found])
    )
    return value_ND, np.stack([value_ND - error_ND, value_ND + error_ND], axis=1), error_ND, seconds


def predicted(bundle: Bundle, columns: Mapping[str, np.ndarray], num_passes: int) -> Result:
    """Return posterior means, standard deviations and intervals."""
    began = time.process_time()
    conditions = {name: columns[name] for name in bundle.images.condition_names}
    mixture = bundle.predict(columns["image"], conditions=conditions, num_passes=num_passes)
    place = [bundle.targets.names.index(name) for name in TARGETS]
    interval_N2D = mixture.credible_interval(LEVELS["68"])[:, :, place]
    found = mixture.mean()[:, place], interval_N2D, mixture.std()[:, place]
    return *found, (time.process_time() - began) / len(mixture)


def bins(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the galaxies of each bin of magnitude, isolated and with neighbours."""
    alone_N = columns["neighbour_flux_fraction"] < ISOLATED
    found = {}
    for kind, of_kind_N in (("isolated", alone_N), ("neighbours", ~alone_N)):
        for low, high in itertools.pairwise(MAGNITUDES):
            found[f"{low:g}-{high:g} {kind}"] = of_kind_N & (columns["magnitude"] >= low) & (columns["magnitude"] < high)
        found[f"all {kind}"] = of_kind_N
    return {label: index_N for label, of_bin_N in found.items() if len(index_N := np.flatnonzero(of_bin_N))}


def judged(result: Result, truth_ND: np.ndarray, limit_ND: np.ndarray, index_N: np.ndarray) -> list[dict[str, Any]]:
    """Return scatter, pulls and coverage of the targets over some galaxies."""
    value_ND, interval_N2D, error_ND, _ = result
    rows = []
    for d, name in enumerate(TARGETS):
        value_N, truth_N, error_N = value_ND[index_N, d], truth_ND[index_N, d], error_ND[index_N, d]
        if np.isnan(value_N).all():
            continue
        off_N = value_N - truth_N
        pull_N = off_N / np.maximum(error_N, 1e-9 * abs(value_N) + 1e-12)
        if name in LOGARITHMIC:
            off_N, error_N = np.log(np.maximum(value_N, 1e-9) / truth_N), error_N / value_N
        low_N, high_N = interval_N2D[index_N, 0, d], interval_N2D[index_N, 1, d]
        rows.append(
            {
                "target": f"ln {name}" if name in LOGARITHMIC else name,
                "num_galaxies": len(index_N),
                "median": float(np.median(off_N)),
                "scatter": half_68(off_N),
                "outliers": float((abs(off_N) > (0.5 if name in LOGARITHMIC else 0.3)).mean()),
                "stated_error": float(np.median(error_N)),
                "limit": float(np.median(limit_ND[index_N, d])),
                "pull_scatter": half_68(pull_N),
                "coverage_68": float(((truth_N >= low_N) & (truth_N <= high_N)).mean()),
            }
        )
    return rows


def half_68(values_N: np.ndarray) -> float:
    """Return half of the central 68.27 %."""
    low, high = np.quantile(values_N, [0.5 * (1 - LEVELS["68"]), 0.5 * (1 + LEVELS["68"])])
    return float(0.5 * (high - low))


def show(rows: list[dict[str, Any]]) -> None:
    """Log the table."""
    names = ("scatter", "median", "stated_error", "limit", "outliers", "pull_scatter", "coverage_68")
    header = "%-18s %-18s %-26s %5s" + " %13s" * len(names)
    logger.info(header, "bin", "method", "target", "N", *names)
    for row in rows:
        figures = (f"{row[name]:.3g}" for name in names)
        logger.info(header, row["bin"], row["method"], row["target"], row["num_galaxies"], *figures)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="builtin:kids-r", help="bundle that was trained on a simulation")
    parser.add_argument("--num-galaxies", type=int, default=400, help="galaxies, isolated and not")
    parser.add_argument("--num-passes", type=int, default=289, help="Monte Carlo dropout passes")
    parser.add_argument("--seed", type=int, default=20270103, help="of the galaxies; another one than that of the training")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parsed())
