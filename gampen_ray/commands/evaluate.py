"""The `evaluate` verb: compares a catalogue with the true values in its dataset."""

import logging
from typing import Any

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import config_class, replace
from gampen_ray.errors import UserError
from gampen_ray.messages import counted
from gampen_ray.progress import Phase

logger = logging.getLogger(__name__)

# Galaxies whose cutouts are measured, and of whose posteriors the diagnostics make draws.
_MOST_DRAWN = 5_000


@config_class
class EvaluateConfig:
    """Compare a catalogue with the true values in its dataset (accuracy, coverage before and after calibration, tests of the
    posteriors) and with the posteriors of another seed."""

    catalog: str
    """Output folder of `infer`, made with `--posterior mixture`."""
    output: str
    """Folder to create: evaluation.json."""
    seed_galaxies: int | None = pydantic.Field(default=None, ge=1)
    """Galaxies predicted once more with the next seed, to show how far a posterior depends on it; left out: 1,000, or 50 for a
    network of more than ten million parameters."""


@verb("evaluate", positional="catalog", then=lambda run: f"report --evaluation {run['output']} --output report.html")
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write ``evaluation.json`` and return its content.

    Raises
    ------
    UserError
        If the catalogue is incomplete or holds no mixtures, the dataset lacks a target, or the output holds another run.
    """

    from gampen_ray import storage
    from gampen_ray.catalog.parquet import mixture_from_catalog
    from gampen_ray.posterior import diagnostics
    from gampen_ray.reports.evaluated import EVALUATION, load_evaluated_catalog, read_evaluation
    from gampen_ray.run_folder import RunFolder

    config = replace(config, catalog=storage.absolute(config.catalog), output=storage.absolute(config.output))
    with Phase("reading the catalogue", announced=False):
        catalog = load_evaluated_catalog(config.catalog)
    try:
        mixture = mixture_from_catalog(catalog.catalog, catalog.bundle.targets)
    except ValueError as error:
        raise UserError(f"catalog: {config.catalog}: {error}") from None
    with RunFolder.open(config.output, "evaluate", config, {"catalog": catalog.digest}, complete=EVALUATION) as folder:
        if folder.is_complete:
            evaluation = read_evaluation(folder.path(EVALUATION))
        else:
            rows = catalog.spread(_MOST_DRAWN)
            versions = (mixture, catalog.bundle.calibration, catalog.truths_ND)
            with Phase(f"measuring {counted(len(rows), 'cutout')}"):
                columns = catalog.features(rows)
            with Phase("testing the posteriors"):
                evaluation = {"catalog": config.catalog, **diagnostics.evaluate(*versions, columns=columns, rows=rows)}
            with Phase("predicting with another seed"):
                evaluation["seeds"] = catalog.seed_agreement(mixture, config.seed_galaxies)
            evaluation["verdicts"] = catalog.verdicts(evaluation)
            storage.write_json(folder.path(EVALUATION), evaluation)
    for line in diagnostics.format_table(evaluation).splitlines():
        logger.info(line)
    # An evaluation of an older release has none.
    for name, row in evaluation.get("verdicts", {}).items():
        logger.log(
            logging.WARNING if row["verdict"] == "fails" else logging.INFO, "%s: %s: %s", name, row["verdict"], row["text"]
        )
    return evaluation
