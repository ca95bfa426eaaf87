"""The service described for programs, as OpenAPI 3.1, and so for people: what each parameter means is said here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from em_assets.serve.limits import HEAD_BYTES, Limits
from em_assets.serve.parameters import DEFAULT_SHAPE, DTYPES

Schema = dict[str, Any]
WHOLE_ZYX = r"^-?[0-9]+,-?[0-9]+,-?[0-9]+$"
NUMBERS_ZYX = r"^[^,]+,[^,]+,[^,]+$"
ONE_OR_THREE = r"^[0-9]+(,[0-9]+,[0-9]+)?$"
NAME = r"^[a-z][a-z0-9_]{0,62}$"
HEADER_MEANINGS = {
    "X-Em-Volume": "The volume's id.",
    "X-Em-Dtype": "The dtype of the body as NumPy names it; little endian, C order, axes z, y, x.",
    "X-Em-Shape": "Shape z,y,x of the body.",
    "X-Em-Box": "First and end voxel of the level, z,y,x,z,y,x, half open; leaves the volume where it was padded.",
    "X-Em-Box-Nm": "The same box in nanometres of the publisher's frame, corner to corner.",
    "X-Em-Level": "The level that was read.",
    "X-Em-Voxel-Size-Nm": "Size z,y,x of a voxel of the block.",
    "X-Em-Valid-Fraction": "Share of the voxels that are real, 0 to 1: not missing and not padding.",
    "X-Em-Digest": "sha256 of shape, dtype, voxels and which are real: the same in Python and on the command line.",
}


def document(limits: Limits) -> Schema:
    """The whole document, with the limits that are in force."""
    paths = {
        "/": _reads("What there is", "home", {"200": _json("Links.", "Home")}),
        "/v1/datasets": _reads("Every volume that can be read", "datasets", {"200": _json("A list.", "Datasets")}),
        "/healthz": _reads("Whether the service answers", "health", {"200": _json("It does.", "Health")}),
        "/metrics": _reads("Counts for Prometheus", "metrics", {"200": _text("Text format 0.0.4.")}),
        "/openapi.json": _reads("This document", "openapi", {"200": _any_json("OpenAPI 3.1.")}),
    }
    for path, names in (("{name}", ["name"]), ("{name}/{sub}", ["name", "sub"])):
        ids = [_in_path(name) for name in names]
        suffix = "" if len(names) == 1 else "_of_volume"
        paths[f"/v1/datasets/{path}"] = _reads(
            "One volume with its levels",
            f"dataset{suffix}",
            {"200": _json("The volume.", "Dataset"), **_not_served()},
            ids,
        )
        paths[f"/v1/datasets/{path}/block"] = _reads(
            "One block of voxels",
            f"block{suffix}",
            _block_replies(limits),
            [*ids, *block_parameters(limits), *_headers()],
        )
        paths[f"/view/{path}"] = _reads(
            "Neuroglancer on the volume, with a block drawn in it",
            f"view{suffix}",
            {"302": {"description": "Leads to the client."}, **_not_served(), **_refused("422")},
            [*ids, *view_parameters()],
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "em_assets",
            "summary": "Blocks of 3D electron-microscopy volumes",
            "description": "Read-only. Triples are z, y, x; boxes are half open; sizes are nanometres. Every refusal "
            'is one sentence, `{"error": "..."}`. The OME-Zarr volumes themselves lie below `/data/`. '
            f"More than {limits.connections} connections at once get 503, very many more are cut off; so is one that "
            f"takes too little for {limits.seconds:g} s. A request whose head is not sent within "
            f"{limits.head_seconds:g} s is answered with 408, with one of more than {HEAD_BYTES} bytes with 431.",
            "version": _version(),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": SCHEMAS},
    }


def block_parameters(limits: Limits) -> list[Schema]:
    """Those of `/block`, as the document has them."""
    of_level = "voxels of the level, counted from the volume's first; may lie outside with pad"
    axis = {"type": "integer"}
    return [
        _query("start", f"First voxel z,y,x: {of_level}.", _string(WHOLE_ZYX), "512,300,77"),
        _query("z", "With y and x: the first voxel, instead of start.", axis, 512),
        _query("y", "See z.", axis, 300),
        _query("x", "See z.", axis, 77),
        _query(
            "center_nm",
            "The block's middle z,y,x in the publisher's nanometres, instead of start.",
            _three(),
            "8000,4000,4000",
        ),
        _query(
            "shape",
            f"Voxels along z,y,x, or one number for all; at most {limits.voxels} in all.",
            _string(ONE_OR_THREE) | {"default": str(DEFAULT_SHAPE[0])},
            "128",
        ),
        _query("level", "Level of the pyramid; 0 is the finest.", {"type": "integer", "minimum": 0, "default": 0}, 0),
        _query(
            "voxel_size_nm",
            "With center_nm: the level whose voxels are nearest in size; one number or z,y,x.",
            {"type": "string"},
            "16",
        ),
        _query(
            "resample",
            f"Make voxels of exactly voxel_size_nm; may take {limits.made_bytes} bytes of memory, or 413 is answered.",
            _enum("true", "false") | {"default": "false"},
            "true",
        ),
        _query(
            "pad",
            "What lies outside the volume; without it, leaving the volume is refused.",
            _enum("constant", "edge", "reflect"),
            "constant",
        ),
        _query("fill", "The value of pad=constant.", {"type": "number", "default": 0}, 0),
        _query(
            "missing",
            "What becomes of voxels that the publisher does not have.",
            _enum("raise", "mask", "fill") | {"default": "raise"},
            "mask",
        ),
        _query("dtype", "Convert to this type; only without loss of kind.", _enum(*DTYPES), "float32"),
        _query(
            "normalize",
            "Map grey values to float32: range, standard, percentile, or two values that become 0 and 1.",
            {"type": "string"},
            "percentile",
        ),
        _query(
            "labels",
            "Id of the volume whose labels are read at the same nanometres; in as much memory as resample.",
            _string(r"^[a-z0-9_]+(/[a-z0-9_]+)?$"),
            "cell/nuc",
        ),
        _query(
            "what",
            "Which array is sent: the voxels, which of them are real, the labels, which of those are.",
            _enum("data", "valid", "labels", "labels_valid") | {"default": "data"},
            "data",
        ),
        _query(
            "format", "A .npy file (format 1.0), or the bytes alone.", _enum("npy", "raw") | {"default": "npy"}, "npy"
        ),
    ]


def view_parameters() -> list[Schema]:
    """Those of `/view`."""
    return [
        _query("at", "Middle z,y,x of a block to draw, in the publisher's nanometres.", _three(), "8000,4000,4000"),
        _query("shape", "With at: its voxels of level 0 along z,y,x, or one number.", _string(ONE_OR_THREE), "128"),
    ]


def _block_replies(limits: Limits) -> Schema:
    binary: Schema = {"application/x-npy": {}, "application/octet-stream": {}}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in HEADER_MEANINGS.items()}
    headers["ETag"] = {"description": "The digest, and the coding.", "schema": {"type": "string"}}
    headers["Vary"] = {
        "description": "Accept-Encoding; and Origin, for a page elsewhere.",
        "schema": _string(r"^Accept-Encoding(, Origin)?$"),
    }
    busy = f"Busy: {limits.requests} blocks are under way, or {limits.seconds:g} s were not enough. Come again."
    return {
        "200": {"description": "The block.", "headers": headers, "content": binary},
        "206": {"description": "The part of it that Range asks for.", "headers": headers, "content": binary},
        "304": {"description": "The client has it already."},
        **_not_served(),
        **_refused("406", "No coding is left that may be sent."),
        **_refused("413", "More voxels than a request may have, or more memory than it may take to make them."),
        **_refused("416", "It has no such range of bytes."),
        **_refused("422", "The volume has no such block, or not all of it."),
        **_refused("503", busy),
    }


def _not_served() -> Schema:
    return {
        **_refused("400", "The request breaks its own rules: what is unknown, given twice or not understood."),
        **_refused("404", "There is no such volume."),
        **_refused("409", "It is not whole, so nothing is read from it."),
    }


def _refused(status: str, description: str = "There is no such place in the volume.") -> Schema:
    return {status: _json(description, "Error")}


def _reads(summary: str, name: str, replies: Schema, parameters: list[Schema] | None = None) -> Schema:
    refused = {} if "400" in replies else _refused("400", "It takes no parameters.")
    get: Schema = {"summary": summary, "operationId": name, "responses": {**replies, **refused}}
    head: Schema = {"summary": f"{summary}: the headers alone", "operationId": f"{name}_head"}
    head["responses"] = {status: {"description": reply["description"]} for status, reply in get["responses"].items()}
    if parameters:
        get["parameters"] = parameters
        head["parameters"] = [one for one in parameters if one["name"] != "Range"]
    return {"get": get, "head": head}


def _in_path(name: str) -> Schema:
    meaning = "Name of a dataset." if name == "name" else "Name of a further volume of it."
    return {"name": name, "in": "path", "required": True, "description": meaning, "schema": _string(NAME)}


def _query(name: str, description: str, schema: Schema, example: Any) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example}


def _headers() -> list[Schema]:
    meanings = {
        "Range": "One range of bytes of the body as it is sent, coded or not.",
        "If-None-Match": "A tag that the client has: 304 if it is still the block's.",
        "Accept-Encoding": "zstd, gzip, with q-values.",
    }
    return [
        {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}
        for name, text in meanings.items()
    ]


def _json(description: str, schema: str) -> Schema:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {"description": description, "content": {"application/json": {"schema": reference}}}


def _any_json(description: str) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}


def _text(description: str) -> Schema:
    return {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _string(pattern: str) -> Schema:
    return {"type": "string", "pattern": pattern}


def _three() -> Schema:
    return _string(NUMBERS_ZYX)


def _enum(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def _object(properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties, "additionalProperties": False}


def _triple(kind: str) -> Schema:
    return {"type": "array", "items": {"type": kind}, "minItems": 3, "maxItems": 3, "description": "z, y, x"}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _version() -> str:
    try:
        return version("em_assets")
    except PackageNotFoundError:  # run from its folder, not installed
        return "0"


_TEXT: Schema = {"type": "string"}
_LISTED: Schema = {
    "id": {"type": "string", "description": "`name`, or `name/volume` of a further volume."},
    "dataset": _TEXT,
    "title": _TEXT,
    "labels_of": _or_null({"type": "string", "description": "The volume whose labels these are."}),
    "shape": _or_null(_triple("integer")),
    "dtype": _or_null(_TEXT),
    "voxel_size_nm": _or_null(_triple("number")),
    "publisher": _TEXT,
    "license": _TEXT,
    "citation": _TEXT,
    "doi": _or_null(_TEXT),
    "page_url": _TEXT,
    "sha256": _or_null({"type": "string", "description": "Digest of the dataset's manifest: of all that is stored."}),
    "links": {"type": "object", "additionalProperties": _TEXT, "description": "Relative to this server."},
}
_LEVEL = _object(
    {
        "level": {"type": "integer", "minimum": 0},
        "shape": _triple("integer"),
        "voxel_size_nm": _triple("number"),
        "corner_nm": _triple("number") | {"description": "The outer corner of the first voxel, z, y, x."},
        "chunk": _triple("integer") | {"description": "Decoded at once: blocks aligned to it are read faster."},
    }
)
_DETAILED: Schema = {
    **_LISTED,
    "content": _enum("image", "labels"),
    "axes": {"const": "zyx"},
    "box_nm": _object({"start": _triple("number"), "stop": _triple("number")}),
    "levels": {"type": "array", "items": _LEVEL, "minItems": 1},
}
SCHEMAS: Schema = {
    "Error": _object({"error": {"type": "string", "description": "One sentence: what, where, and what to do."}}),
    "Home": _object({"name": _TEXT, "links": {"type": "object", "additionalProperties": _TEXT}}),
    "Health": _object({"status": {"const": "ok"}}),
    "Datasets": _object({"datasets": {"type": "array", "items": _object(_LISTED)}}),
    "Dataset": _object(_DETAILED),
}
