"""Typical mistakes on the command line: each is exit code 2 and the one right line, and writes nothing.

`mistakes.txt` is the table: a command, and below it the line that follows ``gampen-ray: error:``; ROOT is the current folder.
"""

import shlex
from pathlib import Path

import numpy as np
import pytest

from gampen_ray import cli
from gampen_ray.commands.simulate import SimulateConfig
from gampen_ray.config.base import to_toml
from gampen_ray.run_folder import RunFolder
from tests.networks import bundle, dataset, train_config

LINES = (Path(__file__).parent / "mistakes.txt").read_text().splitlines()
MISTAKES = {command.removeprefix("$ "): line for command, line in zip(LINES[::2], LINES[1::2], strict=True)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, a model, configs and things that are neither."""
    root = tmp_path_factory.mktemp("place")
    dataset(str(root / "data"), {"train": 8, "val": 4})
    bundle().save(str(root / "model"))
    for name in ("empty", "images", "broken", "full"):
        (root / name).mkdir()
    with RunFolder.open(str(root / "simulated"), "simulate", SimulateConfig(output="o"), {}, complete="dataset.json"):
        pass
    with RunFolder.open(str(root / "training"), "train", train_config("data", "o"), {}, complete="bundle/SHA256SUMS"):
        pass
    np.save(root / "images" / "a.npy", np.zeros((8, 8), np.float32))
    for name, text in {
        "notes.txt": "hello\n",
        "table.csv": "object_id,flux\na,1\n",
        "broken/bundle.json": "{",
        "full/file": "",
        "small.toml": to_toml(train_config("data", "o")),
        "bad.toml": "a = = 1\n",
        "typo.toml": 'dataset = "data"\noutput = "o"\n[optimiser]\nepochs = 3\n',
        "misspelt.toml": 'datset = "data"\noutput = "o"\n',
        "tiles.toml": 'image = "{tile}_{band}.fits"\n',
        "type.toml": 'dataset = "data"\noutput = "o"\n[optimizer]\nepochs = "3"\n',
    }.items():
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("command", MISTAKES)
def test_mistake_is_exit_code_2_and_one_line(
    command: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    assert cli.main(shlex.split(command)) == 2
    shown = capsys.readouterr()
    assert shown.err.replace(str(place), "ROOT") == f"gampen-ray: error: {MISTAKES[command]}\n"
    assert shown.out == ""
    assert sorted(place.rglob("*")) == before


def test_the_table_has_many_mistakes_of_all_verbs() -> None:
    assert len(MISTAKES) >= 60
    verbs = {word for command in MISTAKES for word in command.split()[:1]}
    assert verbs >= cli.load_verbs().keys()
