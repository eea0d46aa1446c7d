"""Two drivers on one output: one works, the other refuses in one line; a third takes over from one that was killed."""

import contextlib
import dataclasses
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gampen_ray import storage
from gampen_ray.commands.infer import InferConfig
from gampen_ray.config import ActorResources, TuneResources
from gampen_ray.config.base import to_toml
from gampen_ray.data import shards
from tests.engine.test_tune import config as tune_config
from tests.networks import bundle, dataset, train_config
from tests.processes import driver, wait_for

pytestmark = [pytest.mark.kill, pytest.mark.ray, pytest.mark.s3, pytest.mark.usefixtures("storage_environment")]
TAKE_OVER_SECONDS = 60


def training(root: str) -> object:
    data = dataset(storage.join(root, "data"), {"train": 200, "val": 50})
    return dataclasses.replace(train_config(data, storage.join(root, "out"), epochs=2000))


def study(root: str) -> object:
    data = dataset(storage.join(root, "data"), {"train": 200, "val": 50})
    return tune_config(data, storage.join(root, "out"), num_trials=500, resources=TuneResources(num_workers=1))


def inference(root: str) -> object:
    bundle().save(storage.join(root, "model"))
    data = dataset(storage.join(root, "data"), {shards.ALL: 20_000}, rows_per_shard=20)
    return InferConfig(
        bundle=storage.join(root, "model"),
        dataset=data,
        output=storage.join(root, "out"),
        num_passes=256,
        resources=ActorResources(num_workers=1),
    )


@pytest.mark.parametrize("where", ["local", "s3"])
@pytest.mark.parametrize(
    ("verb", "make", "works"),
    [("train", training, "epoch "), ("tune", study, "trials, "), ("infer", inference, "galaxies, ")],
    ids=["train", "tune", "infer"],
)
def test_one_of_two_drivers_works_and_a_third_takes_over(
    verb: str, make: Callable[[str], object], works: str, where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path) if where == "local" else request.getfixturevalue("s3_folder")
    (tmp_path / "job.toml").write_text(to_toml(make(root)))
    job = (verb, str(tmp_path / "job.toml"))
    with contextlib.ExitStack() as stack:
        both = [stack.enter_context(driver(*job))[0] for _ in range(2)]
        loser = first_to_end(both)
        (winner,) = (process for process in both if process is not loser)
        assert loser.returncode == 2
        assert loser.stderr is not None
        # Beside the error only the lines that it starts Ray, or waits for the other's heartbeat, may be there.
        *waiting, line = loser.stderr.read().splitlines()
        assert line.startswith(f"gampen-ray: error: output: {storage.join(root, 'out')} is in use by process {winner.pid} on ")
        assert all("waiting for its heartbeat" in other or "starting Ray" in other for other in waiting)
        wait_for(winner, works)
        winner.kill()
        winner.wait()
        began = time.monotonic()
        third, _ = stack.enter_context(driver(*job))
        wait_for(third, f"took over the lock of process {winner.pid} on ")
        assert time.monotonic() - began < TAKE_OVER_SECONDS
        wait_for(third, works)


def first_to_end(processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """Wait until one of several processes has ended, and return it."""
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    while time.monotonic() < deadline:
        for process in processes:
            if process.poll() is not None:
                return process
        time.sleep(0.1)
    raise AssertionError("both drivers work on one output")
