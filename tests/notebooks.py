"""Runs of notebooks, which keep their outputs, with no path of a machine."""

import itertools
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def check(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a notebook from beginning to end, and compare the kinds of its outputs with those that it holds."""
    # In seconds; not as in this test's process, which may have a Ray.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.chdir(folder)
    book = nbformat.read(path, as_version=4)
    stored = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert any(stored)
    assert "/home/" not in path.read_text()
    assert "/tmp/" not in path.read_text()
    execute(book, folder)
    now = [cell.outputs for cell in book.cells if cell.cell_type == "code"]
    assert [_kinds(outputs) for outputs in now] == [_kinds(outputs) for outputs in stored]


def execute(book: nbformat.NotebookNode, folder: Path) -> None:
    NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


def _kinds(outputs: list[nbformat.NotebookNode]) -> list[str]:
    """Return the kinds of a cell's outputs; lines that are written one after another may come together or apart."""
    return [kind for kind, _ in itertools.groupby(output.output_type for output in outputs)]
