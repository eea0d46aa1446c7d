"""The `split` verb."""

from gampen_ray.config import SplitTablesConfig


def split(config: SplitTablesConfig) -> dict[str, int]:
    """Write the tables of all splits of a scheme and return their numbers of rows by file name."""
    from gampen_ray.data.split_tables import write_tables

    return write_tables(
        config.images,
        catalog=config.catalog,
        output=config.output,
        scheme=config.scheme,
        target=config.target,
        num_strata=config.num_strata,
        cell_size_deg=config.cell_size_deg,
        seed=config.seed,
    )
