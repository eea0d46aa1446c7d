"""The `split` verb: train, devel and test tables of a GaMPEN data folder."""

from typing import Annotated, Literal

import pydantic

from gampen_ray.commands.registry import verb
from gampen_ray.config.base import Needs, config_class, fields


@config_class
class SplitTablesConfig:
    """Write the train, devel and test tables of a GaMPEN data folder: GaMPEN's 42, stratified ones, or by sky region."""

    images: str
    """GaMPEN data folder: its info.csv is split, and below it `ingest --split-slug` looks for the tables."""
    catalog: str = ""
    """CSV table to split instead of info.csv."""
    output: str = ""
    """Folder for the tables; files of other content are never overwritten. Empty: splits/ in `images`."""
    scheme: Literal["gampen", "stratified", "sky"] = "gampen"
    """gampen: balanced-* and unbalanced-*, row for row those of GaMPEN; both are random draws, as the balanced ones are not
    balanced in GaMPEN either. stratified: every part has the same distribution of the target. sky: galaxies of one region of
    the sky are in one part (columns ra and dec, degrees). Each for the train/devel/test shares xs .027/.003/.970, sm
    .045/.005/.950, md .09/.01/.90, lg .20/.05/.75, xl .45/.05/.50, dev .70/.15/.15 and dev2 .70/.05/.25."""
    target: Annotated[str, Needs("scheme", "gampen", "stratified")] = "bt_g"
    """Column that the balanced and the stratified splits look at, a finite number in every row."""
    num_strata: Annotated[int, Needs("scheme", "stratified")] = pydantic.Field(default=20, ge=1)
    """Stratified only: groups of equal size from the lowest to the highest target, each of which is divided by the shares."""
    cell_size_deg: Annotated[float, Needs("scheme", "sky")] = pydantic.Field(default=1.0, ge=0.001, le=58.0)
    """Sky only: side of the HEALPix cells that are kept whole, degrees; the nearest that HEALPix has."""
    seed: Annotated[int, Needs("scheme", "stratified", "sky")] = pydantic.Field(default=0, ge=0)
    """Seed of the stratified and the sky splits; GaMPEN's are always the same."""


@verb("split")
def split(config: SplitTablesConfig) -> dict[str, int]:
    """Write the tables; see `gampen_ray.data.split_tables.write_tables`."""
    from gampen_ray.data.split_tables import write_tables

    return write_tables(**{name: getattr(config, name) for name in fields(SplitTablesConfig)})
