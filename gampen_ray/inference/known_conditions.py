"""Where the conditions of the training galaxies lie together.

Each condition of a galaxy may be usual where all of them are not, as for a PSF of usual width with stronger wings.
Shape legend: N galaxies, M training galaxies, J conditions.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from scipy.spatial import KDTree

__all__ = ["KnownConditions", "impossible"]

_MOST = 1 << 14
"""Training galaxies that are kept."""
_QUANTILE = 0.998
# Least spread along a principal axis over the largest: one along which the training hardly varies is not known to matter.
_LEAST_SPREAD = 0.1
# Conditions that differ by less along all axes, in spreads, are the same: each galaxy of a tile may have its own by its place.
_CELL = 0.05
_PSF_SIZES = ("psf_fwhm_arcsec", "psf_r50_arcsec", "psf_r80_arcsec", "psf_r95_arcsec")
"""Sizes of PSFs; from the second on each is larger than the one before."""


def impossible(names: Sequence[str], condition_NJ: np.ndarray) -> np.ndarray:
    """Return why no PSF has the sizes that a galaxy's conditions give, N texts, empty where one may; NaN is unknown.

    Parameters
    ----------
    names
        Names of the conditions, of which others than sizes of PSFs may be anything.
    condition_NJ
        Their values.
    """
    reason_N = np.full(len(condition_NJ), "", dtype=object)
    sizes = {name: condition_NJ[:, list(names).index(name)] for name in _PSF_SIZES if name in names}
    for name, size_N in sizes.items():
        for i in np.flatnonzero(size_N <= 0):
            reason_N[i] = f"{name} is {size_N[i]:g}, not a positive size"
    ordered = [item for item in sizes.items() if item[0] != _PSF_SIZES[0]]
    for (inner, inner_N), (outer, outer_N) in itertools.pairwise(ordered):
        for i in np.flatnonzero((inner_N >= outer_N) & (reason_N == "")):
            reason_N[i] = f"{inner} is {inner_N[i]:g}, not below {outer} of {outer_N[i]:g}: are columns swapped?"
    return reason_N


class KnownConditions:
    """Conditions of training galaxies, and how far from the nearest of them others may lie.

    Distances are Euclidean along the principal axes, each over its spread; positive conditions count by their logarithms. The
    farthest is the 99.8 % quantile of the distances from a training galaxy to the nearest other one, among those that differ: a
    survey may have few PSFs.

    Parameters
    ----------
    condition_MJ
        Values of training galaxies, finite.

    Raises
    ------
    ValueError
        If there are none, or a value is not finite.
    """

    def __init__(self, condition_MJ: np.ndarray) -> None:
        if condition_MJ.ndim != 2 or not condition_MJ.size or not np.isfinite(condition_MJ).all():
            raise ValueError("conditions of the training galaxies are no table of finite numbers")
        # As they are stored.
        self.condition_MJ = condition_MJ.astype(np.float32)
        self._trees: dict[tuple[int, ...], tuple[KDTree, np.ndarray]] = {}

    @classmethod
    def fit(cls, condition_NJ: np.ndarray) -> "KnownConditions":
        """Return those of a training split, of which a random part is kept if it is large."""
        return cls(np.random.default_rng(0).permutation(condition_NJ)[:_MOST])

    def unlike(self, condition_NJ: np.ndarray) -> np.ndarray:
        """Return which galaxies lie too far from all training galaxies, N bool; none of which a condition is not finite."""
        known_N = np.isfinite(condition_NJ).all(axis=1)
        found_N = np.zeros(len(condition_NJ), bool)
        if known_N.any():
            found_N[known_N] = self._tree.query(self._along_axes(condition_NJ[known_N]))[0] > self._farthest
        return found_N

    def drawn(self, condition_NJ: np.ndarray, count: int) -> np.ndarray:
        """Return conditions with their unknown values, those that are not finite, as training galaxies have them, S x N x J.

        Where none is known, each S-th part of the training along the axis along which it varies most gives one galaxy; else
        those galaxies that are nearest in what is known.

        Parameters
        ----------
        condition_NJ
            Values, with those unknown.
        count
            Number S of draws.
        """
        drawn_SNJ, known_NJ = np.repeat(condition_NJ[None], count, axis=0), np.isfinite(condition_NJ)
        for known_J in np.unique(known_NJ, axis=0):
            rows = (known_NJ == known_J).all(axis=1)
            if known_J.any():
                tree, spread_J = self._tree_of(tuple(np.flatnonzero(known_J).tolist()))
                wanted_NJ = self._scaled(condition_NJ[rows])[:, known_J] / spread_J
                chosen_NS = tree.query(wanted_NJ, k=np.arange(count) % tree.n + 1)[1]
            else:
                order_M = np.argsort(self._along_axes(self.condition_MJ)[:, -1], kind="stable")
                chosen_NS = order_M[((np.arange(count) + 0.5) / count * len(order_M)).astype(int)][None]
            drawn_SNJ[:, rows] = np.where(known_J, condition_NJ[rows], self.condition_MJ[chosen_NS.T])
        return drawn_SNJ

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return the array for a safetensors file."""
        return {"condition": torch.from_numpy(self.condition_MJ)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], num_conditions: int) -> "KnownConditions":
        """Rebuild from `to_tensors`' array.

        Raises
        ------
        ValueError
            If it is missing, or not of so many conditions.
        """
        kinds = {name: (tensor.dtype, tensor.shape[1:]) for name, tensor in tensors.items()}
        if kinds != {"condition": (torch.float32, (num_conditions,))}:
            raise ValueError(f"it holds {', '.join(kinds) or 'nothing'}, not {num_conditions} conditions in float32")
        return cls(tensors["condition"].numpy())

    def _along_axes(self, condition_NJ: np.ndarray) -> np.ndarray:
        value_NJ = self._scaled(condition_NJ)
        location_J, axis_JJ = self._axes
        return (value_NJ - location_J) @ axis_JJ

    def _scaled(self, condition_NJ: np.ndarray) -> np.ndarray:
        value_NJ, positive_J = condition_NJ.astype(np.float64), (self.condition_MJ > 0).all(axis=0)
        tiny = np.finfo(np.float32).tiny
        return np.where(positive_J, np.log(np.maximum(value_NJ, tiny)), value_NJ)

    def _tree_of(self, columns: tuple[int, ...]) -> "tuple[KDTree, np.ndarray]":
        """Return a tree of some conditions of the training galaxies, over their spreads, and these."""
        from scipy.spatial import KDTree

        if columns not in self._trees:
            value_MJ = self._scaled(self.condition_MJ)[:, columns]
            spread_J = np.where(np.ptp(value_MJ, axis=0) > 0, value_MJ.std(axis=0), 1.0)
            self._trees[columns] = KDTree(value_MJ / spread_J), spread_J
        return self._trees[columns]

    @functools.cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        # The mean, and the principal axes over their spread, as columns.
        value_MJ = self._scaled(self.condition_MJ)
        location_J, spread_J = value_MJ.mean(axis=0), value_MJ.std(axis=0)
        spread_J = np.where(spread_J > 0, spread_J, 1.0)
        whitened_MJ = (value_MJ - location_J) / spread_J
        variance_J, axis_JJ = np.linalg.eigh(whitened_MJ.T @ whitened_MJ / len(whitened_MJ))
        std_J = np.sqrt(variance_J.clip(min=0))
        return location_J, axis_JJ / spread_J[:, None] / np.maximum(std_J, max(_LEAST_SPREAD * std_J[-1], 1e-12))

    @functools.cached_property
    def _tree(self) -> "KDTree":
        from scipy.spatial import KDTree

        return KDTree(_CELL * np.unique(np.rint(self._along_axes(self.condition_MJ) / _CELL), axis=0))

    @functools.cached_property
    def _farthest(self) -> float:
        if self._tree.n == 1:
            return 0.0
        return float(np.quantile(self._tree.query(self._tree.data, k=2)[0][:, 1], _QUANTILE))
