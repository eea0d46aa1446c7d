"""A catalogue joined with the true values in its dataset.

Shape legend: N galaxies, D targets.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from gampen_ray import storage
from gampen_ray.catalog.parquet import MANIFEST, catalog_parts
from gampen_ray.data import shards
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_digest, load_bundle
from gampen_ray.model.targets import TargetSchema

EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluatedCatalog:
    """A catalogue joined with its true values.

    Parameters
    ----------
    manifest, digest
        Manifest of the catalogue, and its fingerprint.
    bundle
        Bundle that made the catalogue.
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
