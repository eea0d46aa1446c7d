"""The head of a VOTable (IVOA, VOTable 1.4): the columns of a catalogue with units, UCDs and descriptions, without data.

It stands in the metadata of each Parquet file, as the convention VOParquet has it (IVOA Note, Parquet in the VO, 1.0), where
TOPCAT, STILTS and astropy's format ``parquet.votable`` read it, and at the beginning of a VOTable file.
"""

import xml.etree.ElementTree as ET
from collections.abc import Mapping

import pyarrow as pa

from gampen_ray.data.units import vo_unit

__all__ = ["TITLE", "parquet_metadata", "votable"]

TITLE = "Posteriors of galaxies, by gampen_ray"
"""Title of every catalogue."""
_PLAIN = {
    pa.bool_(): "boolean",
    pa.uint8(): "unsignedByte",
    pa.int8(): "short",
    pa.int16(): "short",
    pa.uint16(): "int",
    pa.int32(): "int",
    pa.uint32(): "long",
    pa.int64(): "long",
    pa.float32(): "float",
    pa.float64(): "double",
}


def votable(schema: pa.Schema, provenance: Mapping[str, str], sizes: Mapping[str, str]) -> str:
    """Return a VOTable document whose table has no data.

    Parameters
    ----------
    schema
        Fields with ``unit``, ``description`` and ``ucd`` in their metadata.
    provenance
        What the table's INFO elements hold, by name.
    sizes
        ``arraysize`` of the columns of text, where they have one: ``8`` if each text has eight characters, ``8*`` if at most.
    """
    root = ET.Element("VOTABLE", version="1.4", xmlns="http://www.ivoa.net/xml/VOTable/v1.3")
    table = ET.SubElement(ET.SubElement(root, "RESOURCE", type="results"), "TABLE", name="catalog")
    ET.SubElement(table, "DESCRIPTION").text = TITLE
    for name, value in provenance.items():
        ET.SubElement(table, "INFO", name=name, value=value)
    for item in schema:
        kind, size = item.type, ""
        if pa.types.is_fixed_size_list(kind):
            kind, size = kind.value_type, str(kind.list_size)
        if kind not in _PLAIN:
            size = sizes.get(item.name, "*")
        unit, description, ucd = (item.metadata[key].decode() for key in (b"unit", b"description", b"ucd"))
        optional = {"arraysize": size, "unit": vo_unit(unit), "ucd": ucd}
        given = {key: value for key, value in optional.items() if value}
        field = ET.SubElement(table, "FIELD", name=item.name, datatype=_PLAIN.get(kind, "char"), **given)
        ET.SubElement(field, "DESCRIPTION").text = description
    ET.indent(root, "")
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def parquet_metadata(schema: pa.Schema, provenance: Mapping[str, str], lengths: Mapping[str, int]) -> dict[str, str]:
    """Return the entries of a Parquet file's metadata that hold the VOTable, by the convention VOParquet.

    ``lengths`` are the most characters of the columns of text, where they are known.
    """
    # astropy merges texts only if the VOTable bounds their length.
    content = votable(schema, provenance, {name: f"{length}*" for name, length in lengths.items()})
    return {"IVOA.VOTable-Parquet.version": "1.0", "IVOA.VOTable-Parquet.content": content}
