import pytest

from gampen_ray.config import ScanDropoutConfig, SearchRange, TrainConfig, TuneConfig
from gampen_ray.config.base import fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ()}, "give at least one, and each once"),
        ({"objectives": ("flops", "flops")}, "give at least one, and each once"),
        ({"grace_epochs": 13}, "grace_epochs is 13, more than optimizer.epochs, 12; lower it"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuneConfig(dataset="d", output="o", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortlist": 13}, "shortlist is 13, more than the 12 scanned rates; lower it"),
        ({"rates": (0.1, 0.2), "shortlist": 3}, "shortlist is 3, more than the 2 scanned rates; lower it"),
        ({"rates": (0.1,)}, r"rates is \[0.1\]; give at least two, or none"),
        ({"lowest_rate": 0.3}, "lowest_rate is 0.3 and highest_rate 0.3; lower lowest_rate"),
        ({"rates": (0.0, 0.1)}, "greater than 0"),
    ],
)
def test_scans_that_are_none_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanDropoutConfig(bundle="b", dataset="d", output="o", **changes)


@pytest.mark.parametrize(
    ("range_", "message"),
    [
        ({}, "neither choices nor both of low and high are given"),
        ({"low": 1.0}, "neither choices nor both of low and high"),
        ({"low": 1.0, "high": 1.0}, "low is 1 and high 1; low must be less"),
        ({"low": 0.0, "high": 1.0, "log": True}, "log with low 0, which has no logarithm; give low above 0"),
        ({"low": 0.0, "high": 1.0, "step": 0.3}, "high 1 is not low 0 plus whole steps of 0.3"),
        ({"low": 0.1, "high": 1.0, "step": 0.3, "log": True}, "step 0.3 with log; leave one out"),
        ({"choices": (1, 2), "high": 1.0}, "choices and low, high, log or step are both given"),
        ({"choices": (1,)}, "give at least two different ones"),
    ],
)
def test_ranges_that_are_none_are_refused(range_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchRange(**range_)


def test_every_field_of_train_is_one_of_tune_with_its_help() -> None:
    ours, trains = fields(TuneConfig), fields(TrainConfig)
    assert set(trains) < set(ours)
    assert all(
        ours[name].description == field.description for name, field in trains.items() if name not in ("output", "resources")
    )
    assert all(field.description for field in ours.values())
