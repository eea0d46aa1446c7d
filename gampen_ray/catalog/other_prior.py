"""Catalogues under another prior than that of the training: where it is read from, and what exchanges it."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from gampen_ray import storage
from gampen_ray.data import catalogs
from gampen_ray.errors import UserError
from gampen_ray.inference.bundle import Bundle, bundle_uri, load_bundle
from gampen_ray.inference.bundle_files import CHECKSUMS, DESCRIPTION
from gampen_ray.model.targets import TargetSchema
from gampen_ray.posterior.exchange import exchange_prior
from gampen_ray.posterior.mixture import Mixture
from gampen_ray.posterior.prior import FEWEST, Prior
from gampen_ray.provenance import content_fingerprint

__all__ = ["exchange", "predicted_again", "prior_digest", "read_prior"]


def read_prior(uri: str, bundle: Bundle) -> Prior:
    """Return the prior that a table of galaxies shows, or that another bundle was trained with.

    Parameters
    ----------
    uri
        Table of any format (`gampen_ray.data.catalogs.read_catalog`) with a column of each of the bundle's targets, in their
        units, and one row a galaxy; or a bundle, or a run folder that holds one.
    bundle
        The model whose prior is exchanged.

    Raises
    ------
    UserError
        If a column or a value is missing, the galaxies are too few, a bundle has no prior or that of other targets.
    """
    _trained(bundle)
    if any(storage.exists(storage.join(uri, name)) for name in (DESCRIPTION, f"bundle/{CHECKSUMS}")):
        other = load_bundle(bundle_uri(uri))
        if other.prior is None:
            raise UserError(f"prior: {uri} holds no prior of its training; train it again, or give a table of galaxies")
        wanted, there = ([(target.name, target.unit) for target in one.targets] for one in (bundle, other))
        if wanted != there:
            texts = [", ".join(f"{name} {unit}".strip() for name, unit in pairs) for pairs in (there, wanted)]
            raise UserError(f"prior: {uri} has the targets {texts[0]}, not {texts[1]}; give a bundle of the same, or a table")
        return other.prior
    return _fitted(uri, bundle.targets)


def _fitted(uri: str, targets: TargetSchema) -> Prior:
    table = catalogs.read_catalog(uri)
    catalogs.require_columns(uri, table, dict.fromkeys(targets.names, "prior"))
    catalogs.compare_units(uri, table, {target.name: target.unit for target in targets}, "prior")
    if len(table) < FEWEST:
        raise UserError(f"prior: {uri} has {len(table)} rows; give {FEWEST} galaxies or more, better some 10,000")
    columns = []
    for name in targets.names:
        value_N, fault_N = catalogs.numbers(table[name])
        if (bad := np.flatnonzero(fault_N != "")).size:
            raise UserError(f"prior: {uri}: {name} {fault_N[bad[0]]} in {len(bad):,} of {len(value_N):,} rows; leave them out")
        if np.ptp(value_N) == 0:
            raise UserError(f"prior: {uri}: {name} is {value_N[0]:g} in all rows; give values that vary")
        columns.append(value_N)
    try:
        return Prior.fit(np.stack(columns, axis=1), targets)
    except UserError as error:
        raise UserError(f"prior: {uri}: {error}") from None


def prior_digest(prior: Prior) -> str:
    """Return a hash of a prior, wherever it was read from."""
    return content_fingerprint(prior.to_dict())


def exchange(bundle: Bundle, prior: Prior | None) -> Callable[[Mixture], tuple[Mixture, np.ndarray]] | None:
    """Return what turns a bundle's posteriors to those under a prior; None for None."""
    if prior is None:
        return None
    return functools.partial(exchange_prior, new=prior.log_density, training=_trained(bundle).log_density)


def predicted_again(manifest: dict[str, Any], bundle: Bundle, mixture: Mixture) -> Mixture:
    """Return posteriors, predicted again with the bundle of a catalogue, under the catalogue's prior."""
    prior = Prior.from_dict(manifest["prior"], bundle.targets) if "prior" in manifest else None
    change = exchange(bundle, prior)
    return change(mixture)[0] if change else mixture


def _trained(bundle: Bundle) -> Prior:
    if bundle.prior is None:
        raise UserError(
            "prior: the bundle holds no prior of its training, which another could replace; train it again, or leave prior out"
        )
    return bundle.prior
