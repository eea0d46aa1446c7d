"""The `crop` verb: FITS files in, their learned crops out, a batch of files at a time on every worker.

A crop has its file's name below the output folder. A batch is done when each of its files has a crop or is in quarantine, so an
interrupted job goes on where it was.
"""

import dataclasses
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray.data
import torch

from gampen_ray import storage
from gampen_ray.catalog.parquet import MANIFEST
from gampen_ray.config import CropConfig
from gampen_ray.config.base import to_dict
from gampen_ray.data import shards
from gampen_ray.data.cutouts import CutoutError, stem
from gampen_ray.data.ingest_plan import file_content, matching_files
from gampen_ray.engine.cluster import cluster_workers
from gampen_ray.engine.resources import Workers
from gampen_ray.engine.session import ray_session
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.inference.crops import Cropper
from gampen_ray.progress import Progress
from gampen_ray.provenance import RUN_FILE, claim_output, content_fingerprint, provenance

__all__ = ["crop"]

logger = logging.getLogger(__name__)

_READ_THREADS = 8


def crop(config: CropConfig) -> dict[str, Any]:
    """Write the learned crop of every FITS cutout of a folder and return the manifest.

    An unfinished job of the same config goes on; a finished one is left as it is.

    Raises
    ------
    UserError
        If the bundle has no spatial transformer, the output holds another run, or no file can be cropped.
    """
    config = dataclasses.replace(
        config,
        bundle=storage.absolute(config.bundle),
        images=storage.absolute(config.images),
        output=storage.absolute(config.output),
    )
    bundle = load_bundle(config.bundle)
    inputs = {"bundle": bundle_digest(config.bundle)}
    _cropper(config, bundle, inputs["bundle"])
    if f"{config.output}/".startswith(f"{config.images}/"):
        raise UserError(f"output: {config.output} lies in the folder of the images, {config.images}; give one outside it")
    names = [_below(config.images, uri) for uri in matching_files(config.images, config.pattern)]
    inputs["images"] = content_fingerprint({}, names)
    claim_output(config.output, config, inputs)
    manifest_uri = storage.join(config.output, MANIFEST)
    if storage.exists(manifest_uri):
        logger.info("%s is complete; nothing to do", config.output)
        return storage.read_json(manifest_uri)
    start = time.monotonic()
    _crop_all(config, names, inputs["bundle"])
    if missing := set(names) - _done(config):
        raise RuntimeError(f"{len(missing)} files have neither a crop nor a reason, one is {missing.pop()}")
    reasons = _quarantined(config)
    if len(reasons) == len(names):
        raise _nothing_usable(config, reasons)
    manifest = {
        "num_crops": len(names) - len(reasons),
        "num_quarantined": len(reasons),
        "seconds": round(time.monotonic() - start, 1),
        "config": to_dict(config),
        "inputs": inputs,
        "bundle_provenance": bundle.provenance,
        "provenance": provenance(),
    }
    storage.write_json(manifest_uri, manifest)
    logger.info("wrote %s: %s crops, %s files in quarantine", config.output, manifest["num_crops"], len(reasons))
    return manifest


def _crop_all(config: CropConfig, names: list[str], digest: str) -> None:
    done = _done(config)
    starts = range(0, len(names), config.batch_size)
    batches = [{"part": part, "names": names[i : i + config.batch_size]} for part, i in enumerate(starts)]
    todo = [batch for batch in batches if not done.issuperset(batch["names"])]
    with Progress("crop", len(names), "files") as progress:
        progress.advance(len(names) - sum(len(batch["names"]) for batch in todo))
        if not todo:
            return
        with ray_session():
            workers = cluster_workers(config.resources)
            # One block, and so one call, per batch.
            written = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
                _Crop,
                fn_constructor_args=(config, workers, digest),
                batch_size=None,
                num_cpus=workers.cpus,
                num_gpus=workers.gpus,
                compute=ray.data.ActorPoolStrategy(min_size=1, max_size=min(workers.count, len(todo))),
            )
            num_bad = 0
            for row in written.iter_rows():
                num_bad += row["num_bad"]
                progress.advance(row["num_files"], f"{num_bad:,} in quarantine" if num_bad else "")


class _Crop:
    """An actor that crops the files of a batch."""

    def __init__(self, config: CropConfig, workers: Workers, digest: str) -> None:
        torch.set_num_threads(workers.threads)
        self._config = config
        self._crop = _cropper(config, load_bundle(config.bundle), digest, "cuda" if workers.gpus else "cpu")

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[int]]:
        images, output = self._config.images, self._config.output
        names = [str(name) for name in batch["names"][0]]
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            contents = list(pool.map(file_content, [storage.join(images, name) for name in names]))
        bad: dict[str, str] = {}
        for name, result in zip(names, self._crop(names, contents), strict=True):
            if isinstance(result, CutoutError):
                bad[name] = str(result)
            else:
                storage.write_bytes_atomic(storage.join(output, name), result)
        quarantine = shards.part_uri(output, shards.QUARANTINE, int(batch["part"][0]))
        if bad:
            sources = [storage.join(images, name) for name in bad]
            shards.write_quarantine(quarantine, object_id=map(stem, bad), source=sources, reason=bad.values())
        else:
            # An interrupted run may have left one, of files that have changed since.
            storage.delete(quarantine)
        return {"num_files": [len(names)], "num_bad": [len(bad)]}


def _cropper(config: CropConfig, bundle: Bundle, digest: str, device: str = "cpu") -> Cropper:
    return Cropper(
        bundle,
        digest,
        crop_size=config.crop_size,
        oversampling=config.oversampling,
        reader=config.reader,
        device=device,
    )


def _done(config: CropConfig) -> set[str]:
    return {_below(config.output, uri) for uri in storage.list_files(config.output)} | _quarantined(config).keys()


def _quarantined(config: CropConfig) -> dict[str, str]:
    # Name of each file in quarantine, with the reason.
    reasons: dict[str, str] = {}
    for uri in storage.list_files(storage.join(config.output, shards.QUARANTINE), ".parquet"):
        rows = shards.read_shard(uri, ["source", "reason"])
        reasons |= {_below(config.images, row["source"]): row["reason"] for row in rows.to_pylist()}
    return reasons


def _below(folder: str, uri: str) -> str:
    return uri.removeprefix(folder).strip("/")


def _nothing_usable(config: CropConfig, reasons: dict[str, str]) -> UserError:
    # Nothing is lost, and the next attempt may have other settings.
    for name in (shards.QUARANTINE, RUN_FILE):
        storage.delete(storage.join(config.output, name))
    common, count = Counter(reasons.values()).most_common(1)[0]
    name = next(name for name, reason in reasons.items() if reason == common)
    return UserError(
        f"images: none of the {len(reasons):,} files can be cropped; the most common reason ({count:,} files), here for "
        f"{name}: {common}"
    )
