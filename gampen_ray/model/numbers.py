"""Numbers beside the image: how those that are measured or given enter the network, and how its means leave before dropout.

Shape legend: N galaxies, M numbers, F features, E width, P outputs, D targets.
"""

import contextlib

import torch
from torch import nn

__all__ = ["Base", "Merge", "full_precision", "with_base"]

_RIDGE = 0.02
"""Least standard deviation of a direction in the space of standardised numbers that whitening brings to one."""
_CONSTANT = 1e-6
"""Standard deviation over mean below which a number is a constant."""
_BOUND, _WHITE_BOUND = 4.0, 6.0
"""Where standardised and whitened numbers saturate."""


class Merge(nn.Module):
    """Features of the image and whitened numbers, each through layers of its own, added.

    Numbers of a galaxy are nearly the same (apertures of neighbouring widths), and what tells profiles apart are their small
    differences: they are whitened by ZCA, which unlike principal components is a continuous function of the covariance.

    Parameters
    ----------
    features
        Width F of the image's features.
    numbers
        Number M of numbers.
    width
        Width E of the result.
    """

    location_M: torch.Tensor
    scale_M: torch.Tensor
    whitening_MM: torch.Tensor

    def __init__(self, features: int, numbers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("location_M", torch.zeros(numbers))
        self.register_buffer("scale_M", torch.ones(numbers))
        self.register_buffer("whitening_MM", torch.eye(numbers))
        self.embedding = nn.Sequential(nn.Linear(numbers, width), nn.SiLU(), nn.Linear(width, width))
        # Without a bias, and zero at first: the network begins as one of the numbers alone.
        self.image = nn.Linear(features, width, bias=False)
        self.activation = nn.SiLU()

    def initialise(self) -> None:
        """Let the image count for nothing."""
        nn.init.zeros_(self.image.weight)

    @torch.no_grad()
    def fit(self, number_NM: torch.Tensor) -> None:
        """Learn the whitening from numbers of training galaxies."""
        number_NM = number_NM.double().to(self.location_M.device)
        location_M, scale_M = number_NM.mean(0), number_NM.std(0, correction=0)
        # A number that all galaxies share, to the digits of float32.
        scale_M = scale_M.where(scale_M > _CONSTANT * location_M.abs(), torch.ones_like(scale_M))
        standard_NM = _bounded((number_NM - location_M) / scale_M, _BOUND)
        standard_NM = standard_NM - standard_NM.mean(0)
        variance_M, direction_MM = torch.linalg.eigh(standard_NM.T @ standard_NM / len(standard_NM))
        whitening_MM = direction_MM / (variance_M.clamp(min=0) + _RIDGE**2).sqrt() @ direction_MM.T
        for buffer, value in ((self.location_M, location_M), (self.scale_M, scale_M), (self.whitening_MM, whitening_MM)):
            buffer.copy_(value)

    def white(self, number_NM: torch.Tensor) -> torch.Tensor:
        """Return whitened numbers, N x M."""
        with full_precision(number_NM):
            standard_NM = _bounded((number_NM.float() - self.location_M) / self.scale_M, _BOUND)
            return _bounded(standard_NM @ self.whitening_MM, _WHITE_BOUND)

    def forward(self, features_NF: torch.Tensor | None, number_NM: torch.Tensor) -> torch.Tensor:
        """Return N x E; without features what it is where the image counts for nothing."""
        merged_NE = self.embedding(self.white(number_NM))
        if features_NF is not None:
            merged_NE = merged_NE + self.image(features_NF)
        return self.activation(merged_NE)


class Base(nn.Module):
    """Means from the activations before the first dropout, about which the dropped ones only vary.

    mean = m(a) + exp(s(a)) d with m and s linear in these activations a, and d the output layer's mean. Dropout moves the means
    of all galaxies by a like amount, many times the error of a bright galaxy; s makes that amount a function of the galaxy.

    Parameters
    ----------
    features
        Width of the activations.
    num_targets
        Number of targets D.
    """

    def __init__(self, features: int, num_targets: int) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(features, num_targets), nn.Linear(features, num_targets)
        for layer in (self.mean, self.log_scale):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def terms(self, activations_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return m and exp(s), both N x D, float32."""
        with full_precision(activations_NF):
            activations_NF = activations_NF.float()
            return self.mean(activations_NF), self.log_scale(activations_NF).exp()


def full_precision(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context without autocast on the tensor's device."""
    # Autocast does not know the device that has shapes alone.
    return contextlib.nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def with_base(outputs_NP: torch.Tensor, terms: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
    """Return raw outputs whose means, the first D, are those of `Base`; None: as they are."""
    if terms is None:
        return outputs_NP
    mean_ND, scale_ND = terms
    d = mean_ND.shape[1]
    return torch.cat([mean_ND + scale_ND * outputs_NP[:, :d], outputs_NP[:, d:]], dim=1)


def _bounded(x: torch.Tensor, bound: float) -> torch.Tensor:
    return bound * torch.tanh(x / bound)
