"""Compare a catalogue's posteriors with the truth: accuracy, coverage before and after calibration, log density.

Shape legend: N galaxies, D targets.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gampen_ray.posterior.calibration import JOINT, Calibration, coverage, coverage_by
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.posterior.threads import one_thread


@one_thread()
def evaluate(
    mixture: Mixture,
    calibration: Calibration,
    truths_ND: np.ndarray,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return an evaluation as plain values for JSON.

    Parameters
    ----------
    mixture
        Calibrated posteriors.
    calibration
        That made them, which is undone for the coverage before calibration.
    truths_ND
        True physical values.
    columns
        What `coverage_by` bins galaxies by beside the posterior medians.
    seed
        Seed of the draws for the joint coverage.

    Returns
    -------
    dict
        ``num_galaxies``; ``accuracy`` of the posterior median by target (`accuracy`); ``coverage`` and mean
        ``negative_log_density`` (natural log, at the truth, of the joint posterior in physical units and in standardised
        space), each for ``uncalibrated`` and ``calibrated``; ``coverage_in_bins`` of the latter (`coverage_by`).
    """
    versions = {"uncalibrated": calibration.undone(mixture), "calibrated": mixture}
    medians = dict(zip(mixture.targets.names, mixture.quantile(0.5).T, strict=True))
    return {
        "num_galaxies": len(mixture),
        "accuracy": accuracy(mixture, truths_ND),
        "coverage": {
            name: [dataclasses.asdict(row) for row in coverage(version, truths_ND, seed)] for name, version in versions.items()
        },
        "coverage_in_bins": coverage_by(mixture, truths_ND, medians | dict(columns or {})),
        "negative_log_density": {name: negative_log_density(version, truths_ND) for name, version in versions.items()},
    }


def accuracy(mixture: Mixture, truths_ND: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return errors of the posterior median by target.

    ``median_absolute_relative_error`` is a fraction of the truth, over galaxies whose truth is not zero (None if there are
    none); ``mean_absolute_error``, ``bias`` (mean of median - truth) and ``rmse`` are in ``unit``.
    """
    error_ND = mixture.quantile(0.5) - truths_ND
    result = {}
    for d, target in enumerate(mixture.targets):
        error, truth = error_ND[:, d], truths_ND[:, d]
        nonzero = truth != 0
        relative = np.abs(error[nonzero] / truth[nonzero])
        result[target.name] = {
            "median_absolute_relative_error": float(np.median(relative)) if relative.size else None,
            "mean_absolute_error": float(np.abs(error).mean()),
            "bias": float(error.mean()),
            "rmse": float(np.sqrt(np.square(error).mean())),
            "unit": target.unit,
        }
    return result


def format_table(evaluation: dict[str, Any]) -> str:
    """Return an evaluation as a text table: a title, a header, and a row for each target and for all together."""
    before, after = (
        {(row["target"], row["level"]): row["coverage"] for row in evaluation["coverage"][name]}
        for name in ("uncalibrated", "calibrated")
    )
    accuracies = evaluation["accuracy"]
    labels = {name: f"{name} [{errors['unit']}]" if errors["unit"] else name for name, errors in accuracies.items()}
    labels[JOINT] = JOINT
    width = max(map(len, labels.values()))
    levels = "".join(f"{f'{100 * level:g} %':>16}" for level in LEVELS.values())
    lines = [
        f"{evaluation['num_galaxies']} galaxies; median relative, mean absolute error; % covered before -> after calibration",
        f"{'target':<{width}}  {'rel. error':>10}  {'abs. error':>10}{levels}",
    ]
    for name, label in labels.items():
        cells = f"{'':>10}  {'':>10}"
        if name in accuracies:
            relative = accuracies[name]["median_absolute_relative_error"]
            percent = "-" if relative is None else f"{100 * relative:.1f} %"
            cells = f"{percent:>10}  {accuracies[name]['mean_absolute_error']:>10.3g}"
        shares = (f"{100 * before[name, level]:.1f} -> {100 * after[name, level]:.1f}" for level in LEVELS.values())
        lines.append(f"{label:<{width}}  {cells}{''.join(f'{share:>16}' for share in shares)}")
    return "\n".join(lines)


def negative_log_density(mixture: Mixture, truths_ND: np.ndarray) -> dict[str, float]:
    z_N1D = mixture.targets.standardise(truths_ND)[:, None, :]
    return {
        "physical": float(-mixture.log_prob(truths_ND).mean()),
        "standardised": float(-mixture.standardised_log_prob(z_N1D).mean()),
    }
