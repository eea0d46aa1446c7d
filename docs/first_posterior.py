"""Draw the figure of the README: a simulated galaxy, its learned crop, and its joint posterior with the truth.

python docs/first_posterior.py docs/first_posterior.png
"""

import sys

import matplotlib as mpl
import matplotlib.patches
import numpy as np
from matplotlib.figure import Figure

from gampen_ray import load_bundle
from gampen_ray.inference.predictor import Predictor
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS

SIZE, SEED, GALAXIES = 96, 5, 60
LABELS = {"bulge_to_total": "B/T", "effective_radius_arcsec": "$R_e$ [arcsec]", "flux": "flux"}
ACCENT, TRUTH = "#2a628f", "#b8501f"


def main(path: str) -> None:
    """Draw and save."""
    bundle = load_bundle("builtin:kids-r")
    rows = simulate(SURVEYS["kids-r"], cutout_size=SIZE, seed=SEED, start=0, stop=GALAXIES)
    # An ordinary galaxy of 18.5 mag with a bulge and a disk.
    chosen = int(np.argmin(np.abs(rows["magnitude"] - 18.5) + 2 * np.abs(rows["bulge_to_total"] - 0.4)))
    one = {name: values[chosen : chosen + 1] for name, values in rows.items()}
    conditions_NJ = bundle.condition_values(one, 1)
    prediction = Predictor(bundle, num_passes=289, seed=0, device="cpu")(one["image"], conditions_NJ)
    draw_ND = prediction.mixture.sample(200_000, seed=1)[0]
    names = list(bundle.targets.names)
    truth_D = [float(one[name][0]) for name in names]

    mpl.rcParams.update({"font.size": 9, "axes.edgecolor": "#9aa7b2", "axes.linewidth": 0.7})
    figure = Figure(figsize=(9.6, 4.2), dpi=110)
    grid = figure.add_gridspec(3, 7, wspace=0.12, hspace=0.12, left=0.01, right=0.985, top=0.97, bottom=0.12)
    picture = figure.add_subplot(grid[:, :3])
    _picture(picture, one["image"][0, 0], float(prediction.crop_scale_N[0]))
    for i, name in enumerate(names):
        for j in range(i + 1):
            axes = figure.add_subplot(grid[i, 4 + j])
            _panel(axes, draw_ND, truth_D, i, j)
            axes.set_xlabel(LABELS[names[j]] if i == len(names) - 1 else "")
            axes.set_ylabel(LABELS[name] if j == 0 and i > 0 else "")
            axes.tick_params(labelbottom=i == len(names) - 1, labelleft=j == 0 and i > 0, length=2, labelsize=7.5)
    figure.savefig(path)


def _picture(axes, image_HW: np.ndarray, scale: float) -> None:
    noise = 1.4826 * np.median(np.abs(image_HW - np.median(image_HW)))
    axes.imshow(np.arcsinh(image_HW / noise / 2), cmap="Greys", origin="lower", interpolation="nearest")
    side = scale * len(image_HW)
    low = (len(image_HW) - side) / 2 - 0.5
    axes.add_patch(mpl.patches.Rectangle((low, low), side, side, fill=False, color=TRUTH, linewidth=1.6))
    axes.text(low, low + side + 1.5, "learned crop", color=TRUTH)
    axes.set_axis_off()


def _panel(axes, draw_ND: np.ndarray, truth_D: list[float], i: int, j: int) -> None:
    ranges = [np.quantile(draw_ND[:, d], [0.0005, 0.9995]) for d in (j, i)]
    if i == j:
        axes.hist(draw_ND[:, i], bins=80, range=ranges[0], histtype="stepfilled", color=ACCENT, alpha=0.75)
        axes.set_yticks([])
    else:
        count_XY, *edges = np.histogram2d(draw_ND[:, j], draw_ND[:, i], bins=60, range=ranges)
        levels = _levels(count_XY, (0.9545, 0.6827))
        centres = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
        colours = ["#b9d0e3", ACCENT]
        axes.contourf(*centres, count_XY.T, levels=[*levels, count_XY.max() + 1], colors=colours)
        axes.axhline(truth_D[i], color=TRUTH, linewidth=1)
    axes.axvline(truth_D[j], color=TRUTH, linewidth=1)
    axes.set_xlim(*ranges[0])


def _levels(count_XY: np.ndarray, shares: tuple[float, ...]) -> list[float]:
    """Return the counts above which lie these shares of all draws, ascending."""
    ordered = np.sort(count_XY, axis=None)[::-1]
    inside = np.cumsum(ordered) / ordered.sum()
    return sorted(float(ordered[np.searchsorted(inside, share)]) for share in shares)


if __name__ == "__main__":
    main(sys.argv[1])
