import json

import numpy as np
import pytest
from scipy import stats

from gampen_ray.inference.verdicts import bin_verdict
from gampen_ray.posterior.calibration import Calibration, coverage
from gampen_ray.posterior.diagnostics import accuracy, evaluate, format_table, measure
from tests.posterior.posterior_cases import components_1d, mixture


@pytest.fixture(scope="module")
def evaluated():
    raw = mixture("logit", "log", "identity", num_galaxies=400, num_passes=4, location=0.0, scale=0.5)
    truths = raw.sample(1, seed=1)[:, 0]
    wrong = raw.scaled(np.array([0.5, 0.5, 0.5]))
    return wrong, truths, evaluated_whole(wrong.scaled(np.full(3, 2.0)), truths, np.full(3, 2.0))


def evaluated_whole(posteriors, truths, scale):
    calibration = Calibration.constant(scale)
    return evaluate(measure([posteriors], calibration, truths), calibration)


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
    result = accuracy(pairs.targets, pairs.quantile(0.5), np.array([[0.5], [1.0], [2.0], [4.0]]))["log_0"]
    assert result["median_absolute_relative_error"] == pytest.approx(0.625)
    assert result["mean_absolute_error"] == pytest.approx(4.5 / 4)
    assert result["bias"] == pytest.approx(-3.5 / 4)
    assert result["rmse"] == pytest.approx(np.sqrt((0.25 + 1 + 9) / 4))
    assert result["unit"] == "arcsec"


def test_relative_error_leaves_out_truths_of_zero():
    m = components_1d("logit", [0.0], [0.5])
    pair = type(m).concatenate([m, m])
    errors = [
        accuracy(pair.targets, pair.quantile(0.5), np.array(truth_ND))["logit_0"] for truth_ND in ([[0.0], [0.4]], [[0.0]] * 2)
    ]
    assert errors[0]["median_absolute_relative_error"] == pytest.approx(0.25)
    assert errors[1]["median_absolute_relative_error"] is None


def test_negative_log_density_of_a_gaussian():
    m = components_1d("identity", [1.0], [2.0])
    result = evaluated_whole(m, np.array([[4.0]]), np.ones(1))["negative_log_density"]["calibrated"]
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
    assert " - " in format_table(evaluated_whole(m, np.zeros((1, 1)), np.ones(1)))


def test_pieces_give_what_the_whole_gives(evaluated):
    wrong, truths, whole = evaluated
    posteriors = wrong.scaled(np.full(3, 2.0))
    calibration = Calibration.constant(np.full(3, 2.0))
    found = measure([posteriors[:130], posteriors[130:131], posteriors[131:]], calibration, truths)
    result = evaluate(found, calibration)
    for version, values in whole["negative_log_density"].items():
        assert result["negative_log_density"][version] == pytest.approx(values)
    assert {name: result[name] for name in result if name != "negative_log_density"} == {
        name: whole[name] for name in whole if name != "negative_log_density"
    }


def test_draws_are_made_of_some_galaxies(evaluated):
    wrong, truths, whole = evaluated
    posteriors = wrong.scaled(np.full(3, 2.0))
    calibration, rows = Calibration.constant(np.full(3, 2.0)), np.arange(1, 400, 5)
    found = measure(posteriors.chunks(64), calibration, truths, rows)
    np.testing.assert_array_equal(found.some.mean_NKD, posteriors[rows].mean_NKD)
    result = evaluate(found, calibration)
    assert (result["num_galaxies"], result["diagnostics"]["num_drawn"]) == (400, 80)
    for row, other in zip(result["coverage"]["calibrated"], whole["coverage"]["calibrated"], strict=True):
        if row["target"] == "joint":
            assert row["error"] == pytest.approx(np.sqrt(5) * other["error"])
        else:
            assert row == other
    with pytest.raises(ValueError, match="300 posteriors, but 400 galaxies"):
        measure([posteriors[:300]], calibration, truths)


def test_a_column_that_is_a_true_value_is_shown_and_not_judged(evaluated):
    wrong, truths, _ = evaluated
    calibration = Calibration.constant(np.full(3, 2.0))
    found = measure([wrong.scaled(np.full(3, 2.0))], calibration, truths)
    by = {"psf": np.arange(400.0), "magnitude": -2.5 * truths[:, 1]}
    columns = evaluate(found, calibration, by=by)["columns"]
    alone = evaluate(found, calibration, by={"psf": by["psf"]})["columns"]
    assert {row["column"] for row in columns["rows"] if row.get("of_truth")} == {"magnitude"}
    # Whatever it shows, it has no part in the test or the verdict.
    assert (columns["p"], columns["critical"]) == (alone["p"], alone["critical"])
    for row in columns["rows"]:
        if row["column"] == "magnitude":
            row["coverage"] = 0.0
    assert bin_verdict(columns) == bin_verdict(alone)
    scattered = truths[:, 1] + truths[:, 1].std() * np.random.default_rng(0).standard_normal(400)
    assert not any(row.get("of_truth") for row in evaluate(found, calibration, by={"noisy": scattered})["columns"]["rows"])


def test_columns_and_maps_are_added_on_request(evaluated):
    wrong, truths, whole = evaluated
    assert not {"columns", "sky"} & set(whole)
    posteriors = wrong.scaled(np.full(3, 2.0))
    calibration = Calibration.constant(np.full(3, 2.0))
    position_N2 = np.stack([np.repeat([10.0, 40.0], 200), np.full(400, 5.0)], axis=1)
    by = {"tile": np.repeat(np.array(["east", "west"], dtype=object), 200), "psf": np.arange(400.0)}
    result = evaluate(measure([posteriors], calibration, truths), calibration, by=by, position_N2=position_N2)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    tiles = [row for row in result["columns"]["rows"] if row["column"] == "tile"]
    found = [(row["value"], row["target"], row["num_galaxies"]) for row in tiles[::3]]
    assert found == [("east", "logit_0", 200), ("west", "logit_0", 200)]
    # The two places of the map are the two tiles.
    for key in ("coverage", "mean_rank", "bias", "scatter", "bias_sigma", "scatter_sigma"):
        assert {row[key] for row in result["sky"]["rows"]} == {row[key] for row in tiles}
    assert result["diagnostics"] == whole["diagnostics"]
    error_N = posteriors.quantile(0.5)[:200, 2] - truths[:200, 2]
    assert tiles[2]["bias"] == pytest.approx(np.median(error_N))
