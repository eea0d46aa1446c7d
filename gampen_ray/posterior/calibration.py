"""Coverage probability of posteriors, and the post-hoc scale that calibrates it.

Shape legend: N galaxies, D targets, M galaxies of which draws are made.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.ranks import joint_density
from gampen_ray.posterior.shape import thinned, with_correlation, with_tails, without_correlation
from gampen_ray.posterior.summary import LEVELS, interval_levels
from gampen_ray.posterior.threads import Mapped, one_by_one, one_thread

JOINT = "joint"
"""Name under which the coverage of all targets together is reported."""

# Candidate scales, evenly spaced in log between 1/16 and 16, more finely than a million galaxies can resolve.
_LOG_SCALES = np.linspace(-math.log(16), math.log(16), 8001)
_PRIOR_WIDTH = math.log(2)
_BIN_GALAXIES, _MOST_BINS = 750, 8
_TAILS = np.exp(np.linspace(-math.log(2), math.log(2), 5))
"""Candidate factors of tails."""
_TAIL_GALAXIES, _TAIL_PASSES = 6000, 128
"""Galaxies, and about so many of their passes, from which the factor of tails is fitted."""
_EXPONENTS = np.exp(np.linspace(-0.3, 0.3, 5))
"""Candidate exponents of correlation matrices."""
_JOINT_GALAXIES, _JOINT_PASSES, _JOINT_DRAWS = 6000, 64, 128
"""Galaxies, passes and draws from which the exponent is fitted."""
_PIECE = 1000
"""Galaxies that one process computes at once."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Tails and correlations like those of errors, and factors about the means, each a function of the posterior's own width.

    A network may be overconfident for galaxies that it knows well and cautious for others, or the reverse. Between the knots
    the logarithm of the factor is linear in that of the standard deviation; beyond them it is constant. Few galaxies that are
    far off decide how heavy the tails are that a likelihood learns, and coverage is that of all.

    Parameters
    ----------
    std_DB
        Standard deviations in standardised space at which the factors are known, increasing along B.
    scale_DB
        Factors.
    tails
        Argument of `gampen_ray.posterior.shape.with_tails`, which comes first.
    correlation
        Argument of `gampen_ray.posterior.shape.with_correlation`, which comes last.
    """

    std_DB: np.ndarray
    scale_DB: np.ndarray
    tails: float = 1.0
    correlation: float = 1.0

    def __post_init__(self) -> None:
        knots = np.stack([self.std_DB, self.scale_DB])
        if knots.ndim != 3 or not knots.size or not ((knots > 0) & (knots < np.inf)).all() or (np.diff(self.std_DB) < 0).any():
            raise ValueError("its factors are not positive numbers, as many as standard deviations, which increase")
        for name in ("tails", "correlation"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, not a positive number")

    @classmethod
    def constant(cls, scale_D: np.ndarray) -> "Calibration":
        """Return the calibration of one factor a target."""
        scale_D = np.asarray(scale_D, np.float64)
        return cls(std_DB=np.ones((len(scale_D), 1)), scale_DB=scale_D[:, None])

    @classmethod
    @one_thread()
    def fit(cls, mixture: Mixture, truths_ND: np.ndarray, mapped: Mapped = one_by_one) -> "Calibration":
        """Return the calibration of held-out posteriors: by `fit_tails`, `fit_scale` in bins, and `fit_correlation`.

        Bins are of equally many galaxies by width, `_BIN_GALAXIES` or more; there are `_MOST_BINS` at most.

        Parameters
        ----------
        mixture
            Posteriors of the validation split.
        truths_ND
            Its true physical values.
        mapped
            Shares pieces of the galaxies among processes that all have the same ones.
        """
        tails = fit_tails(mixture, truths_ND, mapped)
        mixture = with_tails(mixture, tails)
        std_ND, offset_ND, ends_NQD = mixture.standardised_std(), *_offsets(mixture, truths_ND, mapped)
        count = int(np.clip(len(mixture) // _BIN_GALAXIES, 1, _MOST_BINS))
        std_DB, scale_DB = np.empty((2, std_ND.shape[1], count))
        for d in range(len(std_DB)):
            for b, rows in enumerate(np.array_split(np.argsort(std_ND[:, d], kind="stable"), count)):
                std_DB[d, b] = np.median(std_ND[rows, d])
                scale_DB[d, b] = _fitted(offset_ND[rows, d], ends_NQD[rows, :, d])
        scaled = cls(std_DB=std_DB, scale_DB=scale_DB)(mixture)
        correlation = fit_correlation(scaled, truths_ND, mapped)
        return cls(std_DB=std_DB, scale_DB=scale_DB, tails=tails, correlation=correlation)

    def __call__(self, mixture: Mixture) -> Mixture:
        """Return calibrated posteriors."""
        if self.tails != 1:
            mixture = with_tails(mixture, self.tails)
        mixture = mixture.scaled(self._factors(mixture.standardised_std(), self.std_DB))
        return mixture if self.correlation == 1 else with_correlation(mixture, self.correlation)

    def undone(self, mixture: Mixture) -> Mixture:
        """Return the posteriors that this calibration made these from, as far as no two of them become the same."""
        mixture = mixture if self.correlation == 1 else without_correlation(mixture, self.correlation)
        mixture = mixture.scaled(1 / self._factors(mixture.standardised_std(), self.std_DB * self.scale_DB))
        return mixture if self.tails == 1 else with_tails(mixture, 1 / self.tails)

    def _factors(self, std_ND: np.ndarray, std_DB: np.ndarray) -> np.ndarray:
        log_std_DN, log_std_DB, log_scale_DB = np.log(std_ND.T), np.log(std_DB), np.log(self.scale_DB)
        return np.exp(np.stack(list(map(np.interp, log_std_DN, log_std_DB, log_scale_DB)), axis=1))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        knots = {"std": self.std_DB.tolist(), "scale": self.scale_DB.tolist()}
        return knots | {"tails": self.tails, "correlation": self.correlation}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Calibration":
        """Rebuild from `to_dict`'s values."""
        std_DB, scale_DB = (np.asarray(values[name], np.float64) for name in ("std", "scale"))
        return cls(std_DB=std_DB, scale_DB=scale_DB, tails=values["tails"], correlation=values["correlation"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often credible regions of one nominal probability contain the truth."""

    target: str
    """Target, or `JOINT`."""
    level: float
    """Nominal probability."""
    coverage: float
    """Share of galaxies whose region contains the truth."""
    error: float
    """Binomial standard error of the share for calibrated posteriors, sqrt(level (1 - level) / N)."""


@one_thread()
def coverage(mixture: Mixture, truths_ND: np.ndarray, seed: int = 0, mapped: Mapped = one_by_one) -> list[Coverage]:
    """Return the coverage probability of each target and of all together, at each of `LEVELS`.

    A target's region is its equal-tailed credible interval. The joint region is the highest-density region of the joint
    posterior in standardised space, where densities do not depend on units; see `gampen_ray.posterior.ranks.joint_density`.

    Parameters
    ----------
    mixture
        Posteriors of N galaxies.
    truths_ND
        True physical values; clipped and standardised as in training.
    seed
        Seed of the draws.
    mapped
        As for `Calibration.fit`.

    Raises
    ------
    UserError
        If a truth lies outside its transform's domain.
    """
    z_ND = _standardised_truths(mixture, truths_ND)

    def ranks(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        piece = mixture[rows]
        return piece.cdf(truths_ND[rows]), joint_density(piece, z_ND[rows], (seed, rows[0])).rank_N

    rank_ND, joint_rank_N = map(np.concatenate, zip(*mapped(ranks, _pieces(len(mixture))), strict=True))
    return coverage_of_ranks(mixture.targets.names, rank_ND, joint_rank_N)


def coverage_of_ranks(names: Sequence[str], rank_ND: np.ndarray, joint_rank_M: np.ndarray) -> list[Coverage]:
    """Return `coverage` from the ranks of N galaxies' truths, and those of the joint densities of M galaxies."""
    inside = {name: np.abs(2 * rank_ND[:, d] - 1) for d, name in enumerate(names)} | {JOINT: joint_rank_M}
    return [
        _row(name, level, float((rank_N <= level).mean()), len(rank_N))
        for name, rank_N in inside.items()
        for level in LEVELS.values()
    ]


def fit_scale(mixture: Mixture, truths_ND: np.ndarray) -> np.ndarray:
    """Return the factor of each target for which `Mixture.scaled` brings its coverage nearest to nominal, D.

    With m the mixture mean and [l, h] an equal-tailed interval in standardised space, the scaled interval is [m + s (l -
    m), m + s (h - m)], so a truth z > m is inside if and only if s >= (z - m) / (h - m) (and, in the rare case l > m, s <=
    (z - m) / (l - m)); likewise below m. This gives the coverage c_L(s) of each of `LEVELS` for every s at once. One scale
    cannot correct a wrong shape, and calibration is judged by deviations in percentage points, so all levels have equal
    weight: the misfit is chi2(s) = sum_L (c_L(s) - L)^2 / v, v the binomial variance of the innermost level's coverage, the
    largest. As it is a step function, the estimate is not its minimum but the mean of log s under the weight exp(-chi2 / 2)
    and a log-normal prior about 1 of width ln 2: the two agree for many galaxies, ties are averaged, and a few galaxies
    cannot move the scale far from 1. Scales lie within [1/16, 16].

    Parameters
    ----------
    mixture
        Posteriors of the validation split.
    truths_ND
        Its true physical values.
    """
    offset_ND, ends_NQD = _offsets(mixture, truths_ND)
    return np.array([_fitted(offset_ND[:, d], ends_NQD[:, :, d]) for d in range(len(mixture.targets))])


def fit_tails(mixture: Mixture, truths_ND: np.ndarray, mapped: Mapped = one_by_one) -> float:
    """Return the factor of `gampen_ray.posterior.shape.with_tails` that brings coverages nearest to nominal, between 1/2 and 2.

    Of each of five factors, the misfit is the sum over the targets of `fit_scale`'s at its minimum. As there, the estimate is
    the mean of the factor's logarithm under exp(-chi2 / 2) and a log-normal prior about 1, of width ln 2.

    Parameters
    ----------
    mixture
        Posteriors of the validation split; 6,000 galaxies are used at most, evenly spaced.
    truths_ND
        Its true physical values.
    mapped
        As for `Calibration.fit`.
    """
    rows = _evenly(len(mixture), _TAIL_GALAXIES)
    few = thinned(mixture[rows], _TAIL_PASSES)

    def log_weight(tails: float) -> float:
        offset_ND, ends_NQD = _offsets(with_tails(few, tails), truths_ND[rows], mapped)
        return sum(_log_weights(offset_ND[:, d], ends_NQD[:, :, d]).max() for d in range(len(mixture.targets)))

    return _weighted(np.log(_TAILS), list(map(log_weight, _TAILS)))


def fit_correlation(mixture: Mixture, truths_ND: np.ndarray, mapped: Mapped = one_by_one) -> float:
    """Return the exponent of `gampen_ray.posterior.shape.with_correlation` that brings joint coverages nearest to nominal.

    It lies between 0.74 and 1.35; 1 for a single target. The misfit is `fit_scale`'s, of the joint regions of the inner two
    levels, as the outermost takes more draws than are made here.

    Parameters
    ----------
    mixture
        Posteriors of the validation split, calibrated target by target; 6,000 galaxies are used at most, evenly spaced.
    truths_ND
        Its true physical values.
    mapped
        As for `Calibration.fit`.
    """
    if len(mixture.targets) == 1:
        return 1.0
    rows = _evenly(len(mixture), _JOINT_GALAXIES)
    few, z_ND = thinned(mixture[rows], _JOINT_PASSES), _standardised_truths(mixture, truths_ND)[rows]
    variance = max(level * (1 - level) for level in LEVELS.values()) / len(rows)

    def ranks(rows: np.ndarray) -> np.ndarray:
        piece, z = few[rows], z_ND[rows]
        return np.stack([joint_density(with_correlation(piece, e), z, rows[0], _JOINT_DRAWS).rank_N for e in _EXPONENTS])

    rank_EN = np.concatenate(mapped(ranks, _pieces(len(few))), axis=1)
    inner_L = np.array(list(LEVELS.values())[:2])
    misfit_E = (((rank_EN[:, None] <= inner_L[:, None]).mean(axis=-1) - inner_L) ** 2).sum(axis=1)
    return _weighted(np.log(_EXPONENTS), -0.5 * misfit_E / variance)


def _pieces(count: int) -> list[np.ndarray]:
    """Return the rows of pieces of so many galaxies."""
    return np.array_split(np.arange(count), math.ceil(count / _PIECE))


def _evenly(count: int, most: int) -> np.ndarray:
    """Return so many rows at most, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, most).round().astype(int))


def _weighted(log_factor_B: np.ndarray, log_weight_B: Sequence[float] | np.ndarray) -> float:
    """Return the mean of a factor, by its logarithm, under weights that are smooth between candidates, and the prior."""
    # Slow to import, and not needed by inference workers.
    from scipy.interpolate import CubicSpline

    fine = np.linspace(log_factor_B[0], log_factor_B[-1], 201)
    log_weight = CubicSpline(log_factor_B, log_weight_B)(fine) - 0.5 * (fine / _PRIOR_WIDTH) ** 2
    weight = np.exp(log_weight - log_weight.max())
    return math.exp(float((weight * fine).sum() / weight.sum()))


def _offsets(mixture: Mixture, truths_ND: np.ndarray, mapped: Mapped = one_by_one) -> tuple[np.ndarray, np.ndarray]:
    """Return truths (N x D) and ends of the intervals (N x Q x D), relative to the posterior means, in standardised space."""
    centre_ND = mixture.standardised_mean()
    pieces = mapped(lambda rows: mixture[rows].standardised_quantile(interval_levels()), _pieces(len(mixture)))
    ends_NQD = np.concatenate(pieces) - centre_ND[:, None, :]
    return _standardised_truths(mixture, truths_ND) - centre_ND, ends_NQD


def _fitted(offset_N: np.ndarray, ends_NQ: np.ndarray) -> float:
    """Return the factor of one target; see `fit_scale`."""
    log_weight = _log_weights(offset_N, ends_NQ)
    weight = np.exp(log_weight - log_weight.max())
    return math.exp(float((weight * _LOG_SCALES).sum() / weight.sum()))


def _log_weights(offset_N: np.ndarray, ends_NQ: np.ndarray) -> np.ndarray:
    """Return the logarithm of the weight of each candidate scale of one target; see `fit_scale`."""
    variance = max(level * (1 - level) for level in LEVELS.values()) / len(offset_N)
    log_weight = -0.5 * (_LOG_SCALES / _PRIOR_WIDTH) ** 2
    for i, level in enumerate(LEVELS.values()):
        share = _coverage_of_scales(offset_N, ends_NQ[:, 2 * i], ends_NQ[:, 2 * i + 1])
        log_weight -= 0.5 * (share - level) ** 2 / variance
    return log_weight


def _coverage_of_scales(offset_N: np.ndarray, low_N: np.ndarray, high_N: np.ndarray) -> np.ndarray:
    """Share of offsets inside [s low, s high] for each candidate scale s."""
    # Reflects offsets below the centre, so that `far` bounds them from outside and `near`, where positive, from inside.
    above = offset_N >= 0
    offset, far, near = np.abs(offset_N), np.where(above, high_N, -low_N), np.where(above, low_N, -high_N)
    with np.errstate(divide="ignore", invalid="ignore"):
        enter = np.where(far > 0, offset / far, np.inf)
        leave = np.where(near > 0, offset / near, np.inf)
    scales = np.exp(_LOG_SCALES)
    entered = np.searchsorted(np.sort(enter), scales, side="right")
    left = np.searchsorted(np.sort(leave), scales, side="left")
    return (entered - left) / len(offset_N)


def _standardised_truths(mixture: Mixture, truths_ND: np.ndarray) -> np.ndarray:
    truths_ND = np.asarray(truths_ND, dtype=np.float64)
    if truths_ND.shape != (len(mixture), len(mixture.targets)):
        raise ValueError(f"truths_ND has shape {truths_ND.shape}, not {(len(mixture), len(mixture.targets))}")
    if len(mixture) == 0:
        raise ValueError("coverage needs at least one galaxy with true values")
    return mixture.targets.standardise(truths_ND)


def _row(name: str, level: float, share: float, num_galaxies: int) -> Coverage:
    error = math.sqrt(level * (1 - level) / num_galaxies)
    return Coverage(target=name, level=level, coverage=share, error=error)
