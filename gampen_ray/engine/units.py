"""Units of work, by which `simulate`, `ingest`, `crop` and `infer` spread their work over a cluster, or do it in this process.

A job is a list of units, each of which a worker turns into files whose names depend on the unit alone. The files are the only
record: a resumed job processes the units whose files are missing, and a unit that is processed twice, as after the loss of a
node, writes the same files twice.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from gampen_ray.config import ActorResources, TaskResources
from gampen_ray.engine.interrupts import interrupts
from gampen_ray.engine.resources import LOCAL_CPUS, Node, Workers, has_gpu, plan_workers, wants_ray
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress

__all__ = [
    "MOST_LOCAL_ROWS",
    "Refusable",
    "Start",
    "WorkUnit",
    "counters",
    "is_local",
    "local_workers",
    "run_units",
    "threads_kept",
]

# What one process does in the time in which Ray starts.
MOST_LOCAL_ROWS = 500


class WorkUnit(Protocol):
    """What a worker processes at a time: a small object of a class that the workers can import."""

    @property
    def name(self) -> str:
        """Name of its files, the same in every run."""
        ...

    @property
    def num_rows(self) -> int:
        """Number of galaxies or files, for the progress."""
        ...


@runtime_checkable
class Refusable(WorkUnit, Protocol):
    """A unit, as a dataclass, of which some rows may be left out: those whose work ends the process.

    What processes it writes nothing, so that it can be tried on parts of it: that is left to the second step.
    """

    @property
    def refused(self) -> Mapping[int, str]:
        """By their numbers in the unit, rows that go to quarantine unread, with their reasons."""
        ...


U = TypeVar("U", bound=WorkUnit)
Start = Callable[[Workers], Callable[[U], Any]]
"""Called on a worker, it returns the function that processes a unit."""


def run_units(
    what: str,
    units: Sequence[U],
    start: Start[U],
    *,
    total: int,
    noun: str,
    resources: TaskResources | ActorResources,
    cpus_per_task: float | None = None,
    write: Callable[[Any], Any] | None = None,
    receive: Callable[[Any, Workers], str] = lambda *_: "",
) -> None:
    """Process the units of a job that are not finished, in no particular order, and show its progress.

    Few rows are processed in this process, if the user leaves that open (`is_local`), and Ray is started only for more.

    Parameters
    ----------
    what, noun
        Name of the job and of its rows, e.g. ``"simulate"`` and ``"galaxies"``.
    units
        The unfinished units. Of a `Refusable` one, the rows that end its worker go to quarantine; another ends the job.
    start
        Called once on each worker: it loads what the worker needs and returns the function that processes a unit and returns
        its receipt, a small value that can be pickled. On actors that function is called from two threads at a time.
    total
        Rows of the whole job, including those of finished units.
    resources
        The user's request.
    cpus_per_task
        CPUs of a task, where ``start`` costs nothing and is called for each unit; None: actors, each of which is started once
        for the whole job.
    write
        Second step, from a worker's result for a unit to the receipt; for GPU workers it runs in CPU tasks.
    receive
        Called in the driver with each receipt and the job's workers; it returns a note for the progress.

    Raises
    ------
    UserError, StorageError
        If a worker raises one, the cluster is too small, a unit that is not `Refusable` ends its workers, or no unit is
        finished for six hours.
    """
    if len({unit.name for unit in units}) < len(units):
        raise RuntimeError(f"{what}: two units of the same name would overwrite each other's files")
    progress, num_rows = Progress(what, total, noun), sum(unit.num_rows for unit in units)
    progress.skip(total - num_rows)
    with contextlib.ExitStack() as stack:
        if not units:
            stack.enter_context(progress)
            return
        if is_local(resources, num_rows):
            workers = local_workers(resources)
            done = _local_units(units, start, workers, write)
        else:
            from gampen_ray.engine.ray_units import stream_units, unit_workers

            workers = stack.enter_context(unit_workers(len(units), resources, cpus_per_task))
            done = stream_units(units, start, workers, write=write, actors=cpus_per_task is None)
        stack.enter_context(progress)
        for num_rows, receipt in stack.enter_context(contextlib.closing(done)):
            progress.advance(num_rows, receive(receipt, workers))


def is_local(resources: TaskResources | ActorResources, num_rows: int) -> bool:
    """Return whether units are processed in this process: as the user says, or where Ray would take longer to start.

    Never by itself where a cluster is given or connected, or the user says which workers the job gets.
    """
    if resources.engine != "auto":
        return resources.engine == "local"
    return num_rows <= MOST_LOCAL_ROWS and not wants_ray(resources)


def local_workers(resources: TaskResources | ActorResources) -> Workers:
    """Return this process as a worker.

    Raises
    ------
    UserError
        If the user wants a GPU, and there is none.
    """
    wanted = resources if isinstance(resources, ActorResources) else ActorResources(use_gpu=False)
    if wanted.use_gpu and not has_gpu():
        raise UserError("resources.use_gpu: this machine has no GPU that PyTorch can use; leave it out")
    node = Node(cpus=LOCAL_CPUS, gpus=int(wanted.use_gpu is not False and has_gpu()))
    # As many threads as a worker of Ray would have: to the last bit, sums depend on their number.
    return dataclasses.replace(plan_workers(wanted, [node]), count=1, room=1)


def counters(prefix: str, texts: dict[str, str]) -> Callable[..., None]:
    """Return a function that increments counters of Ray's metrics, given by name with their descriptions; none without Ray."""
    if "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        return lambda **_: None
    from ray.util.metrics import Counter

    made = {name: Counter(f"{prefix}_{name}", description=text) for name, text in texts.items()}

    def count(**amounts: float) -> None:
        for name, amount in amounts.items():
            # Ray refuses an increment of 0.
            if amount > 0:
                made[name].inc(amount)

    return count


def _local_units(units: Sequence[U], start: Start[U], workers: Workers, write: Callable | None) -> Generator[tuple[int, Any]]:
    with interrupts(), threads_kept():
        work = start(workers)
        for unit in units:
            result = work(unit)
            yield unit.num_rows, write(result) if write else result


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Restore PyTorch's number of threads, which is the process's, where a caller uses PyTorch: a worker sets its own."""
    torch: Any = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 0
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)
