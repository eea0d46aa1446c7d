"""The `crop` verb: writes the learned crops of image files, which the workers process in batches.

A crop keeps its file's name below the output folder, with ``.fits`` appended to that of another format. A file is done when it
has a crop or is in quarantine. Crops of sources on the tiles of a footprint: `gampen_ray.commands.crop_tiles`.
"""

import dataclasses
import functools
import hashlib
import logging
import threading
import time
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import ActorResources, ReaderConfig, SourcesConfig, TilesConfig
from gampen_ray.config.base import Advanced, config_class, default, replace, to_dict
from gampen_ray.config.inputs import FITS_FILES, refuse_without_footprint
from gampen_ray.errors import UserError

if typing.TYPE_CHECKING:
    from gampen_ray.engine.resources import Workers
    from gampen_ray.inference.bundle import Bundle
    from gampen_ray.inference.crops import Cropper

__all__ = ["CropConfig", "crop"]

logger = logging.getLogger(__name__)

_READ_THREADS = 8


@config_class
class CropConfig(TilesConfig, SourcesConfig):
    """Write the learned crop of every cutout of a folder, or of a footprint's galaxies, as FITS with its flux and WCS."""

    bundle: str
    """Model bundle (or the run folder that holds it) with a spatial transformer: a folder, s3:// URI or builtin:NAME."""
    images: str
    """Folder or s3:// prefix of cutouts, with subfolders; a GaMPEN data folder is one; or a footprint, from whose tiles the
    catalogue's sources are cut as by `infer`. They must have the bundle's pixel scale; the crops keep the flux unit."""
    output: str
    """Folder to create: the crops under the files' names below `images` (those of other formats end in .fits too), or of a
    footprint crops/TILE/IDENTIFIER.fits; quarantine/ and manifest.json."""
    require_signature: Annotated[str, Advanced()] = ""
    """Public key (Ed25519, PEM; a local file or s3:// URI) whose signature the bundle must have, as its SHA256SUMS.sig; empty:
    none."""
    pattern: str = FITS_FILES
    """Glob pattern of the files below `images`."""
    reader: ReaderConfig = default(ReaderConfig)
    """How the files are read; pixels filled on reading are filled in the crop too."""
    crop_size: int = pydantic.Field(default=0, ge=0)
    """Side of the written crops, pixels: the same part of the sky on a finer or coarser grid. 0: the network's own grid."""
    oversampling: Annotated[int, Advanced()] = pydantic.Field(default=0, ge=0, le=64)
    """Bilinear samples averaged along each side of a pixel. 1: the network's own samples, which on a grid coarser than the
    file's change the flux of a star by a few percent. 0: 4 where the crop's pixels are larger than the file's, else 1."""
    batch_size: Annotated[int, Advanced()] = pydantic.Field(default=64, ge=1)
    """Files or sources that a worker crops together."""
    resources: ActorResources = default(ActorResources)
    """Resources requested from Ray."""

    def __post_init__(self) -> None:
        self.reader.refuse("bands", "noise_planes", "zero_point_mag", "pixel_scale_arcsec")


@verb("crop", positional="images")
def crop(config: CropConfig) -> dict[str, Any]:
    """Write the learned crop of every cutout of a folder and return the manifest.

    An unfinished job of the same config is resumed; a finished one is left unchanged.

    Raises
    ------
    UserError
        If the bundle has no spatial transformer, the output holds another run, two crops would have the same name, or no file
        can be cropped.
    """
    from gampen_ray import documents, storage
    from gampen_ray.catalog.manifest import MANIFEST
    from gampen_ray.commands import crop_tiles
    from gampen_ray.commands.tile_plans import PLAN, catalog_identity
    from gampen_ray.data import quarantine, shards
    from gampen_ray.data.tiles.reading import is_footprint
    from gampen_ray.inference.bundle import bundle_digest, load_bundle
    from gampen_ray.provenance import content_fingerprint, provenance
    from gampen_ray.run_folder import RunFolder, files_identity

    uris = ("bundle", "images", "output", "catalog")
    config = replace(config, **{name: storage.absolute(uri) for name in uris if (uri := getattr(config, name))})
    digest = bundle_digest(config.bundle, config.require_signature)
    bundle = load_bundle(config.bundle, digest)
    _cropper(config, bundle, digest)
    if f"{config.output}/".startswith(f"{config.images}/"):
        raise UserError(f"output: {config.output} lies in the folder of the images, {config.images}; give one outside it")
    names = set[str]()
    if source := crop_tiles.opened(config, bundle) if is_footprint(config.images) else None:
        inputs = {"bundle": digest, "images": source.info.fingerprint, "catalog": catalog_identity(config.catalog)}
    else:
        refuse_without_footprint(config, SourcesConfig, TilesConfig)
        files, names = _files(config)
        inputs = {"bundle": digest, "images": content_fingerprint({"files": files_identity(files)}, sorted(names))}
    with RunFolder.open(config.output, "crop", config, inputs, complete=MANIFEST) as folder:
        if folder.is_complete:
            logger.info("%s is complete; nothing to do", config.output)
            return documents.read(dict[str, Any], folder.path(MANIFEST), "restore the file, or crop into a new folder")
        began, noun = time.monotonic(), "sources" if source else "files"
        if source:
            total = crop_tiles.crop_all(config, folder, source, bundle, functools.partial(_started, config, digest))
        else:
            total = len(names)
            _crop_all(config, sorted(names - _done(config.output, names)), total, digest)
            if missing := names - _done(config.output, names):
                raise RuntimeError(f"{len(missing)} files are neither cropped nor in quarantine, such as {missing.pop()}")
        reasons = quarantine.read_quarantine(config.output)
        folder.check_lock()
        if len(reasons) == total:
            # No crop is lost, and the next attempt may have other settings.
            for name in (shards.QUARANTINE, PLAN):
                storage.delete(folder.path(name))
            folder.release_claim()
            raise quarantine.nothing_usable(f"images: none of the {total:,} {noun} can be cropped", reasons, noun)
        manifest = {
            "num_crops": total - len(reasons),
            "num_quarantined": len(reasons),
            "seconds": round(time.monotonic() - began, 1),
            "config": to_dict(config),
            "inputs": inputs,
            "bundle_provenance": bundle.provenance,
            "provenance": provenance(),
        }
        storage.write_json(folder.path(MANIFEST), manifest)
        storage.delete(folder.path(PLAN))
    logger.info("wrote %s: %s crops, %s %s in quarantine", config.output, manifest["num_crops"], len(reasons), noun)
    quarantine.log_reasons(reasons)
    return manifest


def _files(config: CropConfig) -> tuple[list[str], set[str]]:
    """Return the files and their names below the folder; a `UserError` if there are none, or two crops would have one name."""
    from gampen_ray import storage
    from gampen_ray.data.file_names import matching_files
    from gampen_ray.inference.crops import crop_name

    files = matching_files(config.images, config.pattern)
    names = {uri.removeprefix(config.images).strip("/") for uri in files}
    if twice := [name for name in sorted(names) if crop_name(name) in names - {name}]:
        pair = f"{twice[0]} and {crop_name(twice[0])}"
        raise UserError(f"images: {pair} would have the same crop; rename one, or give a pattern for one of them")
    if storage.is_local(config.output) and (both := _files_and_folders({crop_name(name) for name in names})):
        raise UserError(
            f"output: {both[0]} would be a file and a folder there; give a pattern for one of them, or a folder on S3"
        )
    return files, names


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Files that are cropped together."""

    files: tuple[str, ...]
    refused: Mapping[int, str] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the quarantine file, derived from the files' names: another batch size makes other batches."""
        return f"part-{hashlib.blake2b(chr(0).join(self.files).encode(), digest_size=8).hexdigest()}.parquet"

    @property
    def num_rows(self) -> int:
        return len(self.files)


def _crop_all(config: CropConfig, names: list[str], total: int, digest: str) -> None:
    from gampen_ray.engine.units import run_units

    num_bad = 0

    def receive(bad: int, _: "Workers") -> str:
        nonlocal num_bad
        num_bad += bad
        return f"{num_bad:,} in quarantine" if num_bad else ""

    batches = [_Batch(tuple(names[i : i + config.batch_size])) for i in range(0, len(names), config.batch_size)]

    job: dict[str, Any] = {"total": total, "noun": "files", "resources": config.resources}
    start, write = functools.partial(_Crop, config, digest), functools.partial(_write, config)
    run_units("crop", batches, start, write=write, receive=receive, **job)


class _Crop:
    """Crops the files of a batch; called from two threads, so that one reads while the other computes."""

    def __init__(self, config: CropConfig, digest: str, workers: "Workers") -> None:
        self._config, self._lock = config, threading.Lock()
        self._crop = _started(config, digest, workers)

    def __call__(self, batch: _Batch) -> tuple[_Batch, list[Any]]:
        """Return the batch, and of each file the crop or why there is none."""
        from concurrent.futures import ThreadPoolExecutor

        from gampen_ray import storage
        from gampen_ray.data.cutouts import CutoutError
        from gampen_ray.data.image_reading import file_content

        def content(row: int, name: str) -> bytes | CutoutError:
            if row in batch.refused:
                return CutoutError(batch.refused[row])
            return file_content(storage.join(self._config.images, name), self._config.reader)

        with ThreadPoolExecutor(_READ_THREADS) as pool:
            contents = list(pool.map(content, range(batch.num_rows), batch.files))
        with self._lock:
            return batch, list(self._crop(batch.files, contents))


def _write(config: CropConfig, cropped: tuple[_Batch, list[Any]]) -> int:
    """Write the crops of a batch, and the other files to quarantine; return the number of these."""
    from gampen_ray import storage
    from gampen_ray.data import shards
    from gampen_ray.data.cutouts import CutoutError, stem
    from gampen_ray.data.file_names import NO_NAME, is_file_name
    from gampen_ray.inference.crops import crop_name

    batch, crops = cropped
    bad: dict[str, str] = {}
    for name, result in zip(batch.files, crops, strict=True):
        uri = storage.join(config.images, name)
        if isinstance(result, CutoutError):
            bad[uri] = str(result)
        elif not is_file_name(crop_name(name)):
            bad[uri] = f"its crop has no valid name: {NO_NAME}"
        else:
            storage.write_bytes_atomic(storage.join(config.output, crop_name(name)), result)
    if bad:
        quarantine = storage.join(config.output, shards.QUARANTINE, batch.name)
        shards.write_quarantine(quarantine, object_id=map(stem, bad), source=bad, reason=bad.values())
    return len(bad)


def _files_and_folders(names: set[str]) -> list[str]:
    """Return the names that are the folder of others too, as S3 allows."""
    parents = {name[:at] for name in names for at, character in enumerate(name) if character == "/"}
    return sorted(names & parents)


def _started(config: CropConfig, digest: str, workers: "Workers") -> "Cropper":
    """Load the model on a worker."""
    import torch

    from gampen_ray.inference.bundle import load_bundle

    torch.set_num_threads(workers.threads)
    return _cropper(config, load_bundle(config.bundle, digest), digest, "cuda" if workers.gpus else "cpu")


def _cropper(config: CropConfig, bundle: "Bundle", digest: str, device: str = "cpu") -> "Cropper":
    from gampen_ray.inference.crops import Cropper

    size = {"crop_size": config.crop_size, "oversampling": config.oversampling}
    return Cropper(bundle, digest, **size, reader=config.reader, device=device)


def _done(output: str, names: set[str]) -> set[str]:
    """Return the files that have a crop or are in quarantine, where their folder may have been another."""
    from gampen_ray import storage
    from gampen_ray.data.quarantine import read_quarantine
    from gampen_ray.inference.crops import crop_name

    there = {uri.removeprefix(output).strip("/") for uri in storage.list_files(output)}
    crops = {name for name in names if crop_name(name) in there}
    sources = (source.split("/") for source, _ in read_quarantine(output))
    return crops | {next(name for i in range(len(parts)) if (name := "/".join(parts[i:])) in names) for parts in sources}
