"""The job: one TOML file plus environment, read once, checked whole, refused with every fault named."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from streamtrain import plugins
from streamtrain.dead_letters.settings import DeadLetterTopic
from streamtrain.dense.optimizers import AnyDenseOptimizer, DenseAdam
from streamtrain.dictionary.settings import ReverseDictionarySettings
from streamtrain.errors import ConfigError
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.layout import Layout
from streamtrain.log.settings import LogSettings
from streamtrain.ownership import FailoverSettings
from streamtrain.samples.schema import Name, Schema, SequenceSlot, SparseSlot
from streamtrain.settings import Settings
from streamtrain.sparse.settings import TableSettings
from streamtrain.sparse.tables import AnyTable
from streamtrain.store.settings import StoreSettings
from streamtrain.training.settings import TrainingSettings

__all__ = ["ENVIRONMENT_PREFIX", "HttpSettings", "Job", "LoggingSettings", "load_job", "parse_job"]

ENVIRONMENT_PREFIX = "STREAMTRAIN__"


class HttpSettings(Settings):
    """Where the status page (`/`), `/metrics` and the probes are served."""

    enabled: bool = True
    """Whether to listen at all."""
    host: str = "127.0.0.1"
    """Address to bind. Loopback unless told otherwise."""
    port: int = Field(default=9464, ge=0, le=65_535)
    """Port to bind; 0 picks a free one and logs it."""
    token_file: str | None = None
    """File that holds a token which all but the probes then ask for: `Authorization: Bearer TOKEN`, or in a browser the token as
    the password of any user. Read again when it is replaced; a bare name is a file of `$CREDENTIALS_DIRECTORY` where that has it. Default: who reaches the port may read."""
    connections_max: int = Field(default=64, ge=1, le=4096)
    """Bound on connections at a time; one beyond is closed at once."""
    connection_timeout_s: float = Field(default=30.0, gt=0, le=600)
    """How long a connection may take from its opening to its end; it carries one request."""
    trainer_silent_max_s: float = Field(default=120.0, gt=0, le=86_400)
    """`/livez` fails where the trainer thread has ended neither a step nor a look for samples for so long. Compiling at a
    start and waiting for a log without room do not count."""


class LoggingSettings(Settings):
    """What the daemon writes to standard error."""

    format: Literal["auto", "console", "json"] = "auto"
    """`json` is one object a line; `auto` is `console` on a terminal and `json` elsewhere."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe line to write."""
    repeats_max: int = Field(default=20, ge=1, le=1_000_000)
    """Warnings and errors of a kind that are written within a minute; of more, their number is told, and the last of them."""


class _Fixed(Settings):
    """The sections whose settings do not depend on a plug-in."""

    name: Name
    """The model's name, for people: in logs, metrics and exports."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides initial rows and dense parameters."""
    sample_schema: Schema = Field(alias="schema")
    """What a sample looks like."""
    tables: dict[Name, AnyTable] = Field(min_length=1, max_length=1024)
    """The embedding tables by name."""
    training: TrainingSettings = TrainingSettings()
    """How samples become steps."""
    optimizer: AnyDenseOptimizer = DenseAdam()
    """The optimizer of the dense parameters."""
    log: LogSettings
    """The epoch log: the one place that must not be lost."""
    store: StoreSettings = StoreSettings()
    """Where rows are kept beside the log."""
    failover: FailoverSettings | None = None
    """Standbys that take over. Default: this daemon is alone with the log."""
    reverse_dictionary: dict[Name, ReverseDictionarySettings] = Field(default_factory=dict)
    """By slot, that the original values of its ids are to be kept for `streamtrain inspect`. Default: of none."""
    http: HttpSettings = HttpSettings()
    """The status page, metrics and probes."""
    logging: LoggingSettings = LoggingSettings()
    """Log lines."""


class Job(_Fixed):
    """Everything that one daemon needs to know. Sections of plug-ins hold the plug-in's own settings."""

    source: Annotated[Any, Field()]
    """Where samples come from: `kind` names a consumer."""
    model: Annotated[Any, Field()]
    """The dense half: `kind` names a model, or `module:Class`."""
    exports: list[Any] = Field(default_factory=list, max_length=16)
    """Who gets committed epochs: each `kind` names an exporter."""

    @property
    def layout(self) -> Layout:
        """Which slot is which columns."""
        return Layout.of(self.sample_schema, {name: table.dim for name, table in self.tables.items()})

    def describe(self) -> dict[str, Any]:
        """The job as plain data that `parse_job` accepts. It holds no secrets: settings never do."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, serialize_as_any=True)

    def describe_redacted(self) -> dict[str, Any]:
        """As `describe`, for pages and logs: settings of plug-ins may hold what ours never do."""
        described: dict[str, Any] = _redacted("", self.describe())
        return described


def load_job(path: str | os.PathLike[str], environment: Mapping[str, str] | None = None) -> Job:
    """Reads a job.

    Args:
      path: the TOML file.
      environment: `STREAMTRAIN__TRAINING__BATCH_SIZE=32` overrides `training.batch_size`. Default: the process's.

    Raises:
      ConfigError: the file cannot be read or parsed, or settings are wrong; every fault is named.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; `streamtrain init` writes a first one"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    overridden = _override(data, os.environ if environment is None else environment)
    return parse_job(data, str(path), overridden)


def parse_job(data: dict[str, Any], where: str, overridden: Mapping[str, str] | None = None) -> Job:
    """Checks a job given as plain data.

    Args:
      data: what the TOML holds.
      where: names the data in errors: a file's path.
      overridden: by dotted key, the environment variable that set it, so that an error blames the right place.

    Raises:
      ConfigError: with one line per fault.
    """
    rest = dict(data)
    faults: list[str] = []
    sections: dict[str, Any] = {}
    sections["source"] = _section(
        rest.pop("source", None), "consumers", ("source",), where, overridden, faults
    )
    sections["model"] = _section(rest.pop("model", None), "models", ("model",), where, overridden, faults)
    exports = rest.pop("exports", [])
    if not isinstance(exports, list):
        faults.append(
            _fault(where, ("exports",), exports, "write [[exports]], with two brackets", overridden)
        )
        exports = []
    sections["exports"] = [
        _section(section, "exporters", ("exports", i), where, overridden, faults)
        for i, section in enumerate(exports)
    ]
    fixed = _validate(_Fixed, rest, (), where, overridden, faults)
    if faults:
        raise ConfigError("\n".join(faults))
    assert fixed is not None
    job = Job.model_construct(**{name: getattr(fixed, name) for name in _Fixed.model_fields}, **sections)
    try:
        _ = job.layout
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    if fault := _dead_letters_fault(job):
        raise ConfigError(_fault(where, ("training", "bad_samples", "dead_letters"), None, fault, overridden))
    if fault := _failover_fault(job):
        raise ConfigError(_fault(where, ("failover", "group_id"), None, fault, overridden))
    for name, table in job.tables.items():
        if fault := _memory_fault(table, job.store):
            raise ConfigError(_fault(where, ("tables", name, "memory_bytes_max"), None, fault, overridden))
    for slot in job.reverse_dictionary:
        if fault := _reverse_dictionary_fault(job.sample_schema, slot):
            raise ConfigError(_fault(where, ("reverse_dictionary", slot), None, fault, overridden))
    return job


def _dead_letters_fault(job: Job) -> str:
    """What is wrong between the dead letters and the source, each of which is right by itself; "" where nothing is."""
    settings = job.training.bad_samples.dead_letters
    if not isinstance(settings, DeadLetterTopic):
        return ""
    same_cluster = isinstance(job.source, KafkaConnection) and (
        settings.connection is None or settings.connection.bootstrap_servers == job.source.bootstrap_servers
    )
    if settings.connection is None and not same_cluster:
        return (
            'connection is required where the source is not Kafka: connection = { bootstrap_servers = "..." }'
        )
    if same_cluster and getattr(job.source, "topic", None) == settings.topic:
        return (
            f"topic {settings.topic!r} is the source's own: refused records would be read again without end"
        )
    return ""


def _failover_fault(job: Job) -> str:
    """As `_dead_letters_fault`, between failover and the source."""
    if job.failover is None:
        return ""
    if not hasattr(plugins.load("consumers", job.source.kind), "ownership"):
        return f"source.kind = {job.source.kind!r} cannot tell which of several daemons is alive; failover needs kafka"
    if getattr(job.source, "group_id", None) == job.failover.group_id:
        return (
            f"{job.failover.group_id!r} is source.group_id as well: Kafka takes mirrored positions of no group that has "
            "members; give each a group of its own"
        )
    return ""


def _memory_fault(table: AnyTable, store: StoreSettings) -> str:
    """As `_dead_letters_fault`, between a bound on a table's memory and the store."""
    if not isinstance(table, TableSettings) or table.memory_bytes_max is None:
        return ""
    if store.url == "memory://":
        return (
            "rows that leave memory have to be somewhere: name a store, store.url = "
            '"lmdb:///PATH" (a directory on a local disk) or "redis://HOST:PORT/DATABASE"'
        )
    return ""


def _reverse_dictionary_fault(schema: Schema, name: str) -> str:
    """As `_dead_letters_fault`, between the reverse dictionary of a slot and the schema."""
    slot = schema.slots.get(name)
    if not isinstance(slot, (SparseSlot, SequenceSlot)):
        able = [
            n for n, s in schema.slots.items() if isinstance(s, (SparseSlot, SequenceSlot)) and not s.shares
        ]
        return f"is not a sparse or sequence slot; there are: {', '.join(able) or 'none'}"
    if slot.shares is not None:
        return f"shares its ids with slot {slot.shares!r}: ask for reverse_dictionary.{slot.shares}"
    return ""


def _section(
    data: Any,
    group: str,
    at: tuple[str | int, ...],
    where: str,
    overridden: Mapping[str, str] | None,
    faults: list[str],
) -> Any:
    """Validates a plug-in's section by the plug-in's own `Settings`."""
    if not isinstance(data, dict) or not isinstance(data.get("kind"), str):
        known = ", ".join(plugins.names(group))
        faults.append(
            _fault(where, (*at, "kind"), None, f"is required: one of {known}, or 'module:Class'", overridden)
        )
        return None
    try:
        plugin = plugins.load(group, data["kind"])
    except ConfigError as error:
        faults.append(_fault(where, (*at, "kind"), data["kind"], str(error), overridden))
        return None
    settings = getattr(plugin, "Settings", None)
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        message = (
            f"is not a {group} plug-in: it needs a class attribute Settings, a streamtrain.settings.Settings"
        )
        faults.append(_fault(where, (*at, "kind"), data["kind"], message, overridden))
        return None
    return _validate(settings, data, at, where, overridden, faults)


def _validate(
    model: type[Settings],
    data: dict[str, Any],
    at: tuple[str | int, ...],
    where: str,
    overridden: Mapping[str, str] | None,
    faults: list[str],
) -> Any:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            location = (*at, *_place(data, fault))
            value = None if fault["type"] == "missing" or isinstance(fault["input"], dict) else fault["input"]
            if fault["type"] == "extra_forbidden" and not isinstance(value, (int, float)):
                # What stands under an unknown key may be anything, a password too.
                value = None
            if fault["type"] == "extra_forbidden":
                message = f"is not a setting{_suggest(model, fault['loc'])}"
            elif fault["type"] == "missing":
                message = "is required"
            elif fault["type"] == "union_tag_invalid":
                location, value = (*location, "kind"), fault["ctx"]["tag"]
                message = f"must be one of {fault['ctx']['expected_tags']}"
            elif fault["type"] == "union_tag_not_found" and isinstance(fault["input"], dict):
                location, message = (*location, "kind"), "is required"
            elif fault["type"] in _NOT_A_SECTION:
                message = "must be a section: [NAME] with keys below it, or { key = value, ... }"
            else:
                message = fault["msg"].removeprefix("Value error, ")
            faults.append(_fault(where, location, value, message, overridden))
        return None


_NOT_A_SECTION = {"model_type", "model_attributes_type", "dict_type", "union_tag_not_found"}


def _place(data: Any, fault: ErrorDetails) -> list[str | int]:
    """Where the fault is in the user's file. Pydantic puts the members of unions in between, which no file has."""
    place: list[str | int] = []
    for part in fault["loc"]:
        inside = part in data if isinstance(data, dict) else isinstance(data, list) and isinstance(part, int)
        if inside:
            place.append(part)
            data = data[part]
    return [*place, fault["loc"][-1]] if fault["type"] == "missing" else place


def _suggest(model: type[Settings], location: tuple[str | int, ...]) -> str:
    """Names what is allowed beside an unknown key."""
    # A job's own sections and those of plug-ins are checked apart; to the user they are one file.
    current: Any = Job if model is _Fixed else model
    for part in location[:-1]:
        current = _descend(current, part)
    fields = getattr(current, "model_fields", None)
    return f"; allowed: {', '.join(f.alias or n for n, f in fields.items())}" if fields else ""


def _descend(annotation: Any, part: str | int) -> Any:
    """The type at `part` of an error's place: a field, an entry of a dict or list, or the member of a union."""
    if (fields := getattr(annotation, "model_fields", None)) is not None:
        return next((f.annotation for name, f in fields.items() if (f.alias or name) == part), None)
    members = get_args(annotation)
    if get_origin(annotation) in (dict, list):
        return members[-1]
    if get_origin(annotation) is Annotated:
        return _descend(members[0], part)
    for member in members:
        inner = get_args(member)[0] if get_origin(member) is Annotated else member
        # An optional union is a union in a union.
        if get_args(inner) and (found := _descend(inner, part)) is not None:
            return found
        if part in get_args(
            getattr(inner, "model_fields", {"kind": _NO_KIND}).get("kind", _NO_KIND).annotation
        ):
            return inner
    return None


_NO_KIND = FieldInfo(annotation=str)


def _fault(
    where: str,
    location: tuple[str | int, ...],
    value: Any,
    message: str,
    overridden: Mapping[str, str] | None,
) -> str:
    key = ".".join(str(part) for part in location) or "the file"
    source = (overridden or {}).get(key)
    shown = "" if value is None else f" = {_shorten(_without_secrets(key, value))}"
    return f"{where if source is None else 'environment ' + source}: {key}{shown}: {message}"


def _without_secrets(key: str, value: Any) -> Any:
    """The value as an error may repeat it: a secret in the wrong place must not end up in a log as well."""
    name = key.rpartition(".")[2].lower()
    if any(word in name for word in _SECRET_WORDS) and not name.endswith("_file"):
        return "***"
    if isinstance(value, str) and ("@" in value or ("://" in value and "?" in value)):
        # Where a password in a URL ends cannot be told once the URL is wrong.
        return re.sub(r"^(\w*://)?.*$", r"\1***", value, flags=re.S)
    return value


def _redacted(key: str, value: Any, inside: str = "") -> Any:
    """Plain data without secrets. `inside` is the name of a secret around it: whatever it holds is one too."""
    inside = inside or (key if _without_secrets(key, 0) != 0 else "")
    if isinstance(value, dict):
        return {name: _redacted(name, part, inside) for name, part in value.items()}
    if isinstance(value, list):
        return [_redacted(key, part, inside) for part in value]
    return _without_secrets(inside or key, value)


_SECRET_WORDS = ("password", "passwd", "secret", "token")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _override(data: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Writes the environment's settings into `data`; says which key came from which variable."""
    overridden: dict[str, str] = {}
    for variable in sorted(v for v in environment if v.startswith(ENVIRONMENT_PREFIX)):
        path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if not all(path):
            raise ConfigError(f"environment {variable}: write it as {ENVIRONMENT_PREFIX}SECTION__KEY")
        keys: list[Any] = []
        target: Any = data
        for part in path[:-1]:
            keys.append(_key(target, part, variable))
            target = target[keys[-1]] if isinstance(target, list) else target.setdefault(keys[-1], {})
            if not isinstance(target, (dict, list)):
                raise ConfigError(f"environment {variable}: {part} is not a section")
        keys.append(_key(target, path[-1], variable))
        target[keys[-1]] = _literal(environment[variable])
        overridden[".".join(map(str, keys))] = variable
    return overridden


def _key(target: dict[str, Any] | list[Any], part: str, variable: str) -> str | int:
    """The key that a variable means: environments shout, so an existing key is found whatever its case."""
    if isinstance(target, dict):
        return next((key for key in target if key.lower() == part), part)
    if part.isdecimal() and int(part) < len(target):
        return int(part)
    raise ConfigError(
        f"environment {variable}: {part!r} is not an entry of a list of {len(target)}, which are counted from 0"
    )


def _literal(text: str) -> Any:
    """A TOML value where the text is one, otherwise the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
