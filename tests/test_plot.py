"""Figures of galaxies and posteriors."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

import gampen_ray
from gampen_ray.model.targets import TargetSchema
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
    (low_G, low_H), (high_G, high_H) = posterior.quantile([1e-7, 1 - 1e-7])[1]
    # Evenly in log flux and in concentration, as the targets are transformed.
    y_G, y_H = np.geomspace(low_G, high_G, 1000), np.linspace(low_H, high_H, 1000)
    density_GH = posterior.joint_density(0, 1, y_G, y_H)[1]
    np.testing.assert_allclose(
        np.trapezoid(density_GH, y_H, axis=1), posterior.marginal_density(0, y_G)[1], rtol=1e-3, atol=1e-8
    )
    np.testing.assert_allclose(
        np.trapezoid(density_GH, y_G, axis=0), posterior.marginal_density(1, y_H)[1], rtol=1e-3, atol=1e-8
    )
    np.testing.assert_allclose(posterior.joint_density(1, 0, y_H, y_G)[1], density_GH.T, rtol=1e-9)
    at = (np.log(y_G[400]), y_H[500])
    expected = np.exp(posterior.log_prob(np.tile([np.exp(at[0]), at[1]], (3, 1))))[1]
    assert density_GH[400, 500] == pytest.approx(expected)
    # A fraction has no density beyond its ends.
    assert posterior.joint_density(0, 1, y_G[:2], np.array([-0.1, 1.1])).max() == 0


def in_unit(posterior: Mixture, unit: str) -> Mixture:
    targets = tuple(dataclasses.replace(target, unit=target.unit and unit) for target in posterior.targets)
    return Mixture(posterior.mean_NKD, posterior.scale_tril_NKDD, TargetSchema(targets))


def test_a_truth_far_off_is_in_the_figure(posterior: Mixture) -> None:
    low_D, high_D = posterior.quantile([5e-4, 1 - 5e-4])[0]
    _, axes_DD = gampen_ray.plot.corner(posterior, truth=[high_D[0] + 1000.0, -0.5])
    ends = np.array([axes_DD[1, 0].get_xlim(), axes_DD[1, 0].get_ylim()])
    assert ends[0] == pytest.approx([low_D[0], high_D[0] + 1000 + 0.05 * (high_D[0] + 1000 - low_D[0])])
    assert ends[1] == pytest.approx([-0.5 - 0.05 * (high_D[1] + 0.5), high_D[1]])
    assert axes_DD[1, 1].get_xlim() == pytest.approx(ends[1])


def test_fluxes_are_drawn_in_nanojansky_and_labels_keep_apart(posterior: Mixture) -> None:
    in_mgy = in_unit(posterior, "1e-12 mgy")
    figure, axes_DD = gampen_ray.plot.corner(in_mgy, truth=[50.0, 0.4])
    assert axes_DD[1, 0].get_xlabel() == "flux\n[nJy]"
    assert axes_DD[1, 0].get_xlim() == pytest.approx(3.631 * posterior.quantile([5e-4, 1 - 5e-4])[0, :, 0])
    assert axes_DD[1, 0].lines[0].get_xdata()[0] == pytest.approx(3.631 * 50)
    figure.canvas.draw()
    boxes = [axes.xaxis.label.get_window_extent() for axes in axes_DD[1]]
    assert not boxes[0].overlaps(boxes[1])
    assert all(box.y0 >= 0 for box in boxes) and axes_DD[1, 0].yaxis.label.get_window_extent().x0 >= 0
    axes = gampen_ray.plot.predictions(in_mgy, np.full((3, 2), [50.0, 0.4]), "flux")[1]
    assert axes.get_xlabel() == "true flux [nJy]"
    assert axes.lines[1].get_xdata() == pytest.approx([3.631 * 50] * 3)


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
    assert labels == ["flux\n[Jy]", "concentration"]


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


def test_predictions_have_the_intervals_of_the_posterior(posterior: Mixture) -> None:
    truth_ND = np.array([[40.0, 0.3], [60.0, 0.5], [80.0, 0.7]])
    _, axes = gampen_ray.plot.predictions(posterior, truth_ND, "flux")
    points, _, (bars,) = axes.containers[0]
    np.testing.assert_array_equal(points.get_xdata(), truth_ND[:, 0])
    np.testing.assert_allclose(points.get_ydata(), posterior.quantile([0.5])[:, 0, 0])
    drawn_N2 = np.array([segment[:, 1] for segment in bars.get_segments()])
    np.testing.assert_allclose(drawn_N2, posterior.credible_interval(0.6827)[:, :, 0], rtol=1e-6)
    assert (axes.get_xscale(), axes.get_ylabel()) == ("log", "posterior flux [Jy]")
    assert gampen_ray.plot.predictions(posterior, truth_ND, "concentration")[1].get_xscale() == "linear"


def test_coverage_and_ranks_are_those_of_an_evaluation() -> None:
    curve = {"level": [0.25, 0.5], "share": [0.1, -0.1], "low": [-0.2, -0.2], "high": [0.2, 0.2], "p": 0.5}
    wide = curve | {"ribbon_low": [-0.3, -0.4], "ribbon_high": [0.3, 0.4]}
    evaluation = {"diagnostics": {"curves": {"flux": wide, "joint": wide}, "ranks": {"flux": curve}}}
    for draw, names, end in (
        (gampen_ray.plot.coverage, ["flux", "joint"], 0.4),
        (gampen_ray.plot.ranks, ["flux"], 0.2),
    ):
        _, panels = draw(evaluation)
        assert [axes.get_title() for axes in panels] == names
        assert panels[0].lines[-1].get_ydata() == pytest.approx([0, 0.1, -0.1, 0])
        assert panels[0].collections[0].get_paths()[0].vertices[:, 1].max() == pytest.approx(end)


def test_losses_of_a_training() -> None:
    history = [{"epoch": 0, "train_loss": None, "val_loss": 2.0}, {"epoch": 1, "train_loss": 1.5, "val_loss": 1.0}]
    _, axes = gampen_ray.plot.training(history)
    assert [line.get_label() for line in axes.lines] == ["training", "validation"]
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), [np.nan, 1.5])
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), [2.0, 1.0])
