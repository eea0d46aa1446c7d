import math

import pytest
import torch

from gampen_ray.inference.mc_dropout import ThinnedNetworks
from gampen_ray.model.flops import inference_flops
from gampen_ray.model.network import Network
from gampen_ray.model.numbers import Base, Merge
from tests.networks import SIZE, WITH_NUMBERS


def correlated(count: int = 4000) -> torch.Tensor:
    """Four numbers: two that are nearly the same, one a billion times smaller, and a constant."""
    draws = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.stack([draws[:, 0] + 7, draws[:, 0] + 0.2 * draws[:, 1] - 3, 1e-9 * draws[:, 2]], dim=1)
    return torch.cat([x, torch.full((count, 1), 25.3, dtype=torch.float64)], dim=1).float()


def fitted(number_NM: torch.Tensor) -> Merge:
    torch.manual_seed(0)
    merge = Merge(5, number_NM.shape[1], 6)
    merge.fit(number_NM)
    return merge


def test_whitened_numbers_have_unit_covariance_and_a_constant_is_zero() -> None:
    numbers = correlated()
    white = fitted(numbers).white(numbers)
    # Saturation takes some.
    torch.testing.assert_close(torch.cov(white[:, :3].T), torch.eye(3), rtol=0, atol=0.12)
    torch.testing.assert_close(white[:, 3], torch.zeros(len(white)), rtol=0, atol=1e-3)
    assert white.abs().max() <= 6


def test_whitening_is_continuous_where_variances_are_equal() -> None:
    # Principal components of such numbers turn by any angle.
    numbers = torch.randn(1000, 6, generator=torch.Generator().manual_seed(1))
    near = numbers + 1e-3 * torch.randn(1000, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fitted(near).white(numbers), fitted(numbers).white(numbers), rtol=0, atol=0.02)


def network() -> tuple[Network, torch.Tensor, torch.Tensor]:
    """A network with random weights, images and numbers."""
    torch.manual_seed(0)
    made = Network(WITH_NUMBERS, channels=1, size=SIZE, num_targets=2, numbers=3, measured=True)
    for name, parameter in made.named_parameters():
        parameter.data += (0.01 if "base.log_scale" in name else 0.1) * torch.randn(parameter.shape)
    numbers = torch.randn(9, 3)
    assert made.merge is not None
    made.merge.fit(numbers)
    return made.eval(), torch.randn(9, 1, SIZE, SIZE), numbers


def test_without_the_image_the_network_is_that_of_the_numbers() -> None:
    made, images, numbers = network()
    assert not torch.allclose(made(images, numbers), made.from_numbers(numbers), atol=1e-2)
    assert made.merge is not None
    made.merge.image.weight.data.zero_()
    torch.testing.assert_close(made(images, numbers), made.from_numbers(numbers), rtol=0, atol=0)
    # The digits of the numbers survive autocast.
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(images, numbers), made.from_numbers(numbers), rtol=1e-6, atol=1e-6)


def test_thinned_networks_in_bfloat16_keep_the_numbers() -> None:
    made, images, numbers = network()
    exact, rounded = (ThinnedNetworks(made, 8, 0, dtype=dtype)(images, numbers) for dtype in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(rounded.outputs_NKP, exact.outputs_NKP, rtol=0.05, atol=0.05)
    torch.testing.assert_close(rounded.affine_N23, exact.affine_N23, rtol=0, atol=0)
    # One with dropout switched off is the network itself.
    for layer in made.tail:
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    torch.testing.assert_close(ThinnedNetworks(made, 1, 0)(images, numbers).outputs_NKP[:, 0], made(images, numbers))


def test_means_without_the_dropped_part_are_linear_in_numbers_and_activations() -> None:
    made, images, numbers = network()
    assert isinstance(made.base, Base)
    activations, _ = made.prefix(images, numbers)
    made.base.log_scale.bias.data.fill_(-math.inf)
    assert made.merge is not None
    assert made.base.linear is not None
    expected = made.base.mean(activations) + made.base.linear(made.merge.standard(numbers))
    torch.testing.assert_close(made(images, numbers)[:, :2], expected)


def test_means_start_from_the_linear_regression() -> None:
    numbers = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[0.3, -2.0, 0.0], [1.0, 0.5, 4.0]])
    base = Base(8, 2, 3)
    base.fit(numbers, numbers @ weights.T)
    means, _ = base.terms(torch.randn(10, 8), numbers[:10])
    torch.testing.assert_close(means, numbers[:10] @ weights.T, rtol=0, atol=2e-3)
    # A number of a broken image does not carry a mean to infinity.
    assert base.terms(torch.zeros(1, 8), torch.full((1, 3), 1e30))[0].isfinite().all()


def test_the_scale_of_the_base_is_that_of_the_scatter_between_passes() -> None:
    made, images, numbers = network()
    assert isinstance(made.base, Base)
    before = ThinnedNetworks(made, 16, 0)(images, numbers).outputs_NKP
    made.base.log_scale.bias.data += torch.tensor([math.log(2), 0.0])
    after = ThinnedNetworks(made, 16, 0)(images, numbers).outputs_NKP
    ratio = after.std(1) / before.std(1)
    torch.testing.assert_close(ratio, torch.tensor([2.0, 1, 1, 1, 1, 1]).expand(9, -1), rtol=1e-3, atol=0)


def test_gradients_reach_all_weights() -> None:
    made, images, numbers = network()
    numbers[:, 0] = math.log(0.1)
    made.train()(images, numbers).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in made.parameters())


@pytest.mark.parametrize("numbers", [0, 3])
def test_operations_with_numbers_are_counted(numbers: int) -> None:
    def flops(num_passes: int) -> int:
        return inference_flops(WITH_NUMBERS, channels=1, size=SIZE, num_targets=2, num_passes=num_passes, numbers=numbers)

    prefix, tail = 2 * flops(1) - flops(2), flops(2) - flops(1)
    assert tail == 2 * 16 * 6
    without = flops_of_convolutions()
    # Hidden layers of 16 on the pooled features of 16 x 2 x 2; two linear functions of 16 activations for the base.
    behind = 64 * 16 + 2 * 16 * 2
    if numbers:
        # Whitened twice, embedded by two layers, given to the localisation's 8 hidden units and to the base.
        behind += 16 * 16 + 2 * numbers**2 + numbers * 16 + 16 * 16 + numbers * 8 + numbers * 2
        # Three pairs of layers.
        behind += 3 * 2 * 16 * 16
    assert prefix == without + 2 * behind


def flops_of_convolutions() -> int:
    """Operations of transformer and convolutions without numbers."""
    sides = 12**2 * 9 * 8 + 6**2 * 9 * 8 * 16
    # 5 x 5 kernels on 20 pixels; hidden units on 4 maps of 7 pixels; and the scale.
    transformer = 16**2 * 25 * 4 + 4 * 7 * 7 * 8 + 8
    return 2 * (sides + transformer)
