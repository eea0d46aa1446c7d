"""Convolutional networks of any depth and width, plain or residual: one builder for every variant.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import math

import torch
from torch import nn

from gampen_ray.config import BackboneConfig
from gampen_ray.errors import UserError

_GROUP = 8


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection: relu(branch(x) + skip_factor * skip(x)) (He et al. 2016, fig. 2).

    Parameters
    ----------
    channels, width
        Channels of input and output; where they differ, the skip is a 1x1 convolution, else the identity.
    normalisation
        Behind every convolution, as `gampen_ray.config.BackboneConfig` has it.
    """

    def __init__(self, channels: int, width: int, normalisation: str) -> None:
        super().__init__()
        first, second = _convolution(channels, width, 3, normalisation), _convolution(width, width, 3, normalisation)
        self.branch = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.skip = nn.Sequential(*(_convolution(channels, width, 1, normalisation) if channels != width else []))
        self.skip_factor = 1.0

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return N x width x H x W, leaving the input as it is."""
        return self.branch(x_NCHW).add_(self.skip(x_NCHW), alpha=self.skip_factor).relu_()


def backbone(config: BackboneConfig, channels: int, side: int, outputs: int) -> list[nn.Module]:
    """Return the layers of a network in order, dropout layers included; a residual block is one layer.

    Parameters
    ----------
    config
        Depth plan, widths, blocks, normalisation and dropout.
    channels, side
        Channels and side (pixels) of the input.
    outputs
        Width of the output layer.

    Raises
    ------
    UserError
        If the plan has no convolution, or pools the image away.
    """
    if not any(item != "M" for item in config.plan):
        raise UserError(f"network.backbone.plan: {config.plan} has no convolution; give at least one width")
    dropped = _convolutions_with_dropout(config)
    layers: list[nn.Module] = []
    number = 0
    for item in config.plan:
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            side //= 2
        else:
            width = _scaled(item, config.width)
            if number in dropped:
                layers.append(nn.Dropout(config.dropout_rate))
            if number == 0:
                kernel, stride = config.stem_kernel, config.stem_stride
                layers += [*_convolution(channels, width, kernel, config.normalisation, stride), nn.ReLU(inplace=True)]
                side = (side + 2 * (kernel // 2) - kernel) // stride + 1
            elif config.block == "residual":
                layers.append(ResidualBlock(channels, width, config.normalisation))
            else:
                layers += [*_convolution(channels, width, 3, config.normalisation), nn.ReLU(inplace=True)]
            channels, number = width, number + 1
        if side < 1:
            raise UserError(f"network.backbone.plan: {config.plan} pools the image away; remove an 'M' or use larger images")
    layers += [nn.AdaptiveAvgPool2d(config.pool_size), nn.Flatten()]
    width = channels * config.pool_size**2
    for item in config.classifier:
        hidden = _scaled(item, config.width)
        layers += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(config.dropout_rate)]
        width = hidden
    layers.append(nn.Linear(width, outputs))
    _initialise(layers)
    return layers


def _scaled(width: int, factor: float) -> int:
    return width if factor == 1 else max(8, 8 * math.floor(width * factor / 8 + 0.5))


def _convolution(channels: int, width: int, kernel: int, normalisation: str, stride: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the side at stride 1, and its normalisation."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=normalisation == "none")
    ]
    if normalisation == "batch":
        layers.append(nn.BatchNorm2d(width))
    if normalisation == "group":
        layers.append(nn.GroupNorm(1 if width % _GROUP else width // _GROUP, width))
    return layers


def _convolutions_with_dropout(config: BackboneConfig) -> range:
    """Return the indices of the plan's convolutions (or residual blocks) that a dropout layer precedes."""
    count = sum(item != "M" for item in config.plan)
    if config.dropout_placement == "every_conv":
        return range(1, count)
    if config.dropout_placement == "classifier":
        return range(0)
    blocks = " ".join("M" if item == "M" else "c" for item in config.plan).strip("M ").split("M")
    return range(max(1, count - blocks[-1].count("c")), count)


def _initialise(layers: list[nn.Module]) -> None:
    """He initialisation (He et al. 2015), such that training starts from the prior N(0, 1) and from shallow networks.

    The output layer is small, and residual branches are zero (Goyal et al. 2017, sec. 5.1; Zhang et al. 2019, sec. 3).
    """
    for layer in nn.Sequential(*layers).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            last = layer.branch[-1]
            assert isinstance(last, nn.BatchNorm2d | nn.GroupNorm | nn.Conv2d)
            nn.init.zeros_(last.weight)
    output = layers[-1]
    assert isinstance(output, nn.Linear)
    nn.init.normal_(output.weight, std=0.01)
