"""A network rewritten for inference: the same function up to rounding, with fewer multiplications and passes over memory.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import copy
import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gampen_ray.model.backbones import ResidualBlock
from gampen_ray.model.network import Network


def folded(network: Network, *, repeated_band: bool = False) -> Network:
    """Return a copy of a network in evaluation mode that computes the same with less.

    Batch normalisation is folded into the convolution in front of it (group normalisation, which depends on the image, stays);
    dropout's factor 1 / (1 - p) into the layer behind it, so that a mask only has to zero activations; and where all input
    channels are copies of one band, the first kernels are summed over the channels.

    Parameters
    ----------
    network
        Trained network.
    repeated_band
        Whether all input channels hold the same band; the copy then takes one channel, N x 1 x H x W.

    Returns
    -------
    Network
        Its `tail` holds a dropout layer where a mask belongs; these must zero activations without scaling them. Dropout layers
        of rate 0 are left out.
    """
    result = copy.deepcopy(network).eval()
    with torch.no_grad():
        result.stem = nn.Sequential(*_without_batch_norm(list(result.stem)))
        tail = [layer for layer in _without_batch_norm(list(result.tail)) if getattr(layer, "p", 1) > 0]
        for layer, behind in itertools.pairwise(tail):
            if isinstance(layer, nn.Dropout):
                _scale_input(behind, 1 / (1 - layer.p))
        result.tail = nn.Sequential(*tail)
        if repeated_band:
            firsts = [result.stem[0]] if result.transformer is None else [result.stem[0], result.transformer.localisation[0]]
            for first in firsts:
                assert isinstance(first, nn.Conv2d)
                first.weight.data = first.weight.sum(dim=1, keepdim=True)
                first.in_channels = 1
    return result


def _without_batch_norm(layers: list[nn.Module]) -> list[nn.Module]:
    kept: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = kept[-1]
            assert isinstance(convolution, nn.Conv2d)
            kept[-1] = fuse_conv_bn_eval(convolution, layer)
        else:
            if isinstance(layer, ResidualBlock):
                layer.branch = nn.Sequential(*_without_batch_norm(list(layer.branch)))
                layer.skip = nn.Sequential(*_without_batch_norm(list(layer.skip)))
            kept.append(layer)
    return kept


def _scale_input(layer: nn.Module, factor: float) -> None:
    """Make a layer compute what it would of ``factor`` times its input."""
    if isinstance(layer, ResidualBlock):
        _scale_input(layer.branch[0], factor)
        if len(layer.skip):
            _scale_input(layer.skip[0], factor)
        else:
            layer.skip_factor = factor
    else:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        layer.weight.data *= factor
