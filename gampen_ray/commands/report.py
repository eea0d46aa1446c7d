"""The `report` verb: writes one HTML page about a model and its evaluated catalogue."""

import logging

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import config_class
from gampen_ray.errors import UserError

logger = logging.getLogger(__name__)


@config_class
class ReportConfig:
    """Write one self-contained HTML page about a trained model and its evaluated catalogue."""

    evaluation: str
    """Output folder of `evaluate`."""
    output: str
    """HTML file to write."""
    num_examples: int = pydantic.Field(default=6, ge=1)
    """Galaxies shown with their crop and posterior."""
    num_angles: int | None = pydantic.Field(default=None, ge=0)
    """Rotation angles, evenly spaced over 360 degrees, at which each of them is predicted again, to show the stability of its
    posterior; 0: none; left out: 36, or 4 for a network of more than ten million parameters."""


@verb("report", positional="evaluation")
def report(config: ReportConfig) -> str:
    """Write the page and return its URI.

    Raises
    ------
    UserError
        If the evaluation, its catalogue, dataset or bundle is missing or has changed, or the output is another file.
    """
    from gampen_ray import storage
    from gampen_ray.reports.build import report_page
    from gampen_ray.reports.page import MARK

    output = storage.absolute(config.output)
    if storage.exists(output) and storage.size(output) is None:
        raise UserError(f"output: {output} is a folder; give a file, such as {storage.join(output, 'report.html')}")
    if storage.exists(output) and MARK.encode() not in storage.read_bytes(output)[:1000]:
        raise UserError(f"output: {output} exists and is not a gampen_ray report; nothing was changed: give another file")
    page = report_page(config.evaluation, num_examples=config.num_examples, num_angles=config.num_angles)
    storage.write_bytes_atomic(output, page.encode())
    logger.info("wrote %s", output)
    return output
