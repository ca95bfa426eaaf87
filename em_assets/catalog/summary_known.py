"""What the summary is made of: the rows that it asks of the catalogue, without e-mail addresses and local paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_assets.catalog.exports import as_rows, public_datasets, public_rows
from em_assets.store import Store

EXAMPLE_KEYS = 3
COUNTS_SQL = """
select (select count(*) from (select distinct name, document from claims where extractor <> 'spec')) as documents,
    (select count(*) from claims) as claims, (select count(*) from statements) as statements,
    (select count(*) from vocabulary) as fields
"""
KEYS_SQL = f"""
with single as (
    select extractor, key from key_presence group by extractor, key having count(distinct source) = 1
),
shared as (select extractor from key_presence group by extractor having count(distinct source) > 1)
select k.source, k.extractor, max(k.documents) as documents, count(*) as keys,
    count(*) filter (k.share = 1) as everywhere,
    case when h.extractor is not null then count(u.key) end as own,
    list(k.key order by k.share desc, length(k.key), k.key)[1:{EXAMPLE_KEYS}] as examples
from key_presence k
left join single u on u.extractor = k.extractor and u.key = k.key
left join shared h on h.extractor = k.extractor
where k.extractor <> 'spec'
group by k.source, k.extractor, h.extractor
order by k.source, k.extractor
"""  # noqa: S608 - every part is written above
SAID_SQL = """
with disputed as (
    select name, volume, field, lower(value_a) as value from conflicts
    union select name, volume, field, lower(value_b) from conflicts
),
read_by as (select distinct name, document, extractor from claims),
files as (select name, extractor, count(distinct document) as files from claims group by name, extractor)
select s.*, r.extractor, f.files
from statements s
join disputed d on d.name = s.name and d.volume is not distinct from s.volume and d.field = s.field
    and d.value = lower(s.value)
left join read_by r on r.name = s.name and r.document = s.document
left join files f on f.name = s.name and f.extractor = r.extractor
order by s.name, s.volume nulls first, s.field, s.rank
"""


@dataclass(frozen=True)
class Known:
    """What the text is made of, without e-mail addresses and local paths."""

    datasets: list[dict[str, Any]]
    counts: dict[str, int]
    presence: list[dict[str, Any]]
    keys: list[dict[str, Any]]
    conflicts: list[dict[str, Any]]
    said: list[dict[str, Any]]
    """Statements about what there are conflicts of, the first in precedence first."""
    documents_missing: list[dict[str, Any]]
    checks_failed: list[dict[str, Any]]

    @classmethod
    def read(cls, database: Path, store: Store) -> Known:
        def rows(sql: str) -> list[dict[str, Any]]:
            return public_rows(database, sql, store)

        return cls(
            datasets=as_rows(public_datasets(database, store)),
            counts=rows(COUNTS_SQL)[0],
            presence=rows("from field_presence order by field"),
            keys=rows(KEYS_SQL),
            conflicts=rows("from conflicts"),
            said=rows(SAID_SQL),
            documents_missing=rows("from documents where problem is not null order by name, path"),
            checks_failed=rows("from checks where not passed order by name, check_name"),
        )
