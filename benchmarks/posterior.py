"""Cost of posterior summaries on one core, against GaMPEN's published aggregation: a kernel density of draws.

Prints JSON. Both are measured in the same run, on the same posteriors, for three targets and K = 32.
"""

import json
import sys
import time

import numpy as np
import torch
from scipy.stats import gaussian_kde

from gampen_ray.model.targets import Target, TargetSchema
from gampen_ray.posterior.mixture import Mixture

NUM_GALAXIES, NUM_PASSES, NUM_DRAWS, GRID = 1000, 32, 1000, 1000


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    mixture = posteriors()
    mixture[:256].to_table()
    start = time.perf_counter()
    mixture.to_table()
    ours = (time.perf_counter() - start) / NUM_GALAXIES
    draws = mixture[:3].sample(NUM_DRAWS, seed=0)
    start = time.perf_counter()
    for galaxy in draws:
        for target in galaxy.T:
            kernel_density_intervals(target)
    theirs = (time.perf_counter() - start) / len(draws)
    result = {"summary_ms_per_galaxy": 1e3 * ours, "kernel_density_ms_per_galaxy": 1e3 * theirs, "ratio": theirs / ours}
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def posteriors() -> Mixture:
    """Return posteriors of a bulge-to-total ratio, a radius and a flux with a third of their variance between passes."""
    rng = np.random.default_rng(0)
    mean = rng.normal(0, 1, (NUM_GALAXIES, 1, 3)) + rng.normal(0, 0.2, (NUM_GALAXIES, NUM_PASSES, 3))
    tril = np.tril(rng.normal(0, 0.1, (NUM_GALAXIES, NUM_PASSES, 3, 3)), -1) + 0.3 * np.eye(3)
    fields = {"unit": "", "clip_low": 0.01, "clip_high": 0.99, "low": 0.0, "high": 1.0}
    targets = TargetSchema(
        (
            Target(name="bulge_to_total", transform="logit", location=0.0, scale=1.8, **fields),
            Target(name="effective_radius_arcsec", transform="log", location=-0.5, scale=0.5, **fields),
            Target(name="flux", transform="log", location=10.0, scale=1.0, **fields),
        )
    )
    return Mixture(torch.from_numpy(mean), torch.from_numpy(tril), targets)


def kernel_density_intervals(draws: np.ndarray) -> float:
    """Return the mode of a kernel density on a grid, after integrating the density up to every grid point."""
    density = gaussian_kde(draws)
    grid = np.linspace(draws.min(), draws.max(), GRID)
    for point in grid:
        density.integrate_box_1d(-np.inf, point)
    return float(grid[np.argmax(density(grid))])


if __name__ == "__main__":
    main()
