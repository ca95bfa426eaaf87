"""What runs by itself in `dagster dev`: metadata and catalogue follow their data; nothing is downloaded unasked."""

from __future__ import annotations

import dagster as dg


def build_sensors() -> list[dg.AutomationConditionSensorDefinition]:
    """A running sensor for the assets' own conditions.

    A dataset's condition waits until all its partitions are materialized, so the sensor finishes a backfill of
    chunks. It never starts a download: a run of a sensor that finds partitions missing fails and says so.
    """
    return [
        dg.AutomationConditionSensorDefinition(
            "follow_the_data",
            target=dg.AssetSelection.all(),
            default_status=dg.DefaultSensorStatus.RUNNING,
            minimum_interval_seconds=30,
        )
    ]
