"""Ray for the length of one job: the cluster at hand, or a local Ray that is started and stopped."""

import contextlib
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train

from gampen_ray.errors import StorageError, UserError
from gampen_ray.plugins import VARIABLE, plugin_modules

# Read by Ray when it starts and by the workers that inherit it; a user's own setting wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The default of 32 footer-reading processes is made for large clusters.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # Small machines: a process that has done its task stays for the next, which would start another and import all again.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # A report from a training worker waits for the controller's next poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # The machine that the driver runs on: an actor that asks whether it is to be taken away has nothing to tell.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Workers keep the memory of one step for the next. Else glibc returns every large tensor, and a tenth of a CPU training
    # is the kernel's, which clears the same pages again and again.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    # What goes wrong is raised; the driver's C++ log on the terminal speaks of Ray's own affairs, and first of its level.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # What a driver that ends with an error has not asked for yet.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    # Ray Tune: no tables of its own, objectives that are known at the end only, and Ctrl-C ends the program.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_RAISED = {
    kind: re.compile(rf"^{kind.__module__}\.{kind.__qualname__}: (.+)$", re.MULTILINE) for kind in (UserError, StorageError)
}
# What Ray itself could not read or write, such as a checkpoint on a full disk.
_STORAGE_FAILED = re.compile(r"^OSError: (\[Errno \d+\] .+|.*AWS Error .+)$", re.MULTILINE)
_LOCAL_OBJECT_STORE_BYTES = 1 << 30


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to Ray, and leave nothing behind.

    A connection that is already there is used and kept. Inside a job or with ``RAY_ADDRESS`` set, that cluster is used. Else a
    local Ray is started, and stopped at the end, also after an error, Ctrl-C, or SIGTERM, which is how clusters end a job.

    Raises
    ------
    UserError, StorageError
        If a task raised one.
    """
    started = not ray.is_initialized()
    if started:
        _start()
    try:
        with _sigterm_as_ctrl_c():
            yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        if told := told_in(str(error)):
            raise told from None
        raise
    finally:
        if started:
            ray.shutdown()


def told_in(traceback: str) -> UserError | StorageError | None:
    """Return the user's mistake or failure of storage that a task or worker raised, from the text of its traceback."""
    for kind, pattern in _RAISED.items():
        if found := pattern.search(traceback):
            return kind(found[1])
    if found := _STORAGE_FAILED.search(traceback):
        return StorageError(f"{found[1]}; mend it, and give the same command again: what is finished stays")
    return None


def _start() -> None:
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if "RAY_ADDRESS" not in os.environ:
        options |= {
            "address": "local",
            # At least two logical CPUs: reading and computing must be able to run side by side.
            "num_cpus": max(2, os.cpu_count() or 1),
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    # A submitted job's workers have the variables of the job.
    if (modules := plugin_modules()) and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        options["runtime_env"] = {"env_vars": {VARIABLE: modules}}
    with _no_stderr():
        ray.init(**options)
    # Errors come as exceptions; Ray Data and Ray Tune would log each of them besides.
    for name in ("ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None: Ray's C++, which would print where it was and end the process.
    handler = signal.signal(signal.SIGTERM, signal.default_int_handler) or signal.SIG_DFL
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Silence standard error, that of C++ included."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
