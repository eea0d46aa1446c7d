import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gampen_ray import provenance


def test_provenance_names_versions_and_date() -> None:
    found = provenance.provenance()
    assert found["gampen_ray"] == "0.1.0"
    assert found["torch"].startswith("2.")
    assert found["date"].endswith("+00:00")


def test_fingerprint_depends_on_content_alone() -> None:
    first = provenance.content_fingerprint({"a": 1, "b": 2}, np.arange(5), ["x", "y"])
    assert first == provenance.content_fingerprint(
        {"b": 2, "a": 1}, np.arange(5).astype(">i8"), np.array(["x", "y"], dtype=object)
    )
    assert first != provenance.content_fingerprint({"a": 1, "b": 3}, np.arange(5), ["x", "y"])
    assert first != provenance.content_fingerprint({"a": 1, "b": 2}, np.arange(5), ["xy", ""])
    assert first != provenance.content_fingerprint({"a": 1, "b": 2}, np.arange(5) + 1, ["x", "y"])


@pytest.mark.parametrize(
    ("place", "project", "is_recorded"),
    [
        ("", 'name = "gampen_ray"', True),
        ("", 'name = "thesis"', False),
        ("venv/lib/site-packages", 'name = "gampen_ray"', False),
    ],
    ids=["checkout", "copied into a repository", "installed inside a repository"],
)
def test_git_revision_is_that_of_a_checkout_alone(tmp_path: Path, place: str, project: str, is_recorded: bool) -> None:
    repository = tmp_path / "somebody's"
    package = Path(provenance.__file__).parent
    shutil.copytree(package, repository / place / "gampen_ray", ignore=shutil.ignore_patterns("__pycache__", "bundles"))
    (repository / "pyproject.toml").write_text(f"[project]\n{project}\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    for command in (("init", "-q"), ("add", "pyproject.toml"), ("commit", "-q", "-m", "a")):
        subprocess.run(["git", *identity, "-C", str(repository), *command], check=True)
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    program = "from gampen_ray.provenance import __file__, provenance; print(__file__, provenance()['git_revision'], sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(repository / place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    file, revision = done.stdout.splitlines()
    assert file.startswith(str(repository / place))
    assert revision == (head.strip() if is_recorded else "None")
