"""Axes of the report's figures: ranges, round ticks, labels that fit, and the sky."""

import dataclasses
import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gampen_ray.model.targets import Target
from gampen_ray.reports.svg import drawable

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_MAX_LABEL = 46


@dataclasses.dataclass(frozen=True)
class Axis:
    """A range in axis coordinates (log10 of the value if ``log``), in which everything is drawn."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, values: np.ndarray, *, log: bool = False, pad: float) -> "Axis":
        """Return the range of the finite values, extended by the fraction ``pad`` at both ends."""
        u = np.log10(values) if log else np.asarray(values, dtype=np.float64)
        u = u[np.isfinite(u)]
        low, high = (float(u.min()), float(u.max())) if u.size else (0.0, 1.0)
        margin = pad * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - margin, high + margin, log)

    def to(self, values: Any) -> np.ndarray:
        """Return values in axis coordinates."""
        return np.log10(values) if self.log else np.asarray(values, dtype=np.float64)

    def on_x(self, ax: Axes, label: str = "", **kwargs: Any) -> None:
        """Set label, range and ticks of the horizontal axis; keyword arguments as of `ticks`."""
        ax.set_xlabel(label)
        ax.set_xlim(self.low, self.high)
        ax.set_xticks(*self.ticks(**kwargs))

    def on_y(self, ax: Axes, label: str = "", **kwargs: Any) -> None:
        """Set label, range and ticks of the vertical axis; keyword arguments as of `ticks`."""
        ax.set_ylabel(label)
        ax.set_ylim(self.low, self.high)
        ax.set_yticks(*self.ticks(**kwargs))

    def ticks(self, *, num_ticks: int = 6, integer: bool = False) -> tuple[np.ndarray, list[str]]:
        """Return positions and labels of at most about ``num_ticks`` ticks at round values."""
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        even = not self.log or high / low <= 6
        if not even:
            values = _log_ticks(low, high, num_ticks)
        else:
            locator = MaxNLocator(num_ticks - 1, steps=[1, 2, 2.5, 5, 10], integer=integer)
            values = np.asarray(locator.tick_values(low, high))
        values = values[(values >= low) & (values <= high)]
        return self.to(values), _tick_labels(values, even)


def _log_ticks(low: float, high: float, num_ticks: int) -> np.ndarray:
    decades = np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        values = np.outer(10.0**decades, digits).ravel()
        if ((values >= low) & (values <= high)).sum() <= num_ticks:
            return values
    return 10.0 ** decades[:: math.ceil(len(decades) / num_ticks)]


def _tick_labels(values: np.ndarray, even: bool) -> list[str]:
    """Return labels of one form: powers of ten for very large or small numbers, else plain, with equal decimals if even."""
    size = np.abs(values[values != 0])
    if size.size and (size.max() >= 1e6 or size.min() < 1e-4):
        labels = [_power_of_ten(value) for value in values]
    else:
        labels = [f"{float(f'{value:.6g}'):,.10f}".rstrip("0").rstrip(".") for value in values]
        if even:
            decimals = max((len(label.partition(".")[2]) for label in labels), default=0)
            labels = [f"{value:,.{decimals}f}" for value in values]
    return [label.replace("-", "−") for label in labels]


def _power_of_ten(value: float) -> str:
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:e}".split("e")
    front = "" if float(mantissa) == 1 else f"{float(mantissa):g}×"
    return f"{front}10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def axis_label(what: str, target: Target) -> str:
    """Return a label with quantity, target and unit, truncated to fit."""
    text = f"{what} {drawable(target.name)}" + (f" ({drawable(target.unit)})" if target.unit else "")
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 1] + "…"


def figure(width: int, height: int) -> Figure:
    """Return a figure of a size in px."""
    return Figure(figsize=(width / 72, height / 72))


def axes(fig: Figure, *, left: int = 58, right: int = 8, top: int = 10, bottom: int = 44) -> Axes:
    """Return the axes of a figure, with margins in px."""
    # Laying out by measured text would cost more time than drawing.
    width, height = fig.get_size_inches() * 72
    return fig.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))


def unwrapped(ra_N: np.ndarray) -> np.ndarray:
    """Return right ascensions, degrees, on a circle that is cut where it is emptiest, so that neighbours are neighbours."""
    sorted_N = np.sort(ra_N)
    gap_N = np.diff(sorted_N, append=sorted_N[0] + 360)
    widest = int(gap_N.argmax())
    middle = float((sorted_N[widest] + 0.5 * gap_N[widest] + 180) % 360)
    return middle + wrapped(ra_N - middle)


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Return angles in [-180, 180), degrees."""
    return (angle + 180) % 360 - 180


def sky_axes(x: np.ndarray, y: np.ndarray, width: int = 360) -> tuple[Figure, Axes]:
    """Return a figure with axes of right ascension, which grows to the left, and declination.

    Parameters
    ----------
    x, y
        Right ascensions, `unwrapped`, and declinations that are drawn, degrees; the cosine of the middle one shrinks the first.
    width
        Of the figure, px; it is as high as the shape wants, within what a page bears.
    """
    shrink = float(np.cos(np.radians(0.5 * (y.min() + y.max()))))
    x_axis, y_axis = Axis.of(x, pad=0.03), Axis.of(y, pad=0.03)
    ratio = (y_axis.high - y_axis.low) / ((x_axis.high - x_axis.low) * shrink)
    fig = figure(width, int(np.clip((width - 66) * ratio, 60, 320)) + 54)
    ax = axes(fig)
    x_axis.on_x(ax, "RA (deg)")
    ax.set_xticks(ax.get_xticks(), [f"{tick % 360:g}" for tick in ax.get_xticks()])
    ax.invert_xaxis()
    y_axis.on_y(ax, "Dec (deg)")
    return fig, ax
