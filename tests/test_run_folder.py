"""Whose output a folder is, and that one process at a time writes there, on local disks and S3."""

import contextlib
import dataclasses
import json
import logging
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gampen_ray import lock, storage
from gampen_ray.config.base import config_class, default
from gampen_ray.errors import StorageError, UserError
from gampen_ray.run_folder import RUN_FILE, RunFolder, files_identity

INPUTS = {"dataset": "aa"}


@config_class
class Inner:
    rate: float = 0.5


@config_class
class First:
    """A verb's config in one release."""

    dataset: str = "d"
    output: str = "o"
    resources: int = 1
    passes: int = 8
    size: int | None = 4
    inner: Inner = default(Inner)
    parts: dict[str, Inner] = dataclasses.field(default_factory=lambda: {"bulge": Inner()})


@config_class
class LaterInner:
    rate: float = 0.5
    decay: float = 0.9


@config_class
class Section:
    name: str | None = None
    words: tuple[str, ...] = ("a", "b")


@config_class
class Later:
    """The same verb's config in the next release: fields and a section are new, one is gone."""

    dataset: str = "d"
    output: str = "o"
    resources: int = 1
    size: int | None = 4
    inner: LaterInner = default(LaterInner)
    parts: dict[str, LaterInner] = dataclasses.field(default_factory=lambda: {"bulge": LaterInner()})
    section: Section = default(Section)


def status(output: str, config: Any, verb: str = "infer", inputs: dict[str, str] = INPUTS, **options: Any) -> str:
    return RunFolder.check(output, verb, config, inputs, complete="sub/manifest.json", **options)


def opened(
    output: str, config: Any = None, inputs: dict[str, str] = INPUTS, **options: Any
) -> contextlib.AbstractContextManager[RunFolder]:
    return RunFolder.open(output, "infer", config or First(), inputs, complete="sub/manifest.json", **options)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "o") if request.param == "local" else request.getfixturevalue("s3_folder")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("HEARTBEAT", 0.05), ("EXPIRY", 0.6), ("WATCH", 0.1), ("SETTLE", 0.3)):
        monkeypatch.setattr(lock, f"{name}_SECONDS", seconds)


def read_lock(output: str) -> dict[str, Any]:
    return storage.read_json(storage.join(output, lock.LOCK_FILE))


def write_lock(output: str, **fields: Any) -> None:
    holder = {
        "host": "elsewhere",
        "namespace": "",
        "pid": 7,
        "process_start": "",
        "token": "t",
        "since": "noon",
        "heartbeat": 0,
    }
    storage.write_json(storage.join(output, lock.LOCK_FILE), holder | fields)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Whose output it is.


def test_a_run_is_claimed_resumed_and_complete(output: str) -> None:
    assert status(output, First()) == "free"
    assert storage.list_files(output) == []
    with opened(output) as folder:
        assert (folder.uri, folder.is_complete, folder.is_resumed, folder.lost) == (output, False, False, False)
        stored = storage.read_json(folder.path(RUN_FILE))
        assert stored["config"] == {"passes": 8, "size": 4, "inner": {"rate": 0.5}, "parts": {"bulge": {"rate": 0.5}}}
        assert (stored["schema_version"], stored["verb"], stored["inputs"]) == (1, "infer", INPUTS)
        assert stored["provenance"]["gampen_ray"]
        assert storage.list_files(output) == [folder.path("lock.json"), folder.path("run.json")]
    assert storage.list_files(output) == [folder.path("run.json")]
    with opened(output) as folder:
        assert (folder.is_complete, folder.is_resumed) == (False, True)
        storage.write_json(folder.path("sub", "manifest.json"), {})
    write_lock(output)
    before = storage.stamps(storage.list_files(output))
    with opened(output) as folder:
        assert (folder.is_complete, folder.is_resumed) == (True, False)
        folder.check_lock()
    assert storage.stamps(storage.list_files(output)) == before


def test_nothing_but_the_claim_and_no_hidden_file_is_left(tmp_path: Path) -> None:
    with opened(str(tmp_path / "o")):
        pass
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["run.json"]


def test_the_same_run_elsewhere_with_other_resources_is_the_same(tmp_path: Path) -> None:
    with opened(str(tmp_path / "o")):
        pass
    moved = str((tmp_path / "o").rename(tmp_path / "moved"))
    assert status(moved, First(dataset="d2", output=moved, resources=9)) == "resumable"
    assert status(moved, First(passes=9, inner=Inner(rate=0.1)), ignored=("passes", "inner.rate")) == "resumable"


@pytest.mark.parametrize(
    ("config", "verb", "inputs", "match"),
    [
        (First(passes=9), "infer", INPUTS, r"holds a run with another passes \(8, not 9\)"),
        (First(size=None), "infer", INPUTS, r"holds a run with another size \(4, not None\)"),
        (First(inner=Inner(rate=0.1)), "infer", INPUTS, r"holds a run with another inner\.rate \(0\.5, not 0\.1\)"),
        (
            First(parts={"disk": Inner()}),
            "infer",
            INPUTS,
            r"holds a run with another parts\.bulge \(\{'rate': 0\.5\}, not None\)",
        ),
        (First(), "train", INPUTS, r"holds a run of 'infer', not 'train'"),
        (First(), "infer", {"dataset": "bb"}, r"holds a run on another dataset"),
        (First(), "infer", {**INPUTS, "bundle": "cc"}, r"holds a run on another bundle"),
    ],
)
def test_another_run_is_refused(tmp_path: Path, config: First, verb: str, inputs: dict[str, str], match: str) -> None:
    with opened(str(tmp_path / "o")):
        pass
    before = (tmp_path / "o" / RUN_FILE).read_bytes()
    with pytest.raises(UserError, match=rf"output: .*/o {match}; nothing was changed: give a new folder"):
        status(str(tmp_path / "o"), config, verb, inputs)
    assert [path.read_bytes() for path in (tmp_path / "o").iterdir()] == [before]


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"already holds other files; nothing was changed"), opened(str(tmp_path)):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_later_release_adds_does_not_make_another_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = str(tmp_path / "o")
    with opened(output, First(size=None, parts={"disk": Inner(rate=0.1)})):
        pass
    same: dict[str, Any] = {"size": None, "parts": {"disk": LaterInner(rate=0.1)}}
    assert status(output, Later(**same)) == "resumable"
    assert "o: fields unknown to this release are not compared: passes = 8" in caplog.text
    cases: list[tuple[dict[str, Any], str]] = [
        ({"section": Section(words=())}, r"section\.words \(\['a', 'b'\], not \[\]\)"),
        ({"inner": LaterInner(decay=0.5)}, r"inner\.decay \(0\.9, not 0\.5\)"),
        ({"parts": {"disk": LaterInner(rate=0.1, decay=0.5)}}, r"parts\.disk\.decay \(0\.9, not 0\.5\)"),
        ({"size": 4}, r"size \(None, not 4\)"),
    ]
    for fields, match in cases:
        with pytest.raises(UserError, match=match):
            status(output, Later(**same | fields))


@pytest.mark.parametrize(
    ("stored", "outcome"),
    [
        ({"config": {"passes": 8, "size": 4}, "inputs": INPUTS}, "resumable"),
        ({"config": {"passes": 8, "inner": {"old": 1}}, "inputs": INPUTS, "provenance": {}}, "resumable"),
        ({"config": {"passes": 8, "epochs": 1}, "inputs": INPUTS}, r"run of another verb or release \(with epochs = 1\)"),
        ({"config": {"passes": 9}, "inputs": INPUTS}, r"another passes \(9, not 8\)"),
        ({"schema_version": 2}, "of another program"),
        (
            {"schema_version": 2, "config": {}, "inputs": {}},
            r"by a newer gampen_ray .* nothing was changed: upgrade gampen_ray",
        ),
        ([], "of another program"),
    ],
)
def test_run_files_of_other_releases(tmp_path: Path, stored: Any, outcome: str) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(stored))
    if outcome == "resumable":
        assert status(str(tmp_path), First()) == outcome
    else:
        with pytest.raises(UserError, match=outcome):
            status(str(tmp_path), First())


def test_a_released_claim_leaves_the_folder_free(output: str) -> None:
    with opened(output) as folder:
        folder.release_claim()
    assert status(output, First(passes=9)) == "free"


def test_replaced_files_have_another_identity(output: str, tmp_path: Path) -> None:
    uris = [storage.join(output, name) for name in ("b/a.fits", "b/c.fits", "d.fits")]
    for uri in uris:
        storage.write_bytes_atomic(uri, b"one")
    first = files_identity(uris)
    assert files_identity(reversed(uris)) == first
    assert files_identity(uris[:2]) != first
    if storage.is_local(output):
        shutil.copytree(output, tmp_path / "moved")
        assert files_identity(storage.list_files(str(tmp_path / "moved"))) == first
    storage.write_bytes_atomic(uris[0], b"two")
    assert files_identity(uris) != first
    assert files_identity([]) == files_identity([])


# One process at a time.


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
    program = "import sys; from tests.test_run_folder import hold; hold(sys.argv[1])"
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
            for kind in (lock._LocalFile, lock._S3Object):
                patch.setattr(kind, "swap", lambda *_: storage.read_bytes(""))
            until(lambda: caplog.text.count("no heartbeat: ") >= 2)
        beats = read_lock(output)["heartbeat"]
        until(lambda: read_lock(output)["heartbeat"] > beats)
        assert not folder.lost


def race(outputs: list[str], barrier: Any, results: Any) -> None:
    for output in outputs:
        barrier.wait(60)
        try:
            with opened(output):
                results.put((output, "won"))
                barrier.wait(60)
        except UserError as error:
            results.put((output, str(error)))
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
    requested = lock._S3Object._requested

    def without(self: Any, request: Any, probing: bool = False, **arguments: Any) -> bool:
        conditions = {"IfMatch", "IfNoneMatch"}
        if server == "does not know them" and probing:
            return True
        return requested(self, request, **{name: value for name, value in arguments.items() if name not in conditions})

    monkeypatch.setattr(lock._S3Object, "_requested", without)
    start = time.monotonic()
    with opened(s3_folder) as folder:
        assert time.monotonic() - start >= lock.SETTLE_SECONDS
        until(lambda: read_lock(s3_folder)["heartbeat"] > 1)
        assert not folder.lost
    assert not storage.exists(storage.join(s3_folder, lock.LOCK_FILE))

    # Another that wrote last has it.
    monkeypatch.setattr(lock, "_is_alive", lambda _: True)
    threading.Timer(0.15, write_lock, (s3_folder,)).start()
    with pytest.raises(UserError, match="in use by process 7"), opened(s3_folder):
        pass


def test_a_disk_without_flock_still_has_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_flock", lambda _: False)
    monkeypatch.setattr(lock, "SETTLE_SECONDS", 0.1)
    with opened(str(tmp_path / "o")):
        assert read_lock(str(tmp_path / "o"))["pid"] == os.getpid()
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["run.json"]
