import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gampen_ray.config import BackboneConfig, NetworkConfig, SpatialTransformerConfig, gampen_vgg16
from gampen_ray.errors import UserError
from gampen_ray.model.backbones import ResidualBlock
from gampen_ray.model.backbones import backbone as parts
from gampen_ray.model.network import Network

PLAN = (4, 4, "M", 8, 8, "M")


def backbone(config: BackboneConfig, channels: int, side: int, outputs: int) -> list[nn.Module]:
    return list(itertools.chain(*parts(config, channels, side, outputs).values()))


def dropped_before(placement: str, plan: tuple = PLAN, block: str = "plain") -> list[str]:
    config = BackboneConfig(
        plan=plan, classifier=(5, 5), pool_size=2, dropout_rate=0.1, dropout_placement=placement, block=block
    )
    kinds = nn.Conv2d | nn.Linear | nn.Dropout | ResidualBlock
    layers = [layer for layer in backbone(config, 1, 16, 3) if isinstance(layer, kinds)]
    numbers = {id(x): f"{type(x).__name__}{i}" for i, x in enumerate(y for y in layers if not isinstance(y, nn.Dropout))}
    return [numbers[id(b)] for a, b in itertools.pairwise(layers) if isinstance(a, nn.Dropout)]


def test_dropout_before_every_convolution_but_the_first() -> None:
    assert dropped_before("every_conv") == ["Conv2d1", "Conv2d2", "Conv2d3", "Linear5", "Linear6"]


def test_dropout_in_the_last_block_alone() -> None:
    assert dropped_before("last_block") == ["Conv2d2", "Conv2d3", "Linear5", "Linear6"]
    assert dropped_before("last_block", (*PLAN, 8)) == ["Conv2d4", "Linear6", "Linear7"]


def test_dropout_in_the_classifier_alone() -> None:
    assert dropped_before("classifier") == ["Linear5", "Linear6"]


def test_dropout_before_residual_blocks() -> None:
    every = ["ResidualBlock1", "ResidualBlock2", "ResidualBlock3", "Linear5", "Linear6"]
    assert dropped_before("every_conv", block="residual") == every
    assert dropped_before("last_block", block="residual") == every[1:]
    assert dropped_before("classifier", block="residual") == every[3:]


@pytest.mark.parametrize("width", [5, 8])
def test_residual_block_is_two_convolutions_and_a_skip(width: int) -> None:
    block = ResidualBlock(8, width, "none")
    x = torch.randn(2, 8, 6, 6)
    kept = x.clone()
    first, second = block.branch[0], block.branch[2]
    branch = F.conv2d(F.conv2d(x, first.weight, first.bias, padding=1).relu(), second.weight, second.bias, padding=1)
    skip = x if width == 8 else F.conv2d(x, block.skip[0].weight, block.skip[0].bias)
    torch.testing.assert_close(block(x), (branch + skip).relu())
    assert torch.equal(x, kept)


def test_stem_of_a_residual_network_is_a_convolution_and_each_further_number_a_block() -> None:
    config = BackboneConfig(
        plan=(4, 4, "M", 8),
        stem_kernel=7,
        block="residual",
        classifier=(5,),
        normalisation="batch",
        dropout_placement="last_block",
    )
    layers = backbone(config, 3, 32, 2)
    kinds = "Conv2d BatchNorm2d ReLU ResidualBlock MaxPool2d Dropout ResidualBlock AdaptiveAvgPool2d Flatten Linear ReLU"
    assert [type(layer).__name__ for layer in layers] == [*kinds.split(), "Dropout", "Linear"]
    assert layers[0].weight.shape == (4, 3, 7, 7)
    same, wider = (layer for layer in layers if isinstance(layer, ResidualBlock))
    assert (len(same.skip), [layer.kernel_size for layer in wider.skip if isinstance(layer, nn.Conv2d)]) == (0, [(1, 1)])


@pytest.mark.parametrize(("factor", "widths"), [(1.0, (4, 20, 5)), (0.5, (8, 8, 8)), (2.0, (8, 40, 8)), (1.3, (8, 24, 8))])
def test_one_factor_scales_all_widths(factor: float, widths: tuple[int, ...]) -> None:
    layers = backbone(BackboneConfig(plan=(4, "M", 20), classifier=(5,), width=factor), 1, 16, 3)
    outputs = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    assert (*outputs, *(layer.out_features for layer in layers if isinstance(layer, nn.Linear))) == (*widths, 3)


@pytest.mark.parametrize(("width", "groups"), [(8, 1), (24, 3), (64, 8), (20, 1), (1, 1)])
def test_groups_of_group_normalisation(width: int, groups: int) -> None:
    layers = backbone(BackboneConfig(plan=(width,), normalisation="group"), 1, 16, 3)
    assert [layer.num_groups for layer in layers if isinstance(layer, nn.GroupNorm)] == [groups]


@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
@pytest.mark.parametrize("block", ["plain", "residual"])
def test_training_starts_from_the_prior_and_from_zero_residual_branches(normalisation: str, block: str) -> None:
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(backbone=BackboneConfig(normalisation=normalisation, block=block)), channels=1, size=48, num_targets=3
    )
    assert network(torch.randn(8, 1, 48, 48)).abs().mean() < 0.2
    activations = torch.rand(2, 64, 5, 5)
    for layer in network.modules():
        # x >= 0, as behind a ReLU.
        if isinstance(layer, ResidualBlock) and not layer.skip:
            assert torch.equal(layer(activations), activations)


@pytest.mark.parametrize("likelihood", ["unit_variance", "diagonal", "full"])
@pytest.mark.parametrize("family", ["scale", "scale_shift", "affine", "none"])
@pytest.mark.parametrize("placement", ["every_conv", "last_block", "classifier"])
@pytest.mark.parametrize("block", ["plain", "residual"])
@pytest.mark.parametrize("normalisation", ["batch", "group", "none"])
def test_every_variant_trains(normalisation: str, block: str, placement: str, family: str, likelihood: str) -> None:
    config = NetworkConfig(
        likelihood=likelihood,
        spatial_transformer=SpatialTransformerConfig(family=family, output_size=16, convolutions=((4, 3),), hidden=4),
        backbone=BackboneConfig(
            plan=(8, "M", 8, 16),
            classifier=(8,),
            pool_size=2,
            dropout_rate=0.1,
            normalisation=normalisation,
            block=block,
            dropout_placement=placement,
        ),
    )
    network = Network(config, channels=1, size=24, num_targets=2)
    outputs = network(torch.randn(2, 1, 24, 24))
    network.likelihood.loss(outputs, torch.zeros(2, 2), beta=0.5).mean().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


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
    assert network(x).shape == (3, 10)


def test_compact_network_is_small() -> None:
    network = Network(NetworkConfig(), channels=1, size=64, num_targets=3)
    assert sum(p.numel() for p in network.parameters()) < 1e6


def test_plan_that_pools_the_image_away_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.backbone\.plan: .* pools the image away"):
        backbone(BackboneConfig(plan=(4, "M", "M", "M"), stem_stride=1), 1, 4, 3)


def test_plan_without_convolution_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.backbone\.plan: .* has no convolution"):
        backbone(BackboneConfig(plan=("M",)), 1, 4, 3)
