"""How far posteriors depend on the seed of their dropout masks, and what to do about it.

Shape legend: N galaxies, K passes, D targets.
"""

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.summary import LEVELS
from gampen_ray.posterior.threads import Mapped, one_by_one

Verdict = Literal["holds", "marginal", "fails"]
SHARE = 0.99
"""Share of galaxies that the second limit of each figure is for; the first is for half of them."""
LIMITS = {"std": (0.03, 0.10), "width_95": (0.03, 0.10), "mean": (0.05, 0.05)}
"""Largest difference between two seeds, of the median galaxy and of `SHARE` of the galaxies, by figure."""
_WORDS = {"std": "standard deviation", "width_95": "95 % width", "mean": "mean"}
_MARGINAL = 2.0
_WORTH_MORE_PASSES = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """How far one figure of a target's posteriors differs between two seeds."""

    target: str
    """Target."""
    figure: str
    """std: standard deviation, as a share of it; width_95: width of the 95.45 % interval, as a share of it; mean: mean, in
    standard deviations."""
    median: float
    """Of the median galaxy."""
    largest: float
    """At most so much for `SHARE` of the galaxies."""

    @property
    def excess(self) -> float:
        """Largest ratio to a limit of `LIMITS`."""
        return max(value / limit for value, limit in zip((self.median, self.largest), LIMITS[self.figure], strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedAgreement:
    """How well the posteriors of one network with two seeds agree."""

    num_galaxies: int
    """Galaxies compared."""
    num_passes: int
    """Passes K of each seed."""
    differences: tuple[Difference, ...]
    """Of each figure of each target."""

    @property
    def worst(self) -> Difference:
        """The difference farthest above its limit, or least below."""
        return max(self.differences, key=lambda row: row.excess)

    @property
    def verdict(self) -> Verdict:
        """holds: all differences are within `LIMITS`; marginal: within twice them; fails: beyond."""
        excess = self.worst.excess
        return "holds" if excess <= 1 else "marginal" if excess <= _MARGINAL else "fails"

    @property
    def passes_needed(self) -> int:
        """Passes with which the worst difference would meet its limit: differences fall as 1 / sqrt(K); a multiple of K."""
        return self.num_passes * max(1, math.ceil(self.worst.excess**2))

    def advice(self, rate: float) -> str:
        """Return what brings two seeds to agree, for masks that drop a unit with probability ``rate``.

        With fewer than 1 / rate passes some units are never dropped, and which is chance: a higher rate helps. With more, a
        lower rate helps, as the passes then differ less.
        """
        rarely = self.num_passes > 1 and self.num_passes * rate < 1
        other = f"a dropout rate of at least {1 / self.num_passes:.2g}" if rarely else f"a dropout rate below {rate:.2g}"
        more = f"{self.passes_needed:,} passes"
        return f"{other}, or {more}" if self.passes_needed > _WORTH_MORE_PASSES * self.num_passes else f"{more}, or {other}"

    def to_dict(self, rate: float) -> dict[str, Any]:
        """Return the fields, ``verdict``, ``passes_needed``, ``worst`` (`text`) and `advice` as plain values for JSON."""
        return {
            **dataclasses.asdict(self),
            "differences": [dataclasses.asdict(row) for row in self.differences],
            "verdict": self.verdict,
            "passes_needed": self.passes_needed,
            "worst": self.text(),
            "advice": self.advice(rate),
        }

    def text(self) -> str:
        """Return the worst difference in words."""
        row = self.worst
        unit, factor = ("sigma", 1) if row.figure == "mean" else ("%", 100)
        return (
            f"{_WORDS[row.figure]} of {row.target} differs by {factor * row.median:.2g} {unit} for the median galaxy and by "
            f"up to {factor * row.largest:.2g} {unit} for {100 * SHARE:g} % of galaxies"
        )


def seed_agreement(first: Mixture, second: Mixture, mapped: Mapped = one_by_one) -> SeedAgreement:
    """Compare the posteriors of the same galaxies with two seeds.

    Parameters
    ----------
    first, second
        Posteriors of N galaxies, at least one, from masks of different seeds, with equally many passes.
    mapped
        Shares the two among processes that have both.

    Raises
    ------
    ValueError
        If they differ in shape.
    """
    if first.mean_NKD.shape != second.mean_NKD.shape or len(first) == 0:
        raise ValueError(f"mixtures of shapes {tuple(first.mean_NKD.shape)} and {tuple(second.mean_NKD.shape)}, N x K x D")
    (mean_ND, std_ND, width_ND), (other_mean_ND, other_std_ND, other_width_ND) = mapped(_figures, (first, second))
    sigma_ND = np.sqrt((std_ND**2 + other_std_ND**2) / 2)
    differences_ND = {
        "std": np.abs(std_ND - other_std_ND) / ((std_ND + other_std_ND) / 2),
        "width_95": np.abs(width_ND - other_width_ND) / ((width_ND + other_width_ND) / 2),
        "mean": np.abs(mean_ND - other_mean_ND) / sigma_ND,
    }
    return SeedAgreement(
        num_galaxies=len(first),
        num_passes=first.num_passes,
        differences=tuple(
            Difference(
                target=name,
                figure=figure,
                median=float(np.median(values_ND[:, d])),
                largest=float(np.quantile(values_ND[:, d], SHARE)),
            )
            for figure, values_ND in differences_ND.items()
            for d, name in enumerate(first.targets.names)
        ),
    )


def _figures(mixture: Mixture) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return means, standard deviations and 95 % widths, each N x D."""
    return mixture.mean(), mixture.std(), np.ptp(mixture.credible_interval(LEVELS["95"]), axis=1)
