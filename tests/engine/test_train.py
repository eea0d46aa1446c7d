import contextlib
import dataclasses
import json
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from mlflow import MlflowClient
from ray.exceptions import RayTaskError
from tensorboardX.proto.event_pb2 import Event

from gampen_ray.commands.train import train
from gampen_ray.config import CalibrationConfig, FineTuneConfig, TargetConfig, TrainConfig, TrainResources
from gampen_ray.data import shards
from gampen_ray.engine.train_workers import Callbacks, _keyboard_interrupt, driver_queue, send
from gampen_ray.errors import StorageError, UserError
from gampen_ray.training.execute import execute
from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import prepare
from tests.networks import NETWORK, bundle, damaged_dataset, dataset, train_config
from tests.training.test_fine_tune import unchanged_blocks


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_of_which_one_dies_tune_a_bundle_as_a_plain_loop(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 803, "val": 201})
    # Dropout draws other masks on every worker, and batch statistics are its own.
    backbone = dataclasses.replace(NETWORK.backbone, dropout_rate=0.0, normalisation="none")
    start = bundle(dataclasses.replace(NETWORK, backbone=backbone))
    for place in ("here", "there"):
        start.save(str(tmp_path / place))
    dataclasses.replace(start, metrics={"val_loss": 1.0}).save(str(tmp_path / "other"))

    def config(place: str = "here", output: str = "run", epochs: int = 6) -> TrainConfig:
        fine_tune = FineTuneConfig(
            bundle=str(tmp_path / place), head="replace", freeze=("spatial_transformer",), learning_rate_decay=0.8
        )
        return dataclasses.replace(
            train_config(data, str(tmp_path / output), epochs=epochs, learning_rate=2e-3),
            network=start.config,
            fine_tune=fine_tune,
            calibration=CalibrationConfig(num_passes=1),
            checkpoint_steps=10,
            mlflow=f"sqlite:///{tmp_path}/ml.db",
        )

    with killed_worker(tmp_path / "run") as killed:
        made = train(config())
    assert len(killed) == 1
    # To the last bit that of Ray's workers.
    unbroken = train(dataclasses.replace(config(output="unbroken"), resources=TrainResources(engine="local")))
    run = prepare(config(output="plain"))
    execute(LocalWorker.read(run), run)

    history, same, expected = (json.loads((tmp_path / n / "history.json").read_text()) for n in ("run", "unbroken", "plain"))
    assert [row["epoch"] for row in history] == list(range(1, 7))
    assert [row["val_loss"] for row in history] == [row["val_loss"] for row in same]
    for name, weights in unbroken.network.state_dict().items():
        assert torch.equal(made.network.state_dict()[name], weights)
    # In float32 the order of sums shows after some epochs; tests/training/test_ddp.py is exact.
    for name in ("train_loss", "val_loss"):
        assert [row[name] for row in history][:4] == pytest.approx([row[name] for row in expected][:4], abs=5e-3)
    assert unchanged_blocks(made.network, start.network) == {"spatial_transformer"}
    assert made.metrics["val_loss"] == min(row["val_loss"] for row in history)
    assert made.provenance["train"]["optimizer"]["epochs"] == 6
    assert made.calibration.to_dict() == made.metrics["fitted_calibration"]
    assert_tracked(tmp_path / "run", config().mlflow, [row["val_loss"] for row in history])

    # A finished run is returned as it is, also where the bundle lies elsewhere; another one does not overwrite it.
    before = (tmp_path / "run" / "bundle" / "bundle.json").stat().st_mtime_ns
    assert train(config("there")).provenance == made.provenance
    for other, match in ((config("other"), r"on another fine_tune\.bundle"), (config(epochs=3), r"epochs \(6, not 3\)")):
        with pytest.raises(UserError, match=match):
            train(other)
    assert (tmp_path / "run" / "bundle" / "bundle.json").stat().st_mtime_ns == before


@contextlib.contextmanager
def killed_worker(run: Path) -> Iterator[list[int]]:
    """Kill a training worker with SIGKILL once the run has a checkpoint of its third epoch; yield the list of those killed."""
    killed: list[int] = []
    done = threading.Event()

    def kill() -> None:
        while not done.wait(0.1) and not killed:
            epochs = [len(torch.load(path, weights_only=True)["history"]) for path in run.glob("checkpoints/*/state.pt")]
            if epochs and max(epochs) >= 2:
                killed.append(workers()[-1])
                os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    yield killed
    done.set()
    thread.join()


def workers() -> list[int]:
    """Return the process ids of the training workers of this test process's own Ray."""
    # They inherit its variables; the key of the S3 server is its own.
    mark, found = os.environ["AWS_SECRET_ACCESS_KEY"].encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        # Any process may end meanwhile.
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::RayTrainWorker") and mark in path.with_name("environ").read_bytes():
                found.append(int(path.parent.name))
    return sorted(found)


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """Return step and value of each scalar of a name in TensorBoard's event files."""
    found = []
    for file in folder.iterdir():
        data = file.read_bytes()
        start = 0
        while start < len(data):
            # A record: length, checksum, event, checksum.
            (length,) = struct.unpack_from("<Q", data, start)
            event = Event.FromString(data[start + 12 : start + 12 + length])
            found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
            start += 12 + length + 4
    return found


def assert_tracked(run: Path, mlflow_uri: str, val_losses: list[float]) -> None:
    # An epoch that was told and lost comes twice, and is the same.
    assert list(dict(sorted(scalars(run / "tensorboard", "val_loss"))).values()) == pytest.approx(val_losses)
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name("gampen_ray").experiment_id
    (found,) = client.search_runs([experiment], filter_string=f"tags.output = '{run}'")
    assert found.data.params["optimizer.epochs"] == "6"
    assert found.info.status == "FINISHED"
    logged = {metric.step: metric.value for metric in client.get_metric_history(found.info.run_id, "val_loss")}
    assert list(logged.values()) == pytest.approx(val_losses)


@pytest.mark.ray
def test_a_damaged_shard_ends_a_training_at_once_in_one_line(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, damaged = damaged_dataset(str(tmp_path / "data"), monkeypatch)
    groups: set[tuple[int, ...]] = set()
    with watched(groups), pytest.raises(UserError, match=rf"^{damaged}: damaged or not Parquet: [^\n]*$"):
        train(train_config(data, str(tmp_path / "run")))
    assert len({worker for group in groups for worker in group}) == 2


@contextlib.contextmanager
def watched(groups: set[tuple[int, ...]]) -> Iterator[None]:
    """Collect the process ids of training workers that are there at the same time."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            groups.add(tuple(workers()))

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.mark.ray
def test_a_lost_message_fails_nothing(ray_local: None) -> None:
    messages = driver_queue()
    send(messages, {"epoch": 1})
    assert messages.get(timeout=30) == {"epoch": 1}
    ray.kill(messages.actor)
    for _ in range(3):
        send(messages, {"epoch": 2})


def test_only_a_mistake_of_the_users_ends_a_training_at_its_first_failure() -> None:
    callbacks = Callbacks()
    mistake = UserError("optimizer.learning_rate: 9 is too high")
    error = RayTaskError("task", "Traceback", mistake).as_instanceof_cause()
    with pytest.raises(UserError, match=r"^optimizer\.learning_rate: 9 is too high$"):
        callbacks.after_exception(None, {0: RuntimeError("connection closed"), 1: error})
    callbacks.after_exception(None, {0: RuntimeError("out of memory"), 1: StorageError("disk full")})


def test_ctrl_c_is_no_success() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _keyboard_interrupt():
        # As the handler of Ray Train does.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise SystemExit(0)
    assert signal.getsignal(signal.SIGINT) is before


def test_mistakes_are_told_before_anything_starts(tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})

    def fails(match: str, config: TrainConfig) -> None:
        with pytest.raises(UserError, match=match):
            train(config)
        assert not (tmp_path / "run").exists()

    def config(**fields: object) -> TrainConfig:
        return TrainConfig(dataset=data, output=str(tmp_path / "run"), **fields)

    fails(r"targets\.bulge_to_total: .*/data has no such column; name one of .*flux", config())
    fails(r"targets: none given", config(targets={}))
    fails(
        r"targets\.flux: 50 of 50 values lie outside the domain of transform 'logit'",
        config(targets={"flux": TargetConfig(transform="logit")}),
    )
    unsplit = dataset(str(tmp_path / "unsplit"), {shards.ALL: 30})
    fails(r"has no galaxies in split 'train'", TrainConfig(dataset=unsplit, output=str(tmp_path / "run")))
    fails(r"dataset .*nowhere does not exist", TrainConfig(dataset=str(tmp_path / "nowhere"), output=str(tmp_path / "run")))


@pytest.mark.ray
def test_more_workers_than_there_is_work_or_room_for_are_refused(ray_local: None, tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 50, "val": 20})
    config = train_config(data, str(tmp_path / "run"), batch_size=1)
    with pytest.raises(UserError, match=r"optimizer\.batch_size: 1 is too small to give each of 2 workers a galaxy; raise it"):
        train(config)
    assert not (tmp_path / "run").exists()
    lonely = dataset(str(tmp_path / "lonely"), {"train": 50, "val": 1})
    with pytest.raises(UserError, match=r"dataset: .*/lonely has 1 galaxies in split 'val' for 2 workers; lower"):
        train(train_config(lonely, str(tmp_path / "third")))
    with pytest.raises(
        UserError,
        match=r"resources\.num_workers: 2 workers with 4 CPUs needed, .* room for 0 \(nodes: 1 of 2 CPUs and 0 GPUs\).*; lower",
    ):
        train(
            TrainConfig(
                dataset=data,
                output=str(tmp_path / "other"),
                targets=config.targets,
                images=config.images,
                network=config.network,
                resources=TrainResources(num_workers=2, cpus_per_worker=4.0),
            )
        )
