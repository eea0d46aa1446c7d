import math

import numpy as np
import pytest

from gampen_ray.data.gampen_labels import Label, expit_custom, label_of, logit_custom, logit_limits, magnitude
from gampen_ray.errors import UserError
from tests.parity import golden, needs_parity


@pytest.mark.parametrize(
    ("column", "target", "transform", "unit"),
    [
        ("custom_logit_bt", "bulge_to_total", "logit", ""),
        ("ln_R_e_asec", "effective_radius_arcsec", "log", "arcsec"),
        ("ln_total_flux_adus", "flux", "log", "adu"),
        ("ln_sersic_index", "sersic_index", "log", ""),
        ("custom_logit_bar_strength", "bar_strength", "logit", ""),
        ("bt_g", "bt_g", "identity", ""),
        ("ln_", "ln_", "identity", ""),
    ],
)
def test_a_label_names_target_transform_and_unit_and_the_target_names_the_label(
    column: str, target: str, transform: str, unit: str
) -> None:
    label = Label.parse(column)
    assert (label.target, label.transform, label.unit) == (target, transform, unit)
    assert label_of(label.target, label.transform) == label


def test_physical_values_invert_the_transform() -> None:
    y = np.array([0.01, 0.3, 0.9])
    assert Label.parse("ln_x").physical(np.log(y)) == pytest.approx(y, rel=1e-15)
    assert Label.parse("custom_logit_x").physical(np.log(y / (1 - y))) == pytest.approx(y, rel=1e-15)
    assert Label.parse("x").physical(y) is y
    assert Label.parse("ln_x").physical(np.array([1000.0]))[0] == math.inf


def test_limits_lie_half_way_between_the_bounds_and_their_neighbours() -> None:
    assert logit_limits(np.array([0.0, 0.004, 0.5, 0.98, 1.0])) == pytest.approx((0.002, 0.99), rel=1e-15)


@pytest.mark.parametrize("y", [np.zeros(3), np.ones(2)])
def test_limits_need_values_that_differ(y: np.ndarray) -> None:
    with pytest.raises(UserError, match="all values are 0, or all are 1"):
        logit_limits(y)


def test_zero_and_one_survive_the_round_trip_only_where_they_were() -> None:
    y = np.array([0.0, 0.004, 0.1, 0.99, 1.0])
    assert expit_custom(logit_custom(y), y) == pytest.approx(y, rel=1e-14)
    assert expit_custom(np.array([-20.0, 20.0]), y[1:4]) == pytest.approx([math.exp(-20), 1.0], rel=1e-8)


def test_a_magnitude_is_a_factor_of_100_in_flux_over_five() -> None:
    assert magnitude(np.array([1.0, 100.0, 0.0]), 30.0).tolist() == [30.0, 25.0, math.inf]
    assert magnitude(np.array([1.0, 100.0]), 30.0, gampen=True) == pytest.approx([27.0, 27 - 5.024])


@needs_parity
@pytest.mark.parametrize("case", ["zeros_and_ones", "zeros_only", "ones_only", "inside"])
def test_logit_and_expit_are_those_of_gampen(case: str) -> None:
    arrays = golden("logit_expit.npz")
    scaling = arrays[f"scaling_{case}"]
    assert logit_custom(scaling) == pytest.approx(arrays[f"logit_{case}"], abs=1e-12)
    assert expit_custom(arrays["z"], scaling) == pytest.approx(arrays[f"expit_{case}"], abs=1e-12)
    assert expit_custom(logit_custom(scaling), scaling) == pytest.approx(arrays[f"roundtrip_{case}"], abs=1e-12)
    assert expit_custom(arrays["z"]) == pytest.approx(arrays["expit_none"], abs=1e-12)


@needs_parity
def test_unscaling_is_that_of_gampen() -> None:
    arrays = golden("unscale.npz")
    for column in ("ln_R_e_asec", "ln_total_flux_adus"):
        label = Label.parse(column)
        ours = label.physical(arrays[f"in_preds_{column}"])
        assert ours == pytest.approx(arrays[f"out_preds_{label.quantity}"], rel=1e-12)
    logits = arrays["in_preds_custom_logit_bt"]
    assert Label.parse("custom_logit_bt").physical(logits) == pytest.approx(arrays["out_noscale_preds_bt"], abs=1e-12)
    flux = arrays["out_preds_total_flux_adus"]
    assert magnitude(flux, 30.0, gampen=True) == pytest.approx(arrays["out_preds_total_mag"], abs=1e-12)
