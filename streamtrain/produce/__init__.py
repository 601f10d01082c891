"""Fills topics and files: from files, or with a synthetic stream. The library behind `streamtrain produce`."""

from streamtrain.produce.pump import batch_size_for, produce
from streamtrain.produce.records import Message, file_batches, messages_of
from streamtrain.produce.sinks import KafkaSink, LineSink, Sink, create_topic, kafka_sink
from streamtrain.produce.synthetic import SYNTHETIC_SCHEMA, SyntheticBlock, SyntheticStream

__all__ = [
    "SYNTHETIC_SCHEMA",
    "KafkaSink",
    "LineSink",
    "Message",
    "Sink",
    "SyntheticBlock",
    "SyntheticStream",
    "batch_size_for",
    "create_topic",
    "file_batches",
    "kafka_sink",
    "messages_of",
    "produce",
]
