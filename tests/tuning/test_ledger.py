from pathlib import Path

import pytest

from gampen_ray import storage
from gampen_ray.config import SearchRange, TuneConfig
from gampen_ray.errors import UserError
from gampen_ray.tuning.ledger import FinishedTrial, Ledger
from gampen_ray.tuning.space import SearchSpace
from gampen_ray.tuning.trials import Trial

SEARCH = {
    "optimizer.learning_rate": SearchRange(low=1e-4, high=1.0),
    "network.backbone.plan": SearchRange(choices=([8, "M"], [8])),
    "optimizer.nesterov": SearchRange(choices=(True, False)),
}
SPACE = SearchSpace.of(TuneConfig(dataset="d", output="o", search=SEARCH))


def trial(number: int) -> Trial:
    return Trial(
        number=number,
        state="complete",
        epochs=2,
        seconds=1.5,
        objectives={"val_loss": -0.1, "calibration_error": 0.02, "flops": 1e6},
        values={"optimizer.learning_rate": 0.1 + 0.2, "network.backbone.plan": '[8, "M"]', "optimizer.nesterov": True},
    )


def test_what_is_written_is_read_in_the_order_of_the_numbers(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), SPACE)
    assert (ledger.begun(), ledger.ended()) == ({}, [])
    for number in (0, 11, 2):
        ledger.begin(number, dict(trial(number).values))
    assert list(ledger.begun().items()) == [(number, trial(number).values) for number in (0, 2, 11)]
    Path(ledger.state(11)).write_text("large")
    ledger.end(trial(11), [0.5, -0.1])
    ledger.end(trial(2), [])
    assert ledger.ended() == [FinishedTrial(trial(2), []), FinishedTrial(trial(11), [0.5, -0.1])]
    # An ended trial does not go on.
    assert not Path(ledger.state(11)).exists()


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("trial.json", {"losses": "0.5"}, r"trial.json is damaged: losses: '0.5' is not allowed: .*array; delete the folder"),
        ("trial.json", {"objectives": {}}, "objectives: a trial that is complete has val_loss, calibration_error, flops"),
        ("trial.json", {"state": "lost"}, "state: 'lost' is not allowed"),
        ("trial.json", {"values": {"optimizer.nesterov": 3}}, "'3' not in .*delete the folder"),
        ("values.json", {"optimizer.momentum": 0.5}, "values.json is damaged: optimizer.momentum is not searched"),
        ("values.json", {"optimizer.learning_rate": 7}, "values.json is damaged: .*7.* delete the folder of this trial"),
    ],
)
def test_a_damaged_record_is_named(name: str, value: dict[str, object], match: str, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), SPACE)
    ledger.begin(0, dict(trial(0).values))
    ledger.end(trial(0), [0.5])
    uri = f"{tmp_path}/trials/0000/{name}"
    storage.write_json(uri, storage.read_json(uri) | value)
    with pytest.raises(UserError, match=match):
        ledger.begun() if name == "values.json" else ledger.ended()
