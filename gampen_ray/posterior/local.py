"""Whether posteriors are calibrated everywhere: in bins of galaxies, and as a smooth function of their features.

Galaxies are grouped and features made of what is known without the truth, such as a posterior median or the width of the PSF:
where galaxies are chosen by their truth, calibrated posteriors deviate too.
Shape legend: N galaxies, D targets, B bins, F terms of the features, T statistics of the ranks, R repetitions.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtr

from gampen_ray.posterior.ranks import SIGNIFICANCE
from gampen_ray.posterior.summary import LEVELS

__all__ = ["LEVEL", "bins", "in_bins", "local_coverage", "terms"]

LEVEL = next(iter(LEVELS.values()))
"""Level of the intervals whose coverage is judged locally."""
_FEWEST = 25
_REPETITIONS = 4_000
# Share of a term's length that must be left beside the terms before it.
_INDEPENDENT = 0.05


def bins(columns: Mapping[str, np.ndarray], num_bins: int = 5) -> list[tuple[str, np.ndarray]]:
    """Return the bins of each column, equally many galaxies each: the column's name and the galaxies' indices.

    Values that are not finite are left out; bins have 25 galaxies or more, and a column at least one bin if it has a value.
    """
    result = []
    for name, value_N in columns.items():
        order = np.argsort(value_N, kind="stable")
        order = order[np.isfinite(value_N[order])]
        parts = np.array_split(order, int(np.clip(len(order) // _FEWEST, 1, num_bins)))
        result += [(name, part) for part in parts if part.size]
    return result


def in_bins(
    names: tuple[str, ...],
    rank_ND: np.ndarray,
    columns: Mapping[str, np.ndarray],
    *,
    scores: Mapping[str, np.ndarray] | None = None,
    num_bins: int = 5,
) -> dict[str, Any]:
    """Return coverage and bias of each target in `bins` of each column, and the test of the largest deviation.

    A bin's deviations are those of its coverage and of its mean rank, over their standard errors. Of all bins, columns and
    targets, the largest is compared with its distribution for calibrated posteriors: adversarial group calibration (Zhao,
    Ma & Ermon 2020, ICML, arXiv 2006.10288) over named groups. For so many galaxies a bin, the deviations are normal
    (coverage and mean rank are uncorrelated, as one is even and the other odd about rank 1/2), and those of bins of two columns
    that share m galaxies have the correlation m / sqrt(n1 n2); targets are taken as independent, which errs on the safe side
    (the Gaussian correlation inequality: Royen 2014, Far East J. Theor. Stat. 48, 139).

    Parameters
    ----------
    names
        Targets.
    rank_ND
        Ranks of the truths.
    columns
        What galaxies are binned by, N values by name.
    scores
        Values N x D by name whose means are added to the rows, NaN where unknown.
    num_bins
        Bins of each column.

    Returns
    -------
    dict
        ``rows``: ``column``, ``low``, ``high``, ``num_galaxies``, ``target``, ``level``, ``coverage`` of the equal-tailed
        interval and its binomial ``error``, ``mean_rank`` and its ``mean_rank_error``, and the ``scores``. ``p``: of the
        largest deviation; ``critical``: the number of errors that it exceeds with probability `SIGNIFICANCE`. Without any
        bin, ``p`` is 1 and ``critical`` 0.
    """
    groups = bins(columns, num_bins)
    inside_ND = np.abs(2 * rank_ND - 1) <= LEVEL
    rows, deviations = [], []
    for column, members in groups:
        ends = {"column": column, "low": float(columns[column][members[0]]), "high": float(columns[column][members[-1]])}
        error = math.sqrt(LEVEL * (1 - LEVEL) / len(members))
        mean_rank_error = math.sqrt(1 / 12 / len(members))
        for d, name in enumerate(names):
            row = {
                "num_galaxies": len(members),
                "target": name,
                "level": LEVEL,
                "coverage": float(inside_ND[members, d].mean()),
                "error": error,
                "mean_rank": float(rank_ND[members, d].mean()),
                "mean_rank_error": mean_rank_error,
            }
            known = {key: value_ND[members, d] for key, value_ND in (scores or {}).items()}
            row |= {key: float(np.nanmean(value)) for key, value in known.items() if np.isfinite(value).any()}
            deviations += [(row["coverage"] - LEVEL) / error, (row["mean_rank"] - 0.5) / mean_rank_error]
            rows.append(ends | row)
    if not rows:
        return {"rows": [], "p": 1.0, "critical": 0.0}
    null_R = _largest_deviations(groups, len(rank_ND), 2 * len(names))
    p = (1 + int((null_R >= np.abs(deviations).max()).sum())) / (1 + len(null_R))
    return {"rows": rows, "p": float(p), "critical": float(np.quantile(null_R, 1 - SIGNIFICANCE))}


def _largest_deviations(groups: list[tuple[str, np.ndarray]], count: int, copies: int) -> np.ndarray:
    """Return the largest absolute value of independent copies of normal variables correlated like the bins, R."""
    member_BN = np.zeros((len(groups), count), np.float32)
    for row_N, (_, members) in zip(member_BN, groups, strict=True):
        row_N[members] = 1 / math.sqrt(len(members))
    variance_B, axis_BB = np.linalg.eigh((member_BN @ member_BN.T).astype(np.float64))
    root_BB = axis_BB * np.sqrt(np.maximum(variance_B, 0))
    generator = np.random.default_rng(0)
    largest_R = np.zeros(_REPETITIONS)
    for _ in range(copies):
        deviation_BR = root_BB @ generator.standard_normal((len(groups), _REPETITIONS))
        largest_R = np.maximum(largest_R, np.abs(deviation_BR).max(axis=0))
    return largest_R


def terms(columns: Mapping[str, np.ndarray]) -> tuple[list[str], np.ndarray]:
    """Return functions of the features, their names and values, N x F, orthonormal over the galaxies.

    A constant, and of each column's ranks among the galaxies the Legendre polynomials of degrees 1 to 3, and the products of
    degree 1 of two columns; values that are not finite count as the middle rank. In this order, a term that is nearly a
    combination of those before is left out.
    """
    count = max(map(len, columns.values()))
    polynomials = {name: _legendre(_even_ranks(value_N)) for name, value_N in columns.items()}
    named = {"constant": np.ones(count)}
    for degree in range(3):
        named |= {f"{name}, degree {degree + 1}": poly[degree] for name, poly in polynomials.items()}
    for a, b in itertools.combinations(polynomials, 2):
        named[f"{a} × {b}"] = polynomials[a][0] * polynomials[b][0]
    kept, term_FN = [], np.empty((0, count))
    for name, value_N in named.items():
        rest_N = value_N
        # Twice is enough for orthogonality to rounding (Giraud et al. 2005, Numer. Math. 101, 87).
        for _ in range(2):
            rest_N = rest_N - (term_FN @ rest_N) @ term_FN
        length = np.linalg.norm(rest_N)
        if length > _INDEPENDENT * np.linalg.norm(value_N):
            kept.append(name)
            term_FN = np.concatenate([term_FN, rest_N[None] / length])
    return kept, term_FN.T


def _even_ranks(value_N: np.ndarray) -> np.ndarray:
    """Return ranks on (0, 1), equal for equal values; 1/2 where a value is not finite."""
    finite = np.isfinite(value_N)
    values, inverse, counts = np.unique(value_N[finite], return_inverse=True, return_counts=True)
    rank_N = np.full(len(value_N), 0.5)
    if len(values):
        rank_N[finite] = ((counts.cumsum() - 0.5 * counts) / counts.sum())[inverse]
    return rank_N


def _legendre(u_N: np.ndarray) -> np.ndarray:
    """Return the orthonormal Legendre polynomials on [0, 1] of degrees 1 to 3, 3 x N."""
    x = 2 * u_N - 1
    return np.sqrt([[3.0], [5.0], [7.0]]) * np.stack([x, 0.5 * (3 * x**2 - 1), 0.5 * (5 * x**3 - 3 * x)])


def local_coverage(
    names: tuple[str, ...], conditional_ND: np.ndarray, rank_ND: np.ndarray, term_names: list[str], term_NF: np.ndarray
) -> dict[str, Any]:
    """Regress statistics of the ranks on features, and test whether anything depends on them.

    Calibrated ranks are uniform whatever the image (Zhao et al. 2021, UAI, PMLR 161, 1830; Dey et al. 2022,
    arXiv 2205.14568, regress them on the features). As in Neyman's smooth test, their statistics are the orthonormal Legendre
    polynomials of degree 1 (bias) and 2 (width) of each target's conditional rank, and the product of degree 1 of two targets
    (dependence): under calibration, each has mean 0 and variance 1 at any image and they are uncorrelated, so their F x T
    coefficients on orthonormal terms are standard normal for many galaxies, and no network need be trained. The p value is
    twice the smaller of that of their sum of squares (chi-squared of F T degrees) and that of the largest.

    Parameters
    ----------
    names
        Targets.
    conditional_ND
        From `gampen_ray.posterior.ranks.rosenblatt`.
    rank_ND
        Marginal ranks, for the size of the effect.
    term_names, term_NF
        From `terms`.

    Returns
    -------
    dict
        ``p``; ``sum_of_squares`` and ``degrees``; ``statistic``, ``term`` and ``coefficient`` of the largest coefficient;
        ``effects``, by statistic its root mean square over the galaxies as fitted, less what chance gives it: a bias of 0.1
        sigma, a width wrong by 8 % and a correlation of the ranks of 0.1 give 0.1; and ``spread``, by target the same of the
        coverage of the equal-tailed interval of `LEVEL` from nominal.
    """
    poly_TN = {name: _legendre(conditional_ND[:, d]) for d, name in enumerate(names)}
    statistics = {f"bias of {name}": poly[0] for name, poly in poly_TN.items()}
    statistics |= {f"width of {name}": poly[1] for name, poly in poly_TN.items()}
    for a, b in itertools.combinations(names, 2):
        statistics[f"dependence of {a} and {b}"] = poly_TN[a][0] * poly_TN[b][0]
    coefficient_TF = np.stack(list(statistics.values())) @ term_NF
    t, f = np.unravel_index(np.abs(coefficient_TF).argmax(), coefficient_TF.shape)
    total, degrees = float(np.square(coefficient_TF).sum()), coefficient_TF.size
    largest = float(coefficient_TF[t, f])
    p_largest = -math.expm1(degrees * math.log1p(-2 * ndtr(-abs(largest))))
    miss_ND = (np.abs(2 * rank_ND - 1) <= LEVEL) - LEVEL
    spread_D = _beyond_chance(miss_ND.T @ term_NF, LEVEL * (1 - LEVEL), len(rank_ND))
    effect_T = _beyond_chance(coefficient_TF, 1.0, len(rank_ND))
    return {
        "p": float(min(1, 2 * min(chdtrc(degrees, total), p_largest))),
        "sum_of_squares": total,
        "degrees": degrees,
        "statistic": list(statistics)[t],
        "term": term_names[f],
        "coefficient": largest,
        "effects": dict(zip(statistics, effect_T.tolist(), strict=True)),
        "spread": dict(zip(names, spread_D.tolist(), strict=True)),
    }


def _beyond_chance(coefficient_TF: np.ndarray, variance: float, count: int) -> np.ndarray:
    """Return the root mean square of fits with these coefficients over the galaxies, less that of noise alone, T."""
    excess_T = np.square(coefficient_TF).sum(axis=1) - variance * coefficient_TF.shape[1]
    return np.sqrt(np.maximum(excess_T, 0) / count)
