"""The network: spatial transformer and backbone, cut into a deterministic prefix and a tail with dropout.

Shape legend: N galaxies, C channels, H x W pixels, P outputs.
"""

import itertools

import torch
from torch import nn

from gampen_ray.config import NetworkConfig
from gampen_ray.model.backbones import backbone
from gampen_ray.model.likelihoods import LIKELIHOODS
from gampen_ray.model.spatial_transformer import SpatialTransformer, identity_map


class Network(nn.Module):
    """Map preprocessed images (N x C x H x W) to raw likelihood outputs (N x P).

    All layers from the first dropout on form the `tail`, and the output layer in any case; what precedes them is deterministic
    and computed once for all Monte Carlo passes.

    Parameters
    ----------
    config
        Architecture.
    channels, size
        Channels and side (pixels) of the preprocessed images.
    num_targets
        Number of targets D.
    """

    def __init__(self, config: NetworkConfig, *, channels: int, size: int, num_targets: int) -> None:
        super().__init__()
        transformer = config.spatial_transformer
        self.transformer = None if transformer.family == "none" else SpatialTransformer(transformer, channels, size)
        side = size if self.transformer is None else self.transformer.output_size
        self.likelihood = LIKELIHOODS[config.likelihood](num_targets)
        parts = backbone(config.backbone, channels, side, self.likelihood.num_outputs)
        self._part_sizes = {name: len(part) for name, part in parts.items()}
        layers = [layer for part in parts.values() for layer in part]
        first = next((i for i, layer in enumerate(layers) if isinstance(layer, nn.Dropout)), len(layers) - 1)
        self.stem = nn.Sequential(*layers[:first])
        self.tail = nn.Sequential(*layers[first:])

    def blocks(self) -> dict[str, list[nn.Module]]:
        """Return the layers by block, from the input to the output; a block without weights is left out.

        The blocks are ``spatial_transformer`` and the parts of `gampen_ray.model.backbones.backbone`.
        """
        found: dict[str, list[nn.Module]] = {"spatial_transformer": [self.transformer] if self.transformer else []}
        layers = iter([*self.stem, *self.tail])
        found |= {name: list(itertools.islice(layers, size)) for name, size in self._part_sizes.items()}
        return {name: block for name, block in found.items() if any(list(layer.parameters()) for layer in block)}

    def crop(self, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the spatial transformer's crops and their affine maps (N x 2 x 3)."""
        if self.transformer is None:
            return x_NCHW, identity_map(len(x_NCHW), x_NCHW.device)
        with torch.autocast(x_NCHW.device.type, enabled=False):
            return self.transformer(x_NCHW)

    def prefix(self, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the activations before the first dropout and the affine maps of the crops (N x 2 x 3)."""
        crops_NCHW, theta_N23 = self.crop(x_NCHW)
        return self.stem(crops_NCHW), theta_N23

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        """Return raw outputs, N x P; under autocast, transformer and output layer keep the precision of their weights."""
        x, _ = self.prefix(x_NCHW)
        *hidden, output = self.tail
        for layer in hidden:
            x = layer(x)
        assert isinstance(output, nn.Linear)
        with torch.autocast(x.device.type, enabled=False):
            return output(x.to(output.weight.dtype))
