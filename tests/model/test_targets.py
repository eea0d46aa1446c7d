import json

import numpy as np
import pytest

from gampen_ray import documents
from gampen_ray.config import TargetConfig
from gampen_ray.errors import UserError
from gampen_ray.model.targets import Target, TargetSchema

CONFIGS = {
    "bulge_to_total": TargetConfig(transform="logit", clip=0.02),
    "effective_radius_arcsec": TargetConfig(transform="log", unit="arcsec"),
    "magnitude": TargetConfig(),
}


def values(n: int = 500) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.stack([rng.uniform(0.02, 0.98, n), rng.lognormal(0.3, 0.5, n), rng.normal(20, 1, n)], axis=1)


def test_standardised_values_have_zero_mean_and_unit_scatter() -> None:
    schema = TargetSchema.fit(CONFIGS, values(), {"magnitude": "mag"})
    z = schema.standardise(values())
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-12)
    assert [t.unit for t in schema] == ["", "arcsec", "mag"]


def test_physical_inverts_standardise() -> None:
    schema = TargetSchema.fit(CONFIGS, values(), {})
    np.testing.assert_allclose(schema.physical(schema.standardise(values())), values(), rtol=1e-12)


def test_logit_clips_the_ends_of_its_domain() -> None:
    schema = TargetSchema.fit(CONFIGS, values(), {})
    ends = np.array([[0.0, 1.0, 20.0], [1.0, 1.0, 20.0]])
    np.testing.assert_allclose(schema.physical(schema.standardise(ends))[:, 0], [0.02, 0.98], rtol=1e-12)


def test_round_trip_through_plain_values() -> None:
    schema = TargetSchema.fit(CONFIGS, values(), {})
    assert documents.parsed(tuple[Target, ...], json.dumps(schema.to_dict()), "", "") == schema.targets


@pytest.mark.parametrize(
    ("column", "bad", "match"),
    [
        (0, 1.2, r"targets\.bulge_to_total: 1 of 500 values .* 'logit', the first is 1\.2; it takes values in \[0, 1\]"),
        (1, 0.0, r"targets\.effective_radius_arcsec: .* values above 0"),
        (2, np.nan, r"targets\.magnitude: .* finite values"),
    ],
)
def test_value_outside_the_domain_is_named(column: int, bad: float, match: str) -> None:
    y = values()
    y[7, column] = bad
    with pytest.raises(UserError, match=match):
        TargetSchema.fit(CONFIGS, y, {})


def test_constant_target_is_refused() -> None:
    y = values()
    y[:, 2] = 20.0
    with pytest.raises(UserError, match=r"targets\.magnitude: all training values are 20"):
        TargetSchema.fit(CONFIGS, y, {})


def test_a_clip_of_zero_is_taken_from_the_data() -> None:
    config = {"bulge_to_total": TargetConfig(transform="logit", clip=0)}
    y = np.array([0.0, 0.004, 0.5, 0.98, 1.0])
    target = TargetSchema.fit(config, y[:, None], {}).targets[0]
    assert (target.clip_low, target.clip_high) == pytest.approx((0.002, 0.99))
    assert target.physical(target.standardise(y)) == pytest.approx([0.002, 0.004, 0.5, 0.98, 0.99])
    with pytest.raises(UserError, match=r"targets\.bulge_to_total\.clip: .* all values are 0, or all are 1; give a clip"):
        TargetSchema.fit(config, np.zeros((3, 1)), {})


def test_in_another_unit_the_standardised_values_are_the_same() -> None:
    values_ND = np.random.default_rng(3).uniform(1, 9, (50, 2))
    units = {"a": "1e-12 mgy", "b": "1e-12 mgy"}
    schema = TargetSchema.fit({"a": TargetConfig(transform="log"), "b": TargetConfig(transform="identity")}, values_ND, units)
    shown, factor_D = schema.shown()
    assert [target.unit for target in shown] == ["nJy", "nJy"]
    assert factor_D == pytest.approx(3.631, rel=1e-6)
    np.testing.assert_allclose(shown.standardise(factor_D * values_ND), schema.standardise(values_ND), atol=1e-12)
    np.testing.assert_allclose([target.high for target in shown], factor_D * values_ND.max(axis=0))
