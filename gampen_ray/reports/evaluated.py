"""A catalogue joined with the true values in its dataset.

Shape legend: N galaxies, D targets.
"""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pydantic
import torch

from gampen_ray import documents, storage
from gampen_ray.catalog.columns import MIXTURE_MEAN, MIXTURE_TRIL
from gampen_ray.catalog.manifest import MANIFEST, prediction_options, read_manifest
from gampen_ray.catalog.other_prior import predicted_again
from gampen_ray.catalog.parquet import catalog_parts, mixture_from_catalog
from gampen_ray.data import shards
from gampen_ray.data.cutouts import by_side
from gampen_ray.data.rows_by_id import RowsById
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.inference.crop_statistics import CropStatistics
from gampen_ray.inference.predictor import Predictor
from gampen_ray.inference.verdicts import (
    Verdict,
    bin_verdict,
    coverage_verdict,
    crop_verdict,
    local_verdict,
    radius_target,
    rank_verdict,
    score_verdict,
    seed_verdict,
)
from gampen_ray.model.measure import PLAIN_NUMBERS
from gampen_ray.posterior.bins import bins
from gampen_ray.posterior.calibration import JOINT, LEVELS, Coverage
from gampen_ray.posterior.diagnostics import Measured
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.seeds import seed_agreement
from gampen_ray.posterior.threads import one_thread
from gampen_ray.reports.joined import join

EVALUATION = "evaluation.json"
_MEASURED = ("noise", "brightness", "size", "stray_light")
# Above it many predictions take too long: the published VGG-16 takes many seconds a cutout on a CPU.
_MAX_LIGHT_PARAMETERS = 10_000_000
# Rows of a catalogue whose mixtures are in memory at a time.
_BATCH = 4_096
# Of many galaxies a subset is random blocks, whose cutouts lie together: of 25 of them, if it is less than a twentieth of all.
_BLOCK, _DENSE = 25, 20
SUBSET = "random rows of the catalogue, of numpy.random.default_rng(0); of more than 20 times as many, random blocks of 25 rows"
"""What `EvaluatedCatalog.subset` gives."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Accuracy:
    median_absolute_relative_error: float | None
    mean_absolute_error: float
    unit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluation:
    """What is read again of ``evaluation.json``, except in its diagnostics."""

    __pydantic_config__: ClassVar = documents.LENIENT

    catalog: str
    where: str = ""
    truth: str = ""
    id_column: str = "object_id"
    num_galaxies: Annotated[int, pydantic.Field(ge=1)]
    accuracy: dict[str, _Accuracy]
    coverage: dict[str, tuple[Coverage, ...]]
    seeds: dict[str, Any] | None = None
    verdicts: dict[str, Verdict] = dataclasses.field(default_factory=dict)
    diagnostics: dict[str, Any] | None = None
    columns: dict[str, Any] | None = None
    sky: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for kind in ("uncalibrated", "calibrated"):
            found = [(row.target, row.level) for row in self.coverage.get(kind, ())]
            if found != [(name, level) for name in (*self.accuracy, JOINT) for level in LEVELS.values()]:
                raise ValueError(f"coverage.{kind}: its rows are not those of each target and level")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedCatalog:
    """A catalogue joined with its true values.

    Parameters
    ----------
    output
        Folder that `infer` made.
    manifest, digest
        Manifest of the catalogue, and its fingerprint.
    bundle
        Bundle that made the catalogue.
    catalog
        Galaxies that have true values, in the order of the catalogue's files (`gampen_ray.reports.joined.Joined`).
    truths_ND
        True values, physical.
    kept_R
        Which rows of the catalogue's files these are.
    num_without_truth
        Galaxies left out because no true value of them is known.
    has_cutouts
        Whether the dataset is one of shards, from which cutouts are read again.
    """

    output: str
    manifest: dict[str, Any]
    digest: str
    bundle: Bundle
    catalog: pa.Table
    truths_ND: np.ndarray
    kept_R: np.ndarray
    num_without_truth: int
    has_cutouts: bool

    @property
    def num_parameters(self) -> int:
        """Weights of the network."""
        return self.bundle.num_parameters

    @property
    def is_light(self) -> bool:
        """Whether the network predicts many cutouts in seconds."""
        return self.num_parameters <= _MAX_LIGHT_PARAMETERS

    def threads(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which to predict a few cutouts; the tensors of a light network gain nothing from more threads."""
        return one_thread() if self.is_light else contextlib.nullcontext()

    def prediction_options(self) -> dict[str, Any]:
        """Return what made the catalogue's predictions: arguments of `Predictor` and `Bundle.predict`."""
        return prediction_options(self.manifest, shards.read_dataset_info(self.manifest["config"]["dataset"]))

    def mixtures(self) -> Iterator[Mixture]:
        """Yield the posteriors, in order and a few thousand at a time.

        Raises
        ------
        UserError
            If the catalogue holds no mixtures.
        """
        start = 0
        for table in catalog_parts(self.output, [MIXTURE_MEAN, MIXTURE_TRIL], _BATCH):
            kept = self.kept_R[start : start + len(table)]
            start += len(table)
            if kept.any():
                try:
                    yield mixture_from_catalog(table.filter(pa.array(kept)), self.bundle.targets)
                except ValueError as error:
                    raise UserError(f"catalog: {self.output}: {error}") from None

    def by(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return columns to group galaxies by: numbers as float64, NaN where unknown; texts and truth values as text.

        Raises
        ------
        UserError
            If one has neither, or too few galaxies of any value.
        """
        columns = {name: _values(name, self.catalog[name]) for name in names}
        for name, value_N in columns.items():
            if not bins({name: value_N}):
                raise UserError(f"bins: {name}: no value is known of 25 galaxies; leave it out")
        return columns

    def positions(self) -> np.ndarray:
        """Return right ascension and declination, N x 2, degrees; NaN where unknown."""
        return np.stack([_values(name, self.catalog[name]) for name in ("ra", "dec")], axis=1)

    def images(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the cutouts of some rows of the catalogue, N x C x H x W (N x 2C x H x W if the bundle takes noise planes),
        and their sides before they were padded, N."""
        id_U, inverse_N = np.unique(self._ids(rows), return_inverse=True)
        places, images, sides = (np.concatenate(parts) for parts in zip(*self._cutouts(id_U), strict=True))
        # Of several images of one identifier, as for the rest of the catalogue, any.
        index_U = np.zeros(len(id_U), int)
        index_U[places] = np.arange(len(places))
        return images[index_U[inverse_N]], sides[index_U[inverse_N]]

    def _ids(self, rows: np.ndarray) -> np.ndarray:
        return self.catalog["object_id"].take(rows).combine_chunks().to_numpy(zero_copy_only=False)

    def _cutouts(self, id_U: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield the cutouts of sorted identifiers, shard by shard: their places, N x C x H x W, and sides; see `images`."""
        wanted = shards.image_columns(self.bundle.images.noise_planes)
        for found in self._rows(pa.array(id_U), wanted, [shards.SIDE]):
            yield found.places, shards.images(found.table)[found.rows], shards.sides(found.table)[found.rows]

    @functools.cached_property
    def _rows(self) -> RowsById:
        inference = self.manifest["config"]
        return RowsById(inference["dataset"], inference["split"])

    def features(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return what is known of the galaxies without their truth, by name, N each.

        The conditions, the scale of a learned crop, and of the given rows what arithmetic measures in the cutouts, if there
        are any (`_MEASURED` of `gampen_ray.model.measure.PLAIN_NUMBERS`, the mean over the bands); NaN elsewhere.
        """
        crop = {} if self.bundle.network.transformer is None else {"crop_scale": self.catalog["crop_scale"].to_numpy()}
        known = self.conditions(slice(None)) | crop
        return known | self._measured(rows) if self.has_cutouts else known

    @one_thread()
    def _measured(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        images, options = self.bundle.images, self.prediction_options()
        id_U, inverse_N = np.unique(self._ids(rows), return_inverse=True)
        measured_QU = np.full((len(_MEASURED), len(id_U)), np.nan)
        chosen = [PLAIN_NUMBERS.index(name) for name in _MEASURED]
        for place_N, image_NCHW, side_N in self._cutouts(id_U):
            # Around a padded one there is neither sky nor noise.
            for some, inside in by_side(side_N, image_NCHW.shape[-1]):
                matched = images.match(
                    torch.from_numpy(image_NCHW[some][..., inside, inside]),
                    zero_point_mag=options["zero_point_mag"],
                    pixel_scale_arcsec=options["pixel_scale_arcsec"],
                )
                number_NQ = images.plain_numbers(matched)[:, chosen].mean(2)
                measured_QU[:, place_N[some]] = number_NQ.T.double().numpy()
        measured_QN = np.full((len(_MEASURED), len(self.catalog)), np.nan)
        measured_QN[:, rows] = measured_QU[:, inverse_N]
        return {f"measured_{name}": value_N for name, value_N in zip(_MEASURED, measured_QN, strict=True)}

    def conditions(self, rows: np.ndarray | slice) -> dict[str, np.ndarray]:
        """Return the conditions of some rows of the catalogue by name, NaN where one is unknown."""
        return {name: self.catalog[name].to_numpy()[rows] for name in self.bundle.images.condition_names}

    @property
    def crop(self) -> CropStatistics | None:
        """Statistics of the learned crops; dead units are those of the training, where they are known."""
        if self.bundle.network.transformer is None:
            return None
        d, trained = radius_target(self.bundle.targets.names), self.bundle.metrics.get("crop") or {}
        return CropStatistics.of(
            self.catalog["crop_scale"].to_numpy(),
            dead_fraction=trained.get("dead_fraction"),
            radius_N=None if d is None else self.truths_ND[:, d],
        )

    def verdicts(self, evaluation: dict[str, Any]) -> dict[str, dict[str, str]]:
        """Return the verdicts on an evaluation of this catalogue, as plain values by name."""
        verdicts: dict[str, Verdict] = {}
        if (crop := self.crop) is not None:
            verdicts["crop"] = crop_verdict(crop)
        verdicts["coverage"] = coverage_verdict(evaluation["coverage"]["calibrated"])
        found = evaluation["diagnostics"]
        names = self.bundle.targets.names
        verdicts["ranks"] = rank_verdict({name: found["ranks"][name] for name in names})
        curves = {name: found["curves"][name] for name in names}
        verdicts["levels"] = rank_verdict(curves, "the {level} interval of {name} holds {share} of the truths")
        verdicts["joint"] = rank_verdict({"joint density": found["ranks"][JOINT]})
        verdicts["tarp"] = rank_verdict({"distance from their reference points": found["ranks"]["tarp"]})
        verdicts["scores"] = score_verdict(found["scores"], len(names))
        verdicts["bins"] = bin_verdict(found["bins"])
        verdicts["local"] = local_verdict(found["local"])
        for name in ("columns", "sky"):
            if any(not row.get("of_truth") for row in evaluation.get(name, {}).get("rows", ())):
                verdicts[name] = bin_verdict(evaluation[name])
        if evaluation["seeds"] is not None:
            verdicts["seeds"] = seed_verdict(evaluation["seeds"])
        trained = {name: row for name, row in self.bundle.metrics.get("verdicts", {}).items() if name == "training"}
        return trained | {name: verdict.to_dict() for name, verdict in verdicts.items()}

    def subset(self, count: int) -> np.ndarray:
        """Return so many rows of the catalogue at random, in order, or all if it has no more.

        They are a random sample (`numpy.random.default_rng(0)`), of many galaxies one of blocks of 25 rows.
        """
        block = _BLOCK if len(self.catalog) > _DENSE * count else 1
        blocks = _sample(len(self.catalog) // block, -(-count // block))
        return (block * blocks[:, None] + np.arange(block)).ravel()[:count]

    def seed_agreement(self, found: Measured, num_galaxies: int | None) -> dict[str, Any] | None:
        """Compare the catalogue's posteriors with those of the next seed, as `SeedAgreement.to_dict` has it.

        Parameters
        ----------
        found
            Posteriors, some of which are predicted once more.
        num_galaxies
            Their number; None: 1,000, or 50 if the network is not light.

        Returns
        -------
        dict or None
            None: there are no cutouts.
        """
        if not self.has_cutouts:
            return None
        chosen = _sample(len(found.rows), num_galaxies or (1_000 if self.is_light else 50))
        rows, options = found.rows[chosen], self.prediction_options()
        predict = Predictor(self.bundle, **options | {"seed": options["seed"] + 1})
        image_NCHW, side_N = self.images(rows)
        with self.threads():
            prediction = predict(image_NCHW, self.bundle.condition_values(self.conditions(rows), len(rows)), side_N)
        usable = np.flatnonzero(prediction.usable_N)
        again = predicted_again(self.manifest, self.bundle, prediction.mixture[usable])
        agreement = seed_agreement(found.some[chosen[usable]], again)
        return agreement.to_dict(self.bundle.config.backbone.dropout_rate)


def _sample(num_rows: int, count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).choice(num_rows, min(count, num_rows), replace=False))


def _values(name: str, column: pa.ChunkedArray) -> np.ndarray:
    """Return a column as float64 or, if it holds texts or truth values, as text."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind):
        return column.cast(pa.float64()).to_numpy()
    try:
        return column.cast(pa.string()).fill_null("").to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(f"bins: {name} is {kind}, neither numbers nor texts; leave it out") from None


def read_evaluation(uri: str) -> dict[str, Any]:
    """Return what a file of an evaluation holds, see `gampen_ray.commands.evaluate`; a `UserError` if it is damaged."""
    return documents.read(Annotated[dict[str, Any], documents.holds(_Evaluation)], uri, "delete it, and run evaluate again")


def load_evaluated_catalog(
    output: str,
    *,
    columns: Mapping[str, str] | None = None,
    where: str = "",
    truth: str = "",
    id_column: str = "object_id",
) -> EvaluatedCatalog:
    """Join a catalogue (the output folder of ``infer``) with the true values of its dataset or a table.

    Parameters
    ----------
    output
        The folder.
    columns, where, truth, id_column
        As for `gampen_ray.reports.joined.join`.

    Raises
    ------
    UserError
        If the catalogue is not complete, there is no true value of a target, or what is joined does not fit.
    """
    manifest = read_manifest(output)
    digest = hashlib.sha256(storage.read_bytes(storage.join(output, MANIFEST))).hexdigest()
    inference = manifest["config"]
    # Without it, truths of a table are all that is needed.
    has_cutouts = storage.exists(storage.join(inference["dataset"], shards.DATASET_JSON))
    if not (truth or has_cutouts):
        raise UserError(
            f"catalog: {output} is of {inference['dataset']}, which has no true values; give --truth, a table of them"
        )
    now = {"bundle": bundle_digest(inference["bundle"])}
    if has_cutouts:
        now["dataset"] = shards.read_dataset_info(inference["dataset"]).fingerprint
    for name, value in now.items():
        if manifest["inputs"][name] != value:
            raise UserError(f"catalog: {output} was made with another {name} than {inference[name]} holds now; run infer again")
    bundle = load_bundle(inference["bundle"], now["bundle"])
    joined = join(
        output,
        dataset=inference["dataset"] if has_cutouts else "",
        split=inference["split"],
        targets=bundle.targets,
        conditions=bundle.images.condition_names,
        columns=columns or {},
        where=where,
        truth=truth,
        id_column=id_column,
    )
    return EvaluatedCatalog(
        output=output,
        manifest=manifest,
        digest=digest,
        bundle=bundle,
        catalog=joined.catalog,
        truths_ND=joined.truths_ND,
        kept_R=joined.kept_R,
        num_without_truth=joined.num_without_truth,
        has_cutouts=has_cutouts,
    )
