"""The `evaluate` verb: compares a catalogue with true values."""

import logging
from typing import Annotated, Any

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import Needs, config_class, replace
from gampen_ray.errors import UserError
from gampen_ray.messages import counted
from gampen_ray.progress import Phase

logger = logging.getLogger(__name__)

# Galaxies whose cutouts are measured, and of whose posteriors draws are made.
_MOST_DRAWN = 5_000


@config_class
class EvaluateConfig:
    """Compare a catalogue with true values (accuracy, coverage before and after calibration, tests of the posteriors, bins of
    any column, maps of the sky) and with the posteriors of another seed."""

    catalog: str
    """Output folder of `infer`, made with `--posterior mixture`."""
    output: str
    """Folder to create: evaluation.json."""
    bins: tuple[str, ...] = ()
    """Columns of the catalogue, its dataset or the table `truth` by which coverage, bias and scatter are given, such as
    magnitude,psf_fwhm_arcsec,tile: numbers in five bins of equally many galaxies, texts by value."""
    where: str = ""
    """Subset to evaluate: comparisons of such columns with numbers and texts, joined by and, or, not:
    "magnitude < 20 and psf_fwhm_arcsec > 0.7". Empty: all galaxies."""
    truth: str = ""
    """Table with the true values, in a format that `ingest` reads as a catalogue, joined by identifier; galaxies that it lacks
    are left out. Empty: they are in the dataset."""
    id_column: Annotated[str, Needs("truth", unless="")] = "object_id"
    """Its column of identifiers."""
    seed_galaxies: int | None = pydantic.Field(default=None, ge=1)
    """Galaxies predicted once more with the next seed, to show how far a posterior depends on it; left out: 1,000, or 50 for a
    network of more than ten million parameters."""


@verb("evaluate", positional="catalog", then=lambda run: f"report --evaluation {run['output']} --output report.html")
def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Write ``evaluation.json`` and return its content.

    Raises
    ------
    UserError
        If the catalogue is incomplete or holds no mixtures, true values or a column are missing, or the output holds another
        run.
    """

    from gampen_ray import storage
    from gampen_ray.catalog.columns import MIXTURE_MEAN
    from gampen_ray.catalog.parquet import catalog_names
    from gampen_ray.commands.tile_plans import catalog_identity
    from gampen_ray.posterior import diagnostics
    from gampen_ray.reports.evaluated import EVALUATION, SUBSET, load_evaluated_catalog, read_evaluation
    from gampen_ray.run_folder import RunFolder

    uris = {name: storage.absolute(uri) for name in ("catalog", "output", "truth") if (uri := getattr(config, name))}
    config = replace(config, **uris)
    how = {name: getattr(config, name) for name in ("where", "truth", "id_column")}
    with Phase("reading the catalogue", announced=False):
        catalog = load_evaluated_catalog(config.catalog, columns=dict.fromkeys(config.bins, "bins"), **how)
    if MIXTURE_MEAN not in catalog_names(config.catalog):
        raise UserError(f"catalog: {config.catalog} has no column {MIXTURE_MEAN}: run infer with --posterior mixture")
    inputs = {"catalog": catalog.digest} | ({"truth": catalog_identity(config.truth)} if config.truth else {})
    with RunFolder.open(config.output, "evaluate", config, inputs, complete=EVALUATION) as folder:
        if folder.is_complete:
            evaluation = read_evaluation(folder.path(EVALUATION))
        else:
            by, rows, calibration = catalog.by(config.bins), catalog.subset(_MOST_DRAWN), catalog.bundle.calibration
            with Phase("reading the posteriors"):
                found = diagnostics.measure(catalog.mixtures(), calibration, catalog.truths_ND, rows)
            with Phase(f"measuring {counted(len(rows), 'cutout')}"):
                columns = catalog.features(rows)
            with Phase("testing the posteriors"):
                judged = diagnostics.evaluate(found, calibration, columns=columns, by=by, position_N2=catalog.positions())
            with Phase("predicting with another seed"):
                seeds = catalog.seed_agreement(found, config.seed_galaxies)
            subset = {"num_galaxies": len(rows), "rule": SUBSET, "for": diagnostics.OF_SOME}
            left_out = {"num_without_truth": catalog.num_without_truth}
            evaluation = {"catalog": config.catalog, **how, **left_out, "subset": subset, **judged, "seeds": seeds}
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
