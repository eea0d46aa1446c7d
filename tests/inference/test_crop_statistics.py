import dataclasses

import numpy as np
import pytest
import torch

from gampen_ray.inference.crop_statistics import CropMonitor, CropSample, CropStatistics
from gampen_ray.model.network import Network
from tests.networks import NETWORK, SIZE, galaxies


def network(scale: str = "exponential") -> Network:
    transformer = dataclasses.replace(NETWORK.spatial_transformer, scale=scale)
    torch.manual_seed(0)
    made = Network(dataclasses.replace(NETWORK, spatial_transformer=transformer), channels=1, size=SIZE, num_targets=2)
    for parameter in made.transformer.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made.eval()


@torch.inference_mode()
def watched(made: Network, batches: int = 4) -> CropSample:
    images = torch.asinh(torch.from_numpy(galaxies(80)["image"]))
    with CropMonitor(made) as monitor:
        for part in images.tensor_split(batches):
            made(part)
    made(images)
    return monitor.sample


def test_quantiles_and_correlation() -> None:
    scale = np.linspace(0.2, 0.8, 101)
    crop = CropStatistics.of(scale, radius_N=np.exp(scale), log_radius_N=np.log(scale) - 1)
    assert (crop.scale_p05, crop.scale_p50, crop.scale_p95) == pytest.approx((0.23, 0.5, 0.77))
    assert (crop.rank_correlation, crop.from_radius, crop.at_bound) == pytest.approx((1.0, 0.0, 2 / 101))
    assert CropStatistics.of(np.full(5, 0.7), radius_N=np.arange(5.0)).rank_correlation is None


def test_monitor_sees_all_galaxies_whatever_the_batches_and_ends_with_its_context() -> None:
    sample, whole = watched(network()), watched(network(), batches=1)
    assert len(sample.scale_N) == 80
    np.testing.assert_allclose(sample.scale_N, whole.scale_N, rtol=1e-5)
    crop = sample.statistics()
    assert crop.dead_fraction == 0
    assert crop.scale_p95 > crop.scale_p05
    halves = [CropSample(sample.scale_N[rows], None, sample.low_U, sample.high_U) for rows in (slice(40), slice(40, 80))]
    assert CropSample.joined(halves).statistics() == crop


@pytest.mark.parametrize(("units", "share"), [(8, 1.0), (3, 3 / 8)])
def test_dead_units_are_counted(units: int, share: float) -> None:
    made = network("linear")
    first, second = made.transformer.parameters_head[0], made.transformer.parameters_head[2]
    first.bias.data[:units] = -1e6
    first.bias.data[units:] = 1e3
    second.weight.data[:] = 0.0
    crop = watched(made).statistics()
    assert crop.dead_fraction == pytest.approx(share)
    assert crop.scale_p95 == crop.scale_p05
