"""A short run of what `python -m tests.fuzz.fits_files` does at length."""

import pytest

from tests.fuzz.fits_files import files, mutated, run


@pytest.mark.parametrize("streams", [False, True])
def test_mutated_files_give_an_image_or_a_reason(streams: bool) -> None:
    result = run(150, seed=20, streams=streams)
    images, peak_gb = result["images"], result["peak_memory_of_reader_gb"]
    assert isinstance(images, int)
    assert 0 < images < 150
    assert isinstance(peak_gb, float)
    assert peak_gb < 1.7


def test_a_mutation_is_reproduced_by_its_seed_and_number() -> None:
    assert mutated(files(), 1, 5) == mutated(files(), 1, 5) != mutated(files(), 1, 6)
