"""The `inspect` verb: prints what a folder or file holds, and the `ingest` command that fits. It starts no Ray."""

import shlex
import sys
from typing import Any, Literal

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config import CutoutsConfig
from gampen_ray.config.base import config_class, default, to_dict
from gampen_ray.config.inputs import FITS_FILES, ReaderConfig
from gampen_ray.messages import counted, printable


@config_class
class InspectConfig:
    """Print what a folder or file of images holds, what would be quarantined and why, and the ingest command that fits."""

    path: str
    """Folder or file of images, catalogue or dataset; local or s3:// URI."""
    catalog: str = ""
    """Table with one row per cutout; empty: GaMPEN's info.csv, or the only table in the folder."""
    pattern: str = FITS_FILES
    """Without a catalogue: glob pattern of the files in the folder."""
    file_template: str = ""
    """See `ingest`; empty: guessed."""
    reader: ReaderConfig = default(ReaderConfig)
    """How the files are read; what is left out is guessed."""
    num_images: int = pydantic.Field(default=200, ge=1)
    """Most images that are read, evenly spaced over all."""
    format: Literal["text", "json"] = "text"
    """text: lines for a terminal; json: the same as values."""


@verb("inspect", positional="path")
def inspect(config: InspectConfig) -> dict[str, Any]:
    """Print what was found and return it as plain values: ``facts``, ``reasons``, ``num_read`` and ``command``.

    Raises
    ------
    UserError
        If there is nothing, or images and catalogue do not fit each other.
    """
    import json

    from gampen_ray import storage
    from gampen_ray.data.inspection import inspect_images

    cutouts = CutoutsConfig(
        images=storage.absolute(config.path),
        catalog=storage.absolute(config.catalog) if config.catalog else "",
        pattern=config.pattern,
        file_template=config.file_template,
        reader=config.reader,
    )
    found = inspect_images(cutouts, config.num_images)
    command = _command(found.config) if found.config else ""
    result = {"facts": found.facts, "reasons": found.reasons, "num_read": found.num_read, "command": command}
    if config.format == "json":
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return result
    lines = [f"{label:<12}  {text}" for label, text in found.facts.items()]
    if found.num_read or found.reasons:
        bad = sum(found.reasons.values())
        lines += ["", f"{counted(found.num_read, 'image')} read; {counted(bad, 'galaxy', 'galaxies')} would be quarantined"]
        lines += [f"  {count:,}  {reason}" for reason, count in found.reasons.items()]
    if found.config:
        lines += ["", "To ingest (add --targets for training):", command]
    elif found.reasons:
        lines += ["", "Nothing can be ingested as it is."]
    sys.stdout.write(printable("\n".join(lines), lines=True) + "\n")
    return result


def _command(config: CutoutsConfig) -> str:
    """Return the `ingest` command of a config, without the fields that have their defaults."""
    plain, usual = to_dict(config), to_dict(CutoutsConfig(images=""))
    fields = {name: value for name, value in plain.items() if name not in ("reader", "split") and value != usual.get(name)}
    fields |= {f"reader.{name}": value for name, value in plain["reader"].items() if value != usual["reader"].get(name)}
    if config.catalog:
        fields.pop("pattern", None)
    words = ["gampen-ray", "ingest"]
    for name, value in fields.items():
        words += [f"--{name.replace('_', '-')}", ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join([*words, "--output", "data/"])
