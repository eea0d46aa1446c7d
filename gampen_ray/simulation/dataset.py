"""Simulated galaxies as a dataset of cutout shards: its metadata, and the work on one range of galaxies."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from gampen_ray.config import SplitConfig
from gampen_ray.data import shards
from gampen_ray.data.splits import assign_splits
from gampen_ray.provenance import content_fingerprint
from gampen_ray.simulation.galaxies import TARGETS
from gampen_ray.simulation.surveys import Survey

__all__ = ["Part", "dataset_info", "dataset_parts", "part_shards", "write_part"]


@dataclasses.dataclass(frozen=True)
class Part:
    """The galaxies with indices ``start`` to ``stop - 1``, in shards numbered ``index``."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of the shards, without its suffix."""
        return f"part-{self.index:06d}"

    @property
    def num_rows(self) -> int:
        """Number of galaxies."""
        return self.stop - self.start


def dataset_parts(num_galaxies: int, galaxies_per_shard: int) -> list[Part]:
    """Return the parts of a dataset, in order."""
    starts = range(0, num_galaxies, galaxies_per_shard)
    return [Part(index, start, min(start + galaxies_per_shard, num_galaxies)) for index, start in enumerate(starts)]


def dataset_info(
    survey: Survey, split: SplitConfig, settings: Mapping[str, Any], inputs: Mapping[str, str] | None = None
) -> shards.DatasetInfo:
    """Return the metadata of a dataset, with its row counts.

    Parameters
    ----------
    survey
        Instrument and depth.
    split
        Which galaxy is in which split.
    settings
        Plain values: ``num_galaxies``, ``cutout_size`` and what else the galaxies depend on.
    inputs
        Hash of the content of files, by the dotted name of the setting that says where they lie.
    """
    content: dict[str, Any] = {name: value for name, value in settings.items() if name != "galaxies_per_shard"}
    content |= {"survey": dataclasses.asdict(survey), "inputs": dict(inputs or {})}
    if inputs:
        content["scene"] = {
            section: {name: value for name, value in values.items() if f"scene.{section}.{name}" not in inputs}
            for section, values in content["scene"].items()
        }
    index_N = np.arange(settings["num_galaxies"])
    splits, counts = np.unique(assign_splits(index_N, split), return_counts=True)
    return shards.DatasetInfo(
        bands=(survey.band,),
        cutout_size=settings["cutout_size"],
        pixel_scale_arcsec=survey.pixel_scale_arcsec,
        zero_point_mag=survey.zero_point_mag,
        flux_unit=survey.flux_unit,
        survey=survey.name,
        target_units=dict(zip(TARGETS, ("", "arcsec", survey.flux_unit), strict=True)),
        fingerprint=content_fingerprint(content, index_N),
        source=dict(settings),
        num_rows=dict.fromkeys(shards.SPLITS, 0) | dict(zip(splits.tolist(), counts.tolist(), strict=True)),
    )


def part_shards(part: Part, output: str, split: SplitConfig) -> dict[str, np.ndarray]:
    """Return the galaxies of a part, counted from its first one, by the URI of the shard that holds them."""
    split_N = assign_splits(np.arange(part.start, part.stop), split)
    return {shards.part_uri(output, name, part.index): np.flatnonzero(split_N == name) for name in np.unique(split_N).tolist()}


def write_part(
    part: Part, *, output: str, split: SplitConfig, info: shards.DatasetInfo, simulate: Callable[..., dict[str, np.ndarray]]
) -> None:
    """Simulate the galaxies of a part and write its shards.

    Parameters
    ----------
    part
        Of `dataset_parts`.
    output, info
        The dataset.
    split
        Which galaxy is in which split.
    simulate
        `gampen_ray.simulation.scene.simulate`, with all arguments bound but ``start`` and ``stop``.
    """
    columns = simulate(start=part.start, stop=part.stop)
    for uri, rows in part_shards(part, output, split).items():
        shards.write_shard(uri, {name: values[rows] for name, values in columns.items()}, info)
