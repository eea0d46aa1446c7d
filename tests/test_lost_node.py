"""A training over two nodes, one of which is killed."""

import os
import signal
from pathlib import Path

import pytest

from gampen_ray.config.base import to_toml
from gampen_ray.storage import read_json
from tests.clusters import JOB_SECONDS, ended, log, num_nodes, raylets, running_cluster, submit, told, wait_until
from tests.engine.test_train import scalars
from tests.networks import dataset, train_config


@pytest.mark.cluster
def test_a_training_over_two_nodes_outlives_one_of_them(tmp_path: Path) -> None:
    data, run = dataset(str(tmp_path / "data"), {"train": 3000, "val": 200}), tmp_path / "run"
    (tmp_path / "train.toml").write_text(to_toml(train_config(data, str(run), epochs=8)))
    # Workers wait for the return of the lost node before there are fewer.
    with running_cluster(RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="20") as cluster:
        wide = ["--resources.num-workers=2", "--resources.min-workers=1"]
        started = submit(cluster, "train", str(tmp_path / "train.toml"), *wide, wait=False, name="two-nodes")
        assert started.returncode == 0, started.stdout + started.stderr
        assert wait_until(lambda: " epoch 2/" in log(cluster, "two-nodes")), log(cluster, "two-nodes")
        assert len(raylets(cluster)) == 2 == num_nodes(cluster) - 1
        # Of all nodes, that of the job's messages must not die but with the driver: it is the driver's own.
        assert nodes_of(cluster, "_QueueActor") == nodes_of(cluster, "TrainController") == {head(cluster)}
        os.kill(raylets(cluster)[0], signal.SIGKILL)
        assert wait_until(lambda: ended(cluster, "two-nodes") != "", 2 * JOB_SECONDS)
        assert ended(cluster, "two-nodes") == "SUCCEEDED", log(cluster, "two-nodes")
    history = read_json(str(run / "history.json"))
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert (run / "bundle" / "SHA256SUMS").exists()
    # Metrics after the node's death reached the driver too.
    assert sorted(dict(scalars(run / "tensorboard", "val_loss"))) == list(range(1, 9))


def nodes_of(cluster: dict[str, str], kind: str) -> set[str]:
    """Return the nodes on which actors of a class live."""
    actors = told(cluster, "/logical/actors")["data"]["actors"].values()
    return {one["address"]["nodeId"] for one in actors if one["actorClass"] == kind and one["state"] == "ALIVE"}


def head(cluster: dict[str, str]) -> str:
    """Return the node on which jobs have their drivers."""
    nodes = told(cluster, "/nodes?view=summary")["data"]["summary"]
    return next(node["raylet"]["nodeId"] for node in nodes if node["raylet"]["isHeadNode"])
