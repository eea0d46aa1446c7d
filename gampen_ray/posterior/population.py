"""The distribution of a population from the posteriors of its galaxies: hierarchical deconvolution in cells of the targets.

The population's share of cell b is theta_b, and within a cell it is like the training. Galaxy n, whose posterior puts P_nb into
the cell where the training's prior has p_b, has the likelihood sum_b theta_b P_nb / p_b (Hogg, Myers & Bovy 2010, ApJ 725,
2166): the training's prior is divided out, and the widths of the posteriors are taken off. Cells as small as the
posteriors would fit noise, so ln(theta / p) has a Gaussian process as its prior (Foreman-Mackey, Hogg & Morton 2014, ApJ 795,
64). Its posterior is drawn from by Hamiltonian Monte Carlo (Neal 2011, Handbook of Markov Chain Monte Carlo, ch. 5), in
coordinates in which it is a standard normal if it is Gaussian about its maximum.
Shape legend: N galaxies, B cells, S draws, V values of the process in independent coordinates.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np

from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.prior import Prior

__all__ = ["Edges", "Population", "cell_probabilities", "population", "shares"]

_CHUNK, _STEPS, _CONVERGED = 256, 100, 1e-6
# Draws of the training's prior, for its shares of the cells.
_PRIOR_DRAWS, _PRIOR_SEED = 1 << 21, 1
# Of the process's variance, what is left out.
_NEGLIGIBLE = 1e-6
# A trajectory covers about a quarter of an oscillation; the first draws are left out.
_LEAPS, _LEAP, _FIRST = 8, 0.2, 50

Edges = Mapping[str, np.ndarray]
"""Ascending edges, in physical units, by the name of a target; cells are their products, the last target fastest."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """Draws of a population's shares of cells; their mean and covariance are the result and its errors.

    Parameters
    ----------
    edges
        Of the cells by target.
    share_SB
        Each row adds up to 1. Neighbouring cells are anti-correlated where posteriors are wider than cells.
    """

    edges: Edges
    share_SB: np.ndarray

    def marginal(self, *names: str) -> np.ndarray:
        """Return the shares of the cells of some targets, S x cells of the first x of the second, in the order of ``edges``."""
        share = self.share_SB.reshape(-1, *(len(edge) - 1 for edge in self.edges.values()))
        return share.sum(axis=tuple(1 + i for i, name in enumerate(self.edges) if name not in names))


def population(
    mixture: Mixture,
    training: Prior,
    edges: Edges,
    *,
    length: float = 2.0,
    amplitude: float = 3.0,
    num_draws: int = 1000,
    seed: int = 0,
) -> Population:
    """Return the distribution of a population of galaxies over cells.

    The galaxies are those whose distribution is wanted: chosen by what their images show, not by true values. Targets without
    edges, and all else, such as the shapes of galaxies, are taken to be as in the training; give edges to those that are not.

    Parameters
    ----------
    mixture
        Posteriors of the galaxies.
    training
        Prior of the training: the bundle's ``prior``.
    edges
        Of the cells by target; no galaxy lies beyond them. They may be finer than what is asked of the result, of which they
        are then summed.
    length
        Over how many cells ln(theta / p) varies: the correlation length of the Gaussian process.
    amplitude
        By how much it varies: 3 is a factor of 20.
    num_draws, seed
        Draws S that are returned.

    Raises
    ------
    UserError
        If edges are wrong, or a galaxy has no probability in any cell in which the training has galaxies.
    """
    prior_B = shares(training.sample(_PRIOR_DRAWS, _PRIOR_SEED)[None], training.targets, edges)[0]
    probability_NB = cell_probabilities(mixture, edges, seed=seed)
    # Where the training had no galaxy, nothing is known of the likelihood.
    known_B = prior_B > 0
    likelihood_NB = probability_NB[:, known_B] / prior_B[known_B]
    nowhere = int((~(likelihood_NB > 0).any(axis=1)).sum())
    if nowhere or not len(mixture):
        raise UserError(
            f"edges: {nowhere} of {len(mixture)} galaxies have no probability in any cell of the training; widen the edges, or "
            "leave these galaxies out"
        )
    root_BV = _root([len(edge) - 1 for edge in edges.values()], length, amplitude)[known_B]
    target = _Target(likelihood_NB / likelihood_NB.max(axis=1, keepdims=True), np.log(prior_B[known_B]), root_BV)
    share_SB = np.zeros((num_draws, len(prior_B)))
    for s, value_V in enumerate(_draws(target, num_draws, np.random.default_rng(seed))):
        share_SB[s, known_B] = target.share(value_V)
    return Population(edges=edges, share_SB=share_SB)


def cell_probabilities(mixture: Mixture, edges: Edges, *, num_draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Return the posterior probability of each cell, N x B: exact for cells of one target, else shares of draws.

    What lies beyond the edges is in no cell.

    Raises
    ------
    UserError
        If a target is unknown or its edges do not ascend.
    """
    places = _places(mixture.targets, edges)
    if len(places) > 1:
        generator = np.random.default_rng(seed)
        pieces = mixture.chunks(_CHUNK)
        return np.concatenate([shares(piece.sample(num_draws, generator), piece.targets, edges) for piece in pieces])
    ((d, edge),) = zip(places, edges.values(), strict=True)
    low_ND, high_ND = np.zeros((2, len(mixture), len(mixture.targets)))
    columns = []
    for low_ND[:, d], high_ND[:, d] in itertools.pairwise(edge):
        columns.append(mixture.probability(low_ND, high_ND)[:, d])
    return np.stack(columns, axis=1)


def shares(draw_NSD: np.ndarray, targets: TargetSchema, edges: Edges) -> np.ndarray:
    """Return the shares of draws or galaxies (N x S x D, physical) in each cell, N x B."""
    size = math.prod(len(edge) - 1 for edge in edges.values())
    cell_NS, inside_NS = np.zeros(draw_NSD.shape[:2], np.int64), np.ones(draw_NSD.shape[:2], bool)
    for d, edge in zip(_places(targets, edges), edges.values(), strict=True):
        bin_NS = np.searchsorted(edge, draw_NSD[..., d], side="right") - 1
        bin_NS[draw_NSD[..., d] == edge[-1]] -= 1
        inside_NS &= (bin_NS >= 0) & (bin_NS < len(edge) - 1)
        cell_NS = cell_NS * (len(edge) - 1) + bin_NS
    row_NS = np.broadcast_to(np.arange(len(draw_NSD))[:, None], cell_NS.shape)
    count = np.bincount((row_NS * size + cell_NS)[inside_NS], minlength=len(draw_NSD) * size)
    return count.reshape(len(draw_NSD), size) / draw_NSD.shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Target:
    """The posterior of the process's values: ln(theta / p) is ``root_BV @ value_V``, up to a constant."""

    likelihood_NB: np.ndarray
    log_prior_B: np.ndarray
    root_BV: np.ndarray

    def share(self, value_V: np.ndarray) -> np.ndarray:
        """Return theta, B."""
        log_B = self.log_prior_B + self.root_BV @ value_V
        share_B = np.exp(log_B - log_B.max())
        return share_B / share_B.sum()

    def height(self, value_V: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the log of the density, up to a constant, and its slope, V."""
        share_B = self.share(value_V)
        total_N = self.likelihood_NB @ share_B
        excess_B = share_B * ((1 / total_N) @ self.likelihood_NB - len(total_N))
        return float(np.log(total_N).sum() - 0.5 * value_V @ value_V), excess_B @ self.root_BV - value_V

    def precision(self, value_V: np.ndarray) -> np.ndarray:
        """Return the curvature, V x V; the galaxies' part is the scatter of their slopes, which is never negative."""
        probability_NB = self.likelihood_NB * self.share(value_V)
        probability_NB /= probability_NB.sum(axis=1, keepdims=True)
        scatter_NV = (probability_NB - probability_NB.mean(axis=0)) @ self.root_BV
        return np.eye(len(value_V)) + scatter_NV.T @ scatter_NV


def _maximum(target: _Target) -> np.ndarray:
    """Return the most probable values, V, by Newton's method."""
    value_V = np.zeros(target.root_BV.shape[1])
    height, slope_V = target.height(value_V)
    for _ in range(_STEPS):
        step_V, before = np.linalg.solve(target.precision(value_V), slope_V), height
        # Halved until it is a rise; at the maximum, rounding may leave none.
        for fraction in 0.5 ** np.arange(30):
            height, slope_V = target.height(value_V + fraction * step_V)
            if height >= before:
                value_V = value_V + fraction * step_V
                break
        if height - before < _CONVERGED * abs(before):
            break
    return value_V


def _draws(target: _Target, num_draws: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield draws of the process's values, V."""
    best_V = _maximum(target)
    # From standardised coordinates about the maximum to values.
    spread_VV = np.linalg.inv(np.linalg.cholesky(target.precision(best_V))).T

    def height(x_V: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope_V = target.height(best_V + spread_VV @ x_V)
        return value, slope_V @ spread_VV

    here_V = np.zeros(len(best_V))
    now, slope_V = height(here_V)
    for step in range(-_FIRST, num_draws):
        speed_V = generator.standard_normal(len(here_V))
        energy, leap = now - 0.5 * speed_V @ speed_V, _LEAP * generator.uniform(0.7, 1.3)
        there_V, there, there_slope_V = here_V, now, slope_V
        for _ in range(_LEAPS):
            speed_V = speed_V + 0.5 * leap * there_slope_V
            there_V = there_V + leap * speed_V
            there, there_slope_V = height(there_V)
            speed_V = speed_V + 0.5 * leap * there_slope_V
        if math.log(generator.random()) < there - 0.5 * speed_V @ speed_V - energy:
            here_V, now, slope_V = there_V, there, there_slope_V
        if step >= 0:
            yield best_V + spread_VV @ here_V


def _root(cells: list[int], length: float, amplitude: float) -> np.ndarray:
    """Return a square root of the process's covariance, B x V: squared exponential in the number of cells between two."""
    roots = []
    for count in cells:
        place_B = np.arange(count)
        power_V, vector_BV = np.linalg.eigh(np.exp(-0.5 * ((place_B[:, None] - place_B) / length) ** 2))
        kept_V = power_V > _NEGLIGIBLE * power_V.max()
        roots.append(vector_BV[:, kept_V] * np.sqrt(power_V[kept_V]))
    return amplitude * functools.reduce(np.kron, roots)


def _places(targets: TargetSchema, edges: Edges) -> list[int]:
    for name, edge in edges.items():
        if name not in targets.names:
            raise UserError(f"edges: {name} is no target of the posteriors; name one of {', '.join(targets.names)}")
        if np.ndim(edge) != 1 or len(edge) < 2 or not (np.diff(edge) > 0).all():
            raise UserError(f"edges: those of {name} do not ascend; give two or more ascending values")
    return [targets.names.index(name) for name in edges]
