"""Monte Carlo dropout (Gal & Ghahramani 2016) as K fixed thinned networks.

The masks are drawn once from (seed, pass, layer) and shared by every galaxy, so a galaxy's posterior does not depend on batch
size, order, number of workers or restarts. They are dealt over the passes (`dealt_units`): where each unit is dropped several
times, a posterior hardly depends on the seed either. What precedes the first dropout is computed once per image.
Shape legend: N galaxies, K passes, C channels, H x W pixels, P outputs.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from gampen_ray.errors import UserError
from gampen_ray.inference.folding import folded
from gampen_ray.model.backbones import Block
from gampen_ray.model.network import Network
from gampen_ray.model.numbers import Merge, with_base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Passes:
    """What K thinned networks give for N images.

    Parameters
    ----------
    outputs_NKP
        Raw outputs, float32.
    affine_N23
        Maps from crop to image coordinates.
    activations
        What precedes the first dropout.
    """

    outputs_NKP: torch.Tensor
    affine_N23: torch.Tensor
    activations: torch.Tensor


class ThinnedNetworks:
    """K thinned copies of a network, held as the positions of the dropped activations.

    Parameters
    ----------
    network
        Trained network; a copy of it is used, rewritten for inference (`gampen_ray.inference.folding`).
    num_passes
        Number K of thinned networks.
    seed
        Seed of the masks.
    device
        Where they run; None: where the network is.
    dtype
        Of weights and activations behind the spatial transformer; the transformer and the output layer are always float32.
    repeated_band
        Whether the images have one channel for a network whose channels are all copies of it.

    Raises
    ------
    UserError
        If more than one pass is asked of a network without dropout.
    """

    def __init__(
        self,
        network: Network,
        num_passes: int,
        seed: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        repeated_band: bool = False,
    ) -> None:
        network = folded(network, repeated_band=repeated_band)
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network, self.num_passes, self._seed, self._dtype = network, num_passes, seed, dtype
        self._steps = list(_steps(network.tail))
        if num_passes > 1 and not any(rate for rate, _ in self._steps):
            raise UserError(
                f"num_passes: {num_passes}, but the network has no dropout: give 1, or train with dropout_rate above 0"
            )
        # All but the output layer, which makes of rounded activations exact sums, and what is behind numbers.
        for layer in [*network.stem, *network.tail][:-1]:
            if isinstance(layer, Merge):
                break
            layer.to(dtype)
        self._dropped: dict[int, list[torch.Tensor]] = {}

    @property
    def network(self) -> Network:
        """The copy of the network."""
        return self._network

    @torch.inference_mode()
    def __call__(
        self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None, passes: Sequence[int] | None = None
    ) -> Passes:
        """Return what every pass, or some, gives for preprocessed images, and their numbers if the network takes any."""
        activations, theta_N23 = self._prefix(x_NCHW, number_NM)
        terms = self._network.base_terms(activations, number_NM)
        outputs = [with_base(self._tail(k, activations), terms) for k in passes or range(self.num_passes)]
        return Passes(outputs_NKP=torch.stack(outputs, dim=1), affine_N23=theta_N23, activations=activations)

    @torch.inference_mode()
    def prepare(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None) -> int:
        """Draw all masks, and return the memory that the activations of these inputs take at most, bytes."""
        sizes: list[int] = []

        def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            block = isinstance(layer, Block)
            sizes.append(layer.activation_bytes(inputs[0], output) if block else inputs[0].nbytes + output.nbytes)

        layers = [layer for layer in self._network.modules() if isinstance(layer, Block) or not list(layer.children())]
        hooks = [layer.register_forward_hook(measure) for layer in layers]
        activations, _ = self._prefix(x_NCHW, number_NM)
        x = activations
        for step, (rate, layer) in enumerate(self._steps):
            if rate:
                self._positions(step, rate, x)
            x = _channels_last(layer(x.float() if step == len(self._steps) - 1 else x))
        for hook in hooks:
            hook.remove()
        # What all passes share is also looked at in float32.
        return activations.nbytes + max(*sizes, 4 * activations.numel())

    @torch.inference_mode()
    def activations(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None = None) -> torch.Tensor:
        """Return the activations before the first dropout, which all passes share."""
        return self._prefix(x_NCHW, number_NM)[0]

    def _prefix(self, x_NCHW: torch.Tensor, number_NM: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        crops_NCHW, theta_N23 = self._network.crop(x_NCHW, number_NM)
        return _channels_last(self._network.features(crops_NCHW.to(self._dtype), number_NM)), theta_N23

    def _tail(self, k: int, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs of pass ``k``, N x P, from the activations before the first dropout."""
        for index, (rate, layer) in enumerate(self._steps):
            x = x.float() if index == len(self._steps) - 1 else x
            with _zeroed(x, self._positions(index, rate, x)[k]) if rate else contextlib.nullcontext():
                x = _channels_last(layer(x))
        return x.float()

    def _positions(self, step: int, rate: float, x: torch.Tensor) -> list[torch.Tensor]:
        """Return for each pass the positions of the activations that it drops in front of a step, in the order of `_flat`."""
        if step not in self._dropped:
            layer = sum(rate > 0 for rate, _ in self._steps[:step])
            dealt = itertools.islice(dealt_units(x[0].numel(), rate, [self._seed, layer]), self.num_passes)
            self._dropped[step] = [torch.from_numpy(np.sort(units)).to(x.device) for units in dealt]
        return self._dropped[step]


def dealt_units(num_units: int, rate: float, seed: int | Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the units that one pass after another drops: a shuffled deck of all units, dealt, and shuffled anew when it ends.

    A unit is in a pass's hand with probability ``rate`` exactly, as under independent masks. But hands differ in size by one
    at most, and so do the numbers of hands that two units are in, whatever the number of passes (sampling without replacement).
    What one unit alone does to the outputs is therefore the same in the mean over ``1 / rate`` passes, or a multiple of them,
    whatever the seed. Where ``1 / rate`` is a prime number, two units also share one hand in ``1 / rate**2`` passes, as often
    as independent ones would in the mean, so that the variance over these passes hardly depends on the seed either
    (`_lines`); elsewhere which units share a hand is left to chance. The scatter between passes that comes from the number of
    dropped units is lost, and the rest is kept.

    Parameters
    ----------
    num_units
        Number of activations in front of a layer.
    rate
        Probability that a unit is dropped.
    seed
        Of the shuffling.
    """
    generator = np.random.default_rng(seed)
    num_hands = round(1 / rate)
    if math.isclose(1 / rate, num_hands, rel_tol=1e-6) and _is_prime(num_hands):
        while True:
            yield from _lines(num_units, num_hands, generator)
    start, deck = generator.random(), np.empty(0, dtype=np.int64)
    for k in itertools.count():
        size = math.floor(start + (k + 1) * rate * num_units) - math.floor(start + k * rate * num_units)
        hand, deck = deck[:size], deck[size:]
        if len(hand) < size:
            # The units already in the hand go to the bottom.
            deck = generator.permutation(num_units)
            again = np.isin(deck, hand)
            deck = np.concatenate([deck[~again], deck[again]])
            hand, deck = np.concatenate([hand, deck[: size - len(hand)]]), deck[size - len(hand) :]
        yield hand


def _lines(num_units: int, num_hands: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the hands of as many decks as each has hands, a prime number.

    The units lie in random order on a grid of ``num_hands`` rows. A deck's hands are the parallel lines of one slope, and two
    points of different columns lie on one common line (the affine plane over a prime field: Bose 1938, Sankhya 3, 323). Columns
    in excess of ``num_hands`` form further planes, each shifted by chance in each deck.
    """
    cell = generator.permutation(num_units)
    row, column = cell % num_hands, cell // num_hands
    plane = column // num_hands
    for slope in generator.permutation(num_hands):
        shift = generator.integers(num_hands, size=num_units // num_hands**2 + 1)[plane]
        line = (row + slope * column + shift) % num_hands
        for hand in generator.permutation(num_hands):
            yield np.flatnonzero(line == hand)


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _steps(tail: nn.Sequential) -> Iterator[tuple[float, nn.Module]]:
    """Yield each layer with the rate of the dropout in front of it, 0 where there is none."""
    rate = 0.0
    for layer in tail:
        if isinstance(layer, nn.Dropout):
            rate = layer.p
        else:
            yield rate, layer
            rate = 0.0


@contextlib.contextmanager
def _zeroed(x: torch.Tensor, positions: torch.Tensor) -> Iterator[None]:
    """Zero some activations of every image in place, and put them back: other passes share them."""
    flat = _flat(x)
    values = flat[:, positions]
    flat.index_fill_(1, positions, 0.0)
    yield
    flat[:, positions] = values


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return activations in the order of `_flat`; only group normalisation on a GPU leaves them in another."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _flat(x: torch.Tensor) -> torch.Tensor:
    """Return a view of activations as N rows, in the order in which channels_last keeps them."""
    return (x if x.ndim == 2 else x.permute(0, 2, 3, 1)).view(len(x), -1)
