"""Monte Carlo dropout (Gal & Ghahramani 2016) as K fixed thinned networks.

The masks are drawn once from (seed, pass, layer) and shared by every galaxy, so a galaxy's posterior does not depend on batch
size, order, number of workers or restarts. What precedes the first dropout is computed once per image.
Shape legend: N galaxies, K passes, C channels, H x W pixels, P outputs.
"""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from gampen_ray.errors import UserError
from gampen_ray.model.network import Network


class ThinnedNetworks:
    """K thinned copies of a network, held as the coordinates of the dropped activations.

    Parameters
    ----------
    network
        Trained network; it is put into evaluation mode for the time of a call.
    num_passes
        Number K of thinned networks.
    seed
        Seed of the masks.

    Raises
    ------
    UserError
        If more than one pass is asked of a network without dropout.
    """

    def __init__(self, network: Network, num_passes: int, seed: int) -> None:
        self._network, self._num_passes, self._seed = network, num_passes, seed
        self._layers = [layer for layer in network.tail.modules() if isinstance(layer, nn.Dropout) and layer.p > 0]
        if not self._layers and num_passes > 1:
            raise UserError(
                f"num_passes: {num_passes}, but the network has no dropout: give 1, or train with dropout_rate above 0"
            )
        self._dropped: dict[tuple[int, int], tuple[torch.Tensor, ...]] = {}

    @torch.inference_mode()
    def __call__(self, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return raw outputs of every pass (N x K x P) and the affine maps of the crops (N x 2 x 3)."""
        with _evaluating(self._network):
            activations, theta_N23 = self._network.prefix(x_NCHW)
            outputs = []
            for k in range(self._num_passes):
                with self._thinned(k):
                    outputs.append(self._network.tail(activations))
        return torch.stack(outputs, dim=1), theta_N23

    @contextlib.contextmanager
    def _thinned(self, k: int) -> Iterator[None]:
        """Make every dropout layer drop the k-th mask's activations; the layers are as before afterwards."""

        def drop(index: int, layer: nn.Dropout):
            def hook(_module: nn.Module, _inputs: object, x: torch.Tensor) -> torch.Tensor:
                kept = x / (1 - layer.p)
                # By coordinates, as a flattened view exists in one memory layout only.
                kept[(slice(None), *self._coordinates(k, index, layer.p, x))] = 0.0
                return kept

            return layer.register_forward_hook(hook)

        handles = [drop(index, layer) for index, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _coordinates(self, k: int, layer: int, rate: float, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the coordinates (channel, row and column, or unit) of the activations that pass ``k`` drops in a layer."""
        if (k, layer) not in self._dropped:
            shape = tuple(x.shape[1:])
            dropped = np.nonzero(np.random.default_rng([self._seed, k, layer]).random(shape) < rate)
            self._dropped[k, layer] = tuple(torch.from_numpy(axis).to(x.device) for axis in dropped)
        return self._dropped[k, layer]


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
