"""What the footer of a Parquet file says of its columns, which a damaged one ends the process over: read in a child."""

import io

import pyarrow as pa

__all__ = ["bytes_per_row", "footer_of"]

_MAGIC = b"PAR1"
_WIDTHS = {"FLOAT": 4, "INT32": 4, "BOOLEAN": 1}


def footer_of(source: pa.NativeFile) -> bytes:
    """Return the footer of an open file, as a Parquet file without rows."""
    end = source.size()
    tail = source.read_at(8, end - 8)
    size = int.from_bytes(tail[:4], "little")
    return _MAGIC + source.read_at(size, max(0, end - 8 - size)) + tail


def bytes_per_row(footer: bytes, column: str) -> list[float]:
    """Return what a row of each row group has in memory at most, of any one leaf of a column, bytes."""
    # Not needed where images are FITS files.
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(io.BytesIO(footer))
    found = []
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        leaves = [leaf for leaf in map(group.column, range(group.num_columns)) if leaf.path_in_schema.split(".")[0] == column]
        sizes = (leaf.num_values * _WIDTHS.get(leaf.physical_type, 8) for leaf in leaves)
        found.append(max(sizes, default=0) / max(1, group.num_rows))
    return found
