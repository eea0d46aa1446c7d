"""Targets of a catalogue's rows: numbers, in physical units, within their domain.

Columns may encode a target as GaMPEN's labels do (`gampen_ray.data.gampen_labels`).
"""

import math
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray.config import CutoutsConfig
from gampen_ray.data import catalogs
from gampen_ray.data.cutouts import sentinels
from gampen_ray.data.gampen_labels import Label, magnitude
from gampen_ray.data.headers import unit_zero_point
from gampen_ray.errors import UserError

__all__ = ["add_reasons", "convert_targets", "wanted_columns"]

_MAGNITUDE = "magnitude"


def wanted_columns(targets: tuple[str, ...]) -> list[str]:
    """Return the columns that a catalogue needs for some targets: a magnitude can be derived from a flux."""
    has_flux = "flux" in (Label.parse(name).target for name in targets)
    return [name for name in targets if not (has_flux and name == _MAGNITUDE)]


def convert_targets(
    config: CutoutsConfig, table: pa.Table, columns: dict[str, Any], reasons: np.ndarray, zero_point_mag: float | None
) -> dict[str, str]:
    """Convert target columns to numbers, and add the physical targets of GaMPEN's labels and the magnitude of a flux.

    Parameters
    ----------
    config
        With the names of the targets.
    table
        The catalogue.
    columns
        Its columns by name; changed in place. A magnitude is NaN where it is undefined.
    reasons
        Why each row cannot be used; changed in place.
    zero_point_mag
        AB magnitude of one unit of flux; None: unknown.

    Returns
    -------
    dict
        Units of the targets by name.

    Raises
    ------
    UserError
        If a target is given twice, or a magnitude cannot be derived.
    """
    target_units = {}
    derives = _MAGNITUDE not in columns
    for name in config.targets:
        if name not in columns:
            if zero_point_mag is None:
                raise UserError(f"targets: {name} is no column, and no zero point gives it; set reader.zero_point_mag")
            continue
        label = Label.parse(name)
        if label.target != name and label.target in columns:
            raise UserError(f"targets: {name} encodes {label.target}, which is also a column; give only one of the two")
        values, faults = catalogs.numbers(columns[name])
        bad = faults != ""
        add_reasons(reasons, bad, np.array([f"target {name} {fault}" for fault in faults], dtype=object))
        columns[label.target] = y = _physical(label, values, table)
        _add_domain(reasons, name, values, label.target, y)
        target_units[label.target] = _target_unit(config, table, label)
    if "flux" in target_units and derives and zero_point_mag is not None:
        flux = np.asarray(columns["flux"])
        dark = ~(flux > 0)
        # The catalogue's fluxes need not have the unit of the pixels.
        of_unit = unit_zero_point(target_units["flux"])
        columns[_MAGNITUDE] = magnitude(np.where(dark, np.nan, flux), zero_point_mag if of_unit is None else of_unit)
        if _MAGNITUDE in config.targets:
            texts = np.array([f"target flux is {value:g}: it has no magnitude" for value in flux], dtype=object)
            add_reasons(reasons, dark, texts)
            target_units[_MAGNITUDE] = "mag"
    return target_units


def add_reasons(reasons: np.ndarray, faults: np.ndarray, texts: np.ndarray) -> None:
    """Add texts where there are faults; the first reason of a row is kept."""
    new = faults & (reasons == "")
    reasons[new] = texts[new]


def _add_domain(reasons: np.ndarray, name: str, values: np.ndarray, target: str, physical: np.ndarray) -> None:
    # Adds a reason where a column's value stands for none, or its physical target cannot be.
    low, high = _domain(target)
    blank = sentinels(values)
    domain = "positive" if high == math.inf else f"within {low:g} to {high:g}"
    for row in np.flatnonzero((reasons == "") & (blank | (physical < low) | (physical > high))):
        fault = f"{target} is {physical[row]:g}: not {domain}"
        reasons[row] = "target " + (f"{name} is {values[row]:g}, which stands for no value" if blank[row] else fault)


def _domain(target: str) -> tuple[float, float]:
    # The values that a target can have, by its name; others are unlimited.
    if target.endswith(("_to_total", "axis_ratio")):
        return 0.0, 1.0
    if target.endswith("_arcsec"):
        return float(np.finfo(np.float64).tiny), math.inf
    return (-50.0, 50.0) if target.endswith("magnitude") else (-math.inf, math.inf)


def _physical(label: Label, values: np.ndarray, table: pa.Table) -> np.ndarray:
    y = label.physical(values)
    if label.transform == "logit" and label.quantity in table.column_names:
        # The logit was taken of other values in place of 0 and 1.
        quantity, _ = catalogs.numbers(table.column(label.quantity))
        return np.where((quantity == 0) | (quantity == 1), quantity, y)
    return y


def _target_unit(config: CutoutsConfig, table: pa.Table, label: Label) -> str:
    # The unit of a transformed column is not that of its physical target.
    if label.transform == "identity" and (unit := catalogs.column_unit(table, label.column)):
        return unit
    if label.target == "flux":
        return config.flux_unit or label.unit
    return "arcsec" if label.target.endswith("_arcsec") else ""
