"""Compare a catalogue's posteriors with the truth: accuracy, coverage before and after calibration, and what else is wrong.

The posteriors come piece by piece, and a few numbers a galaxy are kept (`measure`); what takes draws, or a time that grows with
the square of the passes, is done for some of them.
Shape legend: N galaxies, D targets, M galaxies whose posteriors are kept.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.bins import bins, in_bins, pixels
from gampen_ray.posterior.calibration import JOINT, Calibration, coverage_of_ranks
from gampen_ray.posterior.local import local_coverage, terms
from gampen_ray.posterior.mixture import Mixture, log_slope
from gampen_ray.posterior.ranks import coverage_ribbon, joint_density, rosenblatt, uniformity
from gampen_ray.posterior.scores import Score, crps, energy_score
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.posterior.tarp import references, tarp
from gampen_ray.posterior.threads import one_thread

OF_SOME = ["joint density", "TARP", "scores", "local effects", "what is measured in cutouts"]
"""What is known of some galaxies alone."""
# Rank correlation with a true value, of a column of more than a few values, from which on a column is that value.
_SAME_ORDER, _FEWEST_VALUES = 0.999, 10
_VERSIONS = ("uncalibrated", "calibrated")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What is kept of N posteriors and their truths.

    Parameters
    ----------
    truth_ND, median_ND
        True values and posterior medians, physical units.
    ranks
        Ranks of the truths, N x D, before and after calibration, by ``uncalibrated`` and ``calibrated``.
    pull_ND
        Posterior mean minus truth in posterior standard deviations, both in standardised space.
    negative_log_density
        Means of the joint posterior at the truth (natural log), ``physical`` and ``standardised``, by the names of the ranks.
    rows, some
        Indices of M of these galaxies, increasing, and their calibrated posteriors.
    """

    truth_ND: np.ndarray
    median_ND: np.ndarray
    ranks: Mapping[str, np.ndarray]
    pull_ND: np.ndarray
    negative_log_density: Mapping[str, Mapping[str, float]]
    rows: np.ndarray
    some: Mixture

    @property
    def targets(self) -> TargetSchema:
        """Of the posteriors."""
        return self.some.targets


@one_thread()
def measure(
    mixtures: Iterable[Mixture], calibration: Calibration, truth_ND: np.ndarray, rows: np.ndarray | None = None
) -> Measured:
    """Compare posteriors with their truths, one piece of them after another.

    Parameters
    ----------
    mixtures
        Calibrated posteriors of N galaxies, in pieces.
    calibration
        That made them, which is undone for what is said of them before calibration.
    truth_ND
        True physical values.
    rows
        Increasing indices of the galaxies whose posteriors are kept; None: all.
    """
    rows = np.arange(len(truth_ND)) if rows is None else rows
    start, kept = 0, []
    # Small arrays among the large ones of the pieces would keep the memory of these from being returned.
    arrays = {name: np.empty(truth_ND.shape) for name in ("median", "pull", *_VERSIONS)}
    totals = {version: np.zeros(2) for version in _VERSIONS}
    for mixture in mixtures:
        piece = slice(start, start + len(mixture))
        truth_PD = truth_ND[piece]
        z_PD = mixture.targets.standardise(truth_PD)
        slope_P = log_slope(mixture.targets, z_PD)
        arrays["median"][piece] = mixture.quantile(0.5)
        arrays["pull"][piece] = (mixture.standardised_mean() - z_PD) / mixture.standardised_std()
        for version, posteriors in zip(_VERSIONS, (calibration.undone(mixture), mixture), strict=True):
            arrays[version][piece] = posteriors.cdf(truth_PD)
            log_P = posteriors.standardised_log_prob(z_PD[:, None])[:, 0]
            totals[version] -= (log_P + slope_P).sum(), log_P.sum()
        inside = slice(*np.searchsorted(rows, (start, start + len(mixture))))
        kept.append(mixture[rows[inside] - start])
        start += len(mixture)
    if start != len(truth_ND):
        raise ValueError(f"{start} posteriors, but {len(truth_ND)} galaxies with truths")
    return Measured(
        truth_ND=truth_ND,
        median_ND=arrays["median"],
        ranks={version: arrays[version] for version in _VERSIONS},
        pull_ND=arrays["pull"],
        negative_log_density={
            version: dict(zip(("physical", "standardised"), (total / start).tolist(), strict=True))
            for version, total in totals.items()
        },
        rows=rows,
        some=Mixture.concatenate(kept),
    )


@one_thread()
def evaluate(
    found: Measured,
    calibration: Calibration,
    *,
    columns: Mapping[str, np.ndarray] | None = None,
    by: Mapping[str, np.ndarray] | None = None,
    position_N2: np.ndarray | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return an evaluation as plain values for JSON.

    Parameters
    ----------
    found
        From `measure`.
    calibration
        As there.
    columns
        What galaxies are grouped by, and the features of local tests, beside the posterior medians: N values by name, known
        without the truth; NaN where unknown.
    by
        Columns of numbers or texts by which coverage, bias and scatter are wanted, N values by name.
    position_N2
        Right ascension and declination, degrees, NaN where unknown, for maps; None: no maps.
    seed
        Seed of all draws.

    Returns
    -------
    dict
        ``num_galaxies``; ``accuracy`` of the posterior median by target (`accuracy`); ``coverage`` (joint: of M galaxies) and
        mean ``negative_log_density`` (natural log, at the truth, of the joint posterior in physical units and in standardised
        space), each for ``uncalibrated`` and ``calibrated``; ``diagnostics`` of the latter: ``num_drawn``, M; ``ranks`` of each
        target, of the joint density and of ``tarp`` (`gampen_ray.posterior.ranks.Uniformity.to_dict`); ``curves``, coverage of
        each target and all together at all levels (the same, and the ribbon of `coverage_ribbon` as differences from the
        levels); ``scores`` of each target (``crps``) and of all (``energy``, ``log``):
        `gampen_ray.posterior.scores.Score.summary` with ``score`` and ``target``; ``bins`` of ``columns`` and medians
        (`in_bins`) and ``local`` (`local_coverage`). If asked for, ``columns``, the bins of ``by`` (those of a column
        that is a true value have ``of_truth``, and no part in the test), and ``sky``, those of `pixels` with their ``nside``.
    """
    names, rows, some = found.targets.names, found.rows, found.some
    columns = dict(zip(names, found.median_ND.T, strict=True)) | dict(columns or {})
    z_MD, rank_ND = found.targets.standardise(found.truth_ND[rows]), found.ranks["calibrated"]
    joint = joint_density(some, z_MD, seed)
    joint_ranks = {"uncalibrated": joint_density(calibration.undone(some), z_MD, seed).rank_N, "calibrated": joint.rank_N}
    single, energy = crps(some, z_MD), energy_score(some, z_MD, seed)
    term_names, term_MF = terms({name: value_N[rows] for name, value_N in columns.items()})
    reference_MD = references(z_MD, term_MF, np.random.default_rng(seed))
    ranks = dict(zip(names, rank_ND.T, strict=True)) | {
        JOINT: joint.rank_N,
        "tarp": tarp(some, z_MD, reference_MD, seed),
    }
    inside = {name: np.abs(2 * ranks[name] - 1) for name in names} | {JOINT: joint.rank_N}
    crps_ND = {name: np.full(rank_ND.shape, np.nan) for name in ("crps", "crps_expected")}
    crps_ND["crps"][rows], crps_ND["crps_expected"][rows] = single.value, single.expected
    given: dict[str, Any] = {"errors": {"": found.median_ND - found.truth_ND, "_sigma": found.pull_ND}, "scores": crps_ND}
    result = {
        "num_galaxies": len(rank_ND),
        "accuracy": accuracy(found.targets, found.median_ND, found.truth_ND),
        "coverage": {
            version: [dataclasses.asdict(row) for row in coverage_of_ranks(names, found.ranks[version], joint_ranks[version])]
            for version in _VERSIONS
        },
        "diagnostics": {
            "num_drawn": len(rows),
            "ranks": {name: uniformity(rank_N).to_dict() for name, rank_N in ranks.items()},
            "curves": {name: _curve(inside_N) for name, inside_N in inside.items()},
            "scores": _score_rows(names, single, {"energy": energy, "log": joint.score}),
            "bins": in_bins(names, rank_ND, bins(columns), **given),
            "local": local_coverage(names, rosenblatt(some, z_MD), rank_ND[rows], term_names, term_MF),
        },
        "negative_log_density": {version: dict(values) for version, values in found.negative_log_density.items()},
    }
    if by:
        of_truth = {name for name, value_N in by.items() if _is_truth(value_N, found.truth_ND)}
        judged, shown = (
            in_bins(names, rank_ND, bins({name: by[name] for name in by if (name in of_truth) is truth}), **given)
            for truth in (False, True)
        )
        result["columns"] = judged | {"rows": judged["rows"] + [row | {"of_truth": True} for row in shown["rows"]]}
    if position_N2 is not None and (sky := pixels(*position_N2.T)):
        nside, groups = sky
        result["sky"] = {"nside": nside, **in_bins(names, rank_ND, [groups], **given)}
    return result


def _is_truth(value_N: np.ndarray, truth_ND: np.ndarray) -> bool:
    """Return whether a column orders galaxies as a true value does, such as the magnitude of an injected galaxy.

    In bins of these even calibrated posteriors deviate: they tend to the typical galaxy.
    """
    known_N = np.isfinite(value_N) if value_N.dtype.kind == "f" else np.zeros(len(value_N), bool)
    if len(np.unique(value_N[known_N])) < _FEWEST_VALUES:
        return False
    rank_N = rankdata(value_N[known_N])
    return any(abs(np.corrcoef(rank_N, rankdata(truth_N[known_N]))[0, 1]) > _SAME_ORDER for truth_N in truth_ND.T)


def _score_rows(names: Sequence[str], single: Score, joint: Mapping[str, Score]) -> list[dict[str, Any]]:
    summary = {key: value.tolist() for key, value in single.summary().items()}
    rows = [
        {"score": "crps", "target": name} | {key: value[d] for key, value in summary.items()} for d, name in enumerate(names)
    ]
    return rows + [
        {"score": name, "target": JOINT} | {key: float(value) for key, value in score.summary().items()}
        for name, score in joint.items()
    ]


def _curve(inside_N: np.ndarray) -> dict[str, Any]:
    low_G, high_G = coverage_ribbon(inside_N)
    test = uniformity(inside_N)
    ribbon = {"ribbon_low": low_G - test.level_G, "ribbon_high": high_G - test.level_G}
    return test.to_dict() | {name: y_G.round(6).tolist() for name, y_G in ribbon.items()}


def accuracy(targets: TargetSchema, median_ND: np.ndarray, truth_ND: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return errors of the posterior median by target.

    ``median_absolute_relative_error`` is a fraction of the truth, over galaxies whose truth is not zero (None if there are
    none); ``mean_absolute_error``, ``bias`` (mean of median - truth) and ``rmse`` are in ``unit``.
    """
    error_ND = median_ND - truth_ND
    result = {}
    for d, target in enumerate(targets):
        error, truth = error_ND[:, d], truth_ND[:, d]
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
