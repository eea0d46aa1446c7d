"""Simulated galaxies as a dataset of cutout shards: its metadata, and the work on one range of galaxies."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gampen_ray import storage
from gampen_ray.config import SplitConfig
from gampen_ray.data import shards
from gampen_ray.data.quarantine import nothing_usable, read_quarantine
from gampen_ray.data.splits import assign_splits
from gampen_ray.provenance import content_fingerprint
from gampen_ray.simulation.galaxies import TARGETS
from gampen_ray.simulation.surveys import Survey

__all__ = ["Part", "Simulated", "dataset_info", "dataset_parts", "part_shards", "without_lost", "write_part"]


class Simulated(NamedTuple):
    """Columns as of `gampen_ray.simulation.scene.simulate`, and by their indices why galaxies could not be made."""

    columns: dict[str, np.ndarray]
    lost: dict[int, str]


# Settings of which the galaxies do not depend, or only by the content behind it.
_NO_CONTENT = ("galaxies_per_shard", "background")


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Galaxies, by their indices in ascending order, in shards numbered ``index``; of one tile, if they are added to tiles."""

    index: int
    galaxies: Sequence[int] | np.ndarray
    tile: int = -1

    @property
    def name(self) -> str:
        """Of the shards, without its suffix."""
        return f"part-{self.index:06d}"

    @property
    def num_rows(self) -> int:
        """Number of galaxies."""
        return len(self.galaxies)


def dataset_parts(galaxies: Mapping[int, Sequence[int] | np.ndarray], galaxies_per_shard: int) -> list[Part]:
    """Return the parts of a dataset, in order, from the galaxies of each tile."""
    runs = [
        (some[start : start + galaxies_per_shard], tile)
        for tile, some in galaxies.items()
        for start in range(0, len(some), galaxies_per_shard)
    ]
    return [Part(index, some, tile) for index, (some, tile) in enumerate(runs)]


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
    content: dict[str, Any] = {name: values for name, values in settings.items() if name not in _NO_CONTENT}
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
    """Return the indices of the galaxies of a part by the URI of the shard that holds them."""
    index_N = np.asarray(part.galaxies)
    split_N = assign_splits(index_N, split)
    return {shards.part_uri(output, name, part.index): index_N[split_N == name] for name in np.unique(split_N).tolist()}


def write_part(
    part: Part, *, output: str, split: SplitConfig, info: shards.DatasetInfo, simulate: Callable[[Part], Simulated]
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
        From a part to the columns of its galaxies, in ascending order, and the reasons of those that could not be made.
    """
    columns, lost = simulate(part)
    if lost:
        uri = shards.part_uri(output, shards.QUARANTINE, part.index)
        ids = [str(index) for index in lost]
        shards.write_quarantine(uri, object_id=ids, source=[info.source["background"]] * len(ids), reason=lost.values())
    # Last: they mark the part as finished.
    for uri, index_N in part_shards(part, output, split).items():
        there_N = np.isin(columns["object_id"], index_N)
        if there_N.any():
            shards.write_shard(uri, {name: values[there_N] for name, values in columns.items()}, info)


def without_lost(output: str, split: SplitConfig, info: shards.DatasetInfo) -> shards.DatasetInfo:
    """Return the metadata of a finished dataset with the counts of what could be made.

    Raises
    ------
    UserError
        If nothing could.
    """
    uris = storage.list_files(storage.join(output, shards.QUARANTINE), ".parquet")
    if not uris:
        return info
    ids = [shards.read_shard(uri, ["object_id"])["object_id"].to_numpy() for uri in uris]
    index_N = np.concatenate(ids).astype(np.int64)
    lost, counts = np.unique(assign_splits(index_N, split), return_counts=True)
    taken = dict(zip(lost.tolist(), counts.tolist(), strict=True))
    num_rows = {name: count - taken.get(name, 0) for name, count in info.num_rows.items()}
    if not any(num_rows.values()):
        raise nothing_usable("background: no galaxy found a place", read_quarantine(output), "galaxies")
    return dataclasses.replace(info, num_rows=num_rows, num_quarantined=len(index_N))
