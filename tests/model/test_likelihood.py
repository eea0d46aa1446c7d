from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from gampen_ray.model.likelihood import gaussian, negative_log_likelihood, num_outputs
from tests.parity import golden, needs_parity


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("family", ["mse", "diagonal", "full"])
def test_loss_is_the_gaussian_density_without_its_constant(family: str, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    outputs = torch.randn(20, num_outputs(family, d), generator=generator, dtype=torch.float64)
    targets = torch.randn(20, d, generator=generator, dtype=torch.float64)
    mean, scale_tril = gaussian(outputs, d)
    oracle = -MultivariateNormal(mean, scale_tril=scale_tril).log_prob(targets)
    constant = 0.5 * d * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(negative_log_likelihood(outputs, targets), oracle - constant, rtol=1e-12, atol=1e-12)


def test_output_order_is_mean_log_diagonal_then_rows_of_the_triangle() -> None:
    outputs = torch.tensor([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7]], dtype=torch.float64)
    mean, scale_tril = gaussian(outputs, 3)
    lower = torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.6, 0.7, 1]], dtype=torch.float64)
    covariance = lower @ torch.diag(torch.exp(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))) @ lower.T
    torch.testing.assert_close(mean[0], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(scale_tril[0] @ scale_tril[0].T, covariance)


def test_number_of_outputs() -> None:
    assert [num_outputs(f, 3) for f in ("mse", "diagonal", "full")] == [3, 6, 9]


def test_gradient_matches_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda o: negative_log_likelihood(o, targets), (outputs,))


@needs_parity
@pytest.mark.parametrize("case", ["cov1", "cov2", "cov3", "cov5", "cov1_wide", "cov2_wide", "cov3_wide", "cov5_wide"])
def test_full_covariance_and_gradient_are_those_of_gampen(case: str) -> None:
    arrays = golden("losses.npz")
    outputs = torch.from_numpy(arrays[f"{case}_outputs"]).requires_grad_()
    targets = torch.from_numpy(arrays[f"{case}_targets"])
    scale_tril = gaussian(outputs, targets.shape[1])[1].detach()
    assert (scale_tril @ scale_tril.mT).numpy() == pytest.approx(arrays[f"{case}_covmat"], rel=1e-10, abs=1e-12)
    losses = negative_log_likelihood(outputs, targets)
    for reduction in ("mean", "sum"):
        check_loss(getattr(losses, reduction)(), outputs, arrays[f"{case}_{reduction}"], arrays[f"{case}_{reduction}_grad"])


@needs_parity
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_diagonal_and_mse_losses_are_those_of_gampen_up_to_its_mean_over_targets(dims: int) -> None:
    arrays = golden("losses.npz")
    # GaMPEN averages both over galaxies and targets, and its mse has no factor of a half.
    for case, factor in ((f"al{dims}", 1 / dims), (f"mse{dims}", 2 / dims)):
        value, gradient = (f"{case}_mean", f"{case}_mean_grad") if case.startswith("al") else (case, f"{case}_grad")
        outputs = torch.from_numpy(arrays[f"{case}_outputs"]).requires_grad_()
        loss = factor * negative_log_likelihood(outputs, torch.from_numpy(arrays[f"{case}_targets"])).mean()
        check_loss(loss, outputs, arrays[value], arrays[gradient])


def check_loss(loss: torch.Tensor, outputs: torch.Tensor, value: Any, gradient: np.ndarray) -> None:
    assert loss.item() == pytest.approx(float(value), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    assert ours.numpy() == pytest.approx(gradient, rel=1e-10, abs=1e-12)
