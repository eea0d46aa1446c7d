import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import MultivariateNormal

from gampen_ray.model.likelihoods import LIKELIHOODS, FullGaussian, ScaleMixture
from tests.parity import golden, needs_parity

FULL = FullGaussian(3)


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("family", ["unit_variance", "diagonal", "full"])
def test_loss_is_the_gaussian_density_without_its_constant(family: str, d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    likelihood = LIKELIHOODS[family](d)
    outputs = torch.randn(20, likelihood.num_outputs, generator=generator, dtype=torch.float64)
    targets = torch.randn(20, d, generator=generator, dtype=torch.float64)
    mean, scale_tril = likelihood.components(outputs)
    oracle = -MultivariateNormal(mean, scale_tril=scale_tril).log_prob(targets)
    constant = 0.5 * d * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    torch.testing.assert_close(likelihood.loss(outputs, targets), oracle - constant, rtol=1e-12, atol=1e-12)


def test_output_order_is_mean_log_diagonal_then_rows_of_the_triangle() -> None:
    outputs = torch.tensor([[1.0, 2.0, 3.0, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7]], dtype=torch.float64)
    mean, scale_tril = FULL.components(outputs)
    lower = torch.tensor([[1, 0, 0], [0.5, 1, 0], [0.6, 0.7, 1]], dtype=torch.float64)
    covariance = lower @ torch.diag(torch.exp(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))) @ lower.T
    torch.testing.assert_close(mean[0], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    torch.testing.assert_close(scale_tril[0] @ scale_tril[0].T, covariance)


def test_number_of_outputs() -> None:
    assert [LIKELIHOODS[f](3).num_outputs for f in ("unit_variance", "diagonal", "full", "scale_mixture")] == [3, 6, 9, 10]


@pytest.mark.parametrize("family", ["full", "scale_mixture"])
def test_gradient_matches_finite_differences(family: str) -> None:
    outputs, targets = random_case(family)
    assert torch.autograd.gradcheck(lambda o: LIKELIHOODS[family](3).loss(o, targets), (outputs,))


def random_case(family: str, d: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw outputs (20 x P) that take a gradient, and targets (20 x D)."""
    generator = torch.Generator().manual_seed(7)
    outputs = torch.randn(20, LIKELIHOODS[family](d).num_outputs, generator=generator, dtype=torch.float64).requires_grad_()
    return outputs, torch.randn(20, d, generator=generator, dtype=torch.float64)


def gradient(loss_N: torch.Tensor, outputs_NP: torch.Tensor) -> torch.Tensor:
    (result,) = torch.autograd.grad(loss_N.sum(), outputs_NP)
    return result


@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_beta_loss_of_the_diagonal_family_is_that_of_seitzer_et_al(beta: float) -> None:
    outputs, targets = random_case("diagonal")
    mean, variance = outputs[:, :3], outputs[:, 3:].exp()
    # Equation 5, for each target.
    oracle = (variance.detach() ** beta * (0.5 * variance.log() + (targets - mean) ** 2 / (2 * variance))).sum(-1)
    loss = LIKELIHOODS["diagonal"](3).loss(outputs, targets, beta=beta)
    torch.testing.assert_close(loss, oracle, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient(loss, outputs), gradient(oracle, outputs), rtol=1e-12, atol=1e-12)


def test_beta_of_one_gives_means_of_the_diagonal_family_the_gradient_of_the_squared_error() -> None:
    outputs, targets = random_case("diagonal")
    squared = gradient(0.5 * (targets - outputs[:, :3]).square().sum(-1), outputs)
    got = gradient(LIKELIHOODS["diagonal"](3).loss(outputs, targets, beta=1.0), outputs)
    torch.testing.assert_close(got[:, :3], squared[:, :3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_gradients_of_the_full_family_are_the_documented_ones(beta: float) -> None:
    outputs, targets = random_case("full")
    mean, log_diagonal, lower = (x.detach() for x in FULL.split(outputs))
    whitened = (torch.linalg.inv(lower) @ (targets - mean).unsqueeze(-1)).squeeze(-1)
    got = gradient(FULL.loss(outputs, targets, beta=beta), outputs)
    of_mean = -(torch.linalg.inv(lower).mT @ (torch.exp((beta - 1) * log_diagonal) * whitened).unsqueeze(-1)).squeeze(-1)
    of_diagonal = 0.5 * torch.exp(beta * log_diagonal) * (1 - whitened**2 * torch.exp(-log_diagonal))
    torch.testing.assert_close(got[:, :6], torch.cat([of_mean, of_diagonal], dim=1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_mean_gradient_vanishes_at_the_true_distribution(beta: float) -> None:
    outputs = torch.randn(1, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    mean, scale_tril = (x[0].detach() for x in FULL.components(outputs))
    # Points mean +- sqrt(D) times the columns of the factor have exactly its mean and covariance.
    offsets = 3**0.5 * torch.cat([scale_tril.T, -scale_tril.T])
    loss = FULL.loss(outputs.expand(6, -1), mean + offsets, beta=beta).mean()
    torch.testing.assert_close(gradient(loss, outputs), torch.zeros(1, 9, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["unit_variance", "diagonal", "full", "scale_mixture"])
def test_mean_only_is_half_the_squared_error(family: str) -> None:
    outputs, targets = random_case(family)
    loss = LIKELIHOODS[family](3).loss(outputs, targets, beta=0.5, mean_only=True)
    torch.testing.assert_close(loss, 0.5 * (targets - outputs[:, :3]).square().sum(-1), rtol=1e-14, atol=0)
    got = gradient(loss, outputs)
    torch.testing.assert_close(got[:, :3], outputs[:, :3].detach() - targets)
    assert not got[:, 3:].any()


@needs_parity
@pytest.mark.parametrize("case", ["cov1", "cov2", "cov3", "cov5", "cov1_wide", "cov2_wide", "cov3_wide", "cov5_wide"])
def test_full_covariance_and_gradient_are_those_of_gampen(case: str) -> None:
    arrays = golden("losses.npz")
    outputs = torch.from_numpy(arrays[f"{case}_outputs"]).requires_grad_()
    targets = torch.from_numpy(arrays[f"{case}_targets"])
    scale_tril = FullGaussian(targets.shape[1]).components(outputs)[1].detach()
    assert (scale_tril @ scale_tril.mT).numpy() == pytest.approx(arrays[f"{case}_covmat"], rel=1e-10, abs=1e-12)
    losses = FullGaussian(targets.shape[1]).loss(outputs, targets)
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
        likelihood = LIKELIHOODS["diagonal" if case.startswith("al") else "unit_variance"](dims)
        loss = factor * likelihood.loss(outputs, torch.from_numpy(arrays[f"{case}_targets"])).mean()
        check_loss(loss, outputs, arrays[value], arrays[gradient])


def check_loss(loss: torch.Tensor, outputs: torch.Tensor, value: Any, gradient: np.ndarray) -> None:
    assert loss.item() == pytest.approx(float(value), rel=1e-10)
    (ours,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    assert ours.numpy() == pytest.approx(gradient, rel=1e-10, abs=1e-12)


def spread_of(outputs: torch.Tensor, ln_s: float) -> torch.Tensor:
    """Return outputs under which ln s has this standard deviation, below 1."""
    changed = outputs.detach().clone()
    changed[:, -1] = 1 + math.log(ln_s / (1 - ln_s))
    return changed


@pytest.mark.parametrize("spread", [0.05, 0.4, 0.9])
def test_loss_of_a_scale_mixture_is_its_density_by_integration(spread: float) -> None:
    likelihood, (outputs, targets) = ScaleMixture(3), random_case("scale_mixture")
    outputs = spread_of(outputs, spread)
    mean, scale_tril = FULL.components(outputs[:, :9])
    # To ten sigma.
    targets = (
        mean + (scale_tril @ (torch.linspace(0, 10, 20)[:, None] * torch.nn.functional.normalize(targets))[..., None])[..., 0]
    )
    for i, loss in enumerate(likelihood.loss(outputs, targets)):
        covariance = (scale_tril[i] @ scale_tril[i].T).numpy()

        def density(t: float, i: int = i, covariance: np.ndarray = covariance) -> float:
            given = stats.multivariate_normal(mean[i].numpy(), math.exp(2 * spread * t) * covariance).pdf(targets[i].numpy())
            return float(given * stats.norm.pdf(t))

        total, _ = integrate.quad(density, -9, 9, epsabs=0, epsrel=1e-9, limit=200)
        assert float(loss) == pytest.approx(-math.log(total) - 1.5 * math.log(2 * math.pi), abs=0.05)


def test_passes_of_a_scale_mixture_make_up_its_density() -> None:
    likelihood, (outputs, targets) = ScaleMixture(3), random_case("scale_mixture")
    outputs = spread_of(outputs, 0.5)
    mean, scale_tril = likelihood.components(outputs[:, None].expand(-1, 4001, -1))
    mixture = MultivariateNormal(mean, scale_tril=scale_tril, validate_args=False).log_prob(targets[:, None].expand_as(mean))
    oracle = math.log(4001) - torch.logsumexp(mixture, dim=1) - 1.5 * math.log(2 * math.pi)
    near = oracle < 12
    assert near.sum() > 8
    torch.testing.assert_close(likelihood.loss(outputs, targets)[near], oracle[near], rtol=0, atol=0.05)


def test_a_single_pass_of_a_scale_mixture_is_a_gaussian() -> None:
    outputs, _ = random_case("scale_mixture")
    one, full = ScaleMixture(3).components(outputs[:, None]), FULL.components(outputs[:, None, :9])
    for got, oracle in zip(one, full, strict=True):
        torch.testing.assert_close(got, oracle)


def test_beta_loss_of_a_scale_mixture_weighs_galaxies_by_their_variances() -> None:
    likelihood, (outputs, targets) = ScaleMixture(3), random_case("scale_mixture")
    weight_N = outputs[:, 3:6].detach().mean(-1).exp()
    loss, plain = (likelihood.loss(outputs, targets, beta=beta) for beta in (0.5, 0.0))
    torch.testing.assert_close(loss, weight_N**0.5 * plain)
    torch.testing.assert_close(gradient(loss, outputs), gradient(weight_N**0.5 * plain, outputs))


def test_heavy_tails_are_learned_and_thin_ones_too() -> None:
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    for spread in (0.02, 0.6):
        targets = normal * torch.exp(spread * torch.randn(20_000, 1, generator=generator, dtype=torch.float64))
        likelihood = ScaleMixture(2)
        outputs = torch.zeros(likelihood.num_outputs, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([outputs], max_iter=60, line_search_fn="strong_wolfe")

        def loss(
            likelihood: ScaleMixture = likelihood,
            outputs: torch.Tensor = outputs,
            targets: torch.Tensor = targets,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> torch.Tensor:
            optimizer.zero_grad()
            mean = likelihood.loss(outputs.expand(len(targets), -1), targets).mean()
            mean.backward()
            return mean

        optimizer.step(loss)
        assert float(torch.sigmoid(outputs.detach()[-1] - 1)) == pytest.approx(spread, abs=0.1)
        torch.testing.assert_close(outputs.detach()[:4], torch.zeros(4, dtype=torch.float64), rtol=0, atol=0.05)
