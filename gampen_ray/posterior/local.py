"""Whether posteriors are calibrated everywhere, as a smooth function of the galaxies' features.

Features are made of what is known without the truth, such as a posterior median or the width of the PSF:
where galaxies are chosen by their truth, calibrated posteriors deviate too.
Shape legend: N galaxies, D targets, F terms of the features, T statistics of the ranks.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import chdtrc, ndtr

from gampen_ray.posterior.bins import LEVEL

__all__ = ["local_coverage", "terms"]

# Share of a term's length that must be left beside the terms before it.
_INDEPENDENT = 0.05


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
