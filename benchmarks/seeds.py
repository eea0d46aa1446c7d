"""How far posteriors depend on the seed of the dropout masks: dealt masks against independent ones, by number of passes.

`python benchmarks/seeds.py BUNDLE DATASET` prints JSON: for each kind of masks and number of passes the differences between all
pairs of some seeds (`gampen_ray.posterior.seeds`), of the median pair and of the worst one, each of the worst target.
Shape legend: N galaxies, K passes, P network outputs.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from unittest import mock

import numpy as np
import torch
from torch import nn

from gampen_ray.data import shards
from gampen_ray.inference import mc_dropout
from gampen_ray.inference.bundle import Bundle, load_bundle
from gampen_ray.model.images import Inputs
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.seeds import seed_agreement

_SEEDS = 6


def independent_units(num_units: int, rate: float, seed: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the units that one pass after another drops, each on its own with probability ``rate``."""
    generator = np.random.default_rng(seed)
    while True:
        yield np.flatnonzero(generator.random(num_units) < rate)


def differences(bundle: Bundle, inputs: Inputs, passes: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Return by number of passes and figure: of the median galaxy and of 99 %, for the median pair and for the worst pair."""
    outputs = [mc_dropout.ThinnedNetworks(bundle.network, max(passes), seed)(*inputs).outputs_NKP for seed in range(_SEEDS)]
    result = {}
    for count in passes:
        # Pass k is the same whatever the number of passes.
        components = [bundle.network.likelihood.components(outputs_NKP[:, :count].double()) for outputs_NKP in outputs]
        mixtures = [bundle.calibration(Mixture(*pair, bundle.targets)) for pair in components]
        found = [seed_agreement(*pair).differences for pair in itertools.combinations(mixtures, 2)]
        result[str(count)] = {
            figure: [
                float(summary([max(getattr(row, key) for row in rows if row.figure == figure) for rows in found]))
                for summary in (np.median, np.max)
                for key in ("median", "largest")
            ]
            for figure in ("std", "width_95", "mean")
        }
    return result


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("dataset")
    parser.add_argument("--passes", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--galaxies", type=int, default=300)
    parser.add_argument("--rate", type=float, help="dropout rate of the passes; left out: the bundle's")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    for layer in bundle.network.modules():
        if isinstance(layer, nn.Dropout) and args.rate:
            layer.p = args.rate
    names = bundle.images.condition_names
    table = shards.read_shard(shards.shard_uris(args.dataset, "val")[0], ["image", *names])[: args.galaxies]
    conditions = [torch.from_numpy(table[name].to_numpy()) for name in names]
    image_NCHW = torch.from_numpy(shards.images(table))
    inputs = bundle.images.inputs(image_NCHW, torch.stack(conditions, dim=1) if conditions else None)
    result = {"dealt": differences(bundle, inputs, args.passes)}
    with mock.patch.object(mc_dropout, "dealt_units", independent_units):
        result["independent"] = differences(bundle, inputs, args.passes)
    json.dump(result, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
