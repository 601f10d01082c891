"""Every error that streamtrain raises on purpose, and what the one who catches it does.

StreamtrainError
├── ConfigError           say it to the user, exit 2; retrying is useless
├── BadSample             count it, name it, go on with the next sample
├── DeadLettersUnavailable  pause training, retry: a refused record must not be lost
├── TooManyBadSamples     stop: the stream does not fit the schema
├── TooManyQuarantined    stop at the last good epoch: the model or the samples have lost their numbers
├── TableFull             stop: raise rows_max, or let fewer ids in
├── SourceError
│   ├── SourceUnavailable     back off and retry, then pause
│   ├── OffsetOutOfRange      stop: data that was never learned is gone
│   ├── PartitionMissing      stop: the topic or file is not there (any more)
│   └── SourceRecreated       stop: positions belong to another incarnation
├── LogError
│   ├── Fenced                stop writing now: another writer owns the log
│   ├── LogFull               pause training, retry when there is room
│   ├── CorruptRecord         refuse the file, name it, say the remedy
│   │   └── FormatUnknown         refuse it as well: it is sound, and of another version of streamtrain
│   ├── EpochMissing          the epoch was collected or never written
│   └── RegistrationRefused   read without being registered, or get leave to write in readers/
├── StoreError
│   ├── StoreUnavailable      back off, pause; a missing answer is never a default row
│   ├── StoreBehind           repair it from the log; until then, nothing may be read from it
│   └── StoreRefused          stop: the store is misconfigured or holds another model
└── ExportError
    └── DeltaGap              a follower fetches the base instead
"""

from __future__ import annotations


class StreamtrainError(Exception):
    """Base of all. Its text is for the user: what failed, where, and what to do."""


class ConfigError(StreamtrainError):
    """A setting is unknown, of the wrong type, out of range or contradicts another. Exit 2."""


class BadSample(StreamtrainError):
    """One record cannot become a sample. Count it, name it, go on.

    Attributes:
      reason: a short fixed word for metrics: `json`, `type`, `non_finite`, `label`, `length`, `missing`, `range`,
        `too_large`, `codec` (a codec plug-in failed).
      field: the field at fault, or None when the record as a whole is.
      partition, offset: where the record stands; None until the consumer's frame fills them in.
      leaf: which leaf of the record, counted from 0; None where the record as a whole is refused.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        field: str | None = None,
        partition: str | None = None,
        offset: int | None = None,
        leaf: int | None = None,
    ) -> None:
        self.reason, self.detail, self.field = reason, detail, field
        self.partition, self.offset, self.leaf = partition, offset, leaf
        super().__init__(reason, detail, field, partition, offset, leaf)

    def __str__(self) -> str:
        leaf = "" if self.leaf is None else f" leaf {self.leaf}"
        place = "" if self.partition is None else f"{self.partition} offset {self.offset}{leaf}: "
        field = "" if self.field is None else f"field {self.field!r}: "
        return f"{place}{field}{self.detail}"


class TooManyBadSamples(StreamtrainError):
    """The bad share of a window passed its bound. Stop: this is the wrong schema or a broken producer."""


class DeadLettersUnavailable(StreamtrainError):
    """Refused records cannot be kept now. Pause, and try again: nothing behind them is learned meanwhile."""


class TooManyQuarantined(StreamtrainError):
    """One minibatch after the other would leave NaN or infinities in the model. Stop: the epochs so far are good."""


class TableFull(StreamtrainError):
    """An embedding table (or id set) has reached its bound. Stop: raise rows_max, or use admission or expiry."""


class SourceError(StreamtrainError):
    """Something about the source of samples."""


class SourceUnavailable(SourceError):
    """The broker or file system did not answer. Back off and retry."""


class OffsetOutOfRange(SourceError):
    """The position to resume from is no longer (or not yet) in the source. Stop."""


class PartitionMissing(SourceError):
    """A topic, partition or file that the positions or settings name does not exist. Stop."""


class SourceRecreated(SourceError):
    """The topic or file was recreated: old positions mean nothing in it. Stop."""


class LogError(StreamtrainError):
    """Something about the epoch log."""


class Fenced(LogError):
    """Another writer appended this epoch. Stop writing at once; nothing of this step was committed."""


class LogFull(LogError):
    """No room to write an epoch. Nothing was lost: pause, and retry when there is room."""


class CorruptRecord(LogError):
    """A file of the log does not match its digest, chain or format. Refuse it."""


class FormatUnknown(CorruptRecord):
    """A file of the log is of a newer version of streamtrain. Nothing is wrong with it: run that version."""

    def __init__(self, path: object, what: str) -> None:
        super().__init__(
            f"{path}: {what}: a newer version of streamtrain wrote it. Nothing is damaged, move nothing away: run that "
            "version or a newer one, and stop those that are older"
        )


class EpochMissing(LogError):
    """The epoch asked for is not in the log: collected, or not written yet."""


class Superseded(CorruptRecord, EpochMissing):
    """A file under an epoch's name that no newer epoch follows: an overtaken writer left it. A newer base stands for it."""


class RegistrationRefused(LogError):
    """A reader cannot be registered, most often for want of write permission. Read without, or mend that."""


class StoreError(StreamtrainError):
    """Something about the row store."""


class StoreUnavailable(StoreError):
    """The store did not answer in time. Back off and pause; never read it as 'no such row'."""


class StoreBehind(StoreError):
    """A shard lacks epochs, rows, or everything. The applier repairs it from the log; readers wait for that."""


class StoreRefused(StoreError):
    """The store is misconfigured, holds another model, or refused a stale writer. Stop."""


class ExportError(StreamtrainError):
    """An export directory is damaged or of another model."""


class DeltaGap(ExportError):
    """A delta does not follow the version held. The follower fetches the base."""
