"""The notebooks run; the last two in a file of their own, beside the others."""

from pathlib import Path

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, check, execute


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS[:-2], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(path, tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore")
def test_ray_does_not_ask_for_widgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    cell = nbformat.v4.new_code_cell("import gampen_ray.engine.search, gampen_ray.engine.train_workers")
    execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert cell.outputs == []
