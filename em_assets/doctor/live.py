"""First contact: each publisher's metadata and one small piece, against what the specs pin. Under 10 MB in all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from em_assets.datasets.source import ChunkedSource, Document, PrecomputedSource
from em_assets.datasets.spec import DatasetSpec
from em_assets.doctor.asking import Asking
from em_assets.doctor.chunks import ask_chunked, ask_precomputed
from em_assets.doctor.files import ask_files
from em_assets.doctor.metered import MeteredClient
from em_assets.doctor.report import BudgetSpent, Report, Section
from em_assets.doctor.stated import compare_reply
from em_assets.errors import Unavailable
from em_assets.fetch.ftp import FtpClient
from em_assets.progress import human_bytes, human_seconds
from em_assets.settings import Settings
from em_assets.sources.claims import document_path
from em_assets.sources.cryoet import current_spec
from em_assets.sources.documents import fetch_documents

BUDGET_BYTES = 9_500_000
"""The last block may exceed it a little."""
RETRY_SECONDS = 30.0
"""A report is wanted now: less patience than a download has."""


def ask_publishers(
    specs: Iterable[DatasetSpec], settings: Settings, say: Callable[[str], None], *, budget_bytes: int = BUDGET_BYTES
) -> Report:
    """A section for each dataset; `say` hears of each as it begins."""
    hurried = settings.model_copy(update={"retry_seconds": min(settings.retry_seconds, RETRY_SECONDS)})
    client, ftp = MeteredClient(hurried, budget_bytes), FtpClient(hurried)
    begun = time.monotonic()
    report = Report()
    for spec in specs:
        say(f"asking for {spec.name} ...")
        section = Section(f"{spec.name} ({spec.source.kind})")
        report.sections.append(section)
        _ask(Asking(section, spec, client, ftp, hurried))
    ftp.close()
    report.closing.append(
        f"Received {client.received_bytes} bytes ({human_bytes(client.received_bytes)}) of at most "
        f"{human_bytes(budget_bytes)} in {client.requests} requests, {human_seconds(time.monotonic() - begun)}."
    )
    return report


def _ask(asking: Asking) -> None:
    asking = _asking_where_it_lies(asking)
    source = asking.spec.source
    if isinstance(source, PrecomputedSource):
        ask_precomputed(asking, source)
    elif isinstance(source, ChunkedSource):
        ask_chunked(asking, source)
    else:
        ask_files(asking, source)
    for document in asking.spec.all_documents:
        _ask_document(asking, document)


def _asking_where_it_lies(asking: Asking) -> Asking:
    """A portal's tomogram where its API has it now; that it moved, or that nobody says so, is a line of the report."""
    section, portal = asking.section, asking.spec.portal
    if portal is None:
        return asking
    question = f"address of {portal.dataset}/{portal.run}"
    stated = asking.spec.source.volume_url
    look = partial(current_spec, asking.spec, asking.settings, asking.client)
    current = section.attempt(question, "one tomogram of the portal", look)
    if current is None:
        return asking
    for problem in current.unanswered.values():
        section.add("warn", question, f"the API did not say: {problem}", stated)
    if not current.unanswered:
        now = current.spec.source.volume_url
        section.compare(question, stated, now, agrees=now == stated, otherwise="known")
        section.learn("the portal's tomogram", current.met.get("portal_tomogram"))
    for what, why in current.met.get("annotations", {}).items():
        section.add("warn", f"address of {what}", why)
    for why in current.met.get("refused", ()):
        section.add("warn", "annotations", why)
    return replace(asking, spec=current.spec)


def _ask_document(asking: Asking, document: Document) -> None:
    section = asking.section
    raw = section.attempt(document.path, document.kind, partial(_document, asking, document))
    if raw is None:
        return
    section.add("ok", document.path, f"{len(raw)} bytes", document.kind)
    asking.learn_headers(document.path, document.url)
    section.attempt(document.path, document.kind, lambda: compare_reply(section, asking.spec, document, raw))


def _document(asking: Asking, document: Document) -> bytes:
    """The reply, which is of the kind that the spec says."""
    found, reasons = fetch_documents(asking.spec, asking.client, [document])
    path = document_path(document.path)
    if path in reasons:
        raise (BudgetSpent if reasons[path] in asking.client.spent else Unavailable)(reasons[path])
    return found[path]
