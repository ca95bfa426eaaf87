"""Schema drift: keys of publishers' documents that vanish, appear, change their type; and those that are relied on."""

import json
import os
from pathlib import Path

import pytest

from em_assets.catalog.claims import Origin, claims_table
from em_assets.checks.metadata import (
    EXPECTED_KEYS,
    METADATA_KEYS,
    Drift,
    check_metadata_keys,
    missing_expected,
    read_last,
    write_outcome,
)
from em_assets.checks.volume import BLOCKING
from em_assets.records import DatasetFolder
from em_assets.sources.claims import EXTRACTORS, claims_of
from em_assets.store import LocalStore
from em_assets.volume import Claim


@pytest.fixture(scope="session")
def payloads():
    """The folder of publishers' real replies, beside the real files, or a skip."""
    folder = Path(os.environ.get("EM_ASSETS_REALDATA") or Path(__file__).parents[2] / "shared/realdata") / "../payloads"
    if not folder.is_dir():
        pytest.skip(f"no publishers' replies at {folder.resolve()}")
    return folder.resolve()


def table(*documents, spec=()):
    """Claims of (path, contents) with a sha256 that differs as the contents do; kind json unless it is told."""
    claims, origins = [], {}
    for path, value, *kind in documents:
        raw = json.dumps(value).encode()
        claims += claims_of(path, kind[0] if kind else "json", raw, "u")
        origins[path] = Origin(str(raw))
    claims += [Claim(key, "x", "spec.json", "", "spec") for key in spec]
    return claims_table("dataset", claims, origins)


ENTRY = {"size": 8, "name": "a", "flag": True, "list": [1, 2], "none": None}
DRIFTS = {
    "the same": (ENTRY, Drift()),
    "other values": ({**ENTRY, "size": 9.5, "name": "b", "flag": False}, Drift()),
    "a longer list": ({**ENTRY, "list": [1, 2, 3]}, Drift()),
    "null, no value yet": ({**ENTRY, "none": "x"}, Drift()),
    "null, no value any more": ({**ENTRY, "name": None}, Drift()),
    "vanished": ({**ENTRY, "list": []}, Drift(vanished=("json: /list/*",))),
    "appeared": ({**ENTRY, "new": {"er": 1}}, Drift(appeared=("json: /new/er",))),
    "renamed": (
        {**{k: v for k, v in ENTRY.items() if k != "size"}, "Size": 8},
        Drift(vanished=("json: /size",), appeared=("json: /Size",)),
    ),
    "a number as text": ({**ENTRY, "size": "8"}, Drift(changed_type=("json: /size (was number, is text)",))),
    "a truth value as a number": (
        {**ENTRY, "flag": 1},
        Drift(changed_type=("json: /flag (was truth value, is number)",)),
    ),
    "partly": (
        {**ENTRY, "list": [1, "2"]},
        Drift(changed_type=("json: /list/* (was number, is number and text)",)),
    ),
}


@pytest.mark.parametrize(("now", "drift"), DRIFTS.values(), ids=DRIFTS)
def test_a_document_that_came_anew_is_compared(now, drift):
    """Keys that vanished, appeared, changed type are named; values and lengths of lists may be what they are."""
    outcome = check_metadata_keys(table(("d", ENTRY)), table(("d", now)), None)
    assert outcome.passed == (drift == Drift())
    assert {name: tuple(outcome.details[name]) for name in ("vanished", "appeared", "changed_type")} == vars(drift)
    assert all(keys[0] in outcome.message for keys in vars(drift).values() if keys)


def test_the_first_run_judges_only_what_is_expected():
    outcome = check_metadata_keys(None, table(("d", ENTRY)), None)
    assert outcome.passed and outcome.found["compared_documents"] == 0
    assert outcome.message == "every document has the keys that it had and those that are relied on"


def test_another_document_is_no_drift():
    """A first download, a removed file, a new line in the spec: what was not there before has not changed."""
    before = table(("d", ENTRY), ("gone", {"old": 1}), spec=["/title"])
    after = table(("d", ENTRY), ("new", {"key": 1}), spec=["/doi"])
    assert check_metadata_keys(before, after, None).passed


def test_a_document_that_another_version_reads_is_not_compared():
    """Keys that we name otherwise are our doing, not the publisher's."""
    before = table(("d", ENTRY))
    column = before.column_names.index("extractor_version")
    other = before.set_column(column, "extractor_version", [["9.9.9+7"] * before.num_rows])
    assert check_metadata_keys(other, table(("d", {"all": "new"})), None).passed
    newer = before.set_column(column, "extractor_version", [["9.9.9+1"] * before.num_rows])
    assert not check_metadata_keys(newer, table(("d", {"all": "new"})), None).passed


def test_a_warning_stands_until_something_came_anew(tmp_path):
    """A run that receives nothing has nothing to compare: what the last one found is still so."""
    folder = DatasetFolder(LocalStore(tmp_path), "dataset")
    before, after = table(("d", ENTRY)), table(("d", {"size": "8"}))
    write_outcome(folder, check_metadata_keys(before, after, read_last(folder)))
    again = check_metadata_keys(after, after, read_last(folder))
    assert not again.passed and "json: /size (was number, is text)" in again.details["changed_type"]
    anew = check_metadata_keys(after, table(("d", {"size": "9"})), read_last(folder))
    assert anew.passed


def test_the_outcome_is_kept_as_those_of_other_checks_are(tmp_path):
    """It is one of the dataset's checks, with expected and found; and it blocks nothing."""
    folder = DatasetFolder(LocalStore(tmp_path), "dataset")
    outcome = check_metadata_keys(table(("d", ENTRY)), table(("d", {"size": 8})), None)
    write_outcome(folder, outcome)
    kept = json.loads(folder.read("checks/metadata_keys.json"))
    assert (kept["check"], kept["passed"], kept["blocking"]) == (METADATA_KEYS, False, False)
    assert METADATA_KEYS not in BLOCKING
    assert (kept["found"]["vanished"], kept["expected"]["vanished"]) == (len(kept["details"]["vanished"]), 0)
    assert kept["message"] == outcome.message and kept["checked_at"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"details": {"vanished": 3}}'], ids=repr)
def test_a_result_that_cannot_be_read_is_none(tmp_path, raw):
    folder = DatasetFolder(LocalStore(tmp_path), "dataset")
    folder.write("checks/metadata_keys.json", raw)
    assert read_last(folder) is None


# -- what is expected


REAL = {
    "empiar_entry": "empiar/api_entry_EMPIAR-11759.json",
    "idr_image": "idr/imgData_9846137_RECONSTRUCTED.json",
    "idr_annotations": "idr/api_annotations_type_map_REAL_EXAMPLE_other_server.json",
    "idr_study": "idr/idr0086-study.txt",
    "precomputed": "hemibrain/v1.0__segmentation__info.json",
}


@pytest.mark.parametrize(("extractor", "file"), REAL.items(), ids=REAL)
def test_real_documents_have_what_is_expected(payloads, extractor, file):
    """None of the keys that are relied on is a guess."""
    claims = claims_of("d", extractor, (payloads / file).read_bytes(), "u")
    assert missing_expected(claims_table("x", claims, {})) == []


def test_a_real_header_has_what_is_expected(payloads):
    dump = json.loads((payloads / "empiar/dm3_full_tags_slice_0000.json").read_text())["full_original_tags"]
    keys = ["/" + path.removeprefix("root.").replace(".", "/") for path in dump]
    claims = [Claim(key, str(dump[path]), "d", "u", "dm") for key, path in zip(keys, dump, strict=True)]
    assert missing_expected(claims_table("x", claims, {})) == []


def test_a_real_omero_image_has_what_is_expected(payloads):
    image = json.loads((payloads / "idr/api_v0_m_images_DOC_EXAMPLE.json").read_text())["data"][0]
    claims = claims_of("d", "omero_image", json.dumps({"data": image}).encode(), "u")
    assert missing_expected(claims_table("x", claims, {})) == []


def test_what_is_relied_on_and_missing_is_named():
    """Also the first time; of kinds of documents that are there only."""
    info = {"type": "image", "data_type": "uint8", "num_channels": 1, "scales": []}
    outcome = check_metadata_keys(None, table(("documents/info.json", info, "precomputed")), None)
    assert not outcome.passed
    assert "precomputed: /scales/*/key" in outcome.details["missing_expected"]
    assert "relied on are missing (precomputed: /scales/*/key and 4 more)" in outcome.message
    assert len(outcome.details["missing_expected"]) == 5
    assert all(key.startswith("precomputed: ") for key in outcome.details["missing_expected"])


def test_expectations_are_of_known_extractors():
    assert set(EXPECTED_KEYS) <= set(EXTRACTORS)
