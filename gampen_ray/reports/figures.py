"""The figures of the report, each an inline SVG about 360 px wide, legible on a phone without scaling.

Shape legend: N galaxies, G grid points, H x W pixels.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

import matplotlib
import matplotlib.colors
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes

from gampen_ray.model.targets import Target
from gampen_ray.reports.axes import SUPERSCRIPTS, Axis, axes, axis_label, figure
from gampen_ray.reports.svg import ACCENT, GROUND, INK, MUTED, TRUTH, drawable, styled, to_svg

_MAX_DOTS = 300
_NUM_BARS = 90
_MIN_PER_BIN = 25
# Below a small panel.
_PANEL_LETTERS = 30


def number(value: float | None) -> str:
    """Return a number for a reader: three significant digits, a true minus sign, and a dash if it is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if 1000 <= abs(value) < 1e8:
        text = f"{value:,.0f}"
    elif 1e-3 <= abs(value) < 1000:
        text = f"{value:#.3g}".rstrip(".")
        text = f"{value:,.0f}" if "e" in text else text
    else:
        mantissa, exponent = f"{value:.2e}".split("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return text.replace("-", "−")


def stretch(image_HW: np.ndarray) -> np.ndarray:
    """Return the image on [0, 1] after an asinh stretch whose softening is three times the image's sky noise.

    The noise is the median absolute deviation times 1.4826. An image without any spread becomes 0.
    """
    image = np.asarray(image_HW, dtype=np.float64)
    sky = np.median(image)
    noise = 1.4826 * np.median(np.abs(image - sky)) or image.std() or 1.0
    stretched = np.arcsinh((image - sky) / (3 * noise))
    low, high = np.percentile(stretched, 2), stretched.max()
    return np.clip((stretched - low) / (high - low), 0, 1) if high > low else np.zeros_like(image)


def png(image_HW: np.ndarray) -> bytes:
    """Return a stretched galaxy image as a PNG file, first row at the bottom as in FITS."""
    file = io.BytesIO()
    # 6 bits are more than the eye resolves in a thumbnail, and halve the file.
    levels = np.round(stretch(image_HW)[::-1] * 63) / 63
    matplotlib.image.imsave(file, levels, cmap="gray", vmin=0, vmax=1, format="png")
    return file.getvalue()


def cutout(image_HW: np.ndarray, *, alt: str, corners_42: np.ndarray | None = None) -> str:
    """Return a galaxy image, first row at the bottom as in FITS, with a quadrilateral drawn on it.

    Parameters
    ----------
    corners_42
        (x, y) of the four corners in order, pixels, (0, 0) the centre of the first pixel of the first row.
    alt
        Alternative text.
    """
    height, width = image_HW.shape
    svg = ElementTree.Element("svg", {"class": "cutout", "role": "img", "aria-label": alt})
    low, high = np.zeros(2), np.array([width, height], dtype=np.float64)
    uri = "data:image/png;base64," + base64.b64encode(png(image_HW)).decode()
    ElementTree.SubElement(svg, "image", {"href": uri, "width": str(width), "height": str(height)})
    if corners_42 is not None:
        corners = np.asarray(corners_42, dtype=np.float64) * [1, -1] + [0.5, height - 0.5]
        low, high = np.minimum(low, corners.min(axis=0) - 1), np.maximum(high, corners.max(axis=0) + 1)
        points = " ".join(f"{x:.2f},{y:.2f}" for x, y in corners)
        ElementTree.SubElement(svg, "polygon", {"points": points, "class": "crop"})
    svg.set("viewBox", f"{low[0]:.2f} {low[1]:.2f} {high[0] - low[0]:.2f} {high[1] - low[1]:.2f}")
    return ElementTree.tostring(svg, encoding="unicode", short_empty_elements=False)


@styled
def posterior_curve(
    key: str, target: Target, y_G: np.ndarray, density_G: np.ndarray, truth: float, interval: tuple[float, float]
) -> str:
    """Return one galaxy's posterior of one target with its 68 % interval and the true value.

    ``density_G`` is per unit of the physical value; on a log axis it is drawn per unit of the axis: area is probability.
    """
    log = target.transform == "log"
    y, density = np.asarray(y_G, dtype=np.float64), np.asarray(density_G, dtype=np.float64)
    # A logit density has no finite value at 0 and 1.
    inside = np.isfinite(density) & ((y > 0) if log else True)
    y, density = y[inside], (density * y if log else density)[inside]
    shown = y[density > 2e-3 * density.max()]
    axis = Axis.of(np.append(shown, truth), log=log, pad=0.03)
    fig = figure(210, 170)
    ax = axes(fig, left=10, right=10, top=8, bottom=24)
    u = np.linspace(axis.low, axis.high, 181)
    height = np.interp(u, axis.to(y), density, left=0, right=0)
    low, high = (float(v) for v in axis.to(np.array(interval)))
    # Sampled between the ends of the interval, so that the shading stops exactly there.
    v = np.linspace(low, high, 91)
    ax.fill_between(u, height, color=ACCENT, alpha=0.13, linewidth=0)
    ax.fill_between(v, np.interp(v, axis.to(y), density, left=0, right=0), color=ACCENT, alpha=0.3, linewidth=0)
    ax.plot(u, height, color=ACCENT, linewidth=1.4)
    ax.axvline(float(axis.to(truth)), color=TRUTH, linewidth=1.6)
    # As many as there is room for.
    fitting = (num for num in (6, 5, 4) if sum(len(label) + 2 for label in axis.ticks(num_ticks=num)[1]) <= _PANEL_LETTERS)
    axis.on_x(ax, num_ticks=next(fitting, 3))
    ax.set_ylim(0, 1.08 * height.max() or 1)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(visible=False)
    alt = (
        f"Posterior density of {target.name}: 68 % interval {number(interval[0])} to {number(interval[1])} {target.unit}, "
        f"true value {number(truth)}"
    )
    return to_svg(fig, key, alt)


@styled
def predicted_and_true(
    key: str, target: Target, truth_N: np.ndarray, median_N: np.ndarray, lo68_N: np.ndarray, hi68_N: np.ndarray
) -> str:
    """Return posterior median against truth: all galaxies as a density, and an even sample with 68 % intervals."""
    axis = Axis.of(np.concatenate([truth_N, median_N]), log=target.transform == "log", pad=0.03)
    fig = figure(360, 350)
    ax = axes(fig)
    ax.plot([axis.low, axis.high], [axis.low, axis.high], color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    cloud(ax, axis, axis, truth_N, median_N)
    # An even sample in rank of the true value shows the intervals over the whole range.
    order = np.argsort(truth_N, kind="stable")
    sample = order[np.unique(np.linspace(0, len(order) - 1, min(_NUM_BARS, len(order))).round().astype(int))]
    x, y = axis.to(truth_N[sample]), axis.to(median_N[sample])
    ax.vlines(x, axis.to(lo68_N[sample]), axis.to(hi68_N[sample]), color=INK, linewidth=0.8, alpha=0.5, zorder=3)
    ax.plot(x, y, "o", color=INK, markersize=2.4, markeredgewidth=0, zorder=4)
    axis.on_x(ax, axis_label("True", target))
    axis.on_y(ax, axis_label("Predicted", target))
    return to_svg(fig, key, f"Predicted against true {target.name} of {len(truth_N)} galaxies, with 68 % intervals")


@styled
def residuals(key: str, target: Target, truth_N: np.ndarray, median_N: np.ndarray) -> str:
    """Return residual against prediction with running median and central 68 %; relative residuals where the target is log.

    The abscissa is the *prediction*, because the mean truth at a correct prediction is the prediction; at a given truth, even a
    perfect posterior is biased towards the typical galaxy.
    """
    log = target.transform == "log"
    residual_N = 100 * (median_N - truth_N) / truth_N if log else median_N - truth_N
    axis = Axis.of(median_N, log=log, pad=0.03)
    extent = 1.15 * float(np.percentile(np.abs(residual_N), 99)) or 1.0
    y_axis = Axis(low=-extent, high=extent)
    fig = figure(360, 230)
    ax = axes(fig)
    cloud(ax, axis, y_axis, median_N, residual_N)
    ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    _running(ax, axis, y_axis, median_N, residual_N)
    axis.on_x(ax, axis_label("Predicted", target))
    unit = f" ({drawable(target.unit)})" if target.unit else ""
    y_axis.on_y(ax, "(Predicted − true) / true, %" if log else f"Predicted − true{unit}")
    return to_svg(fig, key, f"Residuals of {target.name} against its predicted value for {len(truth_N)} galaxies")


@styled
def crop_scale(key: str, target: Target, truth_N: np.ndarray, crop_scale_N: np.ndarray) -> str:
    """Return the side of the learned crop over the side of the cutout against a true value."""
    axis = Axis.of(truth_N, log=target.transform == "log", pad=0.03)
    y_axis = Axis.of(crop_scale_N, pad=0.08)
    fig = figure(360, 280)
    ax = axes(fig)
    cloud(ax, axis, y_axis, truth_N, crop_scale_N)
    _running(ax, axis, y_axis, truth_N, crop_scale_N)
    axis.on_x(ax, axis_label("True", target))
    y_axis.on_y(ax, "Crop side / cutout side")
    return to_svg(fig, key, f"Scale of the learned crop against true {target.name} for {len(truth_N)} galaxies")


@styled
def coverage(key: str, name: str, series: Mapping[str, Sequence[Mapping[str, Any]]], extent: float) -> str:
    """Return empirical minus nominal coverage of one target at each level, before and after calibration.

    Parameters
    ----------
    series
        Rows with level, coverage and error, by ``"uncalibrated"`` and ``"calibrated"``.
    extent
        Half-range of the vertical axis, percentage points.
    """
    levels = sorted({row["level"] for rows in series.values() for row in rows})
    fig = figure(280, 230)
    ax = axes(fig, left=50, right=8, top=10, bottom=44)
    ax.axhspan(-5, 5, color=ACCENT, alpha=0.1, linewidth=0, zorder=0)
    ax.axhline(0, color=MUTED, linewidth=1, dashes=(4, 3), zorder=2)
    marks = {"uncalibrated": (-0.13, GROUND, "before"), "calibrated": (0.13, ACCENT, "after")}
    for kind, (shift, fill, label) in marks.items():
        rows = series.get(kind, ())
        ax.errorbar(
            [levels.index(row["level"]) + shift for row in rows],
            [100 * (row["coverage"] - row["level"]) for row in rows],
            yerr=[100 * row["error"] for row in rows],
            fmt="o",
            color=ACCENT,
            markerfacecolor=fill,
            markersize=7,
            markeredgewidth=1.4,
            elinewidth=1.4,
            label=label,
            zorder=3,
        )
    ax.set_xlim(-0.5, len(levels) - 0.5)
    ax.set_xticks(range(len(levels)), [f"{100 * level:.2f} %" for level in levels])
    ax.grid(visible=False, axis="x")
    Axis(low=-extent, high=extent).on_y(ax, "Empirical − nominal (pp)")
    ax.set_xlabel("Nominal level")
    found = "; ".join(
        f"{mark[2]} calibration " + ", ".join(f"{100 * row['coverage']:.1f} % at {100 * row['level']:.2f} %" for row in rows)
        for kind, mark in marks.items()
        if (rows := series.get(kind, ()))
    )
    return to_svg(fig, key, f"Coverage of {name}: {found}")


@styled
def training_curve(key: str, history: Sequence[Mapping[str, Any]], columns: Mapping[str, str], label: str) -> str:
    """Return columns of the training history against epoch.

    Parameters
    ----------
    columns
        Legend text by column of ``history``; the first is drawn in ink, the second in the accent colour.
    label
        Label of the vertical axis.
    """
    epoch = np.array([row["epoch"] for row in history], dtype=np.float64)
    values = {name: np.array([row[name] for row in history], dtype=np.float64) for name in columns}
    axis = Axis.of(epoch, pad=0.02)
    y_axis = Axis.of(np.concatenate(list(values.values())), pad=0.06)
    fig = figure(360, 250)
    ax = axes(fig)
    for (name, legend), color in zip(columns.items(), (MUTED, ACCENT), strict=False):
        ax.plot(epoch, values[name], color=color, linewidth=1.6, label=legend, marker="o" if len(epoch) == 1 else "")
    axis.on_x(ax, "Epoch", integer=True)
    y_axis.on_y(ax, label)
    if len(columns) > 1:
        ax.legend(loc="upper right", handlelength=1.4, borderaxespad=0)
    last = ", ".join(f"{legend or label} {number(values[name][-1])}" for name, legend in columns.items())
    return to_svg(fig, key, f"{label} over {len(epoch)} epochs; at the end: {last}")


def cloud(ax: Axes, x_axis: Axis, y_axis: Axis, x_N: np.ndarray, y_N: np.ndarray) -> None:
    """Draw galaxies: a few as dots, many as hexagons with opacity by number, whose size is bounded for any N."""
    x, y = x_axis.to(x_N), y_axis.to(y_N)
    if len(x) <= _MAX_DOTS:
        ax.plot(x, y, "o", color=ACCENT, alpha=0.45, markersize=4, markeredgewidth=0, zorder=1)
        return
    extent = (x_axis.low, x_axis.high, y_axis.low, y_axis.high)
    width, height = ax.get_window_extent().size
    columns = int(np.clip(0.75 * math.sqrt(len(x)), 20, 40))
    rows = max(1, round(columns * height / width / math.sqrt(3)))
    hexagons = ax.hexbin(x, y, gridsize=(columns, rows), extent=extent, mincnt=1, linewidths=0, zorder=1)
    counts = np.asarray(hexagons.get_array(), dtype=np.float64)
    hexagons.set_array(None)
    # Few steps, so that the file stays small.
    share = np.round(8 * np.log1p(counts) / np.log1p(counts.max())) / 8
    hexagons.set_facecolor([(*matplotlib.colors.to_rgb(ACCENT), 0.1 + 0.75 * value) for value in share])
    hexagons.set_edgecolor("none")


def _running(ax: Axes, x_axis: Axis, y_axis: Axis, x_N: np.ndarray, y_N: np.ndarray) -> None:
    """Draw the median and the central 68 % of y in bins of equal number; nothing for fewer than three bins."""
    num_bins = min(12, len(x_N) // _MIN_PER_BIN)
    if num_bins < 3:
        return
    bins = np.array_split(np.argsort(x_N, kind="stable"), num_bins)
    x = x_axis.to([np.median(x_N[rows]) for rows in bins])
    low, middle, high = y_axis.to(np.transpose([np.percentile(y_N[rows], (15.87, 50, 84.13)) for rows in bins]))
    for edge in (low, high):
        ax.plot(x, edge, color=TRUTH, linewidth=1, dashes=(3, 2), zorder=4)
    ax.plot(x, middle, color=TRUTH, linewidth=1.8, zorder=4)
