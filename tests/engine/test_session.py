"""What Ray's exceptions carry, and when Ray speaks."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from gampen_ray.engine import session
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import known_cause, ray_session
from gampen_ray.engine.units import stream_units
from gampen_ray.errors import StorageError, UserError
from gampen_ray.simulation.dataset import dataset_parts

MISTAKE = UserError("seed: -1; give 0 or more")


def raised(cause: Exception) -> RayTaskError:
    """Return what `ray.get` raises for a task that raised."""
    return RayTaskError("task", f"Traceback\n{cause}", cause).as_instanceof_cause()


@pytest.mark.parametrize(
    "error",
    [
        raised(MISTAKE),
        raised(raised(MISTAKE)),
        ActorDiedError(RayTaskError("__init__", "Traceback", MISTAKE)),
        WorkerGroupError("a worker failed", {0: RuntimeError("peer is gone"), 1: raised(MISTAKE)}),
        ControllerError(MISTAKE),
    ],
    ids=["task", "task in a task", "actor", "training worker", "training controller"],
)
def test_a_mistake_is_found_in_what_ray_raises(error: Exception) -> None:
    found = known_cause(error)
    assert (type(found), str(found)) == (UserError, str(MISTAKE))


def test_full_disks_and_failing_servers_are_failures_of_the_storage() -> None:
    for cause in (OSError(28, "No space left on device"), OSError("AWS Error NETWORK_CONNECTION during PutObject")):
        found = known_cause(WorkerGroupError("text", {0: cause}))
        assert isinstance(found, StorageError)
        assert str(found).startswith(f"{cause}; ")
    # Text alone, another program's file, and a connection between Ray's processes are not.
    text = "gampen_ray.errors.UserError: seed: -1"
    for other in (RuntimeError(text), OSError("bad magic"), ConnectionResetError(104, "reset"), FileNotFoundError(2, "none")):
        assert known_cause(raised(other)) is None


@pytest.mark.ray
def test_a_mistake_in_ray_data_leaves_the_session_as_itself(ray_local: None) -> None:
    def fails(batch: pa.Table) -> pa.Table:
        raise UserError("images: damaged")

    with pytest.raises(UserError, match=r"^images: damaged$") as raised, ray_session():
        ray.data.from_items([{"x": 1}]).map_batches(fails, batch_format="pyarrow").materialize()
    assert type(raised.value) is UserError


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_is_swallowed_ends_the_job_all_the_same(ray_local: None, number: signal.Signals) -> None:
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    units = [dataset_parts(4, 1)[i] for i in range(4)]
    workers = Workers(count=1, room=1, cpus=0.1, gpus=0, threads=1)
    with pytest.raises(KeyboardInterrupt), ray_session():
        for done, _ in enumerate(stream_units(units, lambda _: lambda unit: unit.index, workers, actors=False)):
            assert done == 0
            # As a destructor or a callback would that runs at this moment.
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(number)
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers
    with ray_session():
        assert len(list(stream_units(units, lambda _: lambda unit: unit.index, workers, actors=False))) == 4


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """How Ray is started, and its loggers and variables as they were."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **given: found.update(given))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    for name in ("RAY_BACKEND_LOG_LEVEL", "RAY_IGNORE_UNHANDLED_ERRORS"):
        # Set, so that it is deleted or restored afterwards.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    levels = {name: logging.getLogger(name).level for name in ("ray.data", "ray.tune")}
    context = ray.data.DataContext.get_current()
    bars = context.enable_progress_bars
    for name in levels:
        logging.getLogger(name).setLevel(logging.INFO)
    context.enable_progress_bars = True
    yield found
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    context.enable_progress_bars = bars


@pytest.mark.parametrize(("variable", "argument", "verbose"), [("", None, False), ("1", None, True), ("1", False, False)])
def test_ray_speaks_if_asked(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, variable: str, argument: bool | None, verbose: bool
) -> None:
    monkeypatch.setenv("GAMPEN_RAY_VERBOSE", variable)
    with ray_session(argument):
        assert options["log_to_driver"] is verbose
        assert options["logging_level"] == (logging.INFO if verbose else logging.ERROR)
        assert ("RAY_BACKEND_LOG_LEVEL" in session.os.environ) is not verbose
        assert (logging.getLogger("ray.data").level == logging.INFO) is verbose
        assert ray.data.DataContext.get_current().enable_progress_bars is verbose
