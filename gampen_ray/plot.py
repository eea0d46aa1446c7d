"""Figures for notebooks and papers: of a galaxy, of posteriors, of what `evaluate` and `train` have found.

Each function returns matplotlib's figure and axes. Shape legend: N galaxies, D targets, H x W pixels, G grid points.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gampen_ray.model.targets import Target
from gampen_ray.posterior.mixture import Mixture

__all__ = ["corner", "coverage", "cutout", "predictions", "ranks", "training"]

_ACCENT, _TRUTH, _EDGE = "#2a628f", "#b8501f", "#9aa7b2"
# The same on a light and on a dark ground.
_LIGHT = f"{_ACCENT}54"
_LEVELS = (0.9545, 0.6827)
_GRID = 120
# Of a marginal, outside the figure on each side.
_CUT = 5e-4
# Beyond a truth that lies farther out, of the figure's side.
_MARGIN = 0.05
# Margins of a corner plot, inches: where its labels are, and where not; gap between panels over their side.
_LEFT, _BOTTOM, _BARE, _GAP = 1.15, 0.75, 0.15, 0.1
_PANEL = 1.9


def corner(
    posterior: Mixture,
    galaxy: int = 0,
    *,
    truth: ArrayLike | None = None,
    labels: Mapping[str, str] | None = None,
    figure: Any = None,
) -> tuple[Any, np.ndarray]:
    """Draw the marginal and the pairwise joint densities of one galaxy's posterior, which are exact, without draws.

    Parameters
    ----------
    posterior
        Posteriors of galaxies.
    galaxy
        Which of them.
    truth
        Values of the targets to mark, D, in the units of ``posterior``.
    labels
        Labels of targets, by name; left out: name and unit. Fluxes are drawn in nJy where their zero point is known.
    figure
        Figure or subfigure of matplotlib to draw in; None: a new one.

    Returns
    -------
    tuple
        The figure, and its axes, D x D, None above the diagonal. The contours hold 68.27 and 95.45 %.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    one, factor_D = posterior[galaxy : galaxy + 1].shown()
    truth_D = None if truth is None else factor_D * np.asarray(truth)
    targets = list(one.targets)
    figure = figure or plt.figure(figsize=corner_size(len(targets)))
    axes_DD = np.full((len(targets), len(targets)), None, dtype=object)
    width, height = (length / figure.dpi for length in figure.bbox.size)
    grid = figure.add_gridspec(
        *axes_DD.shape,
        left=_LEFT / width,
        right=1 - _BARE / width,
        bottom=_BOTTOM / height,
        top=1 - _BARE / height,
        wspace=_GAP,
        hspace=_GAP,
    )
    grids = _grids(one, truth_D)
    names = list(({target.name: _label(target) for target in targets} | dict(labels or {})).values())
    for i in range(len(targets)):
        for j in range(i + 1):
            axes = axes_DD[i, j] = figure.add_subplot(grid[i, j])
            if i == j:
                axes.fill_between(grids[i], one.marginal_density(i, grids[i])[0], color=_ACCENT, alpha=0.75, linewidth=0)
                axes.set(yticks=[], ylim=(0, None))
            else:
                _contours(axes, grids[j], grids[i], one.joint_density(j, i, grids[j], grids[i])[0])
                axes.set_ylim(*grids[i][[0, -1]])
            axes.set_xlim(*grids[j][[0, -1]])
            if truth_D is not None:
                axes.axvline(truth_D[j], color=_TRUTH, linewidth=1)
                if i > j:
                    axes.axhline(truth_D[i], color=_TRUTH, linewidth=1)
            axes.tick_params(labelbottom=i == len(targets) - 1, labelleft=j == 0 and i > 0, length=2, labelsize=8)
            for axis in (axes.xaxis, axes.yaxis) if i > j else (axes.xaxis,):
                axis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
                axis.set_major_formatter("{x:,.10g}")
            axes.spines[:].set_color(_EDGE)
            if j == 0 and i > 0:
                axes.set_ylabel(names[i])
            if i == len(targets) - 1:
                axes.set_xlabel(names[j])
    figure.align_labels()
    return figure, axes_DD


def _grids(one: Mixture, truth_D: np.ndarray | None) -> list[np.ndarray]:
    """Return the values of each target at which to draw; a truth that the posterior leaves out is among them."""
    low_D, high_D = one.quantile([_CUT, 1 - _CUT])[0]
    grids = list(np.linspace(low_D, high_D, _GRID, axis=1))
    for d, value in enumerate([] if truth_D is None else truth_D):
        span = max(high_D[d], value) - min(low_D[d], value)
        if np.isfinite(value) and not low_D[d] <= value <= high_D[d]:
            grids[d] = np.sort(np.append(grids[d], value + np.sign(value - low_D[d]) * _MARGIN * span))
    return grids


def corner_size(num_targets: int) -> tuple[float, float]:
    """Return width and height of a `corner` plot whose panels are square, inches."""
    panels = _PANEL * (num_targets + _GAP * (num_targets - 1))
    return _LEFT + panels + _BARE, _BOTTOM + panels + _BARE


def cutout(image_HW: np.ndarray, *, crop_scale: float | None = None, axes: Any = None) -> tuple[Any, Any]:
    """Draw an image, stretched by asinh of its noise, and the square that the network looks at.

    Parameters
    ----------
    image_HW
        Pixels of one band.
    crop_scale
        Side of the learned crop over that of the image, the catalogue's ``crop_scale``; None: no crop is drawn.
    axes
        Axes of matplotlib to draw in; None: those of a new figure.

    Returns
    -------
    tuple
        The figure and the axes.
    """
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    axes = axes or plt.figure(figsize=(3.6, 3.6)).add_subplot()
    image_HW = np.asarray(image_HW, np.float64)
    sky = np.nanmedian(image_HW)
    noise = 1.4826 * np.nanmedian(np.abs(image_HW - sky)) or 1.0
    axes.imshow(np.arcsinh((image_HW - sky) / noise / 2), cmap="Greys", origin="lower", interpolation="nearest")
    if crop_scale is not None:
        side = crop_scale * max(image_HW.shape)
        x, y = ((length - side) / 2 - 0.5 for length in image_HW.shape[::-1])
        axes.add_patch(Rectangle((x, y), side, side, fill=False, color=_TRUTH, linewidth=1.6))
        axes.text(x, y + side, "learned crop", color=_TRUTH, verticalalignment="bottom")
    axes.set_axis_off()
    return axes.figure, axes


def predictions(posterior: Mixture, truth_ND: ArrayLike, target: str, *, axes: Any = None) -> tuple[Any, Any]:
    """Draw the median and the central 68.27 % interval of each galaxy against the truth.

    Parameters
    ----------
    posterior
        Posteriors of galaxies.
    truth_ND
        Values of all targets, in the units of ``posterior``.
    target
        Name of the one to draw; one that is learned as a logarithm has logarithmic axes.
    axes
        Axes of matplotlib to draw in; None: those of a new figure.

    Returns
    -------
    tuple
        The figure and the axes.
    """
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    place = posterior.targets.names.index(target)
    posterior, factor_D = posterior.shown()
    one = list(posterior.targets)[place]
    truth_N = factor_D[place] * np.asarray(truth_ND)[:, place]
    low_N, middle_N, high_N = posterior.quantile([0.5 - 0.6827 / 2, 0.5, 0.5 + 0.6827 / 2])[:, :, place].T
    axes = axes or plt.figure(figsize=(4, 4), layout="constrained").add_subplot()
    ends = [min(truth_N.min(), low_N.min()), max(truth_N.max(), high_N.max())]
    axes.plot(ends, ends, color=_TRUTH, linewidth=1)
    axes.errorbar(
        truth_N, middle_N, yerr=[middle_N - low_N, high_N - middle_N], fmt=".", color=_ACCENT, elinewidth=0.7, markersize=4
    )
    scale = "log" if one.transform == "log" else "linear"
    unit = f" [{one.unit}]" if one.unit else ""
    axes.set(xscale=scale, yscale=scale, xlabel=f"true {target}{unit}", ylabel=f"posterior {target}{unit}")
    if scale == "log":
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if ends[1] < 30 * ends[0] else (1,)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
    return axes.figure, axes


def coverage(evaluation: Mapping[str, Any], *, figure: Any = None) -> tuple[Any, np.ndarray]:
    """Draw the share of truths inside central regions, minus the regions' level, of each target and of all together.

    Parameters
    ----------
    evaluation
        What `gampen_ray.evaluate` returns, or ``evaluation.json`` of its folder.
    figure
        Figure or subfigure of matplotlib to draw in; None: a new one.

    Returns
    -------
    tuple
        The figure, and its axes, one a curve. The ribbon is where a calibrated curve lies in 95 % of cases, level by level.
    """
    return _differences(evaluation["diagnostics"]["curves"], "share inside - level", ("ribbon_low", "ribbon_high"), figure)


def ranks(evaluation: Mapping[str, Any], *, figure: Any = None) -> tuple[Any, np.ndarray]:
    """Draw the distribution of the truths' ranks in their posteriors, minus the uniform one, of each target, and TARP's.

    Parameters and returns are those of `coverage`; here the band holds the whole curve of calibrated posteriors in 95 % of
    cases (`gampen_ray.posterior.ranks`).
    """
    return _differences(evaluation["diagnostics"]["ranks"], "share below - rank", ("low", "high"), figure)


def training(history: Sequence[Mapping[str, Any]], *, axes: Any = None) -> tuple[Any, Any]:
    """Draw the losses of a training by epoch.

    Parameters
    ----------
    history
        Rows of ``history.json`` of the run folder. Epoch 0 is the training on numbers alone, if there was one.
    axes
        Axes of matplotlib to draw in; None: those of a new figure.

    Returns
    -------
    tuple
        The figure and the axes.
    """
    from matplotlib import pyplot as plt

    axes = axes or plt.figure(figsize=(4.6, 3.2), layout="constrained").add_subplot()
    epochs = [row["epoch"] for row in history]
    for name, label, colour in (("train_loss", "training", _EDGE), ("val_loss", "validation", _ACCENT)):
        # An infinite loss is stored as None.
        values = [np.nan if row[name] is None else row[name] for row in history]
        axes.plot(epochs, values, label=label, color=colour, marker=".")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return axes.figure, axes


def _differences(
    curves: Mapping[str, Mapping[str, Any]], label: str, ends: tuple[str, str], figure: Any
) -> tuple[Any, np.ndarray]:
    from matplotlib import pyplot as plt

    figure = figure or plt.figure(figsize=(3 * len(curves), 3), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(curves), sharey=True))
    for axes, (name, curve) in zip(panels, curves.items(), strict=True):
        low, high, share = ([0.0, *curve[part], 0.0] for part in (*ends, "share"))
        level = [0.0, *curve["level"], 1.0]
        axes.fill_between(level, low, high, color=_LIGHT, linewidth=0)
        axes.axhline(0, color=_EDGE, linewidth=1)
        axes.plot(level, share, color=_ACCENT)
        axes.set(title=name, xlabel="level", xlim=(0, 1))
    panels[0].set_ylabel(label)
    return figure, panels


def _label(target: Target) -> str:
    """Return a name in words, without a unit at its end, and the unit below it."""
    name = target.name.removesuffix(f"_{target.unit}").replace("_", " ")
    return f"{name}\n[{target.unit}]" if target.unit else name


def _contours(axes: Any, x_G: np.ndarray, y_G: np.ndarray, density_GG: np.ndarray) -> None:
    ordered = np.sort(density_GG, axis=None)[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    levels = [float(ordered[np.searchsorted(inside, level)]) for level in _LEVELS]
    axes.contourf(x_G, y_G, density_GG.T, levels=[*levels, density_GG.max()], colors=[_LIGHT, _ACCENT])
