"""The `split` verb: writes the train, devel and test tables of a GaMPEN data folder."""

from typing import Annotated, Literal

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import Needs, config_class, fields


@config_class
class SplitTablesConfig:
    """Write the train, devel and test tables of a GaMPEN data folder: GaMPEN's 42, stratified ones, or by sky region."""

    images: str
    """GaMPEN data folder, whose info.csv is split; `ingest --split-slug` reads the tables from its folder splits/."""
    catalog: str = ""
    """CSV table to split instead of info.csv."""
    output: str = ""
    """Folder for the tables; files of other content are never overwritten. Empty: splits/ in `images`."""
    scheme: Literal["gampen", "stratified", "sky"] = "gampen"
    """gampen: balanced-* and unbalanced-*, row for row as in GaMPEN, where the balanced ones are random draws too. stratified:
    every part has the same distribution of the target. sky: galaxies of one region of the sky are in one part (columns ra and
    dec, degrees). Each has the train/devel/test fractions xs .027/.003/.970, sm .045/.005/.950, md .09/.01/.90, lg .20/.05/.75,
    xl .45/.05/.50, dev .70/.15/.15 and dev2 .70/.05/.25."""
    target: Annotated[str, Needs("scheme", "gampen", "stratified")] = "bt_g"
    """Column used by the balanced and the stratified splits, finite in every row."""
    num_strata: Annotated[int, Needs("scheme", "stratified")] = pydantic.Field(default=20, ge=1)
    """Stratified only: number of strata of equal size in order of the target; each is divided by the fractions."""
    cell_size_deg: Annotated[float, Needs("scheme", "sky")] = pydantic.Field(default=1.0, ge=0.001, le=58.0)
    """Sky only: side of the HEALPix cells that are kept whole, degrees, rounded to the nearest HEALPix resolution."""
    seed: Annotated[int, Needs("scheme", "stratified", "sky")] = pydantic.Field(default=0, ge=0)
    """Seed of the stratified and the sky splits; GaMPEN's are always the same."""


@verb("split", positional="images")
def split(config: SplitTablesConfig) -> dict[str, int]:
    """Write the tables; see `gampen_ray.data.split_tables.write_tables`."""
    from gampen_ray.data.split_tables import write_tables

    return write_tables(**{name: getattr(config, name) for name in fields(SplitTablesConfig)})
