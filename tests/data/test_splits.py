"""Splits are a stable function of the object_id alone."""

import subprocess
import sys

import numpy as np
import pytest

from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config import SplitConfig
from gampen_ray.config.base import build
from gampen_ray.data.splits import assign_splits
from gampen_ray.errors import UserError


def _ids(kind: str, count: int) -> np.ndarray:
    numbers = np.arange(count) + 587722984439545906
    return numbers if kind == "int" else np.array([f"KiDS J{number}" for number in numbers])


@pytest.mark.parametrize("kind", ["int", "string"])
@pytest.mark.parametrize(("train", "val"), [(0.8, 0.1), (0.45, 0.05), (0.7, 0.3), (1.0, 0.0), (0.027, 0.003)])
def test_shares(kind: str, train: float, val: float) -> None:
    count = 40_000
    splits = assign_splits(_ids(kind, count), SplitConfig(train=train, val=val))
    for name, share in (("train", train), ("val", val), ("test", 1 - train - val)):
        spread = np.sqrt(count * max(share * (1 - share), 0))
        assert abs((splits == name).sum() - share * count) <= 5 * spread + 1e-6


def test_pinned_values() -> None:
    # A change here moves galaxies between the splits of every existing dataset.
    config = SplitConfig(train=0.4, val=0.3)
    assert "".join(split[1] for split in assign_splits(np.arange(24), config)) == "areerrareaerareaaaraaaae"
    names = np.array([f"G{index}" for index in range(20)] + ["", "é", "a name of more than sixteen bytes", "x" * 8])
    assert "".join(split[1] for split in assign_splits(names, config)) == "aaraeraraaaarrrraeeearre"


@pytest.mark.parametrize("kind", ["int", "string"])
def test_a_split_does_not_depend_on_the_other_galaxies(kind: str) -> None:
    ids = _ids(kind, 200)
    if kind == "string":
        ids = np.array([*ids, "a much longer identifier than all the others, indeed"])
    whole = assign_splits(ids, SplitConfig())
    assert [assign_splits(ids[row : row + 1], SplitConfig())[0] for row in range(len(ids))] == whole.tolist()
    assert (assign_splits(ids[::-1].astype(object) if kind == "string" else ids[::-1], SplitConfig())[::-1] == whole).all()


def test_integer_types_agree_and_seeds_differ() -> None:
    ids = np.arange(1000)
    splits = assign_splits(ids, SplitConfig())
    assert (assign_splits(ids.astype(np.int32), SplitConfig()) == splits).all()
    assert (assign_splits(ids, SplitConfig(seed=1)) != splits).mean() > 0.2


def test_another_interpreter_agrees() -> None:
    code = (
        "import numpy as np; from gampen_ray.config import SplitConfig; from gampen_ray.data.splits import assign_splits;"
        "print(''.join(s[1] for s in assign_splits(np.array([f'G{i}' for i in range(50)]), SplitConfig())))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, text=True, check=True)
    here = assign_splits(np.array([f"G{index}" for index in range(50)]), SplitConfig())
    assert done.stdout.strip() == "".join(split[1] for split in here)


def test_limiting_cases() -> None:
    assert assign_splits(np.array([], dtype=np.int64), SplitConfig()).shape == (0,)
    assert assign_splits(np.array([], dtype=object), SplitConfig()).shape == (0,)
    with pytest.raises(UserError, match=r"split: train and val are 0\.9 \+ 0\.2, more than 1; lower one"):
        build(SimulateConfig, {"output": "d", "split": {"train": 0.9, "val": 0.2}})
