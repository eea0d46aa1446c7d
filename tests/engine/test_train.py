import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from gampen_ray.config import FineTuneConfig, ResourcesConfig, TargetConfig, TrainConfig
from gampen_ray.data import shards
from gampen_ray.engine.train import train
from gampen_ray.errors import UserError
from gampen_ray.posterior.bundle import load_bundle
from tests.networks import bundle, dataset, galaxies, train_config
from tests.training.test_fine_tune import unchanged_blocks


@pytest.mark.ray
def test_two_workers_train_a_calibrated_bundle(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 803, "val": 201})
    config = train_config(data, str(tmp_path / "run"), epochs=24, learning_rate=5e-3)
    bundle = train(config)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [row["epoch"] for row in history] == list(range(1, 25))
    # With mean 0 and unit covariance the loss is D / 2 = 1.
    assert bundle.metrics["val_loss"] == min(row["val_loss"] for row in history) < 0.5
    assert bundle.provenance["train"]["optimizer"]["epochs"] == 24
    assert (bundle.calibration_scale_D == bundle.metrics["fitted_scale"]).all()
    test = galaxies(200, seed=9)
    median = bundle.predict(test["image"], num_passes=4).quantile(0.5)
    assert np.median(np.abs(np.log(median[:, 0] / test["flux"]))) < 0.5 * np.median(np.abs(np.log(test["flux"]) - 4))
    # A finished run is returned as it is, another one does not overwrite it.
    before = (tmp_path / "run" / "bundle" / "bundle.json").stat().st_mtime_ns
    assert train(config).metrics == bundle.metrics
    with pytest.raises(UserError, match=r"holds a run with another optimizer\.epochs \(24, not 3\)"):
        train(train_config(data, str(tmp_path / "run"), epochs=3, learning_rate=5e-3))
    assert (tmp_path / "run" / "bundle" / "bundle.json").stat().st_mtime_ns == before
    assert math.isfinite(load_bundle(str(tmp_path / "run")).metrics["val_loss"])


@pytest.mark.ray
def test_two_workers_fine_tune_a_bundle_wherever_it_lies(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 160, "val": 60})
    for place in ("here", "there"):
        bundle().save(str(tmp_path / place))
    dataclasses.replace(bundle(), metrics={}).save(str(tmp_path / "other"))

    def config(place: str) -> TrainConfig:
        fine_tune = FineTuneConfig(
            bundle=str(tmp_path / place), freeze=("spatial_transformer", "block1"), learning_rate_decay=0.5
        )
        return dataclasses.replace(train_config(data, str(tmp_path / "run")), fine_tune=fine_tune)

    made = train(config("here"))
    assert unchanged_blocks(made.network, bundle().network) == {"spatial_transformer", "block1"}
    assert train(config("there")).provenance == made.provenance
    with pytest.raises(UserError, match=r"holds a run on another fine_tune\.bundle; nothing was changed"):
        train(config("other"))


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})

    def fails(match: str, config: TrainConfig) -> None:
        with pytest.raises(UserError, match=match):
            train(config)
        assert not (tmp_path / "run").exists()

    def config(**fields: object) -> TrainConfig:
        return TrainConfig(dataset=data, output=str(tmp_path / "run"), **fields)

    fails(r"targets\.bulge_to_total: .*/data has no such column; name one of its columns: .*flux", config())
    fails(r"targets: none given", config(targets={}))
    fails(
        r"targets\.flux: 50 of 50 values lie outside the domain of transform 'logit'",
        config(targets={"flux": TargetConfig(transform="logit")}),
    )
    unsplit = dataset(str(tmp_path / "unsplit"), {shards.ALL: 30})
    fails(r"has no galaxies in split 'train'", TrainConfig(dataset=unsplit, output=str(tmp_path / "run")))
    fails(r"dataset .*nowhere is not there", TrainConfig(dataset=str(tmp_path / "nowhere"), output=str(tmp_path / "run")))


@pytest.mark.ray
def test_more_workers_than_there_is_work_or_room_for_are_refused(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})
    config = train_config(data, str(tmp_path / "run"), batch_size=1)
    with pytest.raises(UserError, match=r"optimizer\.batch_size: 1 gives not every one of 2 workers a galaxy; raise it"):
        train(config)
    assert not (tmp_path / "run").exists()
    lonely = dataset(str(tmp_path / "lonely"), {"train": 50, "val": 1})
    with pytest.raises(UserError, match=r"dataset: .*/lonely has 1 galaxies in split 'val' for 2 workers; lower"):
        train(train_config(lonely, str(tmp_path / "third")))
    with pytest.raises(UserError, match=r"resources\.num_workers: 2 workers with 4\.0 CPUs each do not fit into 2 CPUs"):
        train(
            TrainConfig(
                dataset=data,
                output=str(tmp_path / "other"),
                targets=config.targets,
                network=config.network,
                resources=ResourcesConfig(num_workers=2, cpus_per_worker=4.0),
            )
        )
