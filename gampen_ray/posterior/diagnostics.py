"""Compare a catalogue's posteriors with the truth: accuracy, coverage before and after calibration, and what else is wrong.

Shape legend: N galaxies, D targets, M galaxies of which draws are made.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from gampen_ray.posterior.calibration import JOINT, Calibration, coverage
from gampen_ray.posterior.local import in_bins, local_coverage, terms
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.ranks import JointDensity, coverage_ribbon, joint_density, rosenblatt, uniformity
from gampen_ray.posterior.scores import crps, energy_score
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.posterior.tarp import references, tarp
from gampen_ray.posterior.threads import one_thread


@one_thread()
def evaluate(
    mixture: Mixture,
    calibration: Calibration,
    truths_ND: np.ndarray,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    rows: np.ndarray | None = None,
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
    columns, rows
        As for `diagnose`.
    seed
        Seed of all draws.

    Returns
    -------
    dict
        ``num_galaxies``; ``accuracy`` of the posterior median by target (`accuracy`); ``coverage`` and mean
        ``negative_log_density`` (natural log, at the truth, of the joint posterior in physical units and in standardised
        space), each for ``uncalibrated`` and ``calibrated``; ``diagnostics`` of the latter (`diagnose`).
    """
    joint = joint_density(mixture, mixture.targets.standardise(truths_ND), seed)
    versions = {"uncalibrated": calibration.undone(mixture), "calibrated": mixture}
    ranks = {"uncalibrated": None, "calibrated": joint.rank_N}
    return {
        "num_galaxies": len(mixture),
        "accuracy": accuracy(mixture, truths_ND),
        "coverage": {
            name: [dataclasses.asdict(row) for row in coverage(version, truths_ND, seed, ranks[name])]
            for name, version in versions.items()
        },
        "diagnostics": diagnose(mixture, truths_ND, columns or {}, joint=joint, rows=rows, seed=seed),
        "negative_log_density": {name: negative_log_density(version, truths_ND) for name, version in versions.items()},
    }


def diagnose(
    mixture: Mixture,
    truths_ND: np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    joint: JointDensity | None = None,
    rows: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return tests of the posteriors that see more than coverage at a few levels, as plain values for JSON.

    Parameters
    ----------
    mixture
        Posteriors.
    truths_ND
        True physical values.
    columns
        What galaxies are grouped by, and the features of local tests, beside the posterior medians: N values by name, known
        without the truth; NaN where unknown.
    joint
        Ranks of the truths' joint densities with their log score, if they are known; None: they are computed.
    rows
        Indices of the M galaxies for what else takes draws or a time that grows with the square of the passes; None: all.
    seed
        Seed of the draws.

    Returns
    -------
    dict
        ``num_drawn``, M; ``ranks`` of each target, of the joint density and of ``tarp``
        (`gampen_ray.posterior.ranks.Uniformity.to_dict`); ``curves``, coverage of each target and all together at all levels
        (the same, and the ribbon of `coverage_ribbon` as differences from the levels); ``scores`` of each target (``crps``) and
        of all (``energy``, ``log``): `gampen_ray.posterior.scores.Score.summary` with ``score`` and ``target``; ``bins``
        (`in_bins`) and ``local`` (`local_coverage`).
    """
    names = mixture.targets.names
    rows = np.arange(len(mixture)) if rows is None else rows
    columns = dict(zip(names, mixture.quantile(0.5).T, strict=True)) | dict(columns)
    z_ND, rank_ND = mixture.targets.standardise(truths_ND), mixture.cdf(truths_ND)
    some, z_MD = mixture[rows], z_ND[rows]
    joint = joint or joint_density(mixture, z_ND, seed)
    single, energy = crps(some, z_MD), energy_score(some, z_MD, seed)
    term_names, term_MF = terms({name: value_N[rows] for name, value_N in columns.items()})
    reference_MD = references(z_MD, term_MF, np.random.default_rng(seed))
    ranks = dict(zip(names, rank_ND.T, strict=True)) | {
        JOINT: joint.rank_N,
        "tarp": tarp(some, z_MD, reference_MD, seed),
    }
    inside = {name: np.abs(2 * ranks[name] - 1) for name in names} | {JOINT: joint.rank_N}
    crps_ND = {name: np.full(z_ND.shape, np.nan) for name in ("crps", "crps_expected")}
    crps_ND["crps"][rows], crps_ND["crps_expected"][rows] = single.value, single.expected
    summaries = {key: value.tolist() for key, value in single.summary().items()}
    return {
        "num_drawn": len(rows),
        "ranks": {name: uniformity(rank_N).to_dict() for name, rank_N in ranks.items()},
        "curves": {name: _curve(inside_N) for name, inside_N in inside.items()},
        "scores": [
            *(
                {"score": "crps", "target": name} | {key: value[d] for key, value in summaries.items()}
                for d, name in enumerate(names)
            ),
            *(
                {"score": name, "target": JOINT} | {key: float(value) for key, value in score.summary().items()}
                for name, score in (("energy", energy), ("log", joint.score))
            ),
        ],
        "bins": in_bins(names, rank_ND, columns, scores=crps_ND),
        "local": local_coverage(names, rosenblatt(some, z_MD), rank_ND[rows], term_names, term_MF),
    }


def _curve(inside_N: np.ndarray) -> dict[str, Any]:
    low_G, high_G = coverage_ribbon(inside_N)
    test = uniformity(inside_N)
    ribbon = {"ribbon_low": low_G - test.level_G, "ribbon_high": high_G - test.level_G}
    return test.to_dict() | {name: y_G.round(6).tolist() for name, y_G in ribbon.items()}


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
