"""A small run of what `python -m tests.fuzz.poison_folder` does at length."""

import re
from pathlib import Path

import pytest

from gampen_ray.commands.infer import InferConfig, infer
from tests.fuzz.poison_files import POISON
from tests.fuzz.poison_folder import outcome, write
from tests.networks import bundle


@pytest.mark.ray
def test_poison_files_cost_themselves_alone(ray_local: None, tmp_path: Path) -> None:
    bundle().save(str(tmp_path / "model"))
    write(tmp_path / "data", 60, poisoned=True)
    infer(
        InferConfig(bundle=str(tmp_path / "model"), dataset=str(tmp_path / "data"), output=str(tmp_path / "out"), num_passes=2)
    )
    rows, quarantine = outcome(tmp_path / "out")
    assert len(set(rows)) == len(rows) == 60 - len(POISON)
    assert quarantine.keys() == {f"poison-{name}" for name in POISON}
    for name, (_, reason) in POISON.items():
        assert re.search(reason, quarantine[f"poison-{name}"])
