from pathlib import Path

import pytest

from gampen_ray import provenance
from gampen_ray.config import InferConfig, ResourcesConfig, TrainConfig
from gampen_ray.errors import UserError


def infer_config(output: Path, **fields: object) -> InferConfig:
    return InferConfig(bundle="b", dataset="d", output=str(output), **fields)


def test_same_config_may_go_on_elsewhere(tmp_path: Path) -> None:
    provenance.claim_output(str(tmp_path / "o"), infer_config(tmp_path / "o"))
    provenance.claim_output(str(tmp_path / "o"), infer_config(tmp_path / "o", resources=ResourcesConfig(num_workers=9)))


def test_another_config_is_refused_and_its_first_difference_named(tmp_path: Path) -> None:
    provenance.claim_output(str(tmp_path / "o"), infer_config(tmp_path / "o"))
    before = (tmp_path / "o" / "config.toml").read_bytes()
    with pytest.raises(UserError, match=r"output: .*/o holds a run with another num_passes \(32, not 8\); nothing was changed"):
        provenance.claim_output(str(tmp_path / "o"), infer_config(tmp_path / "o", num_passes=8))
    with pytest.raises(UserError, match=r"another dataset \(None, not 'd'\)|another bundle \('b', not None\)"):
        provenance.claim_output(str(tmp_path / "o"), TrainConfig(dataset="d", output="o"))
    assert (tmp_path / "o" / "config.toml").read_bytes() == before


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(UserError, match=r"already holds other files; nothing was changed: give a new folder"):
        provenance.claim_output(str(tmp_path), infer_config(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_provenance_names_versions_and_date() -> None:
    found = provenance.provenance()
    assert found["gampen_ray"] == "0.1.0"
    assert found["torch"].startswith("2.")
    assert found["date"].endswith("+00:00")
