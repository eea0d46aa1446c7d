"""One process at a time writes into an output folder, on local disks and S3."""

import contextlib
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gampen_ray import lock, lock_files, storage
from gampen_ray.errors import StorageError, UserError
from tests.test_run_folder import opened, write_lock


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT", 0.05), ("EXPIRY", 0.6), ("WATCH", 0.1), ("SETTLE", 0.3)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def read_lock(output: str) -> dict[str, Any]:
    return storage.read_json(storage.join(output, lock.LOCK_FILE))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_lock_is_released_however_the_block_ends(output: str, error: type[BaseException] | None) -> None:
    with contextlib.suppress(ValueError, KeyboardInterrupt), opened(output):
        assert read_lock(output)["pid"] == os.getpid()
        if error:
            raise error
    assert not storage.exists(storage.join(output, lock.LOCK_FILE))
    assert not [thread for thread in threading.enumerate() if thread.name == "gampen_ray lock"]


def test_one_process_may_hold_several_outputs_but_none_twice(tmp_path: Path) -> None:
    with opened(str(tmp_path / "study")), opened(str(tmp_path / "study" / "trial")):
        with (
            pytest.raises(UserError, match=r"/study is already open in this process"),
            opened(str(tmp_path / "x" / ".." / "study")),
        ):
            pass
        assert (tmp_path / "study" / lock.LOCK_FILE).exists()


def hold(output: str) -> None:
    with opened(output):
        sys.stdout.write("held\n")
        sys.stdout.flush()
        time.sleep(60)


@contextlib.contextmanager
def holder(output: str) -> Iterator[subprocess.Popen]:
    program = "import sys; from tests.test_lock import hold; hold(sys.argv[1])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", program, output], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_holder_is_taken_over_at_once_and_a_living_one_never(output: str, caplog: pytest.LogCaptureFixture) -> None:
    with holder(output) as process:
        where = rf"process {process.pid} on {socket.gethostname()} \(since 20.*\+00:00\)"
        match = rf"output: .* is in use by {where}; nothing was changed: wait until it ends, stop it, or give another folder"
        with pytest.raises(UserError, match=match), opened(output):
            pass
        process.kill()
        # It stays a zombie until it is waited for.
        until(lambda: lock._process_start(process.pid) == "ended")
        start = time.monotonic()
        with opened(output) as folder:
            assert folder.is_resumed
            assert time.monotonic() - start < 5
        assert f"took over the lock of process {process.pid} on {socket.gethostname()}" in caplog.text


def test_a_process_with_the_number_of_the_holder_is_not_the_holder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output, mine = str(tmp_path / "o"), {"host": socket.gethostname(), "namespace": lock._namespace()}
    write_lock(output, **mine, pid=os.getppid(), process_start=lock._process_start(os.getppid()))
    with pytest.raises(UserError, match=f"in use by process {os.getppid()}"), opened(output):
        pass
    write_lock(output, **mine, pid=os.getppid(), process_start="1")
    with opened(output):
        assert "is gone" in caplog.text


@pytest.mark.usefixtures("fast")
def test_a_holder_elsewhere_is_taken_over_when_its_heartbeat_stands_still(
    output: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_lock(output)
    start = time.monotonic()
    with opened(output):
        assert time.monotonic() - start >= lock.EXPIRY_SECONDS
        assert read_lock(output)["pid"] == os.getpid()
    assert "locked by process 7 on elsewhere (since noon); waiting for its heartbeat" in caplog.text
    assert "took over the lock of process 7 on elsewhere (since noon), which was silent for 0.6 s" in caplog.text


@pytest.mark.usefixtures("fast")
def test_a_holder_elsewhere_that_is_alive_keeps_its_lock(output: str) -> None:
    write_lock(output)
    threading.Timer(0.2, write_lock, (output,), {"heartbeat": 1}).start()
    with pytest.raises(UserError, match=r"in use by process 7 on elsewhere \(since noon\)"), opened(output):
        pass
    assert read_lock(output)["heartbeat"] == 1


@pytest.mark.usefixtures("fast")
def test_an_unreadable_lock_is_taken_over_like_a_silent_one(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK_FILE).write_bytes(b"")
    with opened(str(tmp_path)):
        assert read_lock(str(tmp_path))["pid"] == os.getpid()


@pytest.mark.usefixtures("fast")
def test_a_holder_that_lost_its_lock_notices_and_leaves_the_other_alone(output: str, caplog: pytest.LogCaptureFixture) -> None:
    with opened(output) as folder:
        folder.check_lock()
        write_lock(output)
        until(lambda: folder.lost)
        with pytest.raises(StorageError, match=r"another process took over the lock of this run; this one stops"):
            folder.check_lock()
        with pytest.raises(StorageError):
            folder.release_claim()
    assert read_lock(output)["host"] == "elsewhere"
    until(lambda: "was taken over by process 7 on elsewhere" in caplog.text)


@pytest.mark.usefixtures("fast")
def test_a_deleted_folder_does_not_come_back(tmp_path: Path) -> None:
    with opened(str(tmp_path / "o")) as folder:
        # A heartbeat may write while the folder is deleted.
        (tmp_path / "o").rename(tmp_path / "gone")
        until(lambda: folder.lost)
    assert not (tmp_path / "o").exists()


@pytest.mark.usefixtures("fast")
def test_storage_that_fails_for_a_while_costs_no_lock(
    output: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(output) as folder:
        with monkeypatch.context() as patch:
            for kind in (lock_files.LocalFile, lock_files.S3Object):
                patch.setattr(kind, "swap", lambda *_: storage.read_bytes(""))
            until(lambda: caplog.text.count("no heartbeat: ") >= 2)
        beats = read_lock(output)["heartbeat"]
        until(lambda: read_lock(output)["heartbeat"] > beats)
        assert not folder.lost


def race(outputs: list[str], barrier: Any, results: Any) -> None:
    for uri in outputs:
        barrier.wait(60)
        try:
            with opened(uri):
                results.put((uri, "won"))
                barrier.wait(60)
        except UserError as error:
            results.put((uri, str(error)))
            barrier.wait(60)


def test_of_two_processes_that_start_at_once_one_works_and_the_other_is_told(output: str) -> None:
    outputs = [f"{output}{i}" for i in range(50 if storage.is_local(output) else 12)]
    # Every second one has the lock of a process that is gone.
    for uri in outputs[::2]:
        write_lock(uri, host=socket.gethostname(), namespace=lock._namespace(), pid=2**22 + 1)
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(2), spawn.Queue()
    drivers = [spawn.Process(target=race, args=(outputs, barrier, results)) for _ in range(2)]
    for driver in drivers:
        driver.start()
    told = sorted(results.get(timeout=60) for _ in range(2 * len(outputs)))
    for driver in drivers:
        driver.join()
    for uri in outputs:
        (first, loser), (second, winner) = sorted(row for row in told if row[0] == uri)
        assert (first, second, winner) == (uri, uri, "won")
        assert loser.startswith(f"output: {uri} is in use by process")


@pytest.mark.s3
@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("server", ["ignores conditions", "does not know them"])
def test_without_conditional_requests_a_holder_waits_and_looks_again(
    server: str, s3_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = lock_files.S3Object._requested

    def without(self: Any, request: Any, probing: bool = False, **arguments: Any) -> bool:
        conditions = {"IfMatch", "IfNoneMatch"}
        if server == "does not know them" and probing:
            return True
        return requested(self, request, **{name: value for name, value in arguments.items() if name not in conditions})

    monkeypatch.setattr(lock_files.S3Object, "_requested", without)
    start = time.monotonic()
    with opened(s3_folder) as folder:
        assert time.monotonic() - start >= lock.SETTLE_SECONDS
        until(lambda: read_lock(s3_folder)["heartbeat"] > 1)
        assert not folder.lost
    assert not storage.exists(storage.join(s3_folder, lock.LOCK_FILE))

    # Another that wrote last, while this one waited, has it.
    monkeypatch.setattr(lock, "_is_alive", lambda _: True)
    monkeypatch.setattr(lock.time, "sleep", lambda _: write_lock(s3_folder))
    with pytest.raises(UserError, match="in use by process 7"), opened(s3_folder):
        pass


def test_a_disk_without_flock_still_has_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_files, "_flock", lambda _: False)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    with opened(str(tmp_path / "o")):
        assert read_lock(str(tmp_path / "o"))["pid"] == os.getpid()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["run.json"]
