"""Code of a user's own, which a test brings in by the environment variable GAMPEN_RAY_PLUGINS."""

import numpy as np
import torch
from torch import nn

from gampen_ray.catalog.columns import Rows, register_column
from gampen_ray.model.backbones import Block, convolution, register_block
from gampen_ray.model.likelihoods import Likelihood, register_likelihood


@register_likelihood("laplace")
class Laplace(Likelihood):
    """Independent Laplace distributions; a pass counts as the Gaussian of their means and variances."""

    @property
    def num_outputs(self) -> int:
        return 2 * self.num_targets

    def loss(
        self, outputs_NP: torch.Tensor, targets_ND: torch.Tensor, *, beta: float = 0.0, mean_only: bool = False
    ) -> torch.Tensor:
        mean_ND, log_scale_ND = outputs_NP.chunk(2, dim=-1)
        if mean_only:
            return 0.5 * (targets_ND - mean_ND).square().sum(-1) + 0 * log_scale_ND.sum(-1)
        loss_ND = (targets_ND - mean_ND).abs() * torch.exp(-log_scale_ND) + log_scale_ND
        return (torch.exp(2 * beta * log_scale_ND.detach()) * loss_ND).sum(-1)

    def components(self, outputs_P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_scale = outputs_P.chunk(2, dim=-1)
        return mean, torch.diag_embed(2**0.5 * log_scale.exp())


@register_block("separable")
class SeparableBlock(Block):
    """A depthwise and a pointwise convolution (Chollet 2017)."""

    def __init__(self, channels: int, width: int, normalisation: str) -> None:
        super().__init__()
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.layers = nn.Sequential(depthwise, *convolution(channels, width, 1, normalisation), nn.ReLU())

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        return self.layers(x_NCHW)


@register_column("flux_to_noise", unit="", description="posterior mean of flux over its standard deviation")
def flux_to_noise(rows: Rows) -> np.ndarray:
    d = rows.mixture.targets.names.index("flux")
    return rows.mixture.mean()[:, d] / rows.mixture.std()[:, d]
