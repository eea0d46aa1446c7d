"""The network: spatial transformer and backbone, cut into a deterministic prefix and a tail with dropout.

Shape legend: N galaxies, C channels, H x W pixels, M numbers, P outputs.
"""

import contextlib
import itertools

import torch
from torch import nn

from gampen_ray.config import NetworkConfig
from gampen_ray.model.backbones import backbone
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.likelihoods import LIKELIHOODS
from gampen_ray.model.numbers import Base, Merge, full_precision, with_base
from gampen_ray.model.spatial_transformer import SpatialTransformer, identity_map, without_psf

__all__ = ["Network"]


class Network(nn.Module):
    """Map preprocessed images (N x C x H x W), and numbers (N x M) if it takes any, to raw likelihood outputs (N x P).

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
    numbers
        Count M of the numbers; see `gampen_ray.model.images.ImagePreprocessing.inputs`.
    measured
        Whether the first of them is the logarithm of a measured radius, in sides of the image.
    psf
        Which of them is the PSF's half-light radius, and in how many sides of the image; None: none is.
    """

    def __init__(
        self,
        config: NetworkConfig,
        *,
        channels: int,
        size: int,
        num_targets: int,
        numbers: int = 0,
        measured: bool = False,
        psf: tuple[int, float] | None = None,
    ) -> None:
        super().__init__()
        transformer = config.spatial_transformer
        self.transformer = None if transformer.family == "none" else SpatialTransformer(transformer, channels, size, numbers)
        self.measured, self.psf = measured, psf
        side = size if self.transformer is None else self.transformer.output_size
        self.likelihood = LIKELIHOODS[config.likelihood](num_targets)
        parts = backbone(config.backbone, channels, side, self.likelihood.num_outputs, numbers)
        self._part_sizes = {name: len(part) for name, part in parts.items()}
        layers = [layer for part in parts.values() for layer in part]
        dropout = [i for i, layer in enumerate(layers) if isinstance(layer, nn.Dropout)]
        first = dropout[0] if dropout else len(layers) - 1
        self.stem = nn.Sequential(*layers[:first])
        self.tail = nn.Sequential(*layers[first:])
        # The layer in front of dropout in the classifier has an activation behind it, and is fully connected.
        wide = next((layer.out_features for layer in reversed(layers[:first]) if isinstance(layer, nn.Linear)), None)
        self.base = Base(wide, num_targets, numbers) if config.backbone.base and dropout and wide else None

    @classmethod
    def of(cls, config: NetworkConfig, images: ImagePreprocessing, num_targets: int) -> "Network":
        """Return the network of a config for what a preprocessing gives."""
        return cls(
            config,
            channels=images.channels,
            size=images.size,
            num_targets=num_targets,
            numbers=len(images.number_names),
            measured=images.measure,
            psf=images.psf_radius,
        )

    @property
    def merge(self) -> Merge | None:
        """The layer that takes the numbers, None in a network of images alone."""
        return next((layer for layer in self.stem if isinstance(layer, Merge)), None)

    @property
    def number_layers(self) -> list[nn.Module]:
        """The layer that takes the numbers and those behind it up to the first dropout."""
        return list(itertools.dropwhile(lambda layer: not isinstance(layer, Merge), self.stem))

    def blocks(self) -> dict[str, list[nn.Module]]:
        """Return the layers by block, from the input to the output; a block without weights is left out.

        The blocks are ``spatial_transformer`` and the parts of `gampen_ray.model.backbones.backbone`.
        """
        found: dict[str, list[nn.Module]] = {"spatial_transformer": [self.transformer] if self.transformer else []}
        layers = iter([*self.stem, *self.tail])
        found |= {name: list(itertools.islice(layers, size)) for name, size in self._part_sizes.items()}
        if self.base:
            found["head"].append(self.base)
        return {name: block for name, block in found.items() if any(list(layer.parameters()) for layer in block)}

    def crop(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the spatial transformer's crops and their affine maps (N x 2 x 3)."""
        if self.transformer is None:
            return x_NCHW, identity_map(len(x_NCHW), x_NCHW.device)
        merge = self.merge
        with full_precision(x_NCHW):
            if merge is None or number_NM is None:
                return self.transformer(x_NCHW)
            return self.transformer(x_NCHW, merge.white(number_NM), self._log_radius(number_NM.float()))

    def _log_radius(self, number_NM: torch.Tensor) -> torch.Tensor | None:
        assert self.transformer is not None
        if not self.measured or self.psf is None or not self.transformer.subtract_psf:
            return number_NM[:, 0] if self.measured else None
        index, unit = self.psf
        return without_psf(number_NM[:, 0], unit * number_NM[:, index])

    def features(self, x: torch.Tensor, number_NM: torch.Tensor | None = None) -> torch.Tensor:
        """Return the activations before the first dropout, from crops."""
        for layer in self.stem:
            if isinstance(layer, Merge):
                assert number_NM is not None
                return self._merged(x.float(), number_NM)
            x = layer(x)
        return x

    def prefix(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the activations before the first dropout and the affine maps of the crops (N x 2 x 3)."""
        crops_NCHW, affine_N23 = self.crop(x_NCHW, number_NM)
        return self.features(crops_NCHW, number_NM), affine_N23

    def forward(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None) -> torch.Tensor:
        """Return raw outputs, N x P.

        Under autocast transformer and output layer keep the precision of their weights, and so do all layers behind numbers.
        """
        return self._outputs(self.prefix(x_NCHW, number_NM)[0], number_NM)

    def from_numbers(self, number_NM: torch.Tensor, noise_NM: torch.Tensor | float = 0.0) -> torch.Tensor:
        """Return raw outputs, N x P, of the numbers alone: those of a network whose image counts for nothing.

        Noise, if there is any, is added to the numbers that the layers are given, not to those in which the means are linear.
        """
        return self._outputs(self._merged(None, number_NM + noise_NM), number_NM)

    def base_terms(self, activations: torch.Tensor, number_NM: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return `Base.terms` of the activations before the first dropout; None in a network without a base."""
        merge = self.merge
        standard_NM = merge.standard(number_NM) if merge is not None and number_NM is not None else None
        return self.base.terms(activations, standard_NM) if self.base else None

    def _merged(self, features_NF: torch.Tensor | None, number_NM: torch.Tensor) -> torch.Tensor:
        """Return the activations before the first dropout, from the image's features, if it counts, and the numbers."""
        merge, *behind = self.number_layers
        with self._exact(number_NM):
            x = merge(features_NF, number_NM)
            for layer in behind:
                x = layer(x)
        return x

    def _outputs(self, x: torch.Tensor, number_NM: torch.Tensor | None) -> torch.Tensor:
        terms = self.base_terms(x, number_NM)
        *hidden, output = self.tail
        with self._exact(x):
            for layer in hidden:
                x = layer(x)
        assert isinstance(output, nn.Linear)
        with full_precision(x):
            return with_base(output(x.to(output.weight.dtype)), terms)

    def _exact(self, x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
        """Return a context without autocast in a network that takes numbers, whose digits bright galaxies need."""
        return full_precision(x) if self.merge else contextlib.nullcontext()
