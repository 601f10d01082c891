"""Reads samples from a Kafka topic: the consumer plug-in `kafka`."""

from consumers.kafka.settings import KafkaSettings, StartAt
from consumers.kafka.source import KafkaSource

__all__ = ["KafkaSettings", "KafkaSource", "StartAt"]
