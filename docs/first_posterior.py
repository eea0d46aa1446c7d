"""Draw the figure of the README: a simulated galaxy, its learned crop, and its joint posterior with the truth.

python docs/first_posterior.py docs/first_posterior.png
"""

import sys

import numpy as np
from matplotlib import pyplot as plt

from gampen_ray import load_bundle, plot
from gampen_ray.inference.predictor import Predictor
from gampen_ray.simulation.scene import simulate
from gampen_ray.simulation.surveys import SURVEYS

LABELS = {"bulge_to_total": "B/T", "effective_radius_arcsec": "$R_e$ [arcsec]", "flux": "flux [nJy]"}


def main(path: str) -> None:
    """Draw and save."""
    bundle = load_bundle("builtin:kids-r")
    rows = simulate(SURVEYS["kids-r"], cutout_size=96, seed=5, start=0, stop=60)
    # An ordinary galaxy with a bulge and a disk.
    chosen = int(np.argmin(np.abs(rows["magnitude"] - 18.5) + 2 * np.abs(rows["bulge_to_total"] - 0.4)))
    one = {name: values[chosen : chosen + 1] for name, values in rows.items()}
    prediction = Predictor(bundle, num_passes=289, seed=0, device="cpu")(one["image"], bundle.condition_values(one, 1))

    figure = plt.figure(figsize=(9.6, 4.6), dpi=110)
    left, right = figure.subfigures(1, 2, width_ratios=(0.8, 1))
    plot.cutout(one["image"][0, 0], crop_scale=float(prediction.crop_scale_N[0]), axes=left.add_axes((0.02, 0.04, 0.96, 0.92)))
    plot.corner(prediction.mixture, truth=[one[name][0] for name in bundle.targets.names], labels=LABELS, figure=right)
    figure.savefig(path)


if __name__ == "__main__":
    main(sys.argv[1])
