import dataclasses
from pathlib import Path

from mlflow import MlflowClient

from gampen_ray.config import TrainResources
from gampen_ray.training.run import prepare
from gampen_ray.training.tracking import tracking
from tests.networks import dataset, train_config


def test_a_training_resumed_with_other_resources_continues_its_mlflow_run(tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 64, "val": 32})
    config = dataclasses.replace(train_config(data, str(tmp_path / "run")), mlflow=f"sqlite:///{tmp_path}/ml.db")
    run = prepare(config)
    with tracking(run) as track:
        track({"epoch": 1, "val_loss": 2.0})
    changed = dataclasses.replace(config, resources=TrainResources(num_workers=1), checkpoint_steps=7)
    with tracking(dataclasses.replace(run, config=changed)) as track:
        track({"epoch": 2, "val_loss": 1.0})

    client = MlflowClient(config.mlflow)
    (found,) = client.search_runs([client.get_experiment_by_name("gampen_ray").experiment_id])
    assert found.data.params["optimizer.epochs"] == "2"
    assert [(row.step, row.value) for row in client.get_metric_history(found.info.run_id, "val_loss")] == [(1, 2.0), (2, 1.0)]
