"""Posteriors under another prior than that of the training, by importance weights on draws.

A posterior is the likelihood times the training's prior. Under another prior it is the same posterior times the ratio of both
priors, which weights its draws (Hogg, Myers & Bovy 2010, ApJ 725, 2166): no image is needed again.
Shape legend: N galaxies, S draws a galaxy, D targets, Q quantile levels.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from gampen_ray.errors import UserError

__all__ = ["Density", "Reweighted", "effective_size", "reweight"]

Density = Callable[[np.ndarray], np.ndarray]
"""The log of a density of the physical targets: from M x D values to M, up to a constant; minus infinity where it is 0."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Reweighted:
    """Weighted draws of N posteriors under a new prior. What has no weight at all is NaN.

    Parameters
    ----------
    draw_NSD
        Draws in physical units.
    weight_NS
        Their weights, which add up to 1 for each galaxy, or are all 0.
    """

    draw_NSD: np.ndarray
    weight_NS: np.ndarray

    def __len__(self) -> int:
        return len(self.draw_NSD)

    @functools.cached_property
    def effective_size_N(self) -> np.ndarray:
        """Number of independent draws that are worth as much as the weighted ones; see `effective_size`."""
        return effective_size(self.weight_NS)

    def mean(self) -> np.ndarray:
        """Return posterior means, N x D."""
        return np.einsum("ns,nsd->nd", self._weight_NS, self.draw_NSD)

    def covariance(self) -> np.ndarray:
        """Return the covariance between targets, N x D x D."""
        offset_NSD = self.draw_NSD - self.mean()[:, None]
        return np.einsum("ns,nsd,nse->nde", self._weight_NS, offset_NSD, offset_NSD)

    def std(self) -> np.ndarray:
        """Return posterior standard deviations, N x D."""
        return np.sqrt(np.einsum("ns,nsd->nd", self._weight_NS, (self.draw_NSD - self.mean()[:, None]) ** 2))

    def quantile(self, q: float | Sequence[float] | np.ndarray) -> np.ndarray:
        """Return the marginal quantiles, N x D for one level and N x Q x D for several; levels lie in (0, 1)."""
        q_Q = np.atleast_1d(np.asarray(q, np.float64))
        if not ((q_Q > 0) & (q_Q < 1)).all():
            raise ValueError(f"quantile levels are {q_Q.tolist()}; they must lie strictly between 0 and 1")
        value_NQD = np.full((len(self), len(q_Q), self.draw_NSD.shape[2]), np.nan)
        order_NSD = np.argsort(self.draw_NSD, axis=1)
        for n, d in np.ndindex(len(self), self.draw_NSD.shape[2]):
            order_S = order_NSD[n, :, d]
            weight_S = self.weight_NS[n, order_S]
            if weight_S.any():
                # A draw stands in the middle of its weight.
                used_S = weight_S > 0
                level_S = (np.cumsum(weight_S) - 0.5 * weight_S)[used_S]
                value_NQD[n, :, d] = np.interp(q_Q, level_S, self.draw_NSD[n, order_S[used_S], d])
        return value_NQD[:, 0] if np.ndim(q) == 0 else value_NQD

    def credible_interval(self, level: float) -> np.ndarray:
        """Return the ends of the equal-tailed interval of probability ``level``, N x 2 x D."""
        return self.quantile([0.5 * (1 - level), 0.5 * (1 + level)])

    @functools.cached_property
    def _weight_NS(self) -> np.ndarray:
        return np.where(self.weight_NS.any(axis=1, keepdims=True), self.weight_NS, np.nan)


def reweight(draw_NSD: np.ndarray, new: Density, training: Density) -> Reweighted:
    """Return posteriors under a new prior; `gampen_ray.posterior.mixture.Mixture.reweight` draws from a mixture first.

    Draws where the training had no galaxy get no weight: nothing was learned there.

    Parameters
    ----------
    draw_NSD
        Draws in physical units. Few are left where the new prior is narrow beside the posterior or far from it: the effective
        size says how many.
    new
        The new prior.
    training
        That of the training: `gampen_ray.posterior.prior.Prior.log_density` of the bundle's ``prior``.

    Raises
    ------
    UserError
        If a prior gives another number of values than it is given, or one that is no log of a density.
    """
    log_new_NS, log_training_NS = _values("new", new, draw_NSD), _values("training", training, draw_NSD)
    log_NS = np.where(log_training_NS > -np.inf, log_new_NS - np.where(log_training_NS > -np.inf, log_training_NS, 0), -np.inf)
    largest_N1 = log_NS.max(axis=1, initial=-np.inf, keepdims=True)
    weight_NS = np.exp(log_NS - np.where(largest_N1 > -np.inf, largest_N1, 0))
    total_N1 = weight_NS.sum(axis=1, keepdims=True)
    return Reweighted(draw_NSD=draw_NSD, weight_NS=weight_NS / np.where(total_N1 > 0, total_N1, 1))


def effective_size(weight_NS: np.ndarray) -> np.ndarray:
    """Return (sum w)^2 / sum w^2 of each row (Kish 1965, Survey Sampling, sec. 11.7), N; 0 for a row without weight."""
    square_N = (weight_NS**2).sum(axis=1)
    return np.where(square_N > 0, weight_NS.sum(axis=1) ** 2 / np.where(square_N > 0, square_N, 1), 0.0)


def _values(name: str, density: Density, draw_NSD: np.ndarray) -> np.ndarray:
    row_MD = draw_NSD.reshape(-1, draw_NSD.shape[-1])
    value_M = np.asarray(density(row_MD), np.float64)
    if value_M.shape != (len(row_MD),):
        raise UserError(
            f"{name}: gives the shape {value_M.shape} for values of the shape {row_MD.shape}; return one log density a row"
        )
    if (wrong_M := np.isnan(value_M) | (value_M == np.inf)).any():
        raise UserError(
            f"{name}: is no log of a density at {row_MD[wrong_M][0].tolist()}; return a finite number, or -inf where it is 0"
        )
    return value_M.reshape(draw_NSD.shape[:-1])
