"""What is known of the galaxies of a catalogue beside its columns: images, crops, whole posteriors and true values.

All of it is optional: the dataset or the bundle may be gone. Shape legend: M galaxies, D targets, C bands, H x W pixels.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute

from gampen_ray import storage
from gampen_ray.catalog.columns import MIXTURE_MEAN, MIXTURE_TRIL
from gampen_ray.catalog.manifest import prediction_options, read_manifest
from gampen_ray.catalog.other_prior import predicted_again
from gampen_ray.catalog.parquet import mixture_from_catalog
from gampen_ray.config import CatalogConfig
from gampen_ray.config.base import build, fields
from gampen_ray.data import packing, shards
from gampen_ray.data.rows_by_id import RowsById
from gampen_ray.data.sources import Unit, open_source
from gampen_ray.data.tiles.reading import is_footprint
from gampen_ray.errors import StorageError, UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.inference.predictor import Predictor, Seen
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.viewer.table import CatalogTable

__all__ = ["Galaxies", "Galaxy"]

# Its functions are made when it is imported, unseen by a type checker.
pc: Any = pyarrow.compute
_SCORED = 5_000
"""Galaxies that are looked at for the worst ones."""


class _Cutout(NamedTuple):
    """Image of a galaxy with the noise planes that the bundle takes (C or 2C x H x W), and its side before it was padded."""

    planes: np.ndarray
    side: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Galaxy:
    """One galaxy; None is what is unknown.

    Parameters
    ----------
    row
        Its number in the catalogue.
    values
        Columns by name, without the mixture.
    image_HW
        First band.
    seen
        What the network saw, with the learned crop.
    posterior
        Of this galaxy alone.
    truth
        True values by target, as far as they are known.
    note
        Why something is missing; empty: nothing is that could be there.
    """

    row: int
    values: dict[str, Any]
    image_HW: np.ndarray | None = None
    seen: Seen | None = None
    posterior: Mixture | None = None
    truth: dict[str, float] = dataclasses.field(default_factory=dict)
    note: str = ""


class Galaxies:
    """The galaxies of a catalogue, by the numbers of their rows.

    Parameters
    ----------
    output
        Output folder of `infer`.
    dataset, bundle
        What it was made of; empty: what its manifest names, as far as it is there.

    Raises
    ------
    UserError
        If there is no finished catalogue, or the dataset or the bundle that is given is not that of the catalogue.
    """

    def __init__(self, output: str, dataset: str = "", bundle: str = "") -> None:
        self.manifest = read_manifest(output)
        self.table = CatalogTable(output)
        self.notes: list[str] = []
        """What is not shown, and why."""
        self.bundle: Bundle | None = self._optional("bundle", bundle, self._load_bundle)
        self._shards: RowsById | None = None
        self._files: _PlannedFiles | None = None
        self._optional("dataset", dataset, self._open_dataset)

    @property
    def has_images(self) -> bool:
        """Whether the dataset is there."""
        return bool(self._shards or self._files)

    @property
    def has_truths(self) -> bool:
        """Whether the dataset has a true value of each target."""
        return self._shards is not None and {*self.table.targets} <= {*self._shards.info.target_units}

    def galaxy(self, row: int) -> Galaxy:
        """Return all that is known of a galaxy."""
        (values,) = self.table.rows(np.array([row])).to_pylist()
        found = Galaxy(row=row, values=values)
        try:
            if self.bundle and self.table.has_mixtures:
                found = dataclasses.replace(found, posterior=self._mixtures(np.array([row])))
            cutout, truth = self._cutout(values["object_id"])
            if cutout:
                found = dataclasses.replace(found, image_HW=cutout.planes[0], truth=truth)
            if cutout and self.bundle:
                found = self._predicted(found, cutout, self.bundle)
        except (UserError, StorageError) as error:
            found = dataclasses.replace(found, note=str(error))
        return found

    def _predicted(self, found: Galaxy, cutout: _Cutout, bundle: Bundle) -> Galaxy:
        """Return a galaxy with its crop, and with its posterior if that is not stored."""
        conditions = {name: np.array([found.values[name]], np.float64) for name in bundle.images.condition_names}
        image_NCHW = cutout.planes[None]
        prediction = self._predict(image_NCHW, bundle.condition_values(conditions, 1), np.array([cutout.side]))
        seen = self._predict.seen(image_NCHW, prediction) if bundle.network.transformer else None
        again = predicted_again(self.manifest, bundle, prediction.mixture) if prediction.usable_N[0] else None
        return dataclasses.replace(found, seen=seen, posterior=found.posterior if self.table.has_mixtures else again)

    def image(self, row: int) -> np.ndarray | None:
        """Return the first band of a galaxy's image, H x W; None if it is unknown."""
        cutout, _ = self._cutout(self.table.rows(np.array([row]), ["object_id"])["object_id"][0].as_py())
        return cutout.planes[0] if cutout else None

    def worst(self, row_M: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, str]:
        """Return the galaxies whose posteriors are worst among some of the given ones, the worst first.

        Where true values are known, worst is the largest logarithmic score, minus the log of the joint density at the truth in
        the network's space; else the largest width of the 68.27 % intervals there, the mean over the targets.

        Returns
        -------
        tuple
            Numbers of their rows, scores or widths, and which of both it is in words; none without a bundle, which knows that
            space.
        """
        if self.bundle is None or not len(row_M):
            return row_M[:0], np.zeros(0), "unknown without the bundle"
        row_M = self.table.sample(row_M, _SCORED)
        scored = self.has_truths and self.table.has_mixtures
        value_M = self._log_scores(row_M, self.bundle) if scored else self._widths(row_M, self.bundle)
        order = np.argsort(-np.where(np.isfinite(value_M), value_M, -np.inf), kind="stable")[:count]
        what = "logarithmic score" if scored else "width of the 68.27 % intervals"
        of = f" of {len(row_M):,} galaxies" if len(row_M) > count else ""
        return row_M[order], value_M[order], f"largest {what}{of}"

    def _log_scores(self, row_M: np.ndarray, bundle: Bundle) -> np.ndarray:
        assert self._shards is not None
        ids = self.table.rows(row_M, ["object_id"])["object_id"].combine_chunks()
        id_U = ids.unique()
        place_M = pc.index_in(ids, value_set=id_U).to_numpy()
        truth_UD = np.full((len(id_U), len(bundle.targets)), np.nan)
        for found in self._shards(id_U, bundle.targets.names):
            columns = [found.table[name].to_numpy()[found.rows] for name in bundle.targets.names]
            truth_UD[found.places] = np.stack(columns, axis=1)
        truth_MD = truth_UD[place_M]
        score_M = np.full(len(row_M), np.nan)
        known = np.flatnonzero(np.isfinite(truth_MD).all(axis=1))
        for some in np.array_split(known, max(1, len(known) // 500)):
            if some.size:
                z_MD = bundle.targets.standardise(truth_MD[some])
                score_M[some] = -self._mixtures(row_M[some]).standardised_log_prob(z_MD[:, None])[:, 0]
        return score_M

    def _widths(self, row_M: np.ndarray, bundle: Bundle) -> np.ndarray:
        names = [f"{name}_{end}" for name in bundle.targets.names for end in ("lo68", "hi68")]
        table = self.table.rows(row_M, names)
        low_MD, high_MD = (np.stack([table[name].to_numpy() for name in names[i::2]], axis=1) for i in (0, 1))
        return (bundle.targets.standardise(high_MD) - bundle.targets.standardise(low_MD)).mean(axis=1)

    def _mixtures(self, row_M: np.ndarray) -> Mixture:
        assert self.bundle is not None
        try:
            return mixture_from_catalog(self.table.rows(row_M, [MIXTURE_MEAN, MIXTURE_TRIL]), self.bundle.targets)
        except ValueError as error:
            raise UserError(f"catalog: {error}") from None

    @functools.cached_property
    def _predict(self) -> Predictor:
        assert self.bundle is not None
        source = self._shards or self._files
        assert source is not None
        options = prediction_options(self.manifest, source.info)
        if self.table.has_mixtures:
            # Only the crop is wanted, which all passes share.
            options["num_passes"] = 1
        return Predictor(self.bundle, **options)

    def _cutout(self, identifier: int | str) -> tuple[_Cutout | None, dict[str, float]]:
        """Return the cutout and the true values of a galaxy."""
        if self._files:
            return self._files(identifier), {}
        if self._shards is None:
            return None, {}
        names = [name for name in self.table.targets if name in self._shards.info.target_units]
        wanted = shards.image_columns(bool(self.bundle and self.bundle.images.noise_planes))
        for found in self._shards(pa.array([identifier]), [*wanted, *names], [shards.SIDE]):
            row = int(found.rows[0])
            truth = {name: found.table[name][row].as_py() for name in names}
            cutout = _Cutout(shards.images(found.table)[row], int(shards.sides(found.table)[row]))
            return cutout, {name: value for name, value in truth.items() if value is not None}
        return None, {}

    def _optional(self, name: str, given: str, load: Any) -> Any:
        """Return what a function makes of a URI; where that fails, a note says so, or the error if the URI was given."""
        try:
            return load(storage.absolute(given or self.manifest["config"][name]))
        except (UserError, StorageError) as error:
            if given:
                raise
            self.notes.append(str(error))
            return None

    def _load_bundle(self, uri: str) -> Bundle:
        self._check("bundle", uri, bundle_digest(uri))
        return load_bundle(uri, self.manifest["inputs"]["bundle"])

    def _open_dataset(self, uri: str) -> None:
        inference = self.manifest["config"]
        if is_footprint(uri):
            raise UserError(f"dataset: {uri} is a footprint, whose images are not stored; ingest them to see them here")
        if storage.exists(storage.join(uri, shards.DATASET_JSON)):
            found = RowsById(uri, inference["split"])
            self._check("dataset", uri, found.info.fingerprint)
            self._shards = found
            return
        if self.bundle is None:
            raise UserError(
                f"dataset: {uri} holds no {shards.DATASET_JSON}, and other images are read as the bundle takes them"
            )
        files = _PlannedFiles(uri, inference, self.bundle)
        self._check("dataset", uri, files.info.fingerprint)
        self._files = files

    def _check(self, name: str, uri: str, identity: str) -> None:
        if identity != self.manifest["inputs"][name]:
            raise UserError(
                f"{name}: {uri} is not that of the catalogue, or has changed since; give the {name} of its inference"
            )


class _PlannedFiles:
    """Reads the images of a folder of cutouts, as the inference did."""

    def __init__(self, dataset: str, inference: dict[str, Any], bundle: Bundle) -> None:
        if not storage.exists(dataset):
            raise UserError(f"dataset: {dataset} does not exist")
        absolute = {"catalog": storage.absolute(inference["catalog"])} if inference["catalog"] else {}
        known = {name: inference[name] for name in fields(CatalogConfig) if name in inference} | absolute
        images = bundle.images
        self._source, units = open_source(
            dataset,
            split="",
            catalog=build(CatalogConfig, known, recorded=True),
            bands=images.bands,
            noise_planes=images.noise_planes,
            size=images.size,
            pixel_scale_arcsec=images.pixel_scale_arcsec,
        )
        self._plan = pa.concat_tables([unit.rows.table for unit in units if unit.rows])
        self.info = self._source.info

    def __call__(self, identifier: int | str) -> _Cutout | None:
        place = pc.index(self._plan["object_id"], pa.scalar(identifier, self._plan["object_id"].type)).as_py()
        if place < 0:
            return None
        unit = Unit(name="", num_rows=1, rows=packing.PlannedRows(self._plan.slice(place, 1)))
        ((rows, _),) = self._source.read(unit, 1)
        return None if rows["reason"][0] else _Cutout(rows["image"][0], int(rows[shards.SIDE][0]))
