"""The notebooks run from beginning to end and keep their outputs, with no path of a machine."""

import itertools
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In seconds; not as in this test's process, which may have a Ray.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.chdir(tmp_path)
    book = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert any(stored)
    assert "/home/" not in path.read_text()
    assert "/tmp/" not in path.read_text()
    execute(book, tmp_path)
    now = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert [_kinds(outputs) for outputs in now] == [_kinds(outputs) for outputs in stored]


@pytest.mark.filterwarnings("ignore")
def test_ray_does_not_ask_for_widgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    cell = nbformat.v4.new_code_cell("import gampen_ray.engine.search, gampen_ray.engine.train_workers")
    execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert cell.outputs == []


def execute(book: nbformat.NotebookNode, folder: Path) -> None:
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


def _kinds(outputs: list[nbformat.NotebookNode]) -> list[str]:
    """Return the kinds of a cell's outputs; lines that are written one after another may come together or apart."""
    return [kind for kind, _ in itertools.groupby(output.output_type for output in outputs)]
