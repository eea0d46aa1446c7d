"""The `ingest` verb: plans all rows; each Ray task then reads the files of some rows and writes their shards."""

import dataclasses
import functools
import logging
import typing
from collections import Counter
from collections.abc import Callable, Mapping

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import CutoutsConfig, TaskResources, TilesConfig
from gampen_ray.config.base import Advanced, config_class, default, replace
from gampen_ray.config.inputs import refuse_without_footprint
from gampen_ray.config.parts import GALAXIES_PER_FILE
from gampen_ray.messages import counted

if typing.TYPE_CHECKING:
    from gampen_ray.data.packing import PlannedRows, Rows
    from gampen_ray.data.shards import DatasetInfo
    from gampen_ray.engine.resources import Workers

__all__ = ["IngestConfig", "IngestSummary", "ingest"]

logger = logging.getLogger(__name__)

# Reading cutouts mostly waits for storage.
_CPUS_PER_TASK = 0.5
_RECEIPTS = "ingest"
"""Folder of an unfinished ingest: a file for each finished part with its counts, as a part may have no shard in a split."""


@config_class
class IngestConfig(TilesConfig, CutoutsConfig):
    """Turn cutouts and a catalogue into a dataset of cutout shards; unusable files are quarantined with a reason."""

    output: str
    """Dataset to create: a folder or s3:// URI."""
    galaxies_per_shard: typing.Annotated[int, Advanced()] = pydantic.Field(default=GALAXIES_PER_FILE, ge=1)
    """Galaxies per Parquet file."""
    resources: TaskResources = default(TaskResources)
    """Resources requested from Ray."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """Numbers of usable and quarantined rows.

    Parameters
    ----------
    dataset
        URI of the dataset.
    num_rows
        Usable galaxies by split, or under ``"all"``.
    num_quarantined
        Rows in quarantine.
    reasons
        Rows in quarantine by kind of reason, most common first; each kind is named by its first reason and file.
    """

    dataset: str
    num_rows: dict[str, int]
    num_quarantined: int
    reasons: dict[str, int]


def _then(run: Mapping[str, str]) -> str:
    if run["targets"] == "[]":
        return f"infer --bundle BUNDLE --dataset {run['output']} --output CATALOG"
    return f"train --dataset {run['output']} --targets TARGETS --output RUN"


@verb("ingest", positional="images", then=_then)
def ingest(config: IngestConfig) -> IngestSummary:
    """Turn cutouts and a catalogue into a dataset of cutout shards.

    An interrupted ingest is resumed; a finished one with the same config, catalogue and files is left unchanged.

    Raises
    ------
    UserError
        For a mistake in the config or the catalogue, an output that holds something else, or if no row can be used.
    """
    from gampen_ray import storage
    from gampen_ray.commands import ingest_tiles
    from gampen_ray.commands.tile_plans import PLAN
    from gampen_ray.data import ingest_plan, packing, quarantine, shard_index, shards
    from gampen_ray.data.tiles.reading import is_footprint
    from gampen_ray.run_folder import RunFolder

    config = replace(
        config,
        images=storage.absolute(config.images),
        output=storage.absolute(config.output),
        catalog=storage.absolute(config.catalog) if config.catalog else "",
    )
    tiles = is_footprint(config.images)
    if not tiles:
        refuse_without_footprint(config, TilesConfig)
    rows, info = (None, ingest_tiles.dataset_info(config)) if tiles else ingest_plan.plan(config)
    inputs, moving = {"images or catalog": info.fingerprint}, ("images", "catalog")
    work = "the sources of the catalogue on the tiles" if rows is None else counted(len(rows), "galaxy", "galaxies")
    claim = (config.output, "ingest", config, inputs)
    with RunFolder.open(*claim, complete=shards.DATASET_JSON, ignored=moving, work=work) as folder:
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            info = shards.read_dataset_info(config.output)
        else:
            if rows is None:
                info, parts, num_unassigned = ingest_tiles.parts(config, folder, info)
                counts, remarks = _pack_all(config, info, parts, ingest_tiles.read)
                counts[shards.QUARANTINE] += num_unassigned
            else:
                starts = range(0, len(rows), config.galaxies_per_shard)
                some = (rows.slice(start, config.galaxies_per_shard) for start in starts)
                parts = [_Part(index, len(part), packing.PlannedRows(part)) for index, part in enumerate(some)]
                counts, remarks = _pack_all(config, info, parts, _read)
            _log_remarks(remarks, info, counts.total())
            num_bad = counts.pop(shards.QUARANTINE)
            folder.check_lock()
            if not counts.total():
                bad = quarantine.read_quarantine(config.output)
                # No shard is lost, and the next attempt may have other settings.
                for name in (shards.QUARANTINE, _RECEIPTS, PLAN):
                    storage.delete(folder.path(name))
                folder.release_claim()
                raise quarantine.nothing_usable(f"images: none of the {num_bad:,} rows can be used", bad, "rows")
            info = dataclasses.replace(info, num_rows=dict(counts), num_quarantined=num_bad)
            shard_index.write_index(config.output, info)
            shards.write_dataset_info(config.output, info)
        for name in (_RECEIPTS, PLAN):
            storage.delete(folder.path(name))
    logger.info("wrote %s: %s galaxies, %s in quarantine", config.output, sum(info.num_rows.values()), info.num_quarantined)
    return IngestSummary(
        dataset=config.output,
        num_rows=info.num_rows,
        num_quarantined=info.num_quarantined,
        reasons=quarantine.log_reasons(quarantine.read_quarantine(config.output)),
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Planned rows for the shards of one index."""

    index: int
    num_rows: int
    rows: "PlannedRows"
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"part-{self.index:06d}.json"


def _log_remarks(remarks: Counter[str], info: "DatasetInfo", total: int) -> None:
    """Log what was done to the files, and seen in them, with numbers."""
    side = info.cutout_size
    for name, text in {
        "cropped": f"have more than {side} pixels on a side: what lies outside the central {side} x {side} was cropped",
        "padded": f"have fewer than {side} pixels on a side and were zero-padded",
        "filled": "have pixels without a value, which were filled as reader.nan_policy says" + _by_band(remarks),
        "resampled": "have bands on different grids, of which all but those on the first band's were resampled",
        "misplaced": "have a WCS whose centre is more than 5 pixels from the catalogue's position",
    }.items():
        if remarks[name]:
            logger.warning("%s of %s cutouts %s", f"{remarks[name]:,}", f"{total:,}", text)


def _by_band(remarks: Counter[str]) -> str:
    counts = [f"{name.removeprefix('filled ')} {count:,}" for name, count in sorted(remarks.items()) if name[:7] == "filled "]
    return f": {', '.join(counts)}" if len(counts) > 1 else ""


def _pack_all(
    config: IngestConfig, info: "DatasetInfo", parts: list[typing.Any], read: Callable[..., "Rows"]
) -> tuple[Counter[str], Counter[str]]:
    """Write the missing shards, and return the number of rows of each split and in quarantine, and the remarks."""
    from gampen_ray import documents, storage
    from gampen_ray.data import shards
    from gampen_ray.engine.units import run_units

    receipts = {uri.rpartition("/")[2]: uri for uri in storage.list_files(storage.join(config.output, _RECEIPTS))}
    splits = shards.SPLITS if config.targets else (shards.ALL,)
    counts: Counter[str] = Counter(dict.fromkeys((*splits, shards.QUARANTINE), 0))
    remarks: Counter[str] = Counter()

    def receive(done: dict[str, dict[str, int]], _: "Workers | None" = None) -> str:
        counts.update(done["counts"])
        remarks.update(done["remarks"])
        bad = counts[shards.QUARANTINE]
        return f"{bad:,} in quarantine" if bad else ""

    for part in parts:
        if part.name in receipts:
            receive(documents.read(dict[str, dict[str, int]], receipts[part.name], "delete it: its shards are made again"))

    how: dict[str, typing.Any] = {"config": config, "info": info}
    work, write = functools.partial(_worked, read=read, **how), functools.partial(_written, **how)
    total = sum(part.num_rows for part in parts)
    job = {"total": total, "noun": "cutouts", "resources": config.resources, "cpus_per_task": _CPUS_PER_TASK}
    todo = [part for part in parts if part.name not in receipts]
    run_units("ingest", todo, lambda _: work, write=write, receive=receive, **job)
    return counts, remarks


def _read(part: _Part, *, config: IngestConfig, info: "DatasetInfo") -> "Rows":
    from gampen_ray.data import packing

    return packing.read_rows(packing.refused(part.rows.table, part.refused), config.reader, info)


def _worked(part: typing.Any, *, read: Callable[..., "Rows"], **how: typing.Any) -> tuple[typing.Any, "Rows"]:
    return part, read(part, **how)


def _written(result: tuple[typing.Any, "Rows"], *, config: IngestConfig, info: "DatasetInfo") -> dict[str, dict[str, int]]:
    """Write the shards and the quarantine file of a part, and last its receipt, which is returned."""
    from gampen_ray import storage
    from gampen_ray.data import packing

    part, rows = result
    counts = packing.write_rows(rows, part.index, output=config.output, info=info)
    receipt = {"counts": dict(counts), "remarks": dict(rows.remarks)}
    storage.write_json(storage.join(config.output, _RECEIPTS, part.name), receipt)
    return receipt
