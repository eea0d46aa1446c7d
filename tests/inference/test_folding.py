import dataclasses

import pytest
import torch
from torch import nn

from gampen_ray.config import NetworkConfig, SpatialTransformerConfig
from gampen_ray.inference.folding import folded
from gampen_ray.model.backbones import ResidualBlock
from gampen_ray.model.network import Network
from gampen_ray.model.numbers import with_base
from tests.networks import NETWORK, SIZE


def network(channels: int = 1, *, family: str = "scale", rate: float = 0.3, **fields: str) -> Network:
    """A network with random weights, running statistics and crops; its last convolution does not change the width."""
    torch.manual_seed(0)
    fields = {"normalisation": "none"} | fields
    backbone = dataclasses.replace(NETWORK.backbone, plan=(8, "M", 16, 16, "M"), dropout_rate=rate, **fields)
    transformer = dataclasses.replace(NETWORK.spatial_transformer, family=family)
    config = dataclasses.replace(NETWORK, backbone=backbone, spatial_transformer=transformer)
    result = Network(config, channels=channels, size=SIZE, num_targets=2)
    for name, value in result.state_dict().items():
        # The exponential of the base's scale grows fast.
        spread = 0.001 if "log_scale" in name else 0.1
        value += spread * torch.rand(value.shape) if value.is_floating_point() else 0
    return result.eval()


def images(channels: int = 1) -> torch.Tensor:
    return torch.randn(3, channels, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def unscaled(net: Network, x_NCHW: torch.Tensor) -> torch.Tensor:
    """The outputs where each dropout layer divides by 1 - p and drops nothing."""
    x = net.prefix(x_NCHW)[0]
    terms = net.base_terms(x, None)
    for layer in net.tail:
        x = x / (1 - layer.p) if isinstance(layer, nn.Dropout) else layer(x)
    return with_base(x, terms)


@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize(("placement", "rate"), [("every_conv", 0.3), ("classifier", 0.3), ("every_conv", 0.0)])
def test_the_folded_network_computes_the_same(normalisation: str, block: str, placement: str, rate: float) -> None:
    net = network(normalisation=normalisation, block=block, rate=rate, dropout_placement=placement)
    small = folded(net)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in small.modules())
    assert any(isinstance(layer, nn.Dropout) for layer in small.modules()) == (rate > 0)
    factors = [layer.skip_factor for layer in small.modules() if isinstance(layer, ResidualBlock)]
    behind = 1 / (1 - rate) if placement == "every_conv" else 1.0
    assert factors == ([1.0, behind] if block == "residual" else [])
    assert all(layer.skip_factor == 1 for layer in net.modules() if isinstance(layer, ResidualBlock))
    torch.testing.assert_close(small(images()), unscaled(net, images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["scale", "affine", "none"])
def test_copies_of_one_band_are_folded_into_the_first_kernels(family: str) -> None:
    net = network(3, family=family)
    small = folded(net, repeated_band=True)
    x = images()
    torch.testing.assert_close(small.prefix(x)[1], net.prefix(x.expand(-1, 3, -1, -1))[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(small(x), unscaled(net, x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_layer_is_folded_too() -> None:
    config = NetworkConfig(
        spatial_transformer=SpatialTransformerConfig(family="none"),
        backbone=dataclasses.replace(NETWORK.backbone, plan=(4,), classifier=(), dropout_rate=0.5),
    )
    net = Network(config, channels=2, size=SIZE, num_targets=1).eval()
    torch.testing.assert_close(folded(net)(images(2)), net(images(2)))
