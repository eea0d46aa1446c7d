"""The distribution of a training split's targets: what posteriors assume of a galaxy before its image is seen.

Shape legend: N galaxies, D targets, B bins.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from gampen_ray.errors import UserError
from gampen_ray.model.targets import Target, TargetSchema

__all__ = ["FEWEST", "Prior"]

FEWEST = 100
"""Galaxies of which a prior is made, at least."""
# In the bin at each end are 25 galaxies.
_BINS, _IN_TAIL = 64, 25
# Scores of the Gaussian copula stay within 3.7 sigma, and of two targets that determine each other neither is left out.
_TAIL, _SHRINK = 1e-4, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """A density of the physical targets: histograms of the targets, coupled by a Gaussian copula.

    A histogram has sharp ends, as the priors of simulations do, and is zero beyond the training values. Its bins would be
    equally wide for normal values, so that tails are resolved. Within a bin the density is constant in ln y for log targets and
    in y for others. The copula gives normal scores of the targets the correlations of the training galaxies (Nelsen 2006, An
    Introduction to Copulas, sec. 2.3): relations that are monotonic and alike everywhere are in it, others are not.

    Parameters
    ----------
    targets
        Names and transforms of the D targets.
    edges
        Of the B bins of each target, ascending: B + 1 values of ln y for log targets, of y for others.
    masses
        Shares of the galaxies in the bins of each target.
    correlation_DD
        Of the normal scores, positive definite.

    Raises
    ------
    ValueError
        If these do not fit.
    """

    targets: TargetSchema
    edges: tuple[np.ndarray, ...]
    masses: tuple[np.ndarray, ...]
    correlation_DD: np.ndarray

    def __post_init__(self) -> None:
        dims = len(self.targets)
        if not len(self.edges) == len(self.masses) == len(self.correlation_DD) == dims:
            raise ValueError(f"prior: there are {len(self.edges)} histograms for {dims} targets")
        for name, edge_B, mass_B in zip(self.targets.names, self.edges, self.masses, strict=True):
            if len(edge_B) != len(mass_B) + 1 or not len(mass_B) or not (np.diff(edge_B) > 0).all():
                raise ValueError(f"prior: {name} has {len(edge_B)} ends of {len(mass_B)} bins, or they do not ascend")
            if not (mass_B >= 0).all() or not abs(mass_B.sum() - 1) < 1e-6:
                raise ValueError(f"prior: the shares of {name} add up to {mass_B.sum():g}, not to 1")
        matrix = self.correlation_DD
        symmetric = matrix.shape == (dims, dims) and np.allclose(matrix, matrix.T) and np.allclose(np.diag(matrix), 1)
        if not symmetric or not np.linalg.eigvalsh(matrix)[0] > 0:
            raise ValueError("prior: correlation is no positive definite matrix of correlations, a row a target")

    @classmethod
    def fit(cls, values_ND: np.ndarray, targets: TargetSchema) -> "Prior":
        """Return the prior of galaxies by their physical values, N x D.

        Logit targets are told apart only within their clip: beyond it is one bin on each side.

        Raises
        ------
        UserError
            If there are fewer than 100 galaxies, or a value is outside its transform's domain.
        """
        values_ND = np.asarray(values_ND, np.float64)
        if values_ND.ndim != 2 or values_ND.shape[1] != len(targets) or len(values_ND) < FEWEST:
            raise UserError(
                f"prior: the values have the shape {values_ND.shape}; give {len(targets)} columns, "
                f"{', '.join(targets.names)}, of at least {FEWEST} galaxies"
            )
        targets.standardise(values_ND)
        edges, masses = [], []
        score = -ndtri(_IN_TAIL / len(values_ND))
        bins = min(_BINS, len(values_ND) // _IN_TAIL)
        level_B = np.concatenate([[0], ndtr(np.linspace(-score, score, bins - 1)), [1]])
        for target, value_N in zip(targets, values_ND.T, strict=True):
            u_N = _coordinate(target, value_N)
            edge_B = np.unique(np.quantile(u_N, level_B))
            if target.transform == "logit":
                low, high = target.clip_low, target.clip_high
                edge_B = np.unique([0, low, *edge_B[(edge_B > low) & (edge_B < high)], high, 1])
            edges.append(edge_B)
            masses.append(np.histogram(u_N, edge_B)[0] / len(u_N))
        independent = cls(targets=targets, edges=tuple(edges), masses=tuple(masses), correlation_DD=np.eye(len(targets)))
        with np.errstate(invalid="ignore", divide="ignore"):
            # Scores that are all the same, as of values that differ within the clip alone, go with nothing.
            matrix = np.nan_to_num(np.atleast_2d(np.corrcoef(independent._scores(values_ND), rowvar=False)))
        np.fill_diagonal(matrix, 1.0)
        matrix = (1 - _SHRINK) * matrix + _SHRINK * np.eye(len(targets))
        return dataclasses.replace(independent, correlation_DD=matrix)

    def log_density(self, y: np.ndarray) -> np.ndarray:
        """Return the log of the density per physical unit at ... x D values, ...; minus infinity where no galaxy was."""
        y = np.asarray(y, np.float64)
        total = np.zeros(y.shape[:-1])
        with np.errstate(divide="ignore"):
            for d, (target, edge_B, mass_B) in enumerate(zip(self.targets, self.edges, self.masses, strict=True)):
                u = _coordinate(target, y[..., d])
                inside = (u >= edge_B[0]) & (u <= edge_B[-1])
                bin_ = np.clip(np.searchsorted(edge_B, u, side="right") - 1, 0, len(mass_B) - 1)
                total += np.where(inside, np.log(mass_B / np.diff(edge_B))[bin_], -np.inf)
                if target.transform == "log":
                    total -= np.where(inside, u, 0.0)
        if len(self.targets) > 1:
            score = self._scores(y)
            excess_DD = np.linalg.inv(self.correlation_DD) - np.eye(len(self.targets))
            total -= 0.5 * (np.einsum("...d,de,...e->...", score, excess_DD, score) + np.linalg.slogdet(self.correlation_DD)[1])
        return total

    def sample(self, n: int, seed: int | np.random.Generator) -> np.ndarray:
        """Return ``n`` draws in physical units, n x D."""
        generator = np.random.default_rng(seed)
        score_nD = generator.standard_normal((n, len(self.targets))) @ np.linalg.cholesky(self.correlation_DD).T
        columns = []
        for d, (target, edge_B, mass_B) in enumerate(zip(self.targets, self.edges, self.masses, strict=True)):
            u_n = np.interp(ndtr(score_nD[:, d]), _cumulative(mass_B), edge_B)
            columns.append(np.exp(u_n) if target.transform == "log" else u_n)
        return np.stack(columns, axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Return the histograms and correlations as plain values for JSON."""
        return {
            "edges": [edge_B.tolist() for edge_B in self.edges],
            "masses": [mass_B.tolist() for mass_B in self.masses],
            "correlation": self.correlation_DD.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Sequence[Sequence[float]]], targets: TargetSchema) -> "Prior":
        """Rebuild from `to_dict`'s values."""
        edges, masses = (tuple(np.array(row, np.float64) for row in values[name]) for name in ("edges", "masses"))
        rows = values["correlation"]
        if any(len(row) != len(rows) for row in rows):
            raise ValueError("prior: correlation is no square matrix")
        return cls(targets=targets, edges=edges, masses=masses, correlation_DD=np.array(rows, np.float64))

    def _scores(self, y: np.ndarray) -> np.ndarray:
        # Normal scores, ... x D; beyond the values of the training those of its ends.
        score = np.empty(y.shape)
        for d, (target, edge_B, mass_B) in enumerate(zip(self.targets, self.edges, self.masses, strict=True)):
            level = np.interp(_coordinate(target, y[..., d]), edge_B, _cumulative(mass_B))
            score[..., d] = ndtri(np.clip(level, _TAIL, 1 - _TAIL))
        return score


def _coordinate(target: Target, y: np.ndarray) -> np.ndarray:
    if target.transform != "log":
        return y
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(y > 0, np.log(y), -np.inf)


def _cumulative(mass_B: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(mass_B) / mass_B.sum()])
