"""Names of files from catalogues: none leads out of its folder, and none that no file can have stops a job."""

from pathlib import Path

import pyarrow as pa
import pytest

from gampen_ray.data.file_names import file_uris, is_file_name, templated_files

INSIDE = {
    "a.fits": "a.fits",
    "sub/../a.fits": "a.fits",
    "./a": "a",
    "a/../../images/b.fits": "b.fits",
    "~root/x": "~root/x",
    "http://x/y": "http://x/y",
    "builtin:kids-r": "builtin:kids-r",
    "%2e%2e/x": "%2e%2e/x",
    "a\\..\\b": "a\\..\\b",
    "é" * 127: "é" * 127,
}
OUTSIDE = [
    "../x.fits",
    "..",
    ".",
    "",
    "a/../../x",
    "/etc/passwd",
    "//etc/passwd",
    "../images-2/x",
    "s3://other/a",
    "s3://bucket/x",
]
OUTSIDE += ["a\n/../../x", "s3://bucket/images/../x", "/data/images/../x", "s3://bucket/images/..", "..\0", "a\0b", "a/.."]
OUTSIDE += ["x" * 256, "é" * 128, "a/" + "y" * 256, "a/" * 600 + "b"]


@pytest.mark.parametrize("template", ["{object_id}-{tag}*.fits", "{object_id}-*{tag}-r.fits"])
def test_wildcards_in_a_catalogue_are_none(tmp_path: Path, template: str) -> None:
    for name in ("a1-x", "a1-y", "a2-*", "a2-x", "a3-[x]", "a4-x", "a5-{object_id}"):
        (tmp_path / f"{name}-r.fits").touch()
    table = pa.table({"object_id": ["a1", "a2", "a3", "a4", "a5"], "tag": ["?", "*", "[x]", "[x]", "{object_id}"]})
    (files,), faults = templated_files(template, ("r",), table, str(tmp_path))
    found = [uri and uri.rpartition("/")[2] for uri in files.to_pylist()]
    assert found == [None, "a2-*-r.fits", "a3-[x]-r.fits", None, "a5-{object_id}-r.fits"]
    assert faults[0] == f"no file matches {template.replace('{object_id}', 'a1').replace('{tag}', '?')}"


@pytest.mark.parametrize("folder", ["/data/images", "s3://bucket/images"])
def test_a_name_stays_in_its_folder(folder: str) -> None:
    found = file_uris(folder, pa.chunked_array([[*INSIDE, *OUTSIDE]])).to_pylist()
    assert found == [*(f"{folder}/{name}" for name in INSIDE.values()), *([None] * len(OUTSIDE))]


def test_names_that_no_file_can_have() -> None:
    good = ["a", "a/b", "é" * 127, "/".join(["x" * 255] * 4)]
    assert all(map(is_file_name, good))
    assert not any(map(is_file_name, ["a\0", "x" * 256, "é" * 128, "a/" + "x" * 256, "/".join(["x" * 255] * 5)]))


def test_braces_that_name_no_column_are_letters(tmp_path: Path) -> None:
    (tmp_path / "1-x-{a}{.fits").touch()
    table = pa.table({"object_id": ["1", "2"], "tag": ["x", "x"]})
    (files,), faults = templated_files("{object_id}-*{tag}-{a}{.fits".replace("{a}", "?a?"), ("r",), table, str(tmp_path))
    assert files.to_pylist() == [str(tmp_path / "1-x-{a}{.fits"), None]
    assert faults.tolist() == ["", "no file matches 2-*x-?a?{.fits"]
