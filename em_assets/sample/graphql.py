"""GraphQL as the CryoET Data Portal's API answers it, over any tree in the portal's layout that the server serves.

`POST .../graphql` is about the tree in the folder before it; `POST /graphql` about the only one there is. The schema is
the one that the portal's own client carries; the rows are `cryoet_entities.py`'s. As the real API: lists without
`limitOffset` come whole, relations in pages; several things are wrong only on request, `?fault=` one of FAULTS.
"""

from __future__ import annotations

import base64
import functools
import importlib.util
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from em_assets.errors import Unsupported
from em_assets.sample.cryoet_entities import Entities, Row, entities_of_tree, is_tree, metadata_files
from em_assets.sample.cryoet_rows import Rows, count_of

if TYPE_CHECKING:
    from graphql import GraphQLResolveInfo, GraphQLSchema

SUFFIX = "/graphql"
FAULTS = {
    "errors": "status 200 with `errors` and no data",
    "null": "status 200 with data that is null, and no errors",
    "missing": "every column that may be null is",
    "endless": "every page is the first, and says that there are more",
    "page": "status 200 with a web page",
}
WEB_PAGE = "<!DOCTYPE html><html><body>Sorry, we are down for maintenance.</body></html>"
CLIENT = "cryoet_data_portal"
"""The package that carries the schema."""
KEPT_TREES = 4


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    content_type: str
    body: bytes


def require_graphql() -> None:
    """Raises Unsupported where what answers GraphQL is not installed."""
    if any(importlib.util.find_spec(name) is None for name in ("graphql", CLIENT)):
        raise Unsupported(
            "the sample's CryoET Data Portal needs graphql-core and cryoet-data-portal; install them with "
            "`pip install 'em_assets[sample]'`."
        )


def answer(folder: Path, path: str, query: str, body: bytes, host_url: str) -> Answer:
    """The reply to a POST of `body` to `path?query` on a server of `folder` that its client calls `host_url`."""
    root = _tree_of(folder, unquote(path).removesuffix(SUFFIX).strip("/"))
    if root is None:
        return _json(HTTPStatus.NOT_FOUND, _failed(f"no one tree of the portal's layout lies at {path}"))
    fault = parse_qs(query).get("fault", [""])[0]
    if fault in _WHOLE_REPLIES:
        return _WHOLE_REPLIES[fault]
    if fault and fault not in FAULTS:
        return _json(HTTPStatus.BAD_REQUEST, _failed(f"no fault {fault}; there are {', '.join(FAULTS)}"))
    try:
        asked = json.loads(body)
        text, variables = asked["query"], asked.get("variables")
        if not isinstance(text, str):
            raise TypeError  # noqa: TRY301  # one answer for all that is no query
    except (ValueError, KeyError, TypeError, AttributeError):
        return _json(HTTPStatus.BAD_REQUEST, _failed("the body is not JSON with a query"))
    key = root.relative_to(folder).as_posix()
    entities = _entities(root, f"s3://{key}", f"{host_url}/{quote(key)}")
    rows = Rows(entities, _type_of, is_endless=fault == "endless")
    return _execute(_Context(rows, hides_what_may_be_null=fault == "missing"), text, variables)


def _tree_of(folder: Path, name: str) -> Path | None:
    """The tree that a path names; without a name the only one in a bucket, or in a folder of a bucket."""
    if name:
        root = (folder / name).resolve()
        return root if root.is_relative_to(folder) and root != folder and is_tree(root) else None
    found = [place for pattern in ("*", "*/*") for place in folder.glob(pattern) if place.is_dir() and is_tree(place)]
    return found[0] if len(found) == 1 else None


def _entities(root: Path, s3_base: str, https_base: str) -> Entities:
    """Read again only when a metadata file has changed: a size takes a walk through every chunk."""
    stats = tuple((str(file), file.stat().st_mtime_ns) for file in metadata_files(root))
    return _kept_entities(root, s3_base, https_base, stats)


@functools.lru_cache(maxsize=KEPT_TREES)
def _kept_entities(root: Path, s3_base: str, https_base: str, _stats: tuple[tuple[str, int], ...]) -> Entities:
    return entities_of_tree(root, s3_base=s3_base, https_base=https_base)


@dataclass(frozen=True, slots=True)
class _Context:
    """What the resolvers of one query work with."""

    rows: Rows
    hides_what_may_be_null: bool


def _execute(context: _Context, text: str, variables: dict[str, Any] | None) -> Answer:
    from graphql import graphql_sync

    result = graphql_sync(schema(), text, context_value=context, variable_values=variables)
    return _json(HTTPStatus.OK, dict(result.formatted))


def _failed(message: str) -> dict[str, Any]:
    return {"data": None, "errors": [{"message": message}]}


def _json(status: HTTPStatus, content: dict[str, Any]) -> Answer:
    return Answer(status, "application/json", json.dumps(content).encode())


_WHOLE_REPLIES = {
    "errors": _json(HTTPStatus.OK, _failed("canceling statement due to statement timeout")),
    "null": _json(HTTPStatus.OK, {"data": None}),
    "page": Answer(HTTPStatus.OK, "text/html;charset=UTF-8", WEB_PAGE.encode()),
}
"""Of the faults that do not look at the query."""


# The schema, and what answers each of its fields


@functools.cache
def schema() -> GraphQLSchema:
    """The schema in the installed client, whose package is not imported for it."""
    from graphql import GraphQLObjectType, build_schema

    require_graphql()
    found = importlib.util.find_spec(CLIENT)
    assert found is not None
    assert found.origin is not None
    text = (Path(found.origin).parent / "data" / "schema.graphql").read_text(encoding="utf-8")
    made = build_schema(text, assume_valid_sdl=True)
    for kind in made.type_map.values():
        if isinstance(kind, GraphQLObjectType) and not kind.name.startswith("__"):
            _give_resolvers(made, kind)
    return made


def _give_resolvers(made: GraphQLSchema, parent: Any) -> None:
    """By what a field gives: something related, or a column of the row."""
    from graphql import is_non_null_type

    is_query = parent is made.query_type
    for name, field in parent.fields.items():
        named = _named_type(field.type)
        if named.name.endswith("Aggregate") and (is_query or _is_entity(parent)):
            field.resolve = _aggregate(named.name.removesuffix("Aggregate"), None if is_query else parent.name)
        elif is_query and _is_entity(named):
            field.resolve = _list(named.name)
        elif _is_entity(parent) and named.name.endswith("Connection"):
            field.resolve = _connection(named.name.removesuffix("Connection"), parent.name)
        elif _is_entity(parent) and _is_entity(named):
            field.resolve = _item(named.name, name)
        elif _is_entity(parent) and name == "_id":
            field.resolve = _global_id(parent.name)
        elif _is_entity(parent):
            field.resolve = _column(name, may_be_null=not is_non_null_type(field.type))


def _named_type(kind: Any) -> Any:
    from graphql import get_named_type

    return get_named_type(kind)


def _is_entity(kind: Any) -> bool:
    return any(interface.name == "Node" for interface in getattr(kind, "interfaces", ()))


def _type_of(kind: str, name: str) -> str:
    """The name of a field's type."""
    fields: Any = schema().type_map[kind]
    return str(_named_type(fields.fields[name].type).name)


Resolver = Callable[..., Any]


def _list(kind: str) -> Resolver:
    def resolve(_: Any, info: GraphQLResolveInfo, **asked: Any) -> list[Row]:
        rows: Rows = info.context.rows
        return rows.page(rows.select(kind, asked), asked.get("limitOffset"))

    return resolve


def _item(kind: str, name: str) -> Resolver:
    def resolve(row: Row, info: GraphQLResolveInfo, **asked: Any) -> Row | None:
        rows: Rows = info.context.rows
        found = rows.item(kind, row[f"{name}Id"])
        return found if found and rows.fits(kind, found, asked.get("where") or {}) else None

    return resolve


def _connection(kind: str, parent: str) -> Resolver:
    def resolve(row: Row, info: GraphQLResolveInfo, **asked: Any) -> dict[str, Any]:
        rows: Rows = info.context.rows
        return rows.connection(rows.select(kind, asked, rows.children(kind, parent, row)), asked)

    return resolve


def _aggregate(kind: str, parent: str | None) -> Resolver:
    def resolve(row: Row, info: GraphQLResolveInfo, **asked: Any) -> dict[str, Any]:
        rows: Rows = info.context.rows
        found = rows.select(kind, asked, None if parent is None else rows.children(kind, parent, row))
        paths = _grouped_by(info)
        groups: dict[tuple[Any, ...], list[Row]] = {} if paths else {(): found}
        for one in found if paths else ():
            groups.setdefault(tuple(rows.along(kind, one, path) for path in paths), []).append(one)
        return {"aggregate": [_functions(group, dict(zip(paths, key, strict=True))) for key, group in groups.items()]}

    return resolve


def _global_id(kind: str) -> Resolver:
    def resolve(row: Row, _: GraphQLResolveInfo) -> str:
        return base64.b64encode(f"{kind}:{row['id']}".encode()).decode()

    return resolve


def _column(name: str, *, may_be_null: bool) -> Resolver:
    def resolve(row: Row, info: GraphQLResolveInfo) -> Any:
        return None if may_be_null and info.context.hides_what_may_be_null else row[name]

    return resolve


# Aggregates


def _grouped_by(info: GraphQLResolveInfo) -> list[tuple[str, ...]]:
    """The columns that `aggregate { groupBy { run { name } } }` asks for, as paths; fragments are not looked into."""
    fields = _selected(info.field_nodes)
    return [
        path
        for field in fields
        if field.name.value == "aggregate"
        for inner in _selected([field])
        if inner.name.value == "groupBy"
        for path in _leaves(inner)
    ]


def _selected(nodes: Iterable[Any]) -> list[Any]:
    """The fields below some nodes."""
    sets = (node.selection_set for node in nodes if node.selection_set)
    return [part for selections in sets for part in selections.selections if hasattr(part, "arguments")]


def _leaves(node: Any) -> list[tuple[str, ...]]:
    below = _selected([node])
    return [
        (field.name.value, *rest) for field in below for rest in ([()] if not field.selection_set else _leaves(field))
    ]


def _functions(rows: Sequence[Row], group: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """What a group of rows has for count, sum, avg ...; each computed when it is asked for."""

    def count(_: GraphQLResolveInfo, *, distinct: bool = False, columns: str | None = None) -> int:
        return count_of(rows, columns, distinct=distinct)

    def of_columns(function: Callable[[list[Any]], Any]) -> _Columns:
        return _Columns(rows, function)

    return {
        "count": count,
        "sum": of_columns(sum),
        "avg": of_columns(statistics.fmean),
        "min": of_columns(min),
        "max": of_columns(max),
        "stddev": of_columns(lambda values: statistics.stdev(values) if len(values) > 1 else None),
        "variance": of_columns(lambda values: statistics.variance(values) if len(values) > 1 else None),
        "groupBy": _nested(group),
    }


class _Columns(dict[str, Any]):
    """A function of each column's values; None where there are none."""

    def __init__(self, rows: Sequence[Row], function: Callable[[list[Any]], Any]) -> None:
        super().__init__()
        self._rows, self._function = rows, function

    def get(self, column: str, default: Any = None) -> Any:
        values = [row[column] for row in self._rows if row.get(column) is not None]
        return self._function(values) if values else default


def _nested(group: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in group.items():
        inner = nested
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = value
    return nested
