import itertools

import pytest
import torch
from torch import nn

from gampen_ray.config import BackboneConfig, NetworkConfig, SpatialTransformerConfig, gampen_vgg16
from gampen_ray.errors import UserError
from gampen_ray.model.backbones import backbone
from gampen_ray.model.network import Network

PLAN = (4, 4, "M", 8, 8, "M")


def dropped_before(placement: str, plan: tuple = PLAN) -> list[str]:
    config = BackboneConfig(plan=plan, classifier=(5, 5), pool_size=2, dropout_rate=0.1, dropout_placement=placement)
    layers = [layer for layer in backbone(config, 1, 16, 3) if isinstance(layer, nn.Conv2d | nn.Linear | nn.Dropout)]
    numbers = {id(x): f"{type(x).__name__}{i}" for i, x in enumerate(y for y in layers if not isinstance(y, nn.Dropout))}
    return [numbers[id(b)] for a, b in itertools.pairwise(layers) if isinstance(a, nn.Dropout)]


def test_dropout_before_every_convolution_but_the_first() -> None:
    assert dropped_before("every_conv") == ["Conv2d1", "Conv2d2", "Conv2d3", "Linear5", "Linear6"]


def test_dropout_in_the_last_block_alone() -> None:
    assert dropped_before("last_block") == ["Conv2d2", "Conv2d3", "Linear5", "Linear6"]
    assert dropped_before("last_block", (*PLAN, 8)) == ["Conv2d4", "Linear6", "Linear7"]


def test_dropout_in_the_classifier_alone() -> None:
    assert dropped_before("classifier") == ["Linear5", "Linear6"]


def test_vgg16_with_a_scale_transformer_has_the_published_number_of_parameters() -> None:
    # GaMPEN at 96 pixels, three channels, nine outputs: 135.6 million parameters (size of the public HSC models)
    network = Network(gampen_vgg16(), channels=3, size=96, num_targets=3)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(135.6e6, rel=1e-3)
    assert sum(isinstance(layer, nn.Dropout) for layer in network.modules()) == 14


@pytest.mark.parametrize("family", ["scale", "affine", "none"])
@pytest.mark.parametrize("placement", ["every_conv", "last_block", "classifier"])
def test_prefix_and_tail_make_the_network(family: str, placement: str) -> None:
    config = NetworkConfig(
        spatial_transformer=SpatialTransformerConfig(family=family, convolutions=((4, 5),)),
        backbone=BackboneConfig(plan=PLAN, classifier=(5,), pool_size=2, dropout_rate=0.1, dropout_placement=placement),
    )
    network = Network(config, channels=2, size=20, num_targets=3).eval()
    x = torch.randn(3, 2, 20, 20)
    activations, theta = network.prefix(x)
    assert theta.shape == (3, 2, 3)
    assert isinstance(network.tail[0], nn.Dropout)
    assert not any(isinstance(layer, nn.Dropout) for layer in network.stem)
    torch.testing.assert_close(network.tail(activations), network(x))
    assert network(x).shape == (3, 9)


def test_compact_network_is_small() -> None:
    network = Network(NetworkConfig(), channels=1, size=64, num_targets=3)
    assert sum(p.numel() for p in network.parameters()) < 1e6


def test_plan_that_pools_the_image_away_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.backbone\.plan: .* pools the image away"):
        backbone(BackboneConfig(plan=(4, "M", "M", "M"), stem_stride=1), 1, 4, 3)


def test_plan_without_convolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.backbone\.plan: .* has no convolution"):
        backbone(BackboneConfig(plan=("M",)), 1, 4, 3)
