"""Training in processes of this machine, without Ray."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import re
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from gampen_ray.commands.train import train
from gampen_ray.config import TrainConfig, TrainResources
from gampen_ray.config.base import to_toml
from gampen_ray.dry_run import dry_run
from gampen_ray.engine import train_child, train_processes
from gampen_ray.engine.trainers import trains_here
from gampen_ray.errors import StorageError, UserError
from tests.networks import damaged_dataset, dataset, train_config
from tests.processes import assert_none_left, driver, listening, marked, wait_for


def local_config(data: str, output: Path, **fields: object) -> TrainConfig:
    return dataclasses.replace(train_config(data, str(output), **fields), resources=TrainResources(engine="local"))


def children() -> list[int]:
    """Return the process ids of this process's training workers."""
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    found = sorted(int(pid) for task in own for pid in task.read_text().split())
    return [pid for pid in found if train_child.__name__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


class Killer:
    """Kills a worker as often as there are further checkpoints, up to so many times."""

    def __init__(self, run: Path, times: int) -> None:
        self.killed: list[int] = []
        self._run, self._times, self._done = run, times, threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _work(self) -> None:
        seen: set[str] = set()
        while not self._done.wait(0.02) and len(self.killed) < self._times:
            complete = {path.parts[-3] for path in self._run.glob("checkpoints/*/bundle/SHA256SUMS")}
            if complete - seen and len(found := children()) == 2:
                seen |= complete
                self.killed.append(found[-1])
                os.kill(found[-1], signal.SIGKILL)


@pytest.mark.slow
def test_killed_workers_cost_nothing_but_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 403, "val": 101})
    with Killer(tmp_path / "run", 2) as killer:
        made = train(local_config(data, tmp_path / "run", epochs=8))
    assert len(killer.killed) == 2
    assert caplog.text.count("a worker of the training was killed (SIGKILL): all resume from the last checkpoint") == 2
    unbroken = train(local_config(data, tmp_path / "unbroken", epochs=8))
    for name, weights in unbroken.network.state_dict().items():
        assert torch.equal(made.network.state_dict()[name], weights)
    losses = [
        [row["val_loss"] for row in json.loads((tmp_path / name / "history.json").read_text())] for name in ("run", "unbroken")
    ]
    assert losses[0] == losses[1]
    # The last alone is kept.
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) == 1
    assert children() == []


def test_workers_that_die_again_and_again_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 100, "val": 30})
    monkeypatch.setattr(train_processes, "MAX_FAILURES", 0)
    with (
        Killer(tmp_path / "run", 1),
        pytest.raises(StorageError, match=r"^training: its workers died 1 times, the last one was killed \(SIGKILL\); see"),
    ):
        train(local_config(data, tmp_path / "run", epochs=10_000))
    assert children() == []


@pytest.mark.parametrize("killed", [True, False])
def test_an_error_for_want_of_a_dead_worker_is_its_death(killed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_processes, "_GRACE_S", 5.0 if killed else 0.1)
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        processes = {pipes[0][0]: first, pipes[1][0]: second}
        pipes[1][1].send({"error": RuntimeError("connection closed by peer")})
        if killed:
            threading.Timer(0.5, first.kill).start()
        with contextlib.nullcontext() if killed else pytest.raises(RuntimeError, match="closed by peer"):
            assert train_processes._worked(processes, lambda message: None) == "was killed (SIGKILL)"
        first.kill()
        second.kill()
    for one in itertools.chain(*pipes):
        one.close()


def test_a_damaged_shard_ends_a_training_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, damaged = damaged_dataset(str(tmp_path / "data"), monkeypatch)
    with pytest.raises(UserError, match=rf"^{re.escape(damaged)}: damaged or not Parquet: [^\n]*$"):
        train(local_config(data, tmp_path / "run"))
    assert children() == []


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_workers_are_on_the_loopback_interface_and_end_with_their_driver(tmp_path: Path, stop: signal.Signals) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 60, "val": 30})
    (tmp_path / "c.toml").write_text(to_toml(train_config(data, str(tmp_path / "run"), epochs=10_000)))
    with driver("train", f"{tmp_path}/c.toml") as (process, mark):
        wait_for(process, "epoch 1/")
        workers = [pid for pid, command in marked(mark).items() if train_child.__name__ in command]
        assert len(workers) == 2
        addresses = listening(workers)
        assert all(address.is_loopback for address, _ in addresses), addresses
        process.send_signal(stop)
        assert process.stderr is not None
        rest = process.stderr.read()
        assert process.wait(60) == (1 if stop == signal.SIGINT else -signal.SIGKILL)
    assert ("interrupted; run the same command again to resume" in rest) == (stop == signal.SIGINT)
    assert "Traceback" not in rest
    assert_none_left(mark)


def test_what_this_machine_cannot_do_is_refused(tmp_path: Path) -> None:
    data = dataset(str(tmp_path / "data"), {"train": 60, "val": 30})
    cases = (
        (
            {"use_gpu": True},
            r"^resources\.use_gpu: true, but resources\.engine local trains on CPUs; leave one of the two out$",
        ),
        (
            {"num_workers": 2, "cpus_per_worker": 999.0},
            r"^resources\.num_workers: 2 with 999 CPUs each, but this .* for 0; lower",
        ),
    )
    for fields, match in cases:
        config = train_config(data, str(tmp_path / "run"))
        with pytest.raises(UserError, match=match):
            train(dataclasses.replace(config, resources=TrainResources(engine="local", **fields)))
        with pytest.raises(UserError, match=match):
            dry_run(train)(dataclasses.replace(config, resources=TrainResources(engine="local", **fields)))
    assert not (tmp_path / "run").exists()


def test_ray_trains_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gampen_ray.engine.trainers.has_gpu", lambda: False)
    monkeypatch.setattr("sys.modules", {name: module for name, module in __import__("sys").modules.items() if name != "ray"})
    assert trains_here(TrainResources())
    assert trains_here(TrainResources(engine="local", num_workers=2))
    assert not trains_here(TrainResources(engine="ray"))
    assert not trains_here(TrainResources(num_workers=2))
    monkeypatch.setattr("gampen_ray.engine.trainers.has_gpu", lambda: True)
    assert not trains_here(TrainResources())
    monkeypatch.setattr("gampen_ray.engine.trainers.has_gpu", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not trains_here(TrainResources())
