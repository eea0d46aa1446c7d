"""Fine-tuning: what a run takes from the bundle it starts from, which blocks are trained, and how fast.

Shape legend: N galaxies, C bands, H x W pixels, D targets.
"""

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any

from gampen_ray.config import FineTuneConfig, NetworkConfig, TrainConfig
from gampen_ray.config.base import given, replace, shown
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.model.images import ImagePreprocessing
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema

_HEAD = "head"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What a run takes from the bundle it starts from, besides the weights.

    Parameters
    ----------
    uri, digest, provenance
        Location, content fingerprint and provenance of the bundle.
    network
        Architecture, with the requested dropout rate.
    images
        Preprocessing; cutouts of the dataset are converted to its zero point and pixel scale.
    targets
        Schema if the head is kept; None: it is fitted on the new dataset.
    """

    uri: str
    digest: str
    provenance: dict[str, Any]
    network: NetworkConfig
    images: ImagePreprocessing
    targets: TargetSchema | None

    @classmethod
    def read(cls, config: TrainConfig, info: DatasetInfo) -> "Start":
        """Read the bundle that a config names, and check it against config and dataset.

        Raises
        ------
        UserError
            If there is no bundle, if the config contradicts it, or if the dataset differs in bands or in the units of kept
            targets.
        """
        uri = config.fine_tune.bundle
        digest = bundle_digest(uri, config.fine_tune.require_signature)
        bundle = load_bundle(uri, digest)
        return cls(
            uri=uri,
            digest=digest,
            provenance=bundle.provenance,
            network=_network(config, bundle),
            images=_images(config, bundle, info),
            targets=_targets(config, bundle, info) if config.fine_tune.head == "keep" else None,
        )

    @property
    def origin(self) -> dict[str, Any]:
        """URI, digest and provenance, for the provenance of the new bundle."""
        return {"uri": self.uri, "digest": self.digest, "provenance": self.provenance}


def parameter_groups(
    network: Network, learning_rate: float, decay: float, factors: Mapping[str, float] = types.MappingProxyType({})
) -> list[dict[str, Any]]:
    """Return an optimiser's parameter groups: the trainable weights by block, from output to input.

    Parameters
    ----------
    network
        Parameters that require no gradient are left out.
    learning_rate
        Peak learning rate of the last block.
    decay
        Factor on the learning rate from each block to the one before it.
    factors
        Further factors, by name of the block.
    """
    groups = []
    for behind, (name, block) in enumerate(reversed(network.blocks().items())):
        if trained := [parameter for layer in block for parameter in layer.parameters() if parameter.requires_grad]:
            groups.append({"params": trained, "lr": learning_rate * decay**behind * factors.get(name, 1.0)})
    return groups


def start_from(network: Network, bundle: Bundle, config: FineTuneConfig) -> None:
    """Load the bundle's weights into a new network, except a replaced head, and freeze blocks, in place.

    Raises
    ------
    UserError
        If a block to freeze does not exist or has new weights, or no block is left to train.
    """
    found = network.blocks()
    for (name, block), source in zip(found.items(), bundle.network.blocks().values(), strict=True):
        if name != _HEAD or config.head == "keep":
            for layer, trained in zip(block, source, strict=True):
                layer.load_state_dict(trained.state_dict())
    valid = [name for name in found if name != _HEAD or config.head == "keep"]
    for name in config.freeze:
        if name not in valid:
            raise UserError(f"fine_tune.freeze: {name!r} cannot be frozen; choose from {', '.join(valid)}")
        for layer in found[name]:
            layer.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError(f"fine_tune.freeze: {', '.join(config.freeze)} are all blocks; leave one out to train it")


def _network(config: TrainConfig, bundle: Bundle) -> NetworkConfig:
    rate = config.fine_tune.dropout_rate
    network = bundle.config if rate is None else replace(bundle.config, **{"backbone.dropout_rate": rate})
    _refuse_contradictions(config, "network", network)
    return network


def _images(config: TrainConfig, bundle: Bundle, info: DatasetInfo) -> ImagePreprocessing:
    """Return the bundle's preprocessing with the dataset's band names, and the dataset's units where the bundle has none."""
    images = bundle.images
    _refuse_contradictions(config, "images", images)
    if "conditions" in given(config) and config.conditions != images.condition_names:
        raise UserError(
            f"conditions: {shown(config.conditions)}, but fine_tune.bundle, {config.fine_tune.bundle}, has "
            f"{shown(images.condition_names)}; leave conditions out"
        )
    if len(info.bands) != len(images.bands):
        raise UserError(
            f"dataset: {config.dataset} has {len(info.bands)} bands, but fine_tune.bundle takes {len(images.bands)} "
            f"({', '.join(images.bands)}); give a dataset with {len(images.bands)}"
        )
    unknown = [name for name in ("zero_point_mag", "pixel_scale_arcsec") if getattr(images, name) is None]
    return dataclasses.replace(images, bands=info.bands, **{name: getattr(info, name) for name in unknown})


def _refuse_contradictions(config: TrainConfig, section: str, there: NetworkConfig | ImagePreprocessing) -> None:
    """Raise a UserError for a given field that contradicts the bundle."""
    for name in sorted(given(config)):
        if name.startswith(f"{section}."):
            path = name.split(".")
            asked = functools.reduce(getattr, path, config)
            brought = functools.reduce(getattr, path[1:], there)
            if asked != brought:
                bundle = f"fine_tune.bundle, {config.fine_tune.bundle}, has {shown(brought)}"
                raise UserError(f"{name}: {shown(asked)}, but {bundle}; leave it out")


def _targets(config: TrainConfig, bundle: Bundle, info: DatasetInfo) -> TargetSchema:
    transforms = {target.name: target.transform for target in bundle.targets}
    if "targets" in given(config) and {name: target.transform for name, target in config.targets.items()} != transforms:
        raise UserError(
            f"targets: {', '.join(config.targets)} and their transforms are not those of fine_tune.bundle "
            f"({', '.join(transforms)}); leave targets out, or give fine_tune.head 'replace'"
        )
    for target in bundle.targets:
        brought = {"unit": target.unit, "clip": target.clip_low}
        for field, value in brought.items():
            # A clip of 0 depends on the training values.
            asked = getattr(config.targets.get(target.name), field, value)
            if f"targets.{target.name}.{field}" in given(config) and asked not in (value, 0):
                raise UserError(
                    f"targets.{target.name}.{field}: {shown(asked)}, but fine_tune.bundle has {shown(value)}; leave it out, or "
                    "give fine_tune.head 'replace'"
                )
        unit = info.target_units.get(target.name, "")
        if unit and target.unit and unit != target.unit:
            raise UserError(
                f"targets.{target.name}: the unit is {unit!r} in the dataset, but {target.unit!r} in fine_tune.bundle; convert "
                "the column, or give fine_tune.head 'replace'"
            )
    return bundle.targets
