"""Ranks of the truths within their posteriors, which are uniform on [0, 1] under calibration, and the test of that.

The rank of a target is its probability integral transform, `Mixture.cdf` at the truth: what the ranks of simulation-based
calibration (Talts et al. 2018, arXiv 1804.06788) tend to for many draws.
Shape legend: N galaxies, K passes, D targets, S draws, G levels, R repetitions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import bdtr, bdtrc, betaincinv

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.scores import Score

__all__ = ["SIGNIFICANCE", "JointDensity", "Uniformity", "coverage_ribbon", "joint_density", "rosenblatt", "uniformity"]

SIGNIFICANCE = 0.01
"""Probability with which a test calls calibrated posteriors wrong."""
# Inner points of an even grid, at which distribution functions are compared; repetitions of a simulated distribution.
_LEVEL_G = np.arange(1, 100) / 100
_REPETITIONS = 4000
_RIBBON = 0.05
# Galaxies per chunk, which bounds memory.
_CHUNK = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Uniformity:
    """Empirical distribution function of ranks, and what it would be under calibration.

    Parameters
    ----------
    p
        p value; at least 1 / (R + 1).
    level_G, share_G
        Levels, and the share of ranks at or below each.
    low_G, high_G
        Band that holds the whole curve with probability 1 - `SIGNIFICANCE` under calibration.
    """

    p: float
    level_G: np.ndarray
    share_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, the shares and the band as differences from the levels."""
        differences = {name: getattr(self, f"{name}_G") - self.level_G for name in ("share", "low", "high")}
        return {"p": self.p, "level": self.level_G.tolist()} | {name: y.round(6).tolist() for name, y in differences.items()}


def uniformity(rank_N: np.ndarray) -> Uniformity:
    """Compare ranks with the uniform distribution by their empirical distribution function.

    At a level z, the number of N uniform ranks at or below z is Binomial(N, z). The statistic is the smallest two-sided
    binomial tail probability over the levels (Säilynoja, Bürkner & Vehtari 2022, Stat. Comput. 32, 32, algorithm 1); its
    distribution under calibration is simulated. The band at each level ends at the quantiles gamma / 2 and 1 - gamma /
    2, gamma that distribution's quantile at `SIGNIFICANCE`, so that it holds for all levels at once. Unlike the constant band
    of Kolmogorov and Smirnov, it is sensitive in the tails.

    Parameters
    ----------
    rank_N
        Ranks, independent between galaxies; one or more.
    """
    count = len(rank_N)
    below_G = np.searchsorted(np.sort(rank_N), _LEVEL_G, side="right")
    null_R = _least_tails(count)
    exceeded = np.searchsorted(null_R, _tail(below_G, count).min(), side="right")
    # Slow to import, and not needed by inference workers.
    from scipy.stats import binom

    gamma = float(np.quantile(null_R, SIGNIFICANCE))
    return Uniformity(
        p=float((1 + exceeded) / (1 + len(null_R))),
        level_G=_LEVEL_G,
        share_G=below_G / count,
        low_G=binom.ppf(gamma / 2, count, _LEVEL_G) / count,
        high_G=binom.ppf(1 - gamma / 2, count, _LEVEL_G) / count,
    )


def coverage_ribbon(inside_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of a 95 % ribbon for the coverage at the levels of `uniformity`, G each.

    The ribbon at a level is the central interval of the coverage's posterior, Beta(k + 1, N - k + 1) for k of N truths inside
    and a uniform prior (Cameron 2011, PASA 28, 128). It holds for one level at a time.

    Parameters
    ----------
    inside_N
        Smallest level at which a galaxy's credible region contains its truth: |2 r - 1| of a target's rank r for equal-tailed
        intervals; the rank of `joint_density` for highest-density regions. Its distribution function is the expected coverage
        at all levels (Hermans et al. 2022, TMLR, arXiv 2110.06581), which `uniformity` compares with the nominal one.
    """
    count = len(inside_N)
    k_G = np.searchsorted(np.sort(inside_N), _LEVEL_G, side="right")
    return betaincinv(k_G + 1, count - k_G + 1, _RIBBON / 2), betaincinv(k_G + 1, count - k_G + 1, 1 - _RIBBON / 2)


def rosenblatt(mixture: Mixture, z_ND: np.ndarray) -> np.ndarray:
    """Return the conditional ranks of each target given those before it, N x D.

    F(z_d | z_1 ... z_(d-1)) of the mixture (Rosenblatt 1952, Ann. Math. Stat. 23, 470, eq. 1), in closed form: a component's
    conditional mean and standard deviation are read off its Cholesky factor, and its weight is its density at the targets
    before. Under calibration, the D ranks are uniform and independent of each other and of all that the image shows.

    Parameters
    ----------
    mixture
        Posteriors.
    z_ND
        Truths in standardised space.
    """
    pieces = zip(mixture.chunks(_CHUNK), torch.from_numpy(z_ND).split(_CHUNK), strict=True)
    return np.concatenate([_rosenblatt(piece.mean_NKD.cpu(), piece.scale_tril_NKDD.cpu(), z) for piece, z in pieces])


def _rosenblatt(mean_NKD: torch.Tensor, tril_NKDD: torch.Tensor, z_ND: torch.Tensor) -> np.ndarray:
    residual_NKD = z_ND[:, None] - mean_NKD
    # N x K x D: the standard normal variables that make the truths.
    normal_NKD = torch.linalg.solve_triangular(tril_NKDD, residual_NKD[..., None], upper=False)[..., 0]
    log_density_NKD = -0.5 * normal_NKD.square() - torch.log(torch.diagonal(tril_NKDD, dim1=-2, dim2=-1))
    log_weight_NKD = log_density_NKD.cumsum(-1) - log_density_NKD
    return (torch.softmax(log_weight_NKD, dim=1) * torch.special.ndtr(normal_NKD)).sum(1).numpy()


class JointDensity(NamedTuple):
    """The truths' joint density among those of draws from the same posteriors, in standardised space."""

    rank_N: np.ndarray
    """Rank, uniform on [0, 1] under calibration, near 0 for the densest point."""
    score: Score
    """Logarithmic score: minus the log density, natural logarithm."""


def joint_density(mixture: Mixture, z_ND: np.ndarray, seed: int | Sequence[int], num_draws: int = 512) -> JointDensity:
    """Rank the truths' joint density among those of draws (Hyndman 1996, Am. Stat. 50, 120).

    With r of S draws denser than the truth, the rank is r plus a uniform number in [0, 1), over S + 1, which is uniform for any
    S under calibration. It is the level of the smallest highest-density region that contains the truth.

    Parameters
    ----------
    mixture
        Posteriors.
    z_ND
        Truths in standardised space.
    seed
        Of the draws.
    num_draws
        Draws a galaxy.
    """
    generator = np.random.default_rng(seed)
    denser, log_prob, expected = [], [], []
    for start, piece in zip(range(0, max(len(z_ND), 1), _CHUNK), mixture.chunks(_CHUNK), strict=True):
        draw_NSD = piece.standardised_sample(num_draws, generator)
        points_NSD = np.concatenate([z_ND[start : start + _CHUNK, None], draw_NSD], axis=1)
        log_NS = piece.standardised_log_prob(points_NSD, torch.float32)
        denser.append((log_NS[:, 1:] > log_NS[:, :1]).sum(axis=1))
        log_prob.append(log_NS[:, 0])
        expected.append(log_NS[:, 1:].mean(axis=1))
    rank_N = (np.concatenate(denser) + generator.random(len(z_ND))) / (num_draws + 1)
    return JointDensity(rank_N, Score(-np.concatenate(log_prob), -np.concatenate(expected)))


def _tail(below: np.ndarray, count: int) -> np.ndarray:
    """Two-sided tail probability of numbers of ranks at or below each of the levels, last axis."""
    return np.minimum(1, 2 * np.minimum(bdtr(below, count, _LEVEL_G), bdtrc(below - 1, count, _LEVEL_G)))


@functools.lru_cache(maxsize=8)
def _least_tails(count: int) -> np.ndarray:
    """Return the sorted smallest tail probabilities of simulated uniform ranks, R."""
    cells = np.diff(_LEVEL_G, prepend=0, append=1)
    below_RG = np.random.default_rng(count).multinomial(count, cells, size=_REPETITIONS).cumsum(axis=1)[:, :-1]
    return np.sort(_tail(below_RG, count).min(axis=1))
