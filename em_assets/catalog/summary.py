"""METADATA_SUMMARY.md: the catalogue in words and tables, for somebody who has never seen SQL.

Made of the database only and without the time of its making, so the same knowledge gives the same text and a diff
shows what changed. The page and its parts are here; what they are made of is read in `summary_known.py`, and fields,
values and speakers are put into words in `summary_words.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from em_assets.catalog.cite import doi_url
from em_assets.catalog.exports import Export, write_if_changed
from em_assets.catalog.summary_known import Known
from em_assets.catalog.summary_words import (
    AUTHORITIES,
    Row,
    along_axes,
    code,
    counted,
    enumerated,
    field_label,
    grouped,
    markdown,
    on_day,
    size,
    statuses,
    times,
    value_in_words,
    what_was_taken,
    who_says_what,
)
from em_assets.catalog.vocabulary import FIELDS, PRECEDENCE
from em_assets.store import Store

SUMMARY = "METADATA_SUMMARY.md"
MARK = "<!-- Written by em_assets with the catalogue: changes made here are lost. -->"
WANTED = (
    *("license", "doi", "authors", "released_on", "organism", "organism_taxid", "sample", "preparation", "modality"),
    *("instrument", "acquired_on", "accelerating_voltage_v"),
)
"""What a reader of a paper would ask of each dataset."""
QUERIES = (
    (
        "Which datasets finer than 10 nm may I use commercially?",
        "select name, title, max_voxel_size_nm, license from datasets where max_voxel_size_nm < 10 and commercial_use",
    ),
    (
        "Where do the voxel sizes come from?",
        "select name, field, value, authority, document, key from statements where chosen and field like 'voxel_size%'",
    ),
    (
        "What is complete, what failed, what is missing?",
        "select name, status, status_reason, partitions_stored, partitions, missing_fraction from datasets",
    ),
)
"""Each is run by a test."""


def write_summary(database: Path, store: Store) -> list[Export]:
    """Writes METADATA_SUMMARY.md if it changed: the one export."""
    return [write_if_changed(store, SUMMARY, summary(database, store).encode())]


def summary(database: Path, store: Store) -> str:
    """Markdown. The same database gives the same text."""
    known = Known.read(database, store)
    parts = (_opening, _method, _datasets, _one_by_one, _fields, _keys, _contradictions, _gaps, _asking)
    return "\n\n".join("\n".join(part(known)).strip("\n") for part in parts) + "\n"


# The parts, in the order of the page.


def _opening(known: Known) -> Iterator[str]:
    publishers = {row["source"] for row in known.datasets if row["source"]}
    yield MARK
    yield "# What is known about these electron-microscopy volumes"
    yield ""
    yield (
        f"{counted(len(known.datasets), 'dataset')} of {counted(len(publishers), 'publisher')}: "
        f"{statuses(known.datasets)}. "
        f"This page tells what is known of each and how that was found out, what they have in common, where their "
        f"sources contradict each other ({counted(len(known.conflicts), 'pair')} of statements do), "
        f"and what is missing."
    )
    yield ""
    sections = (
        *("How this was made", "The datasets", "One by one", "What they have in common"),
        *("The publishers' own keys", "Where the sources contradict each other", "What is missing", "Ask more"),
    )
    yield " · ".join(f"[{title}](#{_anchor(title)})" for title in sections)


def _method(known: Known) -> Iterator[str]:
    counts = known.counts
    yield "## How this was made"
    yield ""
    yield "Nothing on this page was typed by hand; it was made in four steps, each of which keeps what it started from."
    yield ""
    yield (
        f"1. **Documents.** The publishers' replies and pages and the headers of their files are kept as received: "
        f"{counts['documents']:,} of them."
    )
    yield (
        f"2. **Claims.** Every value in them is written down under the publisher's own key, word for word: "
        f"{counts['claims']:,} claims. No claim is believed or corrected."
    )
    yield (
        f"3. **Statements.** What a claim says about one of {counts['fields']} fields (the names in this page) is "
        f"brought into that field's unit and form: {counts['statements']:,} different statements."
    )
    yield (
        "4. **Choice.** Where several are made about one field, one becomes the dataset's value, by the order below. "
        "The others stay: two that differ by more than rounding are a contradiction, and all of those are told below."
    )
    yield ""
    yield "| goes | who says it | what that is |"
    yield "|---|---|---|"
    for place, authority in enumerate(PRECEDENCE, 1):
        yield f"| {place}. | {authority} | {AUTHORITIES[authority]} |"
    yield f"| never | third party | {AUTHORITIES['third party']} |"
    yield ""
    for order, names in _exceptions():
        yield f"Of {enumerated(along_axes(map(field_label, names)))} the order is another: {', then '.join(order)}."
        yield ""
    yield (
        "Sizes and voxel sizes are in the order z, y, x; voxel sizes are in nanometres (nm); a kB is 1000 bytes. "
        "An empty cell means that nobody is known to have said it."
    )


def _exceptions() -> Iterator[tuple[Sequence[str], list[str]]]:
    """Orders of precedence other than the usual one, and the fields that have each."""
    rows = [{"order": field.precedence, "name": name} for name, field in FIELDS.items()]
    for (order,), fields in grouped([row for row in rows if row["order"] != PRECEDENCE], "order"):
        yield order, [row["name"] for row in fields]


def _datasets(known: Known) -> Iterator[str]:
    yield "## The datasets"
    yield ""
    yield "| name | status | voxels (z, y, x) | voxel (nm) | type | on disk | licence | commercial use | conflicts |"
    yield "|---|---|--:|--:|---|--:|---|---|--:|"
    use = {True: "yes", False: "no", None: "ask"}
    for row in known.datasets:
        cells = (
            f"[{row['name']}](#{row['name']})",
            row["status"],
            times(row["volume_shape"]),
            times(row["voxel_size_nm"]),
            row["dtype"],
            size(row["file_size_bytes"]),
            markdown(row["license"]),
            use[row["commercial_use"]],
            str(row["conflicts"] or 0),
        )
        yield "| " + " | ".join(cell or "" for cell in cells) + " |"
    yield ""
    yield (
        "*listed* is described and not downloaded; *complete* is here, whole and checked. Commercial use is what the "
        "licence allows by its name: read the licence itself."
    )


def _one_by_one(known: Known) -> Iterator[str]:
    yield "## One by one"
    for row in known.datasets:
        yield ""
        yield f"### {row['name']}"
        yield ""
        title = markdown((row["title"] or row["name"]).rstrip("."))
        yield f"**{title}.** {markdown(row['description']) or ''}".rstrip()
        yield ""
        for about, facts in _facts(row):
            told = "; ".join(fact for fact in facts if fact)
            if told:
                yield f"- **{about}:** {told}"


def _facts(row: Row) -> Iterator[tuple[str, Sequence[str | None]]]:
    """What a person would ask first; each fact is text or None."""
    link = f"[{markdown(row['source_id'] or row['name'])}]({row['page_url']})" if row["page_url"] else None
    yield "From", (markdown(row["publisher_name"] or row["source"]), link, on_day("released", row["released_on"]))
    yield "By", (markdown(row["authors"]),)
    taxon = f" ({row['organism_taxid']})" if row["organism_taxid"] else ""
    organism = f"*{markdown(row['organism'])}*{taxon}" if row["organism"] else None
    yield "Specimen", (organism, markdown(row["sample"]), markdown(row["cell_line"]))
    yield "Preparation", (markdown(row["preparation"]),)
    imaging = ("accelerating_voltage_v", "primary_energy_ev", "beam_current_a", "dwell_time_s", "magnification")
    measured = [f"{field_label(name)} {value_in_words(name, row[name])}" for name in imaging if row[name] is not None]
    yield (
        "Imaging",
        (markdown(row["modality"]), markdown(row["instrument"]), *measured, on_day("imaged", row["acquired_on"])),
    )
    packing = "uncompressed" if row["compression"] == "none" else markdown(row["compression"])
    yield "Published as", (markdown(row["file_format"]), packing, _whole(row))
    volumes = ", ".join(f"`{name}`" for name in row["volumes"] or {})
    yield "Further volumes", (volumes or None,)
    dois = dict.fromkeys(doi for doi in (row["doi"], row["publication_doi"]) if doi)
    yield "Cite", (" ".join([markdown(row["citation"]) or "", *map(doi_url, dois)]).strip(),)


def _whole(row: Row) -> str | None:
    shape = row["source_shape"]
    return f"{times(shape)} voxels in all" if shape and shape != row["volume_shape"] else None


def _fields(known: Known) -> Iterator[str]:
    total = len(known.datasets)
    everywhere = [row for row in known.presence if total and row["datasets"] == total]
    yield "## What they have in common"
    yield ""
    if everywhere:
        yield f"Known of all {total}:"
        yield ""
        for module, rows in _by_module(everywhere):
            yield f"- **{module}:** {', '.join(field_label(row['field']) for row in rows)}"
    else:
        yield "Nothing is known of all of them."
    some = [row for row in known.presence if 1 < row["datasets"] < total]
    if some:
        yield ""
        yield "Known of some:"
        yield ""
        yield "| what | of how many | of which |"
        yield "|---|--:|---|"
        for row in sorted(some, key=lambda row: (-row["datasets"], row["field"])):
            yield f"| {field_label(row['field'])} | {row['datasets']} of {total} | {row['names']} |"
    unique = [row for row in known.presence if row["datasets"] == 1 < total]
    if unique:
        yield ""
        yield "Known of one only:"
        yield ""
        for name in sorted({row["names"] for row in unique}):
            yield f"- **{name}:** {', '.join(field_label(row['field']) for row in unique if row['names'] == name)}"


def _by_module(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """In the vocabulary's order."""
    order = {name: place for place, name in enumerate(FIELDS)}
    for (module,), of_module in grouped(sorted(rows, key=lambda row: order.get(row["field"], len(order))), "module"):
        yield module, of_module


def _keys(known: Known) -> Iterator[str]:
    yield "## The publishers' own keys"
    yield ""
    if not known.keys:
        yield "No document of a publisher is here yet: `em-assets describe --all` fetches them, without any images."
        return
    yield (
        "How many different keys each publisher's documents have, and how regularly. A number in a key, such as a "
        "position in a list, counts as `*`."
    )
    yield ""
    yield "| publisher | kind of document | documents | keys | in every one | only with this publisher | for example |"
    yield "|---|---|--:|--:|--:|--:|---|"
    for row in known.keys:
        own = "" if row["own"] is None else f"{row['own']:,}"
        examples = ", ".join(code(key) for key in row["examples"])
        yield (
            f"| {markdown(row['source'])} | {markdown(row['extractor'])} | {row['documents']:,} | {row['keys']:,} | "
            f"{row['everywhere']:,} | {own} | {examples} |"
        )


def _contradictions(known: Known) -> Iterator[str]:
    yield "## Where the sources contradict each other"
    yield ""
    if not known.conflicts:
        yield "Nowhere: no two statements about one field differ."
        return
    yield "Each line is one field: who says what, then what was taken and why."
    for (dataset,), of_dataset in grouped(known.conflicts, "name"):
        yield ""
        yield f"### In {dataset}"
        yield ""
        told: dict[tuple[str | None, str], list[str]] = {}
        for (volume, field), pairs in grouped(of_dataset, "volume", "field"):
            said = [row for row in known.said if (row["name"], row["volume"], row["field"]) == (dataset, volume, field)]
            sentence = f"{who_says_what(said)}. {what_was_taken(field, pairs, said)}"
            told.setdefault((volume, sentence), []).append(field_label(field))
        for (volume, sentence), labels in told.items():
            about = enumerated(along_axes(labels))
            of = f" of the volume `{volume}`" if volume else ""
            yield f"- **{about[0].upper()}{about[1:]}{of}:** {sentence}"


def _gaps(known: Known) -> Iterator[str]:
    yield "## What is missing"
    yield ""
    nowhere = [row["field"] for row in known.presence if row["datasets"] == 0]
    if nowhere:
        yield f"- **Known of no dataset:** {', '.join(field_label(name) for name in nowhere)}."
    listed = [row["name"] for row in known.datasets if row["status"] == "listed"]
    if listed:
        yield f"- **Not downloaded:** {', '.join(listed)}. `em-assets get NAME` downloads one."
    for row in known.datasets:
        if row["status"] not in ("listed", "complete"):
            reason = markdown(row["status_reason"]) or "no reason was recorded"
            yield f"- **{row['name']}** is {row['status']}: {reason}."
        if row["missing_fraction"]:
            percent = f"{100 * row['missing_fraction']:.2g} %"
            yield f"- **{row['name']}:** the publisher does not have {percent} of its voxels."
    for row in known.documents_missing:
        yield f"- **{row['name']}:** {code(row['path'])} could not be had: {markdown(row['problem'])}."
    for row in known.checks_failed:
        yield f"- **{row['name']}:** the check {code(row['check_name'])} failed: {markdown(row['message'])}."
    yield ""
    yield "Of what a paper would be asked, this is not known:"
    yield ""
    yield "| dataset | not known |"
    yield "|---|---|"
    for row in known.datasets:
        unknown = [field_label(name) for name in WANTED if row[name] is None]
        yield f"| {row['name']} | {', '.join(unknown) or 'all is known'} |"


def _asking(_: Known) -> Iterator[str]:
    yield "## Ask more"
    yield ""
    yield (
        "All of this and much more lies in `metadata.duckdb`, beside this page. A question is one line on the command "
        'line; `em-assets sql "describe datasets"` lists what there is to ask about.'
    )
    for question, sql in QUERIES:
        yield ""
        yield question
        yield ""
        yield "```sh"
        yield f'em-assets sql "{sql}"'
        yield "```"
    yield ""
    yield (
        "`em-assets show NAME` tells one dataset's values and where each is from, `em-assets conflicts` every "
        "contradiction, `em-assets cite NAME` how to cite it."
    )


def _anchor(title: str) -> str:
    """As GitHub makes them of headings."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
