import json

import numpy as np
import pytest
from scipy import stats

from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.diagnostics import accuracy, evaluate, format_table
from tests.posterior.posterior_cases import components_1d, mixture


@pytest.fixture(scope="module")
def evaluated():
    raw = mixture("logit", "log", "identity", num_galaxies=400, num_passes=4, location=0.0, scale=0.5)
    truths = raw.sample(1, seed=1)[:, 0]
    wrong = raw.scaled(np.array([0.5, 0.5, 0.5]))
    return (
        wrong,
        truths,
        evaluate(wrong.scaled(np.array([2.0, 2.0, 2.0])), Calibration.constant(np.array([2.0, 2.0, 2.0])), truths),
    )


def test_is_plain_json(evaluated):
    result = evaluated[2]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["num_galaxies"] == 400


def test_undoes_the_scale(evaluated):
    wrong, truths, result = evaluated
    expected = [row.coverage for row in coverage(wrong, truths)]
    assert [row["coverage"] for row in result["coverage"]["uncalibrated"]] == pytest.approx(expected, abs=0.006)
    assert result["coverage"]["calibrated"][0]["coverage"] == pytest.approx(0.6827, abs=0.1)
    density = result["negative_log_density"]
    assert density["calibrated"]["standardised"] < density["uncalibrated"]["standardised"]
    assert density["calibrated"]["physical"] < density["uncalibrated"]["physical"]


def test_accuracy_by_hand():
    m = components_1d("log", [0.0], [0.5])  # posterior median 1
    pairs = type(m).concatenate([m, m, m, m])
    result = accuracy(pairs, np.array([[0.5], [1.0], [2.0], [4.0]]))["log_0"]
    assert result["median_absolute_relative_error"] == pytest.approx(0.625)
    assert result["mean_absolute_error"] == pytest.approx(4.5 / 4)
    assert result["bias"] == pytest.approx(-3.5 / 4)
    assert result["rmse"] == pytest.approx(np.sqrt((0.25 + 1 + 9) / 4))
    assert result["unit"] == "arcsec"


def test_relative_error_leaves_out_truths_of_zero():
    m = components_1d("logit", [0.0], [0.5])
    pair = type(m).concatenate([m, m])
    assert accuracy(pair, np.array([[0.0], [0.4]]))["logit_0"]["median_absolute_relative_error"] == pytest.approx(0.25)
    assert accuracy(pair, np.zeros((2, 1)))["logit_0"]["median_absolute_relative_error"] is None


def test_negative_log_density_of_a_gaussian():
    m = components_1d("identity", [1.0], [2.0])
    result = evaluate(m, Calibration.constant(np.ones(1)), np.array([[4.0]]))["negative_log_density"]["calibrated"]
    assert result["physical"] == pytest.approx(-stats.norm.logpdf(4.0, 1.0, 2.0))
    assert result["standardised"] == pytest.approx(result["physical"] - np.log(m.targets.targets[0].scale))


def test_table_has_six_short_lines(evaluated):
    lines = format_table(evaluated[2]).split("\n")
    assert len(lines) == 6
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("400 galaxies")
    assert [line.split()[0] for line in lines[1:]] == ["target", "logit_0", "log_1", "identity_2", "joint"]
    assert lines[3].count("->") == 3 and "log_1 [arcsec]" in lines[3]


def test_table_without_relative_error():
    m = components_1d("logit", [0.0], [0.5])
    assert " - " in format_table(evaluate(m, Calibration.constant(np.ones(1)), np.zeros((1, 1))))
