import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gampen_ray import provenance
from gampen_ray.commands.infer import InferConfig
from gampen_ray.config import ActorResources, OptimizerConfig, TrainConfig
from gampen_ray.errors import UserError

INPUTS = {"bundle": "aa", "dataset": "bb"}


def infer_config(output: Path, **fields: object) -> InferConfig:
    return InferConfig(**({"bundle": "b", "dataset": "d", "output": str(output)} | fields))


def claimed(tmp_path: Path) -> Path:
    output = tmp_path / "o"
    assert not provenance.check_output(str(output), infer_config(output), INPUTS)
    assert not output.exists()
    provenance.claim_output(str(output), infer_config(output), INPUTS)
    return output


def test_the_same_run_may_go_on_elsewhere_with_its_inputs_elsewhere(tmp_path: Path) -> None:
    moved = claimed(tmp_path).rename(tmp_path / "moved")
    same = infer_config(moved, bundle="b2", dataset="d2", resources=ActorResources(num_workers=9))
    assert provenance.check_output(str(moved), same, INPUTS)
    provenance.claim_output(str(moved), same, INPUTS)


def test_another_config_is_refused_and_its_first_difference_named(tmp_path: Path) -> None:
    output = claimed(tmp_path)
    before = (output / "run.json").read_bytes()
    with pytest.raises(UserError, match=r"output: .*/o holds a run with another num_passes \(32, not 8\); nothing was changed"):
        provenance.claim_output(str(output), infer_config(output, num_passes=8), INPUTS)
    with pytest.raises(UserError, match=r"holds a run on another bundle; nothing was changed: give a new folder"):
        provenance.claim_output(str(output), infer_config(output), {**INPUTS, "bundle": "cc"})
    with pytest.raises(UserError, match=r"holds a run on another bundle"):
        provenance.claim_output(str(output), TrainConfig(dataset="d", output="o"), {"dataset": "bb"})
    assert (output / "run.json").read_bytes() == before


def test_a_nested_difference_is_named_in_full(tmp_path: Path) -> None:
    before, after = ({"dataset": "d", "output": "o", "seed": seed} for seed in (0, 1))
    provenance.claim_output(str(tmp_path / "o"), TrainConfig(**before), {})
    with pytest.raises(UserError, match=r"another seed \(0, not 1\)"):
        provenance.check_output(str(tmp_path / "o"), TrainConfig(**after), {})
    other = TrainConfig(**before, optimizer=OptimizerConfig(epochs=3))
    with pytest.raises(UserError, match=r"another optimizer\.epochs \(12, not 3\)"):
        provenance.check_output(str(tmp_path / "o"), other, {})


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"already holds other files; nothing was changed: give a new folder"):
        provenance.claim_output(str(tmp_path), infer_config(tmp_path), INPUTS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


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
