"""From a mixture to one catalogue row a galaxy: the summary columns, their units and meanings.

Shape legend: N galaxies, D targets, Q quantile levels.
"""

import dataclasses
import itertools
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.mode_centred import mode_centred_interval

if TYPE_CHECKING:
    from gampen_ray.posterior.mixture import Mixture

LEVELS = {"68": 0.6827, "95": 0.9545, "997": 0.9973}
"""Probabilities of the equal-tailed credible intervals by the suffix of their columns."""


@dataclasses.dataclass(frozen=True)
class Column:
    """A catalogue column: its name, unit in astropy's notation (empty: dimensionless) and meaning."""

    name: str
    unit: str
    description: str


def summary_columns(targets: TargetSchema, *, mode_centred: bool = False) -> list[Column]:
    """Return the summary columns in the order of the catalogue, those of the mode-centred intervals (GaMPEN's) on request."""
    columns = []
    for target in targets:
        name, unit = target.name, target.unit
        columns += [
            Column(f"{name}_mean", unit, f"posterior mean of {name}"),
            Column(f"{name}_median", unit, f"posterior median of {name}"),
            Column(f"{name}_mode", unit, f"value of {name} at which its marginal posterior density is highest"),
            Column(f"{name}_std", unit, f"posterior standard deviation of {name}"),
            Column(f"{name}_skew", "", f"posterior skewness of {name}"),
            Column(f"{name}_kurtosis", "", f"posterior excess kurtosis of {name}, 0 for a Gaussian"),
        ]
        for suffix, level in LEVELS.items():
            text = f"end of the equal-tailed {100 * level:g} % credible interval of {name}"
            columns += [
                Column(f"{name}_lo{suffix}", unit, f"lower {text}"),
                Column(f"{name}_hi{suffix}", unit, f"upper {text}"),
            ]
        for suffix, level in LEVELS.items() if mode_centred else ():
            text = f"end of the {100 * level:g} % credible interval of {name} that is centred on the mode"
            columns += [
                Column(f"{name}_mode_lo{suffix}", unit, f"lower {text}"),
                Column(f"{name}_mode_hi{suffix}", unit, f"upper {text}"),
            ]
        columns += [
            Column(f"{name}_std_aleatoric", unit, f"aleatoric part of {name}_std: root mean variance of the dropout passes"),
            Column(f"{name}_std_epistemic", unit, f"epistemic part of {name}_std: standard deviation of the passes' means"),
        ]
    for a, b in itertools.combinations(targets.names, 2):
        columns.append(Column(f"corr_{a}_{b}", "", f"posterior correlation of {a} and {b}"))
    return columns


def interval_levels() -> np.ndarray:
    """Return the lower and upper quantile levels of each of `LEVELS`: lo, hi, lo, hi, ...."""
    return np.array([0.5 * (1 + sign * level) for level in LEVELS.values() for sign in (-1, 1)])


def summarise(mixture: "Mixture", *, mode_centred: bool = False) -> dict[str, np.ndarray]:
    """Return the summary columns (float64, N) by name, in physical units and catalogue order; see `summary_columns`."""
    quantile_NQD = mixture.quantile(np.append(0.5, interval_levels()))
    mode_ND, correlation_NDD = mixture.mode(), mixture.correlation()
    centred_NL2D = mode_centred_interval(mixture, list(LEVELS.values())) if mode_centred else None
    values = []
    for d in range(len(mixture.targets)):
        moments = (mixture.mean(), quantile_NQD[:, 0], mode_ND, mixture.std(), mixture.skew(), mixture.kurtosis())
        values += [moment[:, d] for moment in moments]
        values += list(quantile_NQD[:, 1:, d].T)
        if centred_NL2D is not None:
            values += list(centred_NL2D[..., d].reshape(len(mixture), -1).T)
        values += [mixture.aleatoric_std()[:, d], mixture.epistemic_std()[:, d]]
    values += [correlation_NDD[:, i, j] for i, j in itertools.combinations(range(len(mixture.targets)), 2)]
    columns = summary_columns(mixture.targets, mode_centred=mode_centred)
    return {column.name: value for column, value in zip(columns, values, strict=True)}


def summary_table(mixture: "Mixture") -> pa.Table:
    """Return `summarise` as a table whose fields carry ``unit`` and ``description`` metadata."""
    fields = [field(column, pa.float64()) for column in summary_columns(mixture.targets)]
    return pa.table(list(summarise(mixture).values()), schema=pa.schema(fields))


def field(column: Column, kind: pa.DataType) -> pa.Field:
    """Return an Arrow field of type ``kind`` that carries the column's unit and description as metadata."""
    return pa.field(column.name, kind, metadata={"unit": column.unit, "description": column.description})
