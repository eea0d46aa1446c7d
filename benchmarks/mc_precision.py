"""How many passes a posterior takes: K Gaussians against draws, one of each pass, at equal Monte Carlo precision.

Shape legend: N galaxies, K passes, D targets, P network outputs, C channels, H x W pixels.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from parts import DEVICE, blobs, model
from torch import nn

from gampen_ray.config import gampen_vgg16
from gampen_ray.model.likelihood import gaussian
from gampen_ray.model.network import Network
from gampen_ray.posterior.bundle import Bundle
from gampen_ray.posterior.mc_dropout import ThinnedNetworks
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.predictor import Predictor

_DRAWS, _BOOTSTRAPS, _GALAXIES, _DIMS = 1_000, 200, 1, 3
_LEVELS = (0.15865, 0.84135)


def equal_precision(share: float) -> dict[str, Any]:
    """Measure both ways with the published network, whose aleatoric variance is set such that a share is epistemic.

    Scatter over seeds: the passes of the plain loop are drawn anew with replacement; both ways see the same passes.
    """
    bundle = model(gampen_vgg16(), 143)
    images_NCHW = blobs(_GALAXIES, 143)
    x_NCHW = bundle.images(torch.from_numpy(images_NCHW)).to(DEVICE)
    network = bundle.network.to(DEVICE)
    set_epistemic_share(network, ThinnedNetworks(network, 64, 0)(x_NCHW).outputs_NKP, share)
    outputs_NKP, draws_NKD, plain_seconds = plain_loop(network, x_NCHW)
    everything = mixture(outputs_NKP, bundle)
    std_ND = everything.standardised_std()
    rng = np.random.default_rng(0)
    plain = scatter(lambda: np.quantile(draws_NKD[:, rng.integers(_DRAWS, size=_DRAWS)], _LEVELS, axis=1), std_ND)
    for count in range(8, _DRAWS, 8):
        ours = scatter(lambda count=count: bounds(mixture(outputs_NKP[:, rng.integers(_DRAWS, size=count)], bundle)), std_ND)
        if ours <= plain:
            break
    predict = Predictor(bundle, num_passes=count, seed=0, device=DEVICE)
    predict(images_NCHW)
    began = time.perf_counter()
    predict(images_NCHW).mixture.to_table()
    seconds = time.perf_counter() - began
    return {
        "measured_epistemic_share": float((everything.mean_NKD.var(1, correction=0).numpy() / std_ND**2).mean()),
        "plain_passes": _DRAWS,
        "plain_seconds_per_galaxy": plain_seconds / _GALAXIES,
        "plain_scatter_in_posterior_std": plain,
        "passes": count,
        "seconds_per_galaxy": seconds / _GALAXIES,
        "scatter_in_posterior_std": ours,
        "times_shorter": plain_seconds / seconds,
    }


def set_epistemic_share(network: Network, outputs_NKP: torch.Tensor, share: float) -> None:
    """Make the predicted covariance constant and diagonal, such that a share of the total variance lies between passes."""
    output = network.tail[-1]
    assert isinstance(output, nn.Linear)
    epistemic_D = outputs_NKP[..., :_DIMS].double().var(1).mean(0)
    with torch.no_grad():
        output.weight[_DIMS:] = 0.0
        output.bias[_DIMS:] = 0.0
        output.bias[_DIMS : 2 * _DIMS] = torch.log(epistemic_D * (1 - share) / share)


def plain_loop(network: Network, x_NCHW: torch.Tensor) -> tuple[torch.Tensor, np.ndarray, float]:
    """Run the whole network once for each pass with elementwise dropout; return outputs, draws and the time it took."""
    outputs, draws = [], []
    for layer in network.tail:
        layer.train(isinstance(layer, nn.Dropout))
    network(x_NCHW)
    began = time.perf_counter()
    with torch.inference_mode():
        for _ in range(_DRAWS):
            outputs.append(network(x_NCHW))
            mean_ND, tril_NDD = gaussian(outputs[-1], _DIMS)
            draws.append(torch.distributions.MultivariateNormal(mean_ND, scale_tril=tril_NDD).sample().cpu())
    draws_NKD = torch.stack(draws, 1).numpy()
    seconds = time.perf_counter() - began
    network.eval()
    return torch.stack(outputs, 1).double().cpu(), draws_NKD, seconds


def mixture(outputs_NKP: torch.Tensor, bundle: Bundle) -> Mixture:
    """Return the posteriors of raw outputs."""
    return Mixture(*gaussian(outputs_NKP, _DIMS), bundle.targets)


def bounds(posterior: Mixture) -> np.ndarray:
    """Return the ends of the 68 % intervals in standardised space, 2 x N x D."""
    return posterior.standardised_quantile(np.array(_LEVELS)).transpose(1, 0, 2)


def scatter(drawn: Callable[[], np.ndarray], std_ND: np.ndarray) -> float:
    """Return the root mean square scatter of the bounds that each call draws, in units of the posterior's deviation."""
    return float(np.sqrt(((np.stack([drawn() for _ in range(_BOOTSTRAPS)]).std(0) / std_ND) ** 2).mean()))
