"""The `footprint` verb: lists a survey's tiles; each Ray task then reads the headers of some of them and writes their rows."""

import dataclasses
import functools
import logging
import sys
import typing
from collections.abc import Mapping

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import TaskResources
from gampen_ray.config.base import config_class, default, replace
from gampen_ray.errors import UserError

if typing.TYPE_CHECKING:
    from gampen_ray.data.tiles.footprint import BandFile, FootprintInfo
    from gampen_ray.data.tiles.listing import Entry
    from gampen_ray.data.tiles.preset import TileSurvey
    from gampen_ray.engine.resources import Workers

    _Described = tuple[int, list[BandFile], list[tuple[str, str, str]]]

__all__ = ["FootprintConfig", "footprint"]

logger = logging.getLogger(__name__)

# Reading headers mostly waits for storage.
_CPUS_PER_TASK = 0.5


@config_class
class FootprintConfig:
    """Index the coadd tiles of a survey by their headers; unusable files are quarantined with a reason."""

    survey: str = ""
    """Preset of the survey: how its files are named, their HDUs, units and masks; generic: as `table` says."""
    tiles: str = ""
    """Folder or s3:// prefix of the survey's tiles, with subfolders."""
    output: str = ""
    """Footprint to create: a folder or s3:// URI."""
    table: str = ""
    """TOML file that describes the tiles of the survey generic, such as the one in docs/footprints.md."""
    bands: tuple[str, ...] = ()
    """Bands that are indexed; left out: all."""
    zero_point_mag: float | None = None
    """AB magnitude of one unit of flux; left out: by the headers or the survey."""
    mask_planes: tuple[str, ...] = ()
    """Planes of the mask whose pixels have no value, any: all; left out: those of the survey."""
    files_per_unit: int = pydantic.Field(default=64, ge=1)
    """Images whose headers a task reads."""
    list_surveys: bool = False
    """Print what each survey's preset expects, and do nothing else."""
    resources: TaskResources = default(TaskResources)
    """Resources requested from Ray."""


def _then(run: Mapping[str, str]) -> str:
    if run["list_surveys"] == "True":
        return "footprint --survey SURVEY --tiles TILES --output FOOTPRINT"
    return f"infer --bundle BUNDLE --dataset {run['output']} --catalog SOURCES --output CATALOG"


@verb("footprint", positional="tiles", then=_then)
def footprint(config: FootprintConfig) -> "FootprintInfo | None":
    """Index the tiles of a survey, and return the metadata of the footprint; None after ``list_surveys``.

    An interrupted run is resumed; a finished one with the same config and files is left unchanged.

    Raises
    ------
    UserError
        For a mistake in the config, an output that holds something else, or if no tile can be used.
    """
    from gampen_ray import storage
    from gampen_ray.data import quarantine, shards
    from gampen_ray.data.tiles.footprint import FOOTPRINT_JSON, INDEX, Footprint, finish
    from gampen_ray.data.tiles.listing import listed
    from gampen_ray.provenance import content_fingerprint
    from gampen_ray.run_folder import RunFolder

    if config.list_surveys:
        sys.stdout.write(_expectations() + "\n")
        return None
    for name in ("survey", "tiles", "output"):
        if not getattr(config, name):
            raise UserError(f"{name}: is missing; give it, or list_surveys to see what the presets expect")
    survey = _survey(config)
    config = replace(config, tiles=storage.absolute(config.tiles), output=storage.absolute(config.output))
    if storage.size(config.tiles) is not None:
        raise UserError(f"tiles: {config.tiles} is a file; give the folder that holds it")
    uris = storage.list_files(config.tiles)
    entries = listed([uri.removeprefix(config.tiles).strip("/") for uri in uris], survey, config.bands, config.tiles)
    files = sorted({path for entry in entries for path in entry.files.values() if path})
    stamps = storage.stamps([storage.join(config.tiles, path) for path in files])
    inputs = {"tiles": content_fingerprint({}, files, list(stamps.values())), "table": content_fingerprint({"s": repr(survey)})}
    with RunFolder.open(config.output, "footprint", config, inputs, complete=FOOTPRINT_JSON, ignored=("tiles",)) as folder:
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            return Footprint(config.output).info
        _describe_all(config, survey, entries)
        folder.check_lock()
        bad = quarantine.read_quarantine(config.output)
        if len(bad) == len(entries):
            for name in (shards.QUARANTINE, INDEX):
                storage.delete(folder.path(name))
            folder.release_claim()
            raise quarantine.nothing_usable(f"tiles: none of the {len(bad):,} images can be used", bad, "images")
        info = finish(config.output, survey, config.tiles, len(bad))
    logger.info(
        "wrote %s: %s tiles in %s, %s images in quarantine",
        *(config.output, f"{info.num_tiles:,}", ", ".join(info.bands), f"{info.num_quarantined:,}"),
    )
    quarantine.log_reasons(bad)
    return info


def _survey(config: FootprintConfig) -> "TileSurvey":
    from gampen_ray.data.tiles import surveys
    from gampen_ray.data.tiles.surveys.generic import read_survey

    if (config.survey == "generic") != bool(config.table):
        raise UserError(
            f"table: {config.table or 'left out'}, but survey is {config.survey}; generic needs a table, others none"
        )
    return read_survey(config.table) if config.table else surveys.TILE_SURVEYS[config.survey]


def _expectations() -> str:
    from gampen_ray.data.tiles.surveys import TILE_SURVEYS

    presets = [TILE_SURVEYS[name].expectations() for name in TILE_SURVEYS.names]
    return "\n".join([*presets, "generic: as a TOML file says (table)"])


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some tiles, which are rows of one file of the index."""

    index: int
    entries: "tuple[Entry, ...]"
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"part-{self.index:06d}.parquet"

    @property
    def num_rows(self) -> int:
        return len(self.entries)


def _describe_all(config: FootprintConfig, survey: "TileSurvey", entries: "list[Entry]") -> None:
    from gampen_ray import storage
    from gampen_ray.data.tiles.footprint import INDEX
    from gampen_ray.engine.units import run_units

    done = {uri.rpartition("/")[2] for uri in storage.list_files(storage.join(config.output, INDEX))}
    step, num_bad = config.files_per_unit, 0
    parts = [_Part(at // step, tuple(entries[at : at + step])) for at in range(0, len(entries), step)]

    def receive(bad: int, _: "Workers") -> str:
        nonlocal num_bad
        num_bad += bad
        return f"{num_bad:,} in quarantine" if num_bad else ""

    describe, write = functools.partial(_describe, config=config, survey=survey), functools.partial(_write, config.output)
    job: dict[str, typing.Any] = {"noun": "images", "resources": config.resources, "cpus_per_task": _CPUS_PER_TASK}
    todo = [part for part in parts if part.name not in done]
    run_units("footprint", todo, lambda _: describe, total=len(entries), write=write, receive=receive, **job)


def _describe(part: _Part, *, config: FootprintConfig, survey: "TileSurvey") -> "_Described":
    """Return the number of a part, the rows of the index, and what goes to quarantine."""
    from concurrent.futures import ThreadPoolExecutor

    from gampen_ray import storage
    from gampen_ray.data.cutouts import CutoutError
    from gampen_ray.data.tiles.describing import describe
    from gampen_ray.data.tiles.footprint import BandFile

    def described(row: int, entry: "Entry") -> BandFile | str:
        try:
            return part.refused.get(row) or describe(
                entry, survey, config.tiles, zero_point_mag=config.zero_point_mag, mask_planes=config.mask_planes
            )
        except CutoutError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        found = list(zip(part.entries, pool.map(described, range(part.num_rows), part.entries), strict=True))
    rows = [row for _, row in found if isinstance(row, BandFile) and (not config.bands or row.band in config.bands)]
    bad = [
        (f"{entry.tile} {entry.band}".strip(), storage.join(config.tiles, entry.files["image"]), row)
        for entry, row in found
        if isinstance(row, str)
    ]
    return part.index, rows, bad


def _write(output: str, described: "_Described") -> int:
    from gampen_ray.data.tiles.footprint import write_part

    index, rows, bad = described
    write_part(output, index, rows, bad)
    return len(bad)
