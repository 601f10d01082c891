"""Where reading resumes, decided from what the log and the topic say. Plain functions: no socket, no clock."""

from __future__ import annotations

from collections.abc import Mapping

from streamtrain.errors import OffsetOutOfRange, PartitionMissing, SourceRecreated
from streamtrain.sources import Gap

__all__ = ["BeyondEnd", "check_identity", "number_of", "partition_name", "seek_offsets", "skip_offsets"]

_SKIP = 'set source.on_data_loss = "skip" to go on from the earliest record that there is'


class BeyondEnd(OffsetOutOfRange):
    """A position stands after the topic's end. A leader that has just been elected may show an early end: look again."""


def partition_name(topic: str, number: int) -> str:
    """How a partition is called in positions and spans."""
    return f"{topic}:{number}"


def number_of(partition: str, topic: str) -> int:
    """The inverse of `partition_name`.

    Raises:
      PartitionMissing: it is a partition of something else.
    """
    name, _, number = partition.rpartition(":")
    if name != topic or not number.isdecimal():
        raise PartitionMissing(
            f"the log's positions are in {partition!r}, but source.topic is {topic!r}: "
            "set source.topic back, or start a new model with another log.path"
        )
    return int(number)


def check_identity(topic: str, before: str, now: str) -> None:
    """Compares a topic's ids where both are known.

    Raises:
      SourceRecreated: they differ.
    """
    if before and now and before != now:
        raise SourceRecreated(
            f"topic {topic!r} was deleted and created again (its id was {before}, now {now}): the log's positions "
            f"mean nothing in it; start a new model with another log.path, or {_SKIP}"
        )


def seek_offsets(
    topic: str, positions: Mapping[int, int], begin: Mapping[int, int], end: Mapping[int, int]
) -> dict[int, int]:
    """Where each partition is to be read from.

    Args:
      topic: its name, for errors.
      positions: by partition, the next offset to learn; partitions of the topic that it lacks are read from `begin`.
      begin: by partition, the first offset that the topic still has; its keys are the topic's partitions.
      end: by partition, the offset after the last one that can be read.

    Raises:
      PartitionMissing: a position is in a partition that the topic does not have.
      OffsetOutOfRange: a position stands before `begin`; `BeyondEnd` where it stands after `end`.
    """
    for number, position in positions.items():
        name = partition_name(topic, number)
        if number not in begin:
            raise PartitionMissing(
                f"{name} is in the log's positions, but topic {topic!r} has only {len(begin)} partitions: it was "
                f"deleted and created again; start a new model with another log.path, or {_SKIP}"
            )
        if position > end[number]:
            raise BeyondEnd(
                f"{name}: the log goes on at offset {position}, but the topic ends at {end[number]}: it was deleted and "
                f"created again, or lost its newest records; start a new model with another log.path, or {_SKIP}"
            )
        if position < begin[number]:
            raise OffsetOutOfRange(
                f"{name}: {begin[number] - position} offsets that were never learned are gone (the log goes on at "
                f"{position}, retention has deleted all before {begin[number]}): {_SKIP}, and give the topic a longer "
                "retention.ms"
            )
    return dict(begin) | dict(positions)


def skip_offsets(
    topic: str,
    positions: Mapping[int, int],
    begin: Mapping[int, int],
    end: Mapping[int, int],
    *,
    recreated: bool,
) -> tuple[dict[int, int], tuple[Gap, ...]]:
    """As `seek_offsets`, but where a position cannot be read from, its partition goes on at `begin`.

    Args:
      recreated: the topic is another one of the same name: no position means anything.

    Returns:
      By partition, where to read from; and what was lost by that.
    """
    offsets = dict(begin)
    gaps = []
    for number, position in sorted(positions.items()):
        first = begin.get(number)
        if recreated:
            reason = "recreated"
        elif first is None:
            reason = "removed"
        elif position > end[number]:
            reason = "shrunk"
        elif position < first:
            reason = "retention"
        else:
            offsets[number] = position
            continue
        gaps.append(Gap(partition_name(topic, number), position, first, reason))
    return offsets, tuple(gaps)
