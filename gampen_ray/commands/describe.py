"""The `describe` verb: prints the model card of a bundle."""

import sys
from typing import Any, Literal

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import config_class


@config_class
class DescribeConfig:
    """Print the model card of a bundle: what it takes and gives, its training, its results on held-out galaxies."""

    bundle: str
    """Model bundle (or the run folder that holds it): a folder, s3:// URI or builtin:NAME."""
    format: Literal["text", "json"] = "text"
    """text: tables for a terminal; json: everything that is known, with the whole training config."""


@verb("describe", positional="bundle")
def describe(config: DescribeConfig) -> dict[str, Any]:
    """Print the model card and return it as plain values; see `gampen_ray.inference.card.describe`.

    Raises
    ------
    UserError
        If there is no bundle, or it or its card is damaged.
    """
    import json

    from gampen_ray.inference import card
    from gampen_ray.messages import printable
    from gampen_ray.reports.card import card_text

    described = card.describe(config.bundle)
    text = card_text(described) if config.format == "text" else json.dumps(described, indent=2)
    sys.stdout.write(f"{printable(text, lines=True)}\n")
    return described
