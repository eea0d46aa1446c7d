"""Units on Ray, one pool for the whole job, and in this process: resumption and errors."""

import ctypes
import dataclasses
import functools
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from gampen_ray.config import ActorResources, TaskResources
from gampen_ray.engine import ray_units as engine
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.units import is_local, local_workers, run_units
from gampen_ray.errors import StorageError, UserError

ONE = ActorResources(num_workers=1, cpus_per_worker=0.4)


@dataclasses.dataclass(frozen=True)
class Unit:
    name: str
    num_rows: int = 1


def _deadly(folder: Path, workers: Workers) -> Callable[[Unit], str]:
    def work(unit: Unit) -> str:
        (folder / f"{unit.name}-{time.monotonic_ns()}").touch()
        if unit.name == "unit-00001":
            ctypes.string_at(0)
        return unit.name

    return work


@dataclasses.dataclass(frozen=True)
class ManyRows:
    name: str
    num_rows: int
    deadly: int = -1
    """The row that ends the process; the number of rows: more than one of them at a time."""
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)


def _rows_that_kill(workers: Workers) -> Callable[[ManyRows], ManyRows]:
    def work(unit: ManyRows) -> ManyRows:
        left = set(range(unit.num_rows)) - unit.refused.keys()
        if unit.deadly in left or (unit.deadly == unit.num_rows and len(left) > 1):
            os.kill(os.getpid(), signal.SIGSEGV)
        return unit

    return work


def _rows_written(folder: Path, unit: ManyRows) -> str:
    with (folder / unit.name).open("x") as file:
        file.writelines(f"{row} {unit.refused.get(row, 'good')}\n" for row in range(unit.num_rows))
    return unit.name


class Touch:
    """Writes a file a unit, and one for each start."""

    def __init__(self, folder: Path, workers: Workers) -> None:
        self._folder, self._workers = folder, workers
        (folder / f"start-{os.getpid()}-{time.monotonic_ns()}").touch()

    def __call__(self, unit: Unit) -> tuple[str, int]:
        if unit.name == "bad":
            raise UserError("bad: no such unit")
        (self._folder / unit.name).touch()
        return unit.name, self._workers.count


def _units(count: int) -> list[Unit]:
    return [Unit(f"unit-{i:05d}") for i in range(count)]


@pytest.mark.ray
def test_one_start_for_all_units_however_few_tasks(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "_MOST_TASKS", 4)
    receipts = []

    def receive(receipt: tuple[str, int], workers: Workers) -> str:
        receipts.append((*receipt, workers.count))
        return receipt[0]

    units, start = _units(30), functools.partial(Touch, tmp_path)
    with caplog.at_level(logging.INFO):
        run_units("touch", units, start, total=35, noun="rows", resources=ONE, write=_noted, receive=receive)
    assert sorted(receipts) == [(f"{unit.name} written", 1, 1) for unit in units]
    assert len(list(tmp_path.glob("start-*"))) == 1
    assert {path.name for path in tmp_path.glob("unit-*")} == {unit.name for unit in units}
    # Five rows were finished before.
    assert "touch: 5/35 rows" in caplog.text
    assert "touch: 35/35 rows" in caplog.text


@pytest.mark.parametrize("cpus_per_task", [None, 0.5])
def test_few_units_are_processed_in_this_process(tmp_path: Path, cpus_per_task: float | None) -> None:
    resources = ActorResources(engine="local") if cpus_per_task is None else TaskResources(engine="local")
    receipts: list[object] = []
    job = {"total": 3, "noun": "rows", "resources": resources, "cpus_per_task": cpus_per_task, "write": _noted}
    job["receive"] = lambda receipt, workers: receipts.append((receipt, workers.count)) or ""
    threads = torch.get_num_threads()

    def start(workers: Workers) -> Touch:
        torch.set_num_threads(threads + 1)
        return Touch(tmp_path, workers)

    run_units("touch", _units(3), start, **job)
    assert receipts == [((f"{unit.name} written", 1), 1) for unit in _units(3)]
    assert [path.name.split("-")[1] for path in tmp_path.glob("start-*")] == [str(os.getpid())]
    with pytest.raises(UserError, match="bad: no such unit"):
        run_units("touch", [Unit("bad")], functools.partial(Touch, tmp_path), **job)
    assert torch.get_num_threads() == threads


def test_ray_is_started_for_many_rows_or_if_the_user_asks_for_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for usual in (ActorResources(), TaskResources()):
        assert is_local(usual, 500)
        assert not is_local(usual, 501)
        assert not is_local(dataclasses.replace(usual, num_workers=1), 5)
        assert not is_local(dataclasses.replace(usual, engine="ray"), 5)
        assert is_local(dataclasses.replace(usual, engine="local"), 10**9)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    assert not is_local(ActorResources(), 5)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert not is_local(ActorResources(), 5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_the_users_mistake() -> None:
    assert local_workers(ActorResources()).gpus == 0
    with pytest.raises(UserError, match=r"resources.use_gpu: this machine has no GPU that PyTorch can use; leave it out"):
        local_workers(ActorResources(use_gpu=True, engine="local"))


def _noted(receipt: tuple[str, int]) -> tuple[str, int]:
    return f"{receipt[0]} written", receipt[1]


@pytest.mark.ray
def test_work_without_a_start_runs_in_tasks_and_errors_reach_the_user(ray_local: None, tmp_path: Path) -> None:
    job = {"total": 2, "noun": "rows", "resources": ONE, "cpus_per_task": 0.5}
    run_units("touch", _units(2), functools.partial(Touch, tmp_path), **job)
    assert len(list(tmp_path.glob("unit-*"))) == 2
    with pytest.raises(UserError, match="bad: no such unit"):
        run_units("touch", [Unit("bad")], functools.partial(Touch, tmp_path), **job)


# Rows that do it only together: no row is found, and all go.
@pytest.mark.ray
@pytest.mark.parametrize("deadly", [1, pytest.param(3, marks=pytest.mark.kill)])
def test_a_row_that_kills_its_worker_goes_to_quarantine_and_all_others_are_written_once(
    ray_local: None, tmp_path: Path, deadly: int
) -> None:
    receipts: list[str] = []
    job: dict[str, Any] = {"total": 5, "noun": "rows", "resources": ONE, "cpus_per_task": 0.4}
    job["receive"] = lambda receipt, _: receipts.append(receipt) or ""
    units, write = [ManyRows("good", 2), ManyRows("bad", 3, deadly)], functools.partial(_rows_written, tmp_path)
    run_units("kill", units, _rows_that_kill, write=write, **job)
    assert sorted(receipts) == ["bad", "good"]
    assert (tmp_path / "good").read_text() == "0 good\n1 good\n"
    alone = "0 good\n1 working on it killed the process\n2 good\n"
    together = "".join(f"{row} working on it killed the process 4 times, together with others\n" for row in range(3))
    assert (tmp_path / "bad").read_text() == (alone if deadly == 1 else together)


@pytest.mark.ray
@pytest.mark.parametrize("actors", [True, False])
def test_a_unit_without_rows_to_leave_out_that_kills_its_worker_ends_the_job(
    ray_local: None, tmp_path: Path, actors: bool
) -> None:
    receipts: list[str] = []
    job = {"total": 6, "noun": "rows", "resources": ONE, "cpus_per_task": None if actors else 0.4}
    job["receive"] = lambda receipt, _: receipts.append(receipt) or ""
    reason = "working on it killed the process 4 times; take it out of the input, or give the workers more memory"
    with pytest.raises(StorageError, match=f"^unit-00001: {reason}"):
        run_units("kill", _units(6), functools.partial(_deadly, tmp_path), **job)
    # On an actor, units that were beside it are left for the end too.
    assert {unit.name for unit in _units(6)} - {"unit-00001", *receipts} == set() or actors
    assert "unit-00001" not in receipts
    assert len(list(tmp_path.glob("unit-00001-*"))) == 4


def _slowly(unit: Unit) -> None:
    # Beyond the limit, but soon over: it holds CPUs that the next test in this Ray may need.
    time.sleep(20)


@pytest.mark.ray
def test_a_job_without_progress_ends_with_what_it_waits_for(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_NO_PROGRESS_TIMEOUT_S", 9)
    with pytest.raises(StorageError, match=r"no unit was finished for 0.0025 hours; 2 are waited for, such as unit-00000"):
        run_units("wait", _units(2), lambda _: _slowly, total=2, noun="rows", resources=ONE, cpus_per_task=0.5)


def test_nothing_to_do_starts_no_ray_and_names_must_differ(caplog: pytest.LogCaptureFixture) -> None:
    def start(workers: Workers) -> Callable[[Unit], None]:
        raise AssertionError

    initialised = ray.is_initialized()
    with caplog.at_level(logging.INFO):
        run_units("touch", [], start, total=7, noun="rows", resources=ONE)
    assert "touch: 7/7 rows" in caplog.text
    with pytest.raises(RuntimeError, match="two units of the same name"):
        run_units("touch", [Unit("a"), Unit("a")], start, total=2, noun="rows", resources=ONE)
    assert ray.is_initialized() == initialised
