"""Coverage, bias and scatter of posteriors in groups of galaxies: bins of a column, its values, or pixels of the sky.

Shape legend: N galaxies, D targets, B groups, R repetitions.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri

from gampen_ray.posterior.ranks import SIGNIFICANCE
from gampen_ray.posterior.summary import LEVELS

__all__ = ["LEVEL", "Groups", "bins", "healpix", "in_bins", "pixels"]

LEVEL = next(iter(LEVELS.values()))
"""Level of the intervals whose coverage is judged locally."""
_FEWEST, _MOST_VALUES = 25, 200
_REPETITIONS = 4_000
# Galaxies of a pixel in the median, and as many pixels as a map can show; 4 arcmin are the smallest.
_IN_PIXEL, _MOST_PIXELS, _FINEST = 100, 1_000, 10


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Groups:
    """Galaxies grouped by one column.

    Parameters
    ----------
    column
        Its name.
    group_N
        Group of each galaxy; -1: none.
    labels
        What each group is, in order: ``low`` and ``high`` of a bin, a ``value``, or ``pixel``, ``ra`` and ``dec``.
    """

    column: str
    group_N: np.ndarray
    labels: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, column: str, key_N: np.ndarray, keys: np.ndarray, labels: Sequence[Mapping[str, Any]]) -> "Groups":
        """Return the galaxies with each of some sorted keys."""
        place_N = np.searchsorted(keys, key_N).clip(max=max(len(keys) - 1, 0))
        found_N = keys[place_N] == key_N if len(keys) else np.zeros(len(key_N), bool)
        return cls(column=column, group_N=np.where(found_N, place_N, -1).astype(np.int32), labels=labels)

    def members(self) -> list[np.ndarray]:
        """Return the indices of the galaxies of each group."""
        order = np.argsort(self.group_N, kind="stable")
        ends = np.searchsorted(self.group_N[order], np.arange(len(self.labels) + 1))
        return [order[start:stop] for start, stop in itertools.pairwise(ends)]


def bins(columns: Mapping[str, np.ndarray], num_bins: int = 5) -> list[Groups]:
    """Return the groups of each column; a column without any is left out.

    Numbers are binned, equally many galaxies each; values that are not finite are left out; bins have 25 galaxies or more, and
    a column at least one bin if it has a value. Texts are grouped by value: those of 25 galaxies or more, the 200 most
    frequent; an empty text is no value.
    """
    found = (
        _by_value(name, value_N) if value_N.dtype.kind in "OU" else _by_number(name, value_N, num_bins)
        for name, value_N in columns.items()
    )
    return [groups for groups in found if groups.labels]


def _by_number(name: str, value_N: np.ndarray, num_bins: int) -> Groups:
    order = np.argsort(value_N, kind="stable")
    order = order[np.isfinite(value_N[order])]
    parts = np.array_split(order, int(np.clip(len(order) // _FEWEST, 1, num_bins)))
    group_N, labels = np.full(len(value_N), -1, np.int32), []
    for part in (part for part in parts if part.size):
        group_N[part] = len(labels)
        labels.append({"low": float(value_N[part[0]]), "high": float(value_N[part[-1]])})
    return Groups(column=name, group_N=group_N, labels=labels)


def _by_value(name: str, text_N: np.ndarray) -> Groups:
    text_N = text_N.astype(str)
    values, counts = np.unique(text_N, return_counts=True)
    usable = np.flatnonzero((counts >= _FEWEST) & (values != ""))
    kept = np.sort(usable[np.argsort(-counts[usable], kind="stable")[:_MOST_VALUES]])
    return Groups.of(name, text_N, values[kept], [{"value": str(value)} for value in values[kept]])


def pixels(ra_N: np.ndarray, dec_N: np.ndarray) -> tuple[int, Groups] | None:
    """Return HEALPix pixels (nested; Gorski et al. 2005, ApJ 622, 759) as groups, with their nside.

    The smallest that have 100 galaxies in the median, are 1,000 at most, and no smaller than 3.4 arcmin; pixels with fewer
    than 25 galaxies are left out.

    Parameters
    ----------
    ra_N, dec_N
        Positions, degrees; a galaxy without one is in no pixel.

    Returns
    -------
    tuple or None
        None: the galaxies with a position fill no two pixels.
    """
    # Slow to import, and not needed by inference workers.
    import astropy.units as u

    known_N = np.isfinite(ra_N) & np.isfinite(dec_N)
    fine_N = np.full(len(ra_N), -1, np.int64)
    fine_N[known_N] = healpix(2**_FINEST).lonlat_to_healpix(ra_N[known_N] * u.deg, dec_N[known_N] * u.deg)
    for order in range(_FINEST, -1, -1):
        # A pixel holds the four of the next finer order with its number times 4 plus 0 to 3.
        pixel_N = fine_N >> 2 * (_FINEST - order)
        values, counts = np.unique(pixel_N[known_N], return_counts=True)
        if len(values) > _MOST_PIXELS or not len(values) or np.median(counts) < _IN_PIXEL:
            continue
        values = values[counts >= _FEWEST]
        if len(values) < 2:
            return None
        ra_B, dec_B = healpix(2**order).healpix_to_lonlat(values)
        centres = zip(values.tolist(), ra_B.deg.tolist(), dec_B.deg.tolist(), strict=True)
        labels = [{"pixel": value, "ra": ra, "dec": dec} for value, ra, dec in centres]
        return 2**order, Groups.of("pixel", pixel_N, values, labels)
    return None


def healpix(nside: int) -> Any:
    """Return the nested pixels of the sphere."""
    from astropy_healpix import HEALPix

    return HEALPix(nside, order="nested")


def in_bins(
    names: tuple[str, ...],
    rank_ND: np.ndarray,
    groups: Sequence[Groups],
    *,
    errors: Mapping[str, np.ndarray] | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Return coverage, bias and scatter of each target in groups of galaxies, and the test of the largest deviation.

    A group's deviations are those of its coverage and of its mean rank, over their standard errors. Of all groups and targets,
    the largest is compared with its distribution for calibrated posteriors: adversarial group calibration (Zhao, Ma & Ermon
    2020, ICML, arXiv 2006.10288) over named groups. For so many galaxies a group, the deviations are normal (coverage and mean
    rank are uncorrelated, as one is even and the other odd about rank 1/2), and those of groups of two columns that share m
    galaxies have the correlation m / sqrt(n1 n2); targets are taken as independent, which errs on the safe side (the Gaussian
    correlation inequality: Royen 2014, Far East J. Theor. Stat. 48, 139).

    Parameters
    ----------
    names
        Targets.
    rank_ND
        Ranks of the truths.
    groups
        Of `bins` or `pixels`.
    errors
        Predicted minus true values, N x D by a suffix of their names in the rows: ``bias`` is their median, with its
        ``bias_error``, and ``scatter`` half of their central 68.27 %.
    scores
        Values N x D by name whose means are added to the rows, NaN where unknown.

    Returns
    -------
    dict
        ``rows``: ``column``, the group's label (`Groups`), ``num_galaxies``, ``target``, ``level``, ``coverage`` of the
        equal-tailed interval and its binomial ``error``, ``mean_rank`` and its ``mean_rank_error``, what comes of ``errors``,
        and the ``scores``. ``p``: of the largest deviation; ``critical``: the number of errors that it exceeds with probability
        `SIGNIFICANCE`. Without any group, ``p`` is 1 and ``critical`` 0.
    """
    rows = [row for group in groups for row in _rows(names, rank_ND, group, errors or {}, scores or {})]
    if not rows:
        return {"rows": [], "p": 1.0, "critical": 0.0}
    null_R = _largest_deviations(groups, 2 * len(names))
    largest = max(
        max(abs(row["coverage"] - LEVEL) / row["error"], abs(row["mean_rank"] - 0.5) / row["mean_rank_error"]) for row in rows
    )
    p = (1 + int((null_R >= largest).sum())) / (1 + len(null_R))
    return {"rows": rows, "p": float(p), "critical": float(np.quantile(null_R, 1 - SIGNIFICANCE))}


def _rows(
    names: tuple[str, ...],
    rank_ND: np.ndarray,
    groups: Groups,
    errors: Mapping[str, np.ndarray],
    scores: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    rows = []
    for label, members in zip(groups.labels, groups.members(), strict=True):
        count = len(members)
        rank_MD = rank_ND[members]
        coverage_D, mean_rank_D = (np.abs(2 * rank_MD - 1) <= LEVEL).mean(axis=0), rank_MD.mean(axis=0)
        quantiles = {suffix: np.quantile(error_ND[members], _CENTRAL, axis=0) for suffix, error_ND in errors.items()}
        for d, name in enumerate(names):
            row = {
                "column": groups.column,
                **label,
                "num_galaxies": count,
                "target": name,
                "level": LEVEL,
                "coverage": float(coverage_D[d]),
                "error": math.sqrt(LEVEL * (1 - LEVEL) / count),
                "mean_rank": float(mean_rank_D[d]),
                "mean_rank_error": math.sqrt(1 / 12 / count),
            }
            for suffix, quantile_3D in quantiles.items():
                low, middle, high = quantile_3D[:, d].tolist()
                scatter = 0.5 * (high - low)
                # The standard error of the median of normal errors.
                row |= {f"bias{suffix}": middle, f"bias{suffix}_error": math.sqrt(math.pi / 2 / count) * scatter}
                row[f"scatter{suffix}"] = scatter
            known = {key: value_ND[members, d] for key, value_ND in scores.items()}
            row |= {key: float(np.nanmean(value)) for key, value in known.items() if np.isfinite(value).any()}
            rows.append(row)
    return rows


_CENTRAL = (0.5 * (1 - LEVEL), 0.5, 0.5 * (1 + LEVEL))


def _largest_deviations(groups: Sequence[Groups], copies: int) -> np.ndarray:
    """Return the largest absolute value of independent copies of normal variables correlated like the groups, R."""
    generator = np.random.default_rng(0)
    if len(groups) == 1:
        # No two groups share a galaxy: the largest of so many independent variables.
        return -ndtri(-0.5 * np.expm1(np.log(generator.random(_REPETITIONS)) / (copies * len(groups[0].labels))))
    root_BB = _root(groups)
    largest_R = np.zeros(_REPETITIONS)
    for _ in range(copies):
        deviation_BR = root_BB @ generator.standard_normal((len(root_BB), _REPETITIONS))
        largest_R = np.maximum(largest_R, np.abs(deviation_BR).max(axis=0))
    return largest_R


def _root(groups: Sequence[Groups]) -> np.ndarray:
    """Return a root of the correlation matrix of the groups of all columns, B x B."""
    # Of two columns: galaxies that a group of one and a group of the other share.
    shared = [[_shared(one, other) for other in groups] for one in groups]
    count_BB = np.block(shared)
    size_B = np.diag(count_BB)
    variance_B, axis_BB = np.linalg.eigh(count_BB / np.sqrt(np.outer(size_B, size_B)))
    return axis_BB * np.sqrt(np.maximum(variance_B, 0))


def _shared(one: Groups, other: Groups) -> np.ndarray:
    shape = len(one.labels), len(other.labels)
    both_N = (one.group_N >= 0) & (other.group_N >= 0)
    # In int64: the product of two numbers of groups may exceed int32.
    cell_M = one.group_N[both_N].astype(np.int64) * shape[1] + other.group_N[both_N]
    return np.bincount(cell_M, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
