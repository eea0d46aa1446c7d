"""A part of what `python -m tests.fuzz.hostile_fits` reads."""

import json
import subprocess
import sys

from tests.fuzz.hostile_fits import QUICK, kinds


def test_hostile_files_give_an_image_or_a_reason() -> None:
    assert len(kinds()) >= 134
    # In a process of its own: the memory is the largest of all that a process has ever waited for.
    command = [sys.executable, "-m", "tests.fuzz.hostile_fits", "--quick"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < result["images"] < result["kinds"] == len(QUICK)
    assert result["ended"] == {}
    assert result["no_line"] == []
    assert result["peak_memory_of_reader_gb"] < 1.5
