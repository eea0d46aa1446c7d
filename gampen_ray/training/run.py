"""A training run before it begins: the config, checked against the training data and completed from it.

Shape legend: N galaxies, D targets, J conditions, C bands, H x W pixels.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from gampen_ray.config import NetworkConfig, TrainConfig
from gampen_ray.data import shards
from gampen_ray.data.cutouts import by_side, overlap
from gampen_ray.data.sources import Unit, pinned
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import load_bundle
from gampen_ray.inference.known_conditions import KnownConditions
from gampen_ray.model.images import Condition, ImagePreprocessing, Inputs, Matched
from gampen_ray.model.network import Network
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.prior import FEWEST, Prior
from gampen_ray.training.batches import Batch
from gampen_ray.training.fine_tune import Start, start_from
from gampen_ray.training.order import Order
from gampen_ray.training.reading import Columns, split_units

_SAMPLE_IMAGES, _SAMPLE_UNITS = 2_000, 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A config, completed from the training data and the bundle to start from; equal on all workers.

    Parameters
    ----------
    config
        The user's config.
    info
        Description of the dataset.
    network
        Architecture.
    targets, images
        Fitted on the training split, or taken from the bundle to start from.
    known_conditions
        Those of the training split; None: the network takes none.
    prior
        Of the targets in the training split; None: it is too small for one.
    start
        What fine-tuning starts from; None: the weights are random.
    splits
        Units of ``train`` and ``val``.
    """

    config: TrainConfig
    info: shards.DatasetInfo
    network: NetworkConfig
    targets: TargetSchema
    images: ImagePreprocessing
    # Two runs on one dataset have the same.
    known_conditions: KnownConditions | None = dataclasses.field(compare=False)
    prior: Prior | None = dataclasses.field(compare=False)
    start: Start | None
    splits: dict[str, tuple[Unit, ...]]

    def orders(self, rank: int = 0, world_size: int = 1) -> dict[str, Order]:
        """Return the order in which a worker reads each split."""
        seeds = {"train": self.config.seed, "val": None}
        return {
            split: Order(
                units=self.splits[split],
                batch_size=self.config.optimizer.batch_size,
                seed=seed,
                rank=rank,
                world_size=world_size,
            )
            for split, seed in seeds.items()
        }

    @property
    def inputs(self) -> dict[str, str | dict[str, str]]:
        """Fingerprint of the content of each input, by config field."""
        units = [unit for split in self.splits.values() for unit in split]
        inputs = {"dataset": self.info.fingerprint, "dataset shard": pinned(self.config.dataset, units)}
        return inputs | {"fine_tune.bundle": self.start.digest} if self.start else inputs

    @property
    def columns(self) -> Columns:
        """What is read of each galaxy."""
        return Columns(targets=self.targets, conditions=self.images.condition_names, noise_planes=self.images.noise_planes)

    def network_inputs(self, batch: Batch) -> Inputs:
        """Return the network's inputs for galaxies of the dataset."""
        image_NCHW, number_NM = self._unpadded(batch, self.images.inputs)
        assert image_NCHW is not None
        return Inputs(image_NCHW, number_NM)

    def numbers(self, batch: Batch) -> torch.Tensor | None:
        """Return only the numbers of `network_inputs`."""
        return self._unpadded(batch, lambda *cutouts: (self.images.numbers(*cutouts),))[0]

    def inputs_and_plain_numbers(self, batch: Batch) -> tuple[Inputs, torch.Tensor]:
        """Return `network_inputs`, and what `gampen_ray.model.images.ImagePreprocessing.plain_numbers` measures."""
        images = self.images
        parts = self._unpadded(batch, lambda matched, *rest: (*images.inputs(matched, *rest), images.plain_numbers(matched)))
        image_NCHW, number_NM, plain_NQC = parts
        assert image_NCHW is not None and plain_NQC is not None
        return Inputs(image_NCHW, number_NM), plain_NQC

    def _unpadded(
        self, batch: Batch, work: Callable[[Matched, torch.Tensor], tuple[torch.Tensor | None, ...]]
    ) -> tuple[torch.Tensor | None, ...]:
        # What is made of a batch by its cutouts and conditions, as `Predictor` sees them: zero-padding has no sky and no noise.
        parts, order, device = [], [], batch.cutout_NCHW.device
        for rows, inside in by_side(batch.side_N, batch.cutout_NCHW.shape[-1]):
            matched = self.images.match(batch.cutout_NCHW[rows][..., inside, inside], **self.cutout_units)
            parts.append(work(matched, batch.condition_NJ[rows]))
            order.append(np.arange(len(batch.side_N))[rows])
        if len(parts) == 1:
            return parts[0]
        back_N = torch.from_numpy(np.argsort(np.concatenate(order))).to(device)
        return tuple(None if values[0] is None else torch.cat(values)[back_N] for values in zip(*parts, strict=True))

    @property
    def cutout_units(self) -> dict[str, float | None]:
        """Zero point and pixel scale of the dataset's cutouts."""
        return {"zero_point_mag": self.info.zero_point_mag, "pixel_scale_arcsec": self.info.pixel_scale_arcsec}


def prepare(config: TrainConfig) -> Run:
    """Read the dataset's description, its targets and a sample of its images, and check the config against them.

    Raises
    ------
    UserError
        If the dataset lacks a split, a target or a condition, if one of these holds no numbers, if a value is not finite or
        outside the domain of its transform, or if the network or the bundle to start from does not fit.
    """
    info = shards.read_dataset_info(config.dataset)
    for split in ("train", "val"):
        if not info.num_rows.get(split):
            raise UserError(f"dataset: {config.dataset} has no galaxies in split {split!r}; make it with split.{split} above 0")
    start = Start.read(config, info) if config.fine_tune.bundle else None
    columns = shards.columns(config.dataset, "train", info)
    targets, prior = _targets(config, info, start.targets if start else None, columns)
    splits = {split: split_units(config.dataset, split, info) for split in ("train", "val")}
    conditions, known = _conditions(
        config, info, start.images.condition_names if start else config.conditions, columns, targets
    )
    if start:
        network, images = start.network, dataclasses.replace(start.images, conditions=conditions)
    else:
        network = config.network
        images = _fitted_images(config, info, splits["train"], conditions)
    if images.noise_planes:
        shards.require_noise_planes(config.dataset, info)
    run = Run(
        config=config,
        info=info,
        network=network,
        targets=targets,
        images=images,
        known_conditions=known,
        prior=prior,
        start=start,
        splits=splits,
    )
    _check_network(run)
    return run


def with_config(run: Run, config: TrainConfig) -> Run:
    """Return a prepared run with another config, which may differ in images, network, fine_tune and optimizer only.

    Raises
    ------
    UserError
        As `prepare`.
    """
    changed = dataclasses.replace(run, config=config)
    if not run.start:
        images = run.images
        if config.images != run.config.images:
            images = _fitted_images(config, run.info, run.splits["train"], run.images.conditions)
        if images.noise_planes != run.images.noise_planes:
            raise UserError(
                "images.noise_planes: cannot differ between trials, which share the data that was read; leave it out"
            )
        changed = dataclasses.replace(changed, network=config.network, images=images)
    _check_network(changed)
    return changed


def _conditions(
    config: TrainConfig, info: shards.DatasetInfo, names: Sequence[str], columns: pa.Schema, targets: TargetSchema
) -> tuple[tuple[Condition, ...], KnownConditions | None]:
    """Return the conditions, with the ranges of the training split, and where they lie together; check both splits."""
    _check_columns(config, columns, [f"conditions.{name}" for name in names])
    if both := set(names) & set(targets.names):
        raise UserError(f"conditions: {', '.join(sorted(both))} is also a target; remove it from one of the two")
    values = {split: [column_values(config.dataset, split, [name], info)[:, 0] for name in names] for split in ("val", "train")}
    for name, value_N in zip(names, values["val"], strict=True):
        Condition.check(name, value_N)
    conditions = tuple(Condition.fit(name, value_N) for name, value_N in zip(names, values["train"], strict=True))
    return conditions, KnownConditions.fit(np.stack(values["train"], axis=1)) if names else None


def _fitted_images(
    config: TrainConfig, info: shards.DatasetInfo, units: Sequence[Unit], conditions: tuple[Condition, ...]
) -> ImagePreprocessing:
    return ImagePreprocessing.fit(
        dataclasses.replace(config.images, size=config.images.size or info.cutout_size),
        info.bands,
        sample_images(units),
        zero_point_mag=info.zero_point_mag,
        pixel_scale_arcsec=info.pixel_scale_arcsec,
        conditions=conditions,
    )


def sample_images(units: Sequence[Unit]) -> np.ndarray:
    """Return up to 2,000 images (N x C x H x W) from the first rows of up to 20 units, evenly spaced over a split.

    Where some are zero-padded, those of the median side or more, without what is beyond it.
    """
    chosen = [units[i] for i in sorted({round(i) for i in np.linspace(0, len(units) - 1, _SAMPLE_UNITS)})]
    share = math.ceil(_SAMPLE_IMAGES / len(chosen))
    wanted = ["image", shards.SIDE]
    tables = [next(shards.stream_shard(unit.uri, range(unit.start, unit.stop), wanted, share))[0] for unit in chosen]
    images_NCHW = np.concatenate([shards.images(table) for table in tables])[:_SAMPLE_IMAGES]
    side_N = np.concatenate([shards.sides(table) for table in tables])[:_SAMPLE_IMAGES]
    side = int(np.quantile(side_N, 0.5, method="lower"))
    inside = overlap(images_NCHW.shape[-1], side)[0]
    return images_NCHW[side_N >= side][..., inside, inside]


def _check_network(run: Run) -> None:
    config, network = run.config, build_network(run)
    if not config.optimizer.epochs and (run.start or not network.merge):
        why = "the network is that of fine_tune.bundle" if run.start else "the network is given none: set images.measure"
        raise UserError(f"optimizer.epochs: 0 trains on numbers alone, and {why}; or give 1 or more")
    dropout = [layer for layer in network.modules() if isinstance(layer, nn.Dropout) and layer.p > 0]
    if not dropout and config.calibration.num_passes > 1:
        rate = "fine_tune.dropout_rate" if run.start else "network.backbone.dropout_rate"
        raise UserError(
            f"calibration.num_passes: {config.calibration.num_passes}, but {rate} is 0, so all passes are identical; "
            "set it to 1, or give a dropout rate above 0"
        )


def _targets(
    config: TrainConfig, info: shards.DatasetInfo, kept: TargetSchema | None, columns: pa.Schema
) -> tuple[TargetSchema, Prior | None]:
    """Return the kept schema, or one fitted on the training split, and the prior; check both splits against the schema."""
    names = kept.names if kept else tuple(config.targets)
    if not names:
        raise UserError("targets: none given; name at least one column of the dataset")
    _check_columns(config, columns, [f"targets.{name}" for name in names])
    split = "train"
    try:
        values_ND = column_values(config.dataset, split, names, info)
        targets = kept or TargetSchema.fit(config.targets, values_ND, info.target_units)
        targets.standardise(values_ND)
        prior = _prior(values_ND, targets)
        split = "val"
        targets.standardise(column_values(config.dataset, split, names, info))
    except UserError as error:
        raise UserError(f"dataset: {config.dataset}, split {split!r}: {error}") from None
    return targets, prior


def _check_columns(config: TrainConfig, columns: pa.Schema, fields: Sequence[str]) -> None:
    """Raise a UserError for a field whose last part names no column of numbers."""
    numbers = ", ".join(column.name for column in columns if column.name != "object_id" and shards.holds_numbers(column))
    for field in fields:
        name = field.partition(".")[2]
        if name not in columns.names:
            raise UserError(f"{field}: {config.dataset} has no such column; name one of {numbers}")
        if not shards.holds_numbers(column := columns.field(name)):
            raise UserError(
                f"{field}: the column holds {column.type}, not numbers, in {config.dataset}; convert it, or "
                f"name one of {numbers}"
            )


def column_values(dataset: str, split: str, names: Sequence[str], info: shards.DatasetInfo) -> np.ndarray:
    """Return the values of columns of a split, N x number of names."""
    tables = [shards.read_shard(uri, list(names), info=info) for uri in shards.shard_uris(dataset, split)]
    return np.concatenate([np.stack([table[name].to_numpy() for name in names], axis=1) for table in tables])


def training_prior(dataset: str, targets: TargetSchema) -> Prior | None:
    """Return the distribution of the targets in the training split of a dataset; None if it is too small for one."""
    return _prior(column_values(dataset, "train", targets.names, shards.read_dataset_info(dataset)), targets)


def _prior(values_ND: np.ndarray, targets: TargetSchema) -> Prior | None:
    return Prior.fit(values_ND, targets) if len(values_ND) >= FEWEST else None


def build_network(run: Run) -> Network:
    """Return the network before training; its random weights depend on the seed alone.

    Raises
    ------
    UserError
        If the architecture does not fit the images, or a block cannot be frozen.
    """
    torch.manual_seed(run.config.seed)
    network = Network.of(run.network, run.images, len(run.targets))
    if run.start:
        start_from(network, load_bundle(run.start.uri, run.start.digest), run.config.fine_tune)
    return network
