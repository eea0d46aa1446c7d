"""Training in processes of this machine, which start in seconds: the same work as on Ray, without it.

Each process is a worker (`train_child`). It ends when the driver does, also if that is killed. Where one dies all end, and
resume from the last checkpoint.
"""

import contextlib
import logging
import multiprocessing.connection
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from gampen_ray.config import TrainResources
from gampen_ray.engine import train_child
from gampen_ray.engine.interrupts import interrupts, raise_if_interrupted
from gampen_ray.engine.resources import (
    ALLOCATOR,
    LOCAL_CPUS,
    MAX_FAILURES,
    Node,
    Workers,
    loopback_only,
    plan_workers,
)
from gampen_ray.errors import AGAIN, StorageError, UserError
from gampen_ray.plugins import child_environment
from gampen_ray.training.run import Run
from gampen_ray.training.shown import shown

logger = logging.getLogger(__name__)
# Between looks for a Ctrl-C.
_PATIENCE_S = 0.5
# Between the death of a worker and its end, which may be noticed after the errors of the others.
_GRACE_S = 1.0


def local_trainers(resources: TrainResources) -> Workers:
    """Return as many workers, with as many threads, as a local Ray would have.

    Raises
    ------
    UserError
        If they do not fit, or are to use GPUs.
    """
    if resources.use_gpu:
        raise UserError("resources.use_gpu: true, but resources.engine local trains on CPUs; leave one of the two out")
    workers = plan_workers(resources, [Node(cpus=LOCAL_CPUS)])
    if workers.room < workers.count:
        raise UserError(
            f"resources.num_workers: {workers.count} with {workers.cpus:g} CPUs each, but this machine has room for "
            f"{workers.room}; lower it"
        )
    return workers


def run_processes(run: Run, workers: Workers) -> None:
    """Train in processes of this machine, which write history and bundle into the run folder.

    Parameters
    ----------
    run
        The training.
    workers
        Their number and threads.

    Raises
    ------
    UserError, StorageError
        If a worker raises one, MLflow cannot be reached, or workers die again and again.
    """
    with interrupts(), tempfile.TemporaryDirectory() as folder, shown(run, workers.count) as receive:
        for failures in range(MAX_FAILURES + 1):
            with _started(run, workers, Path(folder)) as processes:
                end = _worked(processes, receive)
            if not end:
                return
            if failures < MAX_FAILURES:
                logger.warning("a worker of the training %s: all resume from the last checkpoint", end)
    raise StorageError(
        f"training: its workers died {MAX_FAILURES + 1} times, the last one {end}; see that memory suffices, and {AGAIN}"
    )


@contextlib.contextmanager
def _started(run: Run, workers: Workers, folder: Path) -> Iterator[dict[Connection, subprocess.Popen[bytes]]]:
    """Yield the processes by the ends of their connections; afterwards none is left."""
    # A file in a folder of this user alone, as PyTorch's usual store listens on all interfaces.
    job = {
        "run": run,
        "world_size": workers.count,
        "threads": workers.threads,
        "meeting": f"file://{folder / uuid.uuid4().hex}",
    }
    environment = child_environment(OMP_NUM_THREADS=str(workers.threads), **ALLOCATOR, **loopback_only())
    processes: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for _ in range(workers.count):
            ours, theirs = multiprocessing.Pipe()
            with theirs:
                processes[ours] = subprocess.Popen(
                    [sys.executable, "-P", "-m", train_child.__name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    env=environment,
                    start_new_session=True,
                )
        for rank, connection in enumerate(processes):
            # One that has died is noticed where its messages are read.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(job | {"rank": rank})
        yield processes
    finally:
        for connection, process in processes.items():
            process.kill()
            process.wait()
            connection.close()


def _worked(processes: dict[Connection, subprocess.Popen[bytes]], receive: Callable[[dict[str, Any]], None]) -> str:
    """Pass the workers' messages on until all have ended; return how one died, empty if none did."""
    waiting = set(processes)
    while waiting:
        raise_if_interrupted()
        for connection in multiprocessing.connection.wait(waiting, _PATIENCE_S):
            assert isinstance(connection, Connection)
            try:
                message = connection.recv()
            except (EOFError, ConnectionResetError):
                waiting.remove(connection)
                if status := processes[connection].wait():
                    return _how(status)
                continue
            if error := message.get("error"):
                if not isinstance(error, UserError | StorageError) and (end := _death(processes)):
                    return end
                raise error
            receive(message)
    return ""


def _death(processes: dict[Connection, subprocess.Popen[bytes]]) -> str:
    """Return how a worker has just died, empty if none has: the others fail then too, as they miss it."""
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline:
        if status := next(filter(None, (process.poll() for process in processes.values())), 0):
            return _how(status)
        time.sleep(_GRACE_S / 20)
    return ""


def _how(status: int) -> str:
    return f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended (exit {status})"
