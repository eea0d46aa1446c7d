"""What a survey's galaxies are like, from their posteriors: the distribution of B/T and the size-luminosity relation of a mock.

    python benchmarks/population.py WORK [--num-galaxies 5000]

The mock's galaxies are simulated as those of the bundle's training, but of another population: bulges are bright, disks are
faint, sizes follow luminosity. They are chosen among galaxies of the training's prior by their true values, predicted, and
kept down to a posterior mean magnitude. `gampen_ray.posterior.population` then gives the shares of galaxies in bins, with
errors, beside the histogram of the posterior means. Prints JSON; tables go to standard error. WORK keeps the predicted mock.
"""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from gampen_ray.config.base import build
from gampen_ray.config.scene import SceneConfig
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.population import population
from gampen_ray.simulation.galaxies import TARGETS, Galaxy, draw_galaxy
from gampen_ray.simulation.scene import simulate, stream
from gampen_ray.simulation.surveys import SURVEYS, Survey

BT_BINS = np.array([0, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1])
"""Bins of the result; the cells are finer, most where disks are."""
BT_CELLS = np.concatenate([np.arange(0, 0.15, 0.025), np.arange(0.15, 1.01, 0.05)])
MAGNITUDES = np.array([15.9, 17, 18, 19, 19.5, 20, 20.5, 21, 21.5, 22, 23.2])
LN_RADIUS = np.log(0.2) + 0.125 * np.arange(24)
MIN_GALAXIES = 100
"""Bins of magnitude with fewer are left out of the table."""

logger = logging.getLogger(__name__)


def acceptance(galaxy: Galaxy, magnitude: float) -> float:
    """Return the mock's density over that of the training's prior, at most 1, but for a few galaxies in a thousand."""
    ratio, ln_radius, faint = galaxy.bulge_to_total, np.log(galaxy.effective_radius_arcsec), magnitude - 20
    early = 1 / (1 + np.exp(faint / 0.8))
    density = early * stats.beta.pdf(ratio, 8, 4) * stats.norm.pdf(ln_radius, np.log(0.8) - 0.25 * faint, 0.25)
    density += (1 - early) * stats.beta.pdf(ratio, 1, 10) * stats.norm.pdf(ln_radius, -0.12 * faint, 0.3)
    counts = 10 ** (0.15 * (magnitude - 22)) / (1 + np.exp((magnitude - 22) / 0.15)) / (1 + np.exp((17 - magnitude) / 0.15))
    return 0.2 * density * counts / stats.beta.pdf(ratio, 0.8, 0.8)


def mock(work: Path, bundle: Bundle, digest: str, arguments: argparse.Namespace) -> tuple[Mixture, np.ndarray]:
    """Return posteriors and true values (N x D) of the mock's galaxies, from WORK if they are there."""
    made = bundle.provenance["dataset"]["made_by"]
    survey, scene, size = SURVEYS[made["survey"]], build(SceneConfig, made["scene"]), made["cutout_size"]
    path = work / f"{digest[:12]}-{arguments.seed}-{arguments.num_galaxies}-{arguments.num_passes}.npz"
    if not path.exists():
        chosen = mock_indices(survey, scene, size, arguments)
        logger.info("simulating and predicting %s galaxies", f"{len(chosen):,}")
        rows = [simulate(survey, scene, cutout_size=size, seed=arguments.seed, start=i, stop=i + 1) for i in chosen]
        columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        conditions = {name: columns[name] for name in bundle.images.condition_names}
        mixture = bundle.predict(columns["image"], conditions=conditions, num_passes=arguments.num_passes)
        truth_ND = np.stack([columns[name] for name in bundle.targets.names], axis=1)
        work.mkdir(parents=True, exist_ok=True)
        parts = {"mean": mixture.mean_NKD.numpy(), "tril": mixture.scale_tril_NKDD.numpy(), "truth": truth_ND}
        np.savez(path, allow_pickle=False, **{name: values.astype(np.float32) for name, values in parts.items()})
    with np.load(path) as kept:
        mixture = Mixture(torch.from_numpy(kept["mean"]), torch.from_numpy(kept["tril"]), bundle.targets)
        return mixture, kept["truth"].astype(np.float64)


def mock_indices(survey: Survey, scene: SceneConfig, size: int, arguments: argparse.Namespace) -> list[int]:
    """Return the numbers of the simulated galaxies that are in the mock; most are rejected before they are drawn as images."""
    chosen: list[int] = []
    generator, i = np.random.default_rng([arguments.seed, 1]), 0
    while len(chosen) < arguments.num_galaxies:
        galaxy = draw_galaxy(stream(arguments.seed, i, "galaxy"), survey, scene.galaxies, size * survey.pixel_scale_arcsec)
        if generator.random() < acceptance(galaxy, survey.magnitude(galaxy.flux)):
            chosen.append(i)
        i += 1
    return chosen


def bulge_to_total(mixture: Mixture, bundle: Bundle, truth_ND: np.ndarray, flux_edges: np.ndarray) -> dict[str, Any]:
    """Return the distribution of B/T by both methods, from cells of B/T and flux."""
    place = bundle.targets.names.index("bulge_to_total")
    cells = {"bulge_to_total": BT_CELLS, "flux": flux_edges}
    share_SB = population(mixture, prior_of(bundle), cells).marginal("bulge_to_total")
    first_B = np.searchsorted(BT_CELLS, BT_BINS[:-1] - 1e-9)
    share_SB = np.add.reduceat(share_SB, first_B, axis=1)
    truth_B, naive_B = (np.histogram(v_N, BT_BINS)[0] / len(v_N) for v_N in (truth_ND[:, place], mixture.mean()[:, place]))
    return {"bins": BT_BINS.tolist(), **compared(truth_B, share_SB, naive_B)}


def size_luminosity(mixture: Mixture, bundle: Bundle, truth_ND: np.ndarray, survey: Survey, limit: float) -> dict[str, Any]:
    """Return mean and scatter of ln(radius) in bins of magnitude by both methods, from cells of flux and radius."""
    flux, radius = (bundle.targets.names.index(name) for name in ("flux", "effective_radius_arcsec"))
    cells = {"flux": survey.flux(MAGNITUDES[::-1]), "effective_radius_arcsec": np.exp(LN_RADIUS)}
    # Bins of magnitude, which fluxes have the other way round.
    share_SBR = population(mixture, prior_of(bundle), cells).marginal(*cells)[:, ::-1]
    middle_R = 0.5 * (LN_RADIUS[1:] + LN_RADIUS[:-1])
    share_SB = share_SBR.sum(axis=2)
    mean_SB = share_SBR @ middle_R / share_SB
    scatter_SB = np.sqrt(share_SBR @ middle_R**2 / share_SB - mean_SB**2)
    truth: dict[str, np.ndarray] = {}
    naive: dict[str, np.ndarray] = {}
    for values_ND, found in ((truth_ND, truth), (mixture.mean(), naive)):
        bin_N = np.digitize(survey.zero_point_mag - 2.5 * np.log10(values_ND[:, flux]), MAGNITUDES) - 1
        rows = [np.log(values_ND[bin_N == b, radius]) for b in range(len(MAGNITUDES) - 1)]
        found["count"] = np.array([len(row) for row in rows])
        found["mean"], found["scatter"] = (
            np.array([f(row) if len(row) else np.nan for row in rows]) for f in (np.mean, np.std)
        )
    # Beyond the limit are only those that scattered over it.
    used = (truth["count"] >= MIN_GALAXIES) & (MAGNITUDES[1:] <= limit)
    return {
        "bins": [[low, high] for low, high in zip(MAGNITUDES[:-1][used], MAGNITUDES[1:][used], strict=True)],
        "mean": compared(truth["mean"][used], mean_SB[:, used], naive["mean"][used]),
        "scatter": compared(truth["scatter"][used], scatter_SB[:, used], naive["scatter"][used]),
    }


def prior_of(bundle: Bundle) -> Any:
    """Return the prior of a bundle; without one there is nothing to divide out."""
    if bundle.prior is None:
        sys.exit("error: bundle: holds no prior of its training; train it again")
    return bundle.prior


def compared(truth_B: np.ndarray, draw_SB: np.ndarray, naive_B: np.ndarray) -> dict[str, Any]:
    """Return the results of both methods, and their deviations from the truth in units of the hierarchical errors."""
    mean_B, error_B = draw_SB.mean(axis=0), draw_SB.std(axis=0)
    off_SB, rows = draw_SB - mean_B, slice(None)
    if np.allclose(draw_SB.sum(axis=1), 1):
        # Shares add up to 1: the last one is no measurement of its own.
        rows = slice(len(truth_B) - 1)
    inverse = np.linalg.pinv((off_SB.T @ off_SB / len(draw_SB))[rows, rows])

    def chi2(value_B: np.ndarray) -> float:
        off_B = (value_B - truth_B)[rows]
        return float(off_B @ inverse @ off_B)

    return {
        "truth": truth_B.tolist(),
        "hierarchical": mean_B.tolist(),
        "error": error_B.tolist(),
        "naive": naive_B.tolist(),
        "hierarchical_pull": ((mean_B - truth_B) / error_B).tolist(),
        "naive_pull": ((naive_B - truth_B) / error_B).tolist(),
        "hierarchical_chi2": chi2(mean_B),
        "naive_chi2": chi2(naive_B),
        "degrees_of_freedom": len(inverse),
    }


def show(title: str, labels: list[str], rows: Mapping[str, Any]) -> None:
    """Log a table with a row for each bin."""
    logger.info("%s", title)
    logger.info("%12s %8s %18s %7s %8s %7s", "bin", "truth", "hierarchical", "sigma", "naive", "sigma")
    names = ("truth", "hierarchical", "error", "hierarchical_pull", "naive", "naive_pull")
    for label, *values in zip(labels, *(rows[name] for name in names), strict=True):
        logger.info("%12s %8.3f %8.3f +- %6.3f %7.1f %8.3f %7.1f", label, *values)
    found = [f"{rows[f'{name}_chi2']:.1f}" for name in ("hierarchical", "naive")]
    logger.info("%12s chi2 of %d: hierarchical %s, naive %s", "", rows["degrees_of_freedom"], *found)


def main(arguments: argparse.Namespace) -> None:
    """Measure and print."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    bundle = load_bundle(arguments.bundle)
    if set(bundle.targets.names) != set(TARGETS):
        sys.exit(f"error: bundle: has the targets {', '.join(bundle.targets.names)}; give one with {', '.join(TARGETS)}")
    survey = SURVEYS[bundle.provenance["dataset"]["survey"]]
    mixture, truth_ND = mock(Path(arguments.work), bundle, bundle_digest(arguments.bundle), arguments)
    flux_N = mixture.mean()[:, bundle.targets.names.index("flux")]
    result: dict[str, Any] = {"num_galaxies": len(mixture), "limits": {}}
    for limit in arguments.limits:
        rows = np.flatnonzero(flux_N > survey.flux(limit))
        kept, true_ND = mixture[rows], truth_ND[rows]
        ratio = bulge_to_total(kept, bundle, true_ND, survey.flux(MAGNITUDES[::-1]))
        sizes = size_luminosity(kept, bundle, true_ND, survey, limit)
        result["limits"][f"{limit:g}"] = {"num_galaxies": len(rows), "bulge_to_total": ratio, "size_luminosity": sizes}
        logger.info("\nposterior mean brighter than %g mag: %s galaxies", limit, f"{len(rows):,}")
        edges = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(BT_BINS)]
        show("share by B/T", edges, ratio)
        edges = [f"{low:g}-{high:g}" for low, high in sizes["bins"]]
        show("mean of ln R_e by magnitude", edges, sizes["mean"])
        show("scatter of ln R_e by magnitude", edges, sizes["scatter"])
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", help="folder that keeps the predicted mock")
    parser.add_argument("--bundle", default="builtin:kids-r", help="bundle that was trained on a simulation")
    parser.add_argument("--num-galaxies", type=int, default=5000, help="galaxies of the mock before the limit of magnitude")
    parser.add_argument("--limits", type=float, nargs="+", default=[21.0, 21.5, 22.0], help="limits of the posterior mean, mag")
    parser.add_argument("--num-passes", type=int, default=289, help="Monte Carlo dropout passes")
    parser.add_argument("--seed", type=int, default=20270102, help="of the mock; another one than that of the training")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parsed())
