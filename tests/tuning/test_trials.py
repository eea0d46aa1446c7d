import dataclasses
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gampen_ray.config import SearchRange, TuneConfig
from gampen_ray.errors import UserError
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import (
    PENALTY,
    Trial,
    best,
    calibration_error,
    heard,
    objectives,
    pareto_front,
    study,
    trials_table,
)
from tests.networks import bundle

PLAN = '[8, "M", 16]'
SPACE = SearchSpace.of(
    TuneConfig(
        dataset="d",
        output="o",
        search={
            "network.backbone.dropout_rate": SearchRange(low=1e-4, high=0.3, log=True),
            "network.backbone.plan": SearchRange(choices=([8, "M", 16], [8])),
            "network.backbone.pool_size": SearchRange(low=1, high=5),
            "optimizer.nesterov": SearchRange(choices=(True, False)),
            "optimizer.momentum": SearchRange(low=0.5, high=0.9, when={"optimizer.name": "sgd"}),
        },
    )
)


def trial(number: int, val_loss: float, calibration: float = 0.1, flops: float = 1e6, **changes: Any) -> Trial:
    row = Trial(
        number=number,
        state="complete",
        epochs=4,
        seconds=10.0,
        objectives={"val_loss": val_loss, "calibration_error": calibration, "flops": flops},
        values={
            "network.backbone.dropout_rate": 10.0 ** -(1 + number % 3),
            "network.backbone.plan": PLAN,
            "network.backbone.pool_size": 1 + number % 5,
            "optimizer.nesterov": number % 2 == 0,
        },
    )
    return dataclasses.replace(row, **changes)


TRIALS = [
    trial(2, -0.5, calibration=0.05),
    trial(0, -0.7),
    trial(1, -0.9, state="stopped early", objectives={"val_loss": -0.9}),
    trial(3, 0.0, state="failed", reason="network.backbone.plan: pools the image away", objectives={}),
    trial(4, -0.6, calibration=0.2, flops=2e6),
]


def test_table_has_a_typed_column_for_each_searched_field() -> None:
    table = trials_table(TRIALS, SPACE)
    assert table["number"].to_pylist() == [0, 1, 2, 3, 4]
    types = {name: table.schema.field(name).type for name in SPACE.ranges}
    assert types == {
        "network.backbone.dropout_rate": pa.float64(),
        "network.backbone.plan": pa.string(),
        "network.backbone.pool_size": pa.int64(),
        "optimizer.nesterov": pa.bool_(),
        "optimizer.momentum": pa.float64(),
    }
    assert table["optimizer.momentum"].null_count == 5
    assert table["calibration_error"].to_pylist() == [0.1, None, 0.05, None, 0.2]
    assert table["reason"].to_pylist()[3] == "network.backbone.plan: pools the image away"
    assert table["network.backbone.plan"].to_pylist() == [PLAN] * 5


def test_study_from_a_stored_table_has_the_trials_with_their_values() -> None:
    file = io.BytesIO()
    pq.write_table(trials_table(TRIALS, SPACE), file)
    rebuilt = study(pq.read_table(file), SPACE, ("val_loss",))
    assert [t.state.name for t in rebuilt.trials] == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert [t.params for t in rebuilt.trials] == [t.values for t in sorted(TRIALS, key=lambda t: t.number)]
    assert rebuilt.best_value == -0.9
    # What was drawn can be drawn: Optuna's sampler takes the study as its own past.
    SPACE(rebuilt.ask())


def test_search_hears_of_a_failure_as_worse_than_all_others() -> None:
    told = [heard(one, SPACE, ("val_loss",)) for one in TRIALS]
    assert [one.value for one in told] == [-0.5, -0.7, -0.9, PENALTY, -0.6]
    assert [one.params for one in told] == [one.values for one in TRIALS]
    assert heard(TRIALS[3], SPACE, ("val_loss", "flops")).values == [PENALTY, PENALTY]
    assert heard(TRIALS[4], SPACE, ("flops", "val_loss")).values == [2e6, -0.6]


def test_the_best_trial_is_a_complete_one() -> None:
    table = trials_table(TRIALS, SPACE)
    assert best(table, ("val_loss",)) == 0
    assert best(table, ("calibration_error",)) == 2
    nothing = trials_table(TRIALS[2:4], SPACE)
    with pytest.raises(UserError, match=r"none of 2 trials is complete; the last reason: network\.backbone\.plan: pools"):
        best(nothing, ("val_loss",))
    with pytest.raises(UserError, match="none of 0 trials is complete; give more num_trials or hours"):
        best(trials_table([], SPACE), ("val_loss",))


@pytest.mark.parametrize("names", [("val_loss", "flops"), ("val_loss", "calibration_error", "flops"), ("val_loss",)])
def test_pareto_front_is_that_of_optuna(names: tuple) -> None:
    trials = [trial(i, -((7 * i) % 11) / 10, ((5 * i) % 7) / 10, float((3 * i) % 5)) for i in range(20)]
    table = trials_table(trials, SPACE)
    front = pareto_front(table, names)
    expected = study(table, SPACE, names)
    found = expected.best_trials if len(names) > 1 else [t for t in expected.trials if t.value == expected.best_value]
    assert front == sorted(t.number for t in found)
    assert best(table, names) in front
    assert trials[best(table, names)].objectives["val_loss"] == min(trials[n].objectives["val_loss"] for n in front)


def test_calibration_error_is_the_mean_deviation_of_the_single_targets() -> None:
    rows = [
        {"target": "flux", "level": 0.6827, "coverage": 0.7827},
        {"target": "flux", "level": 0.9545, "coverage": 0.9245},
        {"target": "joint", "level": 0.6827, "coverage": 0.0},
    ]
    assert calibration_error(rows) == pytest.approx((0.1 + 0.03) / 2)


def test_objectives_are_those_of_the_stored_bundle_before_calibration() -> None:
    row = {"target": "flux", "level": 0.6827}
    coverage = {"uncalibrated": [row | {"coverage": 0.5827}], "calibrated": [row | {"coverage": 0.6827}]}
    model = dataclasses.replace(bundle(), metrics={"val_loss": -0.3, "coverage": coverage})
    found = objectives(model, num_passes=8)
    assert (found["val_loss"], found["calibration_error"]) == (-0.3, pytest.approx(0.1))
    assert objectives(model, num_passes=16)["flops"] > found["flops"] > 0
