"""What people read: fluxes of a report in nJy with AB magnitudes, and what the numbers of a column are."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gampen_ray.data.headers import unit_zero_point

if TYPE_CHECKING:
    from gampen_ray.reports.page import Example, ReportData

__all__ = ["magnitude_of", "shown"]

_LOGARITHMS = {
    "measured_noise": "ln σ",
    "measured_brightness": "ln flux",
    "measured_size": "ln radius / side",
    "measured_stray_light": "ln",
}
_IN_UNITS = ("bias", "bias_error", "scatter", "mean_absolute_error", "rmse")


def magnitude_of(flux: float | None, unit: str) -> float | None:
    """Return the AB magnitude of a flux; None where it is not positive, or its unit has no zero point."""
    zero_point = unit_zero_point(unit)
    return None if zero_point is None or flux is None or not flux > 0 else zero_point - 2.5 * math.log10(flux)


def shown(data: "ReportData") -> "ReportData":
    """Return a report's content with fluxes in nJy, where their zero point is known, and columns named with their units."""
    targets, factor_D = data.targets.shown()
    factors = dict(zip(targets.names, factor_D.tolist(), strict=True))
    units = {target.name: target.unit for target in targets}
    values = {name: getattr(data, name) * factor_D for name in ("truth_ND", "median_ND", "lo68_ND", "hi68_ND")}
    accuracy = {name: _times(row, factors[name]) | {"unit": units[name]} for name, row in data.accuracy.items()}
    diagnostics, columns = data.diagnostics, data.columns
    if diagnostics:
        bins = diagnostics["bins"]
        diagnostics = diagnostics | {"bins": bins | {"rows": _rows(bins["rows"], factors, units)}}
    if columns:
        columns = columns | {"rows": _rows(columns["rows"], factors, units)}
    examples = [_example(example, factors) for example in data.examples]
    changes: dict[str, Any] = {"accuracy": accuracy, "diagnostics": diagnostics, "columns": columns, "examples": examples}
    return dataclasses.replace(data, targets=targets, **values, **changes)


def _example(example: "Example", factors: Mapping[str, float]) -> "Example":
    return dataclasses.replace(
        example,
        curves={name: (y_G * factors[name], density_G / factors[name]) for name, (y_G, density_G) in example.curves.items()},
        truth={name: value * factors[name] for name, value in example.truth.items()},
        interval={name: (low * factors[name], high * factors[name]) for name, (low, high) in example.interval.items()},
    )


def _rows(rows: Iterable[Mapping[str, Any]], factors: Mapping[str, float], units: Mapping[str, str]) -> list[dict[str, Any]]:
    result = []
    for row in rows:
        name = row["column"]
        of_column = factors.get(name, 1.0)
        ends = {end: of_column * row[end] for end in ("low", "high") if end in row}
        what = units.get(name) or _LOGARITHMS.get(name)
        result.append(_times(row, factors.get(row["target"], 1.0)) | ends | {"column": f"{name} ({what})" if what else name})
    return result


def _times(row: Mapping[str, Any], factor: float) -> dict[str, Any]:
    # What a target's unit multiplies, of those that are there.
    return {name: factor * value if name in _IN_UNITS and value is not None else value for name, value in row.items()}
