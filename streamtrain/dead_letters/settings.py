"""Where refused records are kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from streamtrain.kafka_connection import KafkaConnection
from streamtrain.settings import Settings

__all__ = ["AnyDeadLetters", "DeadLetterFile", "DeadLetterTopic"]


class DeadLetterFile(Settings):
    """JSON lines in a file: where the record stands, why it was refused, and its bytes in base64."""

    kind: Literal["file"]
    """Keeps refused records in a file."""
    path: str = Field(min_length=1)
    """The file, of this model alone. Its folder is made where it is missing."""
    rotate_bytes: int = Field(default=64 << 20, ge=4096, le=1 << 40)
    """The file is put aside as `NAME.000001`, `NAME.000002`, ... once it has so many bytes."""
    files_max: int = Field(default=16, ge=2, le=100_000)
    """Files that are kept, the current one among them; beyond it the oldest is removed, with a word in the log."""
    value_bytes_max: int = Field(default=1_000_000, ge=0, le=1 << 30)
    """Of a longer record only the beginning is kept."""


class DeadLetterTopic(Settings):
    """A Kafka topic: the original key and bytes, with the headers of Kafka Connect's dead letter queue."""

    kind: Literal["kafka"]
    """Sends refused records to a Kafka topic."""
    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    """The topic. It must exist; it is never created."""
    value_bytes_max: int = Field(default=1_000_000, ge=0, le=1 << 30)
    """Of a record with more bytes of key and value only the beginning is kept. Below the topic's `max.message.bytes`."""
    timeout_s: float = Field(default=15.0, gt=0, le=300)
    """How long Kafka may take before training pauses with words. Trying goes on all the same."""
    connection: KafkaConnection | None = None
    """The cluster. Default: that of the source, where the source is Kafka."""


AnyDeadLetters = Annotated[DeadLetterFile | DeadLetterTopic, Field(discriminator="kind")]
