"""Which galaxies of the validation split calibration looks at."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from gampen_ray.training.local import LocalWorker
from gampen_ray.training.run import build_network, prepare
from gampen_ray.training.validation import validate
from gampen_ray.training.worker import one_sweep
from tests.networks import dataset, train_config


@pytest.mark.parametrize(("most", "stride"), [(61, 1), (60, 2), (9, 7), (1, 61)])
def test_calibration_looks_at_evenly_spaced_galaxies(most: int, stride: int, tmp_path: Path) -> None:
    made = train_config(dataset(str(tmp_path / "data"), {"train": 64, "val": 61}), str(tmp_path / "run"), batch_size=16)
    run = prepare(dataclasses.replace(made, calibration=dataclasses.replace(made.calibration, num_galaxies=most)))
    worker = LocalWorker.read(run)
    found = validate(worker, run, build_network(run))
    every = np.concatenate([batch.target_ND.numpy() for batch in one_sweep(worker, "val")])
    np.testing.assert_allclose(found.mixture.targets.standardise(found.truths_ND), every[::stride], rtol=1e-4, atol=1e-4)
    assert len(found.mixture) == len(every[::stride]) <= most
