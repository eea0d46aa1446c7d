"""The `infer` verb: predicts a catalogue from a model and cutouts, in units of work that are spread over the workers.

Each unit becomes one catalogue file, whose name depends on the input alone (`gampen_ray.catalog.prediction`), and a receipt:
the unit is done if its files are as the receipt says. There is no other state, for any number of rows, and a killed job leaves
only whole files.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import Advanced, Needs, config_class, default, replace, to_dict
from gampen_ray.config.inputs import CatalogConfig, TilesConfig, refuse_without_footprint
from gampen_ray.config.parts import GALAXIES_PER_FILE, NUM_PASSES, ActorResources
from gampen_ray.messages import counted, rounded

if TYPE_CHECKING:
    from gampen_ray.catalog.prediction import UnitPredictor
    from gampen_ray.data.sources import Source, Unit
    from gampen_ray.engine.resources import Workers
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.inference.predictor import Precision
    from gampen_ray.posterior.prior import Prior
    from gampen_ray.run_folder import RunFolder

logger = logging.getLogger(__name__)

_ESTIMATE_SECONDS = 30.0
# More than the fastest device finishes in that time.
_ESTIMATE_UNITS_PER_WORKER = 400
_COUNTERS = {
    "galaxies": "Galaxies predicted.",
    "passes": "Monte Carlo dropout passes, summed over galaxies.",
    "bytes_read": "Bytes of the input read, as stored.",
    "device_seconds": "Busy time of the device, seconds.",
}


@config_class
class InferConfig(TilesConfig, CatalogConfig):
    """Predict the posterior of every galaxy of a dataset with Monte Carlo dropout; writes a catalogue."""

    bundle: str
    """Model bundle (or the run folder that holds it): a folder, s3:// URI or builtin:NAME."""
    dataset: str
    """What to predict: a dataset of cutout shards, images as `ingest` takes them, such as a folder of cutouts, or a footprint,
    from whose tiles the sources of a catalogue are cut; local or s3:// URI. For images, a catalogue gives identifiers,
    positions and conditions."""
    output: str
    """Folder to create: catalog/, quarantine/ and manifest.json."""
    require_signature: Annotated[str, Advanced()] = ""
    """Public key (Ed25519, PEM; a local file or s3:// URI) whose signature the bundle must have, as its SHA256SUMS.sig; empty:
    none."""
    missing_conditions: Literal["refuse", "marginalise"] = "refuse"
    """If the bundle takes conditions, such as the PSF's width, and the dataset lacks one: refuse the dataset, or a galaxy by
    quarantine, or predict the wider posterior over what the training galaxies have, and flag the galaxy."""
    split: Literal["", "train", "val", "test"] = ""
    """Split to predict; empty: all rows."""
    num_passes: int = pydantic.Field(default=NUM_PASSES, ge=1)
    """Monte Carlo dropout passes per galaxy; best the square of 1 / the network's dropout rate, or a multiple of 1 / rate."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the dropout masks; a galaxy's posterior depends on (bundle, num_passes, seed, prior) alone."""
    batch_size: Annotated[int, Advanced()] = pydantic.Field(default=0, ge=0)
    """Galaxies per forward pass, without effect on the results. 0: as many as fit the device."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Advanced()] = "auto"
    """Precision of the network after the spatial transformer, the same for the whole catalogue. auto: bfloat16 on GPUs, float32
    on CPUs; a resumed job keeps its first choice."""
    galaxies_per_file: Annotated[int, Advanced()] = pydantic.Field(default=GALAXIES_PER_FILE, ge=1)
    """Maximum galaxies per catalogue file, the unit of work that a killed job repeats; a file never spans two input shards, and
    small inputs get smaller files."""
    posterior: Literal["summary", "mixture"] = "summary"
    """Store the summary columns alone, or also the whole mixture (`evaluate` needs it)."""
    mode_centred: bool = False
    """Add credible intervals centred on the mode, as in GaMPEN: columns T_mode_lo68, T_mode_hi68 and so on."""
    prior: str = ""
    """Another prior than that of the training, under which the posteriors are: a table of 100 galaxies or more with a column of
    each target, in the bundle's units, or another bundle, whose training's prior is taken; a local path or s3:// URI. Empty:
    that of the training."""
    columns: tuple[str, ...] = ()
    """Additional columns: those of the input, such as z_phot, which are copied (of the catalogue, or of the dataset's shards);
    T_mag, T_mag_lo68 and T_mag_hi68, the AB magnitudes of a target T whose unit is of jansky or maggies; and those that your
    code registers (`gampen_ray.catalog.columns.register_column`)."""
    catalog_format: Literal["parquet", "fits", "votable", "hats", "gampen"] = "parquet"
    """fits, votable: also write catalog.fits or catalog.vot, the whole catalogue in one file. hats: also write hats/, a
    sky-partitioned catalogue for LSDB of all galaxies with a position (needs `pip install "gampen_ray[hats]"`). gampen: also
    write gampen/inf_1.csv to inf_K.csv, one draw per pass, and gampen/summary.csv with GaMPEN's columns; the mixture is then
    always stored."""
    gampen_magnitudes: Annotated[bool, Needs("catalog_format", "gampen"), Advanced()] = False
    """Catalogue format gampen only: magnitudes with GaMPEN's factor of 2.512 and zero point of 27, not 2.5 and the bundle's."""
    estimate: bool = False
    """Only measure: predict for 30 s, keep nothing, and print galaxies/s, hours, GPU-hours and the size of the output. With a
    footprint, tiles are drawn at random among those of the sources."""
    estimate_workers: Annotated[int, Needs("estimate", True), Advanced()] = pydantic.Field(default=0, ge=0)
    """Number of workers to estimate for; 0: that of this cluster."""
    resources: ActorResources = default(ActorResources)
    """Resources requested from Ray."""

    def __post_init__(self) -> None:
        self.reader.refuse("bands", "noise_planes")


def _then(run: Mapping[str, str]) -> str:
    if run["estimate"] == "True" or run["num_galaxies"] == "0":
        return ""
    # Without mixtures or true values there is nothing to evaluate.
    if run["posterior"] == "mixture" and run["has_truths"] == "True":
        return f"evaluate --catalog {run['output']} --output EVALUATION"
    return f"view {run['output']}"


@verb("infer", positional="dataset", then=_then)
def infer(config: InferConfig) -> dict[str, Any]:
    """Predict a dataset into a catalogue and return the manifest, or the estimate if one is asked for.

    An unfinished job of the same config is resumed; a finished one is left unchanged.

    Raises
    ------
    UserError
        If bundle and dataset do not fit, the output holds another run, or the cluster is too small.
    """
    from gampen_ray import storage
    from gampen_ray.catalog.manifest import MANIFEST, read_manifest
    from gampen_ray.catalog.other_prior import prior_digest, read_prior
    from gampen_ray.commands.catalog_files import check_columns, finish, writer
    from gampen_ray.commands.tile_plans import PLAN, num_sources, planned_units
    from gampen_ray.data import quarantine
    from gampen_ray.data.sources import check_num_rows, pinned
    from gampen_ray.data.tiles.reading import is_footprint
    from gampen_ray.gampen.summary_files import PARTS
    from gampen_ray.inference.bundle import bundle_digest, load_bundle
    from gampen_ray.receipts import RECEIPTS
    from gampen_ray.run_folder import RunFolder

    names = ("bundle", "dataset", "output", "catalog", "require_signature", "prior")
    config = replace(config, **{name: storage.absolute(uri) for name in names if (uri := getattr(config, name))})
    digest = bundle_digest(config.bundle, config.require_signature)
    bundle = load_bundle(config.bundle, digest)
    prior = read_prior(config.prior, bundle) if config.prior else None
    source, units = _tiles(config, bundle) if is_footprint(config.dataset) else _input(config, bundle)
    check_columns(config, bundle, source, sum(unit.num_rows for unit in units))
    if config.estimate:
        return _estimate(config, bundle, digest, prior, source, units)
    inputs = {"bundle": digest, **_identity(config, source, units)}
    if prior:
        inputs["prior"] = prior_digest(prior)
    run: dict[str, Any] = {"output": config.output, "verb": "infer", "complete": MANIFEST, "work": _work(source, units)}
    run["inputs"] = {"dataset shard": pinned(config.dataset, units)} | inputs
    began, precision = time.monotonic(), _recorded_precision(config)
    with contextlib.ExitStack() as stack:
        if RunFolder.check(config=replace(config, precision=precision), **run) == "free":
            if not source.tiles:
                check_num_rows(config.dataset, config.split, source.info, units)
            if precision == "auto":
                # Units of a footprint are made later, from its sources.
                count = num_sources(config) if source.tiles else sum(unit.num_rows for unit in units)
                precision = _settled(config, count, stack)
        config = replace(config, precision=precision)
        folder = stack.enter_context(RunFolder.open(config=config, **run))
        manifest_uri = folder.path(MANIFEST)
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            return read_manifest(config.output)
        num_unassigned = unassigned = 0
        if source.tiles:
            units, num_unassigned, unassigned = planned_units(config, folder, source, config.galaxies_per_file)
            check_columns(config, bundle, source, sum(unit.num_rows for unit in units))
        write = writer(config, bundle, source, digest, prior, config.output)
        rates, id_sum = _predict_all(config, folder, source, units, write=write, digest=digest, began=began)
        num_rows = num_unassigned + sum(unit.num_rows for unit in units)
        counts = finish(config, bundle, num_rows, (id_sum + unassigned) % 2**64)
        # The input's, for `evaluate`.
        counts["has_truths"] = {*source.info.targets} >= {*bundle.targets.names}
        manifest = counts | {"rates": rates, "inputs": inputs} | _recorded(config, bundle, prior)
        folder.check_lock()
        storage.write_json(manifest_uri, manifest)
        for name in (PARTS, RECEIPTS, PLAN):
            storage.delete(folder.path(name))
    logger.info("wrote %s: %s galaxies, %s in quarantine", config.output, manifest["num_galaxies"], manifest["num_quarantined"])
    quarantine.log_first_reasons(config.output, manifest["num_quarantined"])
    return manifest


def _recorded(config: InferConfig, bundle: "Bundle", prior: "Prior | None") -> dict[str, Any]:
    """Return what the manifest says of how the catalogue was made."""
    from gampen_ray.provenance import provenance

    made = {"config": to_dict(config), "calibration": bundle.calibration.to_dict(), "bundle_provenance": bundle.provenance}
    return made | {"provenance": provenance()} | ({"prior": prior.to_dict()} if prior else {})


def _input(config: InferConfig, bundle: "Bundle") -> "tuple[Source, list[Unit]]":
    """Return the input and its units of work; a `UserError` if the bundle or the catalogue format does not suit it."""
    from gampen_ray.catalog.hats import check_hats
    from gampen_ray.catalog.prediction import check_fit
    from gampen_ray.commands.catalog_files import carry
    from gampen_ray.data.sources import open_source

    refuse_without_footprint(config, TilesConfig)
    source, units = open_source(
        config.dataset,
        split=config.split,
        catalog=config,
        bands=bundle.images.bands,
        noise_planes=bundle.images.noise_planes,
        size=bundle.images.size,
        pixel_scale_arcsec=bundle.images.pixel_scale_arcsec,
        unit_rows=config.galaxies_per_file,
        conditions=bundle.images.condition_names,
        fill_conditions=config.missing_conditions == "marginalise",
        carry=functools.partial(carry, config, bundle, where=config.catalog or config.dataset),
    )
    check_fit(bundle, source.info, dataset=config.dataset, num_passes=config.num_passes, seed=config.seed)
    if config.catalog_format == "hats":
        check_hats(config.dataset, units)
    return source, units


def _tiles(config: InferConfig, bundle: "Bundle") -> "tuple[Source, list[Unit]]":
    """Return a footprint as the input, without units: these are known when the plan is made; errors as of `_input`."""
    from gampen_ray.catalog.hats import check_hats
    from gampen_ray.catalog.prediction import check_fit
    from gampen_ray.commands.tile_plans import carried_columns, check_catalog, tile_source
    from gampen_ray.errors import UserError

    check_catalog(config)
    if config.catalog_format == "hats":
        check_hats(config.dataset, [])
    if config.split:
        raise UserError(f"split: {config.split} cannot be had with a footprint; leave it out")
    source = tile_source(config, config.dataset, bundle, carried_columns(config, bundle))
    check_fit(bundle, source.info, dataset=config.dataset, num_passes=config.num_passes, seed=config.seed)
    return source, []


def _recorded_precision(config: InferConfig) -> Literal["auto", "float32", "bfloat16"]:
    """Return the requested precision, for ``auto`` that of the run in the output folder if there is one."""
    from gampen_ray.run_folder import RunFolder

    if config.precision != "auto":
        return config.precision
    there = RunFolder.recorded(config.output)
    precision = there.config.get("precision") if there else "auto"
    # Any other is a difference between the runs.
    return precision if precision in ("float32", "bfloat16") else "auto"


def _work(source: "Source", units: "list[Unit]") -> str:
    if source.tiles:
        return "the sources of the catalogue on the tiles"
    rows = counted(sum(unit.num_rows for unit in units), "galaxy", "galaxies")
    return f"{rows} in {counted(len(units), 'catalogue file')}"


def _identity(config: InferConfig, source: "Source", units: "list[Unit]") -> dict[str, str]:
    """Return what identifies the input by its content."""
    from gampen_ray.commands.tile_plans import catalog_identity
    from gampen_ray.data.sources import layout_identity

    if source.tiles:
        return {"dataset": source.info.fingerprint, "catalog": catalog_identity(config.catalog)}
    return {"dataset": source.info.fingerprint, "dataset layout": layout_identity(config.dataset, units)}


def _settled(config: InferConfig, num_rows: int, stack: contextlib.ExitStack) -> "Precision":
    """Return the precision for all workers, also after an interruption; a Ray that is started for it stays for the work."""
    from gampen_ray.engine.units import is_local, local_workers
    from gampen_ray.inference.predictor import settled_precision

    if is_local(config.resources, num_rows):
        return settled_precision("auto", gpu=local_workers(config.resources).gpus > 0)
    from gampen_ray.engine.cluster import uses_gpus
    from gampen_ray.engine.session import ray_session

    stack.enter_context(ray_session())
    return settled_precision("auto", gpu=uses_gpus(config.resources))


def _predict_all(
    config: InferConfig,
    folder: "RunFolder",
    source: "Source",
    units: "list[Unit]",
    *,
    write: Callable[..., Any],
    digest: str,
    began: float,
) -> tuple[dict[str, Any], int]:
    """Predict the missing units; return the rates, and the sum of all identifiers (`id_sum`) of the input."""
    from gampen_ray.engine.units import run_units
    from gampen_ray.inference.rates import Rates, UnitReceipt
    from gampen_ray.receipts import verified_receipts

    done = verified_receipts(config.output, UnitReceipt)
    todo = [unit for unit in units if unit.name not in done]
    total = sum(receipt.id_sum for receipt in done.values()) % 2**64
    rates = Rates(config.num_passes, began)

    def receive(receipt: UnitReceipt, workers: "Workers") -> str:
        nonlocal total
        folder.check_lock()
        total = (total + receipt.id_sum) % 2**64
        rates.add(receipt, workers=workers.count, gpus_per_worker=workers.gpus)
        return rates.text()

    run_units(
        "infer",
        todo,
        functools.partial(_start, config, digest, source, None),
        total=sum(unit.num_rows for unit in units),
        noun="galaxies",
        resources=config.resources,
        write=write,
        receive=receive,
    )
    measured = rates.to_dict()
    if measured:
        speed = rounded(measured["galaxies_per_second"], 4)
        logger.info("without %.0f s of start-up: %s galaxies/s, %s", measured["startup_seconds"], speed, rates.text())
    return measured, total


def _start(config: InferConfig, digest: str, source: "Source", seconds: float | None, workers: "Workers") -> "UnitPredictor":
    """Load the model on a worker; see `gampen_ray.engine.units.run_units`."""
    import torch

    from gampen_ray.catalog.prediction import UnitPredictor
    from gampen_ray.engine.units import counters
    from gampen_ray.inference.bundle import load_bundle
    from gampen_ray.inference.predictor import Predictor

    torch.set_num_threads(workers.threads)
    torch.backends.cudnn.benchmark = True
    predict = Predictor(
        load_bundle(config.bundle, digest),
        num_passes=config.num_passes,
        seed=config.seed,
        device="cuda" if workers.gpus else "cpu",
        precision=config.precision,
        batch_size=config.batch_size,
        zero_point_mag=source.info.zero_point_mag,
        pixel_scale_arcsec=source.info.pixel_scale_arcsec,
    )
    count = counters("gampen_ray_infer", _COUNTERS)
    return UnitPredictor(predict, source, seconds=seconds, count=count, fill_conditions=config.missing_conditions != "refuse")


def _estimate(
    config: InferConfig, bundle: "Bundle", digest: str, prior: "Prior | None", source: "Source", units: "list[Unit]"
) -> dict[str, Any]:
    """Predict for half a minute, write nothing, and return and log the estimate for the whole input."""
    from gampen_ray.commands.catalog_files import writer
    from gampen_ray.commands.tile_plans import sampled_units
    from gampen_ray.engine.cluster import cluster_workers
    from gampen_ray.engine.ray_units import stream_units
    from gampen_ray.engine.session import ray_session
    from gampen_ray.errors import UserError
    from gampen_ray.inference.rates import Rates, extrapolate

    total = sum(unit.num_rows for unit in units)
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session())
        workers = cluster_workers(config.resources)
        if source.tiles:
            units, total = stack.enter_context(sampled_units(config, source, _ESTIMATE_UNITS_PER_WORKER * workers.room))
        rates = Rates(config.num_passes, time.monotonic())
        # Workers that wait for nodes would be measured as idle.
        workers = dataclasses.replace(workers, count=min(workers.room, len(units)))
        some = units[: _ESTIMATE_UNITS_PER_WORKER * workers.count]
        start = functools.partial(_start, config, digest, source, _ESTIMATE_SECONDS)
        write = writer(config, bundle, source, digest, prior, None)
        for _, receipt in stream_units(some, start, workers, write=write):
            # Receipts after the time limit are empty.
            if receipt.num_rows:
                rates.add(receipt, workers=workers.count, gpus_per_worker=workers.gpus)
    measured = rates.to_dict()
    if not measured:
        raise UserError(
            f"estimate: no galaxy of {config.dataset} was predicted in {_ESTIMATE_SECONDS:g} s; give smaller --num-passes"
        )
    result = extrapolate(measured, total, config.estimate_workers or workers.count)
    speed = rounded(measured["galaxies_per_second"], 4)
    logger.info("measured with %s workers: %s galaxies/s, %s", workers.count, speed, rates.text())
    logger.info(
        "estimate for %s galaxies and %s workers: %s galaxies/s, %s hours, %s GPU-hours, catalogue of %s GB",
        f"{total:,}",
        result["workers"],
        rounded(result["galaxies_per_second"]),
        rounded(result["hours"]),
        rounded(result["gpu_hours"]),
        rounded(result["output_bytes"] / 1e9),
    )
    return {"measured": measured, "estimate": result}
