"""Figures of a galaxy and of its posterior, for notebooks and papers; each function returns matplotlib's figure and axes.

Shape legend: D targets, H x W pixels, G grid points.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gampen_ray.posterior.mixture import Mixture

__all__ = ["corner", "cutout"]

_ACCENT, _TRUTH, _EDGE = "#2a628f", "#b8501f", "#9aa7b2"
# The same on a light and on a dark ground.
_LIGHT = f"{_ACCENT}54"
_LEVELS = (0.9545, 0.6827)
_GRID = 120
# Of a marginal, outside the figure on each side.
_CUT = 5e-4


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
        Values of the targets to mark, D.
    labels
        Labels of targets, by name; left out: name and unit.
    figure
        Figure or subfigure of matplotlib to draw in; None: a new one.

    Returns
    -------
    tuple
        The figure, and its axes, D x D, None above the diagonal. The contours hold 68.27 and 95.45 %.
    """
    from matplotlib import pyplot as plt

    truth_D = None if truth is None else np.asarray(truth)
    one, targets = posterior[galaxy : galaxy + 1], list(posterior.targets)
    figure = figure or plt.figure(figsize=(2.1 * len(targets), 2.1 * len(targets)))
    axes_DD = np.full((len(targets), len(targets)), None, dtype=object)
    low_D, high_D = one.quantile([_CUT, 1 - _CUT])[0]
    grids = np.linspace(low_D, high_D, _GRID, axis=1)
    usual = {target.name: f"{target.name} [{target.unit}]" if target.unit else target.name for target in targets}
    names = list((usual | dict(labels or {})).values())
    for i in range(len(targets)):
        for j in range(i + 1):
            axes = axes_DD[i, j] = figure.add_subplot(len(targets), len(targets), i * len(targets) + j + 1)
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
            axes.locator_params(nbins=3)
            axes.spines[:].set_color(_EDGE)
            if j == 0 and i > 0:
                axes.set_ylabel(names[i])
            if i == len(targets) - 1:
                axes.set_xlabel(names[j])
    return figure, axes_DD


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


def _contours(axes: Any, x_G: np.ndarray, y_G: np.ndarray, density_GG: np.ndarray) -> None:
    ordered = np.sort(density_GG, axis=None)[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    levels = [float(ordered[np.searchsorted(inside, level)]) for level in _LEVELS]
    axes.contourf(x_G, y_G, density_GG.T, levels=[*levels, density_GG.max()], colors=[_LIGHT, _ACCENT])
