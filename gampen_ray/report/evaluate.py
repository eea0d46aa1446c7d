"""The `evaluate` verb: a catalogue against the true values in its dataset.

Shape legend: N galaxies, D targets.
"""

import dataclasses
import hashlib
import logging
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.catalog.parquet import MANIFEST, catalog_parts, mixture_from_catalog
from gampen_ray.config import EvaluateConfig
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.diagnostics import evaluate as evaluate_posteriors
from gampen_ray.posterior.diagnostics import format_table
from gampen_ray.provenance import claim_output

logger = logging.getLogger(__name__)

EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedCatalog:
    """A catalogue joined with its true values.

    Parameters
    ----------
    manifest, digest
        Of the catalogue, and a fingerprint of its content.
    bundle
        That made it.
    catalog
        Rows that have true values, in the order of ``truths_ND``.
    truths_ND
        True values, physical.
    """

    manifest: dict[str, Any]
    digest: str
    bundle: Bundle
    catalog: pa.Table
    truths_ND: np.ndarray


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write ``evaluation.json`` and return its content.

    Raises
    ------
    UserError
        If the catalogue is not complete or holds no mixtures, the dataset lacks a target, or the output holds another run.
    """
    config = dataclasses.replace(config, catalog=storage.absolute(config.catalog), output=storage.absolute(config.output))
    judged = load_evaluated_catalog(config.catalog)
    try:
        mixture = mixture_from_catalog(judged.catalog, judged.bundle.targets)
    except ValueError as error:
        raise UserError(f"catalog: {config.catalog}: {error}") from None
    claim_output(config.output, config, {"catalog": judged.digest})
    evaluation = {
        "catalog": config.catalog,
        **evaluate_posteriors(mixture, np.asarray(judged.manifest["calibration_scale"]), judged.truths_ND),
    }
    storage.write_json(storage.join(config.output, EVALUATION), evaluation)
    for line in format_table(evaluation).splitlines():
        logger.info(line)
    return evaluation


def load_evaluated_catalog(output: str) -> EvaluatedCatalog:
    """Join a catalogue (the output folder of ``infer``) with the true values of its dataset, by object_id.

    Raises
    ------
    UserError
        If the catalogue is not complete, or the dataset lacks a target.
    """
    manifest_uri = storage.join(output, MANIFEST)
    if not storage.exists(manifest_uri):
        raise UserError(f"catalog: {output} has no {MANIFEST}; give the output folder of a finished `infer`")
    digest = hashlib.sha256(storage.read_bytes(manifest_uri)).hexdigest()
    manifest = storage.read_json(manifest_uri)
    inference = manifest["config"]
    now = {"bundle": bundle_digest(inference["bundle"]), "dataset": shards.read_dataset_info(inference["dataset"]).fingerprint}
    for name, value in now.items():
        if manifest["inputs"][name] != value:
            raise UserError(f"catalog: {output} was made with another {name} than {inference[name]} holds now; run infer again")
    bundle = load_bundle(inference["bundle"])
    catalog = pa.concat_tables(list(catalog_parts(output)))
    truths = _truths(inference, bundle.targets)
    # Sort both by id: the join is then a comparison.
    catalog, truths = catalog.sort_by("object_id"), truths.sort_by("object_id")
    truths = truths.filter(pa.array(np.isin(truths["object_id"].to_numpy(), catalog["object_id"].to_numpy())))
    if len(catalog) == 0 or not catalog["object_id"].equals(truths["object_id"]):
        raise UserError(
            f"catalog: {output} holds {len(catalog)} galaxies, {len(truths)} of them in {inference['dataset']}; "
            "its dataset was changed: run infer again"
        )
    truths_ND = np.stack([truths[name].to_numpy() for name in bundle.targets.names], axis=1)
    return EvaluatedCatalog(manifest=manifest, digest=digest, bundle=bundle, catalog=catalog, truths_ND=truths_ND)


def _truths(inference: dict[str, Any], targets: TargetSchema) -> pa.Table:
    columns = ["object_id", *targets.names]
    uris = shards.shard_uris(inference["dataset"], inference["split"])
    try:
        return pa.concat_tables([shards.read_shard(uri, columns) for uri in uris])
    except UserError as error:
        raise UserError(f"catalog: its dataset lacks true values, evaluate a catalogue of one that has them: {error}") from None
