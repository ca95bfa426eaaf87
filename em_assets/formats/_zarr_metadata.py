"""The metadata of one Zarr array: `.zarray` (version 2) or `zarr.json` (version 3), read strictly.

Specifications: zarr-specs.readthedocs.io, v2 and v3. What would change how bytes become voxels and is not known is
refused by name; nothing is passed on to a library that might guess.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from em_assets.errors import Malformed, Unsupported
from em_assets.formats._chunk_codecs import STRUCT_FORMATS, Index, ZarrCodec
from em_assets.formats._compression import BLOSC_CODECS, Compression
from em_assets.formats._stored_array import (
    StoredArray,
    require_chunk_bytes,
    require_shapes,
    short,
    whole_numbers,
)
from em_assets.formats._zarr_shards import MAX_INDEX_BYTES, Sharding

DTYPES = ", ".join(STRUCT_FORMATS)
V2_DTYPES = {"|b1": "u1", "|u1": "u1", "|i1": "i1"} | {
    f"{order}{kind}": f"{order}{kind}"
    for order in "<>"
    for kind in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
}
V2_COMPRESSORS: dict[str, Compression] = {
    "zstd": "zstd",
    "zlib": "zlib",
    "gzip": "gzip",
    "blosc": "blosc",
    "lz4": "lz4",
    "bz2": "bz2",
}
V3_COMPRESSORS: dict[str, Compression] = {"zstd": "zstd", "gzip": "gzip", "blosc": "blosc"}
V3_CODECS = ("transpose", "bytes", "sharding_indexed", *V3_COMPRESSORS, "crc32c")
V3_KNOWN = {
    "zarr_format",
    "node_type",
    "shape",
    "data_type",
    "chunk_grid",
    "chunk_key_encoding",
    "fill_value",
    "codecs",
    "attributes",
    "dimension_names",
    "storage_transformers",
}
FLOAT_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def parse_v2(document: Any, attributes: Any, where: str) -> StoredArray:
    """An array by its `.zarray` and `.zattrs` (None without one). Raises Malformed or Unsupported naming the field."""
    fields = _object(document, where)
    if fields.get("zarr_format") != 2:
        raise Malformed(f"{where}: /zarr_format is {short(fields.get('zarr_format'))}, expected 2.")
    shape = whole_numbers(fields.get("shape"), 0, f"{where}: /shape")
    chunk = whole_numbers(fields.get("chunks"), 1, f"{where}: /chunks")
    require_shapes(shape, chunk, where)
    dtype = _v2_dtype(fields.get("dtype"), where)
    require_chunk_bytes(chunk, dtype.name, where)
    if fields.get("filters"):
        raise Unsupported(f"{where}: /filters is {short(fields['filters'])}; accepted are arrays without filters.")
    order = fields.get("order", "C")
    if order not in ("C", "F"):
        raise Malformed(f"{where}: /order is {short(order)}, expected C or F.")
    axes = tuple(range(len(shape)))
    separator = fields.get("dimension_separator", ".")
    codec = ZarrCodec(dtype, chunk, axes if order == "C" else axes[::-1], _v2_compression(fields, where))
    attributes = attributes if isinstance(attributes, dict) else {}
    return StoredArray(
        shape,
        chunk,
        dtype.name,
        _fill_value(fields.get("fill_value"), dtype.name, where),
        codec,
        _namer("", _separator(separator, f"{where}: /dimension_separator")),
        axes=_axis_names(attributes.get("_ARRAY_DIMENSIONS"), len(shape)),
        attributes=attributes,
        is_bool=fields["dtype"] == "|b1",
    )


def parse_v3(document: Any, where: str) -> StoredArray:
    """An array by its `zarr.json`. Raises Malformed or Unsupported naming the field."""
    fields = _object(document, where)
    if fields.get("zarr_format") != 3 or fields.get("node_type") != "array":
        found = f"{short(fields.get('zarr_format'))} and {short(fields.get('node_type'))}"
        raise Malformed(f"{where}: /zarr_format and /node_type are {found}, expected 3 and 'array'.")
    _refuse_what_must_be_understood(fields, where)
    shape = whole_numbers(fields.get("shape"), 0, f"{where}: /shape")
    grid, grid_options = _named(fields.get("chunk_grid"), f"{where}: /chunk_grid")
    if grid != "regular":
        raise Unsupported(f"{where}: /chunk_grid is {grid!r}; accepted is 'regular'.")
    chunk = whole_numbers(grid_options.get("chunk_shape"), 1, f"{where}: /chunk_grid/configuration/chunk_shape")
    require_shapes(shape, chunk, where)
    name = _v3_dtype(fields.get("data_type"), where)
    codec, inner, sharding = _v3_codecs(fields.get("codecs"), chunk, name, f"{where}: /codecs")
    attributes = fields.get("attributes")
    return StoredArray(
        shape,
        inner,
        name,
        _fill_value(fields.get("fill_value"), name, where),
        codec,
        _v3_namer(fields.get("chunk_key_encoding"), f"{where}: /chunk_key_encoding"),
        sharding,
        _axis_names(fields.get("dimension_names"), len(shape)),
        attributes if isinstance(attributes, dict) else {},
        is_bool=fields["data_type"] == "bool",
    )


def _v2_dtype(value: object, where: str) -> np.dtype[Any]:
    if not isinstance(value, str) or value not in V2_DTYPES:
        raise Unsupported(f"{where}: /dtype is {short(value)}; accepted are {DTYPES} and bool.")
    return np.dtype(V2_DTYPES[value])


def _v3_dtype(value: object, where: str) -> str:
    if value == "bool":
        return "uint8"
    if not isinstance(value, str) or value not in STRUCT_FORMATS:
        raise Unsupported(f"{where}: /data_type is {short(value)}; accepted are {DTYPES} and bool.")
    return value


def _v2_compression(fields: dict[str, Any], where: str) -> Compression | None:
    compressor = fields.get("compressor")
    if compressor is None:
        return None
    options = _object(compressor, f"{where}: /compressor")
    name = options.get("id")
    if not isinstance(name, str) or name not in V2_COMPRESSORS:
        raise Unsupported(
            f"{where}: /compressor/id is {short(name)}; accepted are none and {', '.join(V2_COMPRESSORS)}."
        )
    _require_blosc_codec(name, options, f"{where}: /compressor")
    return V2_COMPRESSORS[name]


def _require_blosc_codec(name: str, options: dict[str, Any], where: str) -> None:
    inner = options.get("cname", "lz4")
    if name == "blosc" and inner not in BLOSC_CODECS:  # a tuple: what is not hashable is not in it either
        raise Unsupported(f"{where}/cname is {short(inner)}; accepted are {', '.join(BLOSC_CODECS)}.")


def _v3_codecs(value: object, chunk: Index, dtype: str, where: str) -> tuple[ZarrCodec, Index, Sharding | None]:
    """(codec of a chunk, its shape, how it lies in a shard)."""
    if not isinstance(value, list) or not value:
        raise Malformed(f"{where} is {short(value)}, expected a list of codecs.")
    name, options = _named(value[0], f"{where}/0")
    if name != "sharding_indexed":
        require_chunk_bytes(chunk, dtype, where)
        return _v3_chain(value, chunk, dtype, where), chunk, None
    if len(value) > 1:
        raise Unsupported(f"{where} has {len(value)} codecs; accepted is 'sharding_indexed' alone.")
    where = f"{where}/0/configuration"
    inner = whole_numbers(options.get("chunk_shape"), 1, f"{where}/chunk_shape")
    if len(inner) != len(chunk) or any(a % b for a, b in zip(chunk, inner, strict=True)):
        raise Malformed(f"{where}/chunk_shape is {inner}, which does not divide the shard's {chunk}.")
    require_chunk_bytes(inner, dtype, where)
    sharding = _sharding(options, tuple(a // b for a, b in zip(chunk, inner, strict=True)), where)
    return _v3_chain(options.get("codecs"), inner, dtype, f"{where}/codecs"), inner, sharding


def _sharding(options: dict[str, Any], chunks: Index, where: str) -> Sharding:
    location = options.get("index_location", "end")
    if location not in ("start", "end"):
        raise Malformed(f"{where}/index_location is {short(location)}, expected 'start' or 'end'.")
    codec = _v3_chain(options.get("index_codecs"), (*chunks, 2), "uint64", f"{where}/index_codecs")
    if codec.compression or codec.order != tuple(range(len(chunks) + 1)) or codec.checksums_around > 1:
        raise Unsupported(f"{where}/index_codecs is {short(options['index_codecs'])}; accepted are bytes and crc32c.")
    order: Literal["<", ">"] = ">" if codec.dtype.byteorder == ">" else "<"
    sharding = Sharding(chunks, location == "end", order, codec.checksums_around == 1)
    if sharding.index_bytes > MAX_INDEX_BYTES:
        raise Unsupported(f"{where}: a shard has {math.prod(chunks)} chunks, more than {MAX_INDEX_BYTES // 16}.")
    return sharding


def _v3_chain(value: object, chunk: Index, dtype: str, where: str) -> ZarrCodec:
    """What a list of codecs does: transpositions, then bytes, then at most one compressor and checksums around it."""
    if not isinstance(value, list):
        raise Malformed(f"{where} is {short(value)}, expected a list of codecs.")
    order: Index = tuple(range(len(chunk)))
    plain: np.dtype[Any] | None = None
    compression: Compression | None = None
    within = around = 0
    for number, item in enumerate(value):
        here = f"{where}/{number}"
        name, options = _named(item, here)
        if name == "transpose" and plain is None:
            order = tuple(order[axis] for axis in _transposition(options.get("order"), len(chunk), here))
        elif name == "bytes" and plain is None:
            plain = np.dtype(dtype).newbyteorder(_endian(options.get("endian"), dtype, here))
        elif name in V3_COMPRESSORS and plain is not None and compression is None:
            compression = V3_COMPRESSORS[name]
            _require_blosc_codec(name, options, f"{here}/configuration")
            within, around = around, 0
        elif name == "crc32c" and plain is not None:
            around += 1
        else:
            raise Unsupported(
                f"{here} is {name!r}; accepted are {', '.join(V3_CODECS)}, with one 'bytes' before at most one "
                "compressor and no shards within shards."
            )
    if plain is None:
        raise Malformed(f"{where} has no 'bytes', so it does not say how voxels become bytes.")
    return ZarrCodec(plain, chunk, order, compression, within, around)


def _transposition(value: object, axes: int, where: str) -> Index:
    if value in ("C", "F"):  # as written before the specification was final
        return tuple(range(axes)) if value == "C" else tuple(range(axes))[::-1]
    order = whole_numbers(value, 0, f"{where}/configuration/order")
    if sorted(order) != list(range(axes)):
        raise Malformed(f"{where}/configuration/order is {order}, expected the numbers 0 to {axes - 1}.")
    return order


def _endian(value: object, dtype: str, where: str) -> Literal["<", ">"]:
    if value is None and np.dtype(dtype).itemsize == 1:
        return "<"
    if value not in ("little", "big"):
        raise Malformed(f"{where}/configuration/endian is {short(value)}, expected 'little' or 'big'.")
    return "<" if value == "little" else ">"


def _v3_namer(value: object, where: str) -> Callable[[Index], str]:
    name, options = _named(value, where)
    if name not in ("default", "v2"):
        raise Unsupported(f"{where} is {name!r}; accepted are 'default' and 'v2'.")
    default = "/" if name == "default" else "."
    separator = _separator(options.get("separator", default), f"{where}/configuration/separator")
    return _namer(f"c{separator}" if name == "default" else "", separator)


def _namer(prefix: str, separator: str) -> Callable[[Index], str]:
    return lambda cell: prefix + separator.join(map(str, cell))


def _separator(value: object, where: str) -> str:
    if value not in (".", "/"):
        raise Malformed(f"{where} is {short(value)}, expected '.' or '/'.")
    return str(value)


def _refuse_what_must_be_understood(fields: dict[str, Any], where: str) -> None:
    if fields.get("storage_transformers"):
        raise Unsupported(
            f"{where}: /storage_transformers is {short(fields['storage_transformers'])}; accepted are arrays without."
        )
    for key, value in fields.items():
        optional = value is None or (isinstance(value, dict) and value.get("must_understand") is False)
        if key not in V3_KNOWN and not optional:
            raise Unsupported(
                f"{where}: /{short(key)[1:-1]} is not known, and it must be understood to read the array."
            )


def _fill_value(value: object, dtype: str, where: str) -> int | float:
    """Of an absent chunk. Raises Malformed if no voxel can have it."""
    problem = Malformed(f"{where}: /fill_value is {short(value)}, which no voxel of {dtype} can have.")
    if value is None:
        return 0
    if dtype.startswith("float"):
        return _float_fill(value, dtype, problem)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise problem
    limits = np.iinfo(dtype)
    if not limits.min <= value <= limits.max:
        raise problem
    return int(value)


def _float_fill(value: object, dtype: str, problem: Malformed) -> float:
    if isinstance(value, str) and value in FLOAT_NAMES:
        return FLOAT_NAMES[value]
    if isinstance(value, str) and re.fullmatch(rf"0x[0-9a-fA-F]{{{2 * np.dtype(dtype).itemsize}}}", value):
        return float(np.frombuffer(bytes.fromhex(value[2:]), np.dtype(dtype).newbyteorder(">"))[0])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise problem
    try:
        return float(value)
    except OverflowError:
        raise problem from None


def _axis_names(value: object, axes: int) -> tuple[str, ...] | None:
    """As the array states them; None where it does not name every axis."""
    if isinstance(value, list) and len(value) == axes and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    return None


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed(f"{where} is {short(value)}, expected a JSON object.")
    return value


def _named(value: object, where: str) -> tuple[str, dict[str, Any]]:
    """(name, configuration) of a version 3 extension, which may be written as its name alone."""
    if isinstance(value, str):
        return value, {}
    fields = _object(value, where)
    name, options = fields.get("name"), fields.get("configuration", {})
    if not isinstance(name, str) or not isinstance(options, dict):
        raise Malformed(f"{where} is {short(value)}, expected a name and a configuration.")
    return name, options
