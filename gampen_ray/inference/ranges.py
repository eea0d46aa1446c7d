"""Ranges of what is measured in the cutouts that a model was made with, outside of which it cannot be trusted.

Shape legend: N galaxies, M held-out galaxies, Q plain numbers (`gampen_ray.model.measure.PLAIN_NUMBERS`), C bands.
"""

import dataclasses
from statistics import NormalDist
from typing import Any

import numpy as np

from gampen_ray.model.measure import PLAIN_NUMBERS

__all__ = ["Ranges"]

_TAIL = 0.001
"""Share of the held-out galaxies beyond each end of a range."""
_TAILS = {"correlation": 0.003}
"""Those of numbers that a few galaxies spoil: light of the brightest in the border passes for correlated noise."""
_LARGEST_TAIL = 0.25
_ROUNDING = 1e-4
"""How far beyond an end, relative to 1 + its size, a number may lie: sums of pixels differ between machines."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ranges:
    """Two-sided ranges of plain numbers.

    Parameters
    ----------
    low_QC, high_QC
        Ends: the 0.1 % and 99.9 % quantiles of the held-out galaxies, of ``correlation`` those of 0.3 % and 99.7 %.
    """

    low_QC: np.ndarray
    high_QC: np.ndarray

    def __post_init__(self) -> None:
        if self.low_QC.ndim != 2 or len(self.low_QC) > len(PLAIN_NUMBERS) or not (self.low_QC <= self.high_QC).all():
            raise ValueError(f"its ends are not up to {len(PLAIN_NUMBERS)} pairs a band, the lower end first")

    @classmethod
    def fit(cls, numbers_MQC: np.ndarray) -> "Ranges":
        """Return the ranges of held-out galaxies, at least one, whose numbers are finite.

        Too few do not reach the quantiles: their extremes lie too near to the median by a factor, for which that of a normal
        distribution is taken.
        """
        # Share of galaxies beyond the extremes of so few.
        extreme = NormalDist().inv_cdf(min(1 / (len(numbers_MQC) + 1), _LARGEST_TAIL))
        low_QC, high_QC = (np.empty(numbers_MQC.shape[1:]) for _ in range(2))
        for q, name in enumerate(PLAIN_NUMBERS[: numbers_MQC.shape[1]]):
            tail = _TAILS.get(name, _TAIL)
            factor = max(1.0, NormalDist().inv_cdf(tail) / extreme)
            level = tail if factor == 1 else 0.0
            low_C, middle_C, high_C = np.quantile(numbers_MQC[:, q].astype(np.float64), [level, 0.5, 1 - level], axis=0)
            low_QC[q], high_QC[q] = (middle_C + factor * (end_C - middle_C) for end_C in (low_C, high_C))
        return cls(low_QC=low_QC, high_QC=high_QC)

    def outside(self, numbers_NQC: np.ndarray) -> np.ndarray:
        """Return which numbers leave their range in any band, N x Q bool; one that is not finite does.

        A bundle of an earlier version has no ranges of the last ones.
        """
        numbers_NQC = numbers_NQC[:, : len(self.low_QC)]
        low_QC, high_QC = (end - sign * _ROUNDING * (1 + abs(end)) for end, sign in ((self.low_QC, 1), (self.high_QC, -1)))
        inside_NQC = (numbers_NQC >= low_QC) & (numbers_NQC <= high_QC)
        return np.logical_not(inside_NQC.all(axis=2))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"low": self.low_QC.tolist(), "high": self.high_QC.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, list[list[float]]]) -> "Ranges":
        """Rebuild from `to_dict`'s values."""
        return cls(low_QC=np.array(values["low"], np.float64), high_QC=np.array(values["high"], np.float64))
