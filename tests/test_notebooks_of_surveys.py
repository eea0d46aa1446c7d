"""The notebooks that take longest run, beside the others."""

from pathlib import Path

import pytest

from tests.notebooks import NOTEBOOKS, check


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS[-2:], ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(path, tmp_path, monkeypatch)
