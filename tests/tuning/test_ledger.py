from pathlib import Path

from gampen_ray.tuning.ledger import FinishedTrial, Ledger
from gampen_ray.tuning.trials import Trial


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
    ledger = Ledger(str(tmp_path))
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
