"""Settings of the Kafka source."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from streamtrain.kafka_connection import KafkaConnection
from streamtrain.settings import Settings
from streamtrain.sources import OnDataLoss, SourceSettings

__all__ = ["KafkaConnection", "KafkaSettings", "StartAt"]


class StartAt(Settings):
    """A new model begins with the first record of this time or later."""

    timestamp_ms: int = Field(ge=0)
    """Record time in milliseconds since 1970."""


class KafkaSettings(SourceSettings, KafkaConnection):
    """A Kafka topic, all of its partitions."""

    kind: Literal["kafka"]
    """Reads a Kafka topic."""
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    """The topic. It must exist; it is never created by reading."""
    group_id: str | None = None
    """Consumer group to mirror positions to, for lag tools. The epoch log alone decides where reading resumes."""
    start: Literal["earliest", "latest"] | StartAt = "earliest"
    """Where a new model begins: `earliest`, `latest`, or `{ timestamp_ms = ... }`."""
    on_data_loss: OnDataLoss = "stop"
    """When records that were never learned are gone (retention, a recreated or shrunk topic): `stop`, or `skip`, which goes
    on from the earliest record that there is and writes the gap into the lineage."""
    chunk_records_max: int = Field(default=4096, ge=1, le=1_000_000)
    """Records that are decoded together at most."""
    buffer_records_max: int = Field(default=65_536, ge=1, le=100_000_000)
    """Records read ahead; beyond it no more are fetched."""
    buffer_bytes_max: int = Field(default=64 << 20, ge=1024, le=1 << 40)
    """Bytes of records read ahead; beyond it no more are fetched."""
    fetch_bytes_max: int = Field(default=16 << 20, ge=1024, le=1 << 30)
    """Bytes of one broker's answer."""
    partition_fetch_bytes_max: int = Field(default=1 << 20, ge=1024, le=1 << 30)
    """Bytes of one partition in an answer. A larger batch comes whole nevertheless."""
    fetch_wait_ms: int = Field(default=100, ge=0, le=60_000)
    """How long a broker may wait for more records before it answers."""
    metadata_refresh_s: float = Field(default=10.0, gt=0, le=3600)
    """How often to look for new partitions, end offsets and a recreated topic."""
    unavailable_after_s: float = Field(default=30.0, gt=0, le=3600)
    """How long Kafka may be silent before it is reported. Trying goes on all the same."""
    mirror_interval_s: float = Field(default=1.0, gt=0, le=3600)
    """Least time between two mirrored commits of `group_id`."""
