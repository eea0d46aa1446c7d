"""What a training shows of its workers' messages."""

import logging
import re

import pytest

from gampen_ray.config import OptimizerConfig
from gampen_ray.progress import current
from gampen_ray.training.shown import Shown


def test_each_part_of_a_training_has_a_counter_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    metrics = {"train_loss": -1.0, "val_loss": -0.5}
    tracked: list[dict[str, float]] = []
    with Shown(OptimizerConfig(epochs=2, numbers_epochs=5), 1000, 2, tracked.append) as shown:
        shown({"restored": 0})
        shown({"epoch": 0, "galaxies": 400})
        shown({"epoch": 0, "galaxies": 1000})
        shown({"epoch": 0, "galaxies": 2500, "loss": 0.25})
        assert current().startswith("train on numbers: epoch 3/5, 500/1,000 galaxies, ")
        assert current().endswith(" | loss 0.250")
        shown({"epoch": 0} | metrics)
        shown({"epoch": 1, "galaxies": 300, "loss": -0.7})
        shown({"epoch": 1} | metrics)
        # A worker died: the second epoch begins again.
        shown({"restored": 1000})
        shown({"epoch": 2, "galaxies": 1100, "loss": -0.8})
        shown({"epoch": 2} | metrics | {"crop_scale_p05": 0.25, "crop_scale_p95": 0.75, "crop_dead_fraction": 0.0})
        shown({"phase": "calibrating on 100 galaxies"})
        assert current() == "calibrating on 100 galaxies"
    assert [row["epoch"] for row in tracked] == [0, 1, 2]
    assert [re.sub(r", [\d,.]+/s, \d+ s left", "", line) for line in caplog.messages] == [
        "starting 2 workers",
        "measure: 0/1,000 galaxies",
        "measure: 1,000/1,000 galaxies",
        "train on numbers: epoch 1/5, 0/1,000 galaxies",
        "train on numbers: epoch 5/5, 1,000/1,000 galaxies",
        "train on numbers: epoch 5/5, loss -1.000, validation -0.500",
        "train: epoch 1/2, 0/1,000 galaxies",
        "train: epoch 1/2, loss -1.000, validation -0.500",
        "train: epoch 2/2, 1,000/1,000 galaxies",
        "train: epoch 2/2, loss -1.000, validation -0.500, crop 0.250 to 0.750",
        "calibrating on 100 galaxies",
    ]


def test_a_training_on_numbers_alone_has_no_counter_of_images(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Shown(OptimizerConfig(epochs=0, numbers_epochs=5), 1000, 1, lambda metrics: None) as shown:
        shown({"epoch": 0, "galaxies": 5000, "loss": 0.25})
    assert [line.split(":")[0] for line in caplog.messages] == ["starting 1 worker", "train on numbers", "train on numbers"]
