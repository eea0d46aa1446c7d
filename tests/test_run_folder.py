"""Whose output a folder is, on local disks and S3."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gampen_ray import lock, lock_files, storage
from gampen_ray.config.base import config_class, default
from gampen_ray.errors import UserError
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


def status(output: str, config: Any, verb: str = "infer", inputs: Any = INPUTS, **options: Any) -> str:
    return RunFolder.check(output, verb, config, inputs, complete="sub/manifest.json", **options)


def opened(
    output: str, config: Any = None, inputs: Any = INPUTS, **options: Any
) -> contextlib.AbstractContextManager[RunFolder]:
    return RunFolder.open(output, "infer", config or First(), inputs, complete="sub/manifest.json", **options)


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
    file, content = lock_files.lock_file(storage.join(output, lock.LOCK_FILE)), json.dumps(holder | fields).encode()
    # A heartbeat between the comparison and the write of its own would undo a plain write.
    while not file.swap(file.read(), content):
        pass


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


@pytest.mark.parametrize(
    ("files", "differs"),
    [
        ({"a": "1", "b": "3"}, "b"),
        ({"b": "2"}, "a"),
        ({"a": "1"}, "b"),
        ({"_": "1", "a": "1", "b": "2"}, "_"),
        ({"a": "2", "b": "2"}, "a"),
    ],
)
def test_the_file_of_an_input_that_differs_is_named(files: dict[str, str], differs: str, tmp_path: Path) -> None:
    output, inputs = str(tmp_path / "o"), {"dataset": "aa", "dataset shard": {"a": "1", "b": "2"}}
    with opened(output, inputs=INPUTS):
        pass
    # A run of an earlier release knows no single files.
    assert status(output, First(), inputs=inputs) == "resumable"
    with opened(str(tmp_path / "p"), inputs=inputs):
        pass
    with pytest.raises(UserError, match=rf"p holds a run on another dataset shard {differs}; nothing was changed"):
        status(str(tmp_path / "p"), First(), inputs=inputs | {"dataset shard": files})


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
