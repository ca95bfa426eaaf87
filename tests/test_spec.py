"""Dataset specs: what is accepted, what a wrong one is told, and what makes two specs one volume."""

import copy
import itertools
import json
import logging
import re
import resource
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from em_assets.datasets import spec as spec_module
from em_assets.datasets.fields import NAME_PATTERN
from em_assets.datasets.loading import json_schema, load_sound_specs, load_spec, load_specs
from em_assets.datasets.source import ChunkedSource, FilesSource, PrecomputedSource, file_key
from em_assets.datasets.spec import Crop, DatasetSpec, Expected, Output
from em_assets.errors import Malformed
from em_assets.records import partition_index, partition_key
from em_assets.settings import PACKAGED_DATASETS, Settings
from em_assets.volume import Box, Zyx

VALID = """\
name: small
title: A small volume
description: Drawn for tests.
publisher: drawer
source_id: vol/1
page_url: https://example.org/small
license: CC-BY-4.0
citation: Nobody (2020).
doi: 10.1234/small
notes: {doi: of the paper}
source:
  kind: precomputed
  url: https://example.org/data/small
crop:
  shape: [100, 100, 100]
  seed: 7
expected:
  source_shape: [300, 200, 150]
  dtype: uint8
  voxel_size_nm: [8.0, 8.0, 8.0]
output:
  shard: [64, 64, 64]
  chunk: [32, 32, 32]
"""
LINES = {line.split(":")[0].strip(): n for n, line in enumerate(VALID.splitlines(), 1)}


def write(folder: Path, text: str | bytes = VALID, name: str = "small.yaml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def with_value(key: str, value: str) -> str:
    """The valid spec with another text after `key:`."""
    text, count = re.subn(rf"^( *{key}:).*$", lambda m: f"{m[1]} {value}", VALID, flags=re.MULTILINE)
    assert count == 1, key
    return text


def refusal(folder: Path, text: str | bytes) -> str:
    """The sentence a spec is refused with. It is always one line and names the file."""
    file = write(folder, text)
    with pytest.raises(Malformed) as caught:
        load_spec(file)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(file))
    assert message.endswith((".", "?"))
    assert len(message) < len(str(file)) + 400
    return message.removeprefix(str(file))


def test_a_valid_spec_is_read(tmp_path):
    """What the file says is what the spec holds, in (z, y, x)."""
    spec = load_spec(write(tmp_path))
    assert spec.shape == (100, 100, 100)
    assert spec.expected.source_shape == ((300, 200, 150),)
    assert spec.expected.voxel_size_nm == (8.0, 8.0, 8.0)
    assert spec.shard_grid() == (2, 2, 2)


def test_the_packaged_specs_are_valid():
    """Every dataset that ships loads, and cites, licenses and describes itself."""
    specs = load_specs([PACKAGED_DATASETS])
    assert "hemibrain_crop" in specs
    assert len(list(specs["hemibrain_crop"].shard_indices())) == 64
    for name, spec in specs.items():
        assert spec.name == name
        assert spec.license and spec.citation and spec.description and spec.doi


@pytest.mark.parametrize(
    "shapes",
    [[[300, 200, 150]], [[300, 200, 150], [300, 201, 150]]],
    ids=["one in a list", "several"],
)
def test_source_shape_is_one_or_several(tmp_path, shapes):
    """Where reports differ, each is listed; a single one needs no list around it."""
    spec = load_spec(write(tmp_path, with_value("source_shape", str(shapes))))
    assert [list(shape) for shape in spec.expected.source_shape] == shapes


@pytest.mark.parametrize("prefix", [b"\xef\xbb\xbf", b"---\n", b"# a comment\n\n"], ids=["BOM", "document", "comment"])
def test_harmless_beginnings_are_accepted(tmp_path, prefix):
    """A byte order mark, a document start and comments change nothing."""
    assert load_spec(write(tmp_path, prefix + VALID.encode())) == load_spec(write(tmp_path, VALID))


def test_windows_line_ends_are_accepted(tmp_path):
    """A file saved with CRLF reads the same."""
    assert load_spec(write(tmp_path, VALID.replace("\n", "\r\n"))) == load_spec(write(tmp_path, VALID))


# What a wrong file is told (B38).

END = VALID.count("\n") + 1
ALIAS_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
BROKEN_FILES = {
    "empty": (b"", "line 1: expected `key: value` lines such as `name: ...`, found nothing."),
    "comments only": (b"# nothing\n", "found nothing."),
    "list on top": (b"- name: small\n- title: x\n", "line 1: expected `key: value` lines", "found a list"),
    "text on top": (b"\n\njust words\n", "line 3: expected `key: value` lines", "found plain text"),
    "two documents": (VALID.encode() + b"---\na: 1\n", f"line {END}", "another document"),
    "tab indent": (b"name: small\nsource:\n\tkind: precomputed\n", "line 3", "'\\t'"),
    "unclosed bracket": (b"name: small\ncrop: [1, 2\n", "line 3: not YAML"),
    "5,000 brackets": (b"name: " + b"[" * 5000 + b"]" * 5000, "line 1: nested more than 20 deep"),
    "5,000 mappings": (b"{a: " * 5000 + b"1" + b"}" * 5000, "line 1: nested more than 20 deep"),
    "python tag": (b"name: !!python/object/apply:os.system ['true']\n", "line 1", "python/object/apply:os.system"),
    "alias": (b"a: &a [1]\nb: *a\n", "line 2: YAML aliases are not accepted"),
    "alias bomb": (ALIAS_BOMB.encode(), "line 2: YAML aliases are not accepted"),
    "not UTF-8": (b"name: small\ntitle: Caf\xe9\n", "line 2: not UTF-8 (byte 0xe9)"),
    "UTF-16": ("name: small\n".encode("utf-16"), "line 1: not UTF-8 (byte 0xff)"),
    "control character": (b"name: small\ntitle: a\x00b\n", "line 2: holds the control character U+0000"),
    "10 MB": (b"# " + b"x" * 10_000_000, "has more than 262144 bytes"),
    "key given twice": (VALID.encode() + b"doi: 10.1234/other\n", f"line {END}: key doi is given twice"),
    "key twice below": (
        VALID.replace("  seed: 7", "  seed: 7\n  seed: 8").encode(),
        "line 17: key seed is given twice",
    ),
    "key no": (VALID.encode() + b"no: 1\n", "key no is not text"),
    "key 1": (VALID.encode() + b"1: 1\n", "key 1 is not text"),
    "key list": (VALID.encode() + b"? [a, b]\n: 1\n", "key a list or mapping is not text"),
    "merge": (VALID.encode() + b"<<: {a: 1}\n", "key << is not text"),
    "impossible date": (with_value("source_id", "2020-13-45").encode(), "line 5: '2020-13-45' is no value", "quote it"),
    "huge number": (with_value("source_id", "9" * 5000).encode(), "line 5", "quote it"),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_a_broken_file_is_told_where_and_why(tmp_path, case):
    """A file that is no spec is refused at once, with its line and what is wrong, however hostile it is."""
    raw, *expected = BROKEN_FILES[case]
    started = time.monotonic()
    message = refusal(tmp_path, raw)
    assert time.monotonic() - started < 5
    for part in expected:
        assert part in message


def test_hostile_files_cost_little_memory(tmp_path):
    """Refusing all of them takes less than 200 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for raw, *_ in BROKEN_FILES.values():
        refusal(tmp_path, raw)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@pytest.mark.parametrize("kind", ["folder", "dangling link", "link to itself"])
def test_a_spec_that_cannot_be_read_is_named(tmp_path, kind):
    """What looks like a spec and cannot be opened is an error, not a dataset less."""
    file = tmp_path / "small.yaml"
    if kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(tmp_path / "gone" if kind == "dangling link" else file)
    with pytest.raises(Malformed, match=re.escape(f"{file} cannot be read (")):
        load_specs([tmp_path])


def test_a_device_is_not_read_to_its_end(tmp_path):
    """An endless file is refused after as much as a spec may have."""
    (tmp_path / "small.yaml").symlink_to("/dev/zero")
    with pytest.raises(Malformed, match="more than 262144 bytes"):
        load_specs([tmp_path])


# What a wrong key or value is told (B38, B39, B40).


@pytest.mark.parametrize(
    ("key", "typo", "place"),
    [
        ("title", "titel", ""),
        ("doi", "DOI", ""),
        ("url", "uri", "source."),
        ("seed", "sed", "crop."),
        ("shard", "shards", "output."),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path, key, typo, place):
    """A typo gives an unknown and a missing key; the unknown one is reported, with the key that was meant."""
    text = re.sub(rf"^( *){key}:", rf"\1{typo}:", VALID, count=1, flags=re.MULTILINE)
    assert refusal(tmp_path, text) == f", line {LINES[key]}: unknown key {place}{typo}; did you mean {key}?"


@pytest.mark.parametrize("key", ["title", "license", "citation", "doi", "description", "page_url"])
def test_a_required_key_that_is_missing_is_named(tmp_path, key):
    """Description, licence, citation, DOI and the publisher's page are not optional."""
    text = re.sub(rf"^{key}:.*\n", "", VALID, flags=re.MULTILINE)
    assert f"{key} is required and not given" in refusal(tmp_path, text)


def test_a_missing_key_below_gives_the_line_of_its_parent(tmp_path):
    """Where there is no line for the key itself, the mapping it belongs in is pointed at."""
    text = VALID.replace("  dtype: uint8\n", "")
    assert refusal(tmp_path, text) == f", line {LINES['expected']}: expected.dtype is required and not given."


@pytest.mark.parametrize(
    "value",
    [
        "8",
        "[8, 8]",
        "[8, 8, 8, 8]",
        '"8 nm"',
        "0",
        "-1",
        ".inf",
        "[.inf, 8, 8]",
        "[.nan, 8, 8]",
        "[0, 8, 8]",
        "[8, -8, 8]",
        "[true, 8, 8]",
        '["8", "8", "8"]',
        "[8 nm, 8 nm, 8 nm]",
        "[[8, 8, 8]]",
        "{z: 8, y: 8, x: 8}",
        "",
        "[1.0e+400, 8, 8]",
        "[1.0e-300, 8, 8]",
        "[8, 8, null]",
        f"[8, 8, 1{'0' * 400}]",
    ],
)
def test_a_wrong_voxel_size_says_what_it_is_made_of(tmp_path, value):
    """Whatever stands there instead, the message says how many numbers, of what sign, unit and order."""
    message = refusal(tmp_path, with_value("voxel_size_nm", value))
    assert f"line {LINES['voxel_size_nm']}: expected.voxel_size_nm" in message
    assert "three positive numbers in nanometres, (z, y, x)" in message


@pytest.mark.parametrize("key", ["shape", "shard", "chunk", "source_shape"])
@pytest.mark.parametrize(
    "value",
    [
        "64",
        "[64, 64]",
        "[64, 64, 0]",
        "[64, 64, -64]",
        "[64, 64, 64.0]",
        "[64, 64, yes]",
        "64x64x64",
        "[64, 64, 1e3]",
        "[64, 64, 99999999999]",
        "[]",
        "",
    ],
)
def test_a_wrong_shape_says_what_it_is_made_of(tmp_path, key, value):
    """A shape is three positive whole numbers; nothing is rounded or converted to make it so."""
    message = refusal(tmp_path, with_value(key, value))
    assert f"line {LINES[key]}: " in message
    assert "three positive whole numbers of voxels, (z, y, x)" in message


def test_one_wrong_shape_among_several_is_pointed_at(tmp_path):
    """The line is that of the wrong shape, not of the list it is in."""
    text = with_value("source_shape", "\n    - [300, 200, 150]\n    - [300, 200]")
    assert refusal(tmp_path, text).startswith(
        f", line {LINES['source_shape'] + 2}: expected.source_shape.1 is [300, 200]"
    )


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("no", "a truth value, False"),
        ("1:30", "a number, 90"),
        ("1.10", "a number, 1.1"),
        ("11759", "a number"),
        ("2020-01-01", "a date"),
        ("0x10", "a number, 16"),
    ],
)
@pytest.mark.parametrize("key", ["title", "source_id", "license", "organism"])
def test_text_that_yaml_reads_as_something_else_is_to_be_quoted(tmp_path, key, written, read_as):
    """`no` is not False, `1:30` not 90 and `1.10` not 1.1: the message shows what happened and what to type."""
    text = with_value(key, written) if key in LINES else VALID + f"{key}: {written}\n"
    message = refusal(tmp_path, text)
    assert f"{key} is {written}, which YAML reads as {read_as}" in message
    assert message.endswith(f'quote it: "{written}".')


def test_quoted_text_stays_as_it_is_written(tmp_path):
    """What the message asks for works."""
    assert load_spec(write(tmp_path, with_value("source_id", '"1.10"'))).source_id == "1.10"


@pytest.mark.parametrize("value", ["", "~", "null"])
def test_an_unknown_doi_is_null_with_its_reason(tmp_path, value):
    """Nobody has to invent one; whoever has none says why."""
    assert load_spec(write(tmp_path, with_value("doi", value))).doi is None
    message = refusal(tmp_path, with_value("doi", value).replace("notes: {doi: of the paper}\n", ""))
    assert f"line {LINES['doi']}: doi: it may be null only if notes.doi says why" in message


@pytest.mark.parametrize("key", ["title", "source_id", "license", "organism"])
@pytest.mark.parametrize("value", ['"a\\nb"', '"a\\u2028b"', '"a\\tb"', '"a\\eb"'], ids=["LF", "U+2028", "TAB", "ESC"])
def test_what_stands_in_tables_is_one_line(tmp_path, key, value):
    """A title with a line break would break every table, log and terminal it is printed on."""
    text = with_value(key, value) if key in LINES else VALID + f"{key}: {value}\n"
    message = refusal(tmp_path, text)
    assert f"{key} is 'a" in message and "expected one line" in message


def test_a_folded_title_is_one_line(tmp_path):
    """How YAML writes long texts is no matter."""
    assert load_spec(write(tmp_path, with_value("title", ">\n  A small\n  volume"))).title == "A small volume"


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "[1.0, .nan, 2.0]", "1.0e+999"])
def test_a_claim_is_no_odd_number(tmp_path, value):
    """What nobody can state and no table can compare."""
    message = refusal(tmp_path, VALID + f"claims:\n  - {{key: voxel_size_nm, value: {value}}}\n")
    assert "claims.0.value is " in message and "finite numbers" in message


@pytest.mark.parametrize("value", ["", '""', '"  "', "~"])
def test_a_required_text_is_not_empty(tmp_path, value):
    """Nothing, spaces and null are no licence."""
    assert f"line {LINES['license']}: license is " in refusal(tmp_path, with_value("license", value))


@pytest.mark.parametrize(
    "name", ["a/b", "a b", "..", '""', "x" * 200, "Small", "1st", "_a", "small-2", "né", '"small\\n"']
)
def test_a_name_is_a_plain_word(tmp_path, name):
    """A name becomes a folder, an asset and a key: everything but a short plain word is refused."""
    message = refusal(tmp_path, with_value("name", name))
    assert "line 1: name is " in message
    assert "use lower-case letters, digits and _" in message


@pytest.mark.parametrize("name", ["class", "type", "config", "metadata_catalog", "ro_crates", "croissants", "portal"])
def test_a_reserved_name_is_refused(tmp_path, name):
    """Names that the platform or Dagster needs for itself are refused here, with the line."""
    with pytest.raises(Malformed, match=f"line 1: name is '{name}': this word is reserved"):
        load_spec(write(tmp_path, with_value("name", name), f"{name}.yaml"))


def test_dagster_takes_every_name_that_a_spec_may_have():
    """What Dagster refuses as the name of an asset is on the list of reserved names."""
    dagster = pytest.importorskip("dagster")
    ours = {"metadata_catalog", "metadata_exports", "metadata_summary", "ro_crates", "croissants", "portal"}
    for name in spec_module.RESERVED_NAMES - ours:
        if re.match(NAME_PATTERN, name):
            with pytest.raises(dagster.DagsterError):
                dagster.OpDefinition(lambda: None, name=name)
    for name in ("a", "list", "volume", "data", "key", "asset", "op", "job", "run", "id", "none", "object", "set"):
        assert name not in spec_module.RESERVED_NAMES
        dagster.OpDefinition(lambda: None, name=name)


def test_the_file_is_named_like_the_dataset(tmp_path):
    """A copied file whose name was left as it was is refused, naming both."""
    file = write(tmp_path, name="other.yaml")
    with pytest.raises(Malformed, match=re.escape(f"{file}, line 1: name is small, but the file is other.yaml")):
        load_spec(file)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("kind", "tiff", "'precomputed'"),
        ("url", "ftp://example.org/x", "https?"),
        ("url", "https://example.org/x?key=1", "https?"),
        ("url", "https://[bad/x", "not a web address"),
        ("url", "https://example.org:99999/x", "not a web address"),
        ("url", "https://:80/x", "names no host"),
        ("url", "https://somebody:secret@example.org/x", "must not hold a user or a password"),
        ("page_url", "example.org", "https?"),
        ("doi", "https://doi.org/10.1234/x", "without https://doi.org/"),
        ("dtype", "uint24", "'uint16'"),
        ("seed", "1.5", "integer"),
        ("seed", "-1", "greater than or equal to 0"),
        ("seed", "true", "integer"),
        ("seed", '"7"', "integer"),
    ],
)
def test_a_wrong_value_is_shown_with_what_is_accepted(tmp_path, key, value, says):
    """File, line, key, what was found and what is accepted, in one sentence."""
    message = refusal(tmp_path, with_value(key, value))
    assert f", line {LINES[key]}: " in message
    assert f"{key} is " in message
    assert says in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("snap: 1", "crop.snap", "boolean"),
        ("snap: maybe", "crop.snap", "boolean"),
        ("snap: 'false'", "crop.snap", "boolean"),
        ("origin: [1, 2, 3]", "crop", "exactly one of seed, origin, origin_nm (found: seed, origin)"),
        ("redraw: {level: 3, min_filled_fraction: .nan}", "crop.redraw.min_filled_fraction", "less than or equal to 1"),
        ("redraw: {level: 3, min_filled_fraction: '0.5'}", "crop.redraw.min_filled_fraction", "number"),
        ("redraw: {level: 3, max_draws: 0}", "crop.redraw.max_draws", "greater than 0"),
        ("redraw: {level: 3, filled: 1}", "crop.redraw.filled", "did you mean min_filled_fraction?"),
    ],
)
def test_a_wrong_crop_is_told(tmp_path, line, key, says):
    """The options of a crop are checked like everything else."""
    message = refusal(tmp_path, VALID.replace("  seed: 7\n", f"  seed: 7\n  {line}\n"))
    assert key in message
    assert says in message


@pytest.mark.parametrize(
    ("replacement", "says"),
    [
        ("", "exactly one of seed, origin, origin_nm (found: none)"),
        ("  origin: [1, 2.5, 3]\n", "three whole numbers of voxels, (z, y, x)"),
        ("  origin_nm: [1, .inf, 3]\n", "three numbers in nanometres, (z, y, x)"),
        ("  origin: [1, 2, 3]\n  redraw: {level: 3}\n", "crop.redraw: it needs seed"),
    ],
)
def test_a_crop_starts_somewhere(tmp_path, replacement, says):
    """Where a crop starts is said exactly once."""
    assert says in refusal(tmp_path, VALID.replace("  seed: 7\n", replacement))


# Values that are fine one by one, and make no sense together.


@pytest.mark.parametrize(
    ("changes", "key", "says"),
    [
        ({"shape": "[100, 100, 151]"}, "shape", "larger than the publisher's volume, [300, 200, 150]"),
        (
            {"source_shape": "[[300, 200, 150], [99, 200, 150]]"},
            "shape",
            "larger than the publisher's volume, [99, 200, 150]",
        ),
        ({"shard": "[64, 64, 48]"}, "shard", "not a multiple of the chunk"),
        ({"shard": "[33, 64, 64]", "chunk": "[33, 32, 32]"}, "shard", "must be even"),
        ({"shard": "[2048, 2048, 1024]", "dtype": "float32"}, "shard", "17179869184 bytes, more than 536870912"),
        ({"shard": "[512, 512, 512]", "chunk": "[512, 512, 512]"}, "chunk", "134217728 bytes, more than 67108864"),
        (
            {"shard": "[2, 2, 2]", "chunk": "[2, 2, 2]"},
            "shard",
            "125000 partitions, more than 1000; make the shard larger",
        ),
        ({"shard": "[128, 128, 128]", "chunk": "[2, 1, 2]"}, "shard", "holds 524288 chunks, more than 262144"),
    ],
    ids=[
        "crop too large",
        "crop larger than one report",
        "ragged shard",
        "odd shard",
        "shard bytes",
        "chunk bytes",
        "partitions",
        "chunks",
    ],
)
def test_a_spec_that_cannot_work_is_refused_with_the_key_to_change(tmp_path, changes, key, says):
    """Sizes are judged before anything is fetched, and the line is that of the key to change."""
    text = VALID
    for name, value in changes.items():
        text = re.sub(rf"^( *{name}:).*$", lambda m, value=value: f"{m[1]} {value}", text, flags=re.MULTILINE)
    message = refusal(tmp_path, text)
    assert f", line {LINES[key]}: " in message
    assert says in message


def test_the_largest_sensible_output_is_accepted(tmp_path):
    """Shards of 512 MiB, chunks of 64 MiB and 1,000 partitions are within the limits."""
    large = VALID.replace("[64, 64, 64]", "[1024, 1024, 512]").replace("[32, 32, 32]", "[512, 512, 256]")
    assert load_spec(write(tmp_path, large)).shard_grid() == (1, 1, 1)
    many = VALID.replace("[64, 64, 64]", "[10, 10, 10]").replace("[32, 32, 32]", "[10, 10, 10]")
    assert len(list(load_spec(write(tmp_path, many)).shard_indices())) == 1000


# Several files.


def test_a_name_given_twice_names_both_files(tmp_path):
    """Two folders with one dataset: a person decides which to keep."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    with pytest.raises(Malformed) as caught:
        load_specs([tmp_path / "a", tmp_path / "b"])
    assert str(tmp_path / "a" / "small.yaml") in str(caught.value)
    assert str(tmp_path / "b" / "small.yaml") in str(caught.value)


def test_a_folder_given_twice_is_read_once(tmp_path):
    """The same folder under two names holds every dataset once."""
    write(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    assert list(load_specs([tmp_path, tmp_path / ".", tmp_path / "link"])) == ["small"]


def test_hidden_files_are_not_specs(tmp_path):
    """An editor's lock and a shadow file do not stop everything."""
    write(tmp_path)
    write(tmp_path, b"\x00\x05", "._small.yaml")
    (tmp_path / ".#small.yaml").symlink_to("somebody@host.123")
    assert list(load_specs([tmp_path])) == ["small"]


@pytest.mark.parametrize("suffix", ["_chunks", "_files", "_metadata", "_blocks", "_portal"])
def test_no_dataset_is_named_like_anothers_asset(tmp_path, suffix):
    """`small_chunks` would be two assets at once where `small` is there."""
    write(tmp_path)
    write(tmp_path, with_value("name", f"small{suffix}"), f"small{suffix}.yaml")
    with pytest.raises(Malformed, match=f"small{suffix}.yaml names a dataset like an asset of .*small.yaml"):
        load_specs([tmp_path])


# One bad file among good ones.


@pytest.fixture
def one_is_bad(tmp_path, monkeypatch):
    """A folder with a good and a bad spec, and an environment that names it; gives the bad one's sentence."""
    folder = tmp_path / "specs"
    folder.mkdir()
    write(folder)
    bad = write(folder, VALID.replace("name: small", "name: broken").replace("title", "titel"), "broken.yaml")
    monkeypatch.chdir(tmp_path)
    for name, value in (("DATASETS", folder), ("ROOT", tmp_path / "data"), ("CACHE", tmp_path / "cache")):
        monkeypatch.setenv(f"EM_ASSETS_{name}", str(value))
    return f"{bad}, line 2: unknown key titel; did you mean title?"


def test_a_bad_file_leaves_the_good_ones_usable(one_is_bad, tmp_path):
    """Both are told apart; whoever wants all of them or none gets the sentence."""
    specs, wrong = load_sound_specs([tmp_path / "specs"])
    assert list(specs) == ["small"]
    assert {name: str(error) for name, error in wrong.items()} == {"broken": one_is_bad}
    with pytest.raises(Malformed, match=re.escape(one_is_bad)):
        load_specs([tmp_path / "specs"])


def test_a_name_given_twice_stops_everything(tmp_path):
    """Which of two files is meant cannot be known, whatever else is wrong."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder)
    write(tmp_path / "a", b"", "broken.yaml")
    with pytest.raises(Malformed, match="dataset small is given by both"):
        load_sound_specs([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("words", [["list"], ["show", "small"], ["plan", "--offline"], ["du"]], ids=" ".join)
def test_commands_go_on_without_the_bad_one(one_is_bad, monkeypatch, capsys, words):
    """What is wrong goes to stderr, what was asked for to stdout."""
    code, out, err = em_assets(monkeypatch, capsys, *words)
    assert code == 0
    assert err.strip() == f"careful: broken is left out: {one_is_bad}"
    assert "broken" not in out and ("small" in out or words == ["du"])


@pytest.mark.parametrize(
    "words",
    [["show", "broken"], ["plan", "small", "broken"], ["get", "broken"], ["verify", "broken"], ["logs", "broken"]],
    ids=" ".join,
)
def test_who_asks_for_the_bad_one_is_told_what_is_wrong(one_is_bad, monkeypatch, capsys, words):
    """The sentence, once, is all there is to say."""
    assert em_assets(monkeypatch, capsys, *words) == (1, "", f"{one_is_bad}\n")


def test_what_is_stored_of_the_bad_one_stays_within_reach(one_is_bad, monkeypatch, capsys, tmp_path):
    """Its history and its removal do not need the spec."""
    (tmp_path / "data/broken").mkdir(parents=True)
    (tmp_path / "data/broken/something").write_bytes(b"x")
    for words in (["logs", "broken"], ["rm", "broken", "--yes"]):
        code, _, err = em_assets(monkeypatch, capsys, *words)
        assert (code, err.strip()) == (0, f"careful: {one_is_bad}")
    assert not (tmp_path / "data/broken/something").exists()


def em_assets(monkeypatch, capsys, *words):
    """(exit code, stdout, stderr) of a command line."""
    from em_assets import cli

    monkeypatch.setattr("sys.argv", ["em-assets", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0, *capsys.readouterr()


def test_definitions_and_catalogue_hold_the_good_ones(one_is_bad, monkeypatch, caplog, tmp_path):
    """Dagster's log names the bad one; a command that selects it ends with its sentence."""
    pytest.importorskip("dagster")
    from em_assets import definitions
    from em_assets.catalog.build import build_catalog
    from em_assets.store import LocalStore

    note = tmp_path / "note"
    monkeypatch.setenv("EM_ASSETS_RUN_NOTE", str(note))
    monkeypatch.setattr("sys.orig_argv", ["python", "dagster", "asset", "materialize", "--select", "broken"])
    monkeypatch.setattr(logging.getLogger("dagster"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        loaded = definitions._load()
    assets = {key.to_user_string() for key in loaded.resolve_all_asset_keys()}
    exports = {"metadata_catalog", "metadata_exports", "metadata_summary", "ro_crates", "croissants"}
    assert assets == {"small", "small_chunks", "small_metadata", "small_blocks", "small_portal", *exports}
    assert f"dataset broken is left out: {one_is_bad}" in caplog.text
    assert note.read_text() == f"{one_is_bad}\n"
    specs, _ = load_sound_specs([tmp_path / "specs"])
    assert build_catalog(specs, LocalStore(tmp_path / "data"), Settings()).rows["datasets"] == 1


# Identity.

DECIDES = {
    "source path": ("source.url", "https://example.org/data/other"),
    "level": ("source.level", 1),
    "crop shape": ("crop.shape", [100, 100, 99]),
    "seed": ("crop.seed", 8),
    "snap": ("crop.snap", False),
    "redraw": ("crop.redraw", {"level": 3}),
    "dtype": ("expected.dtype", "int8"),
    "voxel size": ("expected.voxel_size_nm", [8.0, 8.0, 7.998250424861908]),
    "shard": ("output.shard", [64, 64, 96]),
    "chunk": ("output.chunk", [32, 32, 16]),
    "codec": ("output.codec", "none"),
    "codec level": ("output.codec_level", 2),
}
DESCRIBES = {
    "name": ("name", "other"),
    "title": ("title", "Other"),
    "description": ("description", "Other."),
    "license": ("license", "CC0-1.0"),
    "citation": ("citation", "Somebody (2021)."),
    "doi": ("doi", "10.1234/other"),
    "page": ("page_url", "https://example.org/other"),
    "organism": ("organism", "Mus musculus"),
    "notes": ("notes", {"license": "as stated", "doi": "as stated"}),
    "owners": ("owners", ["team:other"]),
    "host": ("source.url", "https://mirror.example.net/data/small"),
    "port and scheme": ("source.url", "http://127.0.0.1:8123/data/small"),
    "slash at the end": ("source.url", "https://example.org/data/small/"),
    "voxel size in whole numbers": ("expected.voxel_size_nm", [8, 8, 8]),
    "expected digest": ("expected.sha256", "0" * 64),
    "policy": ("missing", "error"),
    "default level": ("source.level", 0),
    "default snap": ("crop.snap", True),
    "snap left open": ("crop.snap", None),
    "no DOI": ("doi", None),
}


class WithoutAliases(yaml.SafeDumper):
    """A spec must have none, also where a test uses one object twice."""

    def ignore_aliases(self, data):
        return True


def dumped(document: dict) -> str:
    return yaml.dump(document, Dumper=WithoutAliases, sort_keys=False)


def document_with(key: str, value, text: str | dict = VALID):
    document = copy.deepcopy(yaml.safe_load(text) if isinstance(text, str) else text)
    *parents, last = (int(part) if part.isdecimal() else part for part in key.split("."))
    target = document
    for parent in parents:
        target = target[parent]
    target[last] = value
    return document


def changed(key: str, value, text: str = VALID):
    return DatasetSpec.model_validate(document_with(key, value, text))


@pytest.mark.parametrize(("key", "value"), DECIDES.values(), ids=DECIDES)
def test_what_decides_the_bytes_decides_the_identity(key, value):
    """A spec that would make other bytes has another identity, so that two volumes never mix."""
    spec = changed("name", "small")
    assert changed(key, value).identity() != spec.identity()


@pytest.mark.parametrize(("key", "value"), DESCRIBES.values(), ids=DESCRIBES)
def test_what_only_describes_leaves_the_identity(key, value):
    """Correcting a licence, or fetching from a mirror, does not throw a volume away."""
    spec = changed("name", "small")
    assert changed(key, value).identity() == spec.identity()


FILES = """\
name: small
title: A small volume
description: Drawn for tests.
publisher: drawer
source_id: vol/1
page_url: https://example.org/small
license: CC-BY-4.0
citation: Nobody (2020).
doi: 10.1234/small
source:
  kind: files
  url: https://example.org/data
  files:
    - {path: "slice_{00..03}.tif", size_bytes: 100}
    - {path: other.tif}
    - {path: labels.tif, checksum: "md5:00000000000000000000000000000000"}
  volume: {files: ["slice_{00..03}.tif"]}
  same_volume: [{files: [other.tif], axes: yzx}]
volumes:
  labels:
    content: labels
    source: {files: [labels.tif]}
    shape: [4, 10, 10]
    dtype: uint8
    voxel_size_nm: [8.0, 8.0, 8.0]
documents:
  - {path: entry.json, url: "https://example.org/api?id=1", kind: json}
expected:
  source_shape: [4, 20, 20]
  dtype: uint8
  voxel_size_nm: [8.0, 8.0, 8.0]
"""
CHUNKED = (
    FILES[: FILES.index("source:\n")]
    + """\
source: {kind: zarr, url: "s3://bucket/small.zarr", group: em, level: 0}
volumes:
  labels: {content: labels, group: labels, shape: [4, 10, 10], dtype: uint8, voxel_size_nm: [8.0, 8.0, 8.0]}
expected: {source_shape: [4, 20, 20], dtype: uint8, voxel_size_nm: [8.0, 8.0, 8.0]}
"""
)
FILES_DECIDE = {
    "which files": ("source.volume", {"files": ["slice_{00..02}.tif"]}),
    "axes": ("source.volume", {"files": ["slice_{00..03}.tif"], "axes": "zxy"}),
    "folder": ("source.url", "https://example.org/other"),
    "crop": ("crop", {"shape": [2, 10, 10], "origin": [0, 0, 0]}),
    "shape": ("expected.source_shape", [4, 20, 21]),
    "content": ("content", "labels"),
}
FILES_DESCRIBE = {
    "mirror": ("source.mirrors", ["ftp://example.org/data"]),
    "host": ("source.url", "http://127.0.0.1:8123/data/"),
    "pace": ("source.connections", 2),
    "range": ("source.range_bytes", 2**21),
    "another attachment": ("source.files.1.size_bytes", 200),
    "another cut": ("source.same_volume", []),
    "volumes": ("volumes", {}),
    "documents": ("documents", []),
    "claims": ("claims", [{"key": "organism", "value": "mouse"}]),
    "points": (
        "points",
        {"spots": {"url": "https://example.org/spots.csv", "format": "csv", "voxel_size_nm": [1, 1, 1]}},
    ),
    "keep": ("keep", "both"),
    "source chunk": ("expected.chunk", [1, 2, 3]),
    "a wrong published voxel size": ("expected.published_voxel_size_nm", [1.0, 1.0, 1.0]),
}
CHUNKED_DECIDE = {
    "group": ("source.group", "em2"),
    "level": ("source.level", "s1"),
    "channel": ("source.channel", 0),
    "path": ("source.url", "s3://bucket/other.zarr"),
    "portal": ("source.portal", {"api": "https://example.org/graphql", "dataset": 1, "run": "TS_1"}),
}
CHUNKED_DESCRIBE = {
    "endpoint": ("source.endpoint", "http://127.0.0.1:1"),
    "bucket": ("source.url", "s3://b/small.zarr"),
    "keep": ("keep", "both"),
    "keep without a volume": ("keep", "original"),
    "objects": ("expected.objects", 7),
    "object bytes": ("expected.object_bytes", 7),
}


@pytest.mark.parametrize(("key", "value"), FILES_DECIDE.values(), ids=FILES_DECIDE)
def test_what_decides_the_bytes_of_files_decides_the_identity(key, value):
    """Likewise where files are published."""
    assert changed(key, value, FILES).identity() != changed("name", "small", FILES).identity()


@pytest.mark.parametrize(("key", "value"), FILES_DESCRIBE.values(), ids=FILES_DESCRIBE)
def test_what_is_expected_of_files_leaves_the_identity(key, value):
    """A pinned size or checksum, a mirror, another attachment: none of them makes other voxels."""
    assert changed(key, value, FILES).identity() == changed("name", "small", FILES).identity()


@pytest.mark.parametrize(("key", "value"), CHUNKED_DECIDE.values(), ids=CHUNKED_DECIDE)
def test_what_decides_the_bytes_of_a_container_decides_the_identity(key, value):
    """Likewise where a container is published."""
    assert changed(key, value, CHUNKED).identity() != changed("name", "small", CHUNKED).identity()


@pytest.mark.parametrize(("key", "value"), CHUNKED_DESCRIBE.values(), ids=CHUNKED_DESCRIBE)
def test_where_a_container_is_served_leaves_its_identity(key, value):
    """The same container of another server or bucket."""
    assert changed(key, value, CHUNKED).identity() == changed("name", "small", CHUNKED).identity()


@pytest.mark.parametrize("text", [FILES, CHUNKED], ids=["files", "zarr"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [4, 10, 11]), ("content", "image"), ("dtype", "uint16"), ("voxel_size_nm", [8.0, 8.0, 4.0])],
)
def test_a_further_volume_has_an_identity_of_its_own(text, key, value):
    """What changes a further volume changes that one alone."""
    before, after = changed("name", "small", text), changed(f"volumes.labels.{key}", value, text)
    assert after.identity() == before.identity()
    assert after.layouts()["labels"].identity() != before.layouts()["labels"].identity()


@pytest.mark.parametrize("start", [{"origin": [0, 1, 2]}, {"origin_nm": [0.0, 8.0, 16.0]}], ids=["voxels", "nm"])
def test_a_given_origin_is_exact_unless_the_spec_says_otherwise(start):
    """A drawn origin is moved to the chunk grid, a given one is not; either may say so, which changes nothing."""
    drawn, given = Crop(shape=(1, 1, 1), seed=7), Crop(shape=(1, 1, 1), **start)
    assert (drawn.snaps, given.snaps) == (True, False)
    spec = changed("crop", {"shape": [9, 9, 9], **start})
    for snap, same in ((None, True), (False, True), (True, False)):
        other = changed("crop", {"shape": [9, 9, 9], **start, "snap": snap})
        assert (other.identity() == spec.identity()) is same


def test_the_packaged_crop_keeps_its_identity():
    """It is stored with volumes that people have."""
    assert load_spec(PACKAGED_DATASETS / "hemibrain_crop.yaml").identity() == "9d2e63a0db2eeb86"


def test_every_key_is_in_one_of_the_two_tables():
    """A new key of the spec has to be sorted: does it decide the bytes, or not?"""
    tables = (DECIDES, DESCRIBES, FILES_DECIDE, FILES_DESCRIBE, CHUNKED_DECIDE, CHUNKED_DESCRIBE)
    sorted_keys = {key for table in tables for key, _ in table.values()}
    unsorted = set()
    for name in DatasetSpec.model_fields:
        nested = {"source": (PrecomputedSource, ChunkedSource, FilesSource), "crop": (Crop,)}
        nested |= {"expected": (Expected,), "output": (Output,)}
        keys = {f"{name}.{key}" for model in nested.get(name, ()) for key in model.model_fields}
        unsorted |= keys or {name}
    given_elsewhere = {
        *("publisher", "source_id", "modality", "sample", "instrument", "overrides"),  # words, like title
        *("source.kind", "source.files", "crop.origin", "crop.origin_nm"),  # see the other tests
        "expected.file_size_bytes",  # what is checked, not what is made
    }
    assert unsorted - sorted_keys == given_elsewhere


CROP = {"shape": [2, 10, 10], "origin": [0, 0, 0]}
PART = {"group": "part", "shape": [4, 10, 10], "dtype": "uint8", "voxel_size_nm": [8.0, 8.0, 8.0]}
LABELS = {**PART, "content": "labels"}
REFUSED = {
    "files listed twice": (
        "source.files",
        [{"path": "a.tif"}, {"path": "A.tif"}],
        FILES,
        "source.files",
        "listed twice",
    ),
    "volume of no file": ("source.volume", {"files": ["gone.tif"]}, FILES, "source.volume.files", "not among"),
    "other cut of no file": ("source.same_volume", [{"files": ["x"]}], FILES, "source.same_volume.0", "not among"),
    "a path out": ("source.files.1.path", "../x", FILES, "source.files.1.path", "stays inside"),
    "an absolute path": ("source.files.1.path", "/etc/x", FILES, "source.files.1.path", "stays inside"),
    "a backslash": ("source.files.1.path", "a\\b", FILES, "source.files.1.path", "stays inside"),
    "a falling range": ("source.files.1.path", "a_{03..01}.tif", FILES, "source.files.1", "rises"),
    "a pinned range": (
        "source.files.0.checksum",
        "md5:" + "0" * 32,
        FILES,
        "source.files.0.path",
        "cannot have one checksum",
    ),
    "a wrong checksum": ("source.files.1.checksum", "md5:12", FILES, "source.files.1.checksum", "checksum"),
    "an unknown kind of address": ("source.url", "file:///etc", CHUNKED, "source.url", "begins with"),
    "a password": ("source.url", "s3://user:pw@bucket/x", CHUNKED, "source.url", "password"),
    "a group out": ("source.group", "../x", CHUNKED, "source.group", "stays inside"),
    "files are kept": ("keep", "standard", FILES, "keep", "always kept"),
    "a volume by group of files": (
        "volumes.labels",
        {"group": "x", "shape": [1, 1, 1], "dtype": "uint8", "voxel_size_nm": [1, 1, 1]},
        FILES,
        "volumes.labels",
        "by its source",
    ),
    "labels of nothing": ("volumes.labels.labels_of", "gone", FILES, "volumes.labels.labels_of", "no volume gone"),
    "a volume's bad name": ("volumes", {"../x": {}}, FILES, "volumes.../x", "lower-case"),
    "a volume of a file that is not listed": (
        "volumes.labels.source",
        {"files": ["gone.tif"]},
        FILES,
        "volumes.labels.source.files",
        "not among",
    ),
    "redraw": ("crop", {"shape": [1, 1, 1], "seed": 1, "redraw": {"level": 1}}, CHUNKED, "crop.redraw", "precomputed"),
    "float labels": (
        "",
        {"content": "labels", "expected.dtype": "float32"},
        CHUNKED,
        "expected.dtype",
        "whole numbers",
    ),
    "a further volume of float labels": (
        "volumes.labels.dtype",
        "float32",
        FILES,
        "volumes.labels.dtype",
        "whole numbers",
    ),
    "labels of an image": (
        "volumes",
        {"part": PART, "truth": {**PART, "labels_of": "part"}},
        CHUNKED,
        "volumes.truth.labels_of",
        "only labels belong",
    ),
    "labels of themselves": (
        "volumes.labels.labels_of",
        "labels",
        FILES,
        "volumes.labels.labels_of",
        "is labels itself",
    ),
    "labels of labels": (
        "volumes",
        {"one": LABELS, "two": {**LABELS, "labels_of": "one"}},
        CHUNKED,
        "volumes.two.labels_of",
        "one is labels itself",
    ),
    "the level of a file": ("volumes.labels.level", 1, FILES, "volumes.labels.level", "files have none"),
    "the channel of a file": ("volumes.labels.channel", 0, FILES, "volumes.labels.channel", "files have none"),
    "a file and a group": ("volumes.labels.group", "x", FILES, "volumes.labels", "by its source"),
    "a file twice in a series": (
        "source.volume.files",
        ["slice_{00..03}.tif", "slice_01.tif"],
        FILES,
        "source.volume.files",
        "slice_01.tif is listed twice",
    ),
    "a file twice in a further series": (
        "volumes.labels.source.files",
        ["labels.tif", "labels.tif"],
        FILES,
        "volumes.labels.source.files",
        "labels.tif is listed twice",
    ),
    "the same volume is the volume": (
        "source.same_volume",
        [{"files": ["slice_{00..01}.tif", "slice_{02..03}.tif"], "axes": "yzx"}],
        FILES,
        "source.same_volume.0",
        "those of source.volume.files already",
    ),
    "the same volume twice": (
        "source.same_volume",
        [{"files": ["other.tif"]}, {"files": ["other.tif"], "axes": "xyz"}],
        FILES,
        "source.same_volume.1",
        "those of source.same_volume.0 already",
    ),
    "an endpoint of no bucket": (
        "source",
        {"kind": "zarr", "url": "https://example.org/a.zarr", "endpoint": "https://example.org"},
        CHUNKED,
        "source.endpoint",
        "server of a bucket",
    ),
    "a container by FTP": ("source.url", "ftp://example.org/a.zarr", CHUNKED, "source.url", "begins with"),
    "a mirror that is a bucket": ("source.mirrors", ["s3://bucket/x"], FILES, "source.mirrors.0", "or ftp://"),
    "counted files": ("expected.objects", 3, FILES, "expected.objects", "leave it out"),
    "counted bytes of files": ("expected.object_bytes", 3, FILES, "expected.object_bytes", "leave it out"),
    "counted objects of precomputed": ("expected.objects", 3, VALID, "expected.objects", "leave it out"),
    "precomputed kept": ("keep", "both", VALID, "keep", "standard only"),
    "objects kept of a server that lists nothing": (
        "",
        {"source.url": "https://example.org/small.zarr", "keep": "original"},
        CHUNKED,
        "keep",
        "only a bucket can list",
    ),
    "objects kept of a crop": ("", {"crop": CROP, "keep": "both"}, CHUNKED, "keep", "leave crop out, or give standard"),
    "files kept and a crop of them": (
        "",
        {"crop": CROP, "keep": "original", "volumes": {}},
        FILES,
        "keep",
        "leave crop out, or give both",
    ),
    "volumes of files that are only kept": ("keep", "original", FILES, "keep", "leave volumes out, or give both"),
    "two documents, one name": (
        "documents",
        [{"path": name, "url": f"https://example.org/{name}", "kind": "json"} for name in ("a.json", "A.json")],
        FILES,
        "documents.1.path",
        "another document is kept as A.json",
    ),
    "a page asked first by FTP": ("documents.0.first", ["ftp://example.org/"], FILES, "documents.0.first.0", "https?"),
    "two shapes, no crop": (
        "expected.source_shape",
        [[4, 20, 20], [4, 20, 21]],
        CHUNKED,
        "expected.source_shape",
        "need a crop",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_a_wrong_source_is_told_where_and_why(tmp_path, case):
    """One sentence with line and key, whichever kind of source it is."""
    key, value, text, where, says = case
    document = copy.deepcopy(yaml.safe_load(text))
    for one, new in ({key: value} if key else value).items():
        document = document_with(one, new, document)
    message = refusal(tmp_path, dumped(document))
    assert re.search(rf": {re.escape(where)}[: ]", message) and says in message, message


@pytest.mark.parametrize("name", [".zattrs", "em__.zarray", "x.zgroup", "zarr.json", "s0__zarr.json", "INFO.json"])
def test_a_document_is_not_named_like_the_volumes_own(tmp_path, name):
    """One of the two would be taken for the other."""
    document = document_with(
        "documents.0.path", name, CHUNKED + FILES[FILES.index("documents:") : FILES.index("expected:")]
    )
    assert "documents.0.path is " in refusal(tmp_path, dumped(document))


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["a", "a/b"], "a is a file and the folder of a/b"),
        (["x/a/b", "X/A"], "X/A is a file and the folder of x/a/b"),
        (["a/b", "a__b"], "a/b and a__b would be one partition, a__b"),
        (["x_{0..9}", "x_3"], "x_3 is listed twice"),
        (["x.tif", "x.tif.receipt.json"], "names that end in .receipt.json are the store's own"),
        (["x.tif.em-partial"], "names that end in .em-partial"),
        (["x.tif.EM-part/data"], "names that end in .em-part"),
        (["a...b.tif"], "look like a range of partitions"),
        (["a."], "look like a range of partitions"),
        ([f"{letter}{{0..999}}" for letter in "ab"], "more than 1000 files"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else None,
)
def test_files_do_not_get_in_each_others_way(tmp_path, paths, says):
    """Each has a place, a receipt and a partition key of its own."""
    source = {"kind": "files", "url": "https://example.org", "files": [{"path": path} for path in paths]}
    document = document_with("source", source | {"volume": {"files": [paths[0]]}}, FILES) | {"volumes": {}}
    message = refusal(tmp_path, dumped(document))
    assert says in message and ": source.files" in message


def test_many_files_of_a_hostile_list_cost_little(tmp_path):
    """Ten million names are never written down."""
    many = [f"{n}_{{0..999}}" for n in range(10_000)]
    source = {"kind": "files", "url": "https://example.org", "files": [{"path": "a"}], "volume": {"files": many}}
    document = document_with("source", source, FILES) | {"volumes": {}}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "more than 1000 files" in refusal(tmp_path, json.dumps(document))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(st.sampled_from("ab.|,[]*\"' $#%é_-/"), min_size=1, max_size=8), min_size=2, max_size=4, unique=True
    )
)
def test_dagster_takes_every_partition_key_that_a_file_may_have(paths):
    """What a spec accepts can be a partition, and the ends of a range of them can be told apart."""
    dagster = pytest.importorskip("dagster")
    source = {"kind": "files", "url": "https://example.org", "files": [{"path": path} for path in paths]}
    try:
        keys = [file_key(path) for path in FilesSource(**source, volume={"files": paths[:1]}).by_path()]
    except ValueError:
        return
    assert dagster.StaticPartitionsDefinition(keys).get_partition_keys() == keys
    for first, last in itertools.product(keys, keys):
        assert f"{first}...{last}".split("...") == [first, last]


# A crop that is given is known to fit, or not, before anything is downloaded.


@pytest.mark.parametrize("text", [FILES, CHUNKED], ids=["files", "zarr"])
@pytest.mark.parametrize(
    ("start", "fits"),
    [
        ({"origin": [0, 0, 0]}, True),
        ({"origin": [2, 10, 10]}, True),
        ({"origin": [3, 10, 10]}, False),
        ({"origin": [0, 0, 11]}, False),
        ({"origin": [-1, 0, 0]}, False),
        ({"origin_nm": [16.0, 80.0, 87.9]}, True),
        ({"origin_nm": [16.0, 80.0, 88.0]}, False),
        ({"origin_nm": [-0.1, 0.0, 0.0]}, False),
        ({"seed": 1}, True),
        ({"origin": [2, 10, 10], "snap": True}, True),
    ],
    ids=str,
)
def test_a_given_crop_lies_inside(tmp_path, text, start, fits):
    """Their first voxel is 0, so the spec alone says whether the box leaves the volume."""
    document = document_with("crop", {"shape": [2, 10, 10], **start}, text)
    if fits:
        assert load_spec(write(tmp_path, dumped(document))).shape == (2, 10, 10)
    else:
        message = refusal(tmp_path, dumped(document))
        assert f"crop.{next(iter(start))}: a crop of [2, 10, 10] voxels at " in message
        assert "leaves the publisher's volume, [4, 20, 20] (z, y, x)" in message


def test_a_crop_of_precomputed_is_judged_by_the_publishers_own_numbers(tmp_path):
    """Its first voxel may be anywhere, which only the publisher says."""
    start = VALID.replace("  seed: 7", "  origin: [1000, -50, 1000]")
    assert load_spec(write(tmp_path, start)).crop.origin == (1000, -50, 1000)


# How further volumes are cut is judged like the main one.


@pytest.mark.parametrize(
    ("changes", "where", "says"),
    [
        ({"shard": [50, 50, 50]}, "volumes.labels.shard", "[50, 50, 50] is not a multiple of the chunk, [32, 32, 32]"),
        ({"shard": [96, 96, 96]}, None, ""),
        ({"shard": [2048, 2048, 2048]}, "volumes.labels.shard", "8589934592 bytes, more than 536870912"),
        (
            {"shard": [64, 64, 64], "shape": [64_000, 64_000, 64_000]},
            "volumes.labels.shard",
            "into 1000000000 shards, more than 20000",
        ),
        ({"shape": [64_000, 64_000, 64_000]}, "volumes.labels.shard", "into 1000000000 shards, more than 20000"),
        ({"shard": [1024, 1024, 512], "dtype": "uint16"}, "volumes.labels.shard", "of uint16 have 1073741824 bytes"),
        ({"shard": [1024, 1024, 512], "dtype": "uint8"}, None, ""),
    ],
    ids=["ragged", "whole", "8 GiB", "10^9 shards", "10^9 of the main shard", "its own dtype", "the largest"],
)
@pytest.mark.parametrize("text", [FILES, CHUNKED], ids=["files", "zarr"])
def test_a_further_volume_is_cut_sensibly(tmp_path, text, changes, where, says):
    """Nothing that could not be read, or not be held in memory, gets past loading."""
    document = document_with("output", {"shard": [64, 64, 64], "chunk": [32, 32, 32]}, text)
    document["volumes"]["labels"] |= changes
    file = write(tmp_path, dumped(document))
    if where is None:
        assert load_spec(file).layouts()["labels"].output.shard == tuple(changes["shard"])
    else:
        message = refusal(tmp_path, file.read_bytes())
        assert f": {where}: " in message and says in message


def test_a_chunk_is_judged_in_every_dtype_it_is_used_for(tmp_path):
    """64 MiB of uint8 are 256 MiB of the labels."""
    document = document_with("output", {"shard": [512, 512, 256], "chunk": [512, 512, 256]}, FILES)
    document["volumes"]["labels"]["dtype"] = "uint32"
    message = refusal(tmp_path, dumped(document))
    assert ": output.chunk: " in message and "of uint32 have 268435456 bytes, more than 67108864" in message


@pytest.mark.parametrize("text", [FILES, CHUNKED], ids=["files", "zarr"])
def test_a_typo_inside_a_source_names_the_key_of_its_kind(tmp_path, text):
    """`conections` is meant for files; what other kinds have is not proposed."""
    kind_key = {"conections": "connections"} if text is FILES else {"endpont": "endpoint"}
    ((typo, meant),) = kind_key.items()
    document = dumped(document_with(f"source.{typo}", 1, text))
    assert f"unknown key source.{typo}; did you mean {meant}?" in refusal(tmp_path, document)


shapes = st.tuples(*[st.integers(1, 150)] * 3).map(list)
starts = st.one_of(
    st.fixed_dictionaries({"seed": st.integers(0, 2**62)}),
    st.fixed_dictionaries({"origin": st.tuples(*[st.integers(-100, 100)] * 3)}),
    st.fixed_dictionaries({"origin_nm": st.tuples(*[st.floats(-1e6, 1e6)] * 3)}),
)


@st.composite
def deciding(draw):
    """The parts of a spec that decide the bytes."""
    chunk = draw(st.sampled_from([[16, 32, 32], [32, 32, 32]]))
    factor = draw(st.integers(1, 2)) * 2
    return {
        "source": {"kind": "precomputed", "url": "https://example.org/" + draw(st.sampled_from("ab")), "level": 0},
        "crop": {"shape": draw(shapes), "snap": draw(st.booleans()), **draw(starts)},
        "dtype": draw(st.sampled_from(["uint8", "uint16"])),
        "voxel_size_nm": draw(st.tuples(*[st.floats(0.1, 100)] * 3)),
        "output": {"shard": [c * factor for c in chunk], "chunk": chunk, "codec_level": draw(st.integers(1, 3))},
    }


def of_parts(parts, title="T"):
    document = yaml.safe_load(VALID) | {"title": title}
    expected = document["expected"] | {key: parts[key] for key in ("dtype", "voxel_size_nm")}
    document |= {"source": parts["source"], "crop": parts["crop"], "output": parts["output"], "expected": expected}
    return DatasetSpec.model_validate(document)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(deciding(), deciding(), st.text("abc", min_size=1), st.text("abc", min_size=1))
def test_identities_are_equal_exactly_where_the_deciding_parts_are(one, two, title, other_title):
    """Equal parts give equal identities whatever the words; different parts never do."""
    assert of_parts(one, title).identity() == of_parts(copy.deepcopy(one), other_title).identity()
    assert (of_parts(one).identity() == of_parts(two).identity()) == (one == two)


def test_the_identity_is_the_same_next_year():
    """The digest is stored: a change of it would refuse every volume that was made before."""
    assert changed("name", "small").identity() == "16ce5f55440f4334"


# Shards and partition keys.


@settings(max_examples=60, deadline=None)
@given(deciding())
def test_shards_tile_the_crop(parts):
    """The shards' boxes hold every voxel of the crop once, and no other."""
    spec = of_parts(parts)
    whole = Box.from_shape(spec.shape)
    boxes = [spec.shard_box(index) for index in spec.shard_indices()]
    assert sum(box.voxels for box in boxes) == whole.voxels
    assert all(whole.contains(box) for box in boxes)
    assert len(set(boxes)) == len(boxes)
    z, y, x = spec.shard_grid()
    assert len(boxes) == z * y * x


def test_a_shard_outside_is_refused():
    """There is no box of a shard that the volume does not have."""
    with pytest.raises(ValueError, match="outside the volume"):
        changed("name", "small").shard_box((2, 0, 0))


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 100_000)] * 3))
def test_a_partition_key_names_one_index(index: Zyx):
    """From index to key and back is the same index, also beyond three digits."""
    assert partition_index(partition_key(index)) == index


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 999)] * 3), unique=True, max_size=20))
def test_partition_keys_sort_like_their_indices(indices):
    """Up to 1,000 along an axis, the order of the keys is z, y, x."""
    assert sorted(map(partition_key, indices)) == [partition_key(index) for index in sorted(indices)]


@pytest.mark.parametrize(
    "key",
    [
        "",
        "..",
        "../../etc",
        "/etc/passwd",
        "z000_y000",
        "z000_y000_x000_",
        "z000_y000_x000\n",
        " z000_y000_x000",
        "x000_y000_z000",
        "z0_y0_x0",
        "z-01_y000_x000",
        "z+01_y000_x000",
        "z0000_y000_x000",
        "Z000_Y000_X000",
        "z000_y000_x0 0",
        "z000|y000|x000",
        "z\u0660\u0660\u0660_y000_x000",
        "z\u00b2\u00b2\u00b2_y000_x000",
        "z_y_x",
        "z000_y000_x000/../x",
        "z" + "9" * 5000 + "_y000_x000",
    ],
)
def test_a_key_that_is_none_is_refused(key):
    """Nothing but the exact form of a key gets past (B41)."""
    with pytest.raises(ValueError):
        partition_index(key)


@settings(deadline=None)
@given(st.text("zyx0123456789_", max_size=20))
def test_only_keys_that_would_be_written_are_read(key):
    """Whatever is accepted is what partition_key writes."""
    try:
        index = partition_index(key)
    except ValueError:
        return
    assert partition_key(index) == key


# The schema for editors.


def test_the_json_schema_is_current():
    """The file that editors complete and check specs with is the model's."""
    file = PACKAGED_DATASETS / "dataset.schema.json"
    assert file.read_text() == json_schema(), (
        "write it anew: python -c 'from em_assets.datasets.loading import json_schema as s; print(s(), end=\"\")' "
        "> em_assets/datasets/dataset.schema.json"
    )


def test_the_json_schema_explains_every_key():
    """An editor shows what each key means, with unit and order."""
    schema = json.loads(json_schema())
    models = [schema, *(model for model in schema["$defs"].values() if model["type"] == "object")]
    for model in models:
        undescribed = {key for key, value in model["properties"].items() if not value.get("description")}
        assert undescribed <= {"kind"}, model["title"]
        assert model["additionalProperties"] is False
    assert "nanometres" in schema["$defs"]["Expected"]["properties"]["voxel_size_nm"]["description"]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        (VALID, True),
        (with_value("source_shape", "[[3, 2, 1], [3, 2, 2]]"), True),
        (with_value("voxel_size_nm", "8"), False),
        (VALID + "titel: x\n", False),
        (with_value("source_id", "11759"), False),
    ],
    ids=["valid", "several shapes", "voxel size", "typo", "number for text"],
)
def test_the_json_schema_judges_like_the_model(text, fits):
    """What an editor marks is what would be refused, a single source shape included."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    assert validator.is_valid(yaml.safe_load(text)) is fits


def test_packaged_specs_fit_the_json_schema():
    """An editor finds nothing wrong with what ships."""
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(json_schema()))
    for file in PACKAGED_DATASETS.glob("*.yaml"):
        validator.validate(yaml.safe_load(file.read_bytes()))
        assert "$schema=dataset.schema.json" in file.read_text().splitlines()[0]
