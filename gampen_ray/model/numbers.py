"""Numbers beside the image: how those that are measured or given enter the network, and how its means leave before dropout.

Shape legend: N galaxies, M numbers, F features, E width, P outputs, D targets.
"""

import contextlib

import numpy as np
import torch
from torch import nn

__all__ = ["Base", "Merge", "ResidualLayers", "full_precision", "with_base"]

_RIDGE = 0.005
"""Least standard deviation of a direction in the space of standardised numbers that whitening brings to one."""
_CONSTANT = 1e-6
"""Standard deviation over mean below which a number is a constant."""
_BOUND, _WHITE_BOUND = 4.0, 6.0
"""Where standardised and whitened numbers saturate."""
_FAR = 30.0
"""Where standardised numbers saturate of which a mean is a linear function."""
_IMAGE_GAIN = 4.0
"""Step of the image's part of the sum that an optimiser with steps like Adam's makes, in units of its learning rate."""
_LINEAR_RIDGE = 1e-4
"""Ridge of the linear regression on standardised numbers, in units of their variance."""


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
        # Not `torch.eye`, which imports a compiler for a second where a bundle is loaded.
        self.register_buffer("whitening_MM", torch.from_numpy(np.eye(numbers, dtype=np.float32)))
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

    def standard(self, number_NM: torch.Tensor) -> torch.Tensor:
        """Return numbers of mean 0 and standard deviation 1, N x M, float32."""
        return (number_NM.float() - self.location_M) / self.scale_M

    def white(self, number_NM: torch.Tensor) -> torch.Tensor:
        """Return whitened numbers, N x M."""
        with full_precision(number_NM):
            return _bounded(_bounded(self.standard(number_NM), _BOUND) @ self.whitening_MM, _WHITE_BOUND)

    def forward(self, features_NF: torch.Tensor | None, number_NM: torch.Tensor) -> torch.Tensor:
        """Return N x E; without features what it is where the image counts for nothing."""
        merged_NE = self.embedding(self.white(number_NM))
        if features_NF is not None:
            # Thousands of features add up: unscaled, one step of Adam would undo what the numbers have taught.
            merged_NE = merged_NE + self.image(features_NF * (_IMAGE_GAIN / features_NF.shape[1]))
        return self.activation(merged_NE)


class ResidualLayers(nn.Module):
    """Two fully connected layers behind layer normalisation, added to their input (He et al. 2016); at first the identity.

    Parameters
    ----------
    width
        Width E of input, result and what is between.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        last = self.branch[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x_NE: torch.Tensor) -> torch.Tensor:
        """Return N x E."""
        return x_NE + self.branch(x_NE)


class Base(nn.Module):
    """Means from the numbers and the activations before the first dropout, about which the dropped ones only vary.

    mean = l(x) + m(a) + exp(s(a)) d with l, m and s linear in the numbers x and these activations a, and d the output layer's
    mean. A flux is an aperture's times a factor near one, and l leaves that factor alone to be learned. Dropout moves the means
    of all galaxies by a like amount, many times the error of a bright galaxy; s makes that amount a function of the galaxy.

    Parameters
    ----------
    features
        Width of the activations.
    num_targets
        Number of targets D.
    numbers
        Number M of numbers.
    """

    def __init__(self, features: int, num_targets: int, numbers: int = 0) -> None:
        super().__init__()
        self.mean, self.log_scale = nn.Linear(features, num_targets), nn.Linear(features, num_targets)
        self.linear = nn.Linear(numbers, num_targets, bias=False) if numbers else None
        for layer in self.children():
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def fit(self, standard_NM: torch.Tensor, target_ND: torch.Tensor) -> None:
        """Start from the linear regression of standardised targets on standardised numbers."""
        if self.linear is None:
            return
        x_NM, y_ND = standard_NM.clamp(-_FAR, _FAR).double(), target_ND.double()
        ridge_MM = _LINEAR_RIDGE * len(x_NM) * torch.eye(x_NM.shape[1], dtype=torch.float64, device=x_NM.device)
        self.linear.weight.copy_(torch.linalg.solve(x_NM.T @ x_NM + ridge_MM, x_NM.T @ y_ND).T)

    def terms(self, activations_NF: torch.Tensor, standard_NM: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return l + m and exp(s), both N x D, float32, from standardised numbers if the network takes any."""
        with full_precision(activations_NF):
            activations_NF = activations_NF.float()
            mean_ND = self.mean(activations_NF)
            if self.linear is not None:
                assert standard_NM is not None
                mean_ND = mean_ND + self.linear(standard_NM.clamp(-_FAR, _FAR))
            return mean_ND, self.log_scale(activations_NF).exp()


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
