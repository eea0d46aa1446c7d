"""What the pixels hold: the smallest posterior widths that simulated galaxies allow, and how far a bundle is from them.

    python benchmarks/information_limit.py --survey kids-r
    python benchmarks/information_limit.py --bundle BUNDLE --dataset DATASET

The first form simulates galaxies without neighbours. The second takes the test split of a simulated dataset, and adds the
bundle's posterior widths over the limit and its coverage, overall and in bins. Prints JSON; tables go to standard error.
Each limit is that of an estimator which knows the PSF, its four sizes (`gampen_ray.simulation.psf.PsfSizes`: what networks are
told) or its prior alone. Disks are smooth in it: widths are compared for galaxies without knots.
`gampen_ray.simulation.information` says what the limit means. The prior is the spread of all galaxies at hand.
"""

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gampen_ray.config.scene import NeighboursConfig, SceneConfig
from gampen_ray.data import shards
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.posterior.calibration import coverage
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.threads import one_thread
from gampen_ray.simulation.galaxies import TARGETS
from gampen_ray.simulation.information import LIMIT_TARGETS, PSF_PARAMETERS, Limit, psf_size_derivatives
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS, Survey

MIN_GALAXIES = 20
"""Bins with fewer are left out."""
SKY_SIGMA = "prior sigma of the sky level over a pixel's noise; left out: as the galaxies have it, 0 (known) without sky_level"
COVERAGE_BINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "effective_radius_arcsec": lambda values: np.quantile(values, np.linspace(0, 1, 6)),
    "bulge_to_total": lambda _: np.linspace(0, 1, 6),
    "psf_fwhm_arcsec": lambda values: np.quantile(values, np.linspace(0, 1, 6)),
    "neighbour_flux_fraction": lambda _: np.array([0, 0.01, 0.1, 1, np.inf]),
    "knot_fraction": lambda values: np.array([0, 0.01, 0.1, 0.2, 1] if values.any() else [0, 1]),
}
"""Edges of the bins in which coverage is measured, besides magnitude, by column; a column that is not there is left out."""

logger = logging.getLogger(__name__)
Columns = Mapping[str, np.ndarray]


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.dataset:
        info = shards.read_dataset_info(arguments.dataset)
        survey, size = SURVEYS[info.survey], info.cutout_size
        population = read_split(arguments.dataset, arguments.split)
    else:
        survey, size = SURVEYS[arguments.survey], arguments.cutout_size
        scene = SceneConfig(neighbours=NeighboursConfig(galaxies=0.0, stars=0.0))
        population = simulate(survey, scene, cutout_size=size, seed=0, start=0, stop=arguments.num_galaxies)
    columns = {name: values[: arguments.num_galaxies] for name, values in population.items()}
    limit = Limit.of(columns, survey, size, population=population)
    sky_sigma = arguments.sky_sigma
    if sky_sigma is None:
        sky_sigma = float(np.std(population["sky_level"] / population["sky_noise"])) if "sky_level" in population else 0.0
    limits = {
        "psf_known": limit.std(known=PSF_PARAMETERS, sky_sigma=sky_sigma),
        "psf_sizes_known": limit.std(
            told_NSP=psf_size_derivatives(limit.theta_NP, survey.pixel_scale_arcsec), sky_sigma=sky_sigma
        ),
        "psf_unknown": limit.std(sky_sigma=sky_sigma),
    }
    bins = magnitude_bins(columns, survey)
    # Simulations of earlier versions have no knots.
    smooth_N = columns.get("knot_fraction", np.zeros(len(columns["flux"]))) == 0
    smooth = {name: rows for name, index_K in bins.items() if len(rows := index_K[smooth_N[index_K]]) >= MIN_GALAXIES}
    result: dict[str, Any] = {
        "survey": survey.name,
        "cutout_size": size,
        "num_galaxies": len(columns["flux"]),
        "sky_sigma": sky_sigma,
        "median_limit": {name: medians(std_ND, smooth) for name, std_ND in limits.items()},
    }
    show("limit", result["median_limit"])
    if arguments.bundle:
        mixture = predict(load_bundle(arguments.bundle), columns, num_passes=arguments.num_passes, seed=arguments.seed)
        posterior_ND = posterior_widths(mixture)
        result["median_posterior"] = medians(posterior_ND, smooth)
        result["median_ratio"] = {name: medians(posterior_ND / std_ND, smooth) for name, std_ND in limits.items()}
        result["coverage"] = coverages(mixture, columns, bins)
        show("posterior", {"": result["median_posterior"]})
        show("posterior / limit", result["median_ratio"])
        show_coverage(result["coverage"])
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def read_split(dataset: str, split: str) -> dict[str, np.ndarray]:
    """Return the images and numbers of a split."""
    tables = [shards.read_shard(uri) for uri in shards.shard_uris(dataset, split)]
    names = [name for name in tables[0].column_names if name not in ("object_id", "image")]
    columns = {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in names}
    return columns | {"image": np.concatenate([shards.images(table) for table in tables])}


@one_thread()
def predict(bundle: Bundle, columns: Columns, *, num_passes: int, seed: int) -> Mixture:
    """Return the posteriors; the one place where a bundle is given what it needs beside the images."""
    conditions = {name: columns[name] for name in bundle.images.condition_names}
    return bundle.predict(columns["image"], conditions=conditions, num_passes=num_passes, seed=seed)


def posterior_widths(mixture: Mixture) -> np.ndarray:
    """Return posterior standard deviations (N x D) of `LIMIT_TARGETS`; those of logarithms as std / mean."""
    place = [mixture.targets.names.index(name) for name in TARGETS]
    std_ND, mean_ND = mixture.std()[:, place], mixture.mean()[:, place]
    return np.where([name.startswith("ln_") for name in LIMIT_TARGETS], std_ND / mean_ND, std_ND)


def magnitude_bins(columns: Columns, survey: Survey) -> dict[str, np.ndarray]:
    """Return the rows of each bin of one magnitude."""
    low, high = survey.magnitude_range
    return binned(columns["magnitude"], low + np.arange(np.ceil(high - low) + 1))


def binned(values_N: np.ndarray, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Return the rows between edges, by name; the last bin holds its upper edge."""
    bin_N = np.clip(np.searchsorted(edges, values_N, side="right") - 1, 0, len(edges) - 2)
    inside_N = (values_N >= edges[0]) & (values_N <= edges[-1])
    rows = {f"{edges[b]:.3g}-{edges[b + 1]:.3g}": np.flatnonzero(inside_N & (bin_N == b)) for b in range(len(edges) - 1)}
    return {name: indices for name, indices in rows.items() if len(indices) >= MIN_GALAXIES}


def medians(value_ND: np.ndarray, bins: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Return medians of `LIMIT_TARGETS` by bin."""
    return {
        name: dict(zip(LIMIT_TARGETS, np.median(value_ND[rows], axis=0).tolist(), strict=True)) for name, rows in bins.items()
    }


def coverages(mixture: Mixture, columns: Columns, magnitude: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return coverage overall and by column and bin: rows of `gampen_ray.posterior.calibration.coverage`."""
    truths_ND = np.stack([columns[name] for name in mixture.targets.names], axis=1)
    groups = {"all": {"all": np.arange(len(mixture))}, "magnitude": dict(magnitude)}
    groups |= {name: binned(columns[name], edges(columns[name])) for name, edges in COVERAGE_BINS.items() if name in columns}
    return {
        group: {
            name: [dataclasses.asdict(row) for row in coverage(mixture[rows], truths_ND[rows])] for name, rows in bins.items()
        }
        for group, bins in groups.items()
    }


def show(title: str, tables: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Log medians: a row for each bin of magnitude, three columns for each table."""
    header = "".join(f"  {f'{title} {name}'.strip():>{3 * 12}}" for name in tables)
    logger.info("%9s%s", "", header)
    columns = "  " + "".join(f"{name:>12}" for name in ("B/T", "ln R_e", "ln flux"))
    logger.info("%9s%s", "mag", columns * len(tables))
    for name in next(iter(tables.values())):
        cells = "".join("  " + "".join(f"{value:>12.3g}" for value in table[name].values()) for table in tables.values())
        logger.info("%9s%s", name, cells)


def show_coverage(groups: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> None:
    """Log coverage in per cent: a row for each bin, a cell of three levels for each target and all jointly."""
    names = list(dict.fromkeys(row["target"] for row in groups["all"]["all"]))
    logger.info("%36s%s", "coverage %", "".join(f"{name:>26}" for name in names))
    for group, bins in groups.items():
        for label, rows in bins.items():
            cells = (" ".join(f"{100 * row['coverage']:5.1f}" for row in rows if row["target"] == name) for name in names)
            logger.info("%24s %11s%s", group, label, "".join(f"{cell:>26}" for cell in cells))


def parsed() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--survey", default="kids-r", help="survey preset; a dataset has its own")
    parser.add_argument("--cutout-size", type=int, default=64, help="side in pixels; a dataset has its own")
    parser.add_argument("--num-galaxies", type=int, default=400, help="galaxies to measure")
    parser.add_argument("--sky-sigma", type=float, help=SKY_SIGMA)
    parser.add_argument("--bundle", default="", help="bundle to compare; needs --dataset")
    parser.add_argument("--dataset", default="", help="simulated dataset")
    parser.add_argument("--split", default="test", help="its split")
    parser.add_argument("--num-passes", type=int, default=32, help="Monte Carlo dropout passes")
    parser.add_argument("--seed", type=int, default=0, help="of the dropout masks")
    arguments = parser.parse_args()
    if arguments.bundle and not arguments.dataset:
        parser.error("--bundle needs --dataset, on whose test split it is measured")
    return arguments


if __name__ == "__main__":
    main(parsed())
