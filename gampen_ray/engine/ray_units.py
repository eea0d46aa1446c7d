"""Units of work on Ray; see `gampen_ray.engine.units`.

A unit whose worker ends twice, as by a crash or for lack of memory, is left for the end of the job, when it is processed alone.
If that ends its worker too, the unit is at fault, and given up.
"""

import dataclasses
import functools
import logging
import pickle
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
import ray.exceptions
from ray.data.exceptions import ExecutionTimeoutError

from gampen_ray.config import ActorResources, TaskResources
from gampen_ray.engine.cluster import cluster_workers, task_cpus
from gampen_ray.engine.interrupts import raise_if_interrupted
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import ray_session
from gampen_ray.engine.units import Start, U
from gampen_ray.errors import AGAIN, StorageError

__all__ = ["ray_units", "stream_units"]

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
logger = logging.getLogger(__name__)


def ray_units(
    units: Sequence[U],
    start: Start[U],
    *,
    resources: TaskResources | ActorResources,
    cpus_per_task: float | None,
    write: Callable[[Any], Any] | None,
    give_up: Callable[[str], Start[U]] | None,
) -> Generator[tuple[int, Any, Workers]]:
    """Process units in a session of Ray; see `gampen_ray.engine.units.run_units`, and `stream_units` for what it yields."""
    with ray_session():
        if cpus_per_task is None:
            assert isinstance(resources, ActorResources)
            workers, count = cluster_workers(resources), min(len(units), _MOST_TASKS)
            workers = dataclasses.replace(workers, count=min(workers.count, count), room=min(workers.room, count))
        else:
            cpus = task_cpus(resources, cpus_per_task)
            workers = Workers(count=resources.num_workers, room=0, cpus=cpus, gpus=0, threads=1)
        how: dict[str, Any] = {"write": write, "actors": cpus_per_task is None, "give_up": give_up}
        for num_rows, receipt in stream_units(units, start, workers, **how):
            yield num_rows, receipt, workers


def stream_units(
    units: Sequence[U],
    start: Start[U],
    workers: Workers,
    *,
    write: Callable[[Any], Any] | None = None,
    actors: bool = True,
    give_up: Callable[[str], Start[U]] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Process units within a session of Ray and yield the number of rows and the receipt of each when it is finished.

    Parameters
    ----------
    units, start, write, give_up
        See `gampen_ray.engine.units.run_units`.
    workers
        Actors, no more than units, or how many tasks may run at a time (0: as many as there is room for) and their CPUs.
    actors
        Whether the workers are actors.
    """
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    rows = [{"index": index, "value": pickle.dumps(unit)} for index, unit in enumerate(units)]
    one_by_one: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # On CPUs an actor's other thread has time to write; beside a GPU it would keep the device waiting.
    arguments = (start, workers, None if workers.gpus else write)
    if actors:
        pool: dict[str, Any] = {"fn_constructor_args": arguments, "compute": _actor_pool(workers.count)}
    else:
        pool = {"fn_args": arguments, "compute": ray.data.TaskPoolStrategy(workers.count or None)}
    function: Any = _Worker if actors else _process
    done = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_TASKS)).map_batches(
        function, num_cpus=workers.cpus, num_gpus=workers.gpus, **one_by_one, **pool
    )
    if write and workers.gpus:
        pool = {"compute": ray.data.TaskPoolStrategy(min(len(rows), workers.count * _WRITERS_PER_GPU))}
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
    for unit in left:
        raise_if_interrupted()
        yield unit.num_rows, _alone(unit, start, workers, write, give_up)


def _alone(
    unit: U, start: Start[U], workers: Workers, write: Callable | None, give_up: Callable[[str], Start[U]] | None
) -> Any:
    """Return the receipt of a unit that is processed in a task of its own, or else given up in one."""
    task = ray.remote(_process_alone).options(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=0)
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            return ray.get(task.remote(pickle.dumps(unit), start, workers, write))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
            how = "took the memory of its node" if isinstance(error, ray.exceptions.OutOfMemoryError) else "killed the process"
            reason = f"working on it {how} {2 * _ATTEMPTS} times"
    if give_up is None:
        raise StorageError(f"{unit.name}: {reason}; take it out of the input, or give the workers more memory")
    logger.warning("%s: %s: its %s rows go to quarantine", unit.name, reason, unit.num_rows)
    return _alone(unit, give_up(reason), workers, write, None)


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
