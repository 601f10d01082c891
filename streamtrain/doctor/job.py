"""What a job says, tried without a network: secrets, certificates, plug-ins, the model, and the log that it names."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path

from streamtrain import plugins
from streamtrain.config import Job
from streamtrain.credentials import secret_of_file
from streamtrain.dead_letters.settings import DeadLetterTopic
from streamtrain.dense.compiled import usable_folder
from streamtrain.errors import ConfigError, LogError, StreamtrainError
from streamtrain.findings import Finding
from streamtrain.identity import check_same_model
from streamtrain.kafka_connection import KafkaConnection
from streamtrain.log.reader import LogReader
from streamtrain.tls import ClientTls

__all__ = ["check"]


def check(job: Job) -> list[Finding]:
    """Looks at everything that needs no network. Nothing is written but, where they are missing, folders of caches."""
    parts: dict[str, Callable[[Job], Iterable[Finding]]] = {
        "secrets": _secrets,
        "source": _source,
        "model": _model,
        "caches": _caches,
        "log": _log,
        "exports": _exports,
    }
    found = [Finding.ok("settings", f"model {job.name!r}: every setting is known and in its range")]
    for area, look in parts.items():
        try:
            found += look(job)
        except StreamtrainError as error:
            # The text of ours says what to do.
            found.append(Finding.fault(area, str(error), ""))
    return found


def _secrets(job: Job) -> Iterable[Finding]:
    """Reads each secret and certificate, and forgets it."""
    count = 0
    connections = {"source": job.source}
    if isinstance(letters := job.training.bad_samples.dead_letters, DeadLetterTopic) and letters.connection:
        connections["training.bad_samples.dead_letters.connection"] = letters.connection
    for name, connection in connections.items():
        if isinstance(connection, KafkaConnection):
            options = _named(name, connection.client_options)
            count += sum(options[key] is not None for key in ("ssl_context", "sasl_plain_password"))
    count += job.store.password() is not None
    if job.store.endpoint.tls:
        files = (job.store.tls_ca_file, job.store.tls_cert_file, job.store.tls_key_file)
        ClientTls(*files, "store.tls_ca_file, store.tls_cert_file and store.tls_key_file")
        count += 1
    if job.http.token_file is not None:
        secret_of_file(job.http.token_file, "http.token_file")
        count += 1
    if count:
        yield Finding.ok("secrets", f"{count} secrets or sets of certificates can be read")


def _named(section: str, read: Callable[[], dict[str, object]]) -> dict[str, object]:
    try:
        return read()
    except ConfigError as error:
        raise ConfigError(f"{section}: {error}") from error


def _source(job: Job) -> Iterable[Finding]:
    """The plug-in can be made, and its records decoded."""
    from streamtrain.samples.decoder import Decoder

    Decoder(job.sample_schema, job.source.codec, leaves_max=job.source.leaves_max)
    yield Finding.ok(
        "source",
        f"kind {job.source.kind!r}, codec {job.source.codec!r}, {len(job.sample_schema.slots)} slots",
    )


def _model(job: Job) -> Iterable[Finding]:
    """Makes the model, with tables that are empty; nothing is compiled but what the initial parameters take."""
    try:
        learner = importlib.import_module("streamtrain.training.learner").Learner(job)
    except RuntimeError as error:
        # numba's, where neither the package's folder nor a home can be written to.
        if "cannot cache" not in str(error):
            raise
        yield Finding.fault(
            "caches",
            f"compiled kernels cannot be kept: {error}",
            "set NUMBA_CACHE_DIR to a folder that this user alone may write to",
        )
        return
    size = sum(array.size for array in learner.dense.state().values())
    yield Finding.ok("model", f"kind {job.model.kind!r}, {size:,} dense numbers, {len(job.tables)} tables")


def _caches(job: Job) -> Iterable[Finding]:
    """Where compiled programs are kept, and whether there are any."""
    if job.training.compiled_cache == "off":
        yield Finding.warning(
            "caches",
            'training.compiled_cache = "off": every start compiles again',
            'training.compiled_cache = "auto"',
        )
        return
    try:
        folder = usable_folder(job.training.compiled_cache)
        programs = sum(1 for _ in folder.glob("*-cache"))
    except OSError as error:
        yield Finding.warning(
            "caches",
            f"compiled programs cannot be kept, so that every start compiles again: {error}",
            "set training.compiled_cache (or XDG_CACHE_HOME) to a folder that this user alone may write to",
        )
        return
    first = "" if programs else ": the first start compiles, for about half a minute"
    yield Finding.ok("caches", f"{programs} compiled programs in {folder}{first}")


def _log(job: Job) -> Iterable[Finding]:
    """The log is of this model, and its newest record can be read."""
    path = Path(job.log.path)
    if not (path / "model.json").exists():
        if path.is_dir() and any(path.iterdir()):
            raise LogError(f"{path} holds other things than a log: name another log.path, or empty it")
        yield Finding.ok("log", f"{path} is not there yet: a new model begins")
        return
    log = LogReader.open(path)
    check_same_model(job, log.model.job, job.log.path)
    head = log.head()
    if head is None:
        yield Finding.ok("log", f"{path} is empty: a new model begins")
        return
    record = log.describe(head)
    yield Finding.ok("log", f"{path} is at epoch {head}, {record.samples_total:,} samples")


def _exports(job: Job) -> Iterable[Finding]:
    for settings in job.exports:
        plugins.load("exporters", settings.kind)
    if job.exports:
        kinds = ", ".join(settings.kind for settings in job.exports)
        yield Finding.ok("exports", f"{len(job.exports)}: {kinds}")
