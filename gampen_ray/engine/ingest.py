"""Ingest in parallel: Ray hands parts of the plan to workers, each of which reads its files and writes its own shards."""

import dataclasses
import functools
import logging
import re
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from gampen_ray import storage
from gampen_ray.config import IngestConfig
from gampen_ray.data import ingest_plan, shards
from gampen_ray.data.shards import DatasetInfo
from gampen_ray.engine.cluster import task_cpus
from gampen_ray.engine.session import ray_session
from gampen_ray.errors import UserError
from gampen_ray.progress import Progress
from gampen_ray.provenance import RUN_FILE, claim_output

__all__ = ["IngestSummary", "ingest"]

logger = logging.getLogger(__name__)

# Reading cutouts waits for storage more than it computes.
_CPUS_PER_TASK = 0.5
# Folder of an unfinished ingest: a receipt per finished part.
_UNFINISHED = "ingest"


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestSummary:
    """What became of the catalogue's rows.

    Parameters
    ----------
    dataset
        URI of the dataset.
    num_rows
        Usable galaxies by split, or under ``"all"``.
    num_quarantined
        Rows in quarantine.
    reasons
        Rows in quarantine by kind of reason, the most common first.
    """

    dataset: str
    num_rows: dict[str, int]
    num_quarantined: int
    reasons: dict[str, int]


def ingest(config: IngestConfig) -> IngestSummary:
    """Turn FITS cutouts and a catalogue into a dataset of cutout shards.

    An interrupted ingest goes on where it was; a finished one with the same config and catalogue is left as it is.

    Raises
    ------
    UserError
        For a mistake in the config or the catalogue, an output that holds something else, or if no row can be used.
    """
    config = dataclasses.replace(
        config,
        images=storage.absolute(config.images),
        output=storage.absolute(config.output),
        catalog=storage.absolute(config.catalog) if config.catalog else "",
    )
    rows, info = ingest_plan.plan(config)
    claim_output(config.output, config, {"catalog": info.fingerprint})
    if storage.exists(storage.join(config.output, shards.DATASET_JSON)):
        logger.info("%s is complete; nothing to do", config.output)
        info = shards.read_dataset_info(config.output)
    else:
        counts = _pack_all(config, rows, info)
        num_rows = {split: counts[split] for split in _splits(config)}
        info = dataclasses.replace(info, num_rows=num_rows, num_quarantined=counts[shards.QUARANTINE])
        if not sum(num_rows.values()):
            raise _nothing_usable(config)
        shards.write_dataset_info(config.output, info)
    storage.delete(storage.join(config.output, _UNFINISHED))
    reasons = Counter(_kind(reason) for _, reason in _quarantined(config.output))
    logger.info("wrote %s: %s galaxies, %s in quarantine", config.output, sum(info.num_rows.values()), info.num_quarantined)
    for reason, count in reasons.most_common(5):
        logger.info("  %s in quarantine: %s", count, reason)
    return IngestSummary(
        dataset=config.output,
        num_rows=info.num_rows,
        num_quarantined=info.num_quarantined,
        reasons=dict(reasons.most_common()),
    )


def _pack_all(config: IngestConfig, rows: pa.Table, info: DatasetInfo) -> Counter[str]:
    per_part = config.galaxies_per_shard
    finished = {uri.rpartition("/")[2] for uri in storage.list_files(storage.join(config.output, _UNFINISHED))}
    counts: Counter[str] = Counter()
    units = []
    for part, start in enumerate(range(0, len(rows), per_part)):
        if _receipt(part) in finished:
            counts += Counter(storage.read_json(storage.join(config.output, _UNFINISHED, _receipt(part))))
        else:
            units.append({"part": part, "rows": ingest_plan.to_bytes(rows.slice(start, per_part))})
    with Progress("ingest", len(rows), "cutouts") as progress:
        progress.advance(counts.total())
        if not units:
            return counts
        with ray_session():
            # One block, and so one task, per unit.
            work = ray.data.from_items(units, override_num_blocks=len(units)).map(
                functools.partial(_pack_unit, config=config, info=info),
                compute=ray.data.TaskPoolStrategy(size=config.resources.num_workers or None),
                num_cpus=task_cpus(config.resources, _CPUS_PER_TASK),
            )
            for result in work.iter_rows():
                done = Counter({key: result[key] for key in (*_splits(config), shards.QUARANTINE)})
                counts.update(done)
                bad = counts[shards.QUARANTINE]
                progress.advance(done.total(), f"{bad:,} in quarantine" if bad else "")
    return counts


def _pack_unit(unit: dict[str, Any], *, config: IngestConfig, info: DatasetInfo) -> dict[str, int]:
    rows = ingest_plan.from_bytes(unit["rows"])
    counts = dict(ingest_plan.pack(rows, unit["part"], output=config.output, reader=config.reader, info=info))
    storage.write_json(storage.join(config.output, _UNFINISHED, _receipt(unit["part"])), counts)
    return counts


def _splits(config: IngestConfig) -> tuple[str, ...]:
    return shards.SPLITS if config.targets else (shards.ALL,)


def _receipt(part: int) -> str:
    return f"part-{part:06d}.json"


def _nothing_usable(config: IngestConfig) -> UserError:
    quarantined = _quarantined(config.output)
    common, count = Counter(_kind(reason) for _, reason in quarantined).most_common(1)[0]
    source, reason = next(row for row in quarantined if _kind(row[1]) == common)
    # Nothing is lost, and the next attempt may have other settings.
    for name in (shards.QUARANTINE, _UNFINISHED, RUN_FILE):
        storage.delete(storage.join(config.output, name))
    return UserError(
        f"none of the {len(quarantined):,} rows can be used; the most common reason ({count:,} rows), here for {source}: "
        f"{reason}"
    )


def _quarantined(dataset: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for uri in storage.list_files(storage.join(dataset, shards.QUARANTINE), ".parquet"):
        with storage.open_input(uri) as file:
            table = pq.read_table(file, columns=["source", "reason"])
        rows += [(row["source"], row["reason"]) for row in table.to_pylist()]
    return rows


def _kind(reason: str) -> str:
    return re.sub(r"\d[\d,.]*", "N", reason.partition(":")[0])
