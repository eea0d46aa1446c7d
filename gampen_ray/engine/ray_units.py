"""Units of work on Ray; see `gampen_ray.engine.units`.

A unit whose worker ends twice, as by a crash or for lack of memory, is left for the end of the job, when it is processed alone.
If that ends its worker too, the unit is at fault: the rows to blame are found by bisection, and left out.
"""

import contextlib
import dataclasses
import functools
import logging
import pickle
from collections.abc import Callable, Generator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError

from gampen_ray.config import ActorResources, TaskResources
from gampen_ray.engine.bisection import culprits
from gampen_ray.engine.cluster import cluster_workers, task_cpus
from gampen_ray.engine.interrupts import raise_if_interrupted
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import ray_session
from gampen_ray.engine.units import Refusable, Start, U
from gampen_ray.errors import AGAIN, StorageError
from gampen_ray.messages import counted

__all__ = ["stream_units", "unit_workers"]

# Ray Data keeps some 20 kB per task in the driver: in a larger job each task processes several units in turn.
_MOST_TASKS = 2048
# One unit is read while another is on the device, and a third waits.
_UNITS_AT_ONCE, _UNITS_AHEAD = 2, 3
_CPUS_PER_WRITER = 0.25
# A summary takes 0.2 ms of a core: little beside a prediction on a core, but not beside one on a fast device.
_WRITERS_PER_GPU = 4
# A unit of a large network on CPUs may take longer than Ray's own limit of half an hour.
_NO_PROGRESS_TIMEOUT_S = 6 * 3600
# How often a unit is begun beside others, and then alone: nodes are lost too, and another unit may end its worker.
_ATTEMPTS = 2
# Units of a job that are bisected: each takes minutes, in which the cluster has nothing else to do.
_MOST_BISECTED = 16
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def unit_workers(num_units: int, resources: TaskResources | ActorResources, cpus_per_task: float | None) -> Generator[Workers]:
    """Yield the workers of a job of units, within a session of Ray; see `gampen_ray.engine.units.run_units`."""
    with ray_session():
        if cpus_per_task is None:
            assert isinstance(resources, ActorResources)
            workers, count = cluster_workers(resources), min(num_units, _MOST_TASKS)
            workers = dataclasses.replace(workers, count=min(workers.count, count), room=min(workers.room, count))
            logger.info("starting %s", counted(workers.count, "worker"))
        else:
            cpus = task_cpus(resources, cpus_per_task)
            workers = Workers(count=resources.num_workers, room=0, cpus=cpus, gpus=0, threads=1)
        yield workers


def stream_units(
    units: Sequence[U],
    start: Start[U],
    workers: Workers,
    *,
    write: Callable[[Any], Any] | None = None,
    actors: bool = True,
) -> Generator[tuple[int, Any]]:
    """Process units within a session of Ray and yield the number of rows and the receipt of each when it is finished.

    Parameters
    ----------
    units, start, write
        See `gampen_ray.engine.units.run_units`.
    workers
        Actors, no more than units, or how many tasks may run at a time (0: as many as there is room for) and their CPUs.
    actors
        Whether the workers are actors.
    """
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    blocks = min(len(units), _MOST_TASKS)
    rows = ray.data.from_items(
        [{"index": index, "value": pickle.dumps(unit)} for index, unit in enumerate(units)], override_num_blocks=blocks
    )
    one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # On CPUs an actor's other thread has time to write; beside a GPU it would keep the device waiting.
    arguments = (start, workers, None if workers.gpus else write)
    if actors:
        pool: dict[str, Any] = {"fn_constructor_args": arguments, "compute": _actor_pool(workers.count)}
    else:
        pool = {"fn_args": arguments, "compute": ray.data.TaskPoolStrategy(workers.count or None)}
    function: Any = _Worker if actors else _process
    done = rows.map_batches(function, num_cpus=workers.cpus, num_gpus=workers.gpus, **one_by_one, **pool)
    if write and workers.gpus:
        pool = {"compute": ray.data.TaskPoolStrategy(min(len(units), workers.count * _WRITERS_PER_GPU))}
        done = done.map_batches(functools.partial(_apply, function=write), num_cpus=_CPUS_PER_WRITER, **one_by_one, **pool)
    waiting, left = dict(enumerate(units)), []
    try:
        for row in done.iter_rows():
            raise_if_interrupted()
            unit = waiting.pop(row["index"])
            if row["value"] is None:
                left.append(unit)
            else:
                yield unit.num_rows, pickle.loads(row["value"])
    except ExecutionTimeoutError:
        some = ", ".join(unit.name for unit in list(waiting.values())[:3])
        raise StorageError(
            f"no unit was finished for {_NO_PROGRESS_TIMEOUT_S / 3600:g} hours; {len(waiting)} are waited for, such as {some}: "
            f"see that workers and storage answer, and {AGAIN}"
        ) from None
    for number, unit in enumerate(left):
        raise_if_interrupted()
        yield unit.num_rows, _Alone(start, workers, write).receipt(unit, bisect=number < _MOST_BISECTED)


class _Alone:
    """Processes units that ended their workers, in tasks of their own."""

    def __init__(self, start: Start[Any], workers: Workers, write: Callable | None) -> None:
        self._task = ray.remote(_process_alone).options(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=0)
        self._start, self._workers, self._write = start, workers, write

    def receipt(self, unit: Any, *, bisect: bool) -> Any:
        """Return the receipt of a unit, with as many rows as can be processed."""
        receipt, end = self._tried(unit, self._write)
        if not end:
            return receipt
        if not isinstance(unit, Refusable):
            reason = f"working on it {end} {2 * _ATTEMPTS} times"
            raise StorageError(f"{unit.name}: {reason}; take it out of the input, or give the workers more memory")
        logger.warning("%s: working on its %s rows %s: looking for those to blame", unit.name, unit.num_rows, end)
        found = culprits(unit.num_rows, functools.partial(self._end_of_some, unit)) if bisect else {}
        everything = dict.fromkeys(range(unit.num_rows), f"{end} {2 * _ATTEMPTS} times, together with others")
        for refused in (found, everything) if found else (everything,):
            reasons = {row: f"working on it {how}" for row, how in refused.items()}
            receipt, end = self._tried(_without(unit, reasons), self._write)
            if not end:
                logger.warning("%s: %s of its %s rows go to quarantine", unit.name, len(refused), unit.num_rows)
                return receipt
        raise StorageError(f"{unit.name}: working on it {end}, even with all its rows left out; {AGAIN}")

    def _end_of_some(self, unit: Any, rows: range) -> str:
        """Return how the work on some rows of a unit ends its process, a single one's each time; empty: it does not."""
        others = dict.fromkeys(set(range(unit.num_rows)) - set(rows), "not tried")
        attempts = _ATTEMPTS if len(rows) == 1 else 1
        return self._tried(_without(unit, others), _nothing, attempts)[1]

    def _tried(self, unit: Any, then: Callable | None, attempts: int = _ATTEMPTS) -> tuple[Any, str]:
        """Return the receipt of a unit, or how each attempt ended its process."""
        end = ""
        for _ in range(attempts):
            raise_if_interrupted()
            try:
                return ray.get(self._task.remote(pickle.dumps(unit), self._start, self._workers, then)), ""
            except ray.exceptions.OutOfMemoryError:
                end = "took the memory of its node"
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):
                end = "killed the process"
        return None, end


def _without(unit: Any, reasons: dict[int, str]) -> Any:
    return dataclasses.replace(unit, refused=reasons)


def _nothing(result: Any) -> None:
    """Drop a result that was worked for to see whether that can be done."""


def _actor_pool(count: int) -> ray.data.ActorPoolStrategy:
    return ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=count,
        initial_size=count,
        max_tasks_in_flight_per_actor=_UNITS_AHEAD,
        max_concurrent_calls_per_actor=_UNITS_AT_ONCE,
        enable_true_multi_threading=True,
    )


class _Worker:
    """An actor, which is started once and then processes units."""

    def __init__(self, start: Callable[[Workers], Callable], workers: Workers, write: Callable | None) -> None:
        self._work, self._write = start(workers), write

    def __call__(self, item: pa.Table) -> pa.Table:
        return _apply(item, self._work, self._write)


def _process(item: pa.Table, start: Callable[[Workers], Callable], workers: Workers, write: Callable | None) -> pa.Table:
    return _apply(item, start(workers), write)


def _apply(item: pa.Table, function: Callable, then: Callable | None = None) -> pa.Table:
    """Apply one function or two to the pickled value of a table's only row; no value is left after too many attempts."""
    value, content = item["value"][0].as_py(), None
    # The attempts of the task, of which there are several only where a worker or a node was lost.
    if value is not None and ray.get_runtime_context().worker.core_worker.get_current_task_attempt_number() < _ATTEMPTS:
        content = pickle.dumps(_receipt(value, function, then))
    return item.set_column(1, "value", pa.array([content], pa.large_binary()))


def _process_alone(value: bytes, start: Callable[[Workers], Callable], workers: Workers, write: Callable | None) -> Any:
    return _receipt(value, start(workers), write)


def _receipt(value: bytes, function: Callable, then: Callable | None) -> Any:
    result = function(pickle.loads(value))
    return then(result) if then else result
