"""The deployment example loads, and its logs land on S3."""

import shutil

import dagster as dg
import pytest

from conftest import ROOT


def test_the_s3_example_keeps_compute_logs_on_s3(tmp_path, moto_s3, monkeypatch):
    """The example as it is, on a local S3 server: what a step prints is an object in the bucket."""
    boto3 = pytest.importorskip("boto3")
    monkeypatch.setenv("EM_ASSETS_LOG_BUCKET", "em-data")
    shutil.copy(ROOT / "deploy" / "dagster.s3.yaml", tmp_path / "dagster.yaml")

    @dg.asset
    def speaks() -> None:
        print("a line for the log")

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([speaks], instance=instance).success
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket="em-data", Prefix="em_assets/compute-logs").get("Contents", [])
    texts = [client.get_object(Bucket="em-data", Key=item["Key"])["Body"].read() for item in listed]
    assert any(b"a line for the log" in text for text in texts)
