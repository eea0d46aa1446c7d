import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.inference.flags import Flag
from gampen_ray.inference.predictor import Predictor
from tests.networks import SIZE, bundle, galaxies


def test_batches_are_sized_to_the_device_and_change_no_result() -> None:
    images = galaxies(50)["image"]
    automatic = Predictor(bundle(), num_passes=3, seed=0)
    assert 50 < automatic.batch_size <= 4096
    small = Predictor(bundle(), num_passes=3, seed=0, batch_size=7)
    np.testing.assert_allclose(small(images).mixture.mean(), automatic(images).mixture.mean(), rtol=1e-4)
    np.testing.assert_allclose(small(images).crop_scale_N, automatic(images).crop_scale_N, rtol=1e-5)


@pytest.mark.parametrize("size", [SIZE - 4, SIZE, SIZE + 4])
def test_a_cutout_smaller_than_the_input_is_flagged(size: int) -> None:
    image_NCHW = np.ones((2, 1, size, size), np.float32)
    flags_N = Predictor(bundle(), num_passes=1, seed=0)(image_NCHW).flags_N
    assert (flags_N & Flag.INPUT_PADDED != 0).tolist() == [size < SIZE] * 2


@pytest.mark.parametrize(("scale", "coarse"), [(None, False), (0.2, False), (0.1, False), (0.25, False), (0.4, True)])
def test_a_cutout_of_coarse_pixels_is_flagged(scale: float | None, coarse: bool) -> None:
    model = bundle()
    model = dataclasses.replace(model, images=dataclasses.replace(model.images, pixel_scale_arcsec=0.2))
    predict = Predictor(model, num_passes=1, seed=0, pixel_scale_arcsec=scale)
    assert (predict(galaxies(1)["image"]).flags_N & Flag.COARSE_PIXELS != 0).tolist() == [coarse]


class MemoryFor(nn.Module):
    """A layer that runs out of memory above a number of images, as a device does."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.count:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} images")
        return x


@pytest.mark.parametrize("place", ["stem", "tail"])
def test_out_of_memory_halves_the_batch_and_goes_on(place: str, caplog: pytest.LogCaptureFixture) -> None:
    model, images = bundle(), galaxies(50)["image"]
    expected = Predictor(model, num_passes=3, seed=0)(images)
    setattr(model.network, place, nn.Sequential(*getattr(model.network, place), MemoryFor(9)))
    predict = Predictor(model, num_passes=3, seed=0, batch_size=40)
    got = predict(images)
    assert predict.batch_size == 5
    assert [record.getMessage() for record in caplog.records] == [
        f"the device is out of memory: batches of {count} galaxies from here on" for count in (20, 10, 5)
    ]
    np.testing.assert_allclose(got.mixture.mean(), expected.mixture.mean(), rtol=1e-4)


def test_a_device_without_memory_for_one_image_is_an_error() -> None:
    model = bundle()
    model.network.stem.append(MemoryFor(0))
    with pytest.raises(torch.OutOfMemoryError):
        Predictor(model, num_passes=1, seed=0, batch_size=4)(galaxies(4)["image"])


@pytest.mark.gpu
def test_a_gpu_gives_the_catalogue_of_the_cpu_to_bfloat16_accuracy() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images = galaxies(200)["image"]
    on_cpu, on_gpu = (Predictor(bundle(), num_passes=8, seed=0, device=device)(images).mixture for device in ("cpu", "cuda"))
    assert (np.abs(on_gpu.standardised_mean() - on_cpu.standardised_mean()) < 0.05 * on_cpu.standardised_std()).all()
