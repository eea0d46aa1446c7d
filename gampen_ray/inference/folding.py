"""A network rewritten for inference: the same function up to rounding, with fewer multiplications and passes over memory.

Shape legend: N galaxies, C channels, H x W pixels.
"""

import copy
import itertools

import torch
from torch import nn

from gampen_ray.model.backbones import scale_input, without_batch_norm
from gampen_ray.model.network import Network


def folded(network: Network, *, repeated_band: bool = False) -> Network:
    """Return a copy of a network in evaluation mode that computes the same at lower cost.

    Batch normalisation is folded into the preceding convolution (group normalisation, which depends on the image, stays);
    dropout's factor 1 / (1 - p) into the following layer, so that a mask only zeroes activations; and if all input channels
    are copies of one band, the first kernels are summed over the channels.

    Parameters
    ----------
    network
        Trained network.
    repeated_band
        Whether all input channels hold the same band; the copy then takes one channel, N x 1 x H x W.

    Returns
    -------
    Network
        Dropout layers in its `tail` mark the places of masks, which must zero activations without scaling them. Dropout layers
        of rate 0 are removed.
    """
    result = copy.deepcopy(network).eval()
    with torch.no_grad():
        result.stem = nn.Sequential(*without_batch_norm(result.stem))
        tail = [layer for layer in without_batch_norm(result.tail) if getattr(layer, "p", 1) > 0]
        for layer, behind in itertools.pairwise(tail):
            if isinstance(layer, nn.Dropout):
                scale_input(behind, 1 / (1 - layer.p))
        result.tail = nn.Sequential(*tail)
        if repeated_band:
            firsts = [result.stem[0]] if result.transformer is None else [result.stem[0], result.transformer.localisation[0]]
            for first in firsts:
                assert isinstance(first, nn.Conv2d)
                first.weight.data = first.weight.sum(dim=1, keepdim=True)
                first.in_channels = 1
    return result
