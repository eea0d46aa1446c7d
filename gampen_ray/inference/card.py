"""The model card of a bundle: what it is, what it was trained on, and its results on held-out galaxies.

All but the last is in the bundle. The evaluation is ``card.json`` beside it, written by `benchmarks/models.py`. It may be
missing, and it is not among the checksums: it is measured with the finished bundle, whose identity it must not change.
"""

import dataclasses
from typing import Any, Literal

import pydantic

from gampen_ray import documents, storage
from gampen_ray.config.base import config_class, to_dict
from gampen_ray.config.parts import NUM_PASSES
from gampen_ray.inference.bundle import Bundle, bundle_digest, bundle_uri, load_bundle
from gampen_ray.posterior.calibration import Coverage
from gampen_ray.posterior.summary import LEVELS

__all__ = ["CARD", "Card", "Shift", "describe", "read_card"]

CARD = "card.json"
"""Name of the file beside the bundle."""
_SURVIVES, _FLAGS = 0.04, 0.95


@config_class
class Shift:
    """What happens to the posteriors where the galaxies differ from those of the training in one respect."""

    name: str
    """The difference and its amount, such as "seeing +20 %"."""
    coverage: dict[str, float]
    """Share of the galaxies whose 68.27 % interval contains the truth, by target."""
    flagged: float = pydantic.Field(ge=0, le=1)
    """Share of the galaxies with a flag that warns of it."""
    stated: str = ""
    """Why no flag can see it, such as a zero point that the user states wrongly; empty: one could."""

    @property
    def verdict(self) -> Literal["survived", "flagged", "fails", "not visible"]:
        """survived: the coverage of each target is within 4 points of 68.27 %; flagged: 95 % of galaxies are; else fails.

        A number that is stated wrongly is not visible in the images.
        """
        if self.stated:
            return "not visible"
        if all(abs(share - LEVELS["68"]) <= _SURVIVES for share in self.coverage.values()):
            return "survived"
        return "flagged" if self.flagged >= _FLAGS else "fails"


@config_class
class Card:
    """Evaluation of a bundle on galaxies never trained on: the content of ``card.json``."""

    date: str
    """Day of the evaluation, YYYY-MM-DD."""
    galaxies: str
    """Which galaxies, in words."""
    num_galaxies: int = pydantic.Field(ge=1)
    """Their number."""
    num_passes: int = pydantic.Field(ge=1)
    """Monte Carlo dropout passes."""
    coverage: dict[str, dict[str, tuple[Coverage, ...]]]
    """Coverage by grouping ("all", or a column such as "magnitude") and bin; `gampen_ray.posterior.calibration.coverage`."""
    width: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Median posterior standard deviation by bin of magnitude and quantity, "ln_X" being relative."""
    width_over_limit: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    """Median ratio of the standard deviation to the information limit, by case ("psf_known", "psf_sizes_known", "psf_unknown"),
    bin of magnitude and quantity; `benchmarks/information_limit.py`."""
    shifts: tuple[Shift, ...] = ()
    """Differences from the training galaxies; `benchmarks/shifts.py`."""
    known_failures: tuple[str, ...] = ()
    """Where not to trust the bundle, a sentence each."""

    def __post_init__(self) -> None:
        if not self.coverage or not all(bins and all(bins.values()) for bins in self.coverage.values()):
            raise ValueError("coverage: there is none")
        tables = {"width": self.width.values(), "shifts": [shift.coverage for shift in self.shifts]}
        tables |= {f"width_over_limit.{case}": table.values() for case, table in self.width_over_limit.items()}
        for name, rows in tables.items():
            if len({tuple(row) for row in rows}) > 1 or (name.startswith("width_over_limit") and not rows):
                raise ValueError(f"{name}: its rows are not of the same quantities")


def read_card(uri: str) -> Card | None:
    """Return the evaluation beside a bundle; None: there is none.

    Raises
    ------
    UserError
        If there is no bundle, or the file does not hold a card.
    """
    card_uri = storage.join(bundle_uri(uri), CARD)
    if not storage.exists(card_uri):
        return None
    return documents.parsed(Card, storage.read_bytes(card_uri), card_uri, "delete the file, or copy the bundle again")


def describe(uri: str) -> dict[str, Any]:
    """Return the model card of a bundle as plain values.

    Parameters
    ----------
    uri
        Of the bundle or its run folder.

    Returns
    -------
    dict
        ``bundle`` (URI) and ``digest``; ``survey`` and ``images`` (bands, units and preprocessing); ``targets``, each with its
        unit, transform and training range; ``conditions``, each with its training range and mean; ``network``; ``metrics`` on
        the validation split; ``provenance``; ``evaluation``, the content of `Card`, or None.

    Raises
    ------
    UserError
        If there is no bundle, or it or its card is damaged.
    """
    digest = bundle_digest(uri)
    bundle, card = load_bundle(uri, digest), read_card(uri)
    return {
        "bundle": uri,
        "digest": digest,
        "survey": bundle.provenance.get("dataset", {}).get("survey", ""),
        "images": {**bundle.images.to_dict(), "numbers": bundle.images.number_names},
        "targets": bundle.targets.to_dict(),
        "conditions": [dataclasses.asdict(condition) for condition in bundle.images.conditions],
        "network": _network(bundle),
        "metrics": bundle.metrics,
        "provenance": bundle.provenance,
        "evaluation": to_dict(card) | {"verdicts": {s.name: s.verdict for s in card.shifts}} if card else None,
    }


def _network(bundle: Bundle) -> dict[str, Any]:
    # An imported bundle was calibrated with none.
    trained = bundle.provenance.get("train", {})
    num_passes = trained.get("calibration", {}).get("num_passes", NUM_PASSES)
    return {
        "likelihood": bundle.config.likelihood,
        "parameters": bundle.num_parameters,
        "bytes": sum(weight.nbytes for weight in bundle.network.state_dict().values()),
        "dropout_rate": bundle.config.backbone.dropout_rate,
        "num_passes": num_passes,
        "flops": bundle.flops(num_passes),
        "config": to_dict(bundle.config),
    }
