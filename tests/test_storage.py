"""Local files, and the same on an S3-compatible server."""

import gc
import http.server
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gampen_ray import s3, storage
from gampen_ray.cli import main
from gampen_ray.errors import StorageError, UserError
from tests.faulty_proxy import faulty_proxy


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return request.getfixturevalue("s3_folder")


def test_a_name_that_is_no_text_is_refused() -> None:
    with pytest.raises(UserError, match=r"'a\\ud800' is no text that a name of a file can be"):
        storage.exists("a\ud800")


def test_bytes_come_back_and_are_replaced(root: str) -> None:
    uri = storage.join(root, "deep", "a.bin")
    storage.write_bytes_atomic(uri, b"one")
    storage.write_bytes_atomic(uri, b"second")
    assert storage.read_bytes(uri) == b"second"
    assert storage.size(uri) == 6
    with storage.open_input(uri) as file:
        file.seek(3)
        assert file.read() == b"ond"
    assert storage.list_files(root) == [storage.absolute(uri)]


@pytest.mark.parametrize("name", ["a.fits.gz", "a.bz2", "a.zst", "a.lz4"])
def test_files_are_stored_as_they_are_whatever_their_name(name: str, root: str) -> None:
    uri = storage.join(root, name)
    storage.write_bytes_atomic(uri, b"content")
    with storage.open_output(storage.join(root, f"other-{name}")) as file:
        file.write(b"content")
    assert storage.read_bytes(uri) == storage.read_bytes(storage.join(root, f"other-{name}")) == b"content"


def test_missing_files_are_named(root: str) -> None:
    uri = storage.join(root, "absent.json")
    for call in (storage.read_bytes, storage.read_json, storage.open_input):
        with pytest.raises(UserError, match=r"absent.json: no such file"):
            call(uri)
    with pytest.raises(UserError, match=r"absent.json: no such file"):
        storage.copy(uri, storage.join(root, "b"))
    assert not storage.exists(uri)
    assert storage.size(uri) is None
    assert storage.list_files(storage.join(root, "absent")) == []


def test_list_is_recursive_sorted_and_by_suffix(root: str) -> None:
    root = storage.join(root, ".root")
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.json", ".hidden.txt", ".ipynb_checkpoints/a.txt", "sub/.git/x/y.txt"):
        storage.write_bytes_atomic(storage.join(root, name), b"x")
    names = [uri.removeprefix(storage.absolute(root)) for uri in storage.list_files(root, ".txt")]
    assert names == ["/a.txt", "/b.txt", "/sub/c.txt"]


def test_folders_may_appear_and_disappear_while_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    churn = (
        "import os, sys; os.chdir(sys.argv[1])\n"
        "while True: os.makedirs('part/x/x'); os.rename('part', 'gone'); os.removedirs('gone/x/x')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", churn, str(tmp_path)])
    try:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.001)
        # pyarrow's own listing fails in about one of 15,000.
        end = time.monotonic() + 3
        listed = {tuple(storage.list_files(str(tmp_path))) for _ in iter(lambda: time.monotonic() < end, False)}
    finally:
        process.kill()
        process.wait()
    assert listed == {(str(tmp_path / "a.txt"),)}


def test_a_link_to_a_folder_is_followed_and_a_broken_one_left_out(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "data" / "broken").symlink_to(tmp_path / "nowhere")
    assert storage.list_files(str(tmp_path / "data")) == [str(tmp_path / "data" / "link" / "a.txt")]
    with pytest.raises(UserError, match=r"Not a directory"):
        storage.list_files(str(tmp_path / "real" / "a.txt"))


def test_objects_whose_names_lead_out_of_the_folder_are_neither_listed_nor_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server of the tests refuses such names; Amazon's takes them.
    names = ["a.npy", "b/c.npy", "../e.npy", "b/../../e.npy", "./e.npy", "b/./e.npy", "b/..", "..", ".hidden"]

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys = "".join(f"<Contents><Key>x/in/{name}</Key><Size>1</Size></Contents>" for name in names)
            listed = f"<ListBucketResult><KeyCount>{len(names)}</KeyCount>{keys}</ListBucketResult>"
            content = listed.encode() if "list-type" in self.path else b"1"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_HEAD(self) -> None:
            folder = self.path.rstrip("/").endswith("/in")
            self.send_response(404 if folder else 200)
            self.send_header("Content-Length", "1")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert storage.list_files("s3://bucket/x/in") == [f"s3://bucket/x/in/{name}" for name in ("a.npy", "b/c.npy")]
        storage.copy("s3://bucket/x/in", str(tmp_path / "deep" / "out"))
        server.shutdown()
    there = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(there) == ["deep/out/a.npy", "deep/out/b/c.npy"]


def test_a_name_may_be_as_long_as_a_file_system_allows(tmp_path: Path) -> None:
    name = "x" * 255
    storage.write_bytes_atomic(str(tmp_path / name), b"1")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_stamps_change_with_content_of_the_same_size(root: str) -> None:
    uris = [storage.join(root, name) for name in ("a.fits", "b.fits", "sub/a.fits", "absent.fits")]
    for uri in (*uris[:3], storage.join(root, "a.fits.txt"), storage.join(root, "ab.fits")):
        storage.write_bytes_atomic(uri, b"one")
    before = storage.stamps(uris)
    assert list(before) == uris
    assert [stamp == "" for stamp in before.values()] == [False, False, False, True]
    assert storage.stamps(uris) == before
    storage.write_bytes_atomic(uris[2], b"two")
    after = storage.stamps(uris)
    assert [uri for uri in uris if before[uri] != after[uri]] == [uris[2]]


def test_copy_and_delete_a_folder(root: str) -> None:
    for name in ("a.txt", "sub/c.txt"):
        storage.write_bytes_atomic(storage.join(root, "from", name), name.encode())
    storage.copy(storage.join(root, "from"), storage.join(root, "to"))
    storage.copy(storage.join(root, "from", "a.txt"), storage.join(root, "to", "b.txt"))
    assert [storage.read_bytes(uri) for uri in storage.list_files(storage.join(root, "to"))] == [
        b"a.txt",
        b"a.txt",
        b"sub/c.txt",
    ]
    storage.delete(storage.join(root, "from"))
    storage.delete(storage.join(root, "to", "b.txt"))
    storage.delete(storage.join(root, "never"))
    assert len(storage.list_files(root)) == 2


def test_json_comes_back(root: str) -> None:
    uri = storage.join(root, "a.json")
    storage.write_json(uri, {"b": [1, None, "x"]})
    assert storage.read_json(uri) == {"b": [1, None, "x"]}
    storage.write_bytes_atomic(uri, b"{")
    with pytest.raises(UserError, match=r"a.json: not valid JSON"):
        storage.read_json(uri)
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(uri, float("nan"))


def test_a_failed_write_leaves_the_old_file_and_no_other(root: str) -> None:
    uri = storage.join(root, "a.bin")
    storage.write_bytes_atomic(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes_atomic(uri, "text is not bytes")  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError), storage.open_output(uri) as stream:
        stream.write(b"half")
        raise ZeroDivisionError
    # A stream that is left open would be closed now, and its half object be there.
    gc.collect()
    assert storage.list_files(root) == [storage.absolute(uri)]
    assert storage.read_bytes(uri) == b"old"
    with storage.open_output(uri) as stream:
        pass
    assert storage.read_bytes(uri) == b""


def test_folder_and_file_mixed_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file/below"):
        storage.write_bytes_atomic(str(tmp_path / "file" / "below"), b"")


def test_absolute_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/../b/") == str(tmp_path / "b")
    assert storage.absolute("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert storage.absolute("s3://bucket/a/bundle/../history.json") == "s3://bucket/a/history.json"
    assert storage.absolute("s3://bucket/./a/../b/") == "s3://bucket/b"


@pytest.mark.parametrize(
    ("base", "parts", "joined"),
    [("a", ("b",), "a/b"), ("a/", ("/b/", "c.txt"), "a/b/c.txt"), ("s3://x", ("y",), "s3://x/y"), ("/", ("a",), "/a")],
)
def test_join(base: str, parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(base, *parts) == joined


@pytest.mark.parametrize("uri", ["", "gs://bucket/a", "https://host/a"])
def test_unknown_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="neither a local path nor s3"):
        storage.filesystem(uri)


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket/..", "s3://bucket/a/../../../b"])
def test_s3_without_a_bucket_is_refused(uri: str) -> None:
    with pytest.raises(UserError, match="names no bucket"):
        storage.filesystem(uri)


def _through(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, attempts: int | None = None) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", environment["AWS_ENDPOINT_URL"])
    if attempts:
        monkeypatch.setattr(s3, "_ATTEMPTS", attempts)


@pytest.mark.s3
@pytest.mark.parametrize("fault", ["reset", "cut", "slow down"])
def test_passing_faults_are_not_noticed(
    fault: str, s3_folder: str, storage_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, data = storage.join(s3_folder, "a.bin"), np.random.default_rng(0).bytes(1 << 20)
    storage.write_bytes_atomic(uri, data)
    with faulty_proxy(storage_environment, fault, 2) as (environment, connections):
        _through(environment, monkeypatch)
        assert storage.read_bytes(uri) == data
        storage.write_bytes_atomic(storage.join(s3_folder, "b.bin"), data)
        assert len(storage.list_files(s3_folder)) == 2
    assert connections[:3] == [fault, fault, "through"]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "attempts", "told"),
    [("reset", 2, "NETWORK_CONNECTION"), ("slow down", 2, "503"), ("silent", 1, "too slow|Timeout")],
)
def test_lasting_faults_are_storage_errors(
    fault: str, attempts: int, told: str, s3_folder: str, storage_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(s3_folder, "a.bin")
    storage.write_bytes_atomic(uri, b"x" * 10_000)
    with faulty_proxy(storage_environment, fault, None) as (environment, connections):
        _through(environment, monkeypatch, attempts)
        with pytest.raises(StorageError, match=rf"a.bin: the server failed {attempts} times in a row: .*({told})"):
            storage.read_bytes(uri)
        assert connections == [fault] * attempts
    _through(storage_environment, monkeypatch)
    assert storage.size(uri) == 10_000


@pytest.mark.s3
def test_a_server_that_goes_away_while_a_file_is_read_does_not_damage_it(
    s3_folder: str, storage_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = storage.join(s3_folder, "a.bin")
    storage.write_bytes_atomic(uri, b"x" * 100_000)
    with faulty_proxy(storage_environment, "cut", None) as (environment, _):
        _through(environment, monkeypatch, attempts=2)
        with pytest.raises(StorageError, match=r"a.bin: the server failed"):
            storage.read_bytes(uri)


@pytest.mark.s3
def test_what_only_the_user_can_mend_on_a_server(s3_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="s3://nowhere/a: no such bucket; create it"):
        storage.write_bytes_atomic("s3://nowhere/a", b"")
    with pytest.raises(UserError, match="s3://nowhere/a: no such file"):
        storage.read_bytes("s3://nowhere/a")
    assert not storage.exists("s3://nowhere/a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for call in (storage.exists, storage.read_bytes, storage.list_files):
        with pytest.raises(UserError, match=r"the server refuses the credentials: .*; check AWS_ACCESS_KEY_ID"):
            call(s3_folder)
    # Without keys pyarrow would also ask the machine for its own.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(UserError, match="the server refuses the credentials"):
        storage.write_bytes_atomic(storage.join(s3_folder, "a"), b"")


@pytest.mark.parametrize(
    ("endpoint", "error", "match"),
    [
        ("http://127.0.0.1:1", StorageError, "the server failed 1 times in a row: .*check AWS_ENDPOINT_URL"),
        ("http://127.0.0.1:port", UserError, "not a valid URI; check the bucket, AWS_ENDPOINT_URL"),
        ("ftp://127.0.0.1:1", UserError, "AWS_ENDPOINT_URL: ftp://127.0.0.1:1 has the scheme ftp; write http://host:port"),
    ],
)
def test_wrong_endpoints(endpoint: str, error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    _through({"AWS_ENDPOINT_URL": endpoint}, monkeypatch, attempts=1)
    with pytest.raises(error, match=match):
        storage.read_bytes("s3://galaxies/a")


def test_a_full_disk_stops_a_job_in_one_line_and_damages_nothing(tmp_path: Path) -> None:
    pd.DataFrame({"object_id": range(500), "bt_g": np.linspace(0, 1, 500)}).to_csv(tmp_path / "info.csv", index=False)
    limited = (
        "import resource, sys; from gampen_ray.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3_000, 3_000)); sys.exit(main(sys.argv[1:]))"
    )
    job = [sys.executable, "-c", limited, "split", "--images", str(tmp_path)]
    ended = subprocess.run(job, capture_output=True, text=True)
    assert ended.returncode == 1
    assert [line for line in ended.stderr.splitlines() if "error" in line] == ended.stderr.splitlines()[-1:]
    assert "File too large; free space" in ended.stderr
    names = [path.name for path in (tmp_path / "splits").iterdir()]
    assert 0 < len(names) < 42
    assert not [name for name in names if name.startswith(".")]
    assert main(job[3:]) == 0
    assert len(list((tmp_path / "splits").iterdir())) == 42


def test_many_files_are_read_in_order_and_not_all_at_once() -> None:
    begun: list[str] = []

    def read(uri: str) -> str:
        begun.append(uri)
        return uri + "!"

    uris = [str(number) for number in range(3_000)]
    found = storage.read_each(read, uris)
    assert next(found) == "0!"
    assert len(begun) < 1_000
    assert ["0!", *found] == [uri + "!" for uri in uris]
