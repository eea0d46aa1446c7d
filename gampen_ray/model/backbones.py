"""Convolutional networks of any depth and width, of blocks of any kind: one builder for every variant.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gampen_ray.config import BackboneConfig
from gampen_ray.errors import UserError
from gampen_ray.model.numbers import Merge, ResidualLayers
from gampen_ray.plugins import Registry

__all__ = ["BLOCKS", "Block", "ResidualBlock", "backbone", "convolution", "register_block", "scale_input", "without_batch_norm"]

_GROUP = 8
BLOCKS: Registry[Callable[[int, int, str], "list[nn.Module] | Block"]] = Registry("network.backbone.block")
"""What makes a block from its channels in and out and its normalisation, by the value of ``network.backbone.block``: a `Block`,
or a list of layers of torch's own."""
register_block = BLOCKS.register
"""Decorator of a class or function: ``@register_block("name")``."""


class Block(nn.Module):
    """A block that is one layer of the network, built from (channels, width, normalisation).

    It maps N x channels x H x W to N x width x H x W and leaves its input as it is. Its convolutions and linear layers start
    with the weights of He et al. (2015). Inference asks for the other methods, whose defaults are right for any block;
    batch normalisation is folded where it lies in an `nn.Sequential` among the block's children.
    """

    def initialise(self) -> None:
        """Change the initial weights."""

    def fold(self) -> None:
        """Fold batch normalisation into the convolutions, in place."""
        for name, child in self.named_children():
            if isinstance(child, nn.Sequential):
                setattr(self, name, nn.Sequential(*without_batch_norm(child)))

    def scale_input(self, factor: float) -> None:
        """Compute from now on what it would of ``factor`` times its input."""
        _multiply_input(self, factor)

    def activation_bytes(self, input_NCHW: torch.Tensor, output_NCHW: torch.Tensor) -> int:
        """Return the memory of its activations at most: the input, which a skip holds, and two on the way to the output."""
        return input_NCHW.nbytes + 2 * output_NCHW.nbytes


@register_block("plain")
def plain_block(channels: int, width: int, normalisation: str) -> list[nn.Module]:
    """Return a 3x3 convolution with its normalisation and ReLU."""
    return [*convolution(channels, width, 3, normalisation), nn.ReLU(inplace=True)]


@register_block("residual")
class ResidualBlock(Block):
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
        first, second = convolution(channels, width, 3, normalisation), convolution(width, width, 3, normalisation)
        self.branch = nn.Sequential(*first, nn.ReLU(inplace=True), *second)
        self.skip = nn.Sequential(*(convolution(channels, width, 1, normalisation) if channels != width else []))
        self.skip_factor = 1.0

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return N x width x H x W."""
        return self.branch(x_NCHW).add_(self.skip(x_NCHW), alpha=self.skip_factor).relu_()

    def initialise(self) -> None:
        """Let the branch be zero (Goyal et al. 2017, sec. 5.1; Zhang et al. 2019, sec. 3)."""
        last = self.branch[-1]
        assert isinstance(last, nn.BatchNorm2d | nn.GroupNorm | nn.Conv2d)
        nn.init.zeros_(last.weight)

    def scale_input(self, factor: float) -> None:
        """Scale the first kernels of the branch, and the skip."""
        scale_input(self.branch[0], factor)
        if len(self.skip):
            scale_input(self.skip[0], factor)
        else:
            self.skip_factor = factor


def scale_input(layer: nn.Module, factor: float) -> None:
    """Make a layer compute what it would of ``factor`` times its input, in place."""
    if isinstance(layer, Block):
        layer.scale_input(factor)
    elif isinstance(layer, nn.Conv2d | nn.Linear):
        layer.weight.data *= factor
    else:
        _multiply_input(layer, factor)


def _multiply_input(layer: nn.Module, factor: float) -> None:
    layer.register_forward_pre_hook(lambda _, inputs: (factor * inputs[0],))


def without_batch_norm(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Return layers in evaluation mode with batch normalisation folded into the convolution in front of it."""
    kept: list[nn.Module] = []
    for layer in layers:
        front = kept[-1] if kept else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(front, nn.Conv2d):
            kept[-1] = fuse_conv_bn_eval(front, layer)
        else:
            if isinstance(layer, Block):
                layer.fold()
            kept.append(layer)
    return kept


def backbone(config: BackboneConfig, channels: int, side: int, outputs: int, numbers: int = 0) -> dict[str, list[nn.Module]]:
    """Return the layers of a network in order, dropout layers included, by named part.

    The parts are ``block1``, ``block2``, ..., each with its max pool at the end; ``classifier``, the average pool and the fully
    connected layers behind them, the first of which is a `Merge` if there are numbers; and ``head``, the output layer.

    Parameters
    ----------
    config
        Depth plan, widths, blocks, normalisation and dropout.
    channels, side
        Channels and side (pixels) of the input.
    outputs
        Width of the output layer.
    numbers
        Count of numbers that the network is given beside the image.

    Raises
    ------
    UserError
        If the plan has no convolution, or pools the image away, or dropout precedes the numbers.
    """
    if numbers and config.dropout_placement != "classifier":
        raise UserError(
            f"network.backbone.dropout_placement: {config.dropout_placement}, but a network that is given numbers has dropout "
            "behind them alone; give classifier, or images.measure false and no conditions"
        )
    if not any(item != "M" for item in config.plan):
        raise UserError(f"network.backbone.plan: {config.plan} has no convolution; give at least one width")
    dropped = _convolutions_with_dropout(config)
    block = BLOCKS[config.block]
    parts: list[list[nn.Module]] = [[]]
    number = 0
    for item in config.plan:
        if item == "M":
            parts[-1].append(nn.MaxPool2d(2))
            parts.append([])
            side //= 2
        else:
            width = _scaled(item, config.width)
            if number in dropped:
                parts[-1].append(nn.Dropout(config.dropout_rate))
            if number == 0:
                kernel, stride = config.stem_kernel, config.stem_stride
                parts[-1] += [*convolution(channels, width, kernel, config.normalisation, stride), nn.ReLU(inplace=True)]
                side = (side + 2 * (kernel // 2) - kernel) // stride + 1
            else:
                made = block(channels, width, config.normalisation)
                parts[-1] += made if isinstance(made, list) else [made]
            channels, number = width, number + 1
        if side < 1:
            raise UserError(f"network.backbone.plan: {config.plan} pools the image away; remove an 'M' or use larger images")
    classifier: list[nn.Module] = [nn.AdaptiveAvgPool2d(config.pool_size), nn.Flatten()]
    width = channels * config.pool_size**2
    if numbers:
        width, features = config.numbers_width, width
        classifier.append(Merge(features, numbers, width))
        classifier += [ResidualLayers(width) for _ in range(config.numbers_blocks)]
    for item in config.classifier:
        hidden = _scaled(item, config.width)
        classifier += [nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Dropout(config.dropout_rate)]
        width = hidden
    head = nn.Linear(width, outputs)
    _initialise([layer for part in (*parts, classifier) for layer in part], head)
    return {f"block{i}": part for i, part in enumerate(parts, start=1)} | {"classifier": classifier, "head": [head]}


def _scaled(width: int, factor: float) -> int:
    return width if factor == 1 else max(8, 8 * math.floor(width * factor / 8 + 0.5))


def convolution(channels: int, width: int, kernel: int, normalisation: str, stride: int = 1) -> list[nn.Module]:
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


def _initialise(layers: list[nn.Module], head: nn.Linear) -> None:
    """He initialisation (He et al. 2015), but small outputs, so that training starts from the prior N(0, 1).

    What lies behind numbers keeps torch's smaller weights: with He's, 24,000 galaxies are overfitted (validation loss of -3.7
    instead of -5.4 after 60 epochs on numbers).
    """
    behind = next((i for i, layer in enumerate(layers) if isinstance(layer, Merge)), len(layers))
    for layer in nn.Sequential(*layers[:behind], head).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in layers:
        if isinstance(layer, Block | Merge):
            layer.initialise()
    nn.init.normal_(head.weight, std=0.01)
