"""JSON Schema (2020-12) of metadata.json, made from the catalogue's own columns, so that the two cannot part."""

from __future__ import annotations

from typing import Any, get_args

from em_assets.catalog.schema import DATASETS, Column
from em_assets.catalog.vocabulary import FIELDS, Field
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.records import Status

DIALECT = "https://json-schema.org/draft/2020-12/schema"
ALWAYS_KNOWN: dict[str, dict[str, Any]] = {
    "name": {"type": "string", "pattern": NAME_PATTERN},
    "status": {"enum": list(get_args(Status))},
}
"""All else is null where it is unknown."""
TYPES: dict[str, dict[str, Any]] = {
    "VARCHAR": {"type": ["string", "null"]},
    "BOOLEAN": {"type": ["boolean", "null"]},
    "INTEGER": {"type": ["integer", "null"]},
    "BIGINT": {"type": ["integer", "null"]},
    "DOUBLE": {"type": ["number", "null"]},
    "DATE": {"type": ["string", "null"], "format": "date"},
    "TIMESTAMP": {"type": ["string", "null"], "format": "date-time"},
    "JSON": {"type": ["object", "array", "null"]},
}
OBJECTS: dict[str, dict[str, Any]] = {
    "volumes": {"type": ["object", "null"], "additionalProperties": {"type": "object"}},
    "local_paths": {
        "type": ["object", "null"],
        "description": "What is where, from the store's root: volume, manifest, coverage, preview ...",
        "additionalProperties": {"type": "string", "pattern": "^(?![/~]|[A-Za-z]+:)"},
    },
    "additional_metadata": {"type": ["object", "null"]},
}


def record_schema() -> dict[str, Any]:
    """Of the whole file, a list; one record is `#/$defs/record`."""
    record = {
        "title": "Record of one dataset",
        "description": f"{DATASETS.comment} Triples are z, y, x; boxes are half open; times are in UTC.",
        "type": "object",
        "properties": {column.name: _property(column) for column in DATASETS.columns},
        "required": [column.name for column in DATASETS.columns],
        "additionalProperties": False,
    }
    return {
        "$schema": DIALECT,
        "title": "Records of all datasets",
        "type": "array",
        "items": {"$ref": "#/$defs/record"},
        "$defs": {"record": record},
    }


def _property(column: Column) -> dict[str, Any]:
    described = {"description": column.comment, **_type(column)}
    field = FIELDS.get(column.name)
    return described | ({"$comment": _elsewhere(field)} if field is not None else {})


def _type(column: Column) -> dict[str, Any]:
    known = ALWAYS_KNOWN.get(column.name) or OBJECTS.get(column.name)
    if known is not None:
        return known
    item, triple, _ = column.type.partition("[3]")
    if not triple:
        return TYPES[item]
    number = TYPES[item]["type"][0]
    return {"type": ["array", "null"], "items": {"type": number}, "minItems": 3, "maxItems": 3}


def _elsewhere(field: Field) -> str:
    """What other vocabularies call it."""
    names = {"REMBI": field.module, "OME": field.ome, "EMPIAR": field.empiar, "DataCite": field.datacite}
    return "; ".join(f"{vocabulary}: {name}" for vocabulary, name in names.items() if name is not None)
