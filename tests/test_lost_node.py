"""A training over two nodes, one of which is killed."""

import os
import signal
from pathlib import Path

import pytest

from gampen_ray.config.base import to_toml
from gampen_ray.storage import read_json
from tests.clusters import JOB_SECONDS, ended, log, raylets, running_cluster, submit, wait_until
from tests.networks import dataset, train_config


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_training_over_two_nodes_outlives_one_of_them(tmp_path: Path) -> None:
    data, run = dataset(str(tmp_path / "data"), {"train": 3000, "val": 200}), tmp_path / "run"
    (tmp_path / "train.toml").write_text(to_toml(train_config(data, str(run), epochs=8)))
    # Workers wait for the return of the lost node before there are fewer.
    with running_cluster(RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="20") as cluster:
        wide = ["--resources.num-workers=2", "--resources.min-workers=1"]
        started = submit(cluster, "train", str(tmp_path / "train.toml"), *wide, wait=False, name="two-nodes")
        assert started.returncode == 0, started.stdout + started.stderr
        assert wait_until(lambda: " epoch 2/" in log(cluster, "two-nodes")), log(cluster, "two-nodes")
        assert len(raylets(cluster)) == 2
        os.kill(raylets(cluster)[0], signal.SIGKILL)
        assert wait_until(lambda: ended(cluster, "two-nodes") != "", 2 * JOB_SECONDS)
        assert ended(cluster, "two-nodes") == "SUCCEEDED", log(cluster, "two-nodes")
    history = read_json(str(run / "history.json"))
    assert [row["epoch"] for row in history] == list(range(1, 9))
    assert (run / "bundle" / "SHA256SUMS").exists()
