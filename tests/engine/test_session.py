"""What Ray's exceptions carry, and when Ray speaks."""

import contextlib
import logging
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import ControllerError, WorkerGroupError

from gampen_ray.engine import local, session
from gampen_ray.engine.ray_units import stream_units
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import known_cause, ray_session
from gampen_ray.errors import StartError, StorageError, UserError
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
    units = dataset_parts({-1: range(4)}, 1)
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
    # A Ray that other tests keep in this process must keep its token.
    keeps = SimpleNamespace(reset_cache=lambda: None)
    monkeypatch.setattr(local, "AuthenticationTokenLoader", SimpleNamespace(instance=lambda: keeps))
    monkeypatch.setattr(local, "Config", SimpleNamespace(initialize=lambda _: None))
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


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        (
            "",
            Exception("The current node timed out during startup. This could happen\nbecause"),
            r"^Ray did not start: The current node timed out during startup\. This could happen; run the same command again: ",
        ),
        (
            "10.0.0.1:6379",
            ConnectionError("\n  Ray is not there"),
            r"^RAY_ADDRESS: no Ray to be used at 10\.0\.0\.1:6379: Ray is not",
        ),
    ],
)
def test_a_ray_that_does_not_start_is_one_line_and_leaves_nothing(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, address: str, error: Exception, line: str
) -> None:
    def init(**given: Any) -> None:
        options.update(given)
        raise error

    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray, "init", init)
    before = dict(os.environ)
    with pytest.raises(StartError, match=line) as raised, ray_session():
        pass
    assert "\n" not in str(raised.value)
    assert ("_temp_dir" in options) is not bool(address)
    if not address:
        assert not Path(options["_temp_dir"]).parent.exists()
        assert {name: value for name, value in os.environ.items() if "AUTH" in name or "SOCKET" in name} == {
            name: value for name, value in before.items() if "AUTH" in name or "SOCKET" in name
        }


def test_a_local_ray_has_a_token_of_its_own_even_if_the_user_has_another(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_TOKEN_PATH": "/none"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    tokens = []
    for _ in range(2):
        with ray_session():
            assert (os.environ["RAY_AUTH_MODE"], "RAY_AUTH_TOKEN" in os.environ) == ("token", False)
            token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
            assert (token.stat().st_mode & 0o777, token.parent.stat().st_mode & 0o777) == (0o600, 0o700)
            assert Path(options["_temp_dir"]).parent == token.parent
            tokens.append(token.read_text())
        assert not token.parent.exists()
        assert {name: os.environ[name] for name in own} == own
    assert len(set(tokens)) == 2
    assert all(re.fullmatch(r"[0-9a-f]{64}", token) for token in tokens)
