"""A survey that a user describes in a TOML file, with the fields of `gampen_ray.data.tiles.preset.TileSurvey`.

`docs/footprints.md` shows one.
"""

from gampen_ray import storage
from gampen_ray.config.base import build, load_toml
from gampen_ray.data.tiles.preset import TileSurvey, checked
from gampen_ray.errors import UserError

__all__ = ["read_survey"]


def read_survey(uri: str) -> TileSurvey:
    """Return the survey that a TOML file describes.

    Raises
    ------
    UserError
        For an unknown field or an invalid value, such as a template without a tile.
    """
    values = load_toml(storage.read_bytes(uri), uri)
    try:
        return checked(build(TileSurvey, {"name": "generic", "about": uri} | values))
    except ValueError as error:
        raise UserError(f"table: {uri}: {error}") from None
