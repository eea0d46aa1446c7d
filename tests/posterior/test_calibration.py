import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from scipy.special import ndtri

from gampen_ray.config import TargetConfig
from gampen_ray.errors import UserError
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.calibration import JOINT, Calibration, coverage, fit_scale, fit_tails
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.shape import with_correlation, without_correlation
from gampen_ray.posterior.summary import LEVELS
from tests.posterior.posterior_cases import components_1d, mixture

# Wide transformed distributions would put truths beyond the logit's clip; these stay inside it.
INNER = {"location": 0.0, "scale": 0.5}


def true_draws(m, seed=11):
    """One draw per galaxy from its own posterior."""
    return m.sample(1, seed)[:, 0]


@pytest.fixture(scope="module")
def calibrated():
    m = mixture("logit", "log", "identity", num_galaxies=2500, num_passes=8, **INNER)
    return m, true_draws(m)


def test_truths_drawn_from_the_posterior_give_nominal_coverage(calibrated):
    rows = coverage(*calibrated)
    assert [row.target for row in rows] == ["logit_0"] * 3 + ["log_1"] * 3 + ["identity_2"] * 3 + [JOINT] * 3
    assert [row.level for row in rows] == list(LEVELS.values()) * 4
    for row in rows:
        assert row.coverage == pytest.approx(row.level, abs=4 * row.error), row
        assert row.error == pytest.approx(np.sqrt(row.level * (1 - row.level) / 2500))


def test_calibrated_posteriors_need_no_scale(calibrated):
    assert fit_scale(*calibrated) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("factor", [0.4, 2.0])
def test_wrong_width_is_repaired(calibrated, factor):
    m, truths = calibrated
    wrong = m.scaled(np.array([factor, 1.0, factor**2]))
    before = {(row.target, row.level): row.coverage for row in coverage(wrong, truths)}
    assert (before["logit_0", 0.6827] < 0.6) == (factor < 1)
    assert abs(before[JOINT, 0.6827] - 0.6827) > 0.1
    scale = fit_scale(wrong, truths)
    assert scale == pytest.approx([1 / factor, 1.0, 1 / factor**2], rel=0.05)
    for row in coverage(wrong.scaled(scale), truths):
        assert row.coverage == pytest.approx(row.level, abs=4 * row.error), row


def test_joint_coverage_of_one_target_with_one_peak_is_its_interval():
    m = mixture("identity", num_galaxies=1500, num_passes=1)
    rows = coverage(m, true_draws(m))
    for marginal, joint in zip(rows[:3], rows[3:], strict=True):
        assert joint.coverage == pytest.approx(marginal.coverage, abs=0.01)


def test_joint_region_of_two_peaks_leaves_out_the_middle():
    m = components_1d("identity", [-10.0, 10.0], [1.0, 1.0])
    rows = coverage(m, np.array([[0.0]]))
    assert [row.coverage for row in rows] == [1, 1, 1, 0, 0, 0]


def test_coverage_is_seeded(calibrated):
    m, truths = calibrated[0][:100], calibrated[1][:100]
    assert coverage(m, truths, seed=3) == coverage(m, truths, seed=3)


def test_scale_agrees_with_direct_search():
    m = mixture("log", num_galaxies=1000, num_passes=4)
    wrong, truths = m.scaled(np.array([0.6])), true_draws(m)

    def misfit(log_scale):
        scaled = wrong.scaled(np.exp([log_scale]))
        shares = {level: np.mean([(truths >= low) & (truths <= high)]) for level, (low, high) in intervals(scaled)}
        return sum((share - level) ** 2 / (level * (1 - level)) for level, share in shares.items())

    def intervals(m):
        return [(level, m.credible_interval(level).transpose(1, 0, 2)) for level in LEVELS.values()]

    best = min(np.linspace(0.2, 0.8, 61), key=misfit)
    assert np.log(fit_scale(wrong, truths)[0]) == pytest.approx(best, abs=0.04)


def test_scale_where_the_mean_lies_outside_the_inner_interval():
    """One outlying pass drags the mean out of the 68 % interval; scaling then moves the interval away from the mean."""
    m = mixture("identity", num_galaxies=800, num_passes=10, spread=0.0)
    mean = m.mean_NKD.clone()
    mean[:, 0] += 60
    skewed = type(m)(mean, m.scale_tril_NKDD, m.targets)
    scale = fit_scale(skewed, true_draws(skewed))
    assert scale == pytest.approx(1, abs=0.05)


def test_scale_of_few_galaxies_stays_near_one():
    m = mixture("log", num_galaxies=3)
    assert fit_scale(m, m.quantile(0.55))[0] == pytest.approx(1, abs=0.1)
    assert 1 < fit_scale(m, m.quantile(0.99))[0] < 3


def test_scale_of_many_truths_near_the_median():
    m = mixture("log", num_galaxies=500)
    assert fit_scale(m, m.quantile(0.55))[0] < 0.25


def test_scale_of_truths_at_ten_sigma():
    m = mixture("identity", num_galaxies=50)
    assert 3 < fit_scale(m, m.mean() + 10 * m.std())[0] < 16


def test_scale_is_one_where_no_scale_in_range_matters():
    m = mixture("identity", num_galaxies=50)
    assert fit_scale(m, m.mean() + 1000 * m.std()) == pytest.approx(1)
    assert fit_scale(m, m.mean()) == pytest.approx(1)


def test_probability_integral_transform_is_uniform(calibrated):
    m, truths = calibrated
    pit = m.cdf(truths)
    assert pit.shape == truths.shape
    for d in range(3):
        assert stats.kstest(pit[:, d], "uniform").pvalue > 1e-3


def test_truth_of_zero_bulge_to_total_is_clipped():
    m = components_1d("logit", [-4.0], [1.0])
    assert m.cdf(np.zeros((1, 1))) == pytest.approx(m.cdf(np.full((1, 1), 0.01)))
    assert coverage(m, np.zeros((1, 1)))[0].coverage == 1


def test_truth_outside_the_domain():
    with pytest.raises(UserError, match="domain of transform 'log'"):
        coverage(mixture("log", num_galaxies=1), np.array([[-1.0]]))


def test_truths_of_another_shape():
    with pytest.raises(ValueError, match=r"truths_ND has shape \(3,\), not \(3, 1\)"):
        fit_scale(mixture("log", num_galaxies=3), np.ones(3))


def test_no_galaxies():
    with pytest.raises(ValueError, match="at least one galaxy"):
        coverage(mixture("log")[:0], np.ones((0, 1)))


def test_coverage_of_scales_against_scaled_intervals():
    """`fit_scale`'s closed form gives, at the scale found by root finding for one galaxy, the edge of its interval."""
    m = components_1d("identity", [-1.0, 0.0, 4.0], [0.3, 0.5, 1.0])
    truth = np.array([[6.5]])
    covered = lambda s: coverage(m.scaled(np.array([s])), truth)[1].coverage - 0.5  # noqa: E731
    edge = optimize.bisect(covered, 0.1, 10, xtol=1e-10)
    centre, high = m.mean()[0, 0], m.credible_interval(0.9545)[0, 1, 0]
    assert edge == pytest.approx((6.5 - centre) / (high - centre), rel=1e-8)


def of_widths(count: int, error: Callable[[np.ndarray], np.ndarray]) -> tuple[Mixture, np.ndarray]:
    """Return posteriors of one target whose widths vary by a factor of 100, and truths that scatter by another width."""
    rng = np.random.default_rng(5)
    std_N = np.exp(rng.uniform(math.log(0.01), 0, count))
    schema = TargetSchema.fit({"x": TargetConfig()}, rng.standard_normal((100, 1)), {})
    mean_NKD = torch.from_numpy(rng.standard_normal((count, 1, 1)))
    z_N1 = mean_NKD[:, 0].numpy() + (error(std_N) * rng.standard_normal(count))[:, None]
    return Mixture(mean_NKD, torch.from_numpy(std_N)[:, None, None, None], schema), schema.physical(z_N1)


def test_a_calibration_by_width_corrects_what_one_factor_cannot() -> None:
    # Too wide where narrow, too narrow where wide.
    error = lambda std_N: std_N * (0.6 + 0.3 * (np.log(std_N) / math.log(10) + 2))  # noqa: E731
    fitted, truths = of_widths(8000, error)
    calibration = Calibration.fit(fitted, truths)
    assert calibration.std_DB.shape == (1, 8)
    assert (np.diff(calibration.std_DB) > 0).all()
    held_out, held_truths = of_widths(7999, error)
    narrow_N = held_out.standardised_std()[:, 0] < 0.05
    one = held_out.scaled(fit_scale(fitted, truths))
    for part in (narrow_N, ~narrow_N):
        assert coverage(calibration(held_out)[part], held_truths[part])[0].coverage == pytest.approx(0.6827, abs=0.02)
        assert coverage(one[part], held_truths[part])[0].coverage != pytest.approx(0.6827, abs=0.04)
    back = calibration.undone(calibration(held_out))
    np.testing.assert_allclose(back.standardised_std(), held_out.standardised_std(), rtol=1e-9)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    np.testing.assert_array_equal(again(held_out).standardised_std(), calibration(held_out).standardised_std())


def test_few_galaxies_are_calibrated_by_one_factor_a_target() -> None:
    few, truths = of_widths(700, lambda std_N: 1.5 * std_N)
    calibration = Calibration.fit(few, truths)
    assert calibration.scale_DB == pytest.approx(fit_scale(few, truths)[:, None])


def of_tails(count: int, stated: float, true: float) -> tuple[Mixture, np.ndarray]:
    """Return posteriors of one target whose 100 components have scales of a log-normal distribution, and truths of another."""
    rng = np.random.default_rng(7)
    schema = TargetSchema.fit({"x": TargetConfig()}, rng.standard_normal((100, 1)), {})
    mean_N11 = torch.from_numpy(rng.standard_normal((count, 1, 1)))
    scale_K = torch.from_numpy(np.exp(stated * ndtri((np.arange(100) + 0.5) / 100)))
    width_N = np.exp(rng.uniform(-3, -1, count))
    errors_N = width_N * np.exp(true * rng.standard_normal(count)) * rng.standard_normal(count)
    mixture = Mixture(mean_N11.expand(-1, 100, -1), (torch.from_numpy(width_N)[:, None] * scale_K)[..., None, None], schema)
    return mixture, schema.physical(mean_N11[:, 0].numpy() + errors_N[:, None])


@pytest.mark.parametrize(("stated", "true"), [(0.5, 0.3), (0.4, 0.7)])
def test_tails_are_calibrated_to_those_of_the_errors(stated: float, true: float) -> None:
    fitted, truths = of_tails(4000, stated, true)
    calibration = Calibration.fit(fitted, truths)
    assert calibration.tails == pytest.approx(true / stated, abs=0.2)
    for row in coverage(calibration(fitted), truths)[:3]:
        assert row.coverage == pytest.approx(row.level, abs=0.006)
    back = calibration.undone(calibration(fitted))
    torch.testing.assert_close(back.scale_tril_NKDD, fitted.scale_tril_NKDD)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.tails == calibration.tails != 1


def test_tails_of_components_that_are_alike_are_left_as_they_are() -> None:
    fitted, truths = of_widths(500, lambda std_N: std_N)
    assert fit_tails(fitted, truths) == pytest.approx(1)
    for name in ("tails", "correlation"):
        with pytest.raises(ValueError, match=name):
            Calibration(std_DB=np.ones((1, 1)), scale_DB=np.ones((1, 1)), **{name: 0.0})


def of_correlation(count: int, stated: float, true: float) -> tuple[Mixture, np.ndarray]:
    """Return posteriors of two targets, of eight components and one correlation, and truths of another."""
    rng = np.random.default_rng(8)
    schema = TargetSchema.fit({"x": TargetConfig(), "y": TargetConfig()}, rng.standard_normal((100, 2)), {})
    tril, std = (np.linalg.cholesky([[1, rho], [rho, 1]]) for rho in (stated, true)), np.array([0.1, 0.3])
    stated_DD, true_DD = (std[:, None] * factor for factor in tril)
    mean_N1D = torch.from_numpy(rng.standard_normal((count, 1, 2)))
    mixture = Mixture(mean_N1D.expand(-1, 8, -1), torch.from_numpy(stated_DD).expand(count, 8, 2, 2), schema)
    return mixture, schema.physical(mean_N1D[:, 0].numpy() + rng.standard_normal((count, 2)) @ true_DD.T)


@pytest.mark.parametrize("factor", [0.85, 1.2])
def test_correlations_are_calibrated_by_joint_coverage(factor: float) -> None:
    fitted, truths = of_correlation(4000, 0.9, math.tanh(factor * math.atanh(0.9)))
    calibration = Calibration.fit(fitted, truths)
    assert calibration.correlation == pytest.approx(factor, abs=0.06)
    made = calibration(fitted)
    for row in coverage(made, truths)[:8]:
        assert row.coverage == pytest.approx(row.level, abs=0.015)
    torch.testing.assert_close(calibration.undone(made).scale_tril_NKDD, fitted.scale_tril_NKDD)
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict())))
    assert again.correlation == calibration.correlation != 1


def test_a_power_of_the_correlation_multiplies_fishers_z_and_keeps_the_rest() -> None:
    given = mixture("log", "logit", num_galaxies=20, num_passes=9, **INNER)
    made = with_correlation(given, 1.3)
    np.testing.assert_allclose(made.standardised_std(), given.standardised_std(), rtol=1e-9)
    np.testing.assert_allclose(made.standardised_mean(), given.standardised_mean(), rtol=1e-9, atol=1e-12)

    def z_of(posterior: Mixture) -> np.ndarray:
        offset = posterior.mean_NKD - posterior.mean_NKD.mean(1, keepdim=True)
        tril = posterior.scale_tril_NKDD
        covariance = (tril @ tril.mT + offset[..., :, None] * offset[..., None, :]).mean(1)
        return torch.atanh(covariance[:, 0, 1] / (covariance[:, 0, 0] * covariance[:, 1, 1]).sqrt()).numpy()

    np.testing.assert_allclose(z_of(made), 1.3 * z_of(given), rtol=1e-9)


@pytest.mark.parametrize("exponent", [0.75, 1.2, 1.35])
def test_a_power_of_the_correlation_is_undone(exponent: float) -> None:
    given = mixture("log", "logit", "identity", "log", num_galaxies=50, num_passes=4, **INNER)
    back = without_correlation(with_correlation(given, exponent), exponent)
    torch.testing.assert_close(back.scale_tril_NKDD, given.scale_tril_NKDD, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(back.mean_NKD, given.mean_NKD, rtol=1e-8, atol=1e-8)


def test_posteriors_that_are_nearly_a_line_keep_their_widths_under_a_power() -> None:
    given, _ = of_correlation(20, 0.9, 0.9)
    line = torch.tensor([[1.0, 0.0], [1.0, 1e-9]], dtype=torch.float64).expand(20, 8, 2, 2)
    made = with_correlation(Mixture(given.mean_NKD, line, given.targets), 1.3)
    np.testing.assert_allclose(made.standardised_std(), 1, rtol=1e-6)
