"""The report's section on diagnostics: ranks, coverage at all levels, TARP, the worst bins, scores and local effects.

Shape legend: G levels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from gampen_ray.reports.axes import Axis, axes, figure
from gampen_ray.reports.figures import number
from gampen_ray.reports.groups_section import deviations, errors_off, extent_of
from gampen_ray.reports.svg import ACCENT, MUTED, styled, to_svg

_TARP = "tarp"


def diagnostics_section(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the section from what ``diagnostics`` of an evaluation."""
    ranks, bins = found["ranks"], found["bins"]["rows"]
    targets = [name for name in ranks if name != _TARP]
    # One vertical range for all, so that panels can be compared.
    extent = extent_of(bins)
    return {
        "num_drawn": found["num_drawn"],
        "ranks": [_panel(f"rank{i}", name, ranks[name], "Share of truths − rank") for i, name in enumerate(targets)],
        "tarp": _panel(_TARP, "", ranks[_TARP], "Share of truths − level"),
        "curves": [
            _panel(f"level{i}", name, curve, "Empirical − nominal", "ribbon_low", "ribbon_high")
            for i, (name, curve) in enumerate(found["curves"].items())
        ],
        "bins": [
            {"column": rows[0]["column"], "target": name, "plot": Markup(deviations(f"bin{i}", rows, extent))}
            for i, (name, rows) in enumerate(_worst_columns(bins).items())
        ],
        "worst": sorted(bins, key=lambda row: -errors_off(row))[:6],
        "critical": found["bins"]["critical"],
        "p_bins": found["bins"]["p"],
        "scores": found["scores"],
        "local": found["local"],
    }


def _panel(key: str, name: str, curve: Mapping[str, Any], label: str, low: str = "low", high: str = "high") -> dict[str, Any]:
    drawn = {"level": curve["level"], "share": curve["share"], "low": curve[low], "high": curve[high]}
    return {"name": name, "p": curve["p"], "plot": Markup(difference_curve(key, name or "TARP", drawn, label))}


def _worst_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return by target the bins of the column with its worst bin."""
    result = {}
    for name in dict.fromkeys(row["target"] for row in rows):
        of_target = [row for row in rows if row["target"] == name]
        column = max(of_target, key=errors_off)["column"]
        result[name] = [row for row in of_target if row["column"] == column]
    return result


@styled
def difference_curve(key: str, name: str, curve: Mapping[str, Any], label: str) -> str:
    """Return a distribution function minus the uniform one, in percentage points, with its band.

    Parameters
    ----------
    curve
        ``level``, G, and ``share``, ``low`` and ``high`` as differences from it.
    label
        Label of the vertical axis, without its unit.
    """
    level = [100 * value for value in (0, *curve["level"], 1)]
    share, low, high = ([100 * value for value in (0, *curve[part], 0)] for part in ("share", "low", "high"))
    axis = Axis.of(np.array([*share, *low, *high, -2, 2]), pad=0.06)
    fig = figure(280, 230)
    ax = axes(fig, left=50)
    ax.fill_between(level, low, high, color=ACCENT, alpha=0.15, linewidth=0, zorder=0)
    ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    ax.plot(level, share, color=ACCENT, linewidth=1.6, zorder=3)
    Axis(low=0, high=100).on_x(ax, "Level (%)")
    axis.on_y(ax, f"{label} (pp)")
    worst = max(range(len(level)), key=lambda i: abs(share[i]))
    alt = f"{label} of {name}: at most {number(abs(share[worst]))} points, at level {number(level[worst])} %"
    return to_svg(fig, key, alt)
