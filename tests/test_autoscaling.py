"""A cluster whose autoscaler, Ray's own, starts and ends nodes on this machine as jobs ask for them."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from gampen_ray.config.base import to_toml
from tests.clusters import ended, log, num_nodes, raylets, running_cluster, submit, wait_until
from tests.networks import bundle, dataset, train_config

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def growing() -> Iterator[dict[str, str]]:
    """A head without CPUs, beside which up to three nodes of one CPU come and go."""
    with running_cluster("--grow", "--workers", "3") as cluster:
        yield cluster


def test_an_inference_grows_the_cluster_and_a_dead_node_costs_only_time(growing: dict[str, str], tmp_path: Path) -> None:
    assert num_nodes(growing) == 1
    data, output = dataset(str(tmp_path / "data"), {"all": 6000}), tmp_path / "catalog"
    bundle().save(str(tmp_path / "model"))
    arguments = [f"--bundle={tmp_path}/model", f"--dataset={data}", f"--output={output}", "--galaxies-per-file=50"]
    wanted = ["--num-passes=200", "--resources.num-workers=3"]
    started = submit(growing, "infer", *arguments, *wanted, wait=False, name="grows")
    assert started.returncode == 0, started.stdout + started.stderr

    def files() -> set[Path]:
        return set((output / "catalog").glob("*.parquet"))

    assert wait_until(lambda: num_nodes(growing) == 4), log(growing, "grows")
    assert "the cluster has room for 0 of 1 workers to begin with, and is asked to grow" in log(growing, "grows")
    written = len(files())
    assert wait_until(lambda: len(files()) > written + 3), log(growing, "grows")
    os.kill(raylets(growing)[-1], signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in files()}
    assert len(before) < 120
    assert wait_until(lambda: ended(growing, "grows") != "")
    assert ended(growing, "grows") == "SUCCEEDED", log(growing, "grows")
    assert len(set(pq.read_table(output / "catalog")["object_id"].to_pylist())) == 6000
    assert pq.read_table(output / "catalog").num_rows == 6000
    # Units of the dead node may be written twice, what others had finished is not.
    assert sum(path.stat().st_mtime_ns != time_ns for path, time_ns in before.items()) <= 5
    assert wait_until(lambda: num_nodes(growing) == 1)


def test_more_than_the_largest_cluster_is_refused_or_made_smaller(growing: dict[str, str], tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 200, "val": 50})
    (tmp_path / "train.toml").write_text(to_toml(train_config(data, str(tmp_path / "run"), epochs=1)))
    refused = submit(growing, "train", str(tmp_path / "train.toml"), "--resources.num-workers=5")
    assert refused.returncode != 0
    # A worker gets all that a node can give, or one CPU where there is none yet.
    wanted = r"resources\.num_workers: 5 workers with (0\.9 CPUs|1 CPU) needed, .* enough; lower resources\.num_workers"
    assert re.search(wanted, refused.stdout), refused.stdout
    assert not (tmp_path / "run").exists()
    trained = submit(growing, "train", str(tmp_path / "train.toml"), "--resources.num-workers=2")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    arguments = [f"--bundle={tmp_path}/run", f"--dataset={data}", "--split=train", f"--output={tmp_path}/catalog"]
    smaller = submit(growing, "infer", *arguments, "--galaxies-per-file=20", "--resources.num-workers=5")
    assert smaller.returncode == 0, smaller.stdout + smaller.stderr
    assert "of 5 workers now, and is asked for the others" in smaller.stdout
    assert pq.read_table(tmp_path / "catalog" / "catalog").num_rows == 200
