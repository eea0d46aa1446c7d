import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from gampen_ray.errors import UserError
from gampen_ray.inference.mc_dropout import ThinnedNetworks, dealt_units
from gampen_ray.model.network import Network
from tests.networks import NETWORK, SIZE, bundle


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def network(rate: float = 0.05, placement: str = "every_conv", **fields: str) -> Network:
    torch.manual_seed(0)
    backbone = dataclasses.replace(NETWORK.backbone, dropout_rate=rate, dropout_placement=placement, **fields)
    return Network(dataclasses.replace(NETWORK, backbone=backbone), channels=1, size=SIZE, num_targets=2)


VARIANTS = [
    {"block": block, "normalisation": normalisation}
    for block in ("plain", "residual")
    for normalisation in ("batch", "group", "none")
]


def variant(fields: dict[str, str], rate: float = 0.3) -> Network:
    """A network with dropout before layers of every kind, its residual branches not zero."""
    net = network(rate, plan=(8, "M", 16, 16, "M"), **fields).eval()
    for value in net.state_dict().values():
        value += 0.1 * torch.rand(value.shape) if value.is_floating_point() else 0
    return net


every_variant = pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: " ".join(fields.values()))


def outputs(thinned: ThinnedNetworks, x_NCHW: torch.Tensor) -> torch.Tensor:
    return thinned(x_NCHW).outputs_NKP


def test_a_galaxys_outputs_do_not_depend_on_its_batch() -> None:
    thinned = ThinnedNetworks(bundle().network, 8, seed=3)
    together = outputs(thinned, images(64))
    alone = torch.cat([outputs(thinned, image[None]) for image in images(64)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)


def test_masks_depend_on_seed_and_pass_alone() -> None:
    first = outputs(ThinnedNetworks(network(), 4, seed=3), images(5))
    again = outputs(ThinnedNetworks(network(), 8, seed=3), images(9))
    other = outputs(ThinnedNetworks(network(), 4, seed=4), images(5))
    torch.testing.assert_close(again[:5, :4], first, rtol=1e-4, atol=1e-6)
    assert (other - first).abs().max() > 1e-3
    assert (first[:, 0] - first[:, 1]).abs().max() > 1e-3


@every_variant
def test_thinned_networks_equal_ones_with_the_same_activations_zeroed(fields: dict[str, str]) -> None:
    net = variant(fields)
    thinned = ThinnedNetworks(net, 3, seed=0)
    got = outputs(thinned, images(3))
    for k in range(3):
        dropped = [hands[k] for _, hands in sorted(thinned._dropped.items())]
        x, _ = net.prefix(images(3))
        for layer in net.tail:
            if isinstance(layer, nn.Dropout):
                # H x W x C, or C
                mask = torch.ones(torch.movedim(x[0], 0, -1).shape)
                mask.view(-1)[dropped.pop(0)] = 0
                assert 0 < mask.mean() < 1
                x = x * torch.movedim(mask, -1, 0) / 0.7
            else:
                x = layer(x)
        assert not dropped
        torch.testing.assert_close(got[:, k], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("placement", ["every_conv", "last_block", "classifier"])
def test_memory_layout_changes_no_output(placement: str) -> None:
    rows = outputs(ThinnedNetworks(network(0.3, placement), 4, seed=0), images(3))
    channels_last = network(0.3, placement).to(memory_format=torch.channels_last)
    columns = outputs(ThinnedNetworks(channels_last, 4, seed=0), images(3).to(memory_format=torch.channels_last))
    torch.testing.assert_close(columns, rows, rtol=1e-4, atol=1e-5)


@every_variant
def test_every_dropout_layer_changes_the_outputs(fields: dict[str, str]) -> None:
    net = variant(fields).to(memory_format=torch.channels_last)
    plain = net(images(3))
    layers = [layer for layer in net.tail if isinstance(layer, nn.Dropout)]
    for layer in layers:
        for other in layers:
            other.p = 0.3 if other is layer else 0.0
        assert (outputs(ThinnedNetworks(net, 1, seed=0), images(3))[:, 0] - plain).abs().max() > 1e-3


def masks(num_units: int, rate: float, num_passes: int, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Return which units the passes drop, K x units."""
    dropped = np.zeros((num_passes, num_units), dtype=int)
    for k, hand in enumerate(itertools.islice(dealt_units(num_units, rate, seed), num_passes)):
        np.add.at(dropped[k], hand, 1)
    return dropped


def test_share_of_dropped_activations_is_the_rate_in_every_pass() -> None:
    thinned = ThinnedNetworks(network(rate=0.2), 64, seed=0)
    thinned(images(1))
    activations = 8 * (SIZE // 2) ** 2  # before the second convolution
    assert {len(hand) for hand in thinned._dropped[0]} == {0.2 * activations}


@pytest.mark.parametrize("num_passes", [1, 7, 32, 100])
@pytest.mark.parametrize("rate", [1e-3, 0.02, 1 / 3, 0.5, 0.95])
@pytest.mark.parametrize("num_units", [1, 10, 129])
def test_hands_differ_in_size_by_one_and_so_do_the_counts_of_units(num_units: int, rate: float, num_passes: int) -> None:
    def low_high(expected: float) -> set[int]:
        return {math.floor(expected), math.ceil(expected)}

    dropped = masks(num_units, rate, num_passes)
    assert dropped.max() <= 1
    assert set(dropped.sum(axis=1)) <= low_high(rate * num_units)
    counts = dropped.sum(axis=0)
    assert counts.max() - counts.min() <= 1
    assert set(counts) <= low_high(rate * num_passes)


def test_every_unit_is_dropped_equally_often_over_a_multiple_of_the_inverse_rate() -> None:
    assert (masks(130, 1 / 16, 32).sum(axis=0) == 2).all()


@pytest.mark.parametrize("num_units", [25, 23, 60])
def test_two_units_share_one_hand_where_the_inverse_rate_is_prime(num_units: int) -> None:
    dropped = masks(num_units, 1 / 5, 25)
    shared = (dropped.T @ dropped)[~np.eye(num_units, dtype=bool)]
    if num_units <= 25:
        # Of 25 points of a plane, those in the same column share none.
        assert set(shared) == {0, 1}
        assert (shared == 0).sum() <= num_units * 4
    else:
        assert shared.mean() == pytest.approx(num_units * 5 * (num_units / 5 - 1) / (num_units * (num_units - 1)))
        assert shared.max() < 10


@pytest.mark.parametrize("rate", [0.15, 1 / 7])
def test_a_unit_is_dropped_in_each_pass_with_the_probability_that_is_the_rate(rate: float) -> None:
    count = 2000
    share = np.mean([masks(10, rate, 12, seed) for seed in range(count)], axis=0)
    # 120 shares at once.
    assert np.abs(share - rate).max() < 4.5 * math.sqrt(rate * (1 - rate) / count)


def test_which_units_share_a_hand_is_chance() -> None:
    count, rate = 2000, 0.3
    pairs = np.mean([(m := masks(10, rate, 10, seed)).T @ m / 10 for seed in range(count)], axis=0)
    # Of hands of 3 among 10.
    np.testing.assert_allclose(pairs[~np.eye(10, dtype=bool)], 3 * 2 / (10 * 9), atol=0.007)


def test_passes_of_different_layers_are_unrelated() -> None:
    first, second = (np.concatenate([masks(50, 0.2, 40, [seed, layer]).ravel() for seed in range(20)]) for layer in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))


def test_mean_over_passes_approaches_the_network_without_dropout_in_a_linear_tail() -> None:
    net = network(rate=0.1, placement="classifier").eval()
    got = outputs(ThinnedNetworks(net, 4000, seed=0), images(2))
    standard_error = got.std(dim=1) / 4000**0.5
    assert ((got.mean(dim=1) - net(images(2))).abs() < 5 * standard_error + 1e-6).all()


def test_the_network_is_left_as_it_was() -> None:
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    outputs(ThinnedNetworks(net, 2, seed=0, dtype=torch.bfloat16), images(2))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@every_variant
def test_a_pass_leaves_no_trace_in_the_next_call(fields: dict[str, str]) -> None:
    net = variant(fields)
    thinned = ThinnedNetworks(net, 3, seed=0)
    torch.testing.assert_close(outputs(thinned, images(4)), outputs(thinned, images(4)), rtol=0, atol=0)
    one = outputs(ThinnedNetworks(net, 1, seed=0), images(4))
    torch.testing.assert_close(outputs(thinned, images(4))[:, :1], one, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("placement", "fields"),
    [("every_conv", {}), ("last_block", {}), ("classifier", {}), ("every_conv", VARIANTS[3]), ("every_conv", VARIANTS[4])],
)
def test_bfloat16_gives_the_same_to_its_accuracy(placement: str, fields: dict[str, str]) -> None:
    exact = outputs(ThinnedNetworks(network(0.05, placement, **fields), 4, seed=0), images(50))
    rounded = outputs(ThinnedNetworks(network(0.05, placement, **fields), 4, seed=0, dtype=torch.bfloat16), images(50))
    assert rounded.dtype == torch.float32
    # 8 bits of mantissa in three layers.
    assert 0 < (rounded - exact).std() < 0.02 * exact.std()


def test_memory_of_a_residual_block_counts_the_input_that_its_skip_holds() -> None:
    backbone = dataclasses.replace(NETWORK.backbone, plan=(8, 16), block="residual", dropout_placement="classifier")
    config = dataclasses.replace(
        NETWORK, backbone=backbone, spatial_transformer=dataclasses.replace(NETWORK.spatial_transformer, family="none")
    )
    net = Network(config, channels=1, size=SIZE, num_targets=2)
    got = ThinnedNetworks(net, 2, seed=0).prepare(images(1))
    # The first dropout follows the hidden layer of 16; 8 channels go into the block, 16 through and out of it, of 4 bytes.
    assert got == 4 * 16 + 4 * (8 + 2 * 16) * SIZE**2


def test_the_deterministic_prefix_is_computed_once() -> None:
    net = network(placement="last_block")
    calls: list[str] = []
    for name, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    ThinnedNetworks(net, 7, seed=0)(images(2))
    counts = {name: calls.count(name) for name in calls}
    assert {count for name, count in counts.items() if not name.startswith("tail")} == {1}
    assert {count for name, count in counts.items() if name.startswith("tail")} == {7}


def test_several_passes_without_dropout_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_passes: 32, but the network has no dropout: give 1"):
        ThinnedNetworks(network(rate=0.0), 32, seed=0)
    got = outputs(ThinnedNetworks(network(rate=0.0), 1, seed=0), images(2))
    torch.testing.assert_close(got[:, 0], network(rate=0.0).eval()(images(2)))
