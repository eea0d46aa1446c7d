"""Figures of galaxies and posteriors."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import gampen_ray
from gampen_ray.posterior.mixture import Mixture
from tests.networks import bundle, galaxies


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def posterior() -> Mixture:
    return bundle().predict(galaxies(3)["image"], num_passes=8)


def test_a_joint_density_has_its_marginals_and_its_draws(posterior: Mixture) -> None:
    y_G, y_H = (np.linspace(*posterior.quantile([1e-5, 1 - 1e-5])[1, :, d], 400) for d in range(2))
    density_GH = posterior.joint_density(0, 1, y_G, y_H)[1]
    np.testing.assert_allclose(np.trapezoid(density_GH, y_H, axis=1), posterior.marginal_density(0, y_G)[1], rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(density_GH, y_G, axis=0), posterior.marginal_density(1, y_H)[1], rtol=1e-3)
    np.testing.assert_allclose(posterior.joint_density(1, 0, y_H, y_G)[1], density_GH.T, rtol=1e-9)
    at = (np.log(y_G[150]), y_H[200])
    expected = np.exp(posterior.log_prob(np.tile([np.exp(at[0]), at[1]], (3, 1))))[1]
    assert density_GH[150, 200] == pytest.approx(expected)
    # A fraction has no density beyond its ends.
    assert posterior.joint_density(0, 1, y_G[:2], np.array([-0.1, 1.1])).max() == 0


def test_a_corner_plot_has_the_marginals_the_pairs_and_the_truth(posterior: Mixture) -> None:
    figure, axes_DD = gampen_ray.plot.corner(
        posterior, 1, truth=pd.Series({"flux": 50.0, "concentration": 0.4}), labels={"flux": "F"}
    )
    assert axes_DD.shape == (2, 2)
    assert axes_DD[0, 1] is None
    assert [axes.get_xlabel() for axes in axes_DD[1]] == ["F", "concentration"]
    assert axes_DD[1, 0].get_ylabel() == "concentration"
    low, high = posterior.quantile([5e-4, 1 - 5e-4])[1]
    assert axes_DD[1, 0].get_xlim() == pytest.approx((low[0], high[0]))
    assert axes_DD[1, 0].get_ylim() == pytest.approx((low[1], high[1]))
    assert [line.get_xdata()[0] for line in axes_DD[1, 0].lines] == [50.0, 0.0]
    figure.canvas.draw()
    labels = [axes.get_xlabel() for axes in gampen_ray.plot.corner(posterior)[1][1]]
    assert labels == ["flux [Jy]", "concentration"]


def test_the_contours_hold_what_they_say(posterior: Mixture) -> None:
    _, axes_DD = gampen_ray.plot.corner(posterior, 2)
    draw_ND = posterior.sample(20_000, seed=1)[2]
    (contours,) = axes_DD[1, 0].collections
    outer, inner = contours.get_paths()
    assert inner.contains_points(draw_ND).mean() == pytest.approx(0.6827, abs=0.015)
    assert outer.contains_points(draw_ND).mean() == pytest.approx(0.9545, abs=0.01)


def test_a_cutout_shows_its_crop() -> None:
    _, axes = gampen_ray.plot.cutout(galaxies(1)["image"][0, 0], crop_scale=0.5)
    (square,) = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert square.get_bbox().bounds == (4.5, 4.5, 10.0, 10.0)
    assert not gampen_ray.plot.cutout(np.zeros((8, 8)))[1].patches
