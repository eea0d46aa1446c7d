"""Verdicts on what was measured of a model or a catalogue: holds, marginal or fails, by a rule, with a sentence for people."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.posterior.ranks import SIGNIFICANCE
from gampen_ray.posterior.seeds import Verdict as Word

__all__ = [
    "Verdict",
    "bin_verdict",
    "coverage_verdict",
    "crop_verdict",
    "group_text",
    "local_verdict",
    "radius_target",
    "rank_verdict",
    "score_verdict",
    "seed_verdict",
    "training_verdict",
]

_CONSTANT = 0.02
_DEAD = 0.1
_CORRELATED, _UNCORRELATED = 0.8, 0.4
_AT_BOUND, _FEW = 0.5, 10
_UNMOVED = 0.01
_POINTS, _POINTS_IN_BIN = 0.02, 0.04
_ERRORS = 2.5
_SCORE, _EFFECT = 0.05, 0.1
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


def coverage_verdict(rows: Iterable[Mapping[str, Any]]) -> Verdict:
    """Return the verdict on coverage probabilities.

    holds: each is within 2 points of nominal, or within 2.5 of its standard errors, which chance explains; marginal: within
    twice that; fails: beyond.

    Parameters
    ----------
    rows
        ``target``, ``level``, ``coverage`` and ``error`` as in `gampen_ray.posterior.calibration.Coverage`; at least one.
    """
    found = []
    for row in rows:
        excess = abs(row["coverage"] - row["level"]) / max(_POINTS, _ERRORS * row["error"])
        region = f"the {100 * row['level']:.4g} % region of {row['target']}"
        found.append((excess, f"{region} holds {_percent(row['coverage'])} of the truths"))
    return _worst(found)


def rank_verdict(
    tests: Mapping[str, Mapping[str, Any]], text: str = "{share} of the truths rank below {level} in {name}"
) -> Verdict:
    """Return the verdict on ranks of the truths, by name, as `gampen_ray.posterior.ranks.Uniformity.to_dict` has them.

    holds: each distribution function is within 2 points of the uniform one at all levels, or within its band, which chance
    explains; marginal: within twice that; fails: beyond.
    """
    found = []
    for name, test in tests.items():
        excesses = [
            max(share / max(_POINTS, high), share / min(-_POINTS, low))
            for share, low, high in zip(test["share"], test["low"], test["high"], strict=True)
        ]
        worst = max(excesses)
        i = excesses.index(worst)
        level = test["level"][i]
        said = text.format(share=_percent(level + test["share"][i]), level=f"{100 * level:.0f} %", name=name)
        found.append((worst, f"{said} (p {_p(test['p'])})"))
    return _worst(found)


def score_verdict(rows: Iterable[Mapping[str, Any]], num_targets: int) -> Verdict:
    """Return the verdict on scores, as `gampen_ray.posterior.diagnostics.diagnose` has them, beside their expectations.

    holds: each is within 5 % of what it would be for calibrated posteriors (the logarithmic score within 0.05 a target), or
    within 2.5 standard errors; marginal: within twice that; fails: beyond.
    """
    found = []
    for row in rows:
        unit = num_targets if row["score"] == "log" else row["expected"]
        excess = abs(row["value"] - row["expected"]) / max(_SCORE * unit, _ERRORS * row["error"])
        text = f"the {row['score']} score of {row['target']} is {row['value']:.4g}, {row['expected']:.4g} if calibrated"
        found.append((excess, text))
    return _worst(found)


def bin_verdict(bins: Mapping[str, Any]) -> Verdict:
    """Return the verdict on `gampen_ray.posterior.bins.in_bins`.

    holds: in each bin, coverage and mean rank are within 4 points of nominal, or within the number of standard errors that
    the largest deviation of all these bins exceeds by chance with a probability of 1 %; marginal: within twice that; fails:
    beyond. Bins of a true value (``of_truth``) are not judged.
    """
    found = []
    for row in (row for row in bins["rows"] if not row.get("of_truth")):
        where = f"of {row['target']} where {row['column']} is {group_text(row)}"
        limits = (max(_POINTS_IN_BIN, bins["critical"] * row[name]) for name in ("error", "mean_rank_error"))
        off = (abs(row["coverage"] - row["level"]), abs(row["mean_rank"] - 0.5))
        texts = (
            f"the {100 * row['level']:.4g} % interval {where} holds {_percent(row['coverage'])} of the truths",
            f"truths {where} rank at {_percent(row['mean_rank'])} on average",
        )
        found += [(deviation / limit, text) for deviation, limit, text in zip(off, limits, texts, strict=True)]
    return _worst(found)


def group_text(row: Mapping[str, Any]) -> str:
    """Return what the group of a row of `gampen_ray.posterior.bins.in_bins` is."""
    if "pixel" in row:
        return f"{row['pixel']} (RA {row['ra']:.4g}, Dec {row['dec']:.4g} deg)"
    return row["value"] if "value" in row else f"{row['low']:.4g} to {row['high']:.4g}"


def local_verdict(local: Mapping[str, Any]) -> Verdict:
    """Return the verdict on `gampen_ray.posterior.local.local_coverage`.

    holds: every effect is at most 0.1 (a bias of 0.1 sigma, or widths wrong by 8 %), or p is 0.01 or more; marginal: at most
    0.2; fails: beyond.
    """
    name = max(local["effects"], key=lambda key: local["effects"][key])
    effect = local["effects"][name]
    text = f"{name} varies with the features by {effect:.2g} (p {_p(local['p'])}), most of all {local['statistic']} with "
    return _worst([(effect / _EFFECT if local["p"] < SIGNIFICANCE else 0.0, f"{text}{local['term']}")])


def seed_verdict(seeds: Mapping[str, Any]) -> Verdict:
    """Return the verdict of `gampen_ray.posterior.seeds.SeedAgreement.to_dict`, with its remedy where it does not hold."""
    remedy = "" if seeds["verdict"] == "holds" else f"; give {seeds['advice']}"
    return Verdict(verdict=seeds["verdict"], text=f"two seeds, {seeds['num_passes']} passes: {seeds['worst']}{remedy}")


def training_verdict(history: Sequence[Mapping[str, float | None]], num_targets: int) -> Verdict:
    """Return the verdict on a training's losses.

    A network that has learned nothing answers a Gaussian of unit variance for each standardised target: a validation loss of
    half the number of targets. fails: the least validation loss is no lower. marginal: it was reached in epoch 0, on numbers
    alone, which the epochs on images did not improve; or in the first half of the epochs, and the last one is higher by 0.1
    for each target (overfitting). holds: otherwise.
    """
    losses = [math.inf if row["val_loss"] is None else row["val_loss"] for row in history]
    best, prior = min(losses), num_targets / 2
    epoch = history[losses.index(best)]["epoch"]
    if not best < prior:
        return Verdict(
            verdict="fails",
            text=f"least validation loss {best:.3g}, and {prior:.3g} without any knowledge: nothing was learned",
        )
    last = history[-1]["epoch"] or 0
    text = f"least validation loss {best:.3g}, " + (f"at epoch {epoch:g} of {last:g}" if epoch else "on numbers alone")
    if last and not epoch:
        epochs = "1 epoch" if last == 1 else f"{last:g} epochs"
        return Verdict(verdict="marginal", text=f"{text}: {epochs} on images did not improve it, {losses[-1]:.3g} at the last")
    if losses.index(best) < len(losses) / 2 and losses[-1] - best > _OVERFIT * num_targets:
        return Verdict(verdict="marginal", text=f"{text}, and {losses[-1]:.3g} at the last: overfitting")
    return Verdict(verdict="holds", text=text)


def _worst(found: Sequence[tuple[float, str]]) -> Verdict:
    """Return the verdict on deviations over their limits, with the text of the largest."""
    excess, text = max(found, key=lambda item: item[0])
    text += "" if len(found) == 1 else f", the largest deviation of {len(found)}"
    return Verdict(verdict="holds" if excess <= 1 else "marginal" if excess <= 2 else "fails", text=text)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
