"""SQL about the table `blocks`: which look alike. Features of one method only are comparable (`features.py`)."""

from __future__ import annotations


def similar_sql(name: str, block_id: int, *, limit: int = 20, table: str = "blocks") -> str:
    """SQL for the blocks that look most like one: the table's columns and `distance`, nearest first, itself left out.

    `table` is `blocks`, or `read_parquet('.../blocks.parquet')`. Blocks whose features are of another method, or that
    have none, are left out.
    """
    return (
        f"select b.* exclude (features), list_distance(b.features, q.features) as distance\n"  # noqa: S608  # quoted
        f"from {table} b join (select * from {table} where name = {_quoted(name)} and id = {int(block_id)}) q\n"
        "on b.features_method = q.features_method and (b.name, b.id) <> (q.name, q.id)\n"
        f"where b.features is not null\norder by distance, b.name, b.id limit {int(limit)}"
    )


def near_duplicates_sql(distance: float, *, table: str = "blocks", where: str = "true") -> str:
    """SQL for all pairs of blocks (chosen by the condition `where`) whose features are at most so far apart.

    Pairs whose boxes share voxels of one volume are left out. Each block is compared with every other, about a million
    pairs a second: 5,000 blocks take ten seconds, so choose. Exact duplicates are cheap among any number:
    `select digest, list((name, id)) from blocks group by digest having count(*) > 1`.
    """
    apart = " or ".join(
        f"a.start_{axis} + a.shape_{axis} <= b.start_{axis} or b.start_{axis} + b.shape_{axis} <= a.start_{axis}"
        for axis in "zyx"
    )
    return (
        "with chosen as (select *, row_number() over (order by name, id) as place\n"
        f"from {table} where features is not null and ({where}))\n"
        "select a.name, a.id, b.name as other_name, b.id as other_id,\n"
        "list_distance(a.features, b.features) as distance\n"
        "from chosen a join chosen b on a.features_method = b.features_method and a.place < b.place\n"
        f"where distance <= {float(distance)} and (a.name <> b.name or {apart})\n"
        "order by distance, a.name, a.id"
    )


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
