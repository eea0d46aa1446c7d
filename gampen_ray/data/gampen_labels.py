"""GaMPEN's labels: transformed columns such as ``custom_logit_bt``, ``ln_R_e_asec``, ``ln_total_flux_adus``, and the physical
targets that they encode.

Conventions of the original program (Ghosh et al. 2022, ApJ 935, 138, sec. 4.2, and its documentation), tested against its
golden outputs.
"""

import dataclasses
import math

import numpy as np
from scipy.special import expit, logit

from gampen_ray.config import Transform
from gampen_ray.errors import UserError

__all__ = ["GAMPEN_ZERO_POINT_MAG", "Label", "expit_custom", "label_of", "logit_custom", "logit_limits", "magnitude", "snap"]

GAMPEN_ZERO_POINT_MAG = 27.0
"""GaMPEN's hard-coded zero point, that of HSC coadds."""

_PREFIXES: dict[Transform, str] = {"log": "ln_", "logit": "custom_logit_"}
# Our name and the unit of a physical quantity, by GaMPEN's name.
_QUANTITIES = {
    "bt": ("bulge_to_total", ""),
    "R_e_asec": ("effective_radius_arcsec", "arcsec"),
    "total_flux_adus": ("flux", "adu"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """A GaMPEN column and the target that it encodes.

    Parameters
    ----------
    column
        GaMPEN's name, e.g. ``ln_R_e_asec``.
    quantity
        GaMPEN's name of the physical quantity, e.g. ``R_e_asec``.
    target
        Our name of the physical quantity, e.g. ``effective_radius_arcsec``.
    unit
        Unit of the physical quantity in astropy's notation; empty if dimensionless or unknown.
    transform
        Map from the physical quantity to the column.
    """

    column: str
    quantity: str
    target: str
    unit: str
    transform: Transform

    @classmethod
    def parse(cls, column: str) -> "Label":
        """Parse a column name; a name without GaMPEN's prefixes is a physical quantity."""
        for transform, prefix in _PREFIXES.items():
            if column.startswith(prefix) and column != prefix:
                quantity = column.removeprefix(prefix)
                target, unit = _QUANTITIES.get(quantity, (quantity, ""))
                return cls(column=column, quantity=quantity, target=target, unit=unit, transform=transform)
        return cls(column=column, quantity=column, target=column, unit="", transform="identity")

    def physical(self, values: np.ndarray) -> np.ndarray:
        """Convert values of the column to physical values; overflow gives infinity."""
        if self.transform == "log":
            with np.errstate(over="ignore"):
                return np.exp(values)
        return expit(values) if self.transform == "logit" else values


def label_of(target: str, transform: Transform) -> Label:
    """Return GaMPEN's label for one of our targets."""
    quantities = {ours: theirs for theirs, (ours, _) in _QUANTITIES.items()}
    return Label.parse(_PREFIXES.get(transform, "") + quantities.get(target, target))


def logit_limits(y: np.ndarray) -> tuple[float, float]:
    """Return the values that replace 0 and 1 before a logit: half-way between each and the nearest other value of ``y``.

    Raises
    ------
    UserError
        If all values are 0, or all are 1.
    """
    above_zero, below_one = y[y > 0], y[y < 1]
    if not above_zero.size or not below_one.size:
        raise UserError("the logit limits cannot be derived from the data: all values are 0, or all are 1; give a clip")
    return float(above_zero.min()) / 2, 1 - (1 - float(below_one.max())) / 2


def logit_custom(y: np.ndarray) -> np.ndarray:
    """Return GaMPEN's ``custom_logit`` of values in [0, 1], with 0 and 1 replaced by the `logit_limits`."""
    return logit(np.clip(y, *logit_limits(y)))


def expit_custom(t: np.ndarray, scaling: np.ndarray | None = None) -> np.ndarray:
    """Return GaMPEN's inverse of `logit_custom`.

    Parameters
    ----------
    t
        Values in logit space.
    scaling
        Values in [0, 1] that define the limits: if they include 0 (or 1), results at or beyond its limit become 0 (or 1).
        None: results are not changed.
    """
    y = expit(np.asarray(t, dtype=np.float64))
    if scaling is None or not ((scaling == 0) | (scaling == 1)).any():
        return y
    low, high = logit_limits(scaling)
    return snap(y, low if scaling.min() == 0 else -math.inf, high if scaling.max() == 1 else math.inf)


def snap(y: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return ``y`` with values <= ``low`` set to 0 and values >= ``high`` set to 1."""
    return np.where(y <= low, 0.0, np.where(y >= high, 1.0, y))


def magnitude(flux: np.ndarray, zero_point_mag: float, *, gampen: bool = False) -> np.ndarray:
    """Return AB magnitudes of fluxes, zero_point - 2.5 log10(flux), or GaMPEN's approximation of them.

    Parameters
    ----------
    flux
        Positive; 0 gives infinity.
    zero_point_mag
        Magnitude of one unit of flux.
    gampen
        Use GaMPEN's factor of 2.512 and its zero point of 27.
    """
    with np.errstate(divide="ignore"):
        log_flux = np.log10(flux)
    return GAMPEN_ZERO_POINT_MAG - 2.512 * log_flux if gampen else zero_point_mag - 2.5 * log_flux
