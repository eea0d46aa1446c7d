"""Mutated bundles: ``bundle.json``, ``weights.safetensors``, ``novelty.safetensors``,
``conditions.safetensors`` or the checksums, loaded and used."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from gampen_ray.config.base import to_dict
from gampen_ray.inference.bundle import CHECKSUMS, Bundle, load_bundle
from gampen_ray.inference.card import CARD, describe
from gampen_ray.inference.known_conditions import KnownConditions
from gampen_ray.inference.out_of_distribution import OutOfDistribution, features
from gampen_ray.inference.ranges import Ranges
from gampen_ray.model.images import Condition
from gampen_ray.posterior.prior import Prior
from gampen_ray.reports.card import card_text
from gampen_ray.storage import write_json
from tests.fuzz.mutations import damaged, document
from tests.networks import WITH_NUMBERS, bundle, card, galaxies, train_config

_DESCRIPTION, _WEIGHTS = "bundle.json", "weights.safetensors"
_NOVELTY, _CONDITIONS = "novelty.safetensors", "conditions.safetensors"


def files(rng: np.random.Generator, number: int, folder: Path) -> tuple[str, Callable[[], Any]]:
    """Mutate one file of a bundle, half of them the description; mostly, the checksums are those of the mutated files."""
    with_numbers = rng.random() < 0.5
    content = dict(_intact(folder, with_numbers))
    name = (_DESCRIPTION, _WEIGHTS, _DESCRIPTION, _NOVELTY, _DESCRIPTION, _WEIGHTS, _DESCRIPTION, CARD)[number % 8]
    if name == _NOVELTY and with_numbers and rng.random() < 0.5:
        name = _CONDITIONS
    if rng.random() < 0.03:
        name = CHECKSUMS
    if name in (_DESCRIPTION, CARD):
        content[name] = document(json.loads(content[name]), rng)
    elif rng.random() < 0.5 and name != CHECKSUMS:
        content[name] = _other_tensors(content[name], rng)
    else:
        content[name] = damaged(content[name], rng)
    if name != CHECKSUMS and rng.random() < 0.97:
        sums = [(hashlib.sha256(data).hexdigest(), one) for one, data in content.items() if one not in (CHECKSUMS, CARD)]
        content[CHECKSUMS] = "".join(f"{digest}  {one}\n" for digest, one in sums).encode()
    for one, data in content.items():
        (folder / one).write_bytes(data)

    def read() -> None:
        card_text(describe(str(folder)))
        columns = galaxies(2)
        conditions = {"psf": np.array([1.0, 2.0])} if with_numbers else None
        load_bundle(str(folder)).predict(columns["image"], conditions=conditions, num_passes=2, device="cpu")

    return name, read


@functools.cache
def _bundle(with_numbers: bool) -> Bundle:
    """Return a bundle with all that a bundle can hold."""
    made = bundle()
    if with_numbers:
        import dataclasses

        from gampen_ray.model.network import Network

        images = dataclasses.replace(made.images, sky="border", measure=True, zero_point_mag=25.0, pixel_scale_arcsec=0.2)
        images = dataclasses.replace(images, conditions=(Condition(name="psf", low=0.5, high=1.5, mean=1.0),))
        torch.manual_seed(0)
        network = Network.of(WITH_NUMBERS, images, 2).eval()
        known = KnownConditions.fit(np.linspace(0.5, 1.5, 30)[:, None])
        made = dataclasses.replace(made, images=images, network=network, config=WITH_NUMBERS, known_conditions=known)
    import dataclasses

    image_NCHW = torch.from_numpy(galaxies(50)["image"])
    with torch.no_grad():
        inputs = made.images.inputs(image_NCHW, torch.ones(50, len(made.images.conditions)))
        feature_NF = features(made.network.prefix(*inputs)[0])
    numbers_NQC = made.images.plain_numbers(image_NCHW).numpy()
    novelty = OutOfDistribution.fit(feature_NF[:30], feature_NF[30:])
    provenance = {
        "date": "2026-11-29",
        "dataset": {"survey": "none", "num_rows": {"train": 40}, "made_by": {"scene": {"size": 20}}},
        "train": to_dict(train_config("d", "o")),
    }
    values_ND = np.stack([galaxies(100)[name] for name in made.targets.names], axis=1)
    prior = Prior.fit(values_ND, made.targets)
    return dataclasses.replace(made, novelty=novelty, ranges=Ranges.fit(numbers_NQC), prior=prior, provenance=provenance)


_CONTENT: dict[bool, dict[str, bytes]] = {}


def _intact(folder: Path, with_numbers: bool) -> dict[str, bytes]:
    if with_numbers not in _CONTENT:
        _bundle(with_numbers).save(str(folder))
        write_json(str(folder / CARD), to_dict(card()))
        _CONTENT[with_numbers] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    return _CONTENT[with_numbers]


def _other_tensors(data: bytes, rng: np.random.Generator) -> bytes:
    tensors = safetensors.torch.load(data)
    for _ in range(rng.integers(1, 3)):
        name = str(rng.choice(list(tensors)))
        other_tensor(tensors, name, rng)
        if not tensors:
            break
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def other_tensor(tensors: dict[str, torch.Tensor], name: str, rng: np.random.Generator) -> None:
    """Change, remove or rename one of the tensors."""
    tensor = tensors[name]
    kind = str(rng.choice(["remove", "rename", "dtype", "shape", "value", "value", "scalar", "empty"]))
    if kind == "remove":
        del tensors[name]
    elif kind == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    elif kind == "dtype":
        kinds = [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
        tensors[name] = tensor.to(kinds[int(rng.integers(len(kinds)))])
    elif kind == "shape":
        shapes = [
            tensor[None],
            tensor.flatten(),
            tensor[:1] if tensor.ndim else tensor,
            tensor.transpose(0, -1) if tensor.ndim else tensor,
        ]
        tensors[name] = shapes[int(rng.integers(len(shapes)))]
    elif kind == "value" and tensor.is_floating_point():
        other = tensor.clone().contiguous()
        value = float(rng.choice([np.nan, np.inf, -np.inf, 1e30, 0.0]))
        if rng.random() < 0.5 and other.numel():
            other.view(-1)[int(rng.integers(other.numel()))] = value
        else:
            other.fill_(value)
        tensors[name] = other
    elif kind == "scalar":
        tensors[name] = torch.tensor(1.0)
    else:
        tensors[name] = torch.zeros(0)
