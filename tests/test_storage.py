"""Local files, and the same on an S3-compatible server."""

from pathlib import Path

import pytest

from gampen_ray import storage
from gampen_ray.errors import UserError


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return request.getfixturevalue("s3_folder")


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
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.json", ".hidden.txt"):
        storage.write_bytes_atomic(storage.join(root, name), b"x")
    names = [uri.removeprefix(storage.absolute(root)) for uri in storage.list_files(root, ".txt")]
    assert names == ["/a.txt", "/b.txt", "/sub/c.txt"]


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


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.bin")
    storage.write_bytes_atomic(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes_atomic(uri, "text is not bytes")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert storage.read_bytes(uri) == b"old"


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


def test_s3_without_a_bucket_is_refused() -> None:
    with pytest.raises(UserError, match="names no bucket"):
        storage.filesystem("s3://")
