"""Questions to a GraphQL interface, whatever it is about: conditions, whole lists over pages, what counts as a reply.

What is asked for of each type is a `Kind`; the entities come as JSON objects in which every list is whole.
`_cryoet_api.py` knows the portal's types. Replies are bounded, strict JSON (`formats/_json.py`), and counted only
without errors: GraphQL reports those with status 200, also beside a part of the data.
"""

from __future__ import annotations

import functools
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from em_assets.errors import Malformed, Unsupported
from em_assets.fetch.http import HttpClient, safe_url
from em_assets.formats._json import MAX_JSON_BYTES, parse_json

PAGE_ENTITIES = 100
NESTED_PAGE_ENTITIES = 100
"""Common servers refuse more of a nested list at once."""
MAX_ENTITIES = 100_000
"""Of one list. The portal has some 20,000 tomograms; a list that is longer than this has no end."""
MAX_QUOTED_CHARACTERS = 300
SCHEMA_CHANGED = re.compile(
    r"cannot query field|unknown (?:argument|type|field)|not defined by type|not found in type", re.IGNORECASE
)
"""How servers say that a query asks for what they (no longer) have."""

Operator = Literal["_eq", "_neq", "_in", "_nin", "_gt", "_gte", "_lt", "_lte", "_like", "_ilike", "_is_null"]
Entity = dict[str, Any]
"""As the reply has it, with a list in place of each connection."""
Keep = Callable[[str, bytes], None]
"""(name, reply as received): called with each reply that counted."""
Refused = Callable[[Malformed], None]
"""Told of one entity that cannot be believed; the others go on."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What is asked for of one type of the interface."""

    name: str
    """For people: `tilt series`."""
    type_name: str
    """In the schema: `Tiltseries`; its conditions are of the type `TiltseriesWhereClause`."""
    root: str
    """The field of Query that lists it: `tiltseries`."""
    scalars: tuple[str, ...]
    """Without `id`, which every type has."""
    one: tuple[tuple[str, Kind], ...] = ()
    many: tuple[tuple[str, Kind], ...] = ()


@dataclass(frozen=True, slots=True)
class Condition:
    """`Condition("run.name", "_like", "TS_%")`: on a field, or on one of what the entity belongs to."""

    field: str
    operator: Operator
    value: str | float | bool | tuple[str | float, ...] | None


def wheres(conditions: Iterable[Condition]) -> list[dict[str, Any]]:
    """`where` objects; what each of them finds fulfils all conditions. One, unless a field's operator comes twice.

    The portal's conditions have no `_and`, and one object holds an operator of a field once: whoever merges two such
    conditions into one loses the first without a word.
    """
    values: dict[tuple[str, str], list[Any]] = {}
    for condition in conditions:
        known = values.setdefault((condition.field, condition.operator), [])
        if condition.value not in known:
            known.append(condition.value)
    count = max(map(len, values.values()), default=1)
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for (field, operator), known in values.items():
        for number, where in enumerate(found):
            for part in field.split("."):
                where = where.setdefault(part, {})  # noqa: PLW2901  # walks down
            where[operator] = known[min(number, len(known) - 1)]
    return found


class GraphQlClient:
    """One interface, for many threads at once: nothing is opened or closed around a query."""

    def __init__(
        self, url: str, client: HttpClient, *, keep: Keep | None = None, page_entities: int = PAGE_ENTITIES
    ) -> None:
        self.url = url
        self._client = client
        self._keep = keep
        self._page_entities = page_entities
        self._lock = threading.Lock()
        self._kept = 0

    def ask(self, query: str, variables: Mapping[str, Any], name: str) -> Entity:
        """The `data` of the reply. `name` says in errors what was asked for.

        Raises Unsupported if the schema has no such field any more, Malformed for every other error that the reply
        states (even beside data), and for what is no reply; NotThere, Mismatch, Unavailable.
        """
        body = json.dumps({"query": query, "variables": variables}, allow_nan=False).encode()
        reply = self._client.post_query(self.url, body, max_bytes=MAX_JSON_BYTES)
        where = f"{safe_url(self.url)}: the reply to the query for {name}"
        document = parse_json(reply.body, where)
        if not isinstance(document, dict):
            raise Malformed(f"{where} is {_quoted(document)}, expected an object with `data`; check the address.")
        _require_no_errors(document, safe_url(self.url), name)
        data = document.get("data")
        if not isinstance(data, dict):
            raise Malformed(f"{where} has {_quoted(data)} as its `data`, expected an object; try again later.")
        if self._keep is not None:
            with self._lock:
                self._kept += 1
                number = self._kept
            self._keep(f"{name.replace(' ', '_')}-{number:04d}.json", bytes(reply.body))
        return data

    def find(self, kind: Kind, conditions: Sequence[Condition] = (), *, refused: Refused | None = None) -> list[Entity]:
        """Every entity that fulfils all conditions, by id, each with its nested lists whole.

        Raises as `ask`, and Malformed if pages do not end, come in another order, or hold what was not asked for.
        Where that concerns the lists of one entity, `refused` is told, if there is one, and it is left out.
        """
        found: dict[int, Entity] | None = None
        for where in wheres(conditions):
            these = self._listed(kind, where)
            found = these if found is None else {key: found[key] for key in found if key in these}
        for entity in (found or {}).values():
            self._require_asked_for(kind, entity, conditions)
        return [entity for entity in (found or {}).values() if self._is_whole(kind, entity, refused)]

    def _listed(self, kind: Kind, where: Mapping[str, Any]) -> dict[int, Entity]:
        """All pages of a list, by id.

        Each page says which is the list's last entity, so that neither a server that gives shorter pages than it is
        asked for, nor one whose pages begin anew for ever, is mistaken for a whole list.
        """
        found: dict[int, Entity] = {}
        offset, highest = 0, -1
        while True:
            asked = {"where": where or None, "limit": self._page_entities, "offset": offset}
            data = self.ask(list_query(kind), asked, kind.root)
            page, last = (self._ids(kind, data, field) for field in ("items", "last"))
            end = last[0][0] if last else -1
            before = highest
            for key, entity in page:
                if key < highest or page[-1][0] <= before:
                    raise self._endless(kind, f"id {key} comes again or out of order at offset {offset}")
                found[key], highest = entity, key  # twice in a row: a join found it twice, it is one
            offset += len(page)
            if highest > end:
                raise self._endless(kind, f"id {highest} comes before the last one, {end}")
            if highest == end:
                return found
            if not page:
                raise self._endless(kind, f"nothing comes after id {highest}, though id {end} is the last one")
            if offset > MAX_ENTITIES:
                raise self._endless(kind, f"more than {MAX_ENTITIES} came")

    def _is_whole(self, kind: Kind, entity: Entity, refused: Refused | None) -> bool:
        """Whether it could be completed; raises Malformed if not, and there is nobody to tell."""
        try:
            self._complete(kind, entity)
        except Malformed as error:
            if refused is None:
                raise
            refused(error)
            return False
        return True

    def _complete(self, kind: Kind, entity: Entity) -> None:
        """Puts whole lists in place of connections, at every depth."""
        for field, part in kind.one:
            belongs_to = entity.get(field)
            if belongs_to is not None:
                self._complete(part, _object(belongs_to, self._place(kind, entity, field)))
        for field, part in kind.many:
            entity[field] = self._whole(kind, entity, field, part)
            for item in entity[field]:
                self._complete(part, item)

    def _whole(self, kind: Kind, entity: Entity, field: str, part: Kind) -> list[Entity]:
        """Every node of a connection (Relay), further pages asked for one after the other."""
        place = self._place(kind, entity, field)
        found: dict[int, Entity] = {}
        connection = entity.get(field)
        while True:
            nodes, cursor = _nodes(connection, place)
            for key, node in nodes:
                if key in found:
                    raise self._endless(part, f"id {key} comes again in {field} of {kind.name} {entity['id']}")
                found[key] = node
            if cursor is None:
                return list(found.values())
            if not nodes or len(found) > MAX_ENTITIES:
                raise self._endless(part, f"{field} of {kind.name} {entity['id']} has {len(found)} and no end")
            data = self.ask(nested_query(kind, field, part), {"id": entity["id"], "after": cursor}, kind.root)
            connection = self._only(kind, data, entity["id"]).get(field)

    def _only(self, kind: Kind, data: Entity, key: int) -> Entity:
        items = self._ids(kind, data, "items")
        if [found for found, _ in items] != [key]:
            raise Malformed(
                f"{safe_url(self.url)}: {kind.name} {key} was asked for, but {len(items)} came; it may have been "
                "replaced meanwhile, run again."
            )
        return items[0][1]

    def _ids(self, kind: Kind, data: Entity, field: str) -> list[tuple[int, Entity]]:
        """Each entity of a plain list, with its id."""
        items = data.get(field)
        where = f"{safe_url(self.url)}: the list of {kind.root}"
        if not isinstance(items, list):
            raise Malformed(f"{where} is {_quoted(items)}, expected a list; check that this is the portal's interface.")
        return [(_id(item, where), item) for item in items]

    def _place(self, kind: Kind, entity: Entity, field: str) -> str:
        return f"{safe_url(self.url)}: {kind.name} {entity.get('id')}, {field}"

    def _endless(self, kind: Kind, why: str) -> Malformed:
        return Malformed(
            f"{safe_url(self.url)} lists its {kind.root} in pages that do not end or do not follow each other: {why}; "
            "try again later, and tell its publisher if it stays so."
        )

    def _require_asked_for(self, kind: Kind, entity: Entity, conditions: Sequence[Condition]) -> None:
        """Raises Malformed where a server ignores conditions: its whole list would be taken for the answer."""
        for condition in conditions:
            value: Any = entity
            for part in condition.field.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            accepted = {"_eq": (condition.value,), "_in": condition.value}.get(condition.operator)
            if isinstance(accepted, tuple) and isinstance(value, str | int | float) and value not in accepted:
                raise Malformed(
                    f"{self._place(kind, entity, condition.field)} is {_quoted(value)}, but {_quoted(condition.value)} "
                    "was asked for; the interface does not keep to its conditions, nothing of it is used."
                )


@functools.cache
def list_query(kind: Kind) -> str:
    """A page of a list by id, and the id with which the whole list ends."""
    listed = f"{kind.root}(where: $where, orderBy: [{{id: %s}}], limitOffset: {{%s}})"
    return (
        f"query ($where: {kind.type_name}WhereClause, $limit: Int, $offset: Int) {{ "
        f"items: {listed % ('asc', 'limit: $limit, offset: $offset')} {{ {_selection(kind)} }} "
        f"last: {listed % ('desc', 'limit: 1')} {{ id }} }}"
    )


@functools.cache
def nested_query(kind: Kind, field: str, part: Kind) -> str:
    """A further page of one entity's connection."""
    return (
        "query ($id: Int, $after: String) { "
        f"items: {kind.root}(where: {{id: {{_eq: $id}}}}, limitOffset: {{limit: 2}}) "
        f"{{ id {_connection(field, part, ', after: $after')} }} }}"
    )


def _selection(kind: Kind) -> str:
    one = (f"{field} {{ {_selection(part)} }}" for field, part in kind.one)
    many = (_connection(field, part) for field, part in kind.many)
    return " ".join(("id", *kind.scalars, *one, *many))


def _connection(field: str, part: Kind, after: str = "") -> str:
    return (
        f"{field}(first: {NESTED_PAGE_ENTITIES}, orderBy: [{{id: asc}}]{after}) "
        f"{{ pageInfo {{ hasNextPage endCursor }} edges {{ node {{ {_selection(part)} }} }} }}"
    )


def _nodes(connection: object, place: str) -> tuple[list[tuple[int, Entity]], str | None]:
    """(nodes with their ids, cursor of the next page or None)."""
    found = _object(connection, place)
    page, edges = _object(found.get("pageInfo"), f"{place}.pageInfo"), found.get("edges")
    if not isinstance(edges, list):
        raise Malformed(f"{place}.edges is {_quoted(edges)}, expected a list.")
    nodes = [_object(_object(edge, f"{place}.edges").get("node"), f"{place}.edges.node") for edge in edges]
    has_more, cursor = page.get("hasNextPage"), page.get("endCursor")
    if not isinstance(has_more, bool) or (has_more and not isinstance(cursor, str)):
        raise Malformed(
            f"{place}.pageInfo has hasNextPage {_quoted(has_more)} and endCursor {_quoted(cursor)}, expected true or "
            "false, and a cursor where there is more."
        )
    return [(_id(node, place), node) for node in nodes], cursor if has_more else None


def _object(value: object, place: str) -> Entity:
    if not isinstance(value, dict):
        raise Malformed(f"{place} is {_quoted(value)}, expected an object.")
    return value


def _id(entity: object, place: str) -> int:
    key = _object(entity, place).get("id")
    if not isinstance(key, int) or isinstance(key, bool) or key < 0:
        raise Malformed(f"{place} has an entity with the id {_quoted(key)}, expected a whole number.")
    return key


def _require_no_errors(document: Entity, shown: str, name: str) -> None:
    errors = document.get("errors")
    if errors is None or errors == []:
        return
    first = errors[0] if isinstance(errors, list) else errors
    message, path = (first.get("message"), first.get("path")) if isinstance(first, dict) else (first, None)
    said = _quoted(message)
    if isinstance(path, list) and path:
        said += f" at {_quoted('.'.join(map(str, path)))}"
    if isinstance(errors, list) and len(errors) > 1:
        said += f" (and {len(errors) - 1} more)"
    if SCHEMA_CHANGED.search(str(message)):
        raise Unsupported(
            f"the schema of {shown} changed: it answered the query for {name} with {said}; this version of em_assets "
            "asks for what is no longer there, look for a newer one."
        )
    raise Malformed(f"{shown} answered the query for {name} with an error, {said}; nothing of that reply is used.")


def _quoted(value: object) -> str:
    """Text from outside, or the JSON of it, on one line and not too long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text[:MAX_QUOTED_CHARACTERS]) if isinstance(value, str) else text[:MAX_QUOTED_CHARACTERS]
