"""A short run of what `python -m tests.fuzz.fits_files` does at length."""

import json
import subprocess
import sys

import pytest

from tests.fuzz.fits_files import files, mutated


@pytest.mark.parametrize("options", [[], ["--streams"]])
def test_mutated_files_give_an_image_or_a_reason(options: list[str]) -> None:
    # In a process of its own: the memory is the largest of all that a process has ever waited for.
    command = [sys.executable, "-m", "tests.fuzz.fits_files", "--count", "150", "--seed", "20", *options]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0 < result["images"] < 150
    assert result["peak_memory_of_reader_gb"] < 1.7


def test_a_mutation_is_reproduced_by_its_seed_and_number() -> None:
    assert mutated(files(), 1, 5) == mutated(files(), 1, 5) != mutated(files(), 1, 6)
