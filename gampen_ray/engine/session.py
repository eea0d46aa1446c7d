"""Ray for the length of one job: an existing cluster, or a local Ray that is started and stopped."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import ray
import ray.data
import ray.exceptions
import ray.train

from gampen_ray.engine.interrupts import interrupts, raise_if_interrupted
from gampen_ray.engine.local import local_ray
from gampen_ray.engine.resources import ALLOCATOR
from gampen_ray.errors import AGAIN, StartError, StorageError, UserError
from gampen_ray.plugins import VARIABLE, plugin_modules
from gampen_ray.progress import Phase

# Read by Ray when it starts, and inherited by its workers; a user's own setting wins.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # The default of 32 footer-reading processes is made for large clusters.
    "RAY_DATA_PARQUET_FOOTER_NUM_ACTORS": "1",
    # Small machines: an idle process stays for the next task, which would otherwise start another and import everything again.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # A report from a training worker waits for the controller's next poll.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # An actor that watches for preemption costs a process, and without a cloud it has nothing to report.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    **ALLOCATOR,
    # Ray Tune: no tables or loggers of its own, objectives that are known at the end only, and Ctrl-C ends the program.
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
_QUIET = {
    # Failures are raised; the C++ log of the driver only concerns Ray itself.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # Unfetched results of a driver that ends with an error.
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
_VERBOSE = "GAMPEN_RAY_VERBOSE"
_STARTS = 3


@contextlib.contextmanager
def ray_session(verbose: bool | None = None) -> Iterator[None]:
    """Connect to Ray, and leave nothing behind.

    An existing connection is used and kept. Inside a job or with ``RAY_ADDRESS`` set, that cluster is used. Otherwise a local
    Ray is started that nobody else can reach (`local_ray`), and stopped at the end, also after an error, Ctrl-C, or SIGTERM, by
    which clusters end a job.

    Parameters
    ----------
    verbose
        Whether Ray's own log lines and progress are shown; None: if the environment variable GAMPEN_RAY_VERBOSE is 1.

    Raises
    ------
    UserError, StorageError
        If a task or worker raised one.
    StartError
        If Ray does not start, or the cluster does not answer.
    """
    try:
        with interrupts(), contextlib.ExitStack() as stack:
            if not ray.is_initialized():
                stack.enter_context(_started(os.environ.get(_VERBOSE, "") == "1" if verbose is None else verbose))
                raise_if_interrupted()
            # What a function of ours raises inside Ray Data arrives as it is, not as text.
            ray.data.DataContext.get_current().raise_original_map_exception = True
            # Ray's start has set a handler of its own.
            with interrupts():
                yield
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        if known := known_cause(error):
            raise known from None
        raise


def known_cause(error: BaseException) -> UserError | StorageError | None:
    """Return the user's mistake or the storage failure inside an exception of Ray, or None.

    Ray Train wraps the exceptions of its workers and of its controller, Ray Core those of tasks and of actors that do not
    start, and any of them may wrap another.
    """
    if isinstance(error, UserError | StorageError) and not isinstance(error, ray.exceptions.RayError):
        # Ray Data appends lines about retries to a message, which has one line.
        return (UserError if isinstance(error, UserError) else StorageError)(str(error).partition("\n")[0])
    # Ray's own reading and writing, such as a checkpoint on a full disk; subclasses are mostly connections between processes.
    if type(error) is OSError and (error.errno is not None or "AWS Error" in str(error)):
        text = str(error).partition("\n")[0] if error.errno is None else f"[Errno {error.errno}] {error.strerror}"
        return StorageError(f"{text}; correct it, and {AGAIN}")
    carried = [error.__cause__, *(getattr(error, name, None) for name in ("cause", "controller_failure"))]
    carried += [*getattr(error, "worker_failures", {}).values(), *error.args]
    found = (known_cause(one) for one in carried if isinstance(one, BaseException))
    return next((known for known in found if known), None)


@contextlib.contextmanager
def _started(verbose: bool) -> Iterator[None]:
    for name, value in (_ENVIRONMENT if verbose else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS") or "local"
    with local_ray() if address == "local" else contextlib.nullcontext({}) as options:
        options |= {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
        # The workers of a submitted job inherit the variables of the job.
        if (modules := plugin_modules()) and "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
            options["runtime_env"] = {"env_vars": {VARIABLE: modules}}
        try:
            with Phase("starting Ray" if address == "local" else "connecting to Ray"):
                _init(address, options, verbose)
            if not verbose:
                _silence()
            yield
        finally:
            ray.shutdown()


def _init(address: str, options: dict[str, Any], verbose: bool) -> None:
    for attempt in range(1, _STARTS + 1):
        try:
            with contextlib.nullcontext() if verbose else _no_stderr():
                ray.init(**options)
            return
        except SystemExit:
            # Ray's handler of SIGTERM, in a start that is not finished.
            raise KeyboardInterrupt from None
        except Exception as error:
            # A Ray of one's own has 30 s to start, which a busy machine may need for something else.
            ray.shutdown()
            raise_if_interrupted()
            if address == "local" and attempt < _STARTS:
                continue
            what = "Ray did not start" if address == "local" else f"RAY_ADDRESS: no Ray to be used at {address}"
            raise StartError(f"{what}: {str(error).strip().partition(chr(10))[0]}; {AGAIN}") from error


def _silence() -> None:
    # Errors arrive as exceptions; Ray Data and Ray Tune would log each of them as well.
    for name in ("ray.data", "ray.tune"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


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
