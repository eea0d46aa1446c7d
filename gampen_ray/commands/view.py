"""The `view` verb: serves a page on this machine for looking at a catalogue. It starts no Ray."""

import logging
import sys

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import config_class

logger = logging.getLogger(__name__)


@config_class
class ViewConfig:
    """Look at a catalogue in a browser: table, filters, images with crops, joint posteriors, galleries, sky; Ctrl-C ends it."""

    catalog: str
    """Output folder of a finished `infer`; local or s3:// URI."""
    dataset: str = ""
    """Dataset of the catalogue, for images and true values; empty: where it was then, if it is still there."""
    bundle: str = ""
    """Bundle of the catalogue, for crops and joint posteriors; empty: where it was then, if it is still there."""
    port: int = pydantic.Field(default=0, ge=0, le=65535)
    """Port of 127.0.0.1 to listen on; 0: a free one."""
    no_browser: bool = False
    """Print the address, and open no browser."""


@verb("view", positional="catalog")
def view(config: ViewConfig) -> None:
    """Serve the page until Ctrl-C.

    Raises
    ------
    UserError
        If there is no finished catalogue, the dataset or the bundle given is not its own, or the port is in use.
    """
    import webbrowser

    from gampen_ray import storage
    from gampen_ray.progress import Phase
    from gampen_ray.viewer.galaxies import Galaxies
    from gampen_ray.viewer.server import Server

    output = storage.absolute(config.catalog)
    with Server(Galaxies(output, config.dataset, config.bundle), output, config.port) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        if not config.no_browser:
            webbrowser.open(server.url)
        try:
            with Phase("serving; Ctrl-C ends it", announced=False):
                server.serve_forever()
        except KeyboardInterrupt:
            logger.info("ended")
