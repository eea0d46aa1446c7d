"""Arithmetic of a prediction, counted without doing it."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from gampen_ray.config import NetworkConfig
from gampen_ray.model.meta import without_weights
from gampen_ray.model.network import Network

__all__ = ["inference_flops"]


def inference_flops(
    config: NetworkConfig, *, channels: int, size: int, num_targets: int, num_passes: int, numbers: int = 0
) -> int:
    """Return the floating-point operations of a galaxy's posterior: all before the first dropout once, the rest every pass.

    A multiplication and an addition are two operations. Convolutions and fully connected layers are counted; resampling of the
    crop, normalisation, pooling and activations, a few operations a pixel, are not; nor is the measuring of numbers.

    Parameters
    ----------
    config
        Architecture.
    channels
        Channels of the network's input; 1 where all are copies of one band, as inference sums the kernels over them.
    size
        Side of the network's input, pixels.
    num_targets
        Number of targets.
    num_passes
        Number of Monte Carlo passes.
    numbers
        Count of numbers that the network is given beside the image.

    Raises
    ------
    UserError
        If the architecture does not fit the size.
    """
    # Shapes without memory or arithmetic.
    with without_weights():
        network = Network(config, channels=channels, size=size, num_targets=num_targets, numbers=numbers).eval()
        image_NCHW, number_NM = torch.zeros(1, channels, size, size), torch.zeros(1, numbers)
    with torch.no_grad(), FlopCounterMode(display=False) as prefix:
        activations, _ = network.prefix(image_NCHW, number_NM if numbers else None)
        network.base_terms(activations, number_NM if numbers else None)
    with torch.no_grad(), FlopCounterMode(display=False) as tail:
        network.tail(activations)
    return prefix.get_total_flops() + num_passes * tail.get_total_flops()
