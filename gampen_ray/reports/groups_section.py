"""The report's sections on coverage, bias and scatter by column, and on the sky.

Shape legend: B groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.colors
import numpy as np
from markupsafe import Markup
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from gampen_ray.inference.verdicts import group_text
from gampen_ray.posterior.bins import healpix
from gampen_ray.reports.axes import Axis, axes, figure, sky_axes, unwrapped, wrapped
from gampen_ray.reports.figures import number
from gampen_ray.reports.svg import ACCENT, MUTED, RULE, TRUTH, drawable, styled, to_svg

Row = Mapping[str, Any]
# Groups of a column in a figure and in its table; of more, those that deviate most are shown.
_DRAWN, _LISTED, _WORST = 5, 12, 6
_LABEL = 6
# Steps of a map's colours to either side.
_STEPS = 8


def errors_off(row: Row) -> float:
    """Return the larger deviation of a group, of its coverage or mean rank, in standard errors."""
    return max(abs(row["coverage"] - row["level"]) / row["error"], abs(row["mean_rank"] - 0.5) / row["mean_rank_error"])


def points(rows: Sequence[Row]) -> list[tuple[list[float], list[float]]]:
    """Return deviations of coverage and of mean rank with their errors, percentage points."""
    return [
        ([100 * (row["coverage"] - row["level"]) for row in rows], [100 * row["error"] for row in rows]),
        ([100 * (row["mean_rank"] - 0.5) for row in rows], [100 * row["mean_rank_error"] for row in rows]),
    ]


def extent_of(rows: Sequence[Row]) -> float:
    """Return a half-range for the deviations of some groups, percentage points."""
    return max([8.0, *(1.08 * (abs(y) + error) for part in points(rows) for y, error in zip(*part, strict=True))])


def columns_section(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the section from ``columns`` of an evaluation."""
    tables: dict[str, list[Row]] = {}
    for row in found["rows"]:
        tables.setdefault(row["column"], []).append(row)
    # One vertical range for all, so that panels can be compared.
    extent, pulls = extent_of(found["rows"]), _pull_extent(found["rows"])
    columns = []
    for i, (name, rows) in enumerate(tables.items()):
        panels = []
        for d, target in enumerate(dict.fromkeys(row["target"] for row in rows)):
            drawn = _most_deviating([row for row in rows if row["target"] == target], _DRAWN)
            plots = {"coverage": deviations(f"column{i}-{d}", drawn, extent), "bias": pull(f"pull{i}-{d}", drawn, pulls)}
            panels += [{"title": f"{target}: {what}", "plot": Markup(plot)} for what, plot in plots.items()]
        num_targets = len(panels) // 2
        columns.append(
            {
                "name": name,
                "of_truth": rows[0].get("of_truth", False),
                "panels": panels,
                "rows": [{**row, "group": group_text(row)} for row in _listed(rows, num_targets)],
                "num_groups": len(rows) // num_targets,
                "most": _LISTED,
            }
        )
    return {"columns": columns, "p": found["p"], "critical": found["critical"], "level": found["rows"][0]["level"]}


def sky_section(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the section from ``sky`` of an evaluation."""
    rows = found["rows"]
    off = {"coverage": lambda row: 100 * (row["coverage"] - row["level"]), "bias": lambda row: row["bias_sigma"]}
    extents = {name: float(np.percentile([abs(value(row)) for row in rows], 98)) or 1.0 for name, value in off.items()}
    maps = []
    for d, target in enumerate(dict.fromkeys(row["target"] for row in rows)):
        here = [row for row in rows if row["target"] == target]
        for name, value in off.items():
            text = {"coverage": "Coverage − nominal (pp)", "bias": "Bias (σ)"}[name]
            values = [value(row) for row in here]
            plot = sky_map(f"sky{d}-{name}", f"{text} of {target}", here, values, extents[name], found["nside"])
            maps.append({"target": target, "what": text, "plot": Markup(plot)})
    first = [row for row in rows if row["target"] == rows[0]["target"]]
    return {
        "maps": maps,
        "extents": extents,
        "nside": found["nside"],
        "num_pixels": len(first),
        "median": int(np.median([row["num_galaxies"] for row in first])),
        "worst": sorted(rows, key=lambda row: -errors_off(row))[:_WORST],
        "p": found["p"],
        "critical": found["critical"],
    }


def _most_deviating(rows: Sequence[Row], count: int) -> list[Row]:
    """Return the groups that deviate most, in their order."""
    kept = sorted(range(len(rows)), key=lambda i: -errors_off(rows[i]))[:count]
    return [rows[i] for i in sorted(kept)]


def _listed(rows: Sequence[Row], num_targets: int) -> list[Row]:
    """Return the rows of the groups that deviate most, one target after another."""
    groups = [rows[start : start + num_targets] for start in range(0, len(rows), num_targets)]
    kept = sorted(range(len(groups)), key=lambda i: -max(map(errors_off, groups[i])))[:_LISTED]
    return [groups[i][d] for d in range(num_targets) for i in sorted(kept)]


def _pull_extent(rows: Sequence[Row]) -> float:
    return max(2.0, *(1.08 * (abs(row["bias_sigma"]) + row["scatter_sigma"]) for row in rows))


def _tick(row: Row) -> str:
    """Return a short name of a group."""
    if "value" not in row:
        return number(0.5 * (row["low"] + row["high"]))
    # Names of tiles often differ at the end alone.
    text = drawable(row["value"])
    return text if len(text) <= _LABEL else "…" + text[1 - _LABEL :]


@styled
def deviations(key: str, rows: Sequence[Row], extent: float) -> str:
    """Return coverage minus nominal and mean rank minus 50 % of one target in the groups of one column, with standard errors.

    Parameters
    ----------
    rows
        Groups in order, from `gampen_ray.posterior.bins.in_bins`.
    extent
        Half-range of the vertical axis, percentage points.
    """
    fig = figure(280, 230)
    ax = axes(fig, left=50)
    ax.axhspan(-4, 4, color=ACCENT, alpha=0.1, linewidth=0, zorder=0)
    ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    both = points(rows)
    for (deviation, error), shift, color in zip(both, (-0.13, 0.13), (ACCENT, TRUTH), strict=True):
        places = [i + shift for i in range(len(rows))]
        style = {"color": color, "markersize": 6, "markeredgewidth": 0, "elinewidth": 1.4, "zorder": 3}
        ax.errorbar(places, deviation, yerr=error, fmt="o", **style)
    _on_groups(ax, rows)
    Axis(low=-extent, high=extent).on_y(ax, "Measured − nominal (pp)")
    said = (", ".join(map(number, deviation)) for deviation, _ in both)
    alt = "{} in bins of {}: coverage minus nominal {}; mean rank minus 50 % {} points"
    return to_svg(fig, key, alt.format(rows[0]["target"], rows[0]["column"], *said))


@styled
def pull(key: str, rows: Sequence[Row], extent: float) -> str:
    """Return bias (points) and scatter (bars) of one target in the groups of one column, in posterior standard deviations."""
    fig = figure(280, 230)
    ax = axes(fig, left=50)
    for y in (-1, 0, 1):
        ax.axhline(y, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    bias, scatter = [row["bias_sigma"] for row in rows], [row["scatter_sigma"] for row in rows]
    style = {"color": ACCENT, "markersize": 6, "markeredgewidth": 0, "elinewidth": 1.4, "zorder": 3}
    ax.errorbar(range(len(rows)), bias, yerr=scatter, fmt="o", **style)
    _on_groups(ax, rows)
    Axis(low=-extent, high=extent).on_y(ax, "Predicted − true (σ)")
    alt = "{} in bins of {}: bias {} and scatter {} posterior standard deviations"
    said = (", ".join(map(number, values)) for values in (bias, scatter))
    return to_svg(fig, key, alt.format(rows[0]["target"], rows[0]["column"], *said))


def _on_groups(ax: Any, rows: Sequence[Row]) -> None:
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_xticks(range(len(rows)), [_tick(row) for row in rows])
    ax.grid(visible=False, axis="x")
    ax.set_xlabel(drawable(rows[0]["column"]))


@styled
def sky_map(key: str, name: str, rows: Sequence[Row], values: Sequence[float], extent: float, nside: int) -> str:
    """Return HEALPix pixels coloured by a value: one colour above zero, another below, full at ``extent``.

    Right ascension grows to the left; it is shrunk by the cosine of the middle declination.

    Parameters
    ----------
    name
        Of the value, for the alternative text.
    rows
        One for each pixel, with ``pixel``, ``ra`` and ``dec`` of its centre, degrees.
    values
        One for each pixel.
    extent
        Value of full colour.
    nside
        Of the nested pixels.
    """
    ra_B = np.array([row["ra"] for row in rows])
    corner_B42 = _corners(np.array([row["pixel"] for row in rows]), nside)
    x_B4 = unwrapped(ra_B)[:, None] + wrapped(corner_B42[..., 0] - ra_B[:, None])
    y_B4 = corner_B42[..., 1]
    step_B = np.clip(np.round(_STEPS * np.asarray(values) / extent), -_STEPS, _STEPS).astype(int)
    fig, ax = sky_axes(x_B4, y_B4)
    for step in np.unique(step_B):
        outlines = [Path([*corners, corners[0]], closed=True) for corners in np.stack([x_B4, y_B4], -1)[step_B == step]]
        color = (*matplotlib.colors.to_rgb(ACCENT if step > 0 else TRUTH), abs(step) / _STEPS)
        ax.add_patch(PathPatch(Path.make_compound_path(*outlines), facecolor=color, edgecolor=RULE, linewidth=0.4))
    low, high = int(np.argmin(values)), int(np.argmax(values))
    at = (f"{number(values[i])} at RA {number(rows[i]['ra'])}, Dec {number(rows[i]['dec'])}" for i in (low, high))
    return to_svg(fig, key, f"{name} in {len(rows)} pixels of the sky: from {' to '.join(at)}")


def _corners(pixel_B: np.ndarray, nside: int) -> np.ndarray:
    lon, lat = healpix(nside).boundaries_lonlat(pixel_B, step=1)
    return np.stack([lon.deg, lat.deg], axis=-1)
