"""Verdicts on what was measured of a model or a catalogue: holds, marginal or fails, by a rule, with a sentence for people."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.posterior.seeds import Verdict as Word

__all__ = ["Verdict", "coverage_verdict", "crop_verdict", "radius_target", "seed_verdict", "training_verdict"]

_CONSTANT = 0.02
_DEAD = 0.1
_CORRELATED, _UNCORRELATED = 0.8, 0.4
_AT_BOUND, _FEW = 0.5, 10
_UNMOVED = 0.01
_POINTS, _POINTS_IN_BIN = 0.02, 0.04
_ERRORS = 2.5
_OVERFIT = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One verdict."""

    verdict: Word
    """holds, marginal or fails."""
    text: str
    """Why, in a sentence without its full stop."""

    def to_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return dataclasses.asdict(self)


def radius_target(names: Sequence[str]) -> int | None:
    """Return the index of the first target with "radius" in its name, None if there is none."""
    return next((i for i, name in enumerate(names) if "radius" in name.lower()), None)


def crop_verdict(crop: CropStatistics) -> Verdict:
    """Return the verdict on a learned crop.

    fails: the scales between the 5 and 95 % quantiles differ by at most 2 % (a constant crop), or a tenth of the hidden units
    are dead, or the rank correlation with the effective radius is below 0.4. marginal: any unit is dead, half of the crops are
    at a bound, the correlation is below 0.8, or training left the crop at the measured radius times a constant: it is not
    learned. What is unknown is not judged.
    """
    dead, correlation = crop.dead_fraction or 0.0, crop.rank_correlation
    spread = f"{crop.scale_p05:.3g} to {crop.scale_p95:.3g} of the cutout's side for 90 % of galaxies"
    units = f"{dead:.0%} of the localisation network's hidden units are dead"
    if crop.num_galaxies > 1 and crop.scale_p95 <= (1 + _CONSTANT) * crop.scale_p05:
        return Verdict(verdict="fails", text=f"the crop is constant, {spread}" + (f"; {units}" if dead else ""))
    if dead >= _DEAD:
        return Verdict(verdict="fails", text=f"{units}; the crop is {spread}")
    rank = "" if correlation is None else f"; rank correlation with the effective radius {correlation:.2f}"
    text = f"the crop is {spread}{rank}"
    unmoved = crop.from_radius is not None and crop.from_radius < _UNMOVED
    if unmoved:
        text += "; it is the measured radius times a constant, which training left as it was"
    if correlation is not None and correlation < _UNCORRELATED:
        return Verdict(verdict="fails", text=text)
    if dead:
        return Verdict(verdict="marginal", text=f"{text}; {units}")
    if crop.num_galaxies >= _FEW and crop.at_bound > _AT_BOUND:
        return Verdict(verdict="marginal", text=f"{text}; {crop.at_bound:.0%} of the crops are at a bound")
    correlated = correlation is None or correlation >= _CORRELATED
    return Verdict(verdict="holds" if correlated and not unmoved else "marginal", text=text)


def coverage_verdict(rows: Iterable[Mapping[str, Any]], bins: Iterable[Mapping[str, Any]] = ()) -> Verdict:
    """Return the verdict on coverage probabilities.

    holds: each is within 2 points of nominal (4 in a bin), or within 2.5 of its standard errors, which chance explains;
    marginal: within twice that; fails: beyond.

    Parameters
    ----------
    rows
        ``target``, ``level``, ``coverage`` and ``error`` as in `gampen_ray.posterior.calibration.Coverage`; at least one.
    bins
        The same of bins of galaxies, with ``column``, ``low`` and ``high``.
    """
    judged = [(row, _POINTS) for row in rows] + [(row, _POINTS_IN_BIN) for row in bins]

    def excess(row: Mapping[str, Any], points: float) -> float:
        return abs(row["coverage"] - row["level"]) / max(points, _ERRORS * row["error"])

    row, points = max(judged, key=lambda item: excess(*item))
    worst = excess(row, points)
    where = f" where {row['column']} is {row['low']:.4g} to {row['high']:.4g}" if "column" in row else ""
    text = f"the {100 * row['level']:.4g} % region of {row['target']} holds {100 * row['coverage']:.1f} % of the truths{where}"
    text += "" if len(judged) == 1 else f", the largest deviation of {len(judged)}"
    return Verdict(verdict="holds" if worst <= 1 else "marginal" if worst <= 2 else "fails", text=text)


def seed_verdict(seeds: Mapping[str, Any]) -> Verdict:
    """Return the verdict of `gampen_ray.posterior.seeds.SeedAgreement.to_dict`, with its remedy where it does not hold."""
    remedy = "" if seeds["verdict"] == "holds" else f"; give {seeds['advice']}"
    return Verdict(verdict=seeds["verdict"], text=f"two seeds, {seeds['num_passes']} passes: {seeds['worst']}{remedy}")


def training_verdict(history: Sequence[Mapping[str, float | None]], num_targets: int) -> Verdict:
    """Return the verdict on a training's losses.

    A network that has learned nothing answers a Gaussian of unit variance for each standardised target: a validation loss of
    half the number of targets. fails: the least validation loss is no lower. marginal: it was reached in the first half of the
    epochs, and the last one is higher by 0.1 for each target (overfitting). holds: otherwise.
    """
    losses = [math.inf if row["val_loss"] is None else row["val_loss"] for row in history]
    best, prior = min(losses), num_targets / 2
    epoch = history[losses.index(best)]["epoch"]
    if not best < prior:
        return Verdict(
            verdict="fails",
            text=f"least validation loss {best:.3g}, and {prior:.3g} without any knowledge: nothing was learned",
        )
    text = f"least validation loss {best:.3g}, at epoch {epoch:g} of {history[-1]['epoch']:g}"
    if losses.index(best) < len(losses) / 2 and losses[-1] - best > _OVERFIT * num_targets:
        return Verdict(verdict="marginal", text=f"{text}, and {losses[-1]:.3g} at the last: overfitting")
    return Verdict(verdict="holds", text=text)
